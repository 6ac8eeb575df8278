//! What the listeners of the API and of xDS speak TLS with (RFC 8446, RFC 5246).

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{
    bootstrap::ServerTls,
    tls::{self, Certificate, Validity, identities},
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    server::{NoServerSessionStorage, WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::SingleCertAndKey,
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsAcceptor;

use super::{Access, By, Peer, Wire};

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// One of the listeners of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Listener {
    /// Clients may show a certificate or send a token.
    Api,
    /// Clients show a certificate, if there is an authority to know it by.
    Xds,
}

/// What each listener begins connections with.
pub(super) struct Material {
    api: Arc<ServerConfig>,
    xds: Arc<ServerConfig>,
    certificate: Certificate,
}

impl Material {
    /// Reads the files. Blocking.
    pub(super) fn read(settings: &ServerTls) -> Result<(Self, Vec<PathBuf>), String> {
        let files = &settings.certificate;
        let certificate = tls::read(files).map_err(|e| format!("--tls-cert, --tls-key: {e}"))?;
        let mut paths = vec![files.cert.clone(), files.key.clone()];
        let roots = match &settings.client_ca {
            None => None,
            Some(ca) => {
                paths.push(ca.clone());
                Some(Arc::new(tls::read_ca(ca).map_err(|e| format!("--client-ca: {e}"))?))
            }
        };
        let key = Arc::new(SingleCertAndKey::from((*certificate.key).clone()));
        let of = |listener| {
            config(&key, roots.as_ref(), listener).map_err(|e| format!("TLS cannot be set up: {e}"))
        };
        let (api, xds) = (of(Listener::Api)?, of(Listener::Xds)?);
        Ok((Self { api, xds, certificate }, paths))
    }

    /// Says so when clients will refuse the certificate.
    pub(super) fn warn_of_validity(&self) {
        match self.certificate.validity(SystemTime::now()) {
            Validity::Valid => {}
            Validity::Expired => {
                tracing::warn!("the certificate of --tls-cert has expired; clients will refuse it");
            }
            Validity::NotYet => {
                tracing::warn!("the certificate of --tls-cert is not valid yet; clients will refuse it");
            }
        }
    }
}

fn config(
    key: &Arc<SingleCertAndKey>,
    roots: Option<&Arc<RootCertStore>>,
    listener: Listener,
) -> Result<Arc<ServerConfig>, Box<dyn std::error::Error>> {
    let provider = Arc::new(ring::default_provider());
    let verifier: Arc<dyn ClientCertVerifier> = match roots {
        None => WebPkiClientVerifier::no_client_auth(),
        Some(roots) => {
            let builder =
                WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(&provider));
            match listener {
                Listener::Api => builder.allow_unauthenticated().build()?,
                Listener::Xds => builder.build()?,
            }
        }
    };
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(rustls::ALL_VERSIONS)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::clone(key) as _);
    config.alpn_protocols = match listener {
        Listener::Api => vec![b"http/1.1".to_vec()],
        Listener::Xds => vec![b"h2".to_vec()],
    };
    // Nothing is resumed: a certificate that has expired, or is no longer trusted, opens no connection.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Begins connections of a listener with TLS.
#[derive(Clone)]
pub struct ListenerTls {
    access: Arc<Access>,
    listener: Listener,
}

impl ListenerTls {
    pub(super) fn new(access: Arc<Access>, listener: Listener) -> Self {
        Self { access, listener }
    }

    /// One handshake, in bounded time; one that fails is counted and logged, and is nothing.
    pub(crate) async fn accept(&self, stream: TcpStream) -> Option<Wire> {
        let address = stream.peer_addr().ok()?;
        let material = self.access.tls.as_ref()?.current();
        let config = match self.listener {
            Listener::Api => &material.api,
            Listener::Xds => &material.xds,
        };
        let handshake = TlsAcceptor::from(Arc::clone(config)).accept(stream);
        let refused = |why: &dyn std::fmt::Display| {
            let what = match self.listener {
                Listener::Api => "the API",
                Listener::Xds => "xDS",
            };
            self.access.note(By::Handshake, format_args!("a connection to {what} from {address}: {why}"));
        };
        match timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(stream)) => {
                let leaf = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                // The handshake has verified it: what cannot be read names nobody.
                let names = leaf.map(|leaf| identities(leaf).unwrap_or_default().into());
                Some(Wire::secure(stream, Peer::new(address, names)))
            }
            Ok(Err(error)) => {
                refused(&error);
                None
            }
            Err(_) => {
                refused(&format_args!("no TLS handshake in {HANDSHAKE_TIMEOUT:?}"));
                None
            }
        }
    }
}
