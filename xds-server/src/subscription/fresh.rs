//! What a client has begun to ask for and has not been sent: everything, or collections.
//!
//! A client that connects is owed all there is. That is not written down name by name: it is the rest of
//! the snapshot, behind the last name that was sent.

use std::{collections::BTreeSet, ops::Bound, sync::Arc};

use super::reply::Since;
use crate::{
    resource::{Name, Resource},
    snapshot::Resources,
};

/// The scope of everything; those of collections are what comes before the `*`.
pub(super) const EVERYTHING: &str = "";

/// What is still to be sent, scope by scope, and in each by name.
#[derive(Debug)]
pub(super) struct Fresh {
    pub(super) since: Since,
    current: Name,
    /// The last name that was sent of it.
    sent: Option<Name>,
    pending: BTreeSet<Name>,
}

impl Fresh {
    pub(super) fn new(scope: Name, since: Since) -> Self {
        Self { since, current: scope, sent: None, pending: BTreeSet::new() }
    }

    /// Adds a scope, whole.
    pub(super) fn add(&mut self, scope: Name, since: Since) {
        self.since = self.since.older(since);
        if self.current != scope || self.sent.is_some() {
            self.pending.insert(scope);
        }
    }

    /// Whether it is still to be sent.
    pub(super) fn covers(&self, name: &str) -> bool {
        let directory = name.rfind('/').map_or(EVERYTHING, |slash| &name[..=slash]);
        let behind = || self.sent.as_ref().is_none_or(|sent| **sent < *name);
        let here = *self.current == *EVERYTHING || *self.current == *directory;
        (here && behind()) || self.pending.contains(EVERYTHING) || self.pending.contains(directory)
    }

    /// Whether all of a scope is still to be sent.
    pub(super) fn covers_all(&self, scope: &str) -> bool {
        (*self.current == *scope && self.sent.is_none()) || self.pending.contains(scope)
    }

    /// The scope that is being sent.
    pub(super) fn scope(&self) -> &Name {
        &self.current
    }

    /// Whether nothing of it has been sent.
    pub(super) fn is_untouched(&self) -> bool {
        self.sent.is_none()
    }

    /// What is to be sent of the scope.
    pub(super) fn rest<'a>(
        &self,
        resources: &'a Resources,
    ) -> impl Iterator<Item = (&'a Name, &'a Arc<Resource>)> + use<'a> {
        let scope = Arc::clone(&self.current);
        let from = match &self.sent {
            Some(sent) => Bound::Excluded(Arc::clone(sent)),
            None => Bound::Included(Arc::clone(&scope)),
        };
        let below = resources.range::<_, str>((from.as_ref().map(|name| &**name), Bound::Unbounded));
        let starts = Arc::clone(&scope);
        let below = below.take_while(move |(name, _)| name.starts_with(&*starts));
        below.filter(move |(name, _)| scope.is_empty() || !name[scope.len()..].contains('/'))
    }

    /// All up to `name` is sent.
    pub(super) fn sent(&mut self, name: Name) {
        self.sent = Some(name);
    }

    /// The scope is sent; what comes after it, if anything does.
    pub(super) fn next(mut self) -> Option<Self> {
        self.current = self.pending.pop_first()?;
        self.sent = None;
        Some(self)
    }
}
