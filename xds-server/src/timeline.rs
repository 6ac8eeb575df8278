//! Who changed what, when, and when every proxy had it. In memory, bounded.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
/// How many changes that become applied at once get an event each.
const APPLIED_AT_ONCE: usize = 32;
/// How long a detail or a subject may be, in bytes; the rest is cut.
const MAX_TEXT: usize = 1_024;

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
    /// How far every proxy has come, once that is watched.
    floor: Option<watch::Receiver<Floor>>,
}

impl Inner {
    /// Whether there is anybody to apply a change.
    fn has_proxies(&self) -> bool {
        self.floor.as_ref().is_some_and(|floor| floor.borrow().proxies > 0)
    }
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
        let mut inner = self.lock();
        // What changes while no proxy is there is just what the next one starts from.
        if any && inner.has_proxies() {
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

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, event: Event) {
        let event = Arc::new(event);
        let mut inner = self.lock();
        inner.events.push_back(Arc::clone(&event));
        if inner.events.len() > REMEMBERED {
            inner.events.pop_front();
        }
        // Under the lock, so that each event is either in a follower's past or in what it receives;
        // a broadcast never waits. An error means that nobody follows.
        let _ = self.followers.send(event);
    }

    /// What is remembered, oldest first.
    pub fn events(&self) -> Vec<Arc<Event>> {
        self.lock().events.iter().map(Arc::clone).collect()
    }

    /// What is remembered, and what is recorded from then on: nothing twice, nothing left out.
    pub fn follow(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let inner = self.lock();
        (inner.events.iter().map(Arc::clone).collect(), self.followers.subscribe())
    }

    /// Notes when every proxy has applied a change, for as long as it is polled.
    pub async fn watch(self: Arc<Self>, mut floor: watch::Receiver<Floor>) {
        self.lock().floor = Some(floor.clone());
        loop {
            let now = *floor.borrow_and_update();
            // Without a proxy nobody has applied anything.
            if now.proxies > 0 {
                self.applied(now);
            }
            if floor.changed().await.is_err() {
                return;
            }
        }
    }

    /// Records what every proxy has applied by now: each change, or the newest for all when there
    /// are many, as after a proxy that was away has come back.
    fn applied(&self, now: Floor) {
        let applied = self.take_applied(now.revision);
        let who = match now.proxies {
            1 => "the one connected proxy has it".to_owned(),
            n => format!("all {n} connected proxies have it"),
        };
        let (told, detail) = match applied.as_slice() {
            [before @ .., _] if applied.len() > APPLIED_AT_ONCE => {
                (&applied[before.len()..], format!("{who}, and the {} changes before it", before.len()))
            }
            all => (all, who),
        };
        for (revision, since) in told {
            let ms = since.elapsed().as_secs_f64() * 1e3;
            let applied = event("applied", *revision, "", String::new(), detail.clone());
            self.record(Event { ms: Some(ms), proxies: Some(now.proxies), ..applied });
        }
    }

    fn take_applied(&self, floor: u64) -> Vec<(u64, Instant)> {
        let mut inner = self.lock();
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
        subject: cut(subject),
        detail: cut(detail),
        ms: None,
        proxies: None,
    }
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_TEXT));
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn change(timeline: &Timeline, revision: u64) {
        let (kind, name, detail) = ("Service".to_owned(), "shop".to_owned(), String::new());
        let change = Change { action: Action::Updated, kind, name, detail };
        timeline.changed(revision, Instant::now(), "test", &[change]);
    }

    fn applied(timeline: &Timeline) -> Vec<(u64, String)> {
        let events = timeline.events();
        let applied = events.iter().filter(|event| event.event == "applied");
        applied.map(|event| (event.revision, event.detail.clone())).collect()
    }

    async fn watched() -> (Arc<Timeline>, watch::Sender<Floor>) {
        let timeline = Arc::new(Timeline::default());
        let (floor, following) = watch::channel(Floor::default());
        tokio::spawn(Arc::clone(&timeline).watch(following));
        settle().await;
        (timeline, floor)
    }

    /// Time is paused: every task that can run has run when the sleep ends.
    async fn settle() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    #[test]
    fn what_somebody_else_writes_is_cut() {
        let event = event("nack", 1, "", "é".repeat(600), format!("x{}", "é".repeat(600)));
        assert_eq!((event.subject.len(), event.detail.len()), (1_024, 1_023));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_without_a_proxy_waits_for_nobody() {
        let (timeline, floor) = watched().await;
        change(&timeline, 1);
        floor.send_replace(Floor { proxies: 1, revision: 0 });
        // Counted at once, before the watcher has come round.
        change(&timeline, 2);
        floor.send_replace(Floor { proxies: 1, revision: 2 });
        settle().await;
        assert_eq!(applied(&timeline), [(2, "the one connected proxy has it".to_owned())]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_changes_that_are_applied_at_once_are_one_event() {
        let (timeline, floor) = watched().await;
        floor.send_replace(Floor { proxies: 2, revision: 0 });
        (1..=32).for_each(|revision| change(&timeline, revision));
        floor.send_replace(Floor { proxies: 2, revision: 32 });
        settle().await;
        assert_eq!(applied(&timeline).len(), 32);
        (33..=65).for_each(|revision| change(&timeline, revision));
        floor.send_replace(Floor { proxies: 2, revision: 65 });
        settle().await;
        let all = applied(&timeline);
        assert_eq!(all.len(), 33);
        let last = "all 2 connected proxies have it, and the 32 changes before it";
        assert_eq!(all[32], (65, last.to_owned()));
    }

    #[test]
    fn a_follower_sees_every_event_once() {
        let timeline = Arc::new(Timeline::default());
        let writing = std::thread::spawn({
            let timeline = Arc::clone(&timeline);
            move || (1..=1_000).for_each(|revision| change(&timeline, revision))
        });
        while timeline.events().is_empty() {
            std::thread::yield_now();
        }
        let (past, mut following) = timeline.follow();
        writing.join().unwrap();
        let mut seen: Vec<u64> = past.iter().map(|event| event.revision).collect();
        while let Ok(event) = following.try_recv() {
            seen.push(event.revision);
        }
        assert_eq!(seen, (1..=1_000).collect::<Vec<_>>());
    }
}
