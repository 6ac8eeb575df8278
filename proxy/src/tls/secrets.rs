//! The secrets that servers gave: what listeners are prepared with. In memory only.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use config::xds::secret::SecretConfig;

use super::{
    read::{Loaded, TlsError},
    registry::Tls,
};

/// Secrets by name; as many as listeners name.
#[derive(Debug, Default)]
pub(super) struct Secrets(Mutex<HashMap<Arc<str>, Arc<Loaded>>>);

impl Secrets {
    /// The newest form of a secret.
    ///
    /// # Errors
    /// When it has not come yet.
    pub(super) fn find(&self, name: &Arc<str>) -> Result<Arc<Loaded>, TlsError> {
        self.lock().get(name).cloned().ok_or_else(|| TlsError::NoSecret(Arc::clone(name)))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Loaded>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tls {
    /// Takes a secret: the listeners that name it show it from now on, and those to come can.
    pub(crate) fn put_secret(&self, secret: &SecretConfig) {
        let loaded = Loaded::given(secret);
        let known = self.0.secrets.lock().insert(secret.name.as_str().into(), Arc::clone(&loaded));
        for server in self.0.servers() {
            server.swap(&loaded);
        }
        if known.is_some() {
            self.0.swaps.fetch_add(1, Ordering::Relaxed);
            tracing::info!("secret `{}` changed; new connections use it", secret.name);
        }
    }

    /// Forgets a secret that no listener names any more.
    pub(crate) fn drop_secret(&self, name: &str) {
        self.0.secrets.lock().remove(name);
    }
}
