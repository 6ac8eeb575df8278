//! What somebody else did to the store, done to this server's world: pure.
//!
//! Nothing is refused here. Whoever wrote it had seen everything before it, so it fits.

use config::{Service, manifest::Document};

use super::{
    world::World,
    write::{
        Effect, Write, perform, put_document, put_endpoint, put_raw, take_document, take_endpoint, take_raw,
    },
};
use crate::store::{Object, Reference, StoreError, Table};

/// Puts or, without a value, removes the object called `key` of `table`.
///
/// # Errors
/// When the value cannot be read, as one of a newer program may not be; then nothing is done.
pub(super) fn replay(
    world: &mut World,
    (table, key): (Table, &str),
    value: Option<&[u8]>,
    revision: u64,
) -> Result<Effect, StoreError> {
    let mut effect = Effect::default();
    match value {
        Some(value) => match Object::read(table, key, value)? {
            Object::Document(_, document) => effect = put(world, *document, revision),
            Object::Endpoint(cluster, endpoint) => put_endpoint(world, &cluster, &endpoint, &mut effect),
            Object::Raw(_, raw) => put_raw(world, &raw, revision, &mut effect),
        },
        None => match Reference::read(table, key) {
            Some(Reference::Document(object)) => take_document(world, &object, &mut effect),
            Some(Reference::Endpoint(cluster, id)) => {
                take_endpoint(world, &cluster, &id, &mut effect);
            }
            Some(Reference::Raw(kind, name)) => take_raw(world, &(kind, name), &mut effect),
            // A name that cannot be was never put.
            None => {}
        },
    }
    Ok(effect)
}

fn put(world: &mut World, document: Document, revision: u64) -> Effect {
    // A shift is told as a shift.
    if let Document::Service(new) = &document
        && let Some(entry) = world.service(&new.name)
        && entry.value.split != new.split
        && (Service { split: entry.value.split.clone(), ..new.clone() }) == *entry.value
    {
        let shift = Write::Split { service: new.name.clone(), split: new.split.clone(), if_match: None };
        let mut shifted = world.clone();
        if let Ok(effect) = perform(&mut shifted, &shift, revision) {
            *world = shifted;
            return effect;
        }
    }
    let mut effect = Effect::default();
    put_document(world, document.clone(), revision, &mut effect);
    if effect.documents.is_empty() {
        // The same again, at a newer revision.
        world.put(document, revision);
    }
    effect
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use config::{
        ClusterName, Endpoint, Health, Lease, Split,
        manifest::{self, DocumentRef},
    };
    use fastrand::Rng;

    use super::*;
    use crate::{
        registry::{write::Touched, writer::operations},
        store::Operation,
    };

    /// Something that somebody might ask for; much of it is refused.
    fn any_write(rng: &mut Rng) -> Write {
        let service = format!("s{}", rng.u8(..3));
        let version = format!("v{}", rng.u8(1..=3));
        let cluster: ClusterName = format!("{service}/{version}").parse().unwrap();
        let apply = |text: String| Write::Apply(manifest::parse("m", &text).unwrap());
        match rng.u8(..12) {
            0 | 1 => {
                let versions: Vec<String> =
                    (1..=3).filter(|v| *v == 1 || rng.bool()).map(|v| format!("v{v}: {{}}")).collect();
                let weight = rng.u8(1..5);
                let versions = versions.join(", ");
                apply(format!(
                    "kind: Service\nname: {service}\nversions: {{{versions}}}\nsplit: {{weights: {{v1: {weight}}}}}\n"
                ))
            }
            2 => apply(format!("kind: Gateway\nname: g{}\nlisten: 127.0.0.1:0\n", rng.u8(..2))),
            3 | 4 => {
                let (name, gateway) = (rng.u8(..4), rng.u8(..2));
                apply(format!(
                    "kind: Service\nname: {service}\nversions: {{v1: {{}}}}\n---\n\
                     kind: Route\nname: r{name}\ngateway: g{gateway}\n\
                     rules: [{{match: {{path_prefix: /{name}}}, service: {service}}}]\n"
                ))
            }
            5 => {
                let weights = BTreeMap::from([
                    ("v1".parse().unwrap(), rng.u32(1..5)),
                    (version.parse().unwrap(), rng.u32(1..5)),
                ]);
                let service = service.parse().unwrap();
                Write::Split { service, split: Split::new(weights).unwrap(), if_match: None }
            }
            6 => {
                let object = match rng.u8(..3) {
                    0 => DocumentRef::Service(service.parse().unwrap()),
                    1 => DocumentRef::Gateway(format!("g{}", rng.u8(..2)).parse().unwrap()),
                    _ => DocumentRef::Route(format!("r{}", rng.u8(..4)).parse().unwrap()),
                };
                Write::Delete { object, if_match: None }
            }
            7..=9 => {
                let id = format!("e{}", rng.u8(..4)).parse().unwrap();
                let address = format!("127.0.0.1:{}", rng.u16(1..4)).parse().unwrap();
                let (health, lease) = (Health::Ready, Lease::Permanent);
                let endpoint = Endpoint { id, address, weight: 1, zone: None, health, lease };
                Write::PutEndpoint { cluster, endpoint }
            }
            _ => Write::RemoveEndpoint { cluster, id: format!("e{}", rng.u8(..4)).parse().unwrap() },
        }
    }

    fn all(world: &World) -> String {
        let (services, gateways): (Vec<_>, Vec<_>) = (world.services().collect(), world.gateways().collect());
        let (routes, endpoints): (Vec<_>, Vec<_>) = (world.routes().collect(), world.registered().collect());
        format!("{services:?}\n{gateways:?}\n{routes:?}\n{endpoints:?}")
    }

    #[test]
    fn what_one_server_writes_is_the_same_world_and_the_same_push_on_another() {
        for _ in 0..50 {
            let seed = fastrand::u64(..);
            println!("seed {seed}");
            let mut rng = Rng::with_seed(seed);
            let (mut one, mut other) = (World::default(), World::default());
            let mut changes = 0;
            for revision in 1..400 {
                let mut tried = one.clone();
                let Ok(effect) = perform(&mut tried, &any_write(&mut rng), revision) else { continue };
                if !effect.is_change() {
                    continue;
                }
                one = tried;
                changes += 1;
                let mut told: Vec<Operation> = operations(&one, std::iter::once(&effect)).unwrap();
                told.sort_by(|a, b| (a.table, &a.key).cmp(&(b.table, &b.key)));
                let mut touched = Touched::default();
                for Operation { table, key, value } in &told {
                    let value = value.as_ref().map(String::as_bytes);
                    touched.extend(replay(&mut other, (*table, key), value, revision).unwrap().touched);
                }
                assert_eq!(all(&one), all(&other));
                assert_eq!(format!("{:?}", effect.touched), format!("{touched:?}"), "{:?}", effect.changes);
            }
            assert!(changes > 50, "only {changes} of the writes changed anything");
        }
    }

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let mut world = World::default();
        let unreadable = br#"{"revision": 0, "document": {"kind": "Novelty", "name": "x"}}"#;
        let error = replay(&mut world, (Table::Documents, "Novelty x"), Some(unreadable), 7).unwrap_err();
        assert!(error.to_string().contains("Novelty x"), "{error}");
        replay(&mut world, (Table::Documents, "Novelty x"), None, 8).unwrap();
        assert_eq!(all(&world), all(&World::default()));
    }
}
