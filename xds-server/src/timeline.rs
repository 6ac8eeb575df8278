//! Who changed what, when, and when every proxy had it. In memory, bounded.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, PoisonError},
    time::{Instant, SystemTime},
};

use tokio::sync::{broadcast, watch};

use crate::{
    api::types::{Action, Change, Event},
    fleet::Floor,
};

/// How many events are remembered; older ones are forgotten.
pub const REMEMBERED: usize = 4_096;
/// How far a follower may fall behind before it misses events (and is told so).
const FOLLOW_BUFFER: usize = 2_048;
/// How many changes may wait for every proxy at once; the oldest is given up first.
const WAITING: usize = 4_096;

/// The timeline.
#[derive(Debug)]
pub struct Timeline {
    inner: Mutex<Inner>,
    followers: broadcast::Sender<Arc<Event>>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Arc<Event>>,
    /// Changes that some proxy has not applied yet, oldest first.
    waiting: VecDeque<(u64, Instant)>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self { inner: Mutex::default(), followers: broadcast::channel(FOLLOW_BUFFER).0 }
    }
}

impl Timeline {
    /// Records what a write changed.
    pub fn changed(&self, revision: u64, at: Instant, actor: &str, changes: &[Change]) {
        let changed = changes.iter().filter(|c| !matches!(c.action, Action::Unchanged | Action::Renewed));
        let mut any = false;
        for change in changed {
            any = true;
            let action = match change.action {
                Action::Created => "created",
                Action::Deleted => "deleted",
                _ => "updated",
            };
            let detail = match change.detail.as_str() {
                "" => action.to_owned(),
                detail => format!("{action}: {detail}"),
            };
            self.record(event("change", revision, actor, format!("{} {}", change.kind, change.name), detail));
        }
        if any {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.waiting.push_back((revision, at));
            if inner.waiting.len() > WAITING {
                inner.waiting.pop_front();
            }
        }
    }

    /// Records something about a proxy: `connected`, `disconnected` or `nack`.
    pub fn proxy(&self, what: &str, revision: u64, node: &str, detail: String) {
        self.record(event(what, revision, node, String::new(), detail));
    }

    fn record(&self, event: Event) {
        let event = Arc::new(event);
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            inner.events.push_back(Arc::clone(&event));
            if inner.events.len() > REMEMBERED {
                inner.events.pop_front();
            }
        }
        // An error means that nobody follows.
        let _ = self.followers.send(event);
    }

    /// What is remembered, oldest first.
    pub fn events(&self) -> Vec<Arc<Event>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).events.iter().map(Arc::clone).collect()
    }

    /// What is recorded from now on.
    pub fn follow(&self) -> broadcast::Receiver<Arc<Event>> {
        self.followers.subscribe()
    }

    /// Notes when every proxy has applied a change, for as long as it is polled.
    pub async fn watch(self: Arc<Self>, mut floor: watch::Receiver<Floor>) {
        loop {
            let now = *floor.borrow_and_update();
            // Without a proxy nobody has applied anything.
            if now.proxies > 0 {
                for (revision, since) in self.take_applied(now.revision) {
                    let ms = since.elapsed().as_secs_f64() * 1e3;
                    let all = match now.proxies {
                        1 => "the one connected proxy has it".to_owned(),
                        n => format!("all {n} connected proxies have it"),
                    };
                    let applied = event("applied", revision, "", String::new(), all);
                    self.record(Event { ms: Some(ms), proxies: Some(now.proxies), ..applied });
                }
            }
            if floor.changed().await.is_err() {
                return;
            }
        }
    }

    fn take_applied(&self, floor: u64) -> Vec<(u64, Instant)> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let applied = inner.waiting.iter().take_while(|(revision, _)| *revision <= floor).count();
        inner.waiting.drain(..applied).collect()
    }
}

/// An event that happens now.
pub fn event(what: &str, revision: u64, actor: &str, subject: String, detail: String) -> Event {
    Event {
        time: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        event: what.to_owned(),
        revision,
        actor: actor.to_owned(),
        subject,
        detail,
        ms: None,
        proxies: None,
    }
}
