//! A weighted draw over clusters: cumulative weights and one binary search.

use std::sync::Arc;

/// Clusters and their weights. The weights add up to 1 to `u32::MAX`, as `config::xds::route`
/// promises of what it decodes.
#[derive(Debug)]
pub(crate) struct Split {
    clusters: Vec<Arc<str>>,
    /// `cumulative[i]` is the sum of the weights up to and including `i`.
    cumulative: Vec<u32>,
}

impl Split {
    /// Of `(cluster, weight)`; those with weight 0 are left out, as no draw can reach them.
    pub(crate) fn new<'a>(weights: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let (mut clusters, mut cumulative, mut sum) = (Vec::new(), Vec::new(), 0);
        for (cluster, weight) in weights.into_iter().filter(|(_, weight)| *weight > 0) {
            sum += weight;
            clusters.push(cluster.into());
            cumulative.push(sum);
        }
        Self { clusters, cumulative }
    }

    /// Draws a cluster; `None` only of an empty split.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> Option<&Arc<str>> {
        match self.clusters.as_slice() {
            [] => None,
            [only] => Some(only),
            clusters => {
                let point = rng.u32(0..*self.cumulative.last()?);
                clusters.get(self.cumulative.partition_point(|&end| end <= point))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_within_half_a_percentage_point_over_100_000_draws() {
        let seed = 11;
        let mut rng = fastrand::Rng::with_seed(seed);
        for weights in [vec![90, 10], vec![99, 1], vec![1, 1, 1], vec![0, 7, 0, 3], vec![u32::MAX - 1, 1]] {
            let names: Vec<String> = (0..weights.len()).map(|i| i.to_string()).collect();
            let split = Split::new(names.iter().map(String::as_str).zip(weights.iter().copied()));
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..100_000 {
                counts[split.draw(&mut rng).unwrap().parse::<usize>().unwrap()] += 1;
            }
            let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
            for (count, weight) in counts.iter().zip(&weights) {
                let (share, want) = (f64::from(*count) / 100_000.0, f64::from(*weight) / total);
                assert!((share - want).abs() < 0.005, "seed {seed}: {weights:?} gave {counts:?}");
                assert!(*weight > 0 || *count == 0, "seed {seed}: a weight of 0 was drawn");
            }
        }
    }
}
