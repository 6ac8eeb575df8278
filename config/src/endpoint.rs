//! One running instance of a version.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

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

/// Whether an endpoint can be at `address`: one that a proxy, on whatever host, can connect to.
///
/// # Errors
/// Why nobody can connect to it, for people.
pub fn check_address(address: SocketAddr) -> Result<(), String> {
    let ip: IpAddr = address.ip().to_canonical();
    let scoped = matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0 || v6.flowinfo() != 0);
    let why = if address.port() == 0 {
        "its port is 0; a port is from 1 to 65535"
    } else if ip.is_unspecified() {
        "it stands for every address of a host, not for one"
    } else if ip.is_multicast() {
        "it is a multicast address"
    } else if scoped {
        "it has a scope, which means something on one host only"
    } else {
        return Ok(());
    };
    Err(format!("nobody can connect to `{address}`: {why}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_where_somebody_can_connect() {
        let check = |text: &str| check_address(text.parse().unwrap());
        for good in ["127.0.0.1:1", "10.0.0.1:65535", "[::1]:80", "[fe80::1]:80", "[::ffff:10.0.0.1]:80"] {
            assert_eq!(check(good), Ok(()), "{good}");
        }
        let bad = [
            "127.0.0.1:0",
            "0.0.0.0:80",
            "[::]:80",
            "[::ffff:0.0.0.0]:80",
            "224.0.0.1:80",
            "[ff02::1]:80",
            "[fe80::1%1]:80",
        ];
        for bad in bad {
            let why = check(bad).unwrap_err();
            assert!(why.starts_with(&format!("nobody can connect to `{bad}`: ")), "{why}");
        }
        let labelled = std::net::SocketAddrV6::new(std::net::Ipv6Addr::LOCALHOST, 80, 7, 0);
        assert!(check_address(labelled.into()).is_err());
    }
}
