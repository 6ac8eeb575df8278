//! What the clients of a control plane start TLS with: its authorities, and who they are.
//!
//! Blocking: it reads files.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier, crypto::ring, sign::SingleCertAndKey,
};

use super::{CertificateFiles, FileError, read, read_ca};

/// How a client reaches a server over TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// A PEM file of the authorities that are trusted to sign the server's certificate.
    pub ca: PathBuf,
    /// What the client shows when it is asked who it is.
    pub certificate: Option<CertificateFiles>,
}

/// Why a client has no TLS.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// A file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The provider of cryptography refused.
    #[error("TLS cannot be set up: {0}")]
    Setup(#[from] rustls::Error),
}

impl ClientTls {
    /// What reaches no server at all, for a client that needs none.
    ///
    /// # Errors
    /// When the provider of cryptography refuses.
    pub fn trusting_nobody() -> Result<ClientConfig, ClientError> {
        Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }

    /// Reads the files. TLS 1.2 and 1.3, without ALPN.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub fn read(&self) -> Result<ClientConfig, ClientError> {
        let roots: RootCertStore = read_ca(&self.ca)?;
        let builder = builder()?.with_root_certificates(roots);
        Ok(match &self.certificate {
            None => builder.with_no_client_auth(),
            Some(files) => {
                let certificate = read(files)?;
                let key = SingleCertAndKey::from((*certificate.key).clone());
                builder.with_client_cert_resolver(Arc::new(key))
            }
        })
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, rustls::Error> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(rustls::ALL_VERSIONS)
}
