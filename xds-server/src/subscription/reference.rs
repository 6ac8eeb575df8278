//! What a cluster and its load assignment refer to, read from their messages without the rest of them.
//!
//! Numbers of fields are those of `envoy/config/cluster/v3/cluster.proto` and
//! `envoy/config/endpoint/v3/endpoint.proto` with `endpoint_components.proto`.

use prost::Message;

/// Of a `Cluster`.
#[derive(Clone, PartialEq, Message)]
struct Cluster {
    #[prost(message, optional, tag = "3")]
    eds_cluster_config: Option<EdsClusterConfig>,
}

#[derive(Clone, PartialEq, Message)]
struct EdsClusterConfig {
    #[prost(string, tag = "2")]
    service_name: String,
}

/// Of a `ClusterLoadAssignment`.
#[derive(Clone, PartialEq, Message)]
struct LoadAssignment {
    #[prost(message, repeated, tag = "2")]
    endpoints: Vec<Locality>,
}

#[derive(Clone, PartialEq, Message)]
struct Locality {
    #[prost(message, optional, tag = "8")]
    leds_cluster_locality_config: Option<Leds>,
}

#[derive(Clone, PartialEq, Message)]
struct Leds {
    #[prost(string, tag = "2")]
    leds_collection_name: String,
}

/// The name of the load assignment of a cluster where it is not the cluster's own (`service_name`:
/// "Optional alternative to cluster name to present to EDS").
pub(super) fn assignment(cluster: &[u8]) -> Option<String> {
    let eds = Cluster::decode(cluster).ok()?.eds_cluster_config?;
    Some(eds.service_name).filter(|name| !name.is_empty())
}

/// The names of the collections of endpoints of a load assignment.
pub(super) fn collections(assignment: &[u8]) -> Vec<String> {
    let endpoints = LoadAssignment::decode(assignment).unwrap_or_default().endpoints;
    let leds = endpoints.into_iter().filter_map(|locality| locality.leds_cluster_locality_config);
    leds.map(|leds| leds.leds_collection_name).collect()
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::{
        cluster::v3::{self as cluster, cluster::EdsClusterConfig},
        endpoint::v3::{
            ClusterLoadAssignment, LbEndpoint, LedsClusterLocalityConfig, LocalityLbEndpoints,
            locality_lb_endpoints::LbConfig,
        },
    };

    use super::*;

    #[test]
    fn references_are_read_from_the_messages_as_they_are() {
        let eds = |service_name: &str| {
            let config = EdsClusterConfig { service_name: service_name.to_owned(), ..Default::default() };
            let name = "own".to_owned();
            cluster::Cluster { name, eds_cluster_config: Some(config), ..Default::default() }
        };
        assert_eq!(assignment(&eds("other").encode_to_vec()).as_deref(), Some("other"));
        assert_eq!(assignment(&eds("").encode_to_vec()), None);
        assert_eq!(assignment(&cluster::Cluster::default().encode_to_vec()), None);
        assert_eq!(assignment(b"\xff"), None);

        let name = "xdstp:///t/own/*";
        let leds = LedsClusterLocalityConfig { leds_collection_name: name.to_owned(), ..Default::default() };
        let locality = LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint::default()],
            lb_config: Some(LbConfig::LedsClusterLocalityConfig(leds)),
            ..Default::default()
        };
        let endpoints = vec![LocalityLbEndpoints::default(), locality];
        let message = ClusterLoadAssignment { endpoints, ..Default::default() };
        assert_eq!(collections(&message.encode_to_vec()), [name]);
        assert!(collections(b"\xff").is_empty());
    }
}
