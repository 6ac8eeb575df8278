//! What a write does to a world: pure, so that a rehearsal and the real thing are the same code.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use config::{
    ClusterName, Endpoint, EndpointId, GatewayName, HostPattern, Protocol, Route, RouteMatch, RouteName,
    Service, ServiceName, Split, VersionName,
    manifest::{Document, DocumentRef, Located, ManifestError},
};

use super::world::{Entry, World};
use crate::api::types::{Action, Change};

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
        Self { assignments: clusters.clone(), clusters, listeners: gateways.clone(), routes: gateways }
    }

    /// Adds what `other` touched.
    pub fn extend(&mut self, other: Self) {
        self.clusters.extend(other.clusters);
        self.assignments.extend(other.assignments);
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
        !self.documents.is_empty() || !self.endpoints.is_empty()
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
            for located in documents {
                put_document(world, located.document.clone(), revision, &mut effect);
            }
            let errors = misfits(world, documents);
            if !errors.is_empty() {
                return Err(Refusal::Invalid(errors));
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
        Write::RemoveEndpoint { cluster, id } => {
            version_exists(world, cluster)?;
            if world.take_endpoint(cluster, id).is_none() {
                return Err(Refusal::NotFound(format!("{cluster} has no registered endpoint `{id}`")));
            }
            note_endpoint(Action::Deleted, cluster, id, String::new(), &mut effect);
        }
    }
    Ok(effect)
}

fn put_document(world: &mut World, document: Document, revision: u64, effect: &mut Effect) {
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
            for version in old.versions.keys().filter(|v| !new.versions.contains_key(*v)) {
                drop_endpoints(world, &ClusterName::new(new.name.clone(), version.clone()), effect);
            }
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
        if before.is_some() != after.is_some() || old.is_none_or(|s| s.protocol != new.protocol) {
            effect.touched.clusters.insert(cluster.clone());
        }
        if before != after {
            effect.touched.assignments.insert(cluster);
        }
    }
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
            for (cluster, _) in entry.value.clusters() {
                effect.touched.clusters.insert(cluster.clone());
                effect.touched.assignments.insert(cluster.clone());
                drop_endpoints(world, &cluster, effect);
            }
            world.services.remove(name);
        }
        DocumentRef::Gateway(name) => {
            existing(&world.gateways, name, "gateway", if_match)?;
            let users = world.routes_on(name).map(|route| route.name.as_str()).collect::<Vec<_>>();
            refuse_if_used(object, "routes", &users)?;
            effect.touched.listeners.insert(name.clone());
            effect.touched.routes.insert(name.clone());
            world.gateways.remove(name);
        }
        DocumentRef::Route(name) => {
            let entry = existing(&world.routes, name, "route", if_match)?;
            effect.touched.routes.insert(entry.value.gateway.clone());
            world.take_route(name);
        }
    }
    let (kind, name) = kind_and_name(object);
    effect.change(Action::Deleted, kind, name, "");
    effect.documents.push(object.clone());
    Ok(())
}

fn refuse_if_used(object: &DocumentRef, what: &str, users: &[&str]) -> Result<(), Refusal> {
    if users.is_empty() {
        return Ok(());
    }
    let users = users.join(", ");
    Err(Refusal::InUse(format!("{object} is used by {what}: {users}; remove or change them first")))
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

fn put_endpoint(world: &mut World, cluster: &ClusterName, endpoint: &Endpoint, effect: &mut Effect) {
    let action = match world.endpoint(cluster, &endpoint.id) {
        Some(before) if **before == *endpoint => {
            let name = format!("{cluster}/{}", endpoint.id);
            return effect.change(Action::Renewed, "Endpoint", name, "");
        }
        Some(_) => Action::Updated,
        None => Action::Created,
    };
    world.put_endpoint(cluster.clone(), Arc::new(endpoint.clone()));
    note_endpoint(action, cluster, &endpoint.id, format!("at {}", endpoint.address), effect);
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

fn drop_endpoints(world: &mut World, cluster: &ClusterName, effect: &mut Effect) {
    let Some(by_id) = world.endpoints.remove(cluster) else { return };
    for id in by_id.keys() {
        note_endpoint(Action::Deleted, cluster, id, "its version was removed".to_owned(), effect);
    }
}

/// What does not fit together after an apply. Checks what the documents could have broken, in their
/// own order, so that the errors point at the text that was sent.
fn misfits(world: &World, documents: &[Located]) -> Vec<ManifestError> {
    let mut errors = Vec::new();
    let mut fault =
        |located: &Located, path: String, message: String| errors.push(located.error(path, message));
    let mut gateways = BTreeSet::new();
    for located in documents {
        match &located.document {
            Document::Service(service) if service.protocol == Protocol::Tcp => {
                for route in world.routes_to(&service.name) {
                    let message = format!("is tcp, but route {} leads HTTP requests to it", route.name);
                    fault(located, "protocol".to_owned(), message);
                }
            }
            Document::Service(_) => {}
            Document::Gateway(gateway) => {
                let same = |other: &&Entry<config::Gateway>| {
                    other.value.name != gateway.name
                        && other.value.listen == gateway.listen
                        && gateway.listen.port() != 0
                };
                if let Some(other) = world.gateways().find(same) {
                    let message = format!("{} is taken by gateway {}", gateway.listen, other.value.name);
                    fault(located, "listen".to_owned(), message);
                }
            }
            Document::Route(route) => {
                gateways.insert(route.gateway.clone());
                for (path, message) in dangling(world, route) {
                    fault(located, path, message);
                }
            }
        }
    }
    for gateway in gateways {
        for (route, path, message) in overlaps(world, &gateway) {
            let of_route = |l: &&Located| matches!(&l.document, Document::Route(r) if r.name == route);
            if let Some(located) = documents.iter().find(of_route) {
                fault(located, path, message);
            }
        }
    }
    errors
}

/// What a route names that is not there.
fn dangling(world: &World, route: &Route) -> Vec<(String, String)> {
    let mut faults = Vec::new();
    if world.gateway(&route.gateway).is_none() {
        faults.push(("gateway".to_owned(), format!("there is no gateway `{}`", route.gateway)));
    }
    for (i, rule) in route.rules.iter().enumerate() {
        let path = format!("rules[{i}].service");
        match world.service(&rule.service) {
            None => faults.push((path, format!("there is no service `{}`", rule.service))),
            Some(entry) if entry.value.protocol == Protocol::Tcp => {
                let message =
                    format!("service `{}` is tcp; a route leads to http, h2c or grpc", rule.service);
                faults.push((path, message));
            }
            Some(_) => {}
        }
    }
    faults
}

/// Rules of different routes that match the same requests: which one applies would be chance. The
/// fault is with the route whose name comes later, and with both when the first was sent as well.
fn overlaps(world: &World, gateway: &GatewayName) -> Vec<(RouteName, String, String)> {
    let mut seen: HashMap<(&HostPattern, &RouteMatch), &RouteName> = HashMap::new();
    let mut faults = Vec::new();
    for route in world.routes_on(gateway) {
        for host in &route.hosts {
            for (i, rule) in route.rules.iter().enumerate() {
                let Some(first) = seen.insert((host, &rule.matches), &route.name) else { continue };
                let path = format!("rules[{i}].match");
                let message =
                    |other| format!("route {other} already matches the same requests on host `{host}`");
                faults.push((route.name.clone(), path.clone(), message(first)));
                faults.push((first.clone(), "rules".to_owned(), message(&route.name)));
            }
        }
    }
    faults
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
