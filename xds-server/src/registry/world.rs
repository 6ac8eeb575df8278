//! The domain as one immutable value: what is declared and what is registered.
//!
//! Persistent maps make a new world out of an old one in time that does not grow with its size, so
//! the writer tries a write on a copy and throws the copy away when it is refused.

use std::{net::SocketAddr, sync::Arc};

use config::{
    ClusterName, Endpoint, EndpointId, Gateway, GatewayName, Lease, Route, RouteName, Service, ServiceName,
    Split, VersionName, Zone, manifest::Document,
};
use imbl::{OrdMap, OrdSet};

use super::{compile, raw::Raw};
use crate::{kind::Kind, resource::Name};

/// An object and the revision that last changed it.
#[derive(Debug)]
pub struct Entry<T> {
    /// The revision that made it what it is.
    pub revision: u64,
    /// What it is.
    pub value: Arc<T>,
}

impl<T> Clone for Entry<T> {
    fn clone(&self) -> Self {
        Self { revision: self.revision, value: Arc::clone(&self.value) }
    }
}

/// The registered endpoints of a version, and what is known of them without looking at each.
#[derive(Clone, Debug, Default)]
pub struct Members {
    pub(super) by_id: OrdMap<EndpointId, Arc<Endpoint>>,
    /// A hash over all of them, independent of their order.
    pub(super) digest: u64,
    /// How many are in each zone.
    pub(super) zones: OrdMap<Option<Zone>, usize>,
}

impl Members {
    fn put(&mut self, cluster: &ClusterName, endpoint: Arc<Endpoint>) {
        self.take(cluster, &endpoint.id.clone());
        self.digest = self.digest.wrapping_add(compile::digest(cluster, &endpoint));
        *self.zones.entry(endpoint.zone.clone()).or_default() += 1;
        self.by_id.insert(endpoint.id.clone(), endpoint);
    }

    fn take(&mut self, cluster: &ClusterName, id: &EndpointId) -> Option<Arc<Endpoint>> {
        let taken = self.by_id.remove(id)?;
        self.digest = self.digest.wrapping_sub(compile::digest(cluster, &taken));
        if let Some(count) = self.zones.get_mut(&taken.zone) {
            *count -= 1;
            if *count == 0 {
                self.zones.remove(&taken.zone);
            }
        }
        Some(taken)
    }
}

/// Every object, by name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub(super) services: OrdMap<ServiceName, Entry<Service>>,
    pub(super) gateways: OrdMap<GatewayName, Entry<Gateway>>,
    pub(super) routes: OrdMap<RouteName, Entry<Route>>,
    /// Registered endpoints; those of the manifest live in their service.
    pub(super) endpoints: OrdMap<ClusterName, Members>,
    /// The endpoints that manifests have; versions without any are left out.
    pub(super) declared: OrdMap<ClusterName, Members>,
    /// Resources that were written as they are.
    pub(super) raw: OrdMap<(Kind, Name), Entry<Raw>>,
    /// How large their values are together, in bytes.
    pub(super) raw_bytes: usize,
    /// Which routes lead to a service, so that a new split finds the gateways it concerns without
    /// reading every route.
    routes_to: OrdMap<ServiceName, OrdSet<RouteName>>,
    routes_on: OrdMap<GatewayName, OrdSet<RouteName>>,
}

impl World {
    /// Services by name.
    pub fn services(&self) -> impl Iterator<Item = &Entry<Service>> {
        self.services.values()
    }

    /// Gateways by name.
    pub fn gateways(&self) -> impl Iterator<Item = &Entry<Gateway>> {
        self.gateways.values()
    }

    /// Routes by name.
    pub fn routes(&self) -> impl Iterator<Item = &Entry<Route>> {
        self.routes.values()
    }

    /// One service.
    pub fn service(&self, name: &ServiceName) -> Option<&Entry<Service>> {
        self.services.get(name)
    }

    /// One gateway.
    pub fn gateway(&self, name: &GatewayName) -> Option<&Entry<Gateway>> {
        self.gateways.get(name)
    }

    /// Resources that were written as they are, by type and name.
    pub fn raw(&self) -> impl Iterator<Item = &Entry<Raw>> {
        self.raw.values()
    }

    /// Whether the resource was written as it is.
    pub fn is_raw(&self, kind: &Kind, name: &Name) -> bool {
        !self.raw.is_empty() && self.raw.contains_key(&(kind.clone(), Arc::clone(name)))
    }

    /// Puts a resource as it is.
    pub(super) fn put_raw(&mut self, raw: Raw, revision: u64) {
        let key = (raw.kind.clone(), Arc::clone(&raw.name));
        self.raw_bytes += raw.value.len();
        let before = self.raw.insert(key, Entry { revision, value: Arc::new(raw) });
        self.raw_bytes -= before.map_or(0, |entry| entry.value.value.len());
    }

    /// Removes a resource that was written as it is.
    pub(super) fn take_raw(&mut self, key: &(Kind, Name)) -> Option<Entry<Raw>> {
        let taken = self.raw.remove(key)?;
        self.raw_bytes -= taken.value.value.len();
        Some(taken)
    }

    /// The split of a service.
    pub fn split(&self, name: &ServiceName) -> Option<&Split> {
        self.services.get(name).map(|entry| &entry.value.split)
    }

    /// One registered endpoint.
    pub fn endpoint(&self, cluster: &ClusterName, id: &EndpointId) -> Option<&Arc<Endpoint>> {
        self.endpoints.get(cluster)?.by_id.get(id)
    }

    /// The registered endpoints of a version. Cheap, however many they are.
    pub fn registered_with(&self, cluster: &ClusterName) -> OrdMap<EndpointId, Arc<Endpoint>> {
        self.endpoints.get(cluster).map(|members| members.by_id.clone()).unwrap_or_default()
    }

    /// Every registered endpoint.
    pub fn registered(&self) -> impl Iterator<Item = (&ClusterName, &Arc<Endpoint>)> {
        self.endpoints.iter().flat_map(|(cluster, members)| members.by_id.values().map(move |e| (cluster, e)))
    }

    /// The endpoints of a version: those of its manifest, then those registered, by id.
    pub fn endpoints_of(&self, cluster: &ClusterName) -> Vec<Arc<Endpoint>> {
        let registered = self.endpoints.get(cluster).into_iter().flat_map(|members| members.by_id.values());
        self.declared_endpoints(cluster).chain(registered).map(Arc::clone).collect()
    }

    /// The endpoints that the manifest of a version has.
    pub(super) fn declared_endpoints(&self, cluster: &ClusterName) -> impl Iterator<Item = &Arc<Endpoint>> {
        self.declared.get(cluster).into_iter().flat_map(|members| members.by_id.values())
    }

    /// The service of a version, if the version exists.
    pub fn service_of(&self, cluster: &ClusterName) -> Option<&Service> {
        let service = &self.services.get(&cluster.service)?.value;
        service.versions.contains_key(&cluster.version).then_some(service)
    }

    /// The routes attached to a gateway, by name.
    pub fn routes_on(&self, gateway: &GatewayName) -> impl Iterator<Item = &Route> {
        let names = self.routes_on.get(gateway).into_iter().flatten();
        names.filter_map(|name| self.routes.get(name)).map(|entry| &*entry.value)
    }

    /// The routes that lead to a service, by name.
    pub fn routes_to(&self, service: &ServiceName) -> impl Iterator<Item = &Route> {
        let names = self.routes_to.get(service).into_iter().flatten();
        names.filter_map(|name| self.routes.get(name)).map(|entry| &*entry.value)
    }

    /// Puts a document without asking whether it fits the rest.
    pub(super) fn put(&mut self, document: Document, revision: u64) {
        match document {
            Document::Service(service) => {
                self.take_service(&service.name);
                for (cluster, version) in service.clusters() {
                    let mut members = Members::default();
                    for address in &version.endpoints {
                        members.put(&cluster, Arc::new(declared(*address)));
                    }
                    if !members.by_id.is_empty() {
                        self.declared.insert(cluster, members);
                    }
                }
                self.services.insert(service.name.clone(), Entry { revision, value: Arc::new(service) });
            }
            Document::Gateway(gateway) => {
                self.gateways.insert(gateway.name.clone(), Entry { revision, value: Arc::new(gateway) });
            }
            Document::Route(route) => {
                self.take_route(&route.name.clone());
                for rule in &route.rules {
                    self.routes_to.entry(rule.service.clone()).or_default().insert(route.name.clone());
                }
                self.routes_on.entry(route.gateway.clone()).or_default().insert(route.name.clone());
                self.routes.insert(route.name.clone(), Entry { revision, value: Arc::new(route) });
            }
        }
    }

    /// Removes a service and the endpoints that its manifest has.
    pub(super) fn take_service(&mut self, name: &ServiceName) -> Option<Entry<Service>> {
        let entry = self.services.remove(name)?;
        for (cluster, _) in entry.value.clusters() {
            self.declared.remove(&cluster);
        }
        Some(entry)
    }

    /// Removes a route and what the indexes know of it.
    pub(super) fn take_route(&mut self, name: &RouteName) -> Option<Entry<Route>> {
        let entry = self.routes.remove(name)?;
        for rule in &entry.value.rules {
            forget(&mut self.routes_to, &rule.service, name);
        }
        forget(&mut self.routes_on, &entry.value.gateway, name);
        Some(entry)
    }

    /// Puts a registered endpoint.
    pub(super) fn put_endpoint(&mut self, cluster: &ClusterName, endpoint: Arc<Endpoint>) {
        self.endpoints.entry(cluster.clone()).or_default().put(cluster, endpoint);
    }

    /// Removes a registered endpoint.
    pub(super) fn take_endpoint(&mut self, cluster: &ClusterName, id: &EndpointId) -> Option<Arc<Endpoint>> {
        let members = self.endpoints.get_mut(cluster)?;
        let taken = members.take(cluster, id);
        if members.by_id.is_empty() {
            self.endpoints.remove(cluster);
        }
        taken
    }

    /// The names of the versions of a service, for messages.
    pub(super) fn version_names(service: &Service) -> String {
        service.versions.keys().map(VersionName::as_str).collect::<Vec<_>>().join(", ")
    }
}

/// The endpoint at an address of a manifest.
pub(super) fn declared(address: SocketAddr) -> Endpoint {
    let id = format!("static-{}:{}", address.ip(), address.port());
    Endpoint {
        id: id.parse().expect("an IP address and a port are an endpoint id"),
        address,
        weight: 1,
        zone: None,
        health: config::Health::Ready,
        lease: Lease::Static,
    }
}

fn forget<K: Ord + Clone>(index: &mut OrdMap<K, OrdSet<RouteName>>, key: &K, name: &RouteName) {
    if let Some(names) = index.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            index.remove(key);
        }
    }
}
