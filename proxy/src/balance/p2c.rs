//! Power of two choices, least request (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001): draw two distinct candidates by weight, take the one with fewer requests in
//! flight per unit of weight; the first one when they are equal.
//!
//! Comparing without counting the request to come makes an idle version follow the weights exactly:
//! all candidates are equal, so the first draw, which is by weight, decides.

use super::bag::{Bag, Weighed};

/// How often one that is not excepted is drawn for; after that each is looked at. Where few are excepted,
/// as of many, the first draw is one nearly always.
const DRAWS: usize = 8;

/// Picks a place; `in_flight` says how many requests a candidate has. `None` when there is no candidate.
pub(crate) fn pick<T: Weighed>(
    candidates: &Bag<T>,
    in_flight: impl Fn(&T) -> u32,
    rng: &mut fastrand::Rng,
) -> Option<u32> {
    match candidates.len() {
        0 => None,
        1 => Some(0),
        _ => Some(better(candidates, candidates.draw_two(rng), in_flight)),
    }
}

/// Picks a place among those that are not excepted.
pub(crate) fn pick_except<T: Weighed>(
    candidates: &Bag<T>,
    excepted: impl Fn(&T) -> bool,
    in_flight: impl Fn(&T) -> u32,
    rng: &mut fastrand::Rng,
) -> Option<u32> {
    let first = draw_except(candidates, |_, candidate| excepted(candidate), rng)?;
    let second = draw_except(candidates, |place, candidate| place == first || excepted(candidate), rng);
    Some(second.map_or(first, |second| better(candidates, (first, second), in_flight)))
}

/// Draws a place by weight among those that are not excepted.
fn draw_except<T: Weighed>(
    candidates: &Bag<T>,
    excepted: impl Fn(u32, &T) -> bool,
    rng: &mut fastrand::Rng,
) -> Option<u32> {
    if candidates.len() == 0 {
        return None;
    }
    // Drawing again until it is none of the others is drawing by weight among the rest.
    let mut draws = (0..DRAWS).map(|_| candidates.draw(rng));
    if let Some(drawn) = draws.find(|&place| !excepted(place, candidates.at(place))) {
        return Some(drawn);
    }
    let rest = || (0..).zip(candidates.iter()).filter(|(place, candidate)| !excepted(*place, candidate));
    let total: u64 = rest().map(|(_, candidate)| u64::from(candidate.weight())).sum();
    let mut point = if total == 0 { return None } else { rng.u64(0..total) };
    let mut drawn = rest().skip_while(|(_, candidate)| {
        let weight = u64::from(candidate.weight());
        let passed = point >= weight;
        point = point.saturating_sub(weight);
        passed
    });
    drawn.next().map(|(place, _)| place)
}

fn better<T: Weighed>(
    candidates: &Bag<T>,
    (first, second): (u32, u32),
    in_flight: impl Fn(&T) -> u32,
) -> u32 {
    let (a, b) = (candidates.at(first), candidates.at(second));
    // a/wa ≤ b/wb, multiplied out; both products are below 2⁶⁴.
    let load = |candidate: &T, other: &T| u64::from(in_flight(candidate)) * u64::from(other.weight());
    if load(a, b) <= load(b, a) { first } else { second }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone)]
    struct Candidate {
        place: u32,
        weight: u32,
    }

    impl Weighed for Candidate {
        fn weight(&self) -> u32 {
            self.weight
        }
    }

    /// Of `weights`, which are their own places.
    fn candidates(weights: &[u32]) -> Bag<Candidate> {
        let mut bag = Bag::default();
        (0..).zip(weights).for_each(|(place, &weight)| bag.push(Candidate { place, weight }));
        bag
    }

    fn shares(weights: &[u32], loads: &[u32], excepted: &[u32], seed: u64) -> Vec<f64> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let candidates = candidates(weights);
        let mut counts = vec![0.0; weights.len()];
        let in_flight = |candidate: &Candidate| loads[candidate.place as usize];
        for _ in 0..100_000 {
            let picked = if excepted.is_empty() {
                pick(&candidates, in_flight, &mut rng)
            } else {
                pick_except(&candidates, |candidate| excepted.contains(&candidate.place), in_flight, &mut rng)
            };
            counts[picked.unwrap() as usize] += 1.0 / 100_000.0;
        }
        counts
    }

    #[test]
    fn nothing_is_picked_of_nothing() {
        let mut rng = fastrand::Rng::with_seed(1);
        assert_eq!(pick(&candidates(&[]), |_| 0, &mut rng), None);
        assert_eq!(pick_except(&candidates(&[]), |_| false, |_| 0, &mut rng), None);
        assert_eq!(pick(&candidates(&[3]), |_| 9, &mut rng), Some(0));
        assert_eq!(pick_except(&candidates(&[3, 4]), |_| true, |_| 9, &mut rng), None);
    }

    #[test]
    fn idle_endpoints_share_by_weight() {
        let seed = 2;
        let many: Vec<u32> = (0..200).map(|i| 1 + i % 4).collect();
        for weights in [vec![1, 1], vec![5, 5, 5], vec![3, 1], vec![1, 2, 7], vec![1000, 1], many] {
            let total: u32 = weights.iter().sum();
            let loads = vec![0; weights.len()];
            for (share, weight) in shares(&weights, &loads, &[], seed).iter().zip(&weights) {
                let want = f64::from(*weight) / f64::from(total);
                assert!((share - want).abs() < 0.01, "seed {seed}: {weights:?} {share} {want}");
            }
        }
    }

    #[test]
    fn those_that_are_not_excepted_share_by_weight_too() {
        let seed = 4;
        let many: Vec<u32> = (0..100).map(|i| 1 + i % 4).collect();
        for (weights, excepted) in [
            (vec![1, 1], vec![0]),
            (vec![1, 2, 7], vec![1]),
            (vec![1000, 1, 3], vec![0]), // hardly ever drawn: each is looked at
            (vec![5, 5, 5, 5], vec![3, 0]),
            (many, vec![7, 11]),
        ] {
            let rest = |i: usize| if excepted.contains(&(i as u32)) { 0 } else { weights[i] };
            let total: u32 = (0..weights.len()).map(rest).sum();
            let loads = vec![0; weights.len()];
            for (i, share) in shares(&weights, &loads, &excepted, seed).iter().enumerate() {
                let want = f64::from(rest(i)) / f64::from(total);
                assert!((share - want).abs() < 0.01, "seed {seed}: {weights:?} {i} {share} {want}");
                assert!(rest(i) > 0 || *share < f64::EPSILON, "seed {seed}: an excepted one was picked");
            }
        }
    }

    #[test]
    fn the_busiest_of_all_is_never_picked() {
        let seed = 3;
        assert!(shares(&[1, 1, 1], &[4, 9, 4], &[], seed)[1] < f64::EPSILON, "seed {seed}");
        assert!(shares(&[1, 1, 1, 1], &[4, 9, 4, 0], &[3], seed)[1] < f64::EPSILON, "seed {seed}");
        assert!(shares(&[1, 3], &[1, 4], &[], seed)[1] < f64::EPSILON, "seed {seed}: 4/3 > 1/1");
        assert!(shares(&[1, 3], &[1, 2], &[], seed)[0] < f64::EPSILON, "seed {seed}: 2/3 < 1/1");
    }

    #[test]
    fn requests_that_stay_spread_by_weight() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let weights: Vec<u32> = (0..rng.usize(2..12)).map(|_| rng.u32(1..5)).collect();
            let candidates = candidates(&weights);
            let mut loads = vec![0_u32; weights.len()];
            let total: u32 = weights.iter().sum();
            for _ in 0..total * 100 {
                let picked =
                    pick(&candidates, |candidate| loads[candidate.place as usize], &mut rng).unwrap();
                loads[picked as usize] += 1;
            }
            for (load, weight) in loads.iter().zip(&weights) {
                let per_weight = f64::from(*load) / f64::from(*weight);
                assert!((per_weight - 100.0).abs() < 10.0, "seed {seed}: {weights:?} {loads:?}");
            }
        }
    }
}
