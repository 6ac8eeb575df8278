//! A small world of resources: few types, few names and few values, so that changes meet each other.

use std::{sync::Arc, time::Duration};

use xds_server::{
    kind::{Client, Kind},
    resource::{Name, Resource},
    snapshot::{Snapshot, Update},
};

use crate::input::Input;

/// One of each rule of order, and of each way to tell the state of the world.
pub const KINDS: [Kind; 7] = [
    Kind::Secret,
    Kind::Cluster,
    Kind::LoadAssignment,
    Kind::LbEndpoint,
    Kind::Listener,
    Kind::RouteConfiguration,
    Kind::Runtime,
];

/// The names that resources have.
pub const NAMES: [&str; 8] = [
    "a/v1",
    "b/v1",
    "c",
    "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/1",
    "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/2",
    "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/z/1",
    "xdstp:///envoy.config.endpoint.v3.LbEndpoint/b/v1/-/1",
    "xdstp:///t/x?a=1&b=2",
];

/// What else may be asked for: everything, another order of parameters, what is not there,
/// collections with members and without.
pub const OTHERS: [&str; 6] = [
    "*",
    "xdstp:///t/x?b=2&a=1",
    "never",
    "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/*",
    "xdstp:///t/*",
    "xdstp:///empty/*",
];

/// The content of resources that every client refuses.
pub const BAD: &[u8] = b"bad";

/// A resource put or gone, on the shelf from which `client` is served.
pub fn update(input: &mut Input<'_>, kind: &Kind, client: Client) -> Update {
    let name = *input.one_of(&NAMES);
    let resource = |value| Resource::new(kind.clone(), name, value);
    let new = match input.below(8) {
        0 | 1 => None,
        2 | 3 => Some(resource(b"1")),
        4 => Some(resource(b"2")),
        5 => Some(resource(b"3").with_ttl(Some(Duration::from_secs(3)))),
        6 => Some(resource(&[4; 600_000])),
        _ => Some(resource(BAD)),
    };
    ((kind.clone(), client.view(kind)), Name::from(name), new.map(Arc::new))
}

/// The same resources, without a memory of how they came to be.
#[must_use]
pub fn forgotten(snapshot: &Snapshot, revision: u64) -> Snapshot {
    let all = snapshot.shelves().flat_map(|(shelf, resources)| {
        resources.iter().map(|(name, resource)| (shelf.clone(), name.clone(), Some(resource.clone())))
    });
    Snapshot::empty(revision - 1).with(revision, all)
}
