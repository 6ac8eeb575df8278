//! What keeps endpoints alive: terms that are renewed, and connections that stay open.
//!
//! A renewal touches neither the store nor the snapshot: it moves a deadline in a table. The queue of
//! deadlines is lazy: an entry that comes up looks at the table and goes back if it was renewed.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use config::{ClusterName, EndpointId, Lease};
use dashmap::{DashMap, Entry};
use tokio::{
    sync::{Notify, oneshot},
    time::Instant,
};

/// Identifies a registered endpoint.
pub type Key = (ClusterName, EndpointId);

/// Identifies one open registration; a later one of the same endpoint has another.
pub type HoldToken = u64;

/// How soon an expired endpoint is looked at again, should its removal not have come about.
const RETRY: Duration = Duration::from_millis(200);

/// The terms of every leased endpoint.
#[derive(Debug, Default)]
pub struct Leases {
    terms: DashMap<Key, Term>,
    queue: Mutex<BinaryHeap<Reverse<(Instant, Key)>>>,
    earlier: Notify,
    tokens: AtomicU64,
}

#[derive(Debug)]
enum Term {
    /// Ends at `deadline` unless renewed; the queue looks at it at `queued`, which is not later.
    Until { deadline: Instant, ttl: Duration, queued: Instant },
    /// Ends with a connection, which is told when something else ends it.
    Held(HoldToken, oneshot::Sender<Displaced>),
}

/// Why a connection no longer keeps its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Displaced {
    /// The endpoint was registered anew by somebody else.
    Replaced,
    /// The endpoint was deleted.
    Deleted,
}

/// A connection that is to keep an endpoint.
#[derive(Debug)]
pub struct Holder {
    token: HoldToken,
    displaced: oneshot::Sender<Displaced>,
}

impl Holder {
    /// Tells the connection that its endpoint is no longer its own, before it ever was.
    pub(crate) fn displace(self, why: Displaced) {
        // An error means that the connection has gone already.
        let _ = self.displaced.send(why);
    }
}

/// Why an endpoint should be removed, to be checked again at the moment of removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its term passed without a renewal.
    Expired,
    /// The connection with this token closed.
    Closed(HoldToken),
}

impl Leases {
    /// A registration by connection that is about to start: what to start it with, and what its
    /// connection keeps.
    pub fn holder(&self) -> (Holder, HoldToken, oneshot::Receiver<Displaced>) {
        let token = self.tokens.fetch_add(1, Ordering::Relaxed) + 1;
        let (displaced, told) = oneshot::channel();
        (Holder { token, displaced }, token, told)
    }

    /// Starts the term of an endpoint that was just registered, or ends the one it had.
    /// `hold` is the connection that keeps it; without one, [`Lease::Connection`] means that the
    /// connection has to come back within `grace`.
    pub fn start(&self, key: &Key, lease: Lease, hold: Option<Holder>, grace: Duration) {
        let before = match (hold, lease.term(grace)) {
            (Some(Holder { token, displaced }), _) => {
                self.terms.insert(key.clone(), Term::Held(token, displaced))
            }
            (None, Some(ttl)) => self.start_term(key, ttl),
            (None, None) => self.terms.remove(key).map(|(_, term)| term),
        };
        tell(before, Displaced::Replaced);
    }

    /// Starts a term, and gives back the one it replaces.
    fn start_term(&self, key: &Key, ttl: Duration) -> Option<Term> {
        let deadline = Instant::now() + ttl;
        let (queued, before) = match self.terms.entry(key.clone()) {
            Entry::Occupied(mut occupied) => {
                let queued = match occupied.get() {
                    // It is in the queue already, and no later than needed.
                    Term::Until { queued, .. } if *queued <= deadline => *queued,
                    _ => deadline,
                };
                let in_queue = matches!(occupied.get(), Term::Until { queued: q, .. } if *q == queued);
                let before = occupied.insert(Term::Until { deadline, ttl, queued });
                if in_queue {
                    return Some(before);
                }
                (queued, Some(before))
            }
            Entry::Vacant(vacant) => {
                vacant.insert(Term::Until { deadline, ttl, queued: deadline });
                (deadline, None)
            }
        };
        self.push(queued, key.clone());
        before
    }

    fn push(&self, at: Instant, key: Key) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let first = queue.peek().is_none_or(|Reverse((first, _))| at < *first);
        self.compact(&mut queue);
        queue.push(Reverse((at, key)));
        if first {
            self.earlier.notify_one();
        }
    }

    /// Gives a leased endpoint its full term again; `false` when it has no term to renew.
    pub fn renew(&self, key: &Key) -> bool {
        match self.terms.get_mut(key).as_deref_mut() {
            Some(Term::Until { deadline, ttl, .. }) => {
                *deadline = Instant::now() + *ttl;
                true
            }
            _ => false,
        }
    }

    /// Ends the term of an endpoint that is removed for another reason.
    pub fn end(&self, key: &Key) {
        tell(self.terms.remove(key).map(|(_, term)| term), Displaced::Deleted);
    }

    /// Ends the term of an endpoint that somebody registered anew at another server.
    pub fn replaced(&self, key: &Key) {
        tell(self.terms.remove(key).map(|(_, term)| term), Displaced::Replaced);
    }

    /// Whether this server knows that the endpoint lives: its connection is open, or it was renewed
    /// here and its term has not passed.
    pub fn is_alive(&self, key: &Key) -> bool {
        match self.terms.get(key).as_deref() {
            Some(Term::Until { deadline, .. }) => *deadline > Instant::now(),
            Some(Term::Held(..)) => true,
            None => false,
        }
    }

    /// Ends the term if `ended` still holds: it was neither renewed nor taken over since. From then
    /// on a renewal fails, so that nobody is told that a removed endpoint lives.
    pub fn end_if(&self, key: &Key, ended: Ended) -> bool {
        let now = Instant::now();
        let holds = |term: &Term| match (ended, term) {
            (Ended::Expired, Term::Until { deadline, .. }) => *deadline <= now,
            (Ended::Closed(token), Term::Held(current, _)) => token == *current,
            _ => false,
        };
        self.terms.remove_if(key, |_, term| holds(term)).is_some()
    }

    /// Waits until the term of some endpoint has passed, and names it.
    pub async fn expired(&self) -> Key {
        loop {
            let next = {
                let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
                queue.peek().map(|Reverse((at, _))| *at)
            };
            let Some(next) = next else {
                self.earlier.notified().await;
                continue;
            };
            if next > Instant::now() {
                tokio::select! {
                    () = tokio::time::sleep_until(next) => {}
                    () = self.earlier.notified() => {}
                }
                continue;
            }
            let popped = self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(Reverse((at, key))) = popped
                && let Some(key) = self.look_at(at, key)
            {
                return key;
            }
        }
    }

    /// What the queue does with an entry that came up: the key, if its term has passed.
    ///
    /// Either way it goes back, to be looked at again: at its new deadline, or soon, in case the
    /// removal does not come about. Only the end of the term takes it out.
    fn look_at(&self, at: Instant, key: Key) -> Option<Key> {
        let now = Instant::now();
        let (again, expired) = match self.terms.get_mut(&key).as_deref_mut() {
            Some(Term::Until { deadline, queued, .. }) if *queued == at => {
                let expired = *deadline <= now;
                *queued = if expired { now + RETRY } else { *deadline };
                (*queued, expired)
            }
            // Removed, taken over by a connection, or in the queue a second time.
            _ => return None,
        };
        self.push(again, key.clone());
        expired.then_some(key)
    }

    /// Drops entries that nothing stands behind any more, when they are most of the queue.
    fn compact(&self, queue: &mut BinaryHeap<Reverse<(Instant, Key)>>) {
        if queue.len() > 1_024 && queue.len() > 2 * self.terms.len() {
            queue.retain(|Reverse((at, key))| {
                matches!(self.terms.get(key).as_deref(), Some(Term::Until { queued, .. }) if queued == at)
            });
        }
    }
}

/// Tells a connection that it keeps nothing any more.
fn tell(before: Option<Term>, why: Displaced) {
    if let Some(Term::Held(_, displaced)) = before {
        // An error means that the connection has gone already.
        let _ = displaced.send(why);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        ("checkout/v1".parse().unwrap(), id.parse().unwrap())
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_term_ends_when_nobody_renews_it() {
        let leases = Leases::default();
        let began = Instant::now();
        leases.start(&key("late"), Lease::Ttl(2_000), None, SECOND);
        leases.start(&key("soon"), Lease::Ttl(1_000), None, SECOND);
        assert_eq!(leases.expired().await, key("soon"));
        assert!(leases.end_if(&key("soon"), Ended::Expired));
        assert_eq!(leases.expired().await, key("late"));
        assert!(began.elapsed() < Duration::from_millis(2_100));
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewed_term_starts_over() {
        let leases = Leases::default();
        let began = Instant::now();
        leases.start(&key("a"), Lease::Ttl(1_000), None, SECOND);
        for _ in 0..5 {
            tokio::time::advance(Duration::from_millis(900)).await;
            assert!(leases.renew(&key("a")));
        }
        leases.expired().await;
        assert!(began.elapsed() >= Duration::from_millis(5_500));
    }

    #[tokio::test(start_paused = true)]
    async fn an_expired_endpoint_that_was_renewed_meanwhile_stays() {
        let leases = Leases::default();
        leases.start(&key("a"), Lease::Ttl(1_000), None, SECOND);
        let expired = leases.expired().await;
        assert!(leases.renew(&expired));
        assert!(!leases.end_if(&expired, Ended::Expired));
        // And ends when it is not renewed again.
        let renewed = Instant::now();
        loop {
            let expired = leases.expired().await;
            if leases.end_if(&expired, Ended::Expired) {
                break;
            }
        }
        assert!(renewed.elapsed() >= SECOND);
        assert!(renewed.elapsed() < Duration::from_millis(1_500));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_was_taken_over_does_not_remove_its_successor() {
        let leases = Leases::default();
        let (first, first_token, told) = leases.holder();
        let (second, second_token, mut still_held) = leases.holder();
        leases.start(&key("a"), Lease::Connection, Some(first), SECOND);
        leases.start(&key("a"), Lease::Connection, Some(second), SECOND);
        assert_eq!(told.await, Ok(Displaced::Replaced));
        assert!(!leases.end_if(&key("a"), Ended::Closed(first_token)));
        assert!(still_held.try_recv().is_err());
        assert!(leases.end_if(&key("a"), Ended::Closed(second_token)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_told_when_its_endpoint_is_deleted() {
        let leases = Leases::default();
        let (holder, _, told) = leases.holder();
        leases.start(&key("a"), Lease::Connection, Some(holder), SECOND);
        leases.end(&key("a"));
        assert_eq!(told.await, Ok(Displaced::Deleted));
    }

    #[tokio::test(start_paused = true)]
    async fn endpoints_that_came_and_went_leave_nothing_behind() {
        let leases = Leases::default();
        for i in 0..10_000 {
            leases.start(&key(&i.to_string()), Lease::Ttl(86_400_000), None, SECOND);
            leases.end(&key(&i.to_string()));
        }
        assert!(leases.queue.lock().unwrap().len() <= 1_025);
    }

    #[tokio::test(start_paused = true)]
    async fn a_shorter_term_is_not_kept_waiting_by_a_longer_one() {
        let leases = Leases::default();
        let began = Instant::now();
        leases.start(&key("a"), Lease::Ttl(60_000), None, SECOND);
        leases.start(&key("a"), Lease::Ttl(1_000), None, SECOND);
        leases.expired().await;
        assert!(began.elapsed() < Duration::from_secs(2));
    }
}
