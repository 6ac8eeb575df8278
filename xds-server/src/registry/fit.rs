//! Whether the documents of an apply fit the world they make, and the one they change. Checks what
//! they could have broken, and points at the text that was sent.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
};

use config::{
    ClusterName, GatewayName, HostPattern, Protocol, Route, RouteMatch, RouteName, Service, Split,
    VersionName,
    manifest::{Document, Errors, Located, ManifestError},
};

use crate::{kind::Kind, resource::Name};

use super::{
    world::World,
    write::{endpoints, registered},
};

/// Versions that `located` no longer has though instances are registered with them. `world` is what
/// was before it.
pub(super) fn stranded(world: &World, located: &Located) -> Vec<ManifestError> {
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
pub(super) fn misfits(world: &World, documents: &[Located], errors: &mut Errors) {
    errors.extend(documents.iter().flat_map(|located| taken(world, located)));
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

/// Resources that were written as they are, under names that a document would be served by.
fn taken(world: &World, located: &Located) -> Vec<ManifestError> {
    use Kind::{Cluster, Listener, LoadAssignment, RouteConfiguration};
    let mut names = Vec::new();
    match &located.document {
        Document::Service(service) => {
            let clusters = service.clusters().map(|(cluster, _)| cluster.to_string());
            names.extend(clusters.flat_map(|name| [(Cluster, name.clone()), (LoadAssignment, name)]));
            let name = service.name.to_string();
            names.extend([(Listener, name.clone()), (RouteConfiguration, name)]);
        }
        Document::Gateway(gateway) => {
            let name = gateway.name.to_string();
            names.extend([(Listener, name.clone()), (RouteConfiguration, name)]);
        }
        Document::Route(_) => {}
    }
    let there = names
        .into_iter()
        .filter(|(kind, name)| world.raw.contains_key(&(kind.clone(), Name::from(name.as_str()))));
    let message = |(kind, name)| {
        format!(
            "a {kind} resource `{name}` was put by POST /v1/xds/resources; remove it, or choose another name"
        )
    };
    there.map(|taken| located.error("name", message(taken))).collect()
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
