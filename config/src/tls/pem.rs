//! A certificate and its key as text that can be handed on. Pure.

use std::fmt;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use rustls::pki_types::PrivateKeyDer;

use super::pair::{Certificate, PairError, certificates, certified_key, private_key};

/// Characters of base64 on a line (RFC 7468 §2).
const LINE: usize = 64;

/// A certificate with its chain, and its private key, as PEM.
///
/// Written anew from what was understood: whatever else the files hold (comments, a second key, the key
/// itself in the file of the certificate) goes no further, and the same certificate is the same text.
#[derive(Clone)]
pub struct CertificatePem {
    /// The certificate, then its intermediates.
    pub chain: String,
    /// The private key.
    pub key: String,
    /// The same, ready to serve with.
    pub certificate: Certificate,
}

impl CertificatePem {
    /// Reads PEM, as [`certified_key`] does.
    ///
    /// # Errors
    /// As there.
    pub fn read(cert_pem: &[u8], key_pem: &[u8]) -> Result<Self, PairError> {
        let certificate = certified_key(cert_pem, key_pem)?;
        let chain = certificates(cert_pem)?.iter().map(|der| block("CERTIFICATE", der)).collect();
        let key = private_key(key_pem)?;
        let label = match &key {
            PrivateKeyDer::Pkcs1(_) => "RSA PRIVATE KEY",
            PrivateKeyDer::Sec1(_) => "EC PRIVATE KEY",
            _ => "PRIVATE KEY",
        };
        Ok(Self { chain, key: block(label, key.secret_der()), certificate })
    }
}

impl PartialEq for CertificatePem {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key == other.key
    }
}

impl Eq for CertificatePem {}

impl fmt::Debug for CertificatePem {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "certificate for {}", self.certificate.names.join(", "))
    }
}

fn block(label: &str, der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so any place is between characters.
        let (line, more) = rest.split_at(rest.len().min(LINE));
        pem.push_str(line);
        pem.push('\n');
        rest = more;
    }
    pem + "-----END " + label + "-----\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_handed_on_is_the_certificate_and_the_key_and_nothing_else() {
        let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let noise = format!("a comment\n{key}{}\r\n{cert}", cert.replace('\n', "\r\n"));
        let read = CertificatePem::read(noise.as_bytes(), noise.as_bytes()).unwrap();
        assert_eq!(read.chain.matches("BEGIN").count(), 2);
        assert!(!read.chain.contains("KEY") && !read.chain.contains("comment"));
        assert_eq!(read.key.matches("BEGIN").count(), 1);
        // And it reads as the same again.
        let again = CertificatePem::read(read.chain.as_bytes(), read.key.as_bytes()).unwrap();
        assert_eq!(again, read);
        assert_eq!(again.certificate.names, ["a.example"]);
        assert_eq!(format!("{read:?}"), "certificate for a.example");
    }

    #[test]
    fn a_key_of_another_certificate_is_none() {
        let one = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let refused = CertificatePem::read(one.cert.pem().as_bytes(), other.as_bytes());
        assert_eq!(refused.unwrap_err(), PairError::Mismatch);
    }
}
