//! What the store says happened, done to the world of this server.

use std::collections::BTreeSet;

use config::Lease;
use tokio::time::Instant;

use super::{DOUBT, SharedWriter};
use crate::{
    lease::Key,
    registry::replay::replay,
    store::{
        Reference, Table,
        etcd::{
            Everything, Mark, WRITTEN,
            feed::{Change, Feed},
            keys::{Place, Written},
        },
    },
};

impl SharedWriter {
    pub(super) fn absorb_what_is_there(&mut self) {
        while let Ok(fed) = self.feed.try_recv() {
            self.absorb(fed);
        }
    }

    pub(super) fn absorb(&mut self, fed: Feed) {
        match fed {
            Feed::Changes(changes) => {
                for changes in changes.chunk_by(|a, b| a.revision == b.revision) {
                    self.absorb_revision(changes);
                }
            }
            Feed::Everything(everything) => self.absorb_everything(everything),
        }
    }

    /// One transaction, or what etcd removed with one lease.
    fn absorb_revision(&mut self, changes: &[Change]) {
        let Some(revision) = changes.first().map(|change| change.revision) else { return };
        if revision <= self.draft.seen {
            return;
        }
        let written = changes.iter().find_map(written_by);
        let mut is_ours = false;
        if let Some(arrived) = written.as_ref().and_then(|w| self.in_flight.get_mut(&w.commit)) {
            *arrived = Some(revision);
            is_ours = true;
        }
        for change in changes {
            let origin = match &written {
                Some(written) if is_ours => Origin::Ours(written),
                Some(written) => Origin::Theirs(written),
                None => Origin::Lease,
            };
            self.absorb_change(change, revision, &origin);
        }
        self.draft.seen = revision;
    }

    fn absorb_change(&mut self, change: &Change, revision: u64, origin: &Origin<'_>) {
        let mark = change.value.as_ref().map(|_| Mark { revision: change.revision, lease: change.lease });
        let (table, key) = match &change.place {
            Place::Written(table) => return self.etcd.set_mark(*table, WRITTEN.to_owned(), mark),
            Place::Object(table, key) => (*table, key),
        };
        self.etcd.set_mark(table, key.clone(), mark);
        if let Some(Reference::Endpoint(cluster, id)) = Reference::read(table, key) {
            self.move_term(&(cluster, id), change, origin);
        }
        match replay(&mut self.draft.world, (table, key), change.value.as_deref(), change.revision) {
            Ok(effect) => {
                self.draft.touched.extend(effect.touched);
                self.draft.noted.push((revision, origin.actor(key), effect.changes));
            }
            Err(error) => {
                self.metrics.store_unreadable.inc();
                tracing::error!(%error, "the object stays as it was; is a newer server at work?");
            }
        }
    }

    /// What a change of the store means to what keeps an endpoint here.
    fn move_term(&mut self, key: &Key, change: &Change, origin: &Origin<'_>) {
        self.doubted.0.remove(key);
        match (origin, &change.value) {
            // Whoever asked for it settles it.
            (Origin::Ours(_), _) => {}
            (Origin::Lease | Origin::Gap, None) => {
                let known = self.draft.world.endpoint(&key.0, &key.1);
                if let Some(endpoint) = known.filter(|_| self.leases.is_alive(key)) {
                    self.revivals.push_back((key.clone(), endpoint.as_ref().clone()));
                } else {
                    self.leases.end(key);
                    self.metrics.expired_leases.inc();
                    self.doubted.0.insert(key.clone());
                    self.doubted.1.get_or_insert_with(|| Instant::now() + DOUBT);
                }
            }
            (Origin::Theirs(_), None) => self.leases.end(key),
            (_, Some(_)) => {
                self.leases.replaced(key);
                // A registration by connection whose answer was lost: nobody will end it.
                if self.etcd.is_session(change.lease) {
                    self.leases.start(key, Lease::Connection, None, self.grace);
                }
            }
        }
    }

    /// What there is, compared with what is known.
    fn absorb_everything(&mut self, everything: Everything) {
        let Everything { revision, changes, .. } = everything;
        let mut gone: BTreeSet<(Table, String)> = self.etcd.known().into_iter().collect();
        for change in &changes {
            let known = match &change.place {
                Place::Written(table) => (*table, WRITTEN.to_owned()),
                Place::Object(table, key) => (*table, key.clone()),
            };
            if let Some(written) = written_by(change)
                && let Some(arrived) = self.in_flight.get_mut(&written.commit)
            {
                *arrived = Some(change.revision);
            }
            let mark = Mark { revision: change.revision, lease: change.lease };
            if self.etcd.mark(known.0, &known.1) != Some(mark) {
                self.absorb_change(change, revision, &Origin::Gap);
            }
            gone.remove(&known);
        }
        for (table, key) in gone.into_iter().filter(|(_, key)| key != WRITTEN) {
            let change = Change { revision, place: Place::Object(table, key), value: None, lease: 0 };
            self.absorb_change(&change, revision, &Origin::Gap);
        }
        self.draft.seen = revision;
    }
}

/// Who wrote the changes that this one is part of, if it says so.
fn written_by(change: &Change) -> Option<Written> {
    match (&change.place, &change.value) {
        (Place::Written(_), Some(value)) => serde_json::from_slice(value).ok(),
        _ => None,
    }
}

/// Who made a change.
enum Origin<'w> {
    Ours(&'w Written),
    Theirs(&'w Written),
    /// etcd, because a lease has ended.
    Lease,
    /// Nobody knows: it was found after a gap.
    Gap,
}

impl Origin<'_> {
    /// On whose behalf, for the timeline.
    fn actor(&self, key: &str) -> String {
        let by = |written: &Written| written.by.get(key).cloned().unwrap_or_default();
        match self {
            Self::Ours(written) => by(written),
            Self::Theirs(written) => format!("{} at {}", by(written), written.server),
            Self::Lease => "lease".to_owned(),
            Self::Gap => "another server".to_owned(),
        }
    }
}
