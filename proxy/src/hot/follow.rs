//! One change of endpoints in the proxy: from the bytes of a response to the published table.

use std::time::Instant;

use config::{
    ClusterName, Endpoint, Gateway, Health, Lease, PathMatch, Protocol, Route, RouteMatch, Rule, Split,
    xds::{self, ResourceType, content_version, leds},
};
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource},
    google::protobuf::Any,
};
use prost::Message;

use crate::{
    table::Live,
    xds::cache::{ByType, Cache, HeldMap},
};

/// A proxy that follows one version, whose last endpoint comes and goes.
#[derive(Debug)]
pub struct Follower {
    cache: Cache,
    live: Live,
    /// What the admin interface and the saver hold of it.
    shown: [ByType<HeldMap>; 2],
    /// Responses that take it away and bring it back.
    without: Vec<u8>,
    with: Vec<u8>,
    here: bool,
}

impl Follower {
    /// Of a version of `count` endpoints that come all at once (EDS).
    pub fn of_assignments(count: u32) -> Self {
        let cluster = cluster();
        let all: Vec<Endpoint> = (0..count).map(endpoint).collect();
        let assignment = |endpoints: &[Endpoint]| {
            let value = xds::assignment::encode(&cluster, endpoints).encode_to_vec();
            response(ResourceType::LoadAssignment, vec![(cluster.to_string(), value)], vec![])
        };
        let with = assignment(&all);
        let without = assignment(&all[..all.len() - 1]);
        let mut follower = Self::new(without, with.clone());
        follower.take_in(&with);
        follower
    }

    /// Of a version of `count` endpoints that come one by one (LEDS).
    pub fn of_collections(count: u32) -> Self {
        let cluster = cluster();
        let member = |number: u32| {
            let endpoint = endpoint(number);
            let value = leds::encode_member(&endpoint).encode_to_vec();
            (leds::member_name(&cluster, None, &endpoint.id), value)
        };
        let last = member(count - 1);
        let without = response(ResourceType::LbEndpoint, vec![], vec![last.0.clone()]);
        let mut follower = Self::new(without, response(ResourceType::LbEndpoint, vec![last], vec![]));
        let value = leds::encode_assignment(&cluster, [None]).encode_to_vec();
        let assignment = vec![(cluster.to_string(), value)];
        follower.take_in(&response(ResourceType::LoadAssignment, assignment, vec![]));
        let all = (0..count).map(member).collect();
        follower.take_in(&response(ResourceType::LbEndpoint, all, vec![]));
        follower
    }

    fn new(without: Vec<u8>, with: Vec<u8>) -> Self {
        let cluster = cluster();
        let (cache, live) = (Cache::default(), Live::default());
        let mut follower = Self { cache, live, shown: Default::default(), without, with, here: true };
        follower.cache.on_connected();
        // What nothing routes is not followed.
        for (kind, value) in routed() {
            follower.take_in(&response(kind, vec![("edge".to_owned(), value)], vec![]));
        }
        let value = xds::cluster::encode(&cluster, Protocol::Http, None).encode_to_vec();
        follower.take_in(&response(ResourceType::Cluster, vec![(cluster.to_string(), value)], vec![]));
        follower
    }

    /// The last endpoint leaves, or comes back. Returns how many endpoints there are then.
    pub fn change(&mut self) -> usize {
        self.here = !self.here;
        let bytes = if self.here { self.with.clone() } else { self.without.clone() };
        self.take_in(&bytes);
        self.live.load().clusters.values().map(|cluster| cluster.ready()).sum()
    }

    fn take_in(&mut self, bytes: &[u8]) {
        let response = DeltaDiscoveryResponse::decode(bytes).unwrap_or_default();
        let update = self.cache.on_response(response, Instant::now());
        self.live.publish(update.upserts.into_iter().chain(update.removals));
        self.shown = [self.cache.held(), self.cache.last_good()];
    }
}

fn cluster() -> ClusterName {
    "shop/v1".parse().expect("it is a name")
}

/// A gateway, and the routes that send all of it to the version.
fn routed() -> [(ResourceType, Vec<u8>); 2] {
    let name = || "edge".parse().expect("it is a name");
    let gateway = Gateway { name: name(), listen: ([127, 0, 0, 1], 0).into(), tls: None };
    let split = Split::all_to("v1".parse().expect("it is a name"));
    let rule = Rule {
        matches: RouteMatch { path: PathMatch::Prefix("/".to_owned()), headers: vec![] },
        service: "shop".parse().expect("it is a name"),
    };
    let route = Route {
        name: "all".parse().expect("it is a name"),
        gateway: name(),
        hosts: vec!["*".parse().expect("it is a host")],
        rules: vec![rule],
    };
    let routes = xds::route::encode(&gateway.name, [&route], |_| Some(&split));
    [
        (ResourceType::Listener, xds::listener::encode(&gateway).encode_to_vec()),
        (ResourceType::RouteConfiguration, routes.encode_to_vec()),
    ]
}

fn endpoint(number: u32) -> Endpoint {
    let [_, a, b, c] = number.to_be_bytes();
    Endpoint {
        id: format!("shop-{number:06}").parse().expect("it is an id"),
        address: ([10, a, b, c], 8080).into(),
        weight: 1,
        zone: None,
        health: Health::Ready,
        lease: Lease::Permanent,
    }
}

fn response(kind: ResourceType, resources: Vec<(String, Vec<u8>)>, removed: Vec<String>) -> Vec<u8> {
    let resource = |(name, value): (String, Vec<u8>)| Resource {
        name,
        version: content_version(&value),
        resource: Some(Any { type_url: kind.type_url().to_owned(), value }),
        ..Default::default()
    };
    let response = DeltaDiscoveryResponse {
        type_url: kind.type_url().to_owned(),
        resources: resources.into_iter().map(resource).collect(),
        removed_resources: removed,
        nonce: "1".to_owned(),
        ..Default::default()
    };
    response.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_endpoint_that_changes_is_really_gone_and_back() {
        for mut follower in [Follower::of_assignments(70), Follower::of_collections(70)] {
            assert_eq!([follower.change(), follower.change(), follower.change()], [69, 70, 69]);
        }
    }
}
