//! A timer wheel (Varghese and Lauck, "Hashed and Hierarchical Timing Wheels", 1987) for deadlines
//! that nearly always move before they pass: moving one later is a store, and it is looked at again
//! when its old time has come.

use std::task::Waker;

/// Ticks that the wheel reaches ahead. What is due later is looked at when it has come round.
const SLOTS: u64 = 1_024;

/// Never.
pub(super) const NEVER: u64 = u64::MAX;

/// Deadlines in ticks, each with the task that waits for it.
#[derive(Debug)]
pub(super) struct Wheel {
    now: u64,
    slots: Vec<Vec<usize>>,
    entries: slab::Slab<Entry>,
}

#[derive(Debug)]
struct Entry {
    deadline: u64,
    /// When the wheel looks at it: at the deadline or before; `NEVER` when in no slot.
    scheduled: u64,
    waker: Option<Waker>,
}

impl Wheel {
    pub(super) fn new() -> Self {
        Self { now: 0, slots: vec![Vec::new(); SLOTS as usize], entries: slab::Slab::new() }
    }

    pub(super) fn now(&self) -> u64 {
        self.now
    }

    /// A deadline that never comes.
    pub(super) fn add(&mut self) -> usize {
        self.entries.insert(Entry { deadline: NEVER, scheduled: NEVER, waker: None })
    }

    pub(super) fn remove(&mut self, key: usize) {
        self.entries.try_remove(key);
    }

    /// Moves the deadline of `key`.
    pub(super) fn set(&mut self, key: usize, deadline: u64) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        entry.deadline = deadline;
        if deadline < entry.scheduled {
            self.schedule(key);
        }
    }

    /// Whether the deadline of `key` has passed; if not, `waker` is woken when it does.
    pub(super) fn poll(&mut self, key: usize, waker: &Waker) -> bool {
        let now = self.now;
        let Some(entry) = self.entries.get_mut(key) else { return true };
        if entry.deadline <= now {
            return true;
        }
        match &mut entry.waker {
            Some(known) => known.clone_from(waker), // does nothing when it is the same
            none => *none = Some(waker.clone()),
        }
        false
    }

    fn schedule(&mut self, key: usize) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        // In a slot that is still to come, within one turn of the wheel.
        let at = entry.deadline.clamp(self.now + 1, self.now + SLOTS - 1);
        entry.scheduled = at;
        self.slots[(at % SLOTS) as usize].push(key);
    }

    /// Goes on to `now`; calls `wake` for each deadline that passed.
    pub(super) fn advance(&mut self, now: u64, mut wake: impl FnMut(&Waker)) {
        // A process that was stopped for long need not look at a slot twice.
        let from = (self.now + 1).max((now + 1).saturating_sub(SLOTS));
        for tick in from..=now {
            self.now = tick;
            let due = std::mem::take(&mut self.slots[(tick % SLOTS) as usize]);
            for key in due {
                let Some(entry) = self.entries.get_mut(key) else { continue };
                // It may have been put earlier since, or the key may be another's now. After a leap
                // of more than a turn the time it was to be looked at may have passed.
                if entry.scheduled > tick || entry.scheduled == NEVER {
                    continue;
                }
                entry.scheduled = NEVER;
                if entry.deadline <= now {
                    entry.waker.iter().for_each(&mut wake);
                } else if entry.deadline != NEVER {
                    self.schedule(key);
                }
            }
        }
        self.now = now;
    }

    /// Every task that waits.
    pub(super) fn wakers(&self) -> impl Iterator<Item = &Waker> {
        self.entries.iter().filter_map(|(_, entry)| entry.waker.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl std::task::Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_deadline_is_told_once_it_has_passed_and_not_before() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut wheel = Wheel::new();
            let mut now = 0;
            let mut timers: Vec<(usize, u64, Arc<Count>)> = Vec::new();
            for _ in 0..2_000 {
                match rng.u8(0..10) {
                    0 | 1 => timers.push((wheel.add(), NEVER, Arc::default())),
                    2..=6 if !timers.is_empty() => {
                        let timer = rng.choice(&mut timers).unwrap();
                        timer.1 = now + rng.u64(1..3_000);
                        wheel.set(timer.0, timer.1);
                        timer.2 = Arc::default();
                        assert!(!wheel.poll(timer.0, &Waker::from(Arc::clone(&timer.2))));
                    }
                    7 if !timers.is_empty() => {
                        let (key, ..) = timers.swap_remove(rng.usize(0..timers.len()));
                        wheel.remove(key);
                    }
                    _ => {
                        let most = if rng.u8(0..20) == 0 { 5_000 } else { 200 };
                        now += rng.u64(1..most);
                        wheel.advance(now, Waker::wake_by_ref);
                        for (key, deadline, count) in &timers {
                            let passed = *deadline <= now;
                            assert_eq!(wheel.poll(*key, Waker::noop()), passed, "seed {seed}");
                            let told = count.0.load(Ordering::Relaxed) > 0;
                            assert_eq!(told, passed, "seed {seed}: {deadline} at {now}");
                            if !passed && *deadline != NEVER {
                                let waker = Waker::from(Arc::clone(count));
                                assert!(!wheel.poll(*key, &waker));
                            }
                        }
                        timers.retain(|(key, deadline, _)| {
                            let passed = *deadline <= now;
                            if passed {
                                wheel.remove(*key);
                            }
                            !passed
                        });
                    }
                }
            }
        }
    }

    #[test]
    fn a_deadline_that_moves_with_every_request_takes_no_more_place() {
        let mut wheel = Wheel::new();
        let key = wheel.add();
        for request in 0..10_000 {
            wheel.set(key, wheel.now() + 3_000);
            wheel.set(key, wheel.now() + 600);
            if request % 10 == 0 {
                wheel.advance(wheel.now() + 1, |_| panic!("nothing is due"));
            }
        }
        assert!(wheel.slots.iter().map(Vec::len).sum::<usize>() < 10);
    }
}
