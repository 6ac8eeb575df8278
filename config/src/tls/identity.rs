//! Whom a client certificate speaks for. Pure.

use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer};

use super::PairError;
use crate::access::San;

/// The names in the `subjectAltName` of a certificate, in its order: DNS names and URIs. Others, and
/// what is not a name by its rules, are passed over; a common name says nothing (RFC 9525 §2).
///
/// # Errors
/// When it cannot be read; what a TLS handshake has verified can.
pub fn identities(der: &[u8]) -> Result<Vec<San>, PairError> {
    let bad = |_| PairError::BadCertificate(1);
    let (_, certificate) = X509Certificate::from_der(der).map_err(bad)?;
    let extension = certificate.subject_alternative_name().map_err(|_| PairError::BadCertificate(1))?;
    let names = extension.into_iter().flat_map(|e| &e.value.general_names);
    Ok(names.filter_map(san).collect())
}

fn san(name: &GeneralName<'_>) -> Option<San> {
    match name {
        // Both are IA5Strings, in which an authority's slip could hide a line break or the other kind.
        GeneralName::DNSName(name) => {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
            (!name.is_empty() && name.bytes().all(plain)).then(|| San::Dns(name.to_ascii_lowercase()))
        }
        GeneralName::URI(uri) => (uri.contains("://") && uri.bytes().all(|b| b.is_ascii_graphic()))
            .then(|| San::Uri((*uri).to_owned())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SanType};

    use super::*;

    #[test]
    fn names_are_read_and_what_is_none_is_passed_over() {
        let mut params =
            CertificateParams::new(["Edge-1.Example.com".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let text = |text: &str| text.try_into().unwrap();
        params.subject_alt_names.push(SanType::URI(text("spiffe://example.com/edge")));
        params.subject_alt_names.push(SanType::DnsName(text("spiffe://example.com/admin")));
        params.subject_alt_names.push(SanType::URI(text("edge-2.example.com")));
        params.subject_alt_names.push(SanType::Rfc822Name(text("a@example.com")));
        let der = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let expected = [San::Dns("edge-1.example.com".into()), San::Uri("spiffe://example.com/edge".into())];
        assert_eq!(identities(der.der()).unwrap(), expected);
        assert!(identities(b"no certificate").is_err());
    }
}
