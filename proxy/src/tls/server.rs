//! What a listener terminates TLS with.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use config::xds::listener::{ListenerCertificates, ListenerTls};
use rustls::{ServerConfig, crypto::ring::Ticketer, server::ServerSessionMemoryCache};

use super::{
    choose::{Choice, Resolver},
    read::{Loaded, TlsError},
    registry::Registry,
    secrets::Secrets,
    suites,
};

/// Sessions of clients with TLS 1.2 and without tickets (RFC 5077) that are remembered; all others
/// carry their sessions themselves.
const REMEMBERED_SESSIONS: usize = 256;
/// Tickets a full or resumed handshake of TLS 1.3 gives (RFC 8446 §4.6.1). Each resumption gives the
/// next, so one keeps any number of connections going; more cost CPU on every handshake.
const TICKETS: usize = 1;
/// The longest name of a protocol (RFC 7301 §3.1).
const MAX_PROTOCOL: usize = 255;

/// What a listener's TLS is made of, read and found whole.
#[derive(Debug)]
pub(crate) struct Prepared {
    choice: Choice,
    alpn: Vec<Vec<u8>>,
}

impl Prepared {
    /// Reads the files of `tls`, or finds its secrets. Blocking.
    pub(super) fn read(tls: &ListenerTls, secrets: &Secrets) -> Result<Self, TlsError> {
        let speaks = |name: &String| match name.len() {
            1..=MAX_PROTOCOL => Ok(name.clone().into_bytes()),
            _ => Err(TlsError::Alpn(name.clone())),
        };
        let alpn = tls.alpn.iter().map(speaks).collect::<Result<_, _>>()?;
        let loaded: Vec<Arc<Loaded>> = match &tls.certificates {
            ListenerCertificates::Files(files) => files.iter().map(Loaded::read).collect::<Result<_, _>>()?,
            ListenerCertificates::Secrets(names) => {
                names.iter().map(|name| secrets.find(name)).collect::<Result<_, _>>()?
            }
        };
        let choice = Choice::new(loaded).ok_or(TlsError::NoCertificate)?;
        Ok(Self { choice, alpn })
    }
}

/// TLS 1.2 and 1.3 for one listener. Shared by its accept loops; its certificates follow their files.
///
/// Tickets are its own: a session begun at one listener cannot be resumed at another, which may ask
/// more of a client.
#[derive(Debug)]
pub(crate) struct ServerTls {
    config: ArcSwap<ServerConfig>,
    resolver: Arc<Resolver>,
    /// Held to store, never to load.
    writing: Mutex<()>,
    registry: Arc<Registry>,
}

impl ServerTls {
    pub(super) fn new(prepared: Prepared, registry: Arc<Registry>) -> Result<Self, TlsError> {
        let setup = |error: rustls::Error| TlsError::Setup(error.to_string());
        let resolver = Arc::new(Resolver(ArcSwap::from_pointee(prepared.choice)));
        let mut config = ServerConfig::builder_with_provider(suites::provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .map_err(setup)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&resolver) as _);
        config.alpn_protocols = prepared.alpn;
        config.ticketer = Ticketer::new().map_err(setup)?;
        config.session_storage = ServerSessionMemoryCache::new(REMEMBERED_SESSIONS);
        config.send_tls13_tickets = TICKETS;
        // 0-RTT can be replayed (RFC 8446 §8).
        config.max_early_data_size = 0;
        Ok(Self { config: ArcSwap::from_pointee(config), resolver, writing: Mutex::new(()), registry })
    }

    /// What connections of this moment begin with.
    pub(crate) fn config(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }

    /// Other certificates or protocols, for connections from now on. Sessions go on.
    pub(crate) fn publish(&self, prepared: Prepared) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.resolver.0.store(Arc::new(prepared.choice));
        let config = self.config.load();
        if config.alpn_protocols != prepared.alpn {
            let mut config = ServerConfig::clone(&config);
            config.alpn_protocols = prepared.alpn;
            self.config.store(Arc::new(config));
        }
        drop(writing);
        self.registry.look();
    }

    /// Shows `newer` from now on, if what it came from is still this listener's.
    pub(super) fn swap(&self, newer: &Arc<Loaded>) {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(choice) = self.choice().with(newer) {
            self.resolver.0.store(Arc::new(choice));
        }
    }

    pub(super) fn choice(&self) -> Arc<Choice> {
        self.resolver.0.load_full()
    }
}

impl Drop for ServerTls {
    fn drop(&mut self) {
        self.registry.look(); // its files need no watch any more
    }
}
