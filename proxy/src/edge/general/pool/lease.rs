//! Connections as the pool holds them, and places on them for streams.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bytes::Bytes;
use h2::client::SendRequest;

use super::settle;
use crate::cluster::Peer;

/// Requests at once on one connection, if the endpoint takes as many.
pub(super) const STREAMS: usize = 100;
/// What `h2` takes for the endpoint's limit until its SETTINGS have come: no number that SETTINGS can
/// say (32 bits), nor what they mean when they say none, so the one can be told from the other.
pub(super) const UNKNOWN: usize = usize::MAX - 1;
/// Requests at once before the endpoint has said how many it takes. The first one need not wait for
/// that (RFC 9113 §3.4), and costs no more than a refusal if it was too many.
const AT_FIRST: usize = 1;

pub(super) struct Connection {
    pub(super) send: SendRequest<Bytes>,
    pub(super) state: Arc<State>,
}

/// What a connection's task and its streams know of it.
#[derive(Debug)]
pub(super) struct State {
    pub(super) peer: Peer,
    streams: AtomicUsize,
    /// Streams at once that the endpoint takes.
    limit: AtomicUsize,
    /// Whether a response came on it.
    used: AtomicBool,
    /// Whether it takes no more.
    closed: AtomicBool,
}

impl State {
    pub(super) fn new(peer: Peer) -> Arc<Self> {
        Arc::new(Self {
            peer,
            streams: AtomicUsize::new(0),
            limit: AtomicUsize::new(UNKNOWN),
            used: AtomicBool::new(false),
            closed: AtomicBool::new(false),
        })
    }

    pub(super) fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
    }

    /// Whether the endpoint has not said yet how many streams it takes.
    pub(super) fn is_unknown(&self) -> bool {
        self.limit.load(Ordering::Relaxed) == UNKNOWN
    }

    /// Notes the endpoint's limit. Whether it is another one than before.
    pub(super) fn learn(&self, limit: usize) -> bool {
        self.limit.swap(limit, Ordering::Relaxed) != limit
    }

    fn most(&self) -> usize {
        match self.limit.load(Ordering::Relaxed) {
            UNKNOWN => AT_FIRST,
            limit => limit.min(STREAMS),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.streams() < self.most() && !self.is_closed()
    }
}

/// A place for one stream on a connection.
pub(in super::super) struct Lease {
    send: SendRequest<Bytes>,
    state: Arc<State>,
    reused: bool,
}

impl Lease {
    pub(super) fn new(connection: &Connection) -> Self {
        let Connection { send, state } = connection;
        state.streams.fetch_add(1, Ordering::Relaxed);
        let reused = state.used.load(Ordering::Relaxed);
        Self { send: send.clone(), state: Arc::clone(state), reused }
    }

    pub(in super::super) fn connection(&mut self) -> &mut SendRequest<Bytes> {
        &mut self.send
    }

    /// It takes no more streams.
    pub(in super::super) fn retire(&self) {
        self.state.close();
    }

    /// A response came.
    pub(in super::super) fn note_answer(&self) {
        self.state.used.store(true, Ordering::Relaxed);
    }

    /// Whether a response had come on the connection before.
    pub(in super::super) fn is_reused(&self) -> bool {
        self.reused
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let before = self.state.streams.fetch_sub(1, Ordering::Relaxed);
        // Where there was room before nobody waits, so this costs most requests nothing.
        if before >= self.state.most() || self.state.is_closed() {
            settle(self.state.peer);
        }
    }
}
