//! One running instance of a version.

use std::{net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

use crate::name::{EndpointId, Zone};

/// The largest weight of one endpoint. Keeps sums over a version far from `u32::MAX`, which xDS
/// forbids the sum of a locality's weights to exceed.
pub const MAX_ENDPOINT_WEIGHT: u32 = 1_000;

/// One running instance of a version. Its weight is 1 to [`MAX_ENDPOINT_WEIGHT`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Endpoint {
    /// Unique within the version.
    pub id: EndpointId,
    /// Where it listens.
    pub address: SocketAddr,
    /// Share of the version's requests relative to the other endpoints.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Failure domain, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<Zone>,
    /// Whether it takes traffic.
    #[serde(default)]
    pub health: Health,
    /// What keeps it alive.
    pub lease: Lease,
}

fn one() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// The state of an endpoint; only [`Health::Ready`] admits new requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// Known, but not yet proven able to serve.
    Starting,
    /// Takes traffic.
    #[default]
    Ready,
    /// Finishes what it has and takes nothing new.
    Draining,
    /// Failed its probe.
    Unhealthy,
}

/// What keeps an endpoint alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Lease {
    /// Written in the manifest; lives as long as the manifest says.
    Static,
    /// Lives until it is deleted.
    Permanent,
    /// Lives for this many milliseconds after its last renewal.
    #[serde(rename = "ttl_ms")]
    Ttl(u64),
    /// Lives exactly as long as the connection that registered it.
    Connection,
}

impl Lease {
    /// Shortest time to live: below it, one delayed renewal would remove a healthy instance.
    pub const MIN_TTL: Duration = Duration::from_millis(100);
    /// Longest time to live.
    pub const MAX_TTL: Duration = Duration::from_hours(24);

    /// How long the endpoint lives without a sign of life; `None` when only a delete ends it.
    /// `grace` is the term of a connection that has to come back, after a restart of the server.
    pub fn term(self, grace: Duration) -> Option<Duration> {
        match self {
            Lease::Static | Lease::Permanent => None,
            Lease::Ttl(ms) => Some(Duration::from_millis(ms)),
            Lease::Connection => Some(grace),
        }
    }
}
