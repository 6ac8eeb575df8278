//! A version ↔ `Cluster` of type EDS (envoy/config/cluster/v3/cluster.proto), in two forms: what proxies
//! understand, and the smaller one that gRPC clients accept.

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::{
            Cluster,
            cluster::{ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbPolicy},
        },
        core::v3::Http2ProtocolOptions,
    },
    extensions::upstreams::http::v3::{
        HttpProtocolOptions,
        http_protocol_options::{
            ExplicitHttpConfig, UpstreamProtocolOptions, explicit_http_config::ProtocolConfig,
        },
    },
    r#type::v3::Percent,
};

pub use super::tls::GRPC_CERTIFICATE_PROVIDER;
use super::{DecodeError, ads, decode, decode_duration, encode_duration, pack, tls};
use crate::{name::ClusterName, service::Protocol, tls::UpstreamTls};

/// How long a proxy waits for a connection to an endpoint, unless the cluster says otherwise.
/// Long enough for one lost SYN (RFC 6298 §2: 1 s initial timeout) not to fail on a healthy network.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);

const HTTP_PROTOCOL_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

/// What a proxy needs to know of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterConfig {
    /// Its resource name.
    pub name: String,
    /// The load assignment to follow: its `service_name`, or else its name.
    pub assignment: String,
    /// Whether endpoints speak HTTP/2 with prior knowledge.
    pub http2: bool,
    /// Bound on connecting to an endpoint.
    pub connect_timeout: Duration,
    /// How endpoints are reached over TLS; `None` in the clear.
    pub tls: Option<UpstreamTls>,
}

/// The cluster of a version that speaks `protocol`, over TLS if `upstream` says how.
pub fn encode(name: &ClusterName, protocol: Protocol, upstream: Option<&UpstreamTls>) -> Cluster {
    let mut options = HashMap::new();
    if protocol.is_http2() {
        let http2 = ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions::default());
        let explicit = ExplicitHttpConfig { protocol_config: Some(http2) };
        options.insert(
            HTTP_PROTOCOL_OPTIONS.to_owned(),
            pack(&HttpProtocolOptions {
                upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)),
                ..Default::default()
            }),
        );
    }
    Cluster {
        name: name.to_string(),
        connect_timeout: Some(encode_duration(DEFAULT_CONNECT_TIMEOUT)),
        lb_policy: LbPolicy::LeastRequest as i32,
        typed_extension_protocol_options: options,
        transport_socket: upstream.map(|tls| tls::encode_upstream(tls, protocol.is_http2())),
        // Never panic-route to endpoints that are draining or failed their probe.
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(Percent { value: 0.0 }),
            ..Default::default()
        }),
        ..assigned()
    }
}

/// The cluster of a version for gRPC clients, which refuse what they cannot honour: the C core, Node and
/// Python know round robin and ring hash only (gRFC A27, A42), and least request is for Java and Go alone
/// (gRFC A48). They speak HTTP/2 without being told.
///
/// With `upstream` the client has to have a certificate provider, as [`GRPC_CERTIFICATE_PROVIDER`] says;
/// one without refuses the cluster, rather than speaking in the clear to what has TLS.
pub fn encode_for_grpc(name: &ClusterName, upstream: Option<&UpstreamTls>) -> Cluster {
    Cluster {
        name: name.to_string(),
        lb_policy: LbPolicy::RoundRobin as i32,
        transport_socket: upstream.map(tls::encode_upstream_for_grpc),
        ..assigned()
    }
}

/// What follows the load assignment of its own name, on the same stream.
fn assigned() -> Cluster {
    Cluster {
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: Some(ads()), ..Default::default() }),
        ..Default::default()
    }
}

/// Reads a cluster.
///
/// # Errors
/// When it is not of type EDS, or asks of TLS what is not supported, which would otherwise be left out
/// silently.
pub fn decode_cluster(value: &[u8]) -> Result<ClusterConfig, DecodeError> {
    let cluster: Cluster = decode(value)?;
    if cluster.name.is_empty() {
        return Err(DecodeError::missing("name"));
    }
    if cluster.cluster_discovery_type != Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)) {
        return Err(DecodeError::new("type", "only EDS is supported"));
    }
    if !cluster.transport_socket_matches.is_empty() {
        return Err(DecodeError::new(
            "transport_socket_matches",
            "one transport_socket for all is supported",
        ));
    }
    let connect_timeout = match cluster.connect_timeout {
        Some(duration) => decode_duration("connect_timeout", duration)?,
        None => DEFAULT_CONNECT_TIMEOUT,
    };
    if connect_timeout.is_zero() {
        return Err(DecodeError::new("connect_timeout", "is 0; it is above 0"));
    }
    let http2 = match cluster.typed_extension_protocol_options.get(HTTP_PROTOCOL_OPTIONS) {
        Some(any) => speaks_http2(&decode(&any.value)?)?,
        None => false,
    };
    let tls = cluster.transport_socket.as_ref().map(|s| tls::decode_upstream(s, http2)).transpose()?;
    let service_name = cluster.eds_cluster_config.map(|eds| eds.service_name).unwrap_or_default();
    let assignment = if service_name.is_empty() { cluster.name.clone() } else { service_name };
    Ok(ClusterConfig { name: cluster.name, assignment, http2, connect_timeout, tls })
}

fn speaks_http2(options: &HttpProtocolOptions) -> Result<bool, DecodeError> {
    match &options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(config)) => match config.protocol_config {
            Some(ProtocolConfig::Http2ProtocolOptions(_)) => Ok(true),
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                Err(DecodeError::new("http3_protocol_options", "HTTP/3 is not supported"))
            }
            _ => Ok(false),
        },
        _ => Ok(false),
    }
}
