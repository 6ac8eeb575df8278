//! Which certificate a client is shown. Pure.
//!
//! The name it asks for (RFC 6066 §3) exactly; else the wildcard that stands for its first label, and
//! for that one only (RFC 9525 §6.3); else, and without a name, the first certificate of the listener.
//! Where several are for one name, as RSA beside ECDSA, the first that the client can verify.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;
use rustls::{
    SignatureScheme,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};

use super::read::Loaded;

/// The certificates of a listener. Never empty.
#[derive(Debug)]
pub(super) struct Choice {
    /// In the listener's order.
    loaded: Vec<Arc<Loaded>>,
    exact: Names,
    /// Without the `*.`.
    wildcard: Names,
}

/// Name → places in `loaded`, in order; at least one each.
type Names = HashMap<Box<str>, Vec<u32>, RandomState>;

impl Choice {
    /// `None` of nothing.
    pub(super) fn new(loaded: Vec<Arc<Loaded>>) -> Option<Self> {
        let (mut exact, mut wildcard) = (Names::default(), Names::default());
        for (i, certificate) in (0..).zip(&loaded) {
            for name in &certificate.certificate.names {
                let (names, name) = match name.strip_prefix("*.") {
                    Some(rest) => (&mut wildcard, rest),
                    None => (&mut exact, name.as_str()),
                };
                names.entry(name.into()).or_default().push(i);
            }
        }
        if loaded.is_empty() { None } else { Some(Self { loaded, exact, wildcard }) }
    }

    /// The same with `newer` in the place of what came from where it does; `None` when nothing did.
    pub(super) fn with(&self, newer: &Arc<Loaded>) -> Option<Self> {
        if self.loaded.iter().all(|loaded| loaded.origin != newer.origin) {
            return None;
        }
        let replaced =
            |loaded: &Arc<Loaded>| Arc::clone(if loaded.origin == newer.origin { newer } else { loaded });
        Self::new(self.loaded.iter().map(replaced).collect())
    }

    pub(super) fn loaded(&self) -> &[Arc<Loaded>] {
        &self.loaded
    }

    /// The certificate for a client that asks for `name`, in lower case, and verifies `schemes`.
    fn pick(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> &Arc<Loaded> {
        let wanted: &[u32] = name.and_then(|name| self.named(name)).unwrap_or(&[0]);
        let usable = |i: &&u32| self.at(**i).certificate.key.key.choose_scheme(schemes).is_some();
        match wanted {
            // Asking allocates: only where there is something to choose.
            [only] => self.at(*only),
            several => self.at(several.iter().find(usable).or(several.first()).copied().unwrap_or(0)),
        }
    }

    fn at(&self, i: u32) -> &Arc<Loaded> {
        &self.loaded[i as usize] // the indices come from it, and it is never empty
    }

    fn named(&self, name: &str) -> Option<&[u32]> {
        let wildcard = || self.wildcard.get(name.split_once('.')?.1);
        self.exact.get(name).or_else(wildcard).map(Vec::as_slice)
    }
}

/// What rustls asks on each full handshake: the choice of the moment.
#[derive(Debug)]
pub(super) struct Resolver(pub(super) ArcSwap<Choice>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        // rustls has put the name in lower case.
        let choice = self.0.load();
        let loaded = choice.pick(hello.server_name(), hello.signature_schemes());
        Some(Arc::clone(&loaded.certificate.key))
    }
}
