//! What a write does to a world: pure, so that a rehearsal and the real thing are the same code.

use std::{collections::BTreeSet, sync::Arc};

use config::{
    ClusterName, Endpoint, EndpointId, GatewayName, Service, ServiceName, Split, VersionName, Zone,
    manifest::{Document, DocumentRef, Errors, Located, ManifestError},
};

use super::{
    fit::{misfits, stranded},
    raw::{self, Raw},
    world::{Entry, World, declared},
};
use crate::{
    api::types::{Action, Change},
    kind::Kind,
    resource::Name,
};

/// A change that somebody asks for.
#[derive(Clone, Debug)]
pub enum Write {
    /// Every document, or none.
    Apply(Vec<Located>),
    /// The split of a service; `if_match` is the revision it must be at.
    Split {
        /// The service.
        service: ServiceName,
        /// Its new split.
        split: Split,
        /// The revision the service must be at.
        if_match: Option<u64>,
    },
    /// Remove an object.
    Delete {
        /// Which.
        object: DocumentRef,
        /// The revision it must be at.
        if_match: Option<u64>,
    },
    /// Register an endpoint, or register it anew.
    PutEndpoint {
        /// Its version.
        cluster: ClusterName,
        /// What it is.
        endpoint: Endpoint,
    },
    /// Put resources as they are, and remove such, all or nothing.
    Resources {
        /// To put.
        put: Vec<Raw>,
        /// To remove.
        remove: Vec<(Kind, Name)>,
    },
    /// Remove an endpoint.
    RemoveEndpoint {
        /// Its version.
        cluster: ClusterName,
        /// Which.
        id: EndpointId,
    },
}

/// Why a write was refused; nothing of it was done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The manifest does not fit together.
    #[error("the manifest is not valid")]
    Invalid(Vec<ManifestError>),
    /// A value of the request is wrong.
    #[error("{0}")]
    BadRequest(String),
    /// What it names is not there.
    #[error("{0}")]
    NotFound(String),
    /// Something still needs what it would remove.
    #[error("{0}")]
    InUse(String),
    /// It is not at the revision the writer saw.
    #[error("{0}")]
    Stale(String),
    /// The store did not take it.
    #[error("{0}")]
    Store(String),
    /// The store does not answer.
    #[error("{0}")]
    Unavailable(String),
    /// Too much is waiting already.
    #[error("{0}")]
    Busy(String),
}

/// What a write did.
#[derive(Debug, Default)]
pub struct Effect {
    /// For the answer and the timeline.
    pub changes: Vec<Change>,
    /// Objects to store or, when they are gone from the world, to remove from the store.
    pub documents: Vec<DocumentRef>,
    /// Endpoints likewise.
    pub endpoints: Vec<(ClusterName, EndpointId)>,
    /// Resources that were written as they are, likewise.
    pub raw: Vec<(Kind, Name)>,
    /// Resources to compile again.
    pub touched: Touched,
}

/// Resources that may be different, or gone.
#[derive(Debug, Default)]
pub struct Touched {
    /// Clusters.
    pub clusters: BTreeSet<ClusterName>,
    /// Load assignments.
    pub assignments: BTreeSet<ClusterName>,
    /// Endpoints, and the zones they are or were in.
    pub members: BTreeSet<(ClusterName, EndpointId, Option<Zone>)>,
    /// Services as the targets of gRPC clients.
    pub services: BTreeSet<ServiceName>,
    /// Resources that were written as they are.
    pub raw: BTreeSet<(Kind, Name)>,
    /// Listeners.
    pub listeners: BTreeSet<GatewayName>,
    /// Route configurations.
    pub routes: BTreeSet<GatewayName>,
}

impl Touched {
    /// Everything of `world`, to start from.
    pub fn everything(world: &World) -> Self {
        let clusters: BTreeSet<_> = world
            .services()
            .flat_map(|entry| entry.value.clusters().map(|(name, _)| name).collect::<Vec<_>>())
            .collect();
        let gateways: BTreeSet<_> = world.gateways().map(|entry| entry.value.name.clone()).collect();
        let services = world.services().map(|entry| entry.value.name.clone()).collect();
        let mut touched = Self {
            services,
            raw: world.raw.keys().cloned().collect(),
            assignments: clusters.clone(),
            listeners: gateways.clone(),
            routes: gateways,
            ..Self::default()
        };
        for cluster in &clusters {
            world.endpoints_of(cluster).iter().for_each(|endpoint| touched.member(cluster, endpoint));
        }
        touched.clusters = clusters;
        touched
    }

    fn member(&mut self, cluster: &ClusterName, endpoint: &Endpoint) {
        self.members.insert((cluster.clone(), endpoint.id.clone(), endpoint.zone.clone()));
    }

    /// Adds what `other` touched.
    pub fn extend(&mut self, other: Self) {
        self.clusters.extend(other.clusters);
        self.assignments.extend(other.assignments);
        self.members.extend(other.members);
        self.services.extend(other.services);
        self.raw.extend(other.raw);
        self.listeners.extend(other.listeners);
        self.routes.extend(other.routes);
    }
}

impl Effect {
    fn change(
        &mut self,
        action: Action,
        kind: &str,
        name: impl std::fmt::Display,
        detail: impl Into<String>,
    ) {
        let (kind, name) = (kind.to_owned(), name.to_string());
        self.changes.push(Change { action, kind, name, detail: detail.into() });
    }

    /// Whether anything is different afterwards.
    pub fn is_change(&self) -> bool {
        !self.documents.is_empty() || !self.endpoints.is_empty() || !self.raw.is_empty()
    }
}

/// Does `write` to `world`, whose changed objects get `revision`.
///
/// # Errors
/// A refusal; `world` may then be half changed and is to be thrown away.
pub fn perform(world: &mut World, write: &Write, revision: u64) -> Result<Effect, Refusal> {
    let mut effect = Effect::default();
    match write {
        Write::Apply(documents) => {
            let mut errors = Errors::default();
            for located in documents {
                errors.extend(stranded(world, located));
                put_document(world, located.document.clone(), revision, &mut effect);
            }
            misfits(world, documents, &mut errors);
            if !errors.is_empty() {
                return Err(Refusal::Invalid(errors.into_vec()));
            }
        }
        Write::Split { service, split, if_match } => {
            put_split(world, service, split, *if_match, revision, &mut effect)?;
        }
        Write::Delete { object, if_match } => delete(world, object, *if_match, &mut effect)?,
        Write::PutEndpoint { cluster, endpoint } => {
            version_exists(world, cluster)?;
            put_endpoint(world, cluster, endpoint, &mut effect);
        }
        Write::Resources { put, remove } => put_resources(world, put, remove, revision, &mut effect)?,
        Write::RemoveEndpoint { cluster, id } => {
            version_exists(world, cluster)?;
            if !take_endpoint(world, cluster, id, &mut effect) {
                return Err(Refusal::NotFound(format!("{cluster} has no registered endpoint `{id}`")));
            }
        }
    }
    Ok(effect)
}

/// Puts a document without asking whether it fits the rest.
pub(super) fn put_document(world: &mut World, document: Document, revision: u64, effect: &mut Effect) {
    let reference = document.reference();
    let before = match &document {
        Document::Service(s) => world.services.get(&s.name).map(|e| Document::Service((*e.value).clone())),
        Document::Gateway(g) => world.gateways.get(&g.name).map(|e| Document::Gateway((*e.value).clone())),
        Document::Route(r) => world.routes.get(&r.name).map(|e| Document::Route((*e.value).clone())),
    };
    let (kind, name) = kind_and_name(&reference);
    let action = match &before {
        Some(before) if *before == document => return effect.change(Action::Unchanged, kind, name, ""),
        Some(_) => Action::Updated,
        None => Action::Created,
    };
    let mut detail = String::new();
    match (&before, &document) {
        (Some(Document::Service(old)), Document::Service(new)) => {
            detail = split_detail(&old.split, &new.split);
            touch_service(world, Some(old), new, effect);
        }
        (_, Document::Service(new)) => touch_service(world, None, new, effect),
        (_, Document::Gateway(gateway)) => {
            effect.touched.listeners.insert(gateway.name.clone());
            effect.touched.routes.insert(gateway.name.clone());
        }
        (before, Document::Route(route)) => {
            if let Some(Document::Route(old)) = before {
                effect.touched.routes.insert(old.gateway.clone());
            }
            effect.touched.routes.insert(route.gateway.clone());
        }
    }
    effect.change(action, kind, name, detail);
    effect.documents.push(reference);
    world.put(document, revision);
}

/// Notes what differs between two forms of a service.
fn touch_service(world: &World, old: Option<&Service>, new: &Service, effect: &mut Effect) {
    let names = old.into_iter().chain([new]).flat_map(|s| s.versions.keys());
    for version in names.collect::<BTreeSet<_>>() {
        let cluster = ClusterName::new(new.name.clone(), version.clone());
        let before = old.and_then(|s| s.versions.get(version));
        let after = new.versions.get(version);
        let same = |s: &Service| s.protocol == new.protocol && s.tls == new.tls;
        if before.is_some() != after.is_some() || !old.is_some_and(same) {
            effect.touched.clusters.insert(cluster.clone());
        }
        if before != after {
            for address in before.into_iter().chain(after).flat_map(|version| &version.endpoints) {
                effect.touched.member(&cluster, &declared(*address));
            }
            effect.touched.assignments.insert(cluster);
        }
    }
    effect.touched.services.insert(new.name.clone());
    if old.is_none_or(|s| s.split != new.split) {
        touch_routes_to(world, &new.name, effect);
    }
}

fn touch_routes_to(world: &World, service: &ServiceName, effect: &mut Effect) {
    effect.touched.routes.extend(world.routes_to(service).map(|route| route.gateway.clone()));
}

fn put_split(
    world: &mut World,
    name: &ServiceName,
    split: &Split,
    if_match: Option<u64>,
    revision: u64,
    effect: &mut Effect,
) -> Result<(), Refusal> {
    let entry = existing(&world.services, name, "service", if_match)?;
    let service = &entry.value;
    if let Some(unknown) = split.weights().keys().find(|v| !service.versions.contains_key(*v)) {
        let declared = World::version_names(service);
        return Err(Refusal::BadRequest(format!(
            "weights.{unknown}: is not a version of {name}; declared: {declared}"
        )));
    }
    if service.split == *split {
        effect.change(Action::Unchanged, "Split", name, "");
        return Ok(());
    }
    effect.change(Action::Updated, "Split", name, split_detail(&service.split, split));
    let changed = Service { split: split.clone(), ..(*service).as_ref().clone() };
    touch_routes_to(world, name, effect);
    effect.touched.services.insert(name.clone());
    effect.documents.push(DocumentRef::Service(name.clone()));
    world.put(Document::Service(changed), revision);
    Ok(())
}

fn delete(
    world: &mut World,
    object: &DocumentRef,
    if_match: Option<u64>,
    effect: &mut Effect,
) -> Result<(), Refusal> {
    match object {
        DocumentRef::Service(name) => {
            let entry = existing(&world.services, name, "service", if_match)?;
            let users = world.routes_to(name).map(|route| route.name.as_str()).collect::<Vec<_>>();
            refuse_if_used(object, "routes", &users)?;
            refuse_if_registered(world, &entry.value)?;
        }
        DocumentRef::Gateway(name) => {
            existing(&world.gateways, name, "gateway", if_match)?;
            let users = world.routes_on(name).map(|route| route.name.as_str()).collect::<Vec<_>>();
            refuse_if_used(object, "routes", &users)?;
        }
        DocumentRef::Route(name) => {
            existing(&world.routes, name, "route", if_match)?;
        }
    }
    take_document(world, object, effect);
    Ok(())
}

/// Removes a document without asking whether something needs it. Nothing happens when it is not there.
pub(super) fn take_document(world: &mut World, object: &DocumentRef, effect: &mut Effect) {
    match object {
        DocumentRef::Service(name) => {
            let Some(entry) = world.take_service(name) else { return };
            for (cluster, version) in entry.value.clusters() {
                for address in &version.endpoints {
                    effect.touched.member(&cluster, &declared(*address));
                }
                effect.touched.clusters.insert(cluster.clone());
                effect.touched.assignments.insert(cluster);
            }
            effect.touched.services.insert(name.clone());
        }
        DocumentRef::Gateway(name) => {
            if world.gateways.remove(name).is_none() {
                return;
            }
            effect.touched.listeners.insert(name.clone());
            effect.touched.routes.insert(name.clone());
        }
        DocumentRef::Route(name) => {
            let Some(entry) = world.take_route(name) else { return };
            effect.touched.routes.insert(entry.value.gateway.clone());
        }
    }
    let (kind, name) = kind_and_name(object);
    effect.change(Action::Deleted, kind, name, "");
    effect.documents.push(object.clone());
}

fn refuse_if_used(object: &DocumentRef, what: &str, users: &[&str]) -> Result<(), Refusal> {
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    Err(Refusal::InUse(format!("{object} is used by {what}: {users}; remove or change them first")))
}

/// A registered endpoint is a running instance: it goes when it says so or its lease ends, not by
/// the way.
fn refuse_if_registered(world: &World, service: &Service) -> Result<(), Refusal> {
    let counts: Vec<(VersionName, usize)> = service
        .clusters()
        .map(|(cluster, _)| (cluster.version.clone(), registered(world, &cluster)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let (name, all) = (&service.name, counts.iter().map(|(_, count)| count).sum::<usize>());
    if all == 0 {
        return Ok(());
    }
    let each =
        counts.iter().map(|(version, count)| format!("{version}: {count}")).collect::<Vec<_>>().join(", ");
    let (endpoints, them) = endpoints(all);
    Err(Refusal::InUse(format!("Service {name} still has {endpoints} ({each}); remove {them} first")))
}

/// How many endpoints are registered with a version.
pub(super) fn registered(world: &World, cluster: &ClusterName) -> usize {
    world.endpoints.get(cluster).map_or(0, |members| members.by_id.len())
}

/// So many endpoints, and the word for them afterwards.
pub(super) fn endpoints(count: usize) -> (String, &'static str) {
    match count {
        1 => ("1 registered endpoint".to_owned(), "it"),
        n => (format!("{n} registered endpoints"), "them"),
    }
}

/// Puts and removes resources as they are; every fault of the request is told at once.
fn put_resources(
    world: &mut World,
    put: &[Raw],
    remove: &[(Kind, Name)],
    revision: u64,
    effect: &mut Effect,
) -> Result<(), Refusal> {
    let mut faults = Vec::new();
    let mut seen = BTreeSet::new();
    for (i, raw) in put.iter().enumerate() {
        let compiled = || {
            let what = raw::compiled(world, &raw.kind, &raw.name)?;
            Some(format!("name: `{}` is that of {what}, which is served by it", raw.name))
        };
        let twice = || (!seen.insert((&raw.kind, &raw.name))).then(|| "is in the request twice".to_owned());
        if let Some(fault) = raw.fault().or_else(compiled).or_else(twice) {
            faults.push(format!("put[{i}].{fault}"));
        }
    }
    for (i, (kind, name)) in remove.iter().enumerate() {
        if !seen.insert((kind, name)) {
            faults.push(format!("remove[{i}] is in the request twice"));
        } else if !world.raw.contains_key(&(kind.clone(), Arc::clone(name))) {
            faults.push(format!("remove[{i}]: there is no {kind} `{name}` that was put"));
        }
    }
    if !faults.is_empty() {
        return Err(Refusal::BadRequest(first_of(&faults)));
    }
    for key in remove {
        take_raw(world, key, effect);
    }
    for raw in put {
        put_raw(world, raw, revision, effect);
    }
    if world.raw.len() > raw::MAX_RESOURCES || world.raw_bytes > raw::MAX_BYTES {
        let (count, bytes) = (raw::MAX_RESOURCES, raw::MAX_BYTES);
        return Err(Refusal::BadRequest(format!(
            "put: there would be more than {count} resources, or more than {bytes} bytes of them"
        )));
    }
    Ok(())
}

/// Some faults in one sentence.
fn first_of(faults: &[String]) -> String {
    let shown = faults.iter().take(5).cloned().collect::<Vec<_>>().join("; ");
    match faults.len() {
        0..=5 => shown,
        n => format!("{shown}; and {} more", n - 5),
    }
}

/// Puts a resource as it is, without asking whether it fits the rest.
pub(super) fn put_raw(world: &mut World, raw: &Raw, revision: u64, effect: &mut Effect) {
    let key = (raw.kind.clone(), Arc::clone(&raw.name));
    let action = match world.raw.get(&key) {
        Some(before) if *before.value == *raw => {
            let name = format!("{} {}", raw.kind, raw.name);
            return effect.change(Action::Unchanged, "Resource", name, "");
        }
        Some(_) => Action::Updated,
        None => Action::Created,
    };
    world.put_raw(raw.clone(), revision);
    note_raw(action, &key, effect);
}

/// Removes a resource that was put as it is. Nothing happens when it is not there.
pub(super) fn take_raw(world: &mut World, key: &(Kind, Name), effect: &mut Effect) {
    if world.take_raw(key).is_some() {
        note_raw(Action::Deleted, key, effect);
    }
}

fn note_raw(action: Action, key: &(Kind, Name), effect: &mut Effect) {
    // Never the value: it may be secret.
    effect.change(action, "Resource", format!("{} {}", key.0, key.1), "");
    effect.raw.push(key.clone());
    effect.touched.raw.insert(key.clone());
}

/// The entry of `name`, at the revision the writer saw if it said one.
fn existing<K: Ord + std::fmt::Display, T>(
    map: &imbl::OrdMap<K, Entry<T>>,
    name: &K,
    kind: &str,
    if_match: Option<u64>,
) -> Result<Entry<T>, Refusal> {
    let entry = map.get(name).ok_or_else(|| Refusal::NotFound(format!("there is no {kind} `{name}`")))?;
    match if_match {
        Some(seen) if seen != entry.revision => Err(Refusal::Stale(format!(
            "{kind} `{name}` is at revision {}, not {seen}: somebody changed it; read it again",
            entry.revision
        ))),
        _ => Ok(entry.clone()),
    }
}

fn version_exists(world: &World, cluster: &ClusterName) -> Result<(), Refusal> {
    let Some(entry) = world.services.get(&cluster.service) else {
        return Err(Refusal::NotFound(format!("there is no service `{}`", cluster.service)));
    };
    if entry.value.versions.contains_key(&cluster.version) {
        return Ok(());
    }
    let declared = World::version_names(&entry.value);
    Err(Refusal::NotFound(format!(
        "service `{}` has no version `{}`; declared: {declared}",
        cluster.service, cluster.version
    )))
}

/// Puts an endpoint without asking whether its version exists.
pub(super) fn put_endpoint(
    world: &mut World,
    cluster: &ClusterName,
    endpoint: &Endpoint,
    effect: &mut Effect,
) {
    let action = match world.endpoint(cluster, &endpoint.id) {
        Some(before) if **before == *endpoint => {
            let name = format!("{cluster}/{}", endpoint.id);
            return effect.change(Action::Renewed, "Endpoint", name, "");
        }
        Some(before) => {
            effect.touched.member(cluster, before);
            Action::Updated
        }
        None => Action::Created,
    };
    effect.touched.member(cluster, endpoint);
    world.put_endpoint(cluster, Arc::new(endpoint.clone()));
    note_endpoint(action, cluster, &endpoint.id, format!("at {}", endpoint.address), effect);
}

/// Removes an endpoint; `false` when it is not there.
pub(super) fn take_endpoint(
    world: &mut World,
    cluster: &ClusterName,
    id: &EndpointId,
    effect: &mut Effect,
) -> bool {
    let Some(taken) = world.take_endpoint(cluster, id) else { return false };
    effect.touched.member(cluster, &taken);
    note_endpoint(Action::Deleted, cluster, id, String::new(), effect);
    true
}

fn note_endpoint(
    action: Action,
    cluster: &ClusterName,
    id: &EndpointId,
    detail: String,
    effect: &mut Effect,
) {
    effect.change(action, "Endpoint", format!("{cluster}/{id}"), detail);
    effect.endpoints.push((cluster.clone(), id.clone()));
    effect.touched.assignments.insert(cluster.clone());
}

/// What a shift did, as people say it: `v1 90% → 50%, v2 10% → 50%`.
fn split_detail(old: &Split, new: &Split) -> String {
    let versions: BTreeSet<&VersionName> = old.weights().keys().chain(new.weights().keys()).collect();
    let percent = |split: &Split, version: &VersionName| {
        let points = split.basis_points(version);
        if points.is_multiple_of(100) {
            format!("{}%", points / 100)
        } else {
            format!("{:.2}%", f64::from(points) / 100.0)
        }
    };
    let moved = versions.into_iter().filter(|v| old.basis_points(v) != new.basis_points(v));
    moved.map(|v| format!("{v} {} → {}", percent(old, v), percent(new, v))).collect::<Vec<_>>().join(", ")
}

fn kind_and_name(reference: &DocumentRef) -> (&'static str, &str) {
    match reference {
        DocumentRef::Service(name) => ("Service", name.as_str()),
        DocumentRef::Gateway(name) => ("Gateway", name.as_str()),
        DocumentRef::Route(name) => ("Route", name.as_str()),
    }
}

#[cfg(test)]
mod tests;
