//! State that each core has to itself, so that requests on different cores never write to the same
//! cache line. Readers add the parts up.

use std::{
    cell::Cell,
    num::NonZero,
    ops::Deref,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// How many parts there are: one a core of the machine. Threads beyond share parts, which costs time
/// but loses no count.
pub(crate) fn count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| std::thread::available_parallelism().map_or(1, NonZero::get))
}

thread_local! {
    static HERE: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Makes `part` the part of this thread, so that threads which serve requests do not share one.
pub(crate) fn claim(part: usize) {
    HERE.set(part % count());
}

/// The part of this thread.
pub(crate) fn here() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    HERE.with(|here| {
        if here.get() == usize::MAX {
            here.set(NEXT.fetch_add(1, Ordering::Relaxed) % count());
        }
        here.get()
    })
}

/// A value in cache lines of its own: 128 bytes, as processors fetch lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// One `T` a core.
#[derive(Debug)]
pub(crate) struct Sharded<T>(Box<[Padded<T>]>);

impl<T: Default> Default for Sharded<T> {
    fn default() -> Self {
        Self((0..count()).map(|_| Padded::default()).collect())
    }
}

impl<T> Sharded<T> {
    /// The part of this thread's core.
    pub(crate) fn here(&self) -> &T {
        self.at(here())
    }

    /// A part, as [`here`] numbers them.
    pub(crate) fn at(&self, part: usize) -> &T {
        &self.0[part % self.0.len()].0
    }

    /// All parts.
    pub(crate) fn parts(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|padded| &padded.0)
    }
}

/// An immutable value that every core refers to through a reference count of its own.
#[derive(Debug)]
pub(crate) struct PerCore<T>(Box<[Held<T>]>);

impl<T> PerCore<T> {
    pub(crate) fn new(value: T) -> Self {
        let value = Arc::new(value);
        Self((0..count()).map(|_| Held(Arc::new(Padded(Arc::clone(&value))))).collect())
    }

    /// The value, to be kept by this core.
    pub(crate) fn hold(&self) -> Held<T> {
        self.0[here() % self.0.len()].clone()
    }
}

impl<T> Deref for PerCore<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0[0] // there is at least one core
    }
}

/// A value held by one core. Cloning and dropping it touch nothing that other cores write.
#[derive(Debug)]
pub(crate) struct Held<T>(Arc<Padded<Arc<T>>>);

impl<T> Clone for Held<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0.0
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[test]
    fn threads_count_apart_and_lose_nothing() {
        let sharded = Arc::new(Sharded::<AtomicU64>::default());
        let threads = (0..4 * count()).map(|_| {
            let sharded = Arc::clone(&sharded);
            std::thread::spawn(move || {
                for _ in 0..1_000 {
                    sharded.here().fetch_add(1, Ordering::Relaxed);
                }
            })
        });
        let started: Vec<_> = threads.collect();
        let spawned = started.len() as u64;
        for thread in started {
            thread.join().unwrap();
        }
        let sum: u64 = sharded.parts().map(|part| part.load(Ordering::Relaxed)).sum();
        assert_eq!(sum, spawned * 1_000);
    }

    #[test]
    fn parts_do_not_share_a_cache_line() {
        let sharded = Sharded::<u8>::default();
        let at: Vec<usize> = sharded.parts().map(|part| std::ptr::from_ref(part).addr()).collect();
        assert!(at.windows(2).all(|pair| pair[1] - pair[0] >= 128));
        assert!(at.iter().all(|address| address % 128 == 0));
    }

    #[test]
    fn what_is_held_outlives_what_it_was_held_from() {
        let value = PerCore::new(String::from("kept"));
        let held = value.hold();
        drop(value);
        assert_eq!(*held, "kept");
    }
}
