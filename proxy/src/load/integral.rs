//! Exact time-weighted concurrency in one `AtomicU64`.
//!
//! What is measured is `C(T) = ∫₀ᵀ n(t) dt`, the number of requests in flight integrated over time,
//! in µs·requests. It is not sampled: two loads of the word give the exact area between them.
//!
//! # The word
//! ```text
//! 63                              24 23                 0
//! ┌─────────────────────────────────┬────────────────────┐
//! │ S = Σ t_end − Σ t_start mod 2⁴⁰ │ n = in flight      │
//! └─────────────────────────────────┴────────────────────┘
//! ```
//! A start adds `1 − (t << 24)`, an end adds `(t << 24) − 1`, both modulo 2⁶⁴.
//!
//! # Why it is exact
//! The word as an integer is `S·2²⁴ + n`. A start turns it into `(S − t)·2²⁴ + (n + 1)`. While
//! `n + 1 < 2²⁴` the sum stays inside the low field, so nothing carries into `S`; dropping multiples
//! of 2⁶⁴ drops multiples of 2⁴⁰ from `S`. An end is the mirror image, and because each end follows
//! its own start `n ≥ 1` before it, so nothing is borrowed from `S`. At time `T`
//!
//! `C(T) = Σ_ended (t_end − t_start) + Σ_running (T − t_start) = S + n·T  (mod 2⁴⁰)`,
//!
//! and `S` and `n` come from one load, so they belong together.
//!
//! # Bounds
//! - At most 2²⁴ − 1 requests in flight on one record. The proxy takes at most 2¹⁷ at once over all of
//!   them ([`MAX_REQUESTS`](crate::shared::MAX_REQUESTS)).
//! - A reader adds up differences modulo 2⁴⁰, taken as signed, because a clock read just before a
//!   load may be a moment older than a timestamp already in the word. It must therefore read before
//!   2³⁹ µs·requests have passed: with one read a second ([`FOLD_EVERY`]) that is 549,755 requests
//!   in flight, four times that bound; so a read may be up to four seconds late.
//! - Timestamps are whole microseconds, so one request is measured to ±1 µs, without bias.

use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// How often a background task reads every record, so that no reader misses a wrap-around.
pub(crate) const FOLD_EVERY: Duration = Duration::from_secs(1);

const LOW_BITS: u32 = 24;
const LOW: u64 = (1 << LOW_BITS) - 1;
const HIGH_BITS: u32 = 64 - LOW_BITS;
const HIGH: u64 = (1 << HIGH_BITS) - 1;

/// The requests in flight, and their integral over time. Times are in µs on one monotonic clock.
#[derive(Debug, Default)]
pub(crate) struct Concurrency {
    word: AtomicU64,
    /// Only readers meet here; a request never waits for it.
    folded: Mutex<Folded>,
}

#[derive(Debug, Default)]
struct Folded {
    /// `C` modulo 2⁴⁰ at the last read.
    last: u64,
    sum: i64,
    /// The largest sum that was reported: what is shown never goes back.
    shown: u64,
}

impl Concurrency {
    /// One more in flight since `now`.
    pub(crate) fn start(&self, now: u64) {
        self.word.fetch_add(1_u64.wrapping_sub(now << LOW_BITS), Ordering::AcqRel);
    }

    /// One less in flight since `now`. Every call follows its own [`Self::start`].
    pub(crate) fn end(&self, now: u64) {
        let before = self.word.fetch_add((now << LOW_BITS).wrapping_sub(1), Ordering::AcqRel);
        debug_assert!(before & LOW > 0, "an end without a start");
    }

    /// How many are in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        (self.word.load(Ordering::Acquire) & LOW) as u32
    }

    /// The integral up to `now` since the record was made, in µs·requests. It never goes back.
    pub(crate) fn integral(&self, now: u64) -> u64 {
        let mut folded = self.folded.lock().unwrap_or_else(PoisonError::into_inner);
        let word = self.word.load(Ordering::Acquire);
        let value = (word >> LOW_BITS).wrapping_add((word & LOW).wrapping_mul(now)) & HIGH;
        let difference = value.wrapping_sub(folded.last) << LOW_BITS;
        // Shifting back arithmetically extends the sign of the 40-bit difference.
        folded.sum += difference.cast_signed() >> LOW_BITS;
        folded.last = value;
        folded.shown = folded.shown.max(u64::try_from(folded.sum).unwrap_or(0));
        folded.shown
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};

    use super::*;

    #[test]
    fn it_equals_the_area_under_the_requests_of_a_plain_model() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            // Start anywhere, also where 2⁴⁰ µs wrap around.
            let mut now = rng.u64(..) & ((1 << 42) - 1);
            let exact = Concurrency::default();
            let (mut area, mut running) = (0_u64, 0_u64);
            for step in 0..2_000 {
                let passed = rng.u64(0..50_000);
                area += running * passed;
                now += passed;
                match rng.u8(0..5) {
                    0 | 1 => {
                        exact.start(now);
                        running += 1;
                    }
                    2 | 3 if running > 0 => {
                        exact.end(now);
                        running -= 1;
                    }
                    _ => assert_eq!(exact.integral(now), area, "seed {seed}, step {step}"),
                }
                assert_eq!(u64::from(exact.in_flight()), running, "seed {seed}, step {step}");
            }
            assert_eq!(exact.integral(now), area, "seed {seed}");
        }
    }

    #[test]
    fn many_requests_over_a_fold_interval_do_not_wrap() {
        let exact = Concurrency::default();
        for _ in 0..500_000 {
            exact.start(7);
        }
        let second = FOLD_EVERY.as_micros() as u64;
        for read in 1..=10 {
            assert_eq!(exact.integral(7 + read * second), 500_000 * read * second);
        }
    }

    #[test]
    fn a_clock_that_is_a_moment_late_never_shows_a_step_back() {
        let exact = Concurrency::default();
        exact.start(1_000);
        assert_eq!(exact.integral(2_000), 1_000);
        exact.start(2_010);
        assert_eq!(exact.integral(2_005), 1_000, "2 × 2005 − 1000 − 2010 = 1000");
        assert_eq!(exact.integral(2_020), 1_030);
    }

    #[test]
    fn threads_lose_nothing() {
        let (threads, rounds) = (8_u64, 20_000_u64);
        let exact = Arc::new(Concurrency::default());
        let barrier = Arc::new(Barrier::new(threads as usize));
        let spawned = (0..threads).map(|thread| {
            let (exact, barrier) = (Arc::clone(&exact), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                for round in 0..rounds {
                    exact.start(round * 10 + thread);
                    exact.end(round * 10 + thread + 3);
                }
            })
        });
        for handle in spawned.collect::<Vec<_>>() {
            handle.join().unwrap();
        }
        assert_eq!(exact.in_flight(), 0);
        assert_eq!(exact.integral(rounds * 10), threads * rounds * 3);
    }
}
