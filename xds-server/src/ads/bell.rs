//! A waker that a task rings itself by without being scheduled once more.
//!
//! What a connection does in its turn often concerns itself: bytes that it reads are for a stream it
//! polls, bytes that a stream sends are for it to write. Such a ring means another turn, at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::AcqRel},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;

/// Nothing has happened since the last turn.
const QUIET: u8 = 0;
/// A turn is being taken.
const TURNING: u8 = 1;
/// Something has happened since the turn began, or since the last one.
const RUNG: u8 = 2;

/// How many turns may follow each other before other tasks have theirs.
const TURNS: usize = 8;

/// Rings for one task.
pub(super) struct Bell {
    state: AtomicU8,
    task: AtomicWaker,
}

impl Bell {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { state: AtomicU8::new(RUNG), task: AtomicWaker::new() })
    }

    /// What rings it.
    pub(super) fn waker(self: &Arc<Self>) -> Waker {
        Waker::from(Arc::clone(self))
    }

    /// Takes turns until one is ready, or nothing has rung since the last began.
    pub(super) fn turns<T>(&self, context: &mut Context<'_>, mut turn: impl FnMut() -> Poll<T>) -> Poll<T> {
        self.task.register(context.waker());
        for _ in 0..TURNS {
            self.state.swap(TURNING, AcqRel);
            if let Poll::Ready(ready) = turn() {
                return Poll::Ready(ready);
            }
            if self
                .state
                .compare_exchange(TURNING, QUIET, AcqRel, std::sync::atomic::Ordering::Acquire)
                .is_ok()
            {
                return Poll::Pending;
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.state.swap(RUNG, AcqRel) == QUIET {
            self.task.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[derive(Default)]
    struct Counting(AtomicUsize);

    impl Wake for Counting {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_ring_in_a_turn_is_another_turn_and_wakes_nobody() {
        let (task, bell) = (Arc::new(Counting::default()), Bell::new());
        let (outer, waker) = (Waker::from(Arc::clone(&task)), bell.waker());
        let mut turns = 0;
        let polled = bell.turns(&mut Context::from_waker(&outer), || {
            turns += 1;
            if turns < 3 {
                waker.wake_by_ref();
            }
            Poll::<()>::Pending
        });
        assert_eq!((polled, turns, task.0.load(Ordering::Relaxed)), (Poll::Pending, 3, 0));
        // From outside, and twice: it is woken once.
        waker.wake_by_ref();
        waker.wake_by_ref();
        assert_eq!(task.0.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn one_that_never_stops_ringing_lets_others_go_first() {
        let (task, bell) = (Arc::new(Counting::default()), Bell::new());
        let (outer, waker) = (Waker::from(Arc::clone(&task)), bell.waker());
        let mut turns = 0;
        let polled = bell.turns(&mut Context::from_waker(&outer), || {
            turns += 1;
            waker.wake_by_ref();
            Poll::<()>::Pending
        });
        assert_eq!((polled, turns, task.0.load(Ordering::Relaxed)), (Poll::Pending, TURNS, 1));
    }
}
