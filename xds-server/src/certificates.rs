//! The certificates that gateways and services name: whether proxies could use them.
//!
//! Checked when documents are applied, before anything is written, so that a bad file is an answer to
//! whoever names it and not a NACK of every proxy. What is stored already is only warned about: its
//! files change without the server, and no server stays down for one of them.
//!
//! Blocking; not for the writer's thread, nor for an async task.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use config::{
    Gateway, GatewayTls, Service,
    manifest::{Document, DocumentRef, Errors, Located},
    tls::{self, Certificate, FileError, Part, Validity},
};

use crate::registry::world::World;

/// How many certificates and authorities the documents of one apply may name: it bounds how long the
/// answer takes.
const MAX_FILES: usize = 10_000;

/// What is wrong with the files that `documents` name. Whoever sends documents learns whether files
/// could be read, so these are what somebody applies, not all there is.
pub fn check<'d>(documents: impl IntoIterator<Item = &'d Located>, now: SystemTime, errors: &mut Errors) {
    let mut files = 0;
    let mut named: Vec<&Located> = Vec::new();
    for located in documents {
        files += match &located.document {
            Document::Gateway(Gateway { tls: Some(tls), .. }) => tls.certificates.files().len(),
            Document::Service(Service { tls: Some(_), .. }) => 1,
            _ => continue,
        };
        if files > MAX_FILES {
            let message = format!(
                "the documents up to here name more than {MAX_FILES} certificates, the most that are read at once; apply fewer documents at once"
            );
            return errors.push(located.error("tls", message));
        }
        named.push(located);
    }
    let mut checker = Checker { now, authorities: HashMap::new() };
    for located in named {
        checker.document(&located.document, |path, message| errors.push(located.error(path, message)));
    }
}

/// Says in the log what is wrong with the files that the objects of `world` name.
pub fn warn(world: &World, now: SystemTime) {
    stored(world, now, |object, field, fault| tracing::warn!(%object, field, "{fault}"));
}

/// What is wrong with the files that the objects of `world` name: of which object, in which field.
fn stored(world: &World, now: SystemTime, mut fault: impl FnMut(&DocumentRef, String, String)) {
    let mut checker = Checker { now, authorities: HashMap::new() };
    let gateways = world.gateways().map(|entry| Document::Gateway((*entry.value).clone()));
    let services = world.services().map(|entry| Document::Service((*entry.value).clone()));
    for document in gateways.chain(services) {
        let object = document.reference();
        checker.document(&document, |field, message| fault(&object, field, message));
    }
}

/// Whether what `located` says of TLS is in `world` already.
pub fn is_stored(world: &World, located: &Located) -> bool {
    match &located.document {
        Document::Gateway(new) => world.gateway(&new.name).is_some_and(|e| e.value.tls == new.tls),
        Document::Service(new) => world.service(&new.name).is_some_and(|e| e.value.tls == new.tls),
        Document::Route(_) => true,
    }
}

struct Checker {
    now: SystemTime,
    /// What was wrong with authorities that were read before: many services share one.
    authorities: HashMap<PathBuf, Option<String>>,
}

impl Checker {
    fn document(&mut self, document: &Document, mut fault: impl FnMut(String, String)) {
        match document {
            Document::Gateway(Gateway { tls: Some(tls), .. }) => self.gateway(tls, fault),
            Document::Service(Service { tls: Some(tls), .. }) => {
                self.authority(&tls.ca, |message| fault("tls.ca".to_owned(), message));
            }
            _ => {}
        }
    }

    fn gateway(&self, tls: &GatewayTls, mut fault: impl FnMut(String, String)) {
        let mut owners: HashMap<String, usize> = HashMap::new();
        for (i, files) in tls.certificates.files().iter().enumerate() {
            let field = |part: Part| match part {
                Part::Cert => format!("tls.certificates[{i}].cert"),
                Part::Key => format!("tls.certificates[{i}].key"),
            };
            match tls::read(files) {
                Err(error) => fault(field(error.part), error.to_string()),
                Ok(certificate) => {
                    let mut fault = |message| {
                        let path = files.cert.display();
                        fault(field(Part::Cert), format!("{path}: {message}"));
                    };
                    if let Some(message) = timely(&certificate, self.now) {
                        fault(message);
                    }
                    if let Some(message) = nameless(&certificate, i) {
                        fault(message);
                    }
                    if let Some(message) = claim(&mut owners, certificate.names, i) {
                        fault(message);
                    }
                }
            }
        }
    }

    fn authority(&mut self, path: &Path, fault: impl FnOnce(String)) {
        let found = match self.authorities.entry(path.to_owned()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(unknown) => {
                unknown.insert(tls::read_ca(path).err().map(|error: FileError| error.to_string()))
            }
        };
        if let Some(message) = found {
            fault(message.clone());
        }
    }
}

fn timely(certificate: &Certificate, now: SystemTime) -> Option<String> {
    match certificate.validity(now) {
        Validity::Valid => None,
        Validity::Expired => Some(format!("expired on {}; renew it", date(certificate.not_after))),
        Validity::NotYet => Some(format!(
            "is valid from {} only; apply it then, or correct the clock of this machine",
            date(certificate.not_before)
        )),
    }
}

fn date(time: SystemTime) -> impl fmt::Display {
    // Certificates can be dated before 1970 and beyond what this can write; those are as good as that.
    let last = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(253_402_300_799);
    humantime::format_rfc3339_seconds(time.clamp(SystemTime::UNIX_EPOCH, last))
}

/// Whether nobody could ever be shown it, or accept it.
fn nameless(certificate: &Certificate, index: usize) -> Option<String> {
    let message = match (certificate.names.is_empty(), certificate.addresses.is_empty(), index) {
        (false, _, _) | (true, false, 0) => return None,
        (true, true, _) => {
            "names nobody: it has no DNS name and no IP address as subjectAltName, so that no client accepts it; have it issued for the names of the gateway"
        }
        (true, false, _) => {
            "has no DNS name, by which it would be chosen; list it first, where it is for clients that send no name"
        }
    };
    Some(message.to_owned())
}

/// Notes which certificate is for which name; says so if one was taken.
fn claim(owners: &mut HashMap<String, usize>, names: Vec<String>, index: usize) -> Option<String> {
    let mut taken = None;
    for name in names {
        match owners.entry(name) {
            Entry::Vacant(free) => {
                free.insert(index);
            }
            Entry::Occupied(owner) => {
                let first = *owner.get();
                taken.get_or_insert_with(|| {
                    format!(
                        "is for `{}`, as certificates[{first}] is, and only one of them could be shown; give each name one certificate",
                        owner.key()
                    )
                });
            }
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use config::manifest;

    use super::*;
    use crate::registry::write::{Write, perform};

    #[test]
    fn what_is_stored_is_told_by_object_and_field() {
        let text = "kind: Gateway\nname: edge\nlisten: 127.0.0.1:0\n\
                    tls: {certificates: [{cert: /none/a.pem, key: /none/a.key}]}\n---\n\
                    kind: Gateway\nname: clear\nlisten: 127.0.0.1:0\n---\n\
                    kind: Service\nname: shop\nversions: {v1: {}}\ntls: {ca: /none/ca.pem, sni: a}\n---\n\
                    kind: Service\nname: till\nversions: {v1: {}}\ntls: {ca: /none/ca.pem, sni: b}\n";
        let mut world = World::default();
        perform(&mut world, &Write::Apply(manifest::parse("m", text).unwrap()), 1).unwrap();
        let mut found = Vec::new();
        stored(&world, SystemTime::now(), |object, field, fault| {
            assert!(fault.starts_with("/none/"), "{fault}");
            found.push(format!("{object}: {field}"));
        });
        let expected =
            ["Gateway edge: tls.certificates[0].cert", "Service shop: tls.ca", "Service till: tls.ca"];
        assert_eq!(found, expected);
    }

    #[test]
    fn one_apply_reads_so_many_files_and_no_more() {
        let gateway = |n: usize| {
            let pair = |i: usize| format!("{{cert: /none/{n}-{i}, key: /none/k}}");
            let pairs = (0..1_000).map(pair).collect::<Vec<_>>().join(", ");
            format!("kind: Gateway\nname: g{n}\nlisten: 127.0.0.1:0\ntls: {{certificates: [{pairs}]}}\n---\n")
        };
        let documents = manifest::parse("m", &(0..11).map(gateway).collect::<String>()).unwrap();
        let mut errors = Errors::default();
        check(&documents, SystemTime::now(), &mut errors);
        let errors = errors.into_vec();
        assert_eq!(errors.len(), 1);
        let expected = "m:54: tls: the documents up to here name more than 10000 certificates";
        assert!(errors[0].to_string().starts_with(expected), "{}", errors[0]);
    }

    #[test]
    fn a_date_is_written_whatever_a_certificate_says() {
        let year = std::time::Duration::from_hours(8_760);
        assert_eq!(date(SystemTime::UNIX_EPOCH - year).to_string(), "1970-01-01T00:00:00Z");
        assert_eq!(date(SystemTime::UNIX_EPOCH + year * 20_000).to_string(), "9999-12-31T23:59:59Z");
    }
}
