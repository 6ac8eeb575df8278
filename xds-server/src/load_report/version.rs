//! The totals of one version: by locality, by endpoint, by reason for what was dropped.
//!
//! A locality's sums include those of its endpoints (`load_report.proto`: "aggregated over all the
//! upstream endpoints in the locality"), so an endpoint that is not registered, or no longer, needs no
//! row: what it did is in its locality.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use config::{Endpoint, EndpointId, Service, VersionName};
use imbl::{OrdMap, ordmap::DiffItem};

use super::{
    count::{Counts, Metrics},
    read::OfCluster,
};

/// How many localities a version keeps apart; those beyond are counted together.
pub(super) const MAX_LOCALITIES: usize = 64;
/// How many reasons for dropping a version keeps apart; those beyond are in its sum only.
const MAX_CATEGORIES: usize = 16;
/// Where localities beyond the bound are counted.
const OTHERS: &str = "(others)";

/// The endpoints a version has. Cheap to clone and to compare.
#[derive(Clone, Debug)]
pub(super) struct Members {
    /// Its service, whose manifest may name endpoints.
    pub(super) declared: Arc<Service>,
    /// Those registered.
    pub(super) registered: OrdMap<EndpointId, Arc<Endpoint>>,
}

impl Members {
    fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.declared, &other.declared) && self.registered.ptr_eq(&other.registered)
    }
}

/// What a version did since the server started, or since it was declared.
#[derive(Debug)]
pub(super) struct Version {
    pub(super) counts: Counts,
    pub(super) categories: BTreeMap<Box<str>, u64>,
    pub(super) localities: BTreeMap<Box<str>, Locality>,
    pub(super) endpoints: HashMap<SocketAddr, Row>,
    /// Since when it is not declared any more.
    pub(super) gone: Option<Instant>,
    members: Members,
    /// Ids of `members`, by address, which is what reports name them by.
    ids: HashMap<SocketAddr, EndpointId>,
}

#[derive(Debug, Default)]
pub(super) struct Locality {
    pub(super) counts: Counts,
    pub(super) metrics: Metrics,
}

/// A registered endpoint.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: EndpointId,
    pub(super) counts: Counts,
    pub(super) metrics: Metrics,
}

impl Version {
    pub(super) fn new(name: &VersionName, members: Members) -> Self {
        let mut ids = HashMap::new();
        declared(name, &members.declared, &mut ids);
        ids.extend(members.registered.values().map(|e| (e.address, e.id.clone())));
        Self {
            counts: Counts::default(),
            categories: BTreeMap::new(),
            localities: BTreeMap::new(),
            endpoints: HashMap::new(),
            gone: None,
            members,
            ids,
        }
    }

    /// Follows its endpoints. Costs what changed, not what there is.
    pub(super) fn follow(&mut self, name: &VersionName, members: Members) {
        self.gone = None;
        if self.members.same(&members) {
            return;
        }
        if Arc::ptr_eq(&self.members.declared, &members.declared) {
            let mut added = Vec::new();
            for change in self.members.registered.diff(&members.registered) {
                let old = match change {
                    DiffItem::Add(_, new) => {
                        added.push(new);
                        continue;
                    }
                    DiffItem::Update { old: (_, old), new: (_, new) } => {
                        added.push(new);
                        old
                    }
                    DiffItem::Remove(_, old) => old,
                };
                // Another one may be at that address already.
                if self.ids.get(&old.address) == Some(&old.id) {
                    self.ids.remove(&old.address);
                }
            }
            self.ids.extend(added.into_iter().map(|e| (e.address, e.id.clone())));
        } else {
            self.ids.clear();
            declared(name, &members.declared, &mut self.ids);
            self.ids.extend(members.registered.values().map(|e| (e.address, e.id.clone())));
        }
        self.members = members;
        let ids = &self.ids;
        self.endpoints.retain(|address, row| ids.get(address) == Some(&row.id));
    }

    /// The id of the endpoint at an address.
    pub(super) fn id(&self, address: SocketAddr) -> Option<&EndpointId> {
        self.ids.get(&address)
    }

    /// Adds what was reported; returns how many values were left out at a bound.
    pub(super) fn take(&mut self, report: &OfCluster) -> u64 {
        let mut refused = 0;
        self.counts.add(report.counts());
        for (category, count) in &report.categories {
            if !self.categories.contains_key(&**category) && self.categories.len() >= MAX_CATEGORIES {
                refused += 1;
                continue;
            }
            let sum = self.categories.entry(category.as_str().into()).or_default();
            *sum = sum.saturating_add(*count);
        }
        for reported in &report.localities {
            let full =
                !self.localities.contains_key(&*reported.name) && self.localities.len() >= MAX_LOCALITIES;
            let name = if full { OTHERS } else { &reported.name };
            let locality = self.localities.entry(name.into()).or_default();
            locality.counts.add(reported.counts);
            for (name, metric) in &reported.metrics {
                refused += u64::from(!locality.metrics.add(name, *metric));
            }
            for endpoint in &reported.endpoints {
                let Some(id) = self.ids.get(&endpoint.address) else { continue };
                let row = self.endpoints.entry(endpoint.address).or_insert_with(|| Row {
                    id: id.clone(),
                    counts: Counts::default(),
                    metrics: Metrics::default(),
                });
                row.counts.add(endpoint.counts);
                for (name, metric) in &endpoint.metrics {
                    refused += u64::from(!row.metrics.add(name, *metric));
                }
            }
        }
        refused
    }
}

/// The ids of endpoints that a manifest names.
fn declared(name: &VersionName, service: &Service, ids: &mut HashMap<SocketAddr, EndpointId>) {
    let addresses = service.versions.get(name).into_iter().flat_map(|version| &version.endpoints);
    ids.extend(addresses.filter_map(|address| {
        let id = format!("static-{}:{}", address.ip(), address.port());
        Some((*address, id.parse().ok()?))
    }));
}
