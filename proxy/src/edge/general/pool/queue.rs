//! Who waits for a place on a connection to an endpoint: first come, first served. Whoever is in front
//! gets the place of the next stream that ends, what a connection turns out to take more, or the turn to
//! make a further connection, whichever comes first.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use tokio::sync::oneshot;

use super::{
    lease::{Connection, Lease},
    settle, with,
};
use crate::{
    cluster::Peer,
    load::{EndpointLoad, now_micros},
};

/// Connections to one endpoint, a core. Each one beyond the first was made because all others were full:
/// so many are 12,800 streams where an endpoint takes 100, and still 128 where it takes but one. Who
/// comes then waits until a stream ends, as long as a connection may take.
const MOST: usize = 128;
/// After an endpoint with connections has refused a further one, so long none is tried again. Streams
/// that end make room meanwhile.
pub(super) const PAUSE: Duration = Duration::from_secs(1);

/// The connections to an endpoint and who waits for them. While anybody waits there is no room: each
/// event that makes some is followed by [`settle`].
pub(super) struct Bucket {
    peer: Peer,
    pub(super) endpoint: Arc<EndpointLoad>,
    pub(super) connections: Vec<Connection>,
    /// Whether somebody makes a further connection. One at a time: it may have room for all who wait.
    connecting: bool,
    /// When a further connection may be tried, in µs of [`now_micros`].
    not_before: u64,
    waiting: VecDeque<Waiter>,
    /// Of whoever came last.
    ticket: u64,
}

struct Waiter {
    ticket: u64,
    given: oneshot::Sender<Grant>,
}

/// What somebody waited for.
pub(super) enum Grant {
    Place(Lease),
    Turn(Turn),
}

impl Bucket {
    pub(super) fn new(peer: Peer, endpoint: Arc<EndpointLoad>) -> Self {
        Self {
            peer,
            endpoint,
            connections: Vec::new(),
            connecting: false,
            not_before: 0,
            waiting: VecDeque::new(),
            ticket: 0,
        }
    }

    /// A place on a connection that there is.
    pub(super) fn take(&mut self) -> Option<Lease> {
        self.connections.retain(|connection| !connection.state.is_closed());
        self.connections.iter().find(|connection| connection.state.has_room()).map(Lease::new)
    }

    /// Whether a further connection is to be made. Not while one may turn out to have room.
    fn wants_another(&self, now: u64) -> bool {
        !self.connecting
            && self.connections.len() < MOST
            && (self.connections.is_empty() || now >= self.not_before)
            && !self.connections.iter().any(|connection| connection.state.is_unknown())
    }

    /// What whoever is in front can have now. It is handed over when the pool is not borrowed.
    pub(super) fn next(&mut self, now: u64) -> Option<(oneshot::Sender<Grant>, Grant)> {
        if self.waiting.is_empty() {
            return None;
        }
        let grant = match self.take() {
            Some(lease) => Grant::Place(lease),
            None if self.wants_another(now) => {
                self.connecting = true;
                Grant::Turn(Turn { peer: self.peer })
            }
            None => return None,
        };
        self.waiting.pop_front().map(|waiter| (waiter.given, grant))
    }

    /// Goes to the end of the queue.
    pub(super) fn join(&mut self) -> Waiting {
        self.ticket += 1;
        let (given, granted) = oneshot::channel();
        self.waiting.push_back(Waiter { ticket: self.ticket, given });
        Waiting { peer: self.peer, ticket: self.ticket, granted }
    }

    /// Whether nobody has anything to do with it.
    pub(super) fn is_empty(&self) -> bool {
        self.connections.is_empty() && !self.is_wanted()
    }

    /// Whether somebody waits for a connection or makes one.
    pub(super) fn is_wanted(&self) -> bool {
        self.connecting || !self.waiting.is_empty()
    }
}

/// A place in the queue; given up when it is dropped.
pub(super) struct Waiting {
    peer: Peer,
    ticket: u64,
    granted: oneshot::Receiver<Grant>,
}

impl Waiting {
    /// What it was waited for; `None` when the pool has ended.
    pub(super) async fn granted(mut self) -> Option<Grant> {
        (&mut self.granted).await.ok()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        with(self.peer, |bucket| {
            // In the order they came, without those that have gone.
            if let Ok(place) = bucket.waiting.binary_search_by_key(&self.ticket, |waiter| waiter.ticket) {
                bucket.waiting.remove(place);
            }
        });
        settle(self.peer);
    }
}

/// The turn to make a further connection; over when it is dropped.
pub(super) struct Turn {
    peer: Peer,
}

impl Turn {
    /// There is one.
    pub(super) fn made(self, connection: Connection) {
        with(self.peer, |bucket| bucket.connections.push(connection));
    }

    /// There will be none. Whether there are others to wait for.
    pub(super) fn failed(self) -> bool {
        let others = with(self.peer, |bucket| {
            bucket.connections.retain(|connection| !connection.state.is_closed());
            bucket.not_before =
                if bucket.connections.is_empty() { 0 } else { now_micros() + PAUSE.as_micros() as u64 };
            !bucket.connections.is_empty()
        });
        others.unwrap_or(false)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        with(self.peer, |bucket| bucket.connecting = false);
        settle(self.peer);
    }
}
