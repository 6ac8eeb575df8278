//! What a write does to a world: pure, so that a rehearsal and the real thing are the same code.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use config::{
    ClusterName, Endpoint, EndpointId, GatewayName, HostPattern, Protocol, Route, RouteMatch, RouteName,
    Service, ServiceName, Split, VersionName,
    manifest::{Document, DocumentRef, Errors, Located, ManifestError},
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
            refuse_if_registered(world, &entry.value)?;
            for (cluster, _) in entry.value.clusters() {
                effect.touched.clusters.insert(cluster.clone());
                effect.touched.assignments.insert(cluster);
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
fn registered(world: &World, cluster: &ClusterName) -> usize {
    world.endpoints.get(cluster).map_or(0, imbl::OrdMap::len)
}

/// So many endpoints, and the word for them afterwards.
fn endpoints(count: usize) -> (String, &'static str) {
    match count {
        1 => ("1 registered endpoint".to_owned(), "it"),
        n => (format!("{n} registered endpoints"), "them"),
    }
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

/// Versions that `located` no longer has though instances are registered with them. `world` is what
/// was before it.
fn stranded(world: &World, located: &Located) -> Vec<ManifestError> {
    let Document::Service(new) = &located.document else { return Vec::new() };
    let Some(old) = world.service(&new.name) else { return Vec::new() };
    let gone = old.value.clusters().filter(|(cluster, _)| !new.versions.contains_key(&cluster.version));
    let fault = |cluster: &ClusterName, count| {
        let (endpoints, them) = endpoints(count);
        let version = &cluster.version;
        let remedy = format!("remove {them} first, or keep the version");
        located.error("versions", format!("version {version} still has {endpoints}; {remedy}"))
    };
    let counted = gone.map(|(cluster, _)| (registered(world, &cluster), cluster));
    counted.filter(|(count, _)| *count > 0).map(|(count, cluster)| fault(&cluster, count)).collect()
}

/// Gives services that exist the split they have, where the versions it sends traffic to are still
/// there: for a manifest that declares what there is rather than asks for a shift.
pub fn keep_splits(world: &World, documents: &mut [Located]) {
    for located in documents {
        if let Document::Service(new) = &mut located.document
            && let Some(split) = world.split(&new.name).and_then(|live| live_among(live, new))
        {
            new.split = split;
        }
    }
}

/// `live`, without zero weights of versions that `service` no longer has; `None` when one of those
/// has traffic.
fn live_among(live: &Split, service: &Service) -> Option<Split> {
    let exists = |version: &VersionName| service.versions.contains_key(version);
    if live.weights().iter().any(|(version, weight)| *weight > 0 && !exists(version)) {
        return None;
    }
    let kept = live.weights().iter().filter(|(version, _)| exists(version));
    // The total is what it was, so this is a split.
    Split::new(kept.map(|(version, weight)| (version.clone(), *weight)).collect()).ok()
}

/// What does not fit together after an apply. Checks what the documents could have broken, in their
/// own order, so that the errors point at the text that was sent.
fn misfits(world: &World, documents: &[Located], errors: &mut Errors) {
    let listeners = listeners(world, documents);
    let mut routes: HashMap<&RouteName, &Located> = HashMap::new();
    let mut gateways = BTreeSet::new();
    for located in documents {
        match &located.document {
            Document::Service(service) if service.protocol == Protocol::Tcp => {
                for route in world.routes_to(&service.name) {
                    let message = format!("is tcp, but route {} leads HTTP requests to it", route.name);
                    errors.push(located.error("protocol", message));
                }
            }
            Document::Service(_) => {}
            Document::Gateway(gateway) => {
                let there = listeners.get(&gateway.listen).into_iter().flatten();
                if let Some(other) = there.into_iter().find(|name| ***name != gateway.name) {
                    let message = format!("{} is taken by gateway {other}", gateway.listen);
                    errors.push(located.error("listen", message));
                }
            }
            Document::Route(route) => {
                gateways.insert(&route.gateway);
                routes.insert(&route.name, located);
                errors.extend(
                    dangling(world, route).into_iter().map(|(path, message)| located.error(path, message)),
                );
            }
        }
    }
    for gateway in gateways {
        overlaps(world, gateway, |route, path, message| {
            if let Some(located) = routes.get(route) {
                errors.push(located.error(path, message()));
            }
        });
    }
}

/// Who listens where a gateway of `documents` listens: two of them a place, by name, which is enough
/// to find another. Any number of gateways may leave the port to the proxy.
fn listeners<'w>(world: &'w World, documents: &[Located]) -> HashMap<SocketAddr, Vec<&'w GatewayName>> {
    let listen = |located: &Located| match &located.document {
        Document::Gateway(gateway) if gateway.listen.port() != 0 => Some(gateway.listen),
        _ => None,
    };
    let wanted: HashSet<SocketAddr> = documents.iter().filter_map(listen).collect();
    let mut listeners: HashMap<SocketAddr, Vec<&GatewayName>> = HashMap::new();
    if wanted.is_empty() {
        return listeners;
    }
    for gateway in world.gateways().map(|entry| &entry.value).filter(|g| wanted.contains(&g.listen)) {
        let there = listeners.entry(gateway.listen).or_default();
        if there.len() < 2 {
            there.push(&gateway.name);
        }
    }
    listeners
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
fn overlaps(
    world: &World,
    gateway: &GatewayName,
    mut fault: impl FnMut(&RouteName, String, &dyn Fn() -> String),
) {
    let mut seen: HashMap<(&HostPattern, &RouteMatch), &RouteName> = HashMap::new();
    for route in world.routes_on(gateway) {
        for host in &route.hosts {
            for (i, rule) in route.rules.iter().enumerate() {
                let Some(first) = seen.insert((host, &rule.matches), &route.name) else { continue };
                let message = |other: &RouteName| {
                    format!("route {other} already matches the same requests on host `{host}`")
                };
                fault(&route.name, format!("rules[{i}].match"), &|| message(first));
                fault(first, "rules".to_owned(), &|| message(&route.name));
            }
        }
    }
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
mod tests {
    use config::{Health, Lease, manifest};

    use super::*;

    fn apply(world: &World, text: &str) -> (World, Result<Effect, Refusal>) {
        let mut after = world.clone();
        let documents = manifest::parse("m", text).unwrap();
        let done = perform(&mut after, &Write::Apply(documents), 1);
        (after, done)
    }

    fn world(text: &str) -> World {
        let (world, done) = apply(&World::default(), text);
        done.unwrap();
        world
    }

    fn register(world: &mut World, cluster: &str, id: &str) {
        let endpoint = Endpoint {
            id: id.parse().unwrap(),
            address: "127.0.0.1:1".parse().unwrap(),
            weight: 1,
            zone: None,
            health: Health::Ready,
            lease: Lease::Permanent,
        };
        let write = Write::PutEndpoint { cluster: cluster.parse().unwrap(), endpoint };
        perform(world, &write, 2).unwrap();
    }

    fn faults(world: &World, text: &str) -> Vec<String> {
        match apply(world, text).1 {
            Err(Refusal::Invalid(errors)) => errors.iter().map(ToString::to_string).collect(),
            other => panic!("{other:?}"),
        }
    }

    const SHOP: &str =
        "kind: Service\nname: shop\nversions: {v1: {}, v2: {}, v3: {}}\nsplit: {weights: {v1: 1}}\n";
    const WITHOUT_V2: &str = "kind: Service\nname: shop\nversions: {v1: {}}\n";

    #[test]
    fn a_version_with_running_instances_is_not_dropped_by_the_way() {
        let mut world = world(SHOP);
        register(&mut world, "shop/v2", "a");
        let one =
            "m:3: versions: version v2 still has 1 registered endpoint; remove it first, or keep the version";
        assert_eq!(faults(&world, WITHOUT_V2), [one]);
        register(&mut world, "shop/v2", "b");
        register(&mut world, "shop/v2", "c");
        let three = "m:3: versions: version v2 still has 3 registered endpoints; remove them first, or keep the version";
        assert_eq!(faults(&world, WITHOUT_V2), [three]);
        for id in ["a", "b", "c"] {
            world.take_endpoint(&"shop/v2".parse().unwrap(), &id.parse().unwrap());
        }
        assert!(apply(&world, WITHOUT_V2).1.unwrap().is_change());
    }

    #[test]
    fn a_service_with_running_instances_is_not_deleted() {
        let mut world = world(SHOP);
        for (cluster, id) in [("shop/v1", "a"), ("shop/v1", "b"), ("shop/v2", "a")] {
            register(&mut world, cluster, id);
        }
        let delete = Write::Delete { object: DocumentRef::Service("shop".parse().unwrap()), if_match: None };
        let refused = perform(&mut world.clone(), &delete, 3).unwrap_err();
        let why = "Service shop still has 3 registered endpoints (v1: 2, v2: 1); remove them first";
        assert_eq!(refused, Refusal::InUse(why.to_owned()));
        for (cluster, id) in [("shop/v1", "a"), ("shop/v1", "b"), ("shop/v2", "a")] {
            world.take_endpoint(&cluster.parse().unwrap(), &id.parse().unwrap());
        }
        assert!(perform(&mut world, &delete, 3).unwrap().is_change());
    }

    #[test]
    fn gateways_share_no_place_unless_the_proxy_chooses_it() {
        let gateway =
            |name: &str, port: u16| format!("kind: Gateway\nname: {name}\nlisten: 127.0.0.1:{port}\n---\n");
        let world = world(&(gateway("a", 80) + &gateway("b", 0) + &gateway("c", 0)));
        assert_eq!(faults(&world, &gateway("d", 80)), ["m:3: listen: 127.0.0.1:80 is taken by gateway a"]);
        assert_eq!(faults(&world, &(gateway("d", 81) + &gateway("e", 81))).len(), 2);
        // The same gateway again, one that leaves for another place, and one that takes what is free now.
        for fine in [gateway("a", 80), gateway("d", 0), gateway("a", 81) + &gateway("d", 80)] {
            assert!(apply(&world, &fine).1.is_ok(), "{fine}");
        }
    }

    #[test]
    fn as_many_faults_are_reported_as_anybody_reads() {
        let route = |i: usize| format!("kind: Route\nname: r{i}\ngateway: g\nrules: [{{service: s}}]\n---\n");
        let text = (0..150).map(route).collect::<Vec<_>>().concat();
        assert_eq!(faults(&World::default(), &text).len(), manifest::MAX_ERRORS + 1);
    }

    #[test]
    fn a_live_split_is_kept_while_its_versions_are_there() {
        let world = world(SHOP);
        let kept = |split: &str, text: &str| {
            let mut world = world.clone();
            let weights = serde_json::from_str(split).unwrap();
            let service = "shop".parse().unwrap();
            let write = Write::Split { service, split: Split::new(weights).unwrap(), if_match: None };
            perform(&mut world, &write, 2).unwrap();
            let mut documents = manifest::parse("m", text).unwrap();
            keep_splits(&world, &mut documents);
            match documents.remove(0).document {
                Document::Service(service) => serde_json::to_string(service.split.weights()).unwrap(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(kept(r#"{"v1":1,"v2":3}"#, SHOP), r#"{"v1":1,"v2":3}"#);
        assert_eq!(kept(r#"{"v1":5,"v2":0}"#, WITHOUT_V2), r#"{"v1":5}"#);
        assert_eq!(kept(r#"{"v1":1,"v2":3}"#, WITHOUT_V2), r#"{"v1":1}"#);
        let other = WITHOUT_V2.replace("shop", "new");
        assert_eq!(kept(r#"{"v2":3}"#, &other), r#"{"v1":1}"#);
    }
}
