//! Whether `h2` asked for its connection to be polled. What asks while the connection's own task runs
//! need not wake that task: it looks before it ends its turn.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// The waker that `h2` gets.
#[derive(Debug, Default)]
pub(super) struct Signal {
    raised: AtomicBool,
    /// Whether the task has its turn.
    turn: AtomicBool,
    task: AtomicWaker,
}

impl Signal {
    /// Raised from the beginning.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { raised: AtomicBool::new(true), ..Self::default() })
    }

    /// The turn of the task that `waker` wakes begins.
    pub(super) fn begin(&self, waker: &Waker) {
        self.task.register(waker);
        self.turn.store(true, Ordering::SeqCst);
    }

    /// Asks for the connection to be polled, from within its turn.
    pub(super) fn raise(&self) {
        self.raised.store(true, Ordering::SeqCst);
    }

    /// Whether it was raised; it is lowered.
    pub(super) fn take(&self) -> bool {
        self.raised.swap(false, Ordering::SeqCst)
    }

    pub(super) fn is_raised(&self) -> bool {
        self.raised.load(Ordering::SeqCst)
    }

    /// The turn ends; there will be another one if it is raised.
    pub(super) fn end(&self) {
        self.turn.store(false, Ordering::SeqCst);
        if self.is_raised() {
            self.task.wake();
        }
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.raised.store(true, Ordering::SeqCst);
        if !self.turn.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}
