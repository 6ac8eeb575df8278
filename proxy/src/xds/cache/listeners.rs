//! Listeners: what is to be bound, and what became of it.

use std::{sync::Arc, time::Instant};

use config::xds::{ResourceType, listener::ListenerConfig};

use super::{Cache, Update};

#[derive(Debug, Default)]
pub(super) struct ListenerState {
    pub(super) live: Option<ListenerConfig>,
    pub(super) staged: Option<(ListenerConfig, Instant)>,
    /// Outcome of the last attempt to listen as `live` says.
    pub(super) bound: Option<Result<(), String>>,
    /// Routes of what was bound last, which goes on when its successor cannot be bound.
    serves: Option<String>,
    /// Secrets of what was bound last, likewise.
    shows: Vec<Arc<str>>,
}

impl ListenerState {
    /// Whether what the server wants could not be bound.
    pub(super) fn is_refused(&self) -> bool {
        self.staged.is_none() && matches!(self.bound, Some(Err(_)))
    }

    /// The routes that it uses or is going to use.
    pub(super) fn route_configs(&self) -> impl Iterator<Item = &str> {
        let staged = self.staged.as_ref().map(|(config, _)| config);
        let configs = staged.into_iter().chain(&self.live).map(|config| config.route_config.as_str());
        configs.chain(self.serves.as_deref())
    }

    /// The secrets that it shows or is going to show.
    pub(super) fn secrets(&self) -> impl Iterator<Item = &Arc<str>> {
        let staged = self.staged.as_ref().map(|(config, _)| config);
        staged.into_iter().chain(&self.live).flat_map(ListenerConfig::secrets).chain(&self.shows)
    }
}

impl Cache {
    pub(super) fn put_listener(&mut self, config: ListenerConfig, now: Instant) -> Arc<str> {
        let name: Arc<str> = config.name.as_str().into();
        let state = self.listeners.entry(Arc::clone(&name)).or_default();
        let since = state.staged.as_ref().map_or(now, |(_, since)| *since);
        state.staged = (state.live.as_ref() != Some(&config)).then_some((config, since));
        // What became of an earlier attempt says nothing about this one.
        state.bound = None;
        self.listeners_touched = true;
        name
    }

    /// How it went with the listeners of an update: each one's name, and why it could not be bound.
    /// Says what to publish, what to send (listeners are acknowledged when they are bound), and whether there is
    /// something to save.
    pub(crate) fn on_listeners<'a>(
        &mut self,
        outcomes: impl IntoIterator<Item = (&'a str, Result<(), String>)>,
        now: Instant,
    ) -> Update {
        let mut update = Update::default();
        let mut moved = false;
        for (name, outcome) in outcomes {
            let Some(listener) = self.listeners.get_mut(name) else { continue };
            // With another one staged, what is held is not what was bound; that one's turn comes.
            let current = outcome.is_ok() && listener.staged.is_none();
            if outcome.is_ok() {
                let serves = listener.live.as_ref().map(|live| live.route_config.clone());
                let shows = listener.live.as_ref().map(|live| live.secrets().to_vec()).unwrap_or_default();
                moved |= (&listener.serves, &listener.shows) != (&serves, &shows);
                (listener.serves, listener.shows) = (serves, shows);
            }
            listener.bound = Some(outcome);
            if current {
                update.changed |= self.keep_listener(name);
            }
        }
        if moved {
            // Only now does nothing use the routes and secrets from before.
            self.drop_unwanted_secrets(&mut update);
            self.drop_unwanted_routes(now, &mut update);
            self.drop_retired_clusters(&mut update);
            self.resubscribe(&mut update);
        }
        self.release(now, &mut update);
        update
    }

    /// What is held of a listener serves. Whether that is news.
    pub(super) fn keep_listener(&mut self, name: &str) -> bool {
        let i = ResourceType::Listener.index();
        let Some((name, held)) = self.held[i].get_key_value(name) else { return false };
        let news = self.last_good[i].get(name) != Some(held);
        if news {
            self.last_good[i].insert(Arc::clone(name), held.clone());
        }
        news
    }
}
