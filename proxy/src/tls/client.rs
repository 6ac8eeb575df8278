//! What connections to the endpoints of a cluster start TLS with.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use arc_swap::ArcSwap;
use config::tls::UpstreamTls;
use rustls::{
    ClientConfig,
    client::Resumption,
    pki_types::{DnsName, ServerName},
};
use tokio_rustls::TlsConnector;

use super::{
    read::{Roots, TlsError},
    registry::Registry,
    suites,
};

/// Sessions of a cluster's endpoints that are kept for resumption. They share one name, of which
/// rustls keeps at most eight tickets.
const SESSIONS: usize = 16;

/// The one protocol a connection is made for (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Alpn {
    /// `http/1.1`
    Http1,
    /// `h2`
    Http2,
}

impl Alpn {
    /// As it is sent.
    pub(crate) fn protocol(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Trusted authorities from one file, shared by all clusters that name it.
#[derive(Debug)]
pub(super) struct Authority {
    pub(super) ca: PathBuf,
    pub(super) roots: ArcSwap<Roots>,
    registry: Arc<Registry>,
}

impl Authority {
    pub(super) fn read(ca: &Path, registry: Arc<Registry>) -> Result<Self, TlsError> {
        Ok(Self { ca: ca.to_owned(), roots: ArcSwap::new(Roots::read(ca)?), registry })
    }
}

impl Drop for Authority {
    fn drop(&mut self) {
        self.registry.look(); // its file needs no watch any more
    }
}

/// TLS 1.2 and 1.3 to the endpoints of a cluster, whose certificates must be for its server name.
/// One for all clusters that want the same. New connections follow the file of authorities.
#[derive(Debug)]
pub(crate) struct ClientTls {
    authority: Arc<Authority>,
    name: ServerName<'static>,
    alpn: Alpn,
    current: ArcSwap<Current>,
}

/// A configuration, and the authorities it trusts.
#[derive(Debug)]
struct Current {
    roots: Arc<Roots>,
    config: Arc<ClientConfig>,
}

impl ClientTls {
    pub(super) fn new(authority: Arc<Authority>, tls: &UpstreamTls, alpn: Alpn) -> Result<Self, TlsError> {
        let name = DnsName::try_from(tls.sni.clone()).map_err(|_| TlsError::Sni(tls.sni.clone()))?;
        let current = Current::new(authority.roots.load_full(), alpn)?;
        Ok(Self { authority, name: ServerName::DnsName(name), alpn, current: ArcSwap::from_pointee(current) })
    }

    /// Starts handshakes, with [`Self::server_name`]. Take it per connection: it follows the file of
    /// authorities, at the cost of one comparison.
    pub(crate) fn connector(&self) -> TlsConnector {
        TlsConnector::from(self.config())
    }

    /// What connections of this moment start with.
    pub(crate) fn config(&self) -> Arc<ClientConfig> {
        let current = self.current.load();
        let roots = self.authority.roots.load();
        if Arc::ptr_eq(&current.roots, &roots) {
            return Arc::clone(&current.config);
        }
        // Sessions stay behind: what was verified by other authorities is not resumed.
        match Current::new(Arc::clone(&roots), self.alpn) {
            Ok(newer) => {
                let config = Arc::clone(&newer.config);
                self.current.store(Arc::new(newer));
                config
            }
            // The provider, which has not changed, was fine before.
            Err(_) => Arc::clone(&current.config),
        }
    }

    /// The name that is sent and verified.
    pub(crate) fn server_name(&self) -> ServerName<'static> {
        self.name.clone()
    }
}

impl Current {
    fn new(roots: Arc<Roots>, alpn: Alpn) -> Result<Self, TlsError> {
        let mut config = ClientConfig::builder_with_provider(suites::provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(|error| TlsError::Setup(error.to_string()))?
            .with_webpki_verifier(Arc::clone(&roots.verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![alpn.protocol().to_vec()];
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self { roots, config: Arc::new(config) })
    }
}
