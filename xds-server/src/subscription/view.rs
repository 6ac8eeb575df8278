//! Where each resource stands with a client, for people and for CSDS.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use super::{
    Session,
    interest::{Held, Interest},
    reply::Sent,
};
use crate::{
    kind::Kind,
    resource::{Name, Resource, Version},
    snapshot::Snapshot,
};

/// Where a resource stands with a client (`envoy.service.status.v3.ConfigStatus`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The client has acknowledged what there is.
    Synced,
    /// The client asked for it and has been sent nothing, for there is none, or not yet.
    NotSent,
    /// What there is has not been acknowledged, or not been sent.
    Stale,
    /// The client refused what there is.
    Error,
}

/// One resource and one client.
#[derive(Clone, Debug, PartialEq)]
pub struct Standing {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// Where it stands.
    pub status: Status,
    /// What there is; `None` when there is none.
    pub resource: Option<Arc<Resource>>,
    /// What the client acknowledged last, as far as this stream knows.
    pub acknowledged: Option<Version>,
    /// Why the client refused it.
    pub reason: Option<Arc<str>>,
}

impl Session {
    /// Where every resource stands that the client asked for.
    pub fn standings(&self) -> Vec<Standing> {
        let asked = self.interests.iter().filter(|interest| interest.asked);
        asked.flat_map(|interest| interest.standings(&self.snapshot)).collect()
    }
}

impl Interest {
    fn standings(&self, snapshot: &Snapshot) -> Vec<Standing> {
        let resources = snapshot.resources(&self.shelf).keys().filter(|name| self.names.wants(name));
        let opened = self.open.keys().filter(|name| !self.names.has_collection(name));
        let names: BTreeSet<&Name> = resources.chain(self.names.single()).chain(opened).collect();
        let unanswered = self.unanswered.by_name();
        names.into_iter().map(|name| self.standing(name, &unanswered, snapshot)).collect()
    }

    fn standing(&self, name: &Name, unanswered: &HashMap<&str, &Sent>, snapshot: &Snapshot) -> Standing {
        let resource = snapshot.resource(&self.shelf, name).cloned();
        let version = resource.as_ref().map(|resource| resource.version);
        let held = match self.open.get(name) {
            Some(open) => open.held.clone(),
            None if self.is_fresh(name) => Held::Nothing,
            None => self.settled(name, snapshot),
        };
        let held = if let Held::Version(held, _) = held { held } else { None };
        let (status, acknowledged, reason) = if let Some(refusal) = self.refused.get(name) {
            (Status::Error, refusal.before, Some(Arc::clone(&refusal.reason)))
        } else if let Some(sent) = unanswered.get(&**name) {
            (Status::Stale, sent.before, None)
        } else if held.is_none() {
            (Status::NotSent, None, None)
        } else if held == version {
            (Status::Synced, held, None)
        } else {
            (Status::Stale, held, None)
        };
        Standing {
            kind: self.shelf.0.clone(),
            name: Arc::clone(name),
            status,
            resource,
            acknowledged,
            reason,
        }
    }
}
