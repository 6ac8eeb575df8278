//! Deadlines of the tasks on this core, to a tenth of a second: none comes early, and each at most two
//! ticks late.

use std::{
    cell::RefCell,
    task::Context,
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;

use super::wheel::{NEVER, Wheel};

/// How exact deadlines are.
const TICK: Duration = Duration::from_millis(100);

thread_local! {
    static WHEEL: RefCell<Wheel> = RefCell::new(Wheel::new());
}

/// The one deadline of a task, for whatever it waits for.
#[derive(Debug)]
pub(crate) struct Timer {
    key: usize,
}

impl Timer {
    /// One that never passes.
    pub(crate) fn new() -> Self {
        Self { key: WHEEL.with_borrow_mut(Wheel::add) }
    }

    /// Passes when `after` has gone by.
    pub(crate) fn set(&self, after: Duration) {
        // One more, as the tick that runs has partly gone.
        let ticks = after.as_millis().div_ceil(TICK.as_millis()) as u64 + 1;
        WHEEL.with_borrow_mut(|wheel| wheel.set(self.key, wheel.now() + ticks));
    }

    /// Never passes.
    pub(crate) fn clear(&self) {
        WHEEL.with_borrow_mut(|wheel| wheel.set(self.key, NEVER));
    }

    /// Whether it has passed; if not, the task is woken when it does, and by [`wake_all`].
    pub(crate) fn has_passed(&self, cx: &Context<'_>) -> bool {
        WHEEL.with_borrow_mut(|wheel| wheel.poll(self.key, cx.waker()))
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // The thread may be ending.
        _ = WHEEL.try_with(|wheel| wheel.borrow_mut().remove(self.key));
    }
}

/// Wakes every task of this core that waits with a timer: something changed that they look at.
pub(crate) fn wake_all() {
    WHEEL.with_borrow(|wheel| wheel.wakers().for_each(std::task::Waker::wake_by_ref));
}

/// Ticks since this core began, as far as [`run`] has come.
pub(super) fn now() -> u64 {
    WHEEL.with_borrow(Wheel::now)
}

/// `duration` in ticks.
pub(super) fn ticks(duration: Duration) -> u64 {
    (duration.as_millis() / TICK.as_millis()) as u64
}

/// Lets time pass on this core.
pub(super) async fn run() {
    let begin = Instant::now();
    let mut interval = tokio::time::interval(TICK);
    interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        interval.tick().await;
        let now = (begin.elapsed().as_millis() / TICK.as_millis()) as u64;
        // A waker only puts its task into the queue, so nothing here is entered twice.
        WHEEL.with_borrow_mut(|wheel| wheel.advance(now, std::task::Waker::wake_by_ref));
    }
}
