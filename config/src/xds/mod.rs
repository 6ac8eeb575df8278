//! Domain to xDS and back: the only rooms that know protobuf, one file a resource type.
//!
//! - [`api_listener`]: a service → the `Listener` and `RouteConfiguration` of its gRPC clients.
//! - [`listener`]: a gateway ↔ `Listener` with an HTTP connection manager that asks RDS.
//! - [`route`]: the routes of a gateway ↔ `RouteConfiguration`.
//! - [`cluster`]: a version ↔ `Cluster` of type EDS.
//! - [`assignment`]: the endpoints of a version ↔ `ClusterLoadAssignment`.
//! - `client`: which client means which of these forms.
//! - [`leds`]: one endpoint ↔ `LbEndpoint`, and the collections that endpoints are in.
//! - [`load`]: what load reports carry beyond the standard.
//! - [`secret`]: a certificate and its key ↔ `Secret`.
//! - `tls`: the transport sockets of listeners and clusters.
//!
//! Encoding is total: what exists in the domain has an xDS form that Envoy accepts. Decoding reads
//! what any standard server may send, keeps what a proxy needs, and refuses by name what it cannot
//! honour rather than dropping it silently.

pub mod api_listener;
pub mod assignment;
mod client;
pub mod cluster;
pub mod leds;
pub mod listener;
pub mod load;
pub mod route;
pub mod secret;
mod tls;

use std::{fmt, time::Duration};

pub use client::{ClientKind, client_kind};
use envoy_types::pb::{
    envoy::config::core::v3::{
        self as core, Address, AggregatedConfigSource, ApiVersion, ConfigSource, SocketAddress,
        address::Address as AddressKind, config_source::ConfigSourceSpecifier, socket_address::PortSpecifier,
    },
    google::protobuf::{self, Any},
};
use prost::{Message, Name};

/// The resource types Sluicegate serves and follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ResourceType {
    /// CDS: `envoy.config.cluster.v3.Cluster`
    Cluster,
    /// EDS: `envoy.config.endpoint.v3.ClusterLoadAssignment`
    LoadAssignment,
    /// LDS: `envoy.config.listener.v3.Listener`
    Listener,
    /// RDS: `envoy.config.route.v3.RouteConfiguration`
    RouteConfiguration,
    /// LEDS: `envoy.config.endpoint.v3.LbEndpoint`
    LbEndpoint,
    /// SDS: `envoy.extensions.transport_sockets.tls.v3.Secret`
    Secret,
}

impl ResourceType {
    /// Every type; the first four in make-before-break order (xDS protocol, "Eventual consistency
    /// considerations": CDS, EDS, LDS, RDS). LEDS belongs to EDS, SDS to LDS.
    pub const ALL: [Self; 6] = [
        Self::Cluster,
        Self::LoadAssignment,
        Self::Listener,
        Self::RouteConfiguration,
        Self::LbEndpoint,
        Self::Secret,
    ];

    /// Its `type_url`.
    pub const fn type_url(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::LoadAssignment => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::RouteConfiguration => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::LbEndpoint => "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The type of `type_url`, if it is one of these.
    pub fn from_type_url(type_url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.type_url() == type_url)
    }

    /// Its place in [`Self::ALL`], to index arrays by type.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Short name for logs, metrics and tables: `CDS`, `EDS`, `LDS`, `RDS`, `LEDS`, `SDS`.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::LoadAssignment => "EDS",
            Self::Listener => "LDS",
            Self::RouteConfiguration => "RDS",
            Self::LbEndpoint => "LEDS",
            Self::Secret => "SDS",
        }
    }

    /// Whether a client that never names a resource means all of them (xDS protocol, "How the
    /// client specifies what resources to return": legacy wildcard, listeners and clusters only).
    pub const fn legacy_wildcard(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

impl fmt::Display for ResourceType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// The version of a resource: a hash of its encoded content, so that servers agree without talking
/// to each other and a restart never reuses a version for other content. 16 hexadecimal digits.
pub fn content_version(encoded: &[u8]) -> String {
    format!("{:016x}", xxhash_rust::xxh3::xxh3_64(encoded))
}

/// Why a resource was refused; goes back to the server as the reason of a NACK.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct DecodeError {
    /// The field, as the API documents it.
    pub field: String,
    /// What was wrong, and what is supported.
    pub message: String,
}

impl DecodeError {
    fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }

    fn missing(field: &str) -> Self {
        Self::new(field, "is missing")
    }
}

fn decode<M: Message + Default>(value: &[u8]) -> Result<M, DecodeError> {
    M::decode(value).map_err(|e| DecodeError::new("resource", format!("not a valid message: {e}")))
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::type_url(), value: message.encode_to_vec() }
}

fn ads() -> ConfigSource {
    ConfigSource {
        resource_api_version: ApiVersion::V3 as i32,
        config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        ..Default::default()
    }
}

fn encode_address(address: std::net::SocketAddr) -> Address {
    Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(address.port().into())),
            ..Default::default()
        })),
    }
}

fn decode_address(field: &str, address: Option<&Address>) -> Result<std::net::SocketAddr, DecodeError> {
    let Some(AddressKind::SocketAddress(socket)) = address.and_then(|a| a.address.as_ref()) else {
        return Err(DecodeError::new(field, "only a socket_address is supported"));
    };
    if socket.protocol() != core::socket_address::Protocol::Tcp {
        return Err(DecodeError::new(format!("{field}.protocol"), "only TCP is supported"));
    }
    let ip = socket.address.parse().map_err(|_| {
        DecodeError::new(format!("{field}.address"), format!("`{}` is not an IP address", socket.address))
    })?;
    let port = match socket.port_specifier {
        Some(PortSpecifier::PortValue(port)) => u16::try_from(port)
            .map_err(|_| DecodeError::new(format!("{field}.port_value"), format!("{port} is not a port")))?,
        None => 0,
        Some(PortSpecifier::NamedPort(_)) => {
            return Err(DecodeError::new(format!("{field}.named_port"), "is not supported"));
        }
    };
    Ok(std::net::SocketAddr::new(ip, port))
}

fn encode_duration(duration: Duration) -> protobuf::Duration {
    protobuf::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: duration.subsec_nanos().cast_signed(),
    }
}

/// A duration that is not negative; anything else is an error naming `field`.
fn decode_duration(field: &str, duration: protobuf::Duration) -> Result<Duration, DecodeError> {
    let seconds = u64::try_from(duration.seconds);
    let nanos = u32::try_from(duration.nanos);
    match (seconds, nanos) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(DecodeError::new(field, "is not a duration of 0 or more")),
    }
}

#[cfg(test)]
mod grpc_tests;
#[cfg(test)]
mod tests;
