//! Files → what they hold, with a fingerprint of the bytes it was made of. Blocking.

use std::{
    fmt,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{
    tls::{Certificate, CertificateFiles, FileError, Fingerprint, Validity},
    xds::secret::SecretConfig,
};
use rustls::{RootCertStore, client::WebPkiServerVerifier};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::suites;

/// How often a file that changes while it is read is read again at once.
const ATTEMPTS: usize = 3;
/// How long before its end a certificate that is loaded is warned of.
const SOON: Duration = Duration::from_hours(72);

/// Why a listener or a cluster cannot have the TLS it is to have. Displays with the file at fault.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// A file was written to each time it was read.
    #[error("{0}: keeps changing while it is read; replace it by renaming a whole one over it")]
    Unsettled(String),
    /// A listener without a certificate.
    #[error("a listener that terminates TLS has no certificate; give at least one")]
    NoCertificate,
    /// A secret that no server has given yet.
    #[error("its secret `{0}` has not come from the server yet")]
    NoSecret(Arc<str>),
    /// A protocol that cannot be offered (RFC 7301 §3.1: 1 to 255 bytes).
    #[error("{0:?} cannot be offered by ALPN; give 1 to 255 bytes, for example `h2`")]
    Alpn(String),
    /// A server name that nothing can be verified against.
    #[error(
        "the server name {0:?} is not a DNS name; give the name that the certificate of the endpoints is for"
    )]
    Sni(String),
    /// The provider of cryptography refused.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

pub(super) fn of_pair(files: &CertificateFiles) -> Fingerprint {
    Fingerprint::of([&files.cert, &files.key])
}

/// Where a certificate came from; its successors come from there too.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// Files of this machine.
    Files(CertificateFiles),
    /// A server, by the name of the secret.
    Secret(Arc<str>),
}

/// A certificate that can be shown, and where it came from.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) origin: Origin,
    /// Of the bytes of its files; none of a secret.
    pub(super) fingerprint: Option<Fingerprint>,
    pub(super) certificate: Certificate,
    /// Hexadecimal, as issuers and browsers write it.
    pub(super) serial: String,
    pub(super) at: SystemTime,
}

impl Loaded {
    /// Reads both files. What has expired is loaded all the same, with a warning.
    pub(super) fn read(files: &CertificateFiles) -> Result<Arc<Self>, TlsError> {
        let (fingerprint, certificate) =
            settled(|| of_pair(files), || config::tls::read(files), || files.cert.display().to_string())?;
        Ok(Self::new(Origin::Files(files.clone()), Some(fingerprint), certificate))
    }

    /// What a server gave.
    pub(super) fn given(secret: &SecretConfig) -> Arc<Self> {
        let name = secret.name.as_str().into();
        Self::new(Origin::Secret(name), None, secret.certificate.certificate.clone())
    }

    fn new(origin: Origin, fingerprint: Option<Fingerprint>, certificate: Certificate) -> Arc<Self> {
        let at = SystemTime::now();
        warn_of_validity(&origin, &certificate, at);
        let serial = serial(&certificate);
        Arc::new(Self { origin, fingerprint, certificate, serial, at })
    }

    /// The files it came from.
    pub(super) fn files(&self) -> Option<&CertificateFiles> {
        match &self.origin {
            Origin::Files(files) => Some(files),
            Origin::Secret(_) => None,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(files) => write!(f, "{}", files.cert.display()),
            Self::Secret(name) => write!(f, "of secret `{name}`"),
        }
    }
}

fn warn_of_validity(origin: &Origin, certificate: &Certificate, now: SystemTime) {
    match certificate.validity(now) {
        Validity::Expired => tracing::warn!("the certificate {origin} has expired; clients will refuse it"),
        Validity::NotYet => {
            tracing::warn!("the certificate {origin} is not valid yet; clients will refuse it");
        }
        Validity::Valid if certificate.not_after < now + SOON => {
            tracing::warn!("the certificate {origin} expires within three days");
        }
        Validity::Valid => {}
    }
}

fn serial(certificate: &Certificate) -> String {
    let leaf = certificate.key.cert.first();
    let parsed = leaf.and_then(|leaf| Some(X509Certificate::from_der(leaf).ok()?.1));
    parsed.map(|certificate| certificate.raw_serial_as_string()).unwrap_or_default()
}

/// Trusted authorities as something that verifies, and what it was made of.
#[derive(Debug)]
pub(super) struct Roots {
    pub(super) fingerprint: Fingerprint,
    pub(super) verifier: Arc<WebPkiServerVerifier>,
    /// How many authorities.
    pub(super) count: usize,
    pub(super) at: SystemTime,
}

impl Roots {
    pub(super) fn read(ca: &Path) -> Result<Arc<Self>, TlsError> {
        let (fingerprint, store): (_, RootCertStore) =
            settled(|| Fingerprint::of([ca]), || config::tls::read_ca(ca), || ca.display().to_string())?;
        let count = store.len();
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(store), suites::provider())
            .build()
            .map_err(|error| TlsError::Setup(error.to_string()))?;
        Ok(Arc::new(Self { fingerprint, verifier, count, at: SystemTime::now() }))
    }
}

/// What `read` gives, when the bytes were the same before and after: what was read half before a
/// change and half after it is neither of both, and would stay.
fn settled<T>(
    fingerprint: impl Fn() -> Fingerprint,
    read: impl Fn() -> Result<T, FileError>,
    path: impl Fn() -> String,
) -> Result<(Fingerprint, T), TlsError> {
    let mut before = fingerprint();
    for _ in 0..ATTEMPTS {
        let content = read();
        let after = fingerprint();
        if before == after {
            return Ok((after, content?));
        }
        before = after;
    }
    Err(TlsError::Unsettled(path()))
}
