//! Sets of names that streams share.
//!
//! Most clients of a server ask for the same: a set that another stream has already is kept once. Sets are
//! persistent, so that one more name copies a path and not the set.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use imbl::{GenericHashSet, shared_ptr::DefaultSharedPtr};

use crate::resource::Name;

type Persistent = GenericHashSet<Name, foldhash::fast::RandomState, DefaultSharedPtr>;

/// Smaller sets are not worth looking for.
const SMALL: usize = 16;

/// A set of names.
#[derive(Clone, Debug, Default)]
pub(super) struct NameSet {
    names: Arc<Persistent>,
    /// Sum of the digests of the names: equal for equal sets.
    digest: u128,
}

/// Sets by their digests, for as long as somebody has them.
#[derive(Default)]
struct Pool {
    sets: HashMap<u128, Weak<Persistent>>,
    /// When to look for those that nobody has any more.
    full: usize,
}

static POOL: LazyLock<Mutex<Pool>> = LazyLock::new(Mutex::default);
/// Keys that nobody knows: clients choose names, and cannot choose digests.
static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);

impl NameSet {
    pub(super) fn contains(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Name> {
        self.names.iter()
    }

    /// Whether it is of these names, each given once.
    pub(super) fn is_exactly<'a>(&self, names: impl IntoIterator<Item = &'a str>) -> bool {
        let (mut count, mut sum) = (0, 0_u128);
        for name in names {
            count += 1;
            sum = sum.wrapping_add(digest(name));
        }
        (count, sum) == (self.len(), self.digest)
    }

    /// Whether it was not there.
    pub(super) fn insert(&mut self, name: Name) -> bool {
        if self.names.contains(&name) {
            return false;
        }
        self.digest = self.digest.wrapping_add(digest(&name));
        Arc::make_mut(&mut self.names).insert(name);
        true
    }

    /// Whether it was there.
    pub(super) fn remove(&mut self, name: &str) -> bool {
        if !self.names.contains(name) {
            return false;
        }
        self.digest = self.digest.wrapping_sub(digest(name));
        Arc::make_mut(&mut self.names).remove(name);
        true
    }

    /// Keeps what another stream has instead, if it is the same.
    pub(super) fn share(&mut self) {
        if self.names.len() < SMALL {
            return;
        }
        let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
        match pool.sets.get(&self.digest).and_then(Weak::upgrade) {
            Some(same) => self.names = same,
            None => pool.add(self),
        }
    }
}

impl Pool {
    fn add(&mut self, set: &NameSet) {
        if self.sets.len() >= self.full {
            self.sets.retain(|_, names| names.strong_count() > 0);
            self.full = (self.sets.len() * 2).max(64);
        }
        self.sets.insert(set.digest, Arc::downgrade(&set.names));
    }
}

fn digest(name: &str) -> u128 {
    let [low, high] = KEYS.each_ref().map(|keys| u128::from(keys.hash_one(name)));
    (high << 64) | low
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(names: impl IntoIterator<Item = usize>) -> NameSet {
        let mut set = NameSet::default();
        names.into_iter().for_each(|i| assert!(set.insert(format!("a-name-of-its-own-{i}").into())));
        set.share();
        set
    }

    #[test]
    fn equal_sets_are_one_however_they_came_to_be() {
        let (one, other) = (set(0..100), set((0..100).rev()));
        assert!(Arc::ptr_eq(&one.names, &other.names));
        let mut longer = set(0..101);
        assert!(!Arc::ptr_eq(&one.names, &longer.names));
        assert!(longer.remove("a-name-of-its-own-100") && !longer.remove("a-name-of-its-own-100"));
        longer.share();
        assert!(Arc::ptr_eq(&one.names, &longer.names));
        assert!(one.contains("a-name-of-its-own-99") && !one.contains("a-name-of-its-own-100"));
        assert_eq!((one.len(), one.iter().count()), (100, 100));
        let names: Vec<&str> = one.iter().map(|name| &**name).collect();
        assert!(one.is_exactly(names.iter().copied()));
        assert!(!one.is_exactly(names[1..].iter().copied()));
        assert!(!one.is_exactly(names[1..].iter().chain([&names[1]]).copied()));
    }

    #[test]
    fn what_one_changes_the_other_keeps() {
        let (one, mut other) = (set(200..300), set(200..300));
        assert!(other.insert("more".into()) && !other.insert("more".into()));
        assert!(!one.contains("more") && other.contains("more") && !one.is_empty());
    }

    #[test]
    fn what_nobody_has_is_not_kept() {
        for i in 0..1_000 {
            set(1_000 + i..1_050 + i);
        }
        let pool = POOL.lock().unwrap();
        // Other tests have theirs meanwhile.
        assert!(pool.sets.len() < 500, "{}", pool.sets.len());
    }
}
