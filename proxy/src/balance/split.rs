//! A weighted draw over clusters: cumulative weights and one search.

use smallvec::SmallVec;

use crate::names::ClusterName;

/// Clusters and their weights. The weights add up to 1 to `u32::MAX`, as `config::xds::route`
/// promises of what it decodes. Two fit in without an allocation, as a canary has two: a split is read
/// once in a while, when little of it is in a cache.
#[derive(Debug)]
pub(crate) struct Split(SmallVec<[Share; 2]>);

#[derive(Debug)]
struct Share {
    cluster: ClusterName,
    /// The sum of the weights up to and including this one.
    end: u32,
}

impl Split {
    /// Of `(cluster, weight)`; those with weight 0 are left out, as no draw can reach them.
    pub(crate) fn new(weights: impl IntoIterator<Item = (ClusterName, u32)>) -> Self {
        let mut end = 0;
        let weights = weights.into_iter().filter(|(_, weight)| *weight > 0);
        let share = |(cluster, weight)| {
            end += weight;
            Share { cluster, end }
        };
        Self(weights.map(share).collect())
    }

    /// Draws a cluster; `None` only of an empty split.
    pub(crate) fn draw(&self, rng: &mut fastrand::Rng) -> Option<&ClusterName> {
        let share = match self.0.as_slice() {
            [] => None,
            [only] => Some(only),
            shares => {
                let point = rng.u32(0..shares.last()?.end);
                shares.get(shares.partition_point(|share| share.end <= point))
            }
        };
        share.map(|share| &share.cluster)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Names;

    #[test]
    fn shares_are_within_half_a_percentage_point_over_100_000_draws() {
        let seed = 11;
        let mut rng = fastrand::Rng::with_seed(seed);
        for weights in [vec![90, 10], vec![99, 1], vec![1, 1, 1], vec![0, 7, 0, 3], vec![u32::MAX - 1, 1]] {
            let names: Vec<String> = (0..weights.len()).map(|i| i.to_string()).collect();
            let mut named = Names::default();
            let split = Split::new(names.iter().map(|name| named.name(name)).zip(weights.iter().copied()));
            let mut counts = vec![0_u32; weights.len()];
            for _ in 0..100_000 {
                counts[split.draw(&mut rng).unwrap().text().parse::<usize>().unwrap()] += 1;
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
