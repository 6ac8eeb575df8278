//! Names of clusters as requests use them: each has a place in an array, so that what a route leads to
//! is found without hashing or comparing a name.

use std::{collections::HashMap, fmt, sync::Arc};

/// The name of a cluster, and its place. A place belongs to one name for as long as anybody holds it.
#[derive(Clone, Debug)]
pub(crate) struct ClusterName {
    text: Arc<str>,
    place: u32,
}

impl ClusterName {
    pub(crate) fn text(&self) -> &Arc<str> {
        &self.text
    }

    /// Where the cluster of this name is, if there is one.
    pub(crate) fn place(&self) -> usize {
        self.place as usize
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// So many names are kept without looking whether anybody still uses them.
const FEW: usize = 64;

/// Gives names their places.
#[derive(Debug, Default)]
pub(crate) struct Names {
    places: HashMap<Arc<str>, u32, foldhash::fast::RandomState>,
    free: Vec<u32>,
    /// With so many names it is time to look for those that nobody uses any more.
    prune_at: usize,
}

impl Names {
    /// The name `text`; the same one as before while anybody holds it.
    pub(crate) fn name(&mut self, text: &str) -> ClusterName {
        if let Some((text, &place)) = self.places.get_key_value(text) {
            return ClusterName { text: Arc::clone(text), place };
        }
        // Without a free place all below are taken, each by one name; so many do not fit into memory
        // that this overflows.
        let place = self.free.pop().unwrap_or(self.places.len() as u32);
        let text: Arc<str> = text.into();
        self.places.insert(Arc::clone(&text), place);
        ClusterName { text, place }
    }

    /// Frees the places of names that nobody holds, now and then: what it costs is spread over as
    /// many new names.
    pub(crate) fn prune(&mut self) {
        if self.places.len() < self.prune_at.max(FEW) {
            return;
        }
        let free = &mut self.free;
        self.places.retain(|text, place| {
            let used = Arc::strong_count(text) > 1;
            if !used {
                free.push(*place);
            }
            used
        });
        self.prune_at = 2 * self.places.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_place_while_it_is_held_and_no_two_have_the_same() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut names, mut held) = (Names::default(), Vec::<ClusterName>::new());
            for round in 0..2_000 {
                let name = names.name(&format!("s{}/v{}", rng.u8(..), rng.u8(0..4)));
                match held.iter().find(|held| held.text == name.text) {
                    Some(same) => assert_eq!(same.place, name.place, "seed {seed}"),
                    None => assert!(held.iter().all(|held| held.place != name.place), "seed {seed}"),
                }
                if rng.bool() {
                    held.push(name);
                }
                if held.len() > 100 {
                    held.drain(..rng.usize(..held.len()));
                }
                if round % 3 == 0 {
                    names.prune();
                }
            }
            assert!(names.places.len() <= 2 * (100 + FEW), "seed {seed}: {}", names.places.len());
        }
    }
}
