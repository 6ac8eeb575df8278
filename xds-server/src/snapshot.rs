//! What proxies are to know, as one immutable value with a strictly rising revision.
//!
//! A bounded log of changes lets a stream compute its difference without looking at what did not
//! change; a stream that fell behind the log compares everything.

use std::{sync::Arc, time::Instant};

use imbl::{OrdMap, Vector};

use crate::{
    kind::{Kind, View},
    resource::{Name, Resource},
};

/// How many changes the log remembers. A stream further behind than this compares everything.
pub const LOG_LENGTH: usize = 8_192;

/// The resources of one type in one form.
pub type Shelf = (Kind, View);

/// The resources on a shelf, by name.
pub type Resources = OrdMap<Name, Arc<Resource>>;

/// A resource that changed, appeared or went.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The revision that did it.
    pub revision: u64,
    /// When that was published.
    pub published: Instant,
    /// Its shelf.
    pub shelf: Shelf,
    /// Its name.
    pub name: Name,
}

/// Every resource at one revision. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    revision: u64,
    published: Instant,
    shelves: OrdMap<Shelf, Resources>,
    log: Vector<Logged>,
    /// Changes up to this revision are no longer, or never were, in the log.
    log_floor: u64,
    nothing: Resources,
}

/// The new form of a resource; `None` when it is gone.
pub type Update = (Shelf, Name, Option<Arc<Resource>>);

impl Snapshot {
    /// Nothing, at `revision`.
    pub fn empty(revision: u64) -> Self {
        Self {
            revision,
            published: Instant::now(),
            shelves: OrdMap::new(),
            log: Vector::new(),
            log_floor: revision,
            nothing: Resources::new(),
        }
    }

    /// The snapshot after `updates`, at `revision`, which is above this one's. Updates that change
    /// nothing leave no trace.
    #[must_use]
    pub fn with(&self, revision: u64, updates: impl IntoIterator<Item = Update>) -> Self {
        let mut next = self.clone();
        next.revision = revision;
        next.published = Instant::now();
        for (shelf, name, resource) in updates {
            let known = next.shelves.get(&shelf).and_then(|on| on.get(&name));
            let same = match (&resource, known) {
                (Some(new), Some(old)) => old.version == new.version,
                (None, None) => true,
                _ => false,
            };
            if same {
                continue;
            }
            let on = next.shelves.entry(shelf.clone()).or_default();
            match resource {
                Some(resource) => drop(on.insert(Arc::clone(&name), resource)),
                None => drop(on.remove(&name)),
            }
            next.log.push_back(Logged { revision, published: next.published, shelf, name });
        }
        while next.log.len() > LOG_LENGTH {
            if let Some(oldest) = next.log.pop_front() {
                next.log_floor = oldest.revision;
            }
        }
        next
    }

    /// Its revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When it came to be.
    pub fn published(&self) -> Instant {
        self.published
    }

    /// Every shelf that has had anything on it.
    pub fn shelves(&self) -> impl Iterator<Item = (&Shelf, &Resources)> {
        self.shelves.iter()
    }

    /// Every resource on a shelf, by name.
    pub fn resources(&self, shelf: &Shelf) -> &Resources {
        self.shelves.get(shelf).unwrap_or(&self.nothing)
    }

    /// One resource.
    pub fn resource(&self, shelf: &Shelf, name: &str) -> Option<&Arc<Resource>> {
        self.shelves.get(shelf)?.get(name)
    }

    /// The same without a log, as it is for whoever fell behind it.
    #[cfg(test)]
    pub(crate) fn without_log(mut self) -> Self {
        self.log = Vector::new();
        self.log_floor = self.revision;
        self
    }

    /// What changed after `revision`, newest first; `None` when the log does not reach back so far.
    pub fn changes_since(&self, revision: u64) -> Option<impl Iterator<Item = &Logged>> {
        (revision >= self.log_floor)
            .then(|| self.log.iter().rev().take_while(move |logged| logged.revision > revision))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CDS: Shelf = (Kind::Cluster, View::Common);

    fn cluster(name: &str, value: &[u8]) -> Update {
        (CDS, name.into(), Some(Arc::new(Resource::new(Kind::Cluster, name, value))))
    }

    #[test]
    fn the_log_holds_what_changed_and_nothing_else() {
        let one = Snapshot::empty(0).with(1, [cluster("a", b"1"), cluster("b", b"1")]);
        let two = one.with(2, [cluster("a", b"1"), cluster("b", b"2")]);
        let names: Vec<_> = two.changes_since(1).unwrap().map(|c| c.name.to_string()).collect();
        assert_eq!(names, ["b"]);
        let three = two.with(3, [(CDS, "a".into(), None), (CDS, "never".into(), None)]);
        assert!(three.resource(&CDS, "a").is_none());
        assert_eq!(three.changes_since(0).unwrap().count(), 4);
    }

    #[test]
    fn a_log_that_is_full_says_so_instead_of_lying() {
        let mut snapshot = Snapshot::empty(0);
        for revision in 1..=LOG_LENGTH as u64 + 10 {
            snapshot = snapshot.with(revision, [cluster("a", &revision.to_be_bytes())]);
        }
        assert!(snapshot.changes_since(9).is_none());
        assert_eq!(snapshot.changes_since(10).unwrap().count(), LOG_LENGTH);
    }
}
