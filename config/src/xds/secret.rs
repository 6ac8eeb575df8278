//! A certificate and its key ↔ `Secret` (`envoy/extensions/transport_sockets/tls/v3/secret.proto`).

use std::fmt;

use envoy_types::pb::envoy::{
    config::core::v3::{DataSource, data_source::Specifier},
    extensions::transport_sockets::tls::v3::{Secret, TlsCertificate, secret::Type},
};

use super::{DecodeError, decode, tls::check_certificate};
use crate::tls::{CertificatePem, Part};

/// A secret that a listener can show.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretConfig {
    /// Its resource name.
    pub name: String,
    /// The certificate and its key, which belong together.
    pub certificate: CertificatePem,
}

impl fmt::Debug for SecretConfig {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:?}", self.name, self.certificate)
    }
}

/// The secret `name`.
pub fn encode(name: &str, certificate: &CertificatePem) -> Secret {
    let inline = |text: &str| {
        let specifier = Some(Specifier::InlineBytes(text.as_bytes().to_vec()));
        Some(DataSource { specifier, ..Default::default() })
    };
    Secret {
        name: name.to_owned(),
        r#type: Some(Type::TlsCertificate(TlsCertificate {
            certificate_chain: inline(&certificate.chain),
            private_key: inline(&certificate.key),
            ..Default::default()
        })),
    }
}

/// Reads a secret that a listener can show. No error repeats what the secret holds.
///
/// # Errors
/// When it is not a certificate with its key, both in place, or asks what is not supported.
pub fn decode_secret(value: &[u8]) -> Result<SecretConfig, DecodeError> {
    const FIELD: &str = "tls_certificate";
    let secret: Secret = decode(value)?;
    if secret.name.is_empty() {
        return Err(DecodeError::missing("name"));
    }
    let Some(Type::TlsCertificate(certificate)) = &secret.r#type else {
        return Err(DecodeError::new(FIELD, "is missing; only a certificate and its key are supported"));
    };
    check_certificate(FIELD, certificate)?;
    if certificate.watched_directory.is_some() {
        return Err(DecodeError::new(format!("{FIELD}.watched_directory"), "is not supported"));
    }
    let field = |part| match part {
        Part::Cert => format!("{FIELD}.certificate_chain"),
        Part::Key => format!("{FIELD}.private_key"),
    };
    let chain = inline(&field(Part::Cert), certificate.certificate_chain.as_ref())?;
    let key = inline(&field(Part::Key), certificate.private_key.as_ref())?;
    let certificate = CertificatePem::read(chain, key)
        .map_err(|error| DecodeError::new(field(error.part()), error.to_string()))?;
    Ok(SecretConfig { name: secret.name, certificate })
}

fn inline<'s>(field: &str, source: Option<&'s DataSource>) -> Result<&'s [u8], DecodeError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::InlineBytes(bytes)) => Ok(bytes),
        Some(Specifier::InlineString(text)) => Ok(text.as_bytes()),
        None => Err(DecodeError::missing(field)),
        Some(_) => Err(DecodeError::new(field, "only inline_bytes and inline_string are supported")),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::GenericSecret;
    use prost::Message;

    use super::*;

    fn pem() -> CertificatePem {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        CertificatePem::read(cert.as_bytes(), key.as_bytes()).unwrap()
    }

    #[test]
    fn a_secret_reads_back_as_it_was_written() {
        let pem = pem();
        let read = decode_secret(&encode("shop", &pem).encode_to_vec()).unwrap();
        assert_eq!((read.name.as_str(), &read.certificate), ("shop", &pem));
    }

    #[test]
    fn what_cannot_be_shown_is_refused_by_field_and_nothing_of_it_is_repeated() {
        let (one, other) = (pem(), pem());
        let edited = |edit: &dyn Fn(&mut Secret, &mut TlsCertificate)| {
            let mut secret = encode("shop", &one);
            let Some(Type::TlsCertificate(mut certificate)) = secret.r#type.take() else { panic!() };
            edit(&mut secret, &mut certificate);
            secret.r#type = secret.r#type.or(Some(Type::TlsCertificate(certificate)));
            decode_secret(&secret.encode_to_vec()).unwrap_err().to_string()
        };
        let file =
            || Some(DataSource { specifier: Some(Specifier::Filename("/k".into())), ..Default::default() });
        let inline = |text: &str| {
            Some(DataSource { specifier: Some(Specifier::InlineString(text.into())), ..Default::default() })
        };
        let cases = [
            (edited(&|s, _| s.name.clear()), "name: is missing"),
            (
                edited(&|s, _| s.r#type = Some(Type::GenericSecret(GenericSecret::default()))),
                "tls_certificate: is missing",
            ),
            (edited(&|_, c| c.private_key = None), "tls_certificate.private_key: is missing"),
            (edited(&|_, c| c.private_key = file()), "tls_certificate.private_key: only inline_bytes"),
            (
                edited(&|_, c| c.private_key = inline(&other.key)),
                "tls_certificate.private_key: its key does not belong",
            ),
            (
                edited(&|_, c| c.certificate_chain = inline(&one.key)),
                "tls_certificate.certificate_chain: holds no certificate",
            ),
            (edited(&|_, c| c.password = file()), "tls_certificate.password: is not supported"),
        ];
        for (error, expected) in cases {
            assert!(error.starts_with(expected), "{error} ≠ {expected}");
            assert!(
                !error.contains("BEGIN PRIVATE KEY-----\n") && !error.contains(&one.key[30..60]),
                "{error}"
            );
        }
    }
}
