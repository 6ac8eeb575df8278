//! Secrets: what listeners show to clients. The bytes go on to TLS; here is which of them there are.
//!
//! A secret is shown as soon as it has come. One that its server removes stays in use, as in Envoy: that
//! a certificate is missing is no reason to refuse clients that the last one would serve.

use std::sync::Arc;

use config::xds::{ResourceType, listener::ListenerConfig, secret::decode_secret};

use super::{Cache, ListenerState, Update};

impl Cache {
    /// `None` when no listener names it.
    pub(super) fn put_secret(&mut self, value: &[u8]) -> Result<Option<Arc<str>>, String> {
        let secret = decode_secret(value).map_err(|error| error.to_string())?;
        let name: Arc<str> = secret.name.as_str().into();
        if !self.wants_secret(&name) {
            return Ok(None);
        }
        self.secrets.insert(Arc::clone(&name));
        self.secrets_given.push(secret);
        Ok(Some(name))
    }

    pub(super) fn wants_secret(&self, name: &str) -> bool {
        self.listeners.values().flat_map(ListenerState::secrets).any(|wanted| **wanted == *name)
    }

    /// The secrets of `listener` that have not come.
    pub(super) fn missing_secrets<'l>(
        &self,
        listener: &'l ListenerConfig,
    ) -> impl Iterator<Item = &'l Arc<str>> {
        listener.secrets().iter().filter(|name| !self.secrets.contains(*name))
    }

    /// Forgets the secrets that no listener names any more.
    pub(super) fn drop_unwanted_secrets(&mut self, update: &mut Update) {
        let unwanted: Vec<Arc<str>> =
            self.secrets.iter().filter(|name| !self.wants_secret(name)).cloned().collect();
        for name in unwanted {
            self.secrets.remove(&name);
            self.forget(ResourceType::Secret, &name);
            update.secrets_gone.push(name);
        }
    }
}
