//! The bytes of PEM files → what TLS works with. Pure: no file, no clock.

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use rustls::{
    RootCertStore,
    crypto::ring::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time};

/// A certificate with its chain and its private key, which belongs to it, ready to serve with.
#[derive(Clone, Debug)]
pub struct Certificate {
    /// What rustls shows and signs with.
    pub key: Arc<CertifiedKey>,
    /// The DNS names it is for (its `subjectAltName`), in lower case, sorted, each once. A wildcard is
    /// written as it stands there: `*.example.com`. May be empty.
    pub names: Vec<String>,
    /// The IP addresses it is for. Clients that connect to an address send no server name (RFC 6066
    /// §3), so these decide nothing; they tell a certificate for addresses from one for nothing.
    pub addresses: Vec<IpAddr>,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// The last second in which it is valid.
    pub not_after: SystemTime,
}

/// Where a moment stands to the validity of a certificate (RFC 5280 §4.1.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// It begins later.
    NotYet,
    /// Within.
    Valid,
    /// It is over.
    Expired,
}

impl Certificate {
    /// Where `now` stands to its validity. Whoever holds it decides what follows: a proxy that is
    /// given no better one goes on with what has expired, and says so.
    pub fn validity(&self, now: SystemTime) -> Validity {
        if now < self.not_before {
            Validity::NotYet
        } else if now >= self.not_after + Duration::from_secs(1) {
            Validity::Expired
        } else {
            Validity::Valid
        }
    }
}

/// Why a certificate or its key cannot be used.
///
/// Nothing of the files is repeated: what was named may be any file, and what it holds a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PairError {
    /// No certificate in the file of certificates.
    #[error("holds no certificate; expected PEM, a block that starts with `-----BEGIN CERTIFICATE-----`")]
    NoCertificate,
    /// One of the certificates, counted from 1, is broken.
    #[error(
        "its certificate {0} cannot be read; make sure that the file is complete, and X.509 version 3 in PEM"
    )]
    BadCertificate(usize),
    /// No private key in the file of the key.
    #[error("holds no private key; expected PEM, a block that starts with `-----BEGIN PRIVATE KEY-----`")]
    NoKey,
    /// The key is protected by a passphrase, which nobody could type.
    #[error(
        "holds an encrypted key; take off its passphrase, for example with `openssl pkey`, and protect the file by its permissions"
    )]
    EncryptedKey,
    /// The key is broken or of a kind that TLS does not use here.
    #[error("its key cannot be used; supported: RSA of 2048 to 4096 bits, ECDSA P-256 and P-384, Ed25519")]
    BadKey,
    /// The key is another certificate's.
    #[error("its key does not belong to the certificate; give the key that the certificate was issued for")]
    Mismatch,
}

/// Whose fault a [`PairError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The certificate's.
    Cert,
    /// The key's.
    Key,
}

impl PairError {
    /// Whose fault it is.
    pub fn part(self) -> Part {
        match self {
            Self::NoCertificate | Self::BadCertificate(_) => Part::Cert,
            Self::NoKey | Self::EncryptedKey | Self::BadKey | Self::Mismatch => Part::Key,
        }
    }
}

/// The certificate of `cert_pem`, its intermediates and the private key of `key_pem`. Other PEM blocks
/// are passed over, so both may be the same file. Of several keys the first counts.
///
/// # Errors
/// When either cannot be used, or they do not belong together. What has expired is no error:
/// see [`Certificate::validity`].
pub fn certified_key(cert_pem: &[u8], key_pem: &[u8]) -> Result<Certificate, PairError> {
    let chain = certificates(cert_pem)?;
    let leaf = chain.first().ok_or(PairError::NoCertificate)?;
    let (_, read) = X509Certificate::from_der(leaf).map_err(|_| PairError::BadCertificate(1))?;
    let (names, addresses) = subjects(&read)?;
    let (not_before, not_after) = (moment(read.validity.not_before), moment(read.validity.not_after));
    let key = CertifiedKey::new(
        chain.clone(),
        any_supported_type(&private_key(key_pem)?).map_err(|_| PairError::BadKey)?,
    );
    match key.keys_match() {
        Ok(()) => {}
        Err(rustls::Error::InconsistentKeys(_)) => return Err(PairError::Mismatch),
        // rustls is stricter than the reader above, and it is rustls that serves.
        Err(_) => return Err(PairError::BadCertificate(1)),
    }
    Ok(Certificate { key: Arc::new(key), names, addresses, not_before, not_after })
}

/// The certificates of `pem`, as authorities to trust.
///
/// # Errors
/// When there is none, or one cannot be used.
pub fn authorities(pem: &[u8]) -> Result<RootCertStore, PairError> {
    let mut store = RootCertStore::empty();
    for (i, certificate) in certificates(pem)?.into_iter().enumerate() {
        store.add(certificate).map_err(|_| PairError::BadCertificate(i + 1))?;
    }
    Ok(store)
}

/// At least one certificate, each of which is one.
pub(super) fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PairError> {
    let mut chain = Vec::new();
    for der in CertificateDer::pem_slice_iter(pem) {
        let bad = PairError::BadCertificate(chain.len() + 1);
        let der = der.map_err(|_| bad)?;
        X509Certificate::from_der(&der).map_err(|_| bad)?;
        chain.push(der);
    }
    if chain.is_empty() { Err(PairError::NoCertificate) } else { Ok(chain) }
}

pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, PairError> {
    match PrivateKeyDer::pem_slice_iter(pem).next() {
        Some(Ok(key)) => Ok(key),
        // PKCS#8 (RFC 7468 §11) has a block of its own; older forms a header inside theirs (RFC 1421
        // §4.6.1.1), which the reader of PEM trips over.
        _ if has(pem, b"BEGIN ENCRYPTED PRIVATE KEY") || has(pem, b"Proc-Type: 4,ENCRYPTED") => {
            Err(PairError::EncryptedKey)
        }
        Some(Err(_)) => Err(PairError::BadKey),
        None => Err(PairError::NoKey),
    }
}

fn has(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// Whom a certificate is for. Its common name says nothing any more (RFC 9525 §2).
fn subjects(certificate: &X509Certificate<'_>) -> Result<(Vec<String>, Vec<IpAddr>), PairError> {
    let extension = certificate.subject_alternative_name().map_err(|_| PairError::BadCertificate(1))?;
    let (mut names, mut addresses) = (Vec::new(), Vec::new());
    for name in extension.into_iter().flat_map(|e| &e.value.general_names) {
        match name {
            GeneralName::DNSName(name) => names.push(name.to_ascii_lowercase()),
            GeneralName::IPAddress(bytes) => addresses.extend(address(bytes)),
            _ => {}
        }
    }
    names.sort();
    names.dedup();
    Ok((names, addresses))
}

/// RFC 5280 §4.2.1.6: four octets or sixteen.
fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// As the system's clock counts; years from 0 to 9999 fit.
fn moment(time: ASN1Time) -> SystemTime {
    let seconds = Duration::from_secs(time.timestamp().unsigned_abs());
    if time.timestamp() < 0 { SystemTime::UNIX_EPOCH - seconds } else { SystemTime::UNIX_EPOCH + seconds }
}

#[cfg(test)]
mod tests;
