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

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn the_task_is_woken_only_when_it_has_not_its_turn() {
        let count = Arc::<Count>::default();
        let task = Waker::from(Arc::clone(&count));
        let wakes = || count.0.load(Ordering::Relaxed);
        let signal = Signal::new();
        let waker = Waker::from(Arc::clone(&signal));
        signal.begin(&task);
        assert!(signal.take(), "at first there is work");
        waker.wake_by_ref();
        assert!(signal.take() && !signal.take());
        signal.end();
        assert_eq!(wakes(), 0, "it saw to it itself");
        waker.wake_by_ref();
        assert_eq!(wakes(), 1);
        signal.begin(&task);
        signal.end();
        assert_eq!(wakes(), 2, "what was not seen to is not forgotten");
    }
}
