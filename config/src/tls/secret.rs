//! What a gateway shows: files of its proxies, or secrets that they are given over SDS.

use serde::Serialize;

use super::CertificateFiles;
use crate::name::SecretName;

/// What a gateway can show: files that its proxies read, or secrets that they are given. Never empty, no
/// duplicates, at most [`MAX_CERTIFICATES`](super::MAX_CERTIFICATES).
///
/// Not both: of a listener with both, Envoy reads the files only.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Certificates {
    /// Files where the proxies run.
    Files(Vec<CertificateFiles>),
    /// Secrets of the server.
    Secrets(Vec<SecretRef>),
}

impl Certificates {
    /// The files.
    pub fn files(&self) -> &[CertificateFiles] {
        match self {
            Self::Files(files) => files,
            Self::Secrets(_) => &[],
        }
    }

    /// The names of the secrets, in order.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretName> {
        let references = match self {
            Self::Files(_) => &[],
            Self::Secrets(references) => references.as_slice(),
        };
        references.iter().map(|reference| &reference.secret)
    }
}

/// A secret by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecretRef {
    /// The resource name of the secret.
    pub secret: SecretName,
}
