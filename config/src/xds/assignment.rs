//! The endpoints of a version ↔ `ClusterLoadAssignment` (envoy/config/endpoint/v3/endpoint.proto). It
//! has them in itself, or names collections of them ([`super::leds`]), or both.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{HealthStatus, Locality, Metadata},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as XdsEndpoint, LbEndpoint, LocalityLbEndpoints,
            lb_endpoint::HostIdentifier, locality_lb_endpoints::LbConfig,
        },
    },
    google::protobuf::{Struct, UInt32Value, Value, value::Kind},
};

use super::{ConfigSourceSpecifier, DecodeError, decode, decode_address, encode_address, leds};
use crate::{
    endpoint::{Endpoint, Health},
    name::{ClusterName, Zone},
};

/// The namespace of Sluicegate's own metadata on standard resources.
const METADATA: &str = "sluicegate.endpoint";

/// What a proxy needs to know of a load assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Its resource name.
    pub name: String,
    /// Its endpoints, in the order of the wire; addresses are unique.
    pub endpoints: Vec<AssignedEndpoint>,
    /// Collections that have the rest of them, at most [`leds::MAX_COLLECTIONS`]; names are unique.
    pub collections: Vec<AssignedCollection>,
}

/// A glob collection of endpoints, which a client subscribes to by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedCollection {
    /// Its resource name, which ends in `/*`.
    pub name: Arc<str>,
    /// The zone of all its endpoints; empty when there is none.
    pub zone: Arc<str>,
}

/// One endpoint of a load assignment. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AssignedEndpoint {
    /// The id it registered with; empty from servers that do not say.
    pub id: Arc<str>,
    /// Where it listens; identifies it within the cluster.
    pub address: SocketAddr,
    /// Share relative to the other endpoints, at least 1.
    pub weight: u32,
    /// The zone of its locality; empty when there is none.
    pub zone: Arc<str>,
    /// Whether it takes traffic.
    pub health: Health,
}

/// The load assignment of `cluster`. Ids that share an address are one endpoint: the last one wins.
pub fn encode<'a>(
    cluster: &ClusterName,
    endpoints: impl IntoIterator<Item = &'a Endpoint>,
) -> ClusterLoadAssignment {
    let by_address: BTreeMap<SocketAddr, &Endpoint> =
        endpoints.into_iter().map(|endpoint| (endpoint.address, endpoint)).collect();
    let mut by_zone: BTreeMap<&str, Vec<&Endpoint>> = BTreeMap::new();
    for endpoint in by_address.into_values() {
        by_zone.entry(endpoint.zone.as_ref().map_or("", Zone::as_str)).or_default().push(endpoint);
    }
    let localities = by_zone.into_iter().map(|(zone, endpoints)| LocalityLbEndpoints {
        locality: Some(Locality { zone: zone.to_owned(), ..Default::default() }),
        // gRPC clients ignore a locality without a weight (gRFC A27).
        load_balancing_weight: Some(UInt32Value { value: endpoints.iter().map(|e| e.weight).sum() }),
        lb_endpoints: endpoints.into_iter().map(encode_endpoint).collect(),
        ..Default::default()
    });
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: localities.collect(),
        ..Default::default()
    }
}

fn encode_endpoint(endpoint: &Endpoint) -> LbEndpoint {
    let id = Value { kind: Some(Kind::StringValue(endpoint.id.to_string())) };
    let health = match endpoint.health {
        Health::Ready => HealthStatus::Healthy,
        Health::Draining => HealthStatus::Draining,
        Health::Starting | Health::Unhealthy => HealthStatus::Unhealthy,
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(XdsEndpoint {
            address: Some(encode_address(endpoint.address)),
            ..Default::default()
        })),
        health_status: health as i32,
        metadata: Some(Metadata {
            // One key each, so that equal content encodes to equal bytes.
            filter_metadata: HashMap::from([(
                METADATA.to_owned(),
                Struct { fields: HashMap::from([("id".to_owned(), id)]) },
            )]),
            ..Default::default()
        }),
        load_balancing_weight: Some(UInt32Value { value: endpoint.weight }),
    }
}

/// Reads a load assignment.
///
/// # Errors
/// When an endpoint has no usable address, or the same one twice; when a collection is not a glob
/// collection over ADS, is named twice, or is one too many.
pub fn decode_assignment(value: &[u8]) -> Result<Assignment, DecodeError> {
    let assignment: ClusterLoadAssignment = decode(value)?;
    if assignment.cluster_name.is_empty() {
        return Err(DecodeError::missing("cluster_name"));
    }
    // Only the highest priority is used: failover between priorities needs health the proxy
    // does not probe for.
    let priority = assignment.endpoints.iter().map(|l| l.priority).min().unwrap_or(0);
    let (mut seen, mut named) = (HashSet::new(), HashSet::new());
    let (mut endpoints, mut collections) = (Vec::new(), Vec::new());
    for (i, locality) in assignment.endpoints.iter().enumerate().filter(|(_, l)| l.priority == priority) {
        let zone: Arc<str> = locality.locality.as_ref().map_or("", |l| l.zone.as_str()).into();
        if let Some(config) = &locality.lb_config {
            // `lb_endpoints` is ignored then (endpoint_components.proto, `LocalityLbEndpoints`).
            let field = format!("endpoints[{i}].lb_config");
            let name = decode_collection(&field, config)?;
            if !named.insert(Arc::clone(&name)) {
                return Err(DecodeError::new(field, format!("`{name}` is named twice")));
            }
            collections.push(AssignedCollection { name, zone });
            continue;
        }
        for (j, endpoint) in locality.lb_endpoints.iter().enumerate() {
            let field = format!("endpoints[{i}].lb_endpoints[{j}]");
            let endpoint = decode_endpoint(&field, endpoint, &zone)?;
            if !seen.insert(endpoint.address) {
                return Err(DecodeError::new(field, format!("{} is listed twice", endpoint.address)));
            }
            endpoints.push(endpoint);
        }
    }
    if collections.len() > leds::MAX_COLLECTIONS {
        let most = leds::MAX_COLLECTIONS;
        return Err(DecodeError::new("endpoints", format!("at most {most} collections are supported")));
    }
    Ok(Assignment { name: assignment.cluster_name, endpoints, collections })
}

/// The name of a glob collection that is to be had where the assignment came from.
fn decode_collection(field: &str, config: &LbConfig) -> Result<Arc<str>, DecodeError> {
    let LbConfig::LedsClusterLocalityConfig(config) = config else {
        return Err(DecodeError::new(field, "only leds_cluster_locality_config is supported"));
    };
    let field = format!("{field}.leds_cluster_locality_config");
    let source = config.leds_config.as_ref().and_then(|source| source.config_source_specifier.as_ref());
    if !matches!(source, None | Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_))) {
        return Err(DecodeError::new(format!("{field}.leds_config"), "only ADS is supported"));
    }
    let name = config.leds_collection_name.as_str();
    if !leds::is_collection(name) {
        let field = format!("{field}.leds_collection_name");
        return Err(DecodeError::new(field, "is not the name of a glob collection of endpoints"));
    }
    Ok(name.into())
}

pub(super) fn decode_endpoint(
    field: &str,
    endpoint: &LbEndpoint,
    zone: &Arc<str>,
) -> Result<AssignedEndpoint, DecodeError> {
    let Some(HostIdentifier::Endpoint(host)) = &endpoint.host_identifier else {
        return Err(DecodeError::new(field, "only an inline endpoint is supported"));
    };
    let address = decode_address(&format!("{field}.endpoint.address"), host.address.as_ref())?;
    let weight = endpoint.load_balancing_weight.map_or(1, |w| w.value);
    if address.port() == 0 || weight == 0 {
        return Err(DecodeError::new(field, "port and load_balancing_weight are above 0"));
    }
    let health = match endpoint.health_status() {
        HealthStatus::Unknown | HealthStatus::Healthy | HealthStatus::Degraded => Health::Ready,
        HealthStatus::Draining => Health::Draining,
        HealthStatus::Unhealthy | HealthStatus::Timeout => Health::Unhealthy,
    };
    let id = endpoint.metadata.as_ref().and_then(|m| m.filter_metadata.get(METADATA)?.fields.get("id"));
    let id = match id {
        Some(Value { kind: Some(Kind::StringValue(id)) }) => id.as_str().into(),
        _ => Arc::default(),
    };
    Ok(AssignedEndpoint { id, address, weight, zone: Arc::clone(zone), health })
}
