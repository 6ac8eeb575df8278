//! How a service's traffic divides over its versions.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::name::VersionName;

/// Weights by version: at least one version, whole numbers, a total of 1 to `u32::MAX` (the bound
/// xDS sets on the sum of a `WeightedCluster`).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Split {
    weights: BTreeMap<VersionName, u32>,
}

/// Why weights do not make a split.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// No version, or every weight is zero.
    #[error("the weights add up to 0; give at least one version a weight above 0")]
    Zero,
    /// The sum does not fit xDS's 32 bits.
    #[error("the weights add up to more than 4294967295; use smaller numbers, only their ratio matters")]
    TooLarge,
}

impl Split {
    /// A split over `weights`.
    pub fn new(weights: BTreeMap<VersionName, u32>) -> Result<Self, SplitError> {
        match weights.values().map(|&w| u64::from(w)).sum::<u64>() {
            0 => Err(SplitError::Zero),
            total if total > u64::from(u32::MAX) => Err(SplitError::TooLarge),
            _ => Ok(Self { weights }),
        }
    }

    /// Everything to one version.
    pub fn all_to(version: VersionName) -> Self {
        Self { weights: BTreeMap::from([(version, 1)]) }
    }

    /// The weights, zero ones included, in the order of the versions' names.
    pub fn weights(&self) -> &BTreeMap<VersionName, u32> {
        &self.weights
    }

    /// The sum of the weights, at least 1.
    pub fn total(&self) -> u32 {
        self.weights.values().sum()
    }

    /// The share of `version` in basis points (1/100 of a percent), rounded down.
    pub fn basis_points(&self, version: &VersionName) -> u32 {
        let weight = self.weights.get(version).copied().unwrap_or(0);
        (u64::from(weight) * 10_000 / u64::from(self.total())) as u32
    }

    /// This split with `target` at exactly `basis_points` of 10,000, the others keeping their ratio
    /// to one another. When the others have no weight between them, they share alike. The new
    /// weights add up to 10,000 (largest-remainder rounding).
    ///
    /// # Errors
    /// [`SplitError::Zero`] when `target` is the only version and is asked for less than everything.
    pub fn shifted(&self, target: &VersionName, basis_points: u32) -> Result<Self, SplitError> {
        let rest = u64::from(10_000 - basis_points.min(10_000));
        let others: Vec<(&VersionName, u64)> =
            self.weights.iter().filter(|(v, _)| *v != target).map(|(v, w)| (v, u64::from(*w))).collect();
        if others.is_empty() && rest > 0 {
            return Err(SplitError::Zero);
        }
        let all: u64 = others.iter().map(|(_, w)| w).sum();
        let share = |w: u64| if all == 0 { (rest, others.len() as u64) } else { (rest * w, all) };

        let mut weights: BTreeMap<VersionName, u32> = BTreeMap::new();
        let mut remainders = Vec::with_capacity(others.len());
        let mut given = 0;
        for &(version, w) in &others {
            let (num, den) = share(w);
            weights.insert(version.clone(), (num / den) as u32);
            given += num / den;
            remainders.push((num % den, version));
        }
        remainders.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(b.1)));
        for (_, version) in remainders.iter().take((rest - given) as usize) {
            *weights.get_mut(*version).expect("inserted above") += 1;
        }
        weights.insert(target.clone(), 10_000 - rest as u32);
        Self::new(weights)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pairs: &[(&str, u32)]) -> Result<Split, SplitError> {
        Split::new(pairs.iter().map(|(v, w)| (v.parse().unwrap(), *w)).collect())
    }

    fn version(name: &str) -> VersionName {
        name.parse().unwrap()
    }

    #[test]
    fn any_total_above_zero_is_a_split() {
        assert_eq!(split(&[]), Err(SplitError::Zero));
        assert_eq!(split(&[("v1", 0)]), Err(SplitError::Zero));
        assert_eq!(split(&[("v1", u32::MAX), ("v2", 1)]), Err(SplitError::TooLarge));
        assert_eq!(split(&[("v1", 1), ("v2", 2)]).unwrap().total(), 3);
    }

    #[test]
    fn a_shift_keeps_the_ratio_of_the_others() {
        let shifted =
            split(&[("v1", 3), ("v2", 1), ("v3", 0)]).unwrap().shifted(&version("v3"), 2_000).unwrap();
        assert_eq!(shifted, split(&[("v1", 6_000), ("v2", 2_000), ("v3", 2_000)]).unwrap());
    }

    #[test]
    fn a_shift_away_from_the_only_weighted_version_shares_among_the_others() {
        let shifted =
            split(&[("v1", 0), ("v2", 0), ("v3", 9)]).unwrap().shifted(&version("v3"), 5_000).unwrap();
        assert_eq!(shifted, split(&[("v1", 2_500), ("v2", 2_500), ("v3", 5_000)]).unwrap());
    }

    #[test]
    fn the_only_version_cannot_give_traffic_away() {
        assert_eq!(split(&[("v1", 1)]).unwrap().shifted(&version("v1"), 10), Err(SplitError::Zero));
    }

    #[test]
    fn every_shift_adds_up_to_ten_thousand() {
        let seed = 7;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..2_000 {
            let weights = (0..rng.u32(2..6)).map(|i| (version(&format!("v{i}")), rng.u32(0..50))).collect();
            let Ok(before) = Split::new(weights) else { continue };
            let points = rng.u32(0..=10_000);
            let after = before.shifted(&version("v0"), points).unwrap();
            assert_eq!(after.total(), 10_000, "seed {seed}: {before:?} → {after:?}");
            assert_eq!(after.basis_points(&version("v0")), points, "seed {seed}");
        }
    }
}
