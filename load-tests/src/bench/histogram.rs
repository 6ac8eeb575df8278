//! Latencies by buckets that are at most 1/64 of their value wide (as in `HdrHistogram`).

/// Buckets for each power of two.
const STEPS: u64 = 64;

pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
}

impl Histogram {
    pub fn new() -> Self {
        Self { counts: vec![0; bucket(u64::MAX) + 1], total: 0 }
    }

    pub fn record(&mut self, ns: u64) {
        self.counts[bucket(ns)] += 1;
        self.total += 1;
    }

    /// Takes another's values too.
    pub fn add(&mut self, other: &Self) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(own, other)| *own += other);
        self.total += other.total;
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// The value that `share` of all are not above, in ns; 0 without any.
    pub fn at(&self, share: f64) -> u64 {
        let rank = ((self.total as f64 * share).ceil() as u64).clamp(1, self.total.max(1));
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= rank {
                return upper(bucket);
            }
        }
        0
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

/// Values below 64 have a bucket each; from there, each power of two has 64.
fn bucket(value: u64) -> usize {
    if value < STEPS {
        return value as usize;
    }
    let shift = u64::from(value.ilog2()) - 6;
    ((shift + 1) * STEPS + (value >> shift) - STEPS) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < STEPS {
        return bucket;
    }
    let (shift, step) = (bucket / STEPS - 1, bucket % STEPS);
    (u128::from(STEPS + step + 1) << shift).saturating_sub(1).min(u128::from(u64::MAX)) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_holds_its_values_and_is_narrow() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..10_000 {
            let value = random.u64(..) >> random.u32(..64);
            let top = upper(bucket(value));
            assert!(top >= value && top - value <= value / 64 + 1, "{value} is in the bucket up to {top}");
            assert_eq!(bucket(top), bucket(value));
        }
    }

    #[test]
    fn shares_are_found() {
        let mut histogram = Histogram::new();
        for ms in 1..=1_000_u64 {
            histogram.record(ms * 1_000_000);
        }
        let near = |share: f64, ms: f64| (histogram.at(share) as f64 / 1e6 / ms - 1.0).abs() < 0.02;
        assert!(near(0.5, 500.0) && near(0.99, 990.0) && near(0.999, 999.0));
        assert_eq!(Histogram::new().at(0.99), 0);
    }
}
