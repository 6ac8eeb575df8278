//! The world as xDS resources: only what a write touched is encoded again.

use std::sync::Arc;

use config::xds::{self, ResourceType};
use prost::Message;

use super::{world::World, write::Touched};
use crate::snapshot::{Resource, Update};

/// The new form of everything in `touched`.
pub(super) fn compile(world: &World, touched: &Touched) -> Vec<Update> {
    let clusters = touched.clusters.iter().map(|name| {
        let message = world
            .service_of(name)
            .map(|service| xds::cluster::encode(name, service.protocol, service.tls.as_ref()));
        update(ResourceType::Cluster, &name.to_string(), message)
    });
    let assignments = touched.assignments.iter().map(|name| {
        // A version without endpoints has an empty assignment: clients wait for one (xDS protocol,
        // "Resource warming").
        let message = world.service_of(name).map(|_| {
            let endpoints = world.endpoints_of(name);
            xds::assignment::encode(name, endpoints.iter().map(AsRef::as_ref))
        });
        update(ResourceType::LoadAssignment, &name.to_string(), message)
    });
    let listeners = touched.listeners.iter().map(|name| {
        let message = world.gateway(name).map(|entry| xds::listener::encode(&entry.value));
        update(ResourceType::Listener, name.as_str(), message)
    });
    let routes = touched.routes.iter().map(|name| {
        let message = world
            .gateway(name)
            .map(|_| xds::route::encode(name, world.routes_on(name), |service| world.split(service)));
        update(ResourceType::RouteConfiguration, name.as_str(), message)
    });
    clusters.chain(assignments).chain(listeners).chain(routes).collect()
}

fn update<M: Message>(resource_type: ResourceType, name: &str, message: Option<M>) -> Update {
    let resource =
        message.map(|message| Arc::new(Resource::new(resource_type, name, &message.encode_to_vec())));
    (resource_type, name.into(), resource)
}
