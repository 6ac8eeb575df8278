//! The world as xDS resources: only what a write touched is encoded again, and the endpoints of a
//! version as a whole only when somebody asks for them so.

use std::sync::Arc;

use config::{
    ClusterName, Endpoint, EndpointId, ServiceName, Zone,
    xds::{api_listener, assignment, cluster, leds, listener, route},
};
use prost::Message;

use super::{world::World, write::Touched};
use crate::{
    kind::{Kind, View},
    resource::{Name, Resource, Version},
    snapshot::Update,
};

/// The new form of everything in `touched`.
pub fn compile(world: &World, touched: &Touched) -> Vec<Update> {
    let mut updates = Vec::new();
    // A name has one resource, compiled or written as it is. Which of the two it was and which it is may
    // both be in one publication: what is written as it is goes first and comes last.
    for key in touched.raw.iter().filter(|key| !world.raw.contains_key(*key)) {
        updates.extend(raw(world, key));
    }
    for name in &touched.clusters {
        let service = world.service_of(name);
        let common = service.map(|s| cluster::encode(name, s.protocol, s.tls.as_ref()));
        let grpc = service.map(|s| cluster::encode_for_grpc(name, s.tls.as_ref()));
        updates.push(update(Kind::Cluster, View::Common, &name.to_string(), common));
        updates.push(update(Kind::Cluster, View::Grpc, &name.to_string(), grpc));
    }
    for name in &touched.assignments {
        updates.extend(assignments(world, name));
    }
    for (cluster, id, zone) in &touched.members {
        updates.push(member(world, cluster, id, zone.as_ref()));
    }
    for name in &touched.listeners {
        let message = world.gateway(name).map(|entry| listener::encode(&entry.value));
        updates.push(update(Kind::Listener, View::Common, name.as_str(), message));
    }
    for name in &touched.routes {
        let message = world
            .gateway(name)
            .map(|_| route::encode(name, world.routes_on(name), |service| world.split(service)));
        updates.push(update(Kind::RouteConfiguration, View::Common, name.as_str(), message));
    }
    for name in &touched.services {
        updates.extend(target(world, name));
    }
    for key in touched.raw.iter().filter(|key| world.raw.contains_key(*key)) {
        updates.extend(raw(world, key));
    }
    updates
}

/// A resource as it was written: the same in every form.
fn raw<'a>(world: &World, key: &'a (Kind, Name)) -> impl Iterator<Item = Update> + use<'a> {
    let resource = world.raw.get(key).map(|entry| Arc::new(entry.value.resource()));
    let (kind, name) = key;
    let views = kind.views().iter();
    views.map(move |view| ((kind.clone(), *view), Arc::clone(name), resource.clone()))
}

/// A service as the target of gRPC clients.
fn target(world: &World, name: &ServiceName) -> [Update; 2] {
    let service = world.service(name).map(|entry| &entry.value);
    let listener = service.and_then(|service| api_listener::encode(service));
    let routes = service.and_then(|service| api_listener::encode_routes(service));
    [
        update(Kind::Listener, View::Grpc, name.as_str(), listener),
        update(Kind::RouteConfiguration, View::Grpc, name.as_str(), routes),
    ]
}

/// The load assignments of a version: with its endpoints, and with their collections. A version without
/// endpoints has empty ones: clients wait for one (xDS protocol, "Resource warming").
fn assignments(world: &World, name: &ClusterName) -> [Update; 2] {
    let (kind, text) = (Kind::LoadAssignment, name.to_string());
    if world.service_of(name).is_none() {
        let gone = |view| ((kind.clone(), view), text.as_str().into(), None);
        return [gone(View::Common), gone(View::Collections)];
    }
    let members = world.endpoints.get(name).cloned().unwrap_or_default();
    let declared = world.declared.get(name).cloned().unwrap_or_default();
    let zones = declared.zones.keys().chain(members.zones.keys()).map(Option::as_ref);
    let collections = leds::encode_assignment(name, zones);
    let empty = assignment::encode(name, []).encode_to_vec();
    let sum = declared.digest.wrapping_add(members.digest);
    let version = Version::of(&[&empty[..], &sum.to_be_bytes()].concat());
    let cluster = name.clone();
    let whole = Resource::lazy(kind.clone(), text.as_str(), version, move || {
        let all = declared.by_id.values().chain(members.by_id.values());
        assignment::encode(&cluster, all.map(AsRef::as_ref)).encode_to_vec()
    });
    let whole = ((kind.clone(), View::Common), whole.name.clone(), Some(Arc::new(whole)));
    [whole, update(kind, View::Collections, &text, Some(collections))]
}

/// A hash over what a load assignment says of an endpoint.
pub(super) fn digest(cluster: &ClusterName, endpoint: &Endpoint) -> u64 {
    Version::of(&assignment::encode(cluster, [endpoint]).encode_to_vec()).0
}

/// An endpoint as a member of the collection of its zone; gone from `zone` when it is elsewhere.
fn member(world: &World, cluster: &ClusterName, id: &EndpointId, zone: Option<&Zone>) -> Update {
    let known = world.service_of(cluster).is_some();
    let declared = || world.declared.get(cluster)?.by_id.get(id);
    let endpoint = world.endpoint(cluster, id).or_else(declared);
    let here = endpoint.filter(|endpoint| known && endpoint.zone.as_ref() == zone);
    let message = here.map(|endpoint| leds::encode_member(endpoint));
    update(Kind::LbEndpoint, View::Common, &leds::member_name(cluster, zone, id), message)
}

fn update<M: Message>(kind: Kind, view: View, name: &str, message: Option<M>) -> Update {
    let encode = |message: M| Arc::new(Resource::new(kind.clone(), name, &message.encode_to_vec()));
    let resource = message.map(encode);
    ((kind, view), name.into(), resource)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        registry::{
            raw::Raw,
            write::{Write, perform},
        },
        snapshot::Snapshot,
    };

    #[test]
    fn a_name_that_passes_from_hand_to_hand_in_one_publication_is_served() {
        let value = envoy_types::pb::envoy::config::cluster::v3::Cluster {
            name: "shop/v1".to_owned(),
            ..Default::default()
        };
        let raw = Raw {
            kind: Kind::Cluster,
            name: "shop/v1".into(),
            value: value.encode_to_vec().into(),
            ttl: None,
        };
        let put = Write::Resources { put: vec![raw.clone()], remove: vec![] };
        let remove = Write::Resources { put: vec![], remove: vec![(Kind::Cluster, raw.name.clone())] };
        let shop = config::manifest::parse("m", "kind: Service\nname: shop\nversions: {v1: {}}\n").unwrap();
        let delete = Write::Delete { object: shop[0].document.reference(), if_match: None };
        let served = |writes: [&Write; 3]| {
            let (mut world, mut snapshot) = (World::default(), Snapshot::empty(0));
            let mut touched = Touched::default();
            for (i, write) in writes.into_iter().enumerate() {
                let effect = perform(&mut world, write, i as u64 + 1).unwrap();
                touched.extend(effect.touched);
                if i == 0 {
                    // What was before is published by itself.
                    snapshot = snapshot.with(1, compile(&world, &std::mem::take(&mut touched)));
                }
            }
            let snapshot = snapshot.with(3, compile(&world, &touched));
            snapshot.resource(&(Kind::Cluster, View::Common), "shop/v1").map(|r| r.version)
        };
        let compiled = served([&put, &remove, &Write::Apply(shop.clone())]);
        assert!(compiled.is_some_and(|version| version != Version::of(&raw.value)));
        let written = served([&Write::Apply(shop), &delete, &put]);
        assert_eq!(written, Some(Version::of(&raw.value)));
    }
}
