//! What all connections of one worker follow: the newest state, and that the server stops.
//!
//! Each connection has one seat, and with it one waker that stays the same: a change wakes everybody
//! without anybody having to ask again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Waker,
};

use arc_swap::ArcSwap;
use slab::Slab;
use tokio::sync::watch;

use crate::registry::State;

/// The newest state, for those who sit here.
pub(super) struct Feed {
    state: ArcSwap<State>,
    /// How often it has changed.
    turn: AtomicU64,
    stopping: AtomicBool,
    seats: Mutex<Slab<Waker>>,
}

/// Is woken by every change, until it is dropped.
pub(super) struct Seat {
    feed: Arc<Feed>,
    key: usize,
}

impl Feed {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self {
            state: ArcSwap::new(state),
            turn: AtomicU64::new(1),
            stopping: AtomicBool::new(false),
            seats: Mutex::default(),
        }
    }

    /// Passes on what `states` has, until that ends.
    ///
    /// Everybody who was woken has looked before the next state is taken, as tasks of one thread run in
    /// turn: under load changes are merged by as much as there is load, and nobody falls behind others.
    pub(super) async fn follow(&self, mut states: watch::Receiver<Arc<State>>) {
        while states.changed().await.is_ok() {
            self.state.store(Arc::clone(&states.borrow_and_update()));
            self.turn.fetch_add(1, Ordering::Release);
            self.wake();
            tokio::task::yield_now().await;
        }
    }

    /// Tells everybody that the server stops.
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Slab<Waker>> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.lock().iter().for_each(|(_, waker)| waker.wake_by_ref());
    }

    /// The newest state.
    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The newest state, unless it is that of `turn`, which becomes its own.
    pub(super) fn newer(&self, turn: &mut u64) -> Option<Arc<State>> {
        let newest = self.turn.load(Ordering::Acquire);
        (std::mem::replace(turn, newest) != newest).then(|| self.state())
    }

    /// Whether the server stops.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    pub(super) fn sit(self: &Arc<Self>, waker: Waker) -> Seat {
        let key = self.lock().insert(waker);
        Seat { feed: Arc::clone(self), key }
    }
}

impl Seat {
    /// What it is of.
    pub(super) fn feed(&self) -> &Arc<Feed> {
        &self.feed
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.feed.lock().try_remove(self.key);
    }
}
