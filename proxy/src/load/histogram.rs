//! Durations in fixed buckets. Recording is two relaxed additions.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of the buckets, in µs; the last bucket has none. Dense below 10 ms, where an edge
/// adds its share, up to a minute for slow services.
pub(crate) const BOUNDS: [u64; 15] = [
    500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 125_000, 250_000, 500_000, 1_000_000, 4_000_000,
    15_000_000, 60_000_000,
];

/// A histogram of durations.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    sum_micros: AtomicU64,
}

impl Histogram {
    /// Adds one duration.
    pub(crate) fn record(&self, micros: u64) {
        let bucket = BOUNDS.partition_point(|&bound| bound < micros);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The count of each bucket (not cumulative), and the sum in µs.
    pub(crate) fn read(&self) -> ([u64; BOUNDS.len() + 1], u64) {
        let counts = std::array::from_fn(|i| self.buckets[i].load(Ordering::Relaxed));
        (counts, self.sum_micros.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_lands_in_the_first_bucket_that_holds_it() {
        let histogram = Histogram::default();
        for micros in [0, 500, 501, 60_000_000, 60_000_001] {
            histogram.record(micros);
        }
        let (counts, sum) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
        assert_eq!(sum, 120_001_002);
    }
}
