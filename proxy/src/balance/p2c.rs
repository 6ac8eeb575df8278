//! Power of two choices, least request (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001): draw two distinct candidates by weight, take the one with fewer requests in
//! flight per unit of weight; the first one when they are equal.
//!
//! Comparing without counting the request to come makes an idle version follow the weights exactly:
//! all candidates are equal, so the first draw, which is by weight, decides.

/// Candidates by weight; refers to endpoints by index.
#[derive(Debug, Default)]
pub(crate) struct Candidates {
    indices: Vec<u32>,
    weights: Weights,
}

#[derive(Debug, Default)]
enum Weights {
    /// All alike: a draw is one random number.
    #[default]
    Equal,
    /// `cumulative[i]` is the sum up to and including candidate `i`.
    Cumulative(Vec<u64>),
}

impl Candidates {
    /// Of `(index, weight)`; weights are at least 1.
    pub(crate) fn new(candidates: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let (mut indices, mut each, mut sum) = (Vec::new(), Vec::new(), 0_u64);
        let (mut cumulative, mut equal) = (Vec::new(), true);
        for (index, weight) in candidates {
            sum += u64::from(weight.max(1));
            indices.push(index);
            cumulative.push(sum);
            equal &= *each.first().unwrap_or(&weight) == weight;
            if each.is_empty() {
                each.push(weight);
            }
        }
        Self { indices, weights: if equal { Weights::Equal } else { Weights::Cumulative(cumulative) } }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.indices.len()
    }

    /// Their indices, in the order given.
    pub(crate) fn indices(&self) -> impl Iterator<Item = u32> {
        self.indices.iter().copied()
    }

    /// Picks an index; `in_flight` says how many requests the endpoint at an index has. `None` when
    /// there is no candidate.
    pub(crate) fn pick(&self, in_flight: impl Fn(u32) -> u32, rng: &mut fastrand::Rng) -> Option<u32> {
        let (first, second) = match self.indices.len() {
            0 => return None,
            1 => return Some(self.indices[0]),
            n => self.draw_two(n, rng),
        };
        let load = |i: usize| u64::from(in_flight(self.indices[i]));
        // a/wa ≤ b/wb, multiplied out; both products are below 2⁶⁴.
        let first_is_better = load(first) * self.weight(second) <= load(second) * self.weight(first);
        Some(self.indices[if first_is_better { first } else { second }])
    }

    fn weight(&self, i: usize) -> u64 {
        match &self.weights {
            Weights::Equal => 1,
            Weights::Cumulative(sums) => sums[i] - start(sums, i),
        }
    }

    /// Two distinct positions, the second drawn by weight among what the first leaves. `n` ≥ 2.
    fn draw_two(&self, n: usize, rng: &mut fastrand::Rng) -> (usize, usize) {
        match &self.weights {
            Weights::Equal => {
                let first = rng.usize(0..n);
                let second = rng.usize(0..n - 1);
                (first, second + usize::from(second >= first))
            }
            Weights::Cumulative(sums) => {
                let total = sums[n - 1];
                let at = |point: u64| sums.partition_point(|&end| end <= point);
                let first = at(rng.u64(0..total));
                // Cut the first one out of the line and draw again on what remains.
                let (from, width) = (start(sums, first), sums[first] - start(sums, first));
                let point = rng.u64(0..total - width);
                (first, at(if point >= from { point + width } else { point }))
            }
        }
    }
}

fn start(sums: &[u64], i: usize) -> u64 {
    if i == 0 { 0 } else { sums[i - 1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(weights: &[u32], loads: &[u32], seed: u64) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let candidates = Candidates::new((0..).zip(weights.iter().copied()));
        let mut counts = vec![0.0; weights.len()];
        for _ in 0..100_000 {
            let picked = candidates.pick(|i| loads[i as usize], &mut rng).unwrap();
            counts[picked as usize] += 1.0 / 100_000.0;
        }
        counts
    }

    #[test]
    fn nothing_is_picked_of_nothing() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(Candidates::new([]).pick(|_| 0, &mut rng), None);
        assert_eq!(Candidates::new([(7, 3)]).pick(|_| 9, &mut rng), Some(7));
    }

    #[test]
    fn idle_endpoints_share_by_weight() {
        let seed = 2;
        for weights in [vec![1, 1], vec![5, 5, 5], vec![3, 1], vec![1, 2, 7], vec![1000, 1]] {
            let total: u32 = weights.iter().sum();
            let loads = vec![0; weights.len()];
            for (share, weight) in shares(&weights, &loads, seed).iter().zip(&weights) {
                let want = f64::from(*weight) / f64::from(total);
                assert!((share - want).abs() < 0.01, "seed {seed}: {weights:?} {share} {want}");
            }
        }
    }

    #[test]
    fn the_busiest_of_all_is_never_picked() {
        let seed = 3;
        assert!(shares(&[1, 1, 1], &[4, 9, 4], seed)[1] < f64::EPSILON, "seed {seed}");
        assert!(shares(&[1, 3], &[1, 4], seed)[1] < f64::EPSILON, "seed {seed}: 4/3 > 1/1");
        assert!(shares(&[1, 3], &[1, 2], seed)[0] < f64::EPSILON, "seed {seed}: 2/3 < 1/1");
    }

    #[test]
    fn requests_that_stay_spread_by_weight() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let weights: Vec<u32> = (0..rng.usize(2..12)).map(|_| rng.u32(1..5)).collect();
            let candidates = Candidates::new((0..).zip(weights.iter().copied()));
            let mut loads = vec![0_u32; weights.len()];
            let total: u32 = weights.iter().sum();
            for _ in 0..total * 100 {
                let picked = candidates.pick(|i| loads[i as usize], &mut rng).unwrap();
                loads[picked as usize] += 1;
            }
            for (load, weight) in loads.iter().zip(&weights) {
                let per_weight = f64::from(*load) / f64::from(*weight);
                assert!((per_weight - 100.0).abs() < 10.0, "seed {seed}: {weights:?} {loads:?}");
            }
        }
    }
}
