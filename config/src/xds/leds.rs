//! Endpoints one by one (LEDS): names of collections and of their members, and one endpoint ↔
//! `LbEndpoint` (`envoy/config/endpoint/v3/endpoint_components.proto`, `LedsClusterLocalityConfig`).
//!
//! A load assignment then names a glob collection for each zone in place of its endpoints, and changes
//! only when the set of zones does. A collection is subscribed to by its name, which ends in `/*`; its
//! members are resources of their own (xDS protocol, "Glob collections", in the incremental variant
//! only). So the cost of one change is that of one endpoint.
//!
//! ```text
//! xdstp:///envoy.config.endpoint.v3.LbEndpoint/checkout/v1/zone-a/*       the collection
//! xdstp:///envoy.config.endpoint.v3.LbEndpoint/checkout/v1/zone-a/pod-1   a member
//! ```
//!
//! Segments are percent-encoded but for unreserved characters (RFC 3986 §2.3), as Envoy writes them when
//! it has parsed them. The zone of endpoints without a zone is `-`; a zone of dashes gets one more.

use std::{collections::BTreeSet, fmt, sync::Arc};

use envoy_types::pb::{
    envoy::config::{
        core::v3::{HealthStatus, Locality},
        endpoint::v3::{
            ClusterLoadAssignment, Endpoint as XdsEndpoint, LbEndpoint, LedsClusterLocalityConfig,
            LocalityLbEndpoints, lb_endpoint::HostIdentifier, locality_lb_endpoints::LbConfig,
        },
    },
    google::protobuf::UInt32Value,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::{
    DecodeError, ads,
    assignment::{AssignedEndpoint, decode_endpoint},
    decode, encode_address,
};
use crate::{
    endpoint::{Endpoint, Health},
    name::{ClusterName, EndpointId, Zone},
};

/// What a client has in `node.client_features` when it wants collections in its load assignments.
pub const CLIENT_FEATURE: &str = "sluicegate.leds";
/// Longest name of a collection or a member, in bytes.
pub const MAX_NAME: usize = 2_048;
/// Most collections of one load assignment.
pub const MAX_COLLECTIONS: usize = 1_024;

const SCHEME: &str = "xdstp://";
const TYPE: &str = "envoy.config.endpoint.v3.LbEndpoint";
/// The segment of endpoints without a zone.
const NO_ZONE: &str = "-";
/// All but unreserved characters (RFC 3986 §2.3).
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

// ---- names ----

/// The name of the collection of the endpoints of `cluster` in `zone`.
pub fn collection_name(cluster: &ClusterName, zone: Option<&Zone>) -> String {
    format!("{}*", Prefix(cluster, zone))
}

/// The name of one endpoint in that collection.
pub fn member_name(cluster: &ClusterName, zone: Option<&Zone>, id: &EndpointId) -> String {
    format!("{}{}", Prefix(cluster, zone), utf8_percent_encode(id.as_str(), RESERVED))
}

/// What the names of a collection and its members have in common.
struct Prefix<'a>(&'a ClusterName, Option<&'a Zone>);

impl fmt::Display for Prefix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(cluster, zone) = self;
        write!(f, "{SCHEME}/{TYPE}/{cluster}/")?;
        match zone.map(Zone::as_str) {
            None => f.write_str(NO_ZONE)?,
            // Encoding the dashes would not do: Envoy decodes what need not be encoded.
            Some(zone) if is_dashes(zone) => write!(f, "{NO_ZONE}{zone}")?,
            Some(zone) => write!(f, "{}", utf8_percent_encode(zone, RESERVED))?,
        }
        f.write_str("/")
    }
}

fn is_dashes(zone: &str) -> bool {
    zone.bytes().all(|b| b == b'-')
}

/// Whether `name` is that of a glob collection of endpoints, of any server.
pub fn is_collection(name: &str) -> bool {
    cut(name).is_some_and(|(_, last, _)| last == "*")
}

/// The name of the collection that `member` is in; `None` when it is not the name of an endpoint (of
/// any server): its last segment is replaced by `*` (xRFC TP1, "Glob collections").
pub fn collection_of(member: &str) -> Option<String> {
    let (prefix, last, parameters) = cut(member)?;
    (last != "*").then(|| [prefix, "*", parameters].concat())
}

/// A name up to and with the last `/` of its path, its last segment, and its context parameters.
fn cut(name: &str) -> Option<(&str, &str, &str)> {
    if name.len() > MAX_NAME || name.contains('#') {
        return None;
    }
    let (path, parameters) = name.split_at(name.find('?').unwrap_or(name.len()));
    let (_authority, id) = path.strip_prefix(SCHEME)?.split_once('/')?;
    let last = id.strip_prefix(TYPE)?.strip_prefix('/')?.rsplit('/').next()?;
    (!last.is_empty()).then(|| (&path[..path.len() - last.len()], last, parameters))
}

/// Reads what [`collection_name`] writes; `None` for anything else.
pub fn parse_collection(name: &str) -> Option<(ClusterName, Option<Zone>)> {
    let (cluster, zone, last) = parse(name)?;
    (last == "*").then_some((cluster, zone))
}

/// Reads what [`member_name`] writes; `None` for anything else.
pub fn parse_member(name: &str) -> Option<(ClusterName, Option<Zone>, EndpointId)> {
    let (cluster, zone, last) = parse(name)?;
    Some((cluster, zone, percent_decode_str(last).decode_utf8().ok()?.parse().ok()?))
}

fn parse(name: &str) -> Option<(ClusterName, Option<Zone>, &str)> {
    let (prefix, last, parameters) = cut(name)?;
    let path = prefix.strip_prefix(SCHEME)?.strip_prefix('/')?.strip_prefix(TYPE)?;
    let (cluster, zone) = path.strip_prefix('/')?.strip_suffix('/')?.rsplit_once('/')?;
    let zone = match zone {
        NO_ZONE => None,
        dashes if is_dashes(dashes) => Some(dashes.strip_prefix(NO_ZONE)?.parse().ok()?),
        zone => Some(percent_decode_str(zone).decode_utf8().ok()?.parse().ok()?),
    };
    parameters.is_empty().then_some((cluster.parse().ok()?, zone, last))
}

// ---- encoding ----

/// The load assignment of `cluster`: a collection for each of `zones`, in whatever order they come.
/// Without zones it is an assignment without endpoints.
pub fn encode_assignment<'a>(
    cluster: &ClusterName,
    zones: impl IntoIterator<Item = Option<&'a Zone>>,
) -> ClusterLoadAssignment {
    let zones: BTreeSet<Option<&Zone>> = zones.into_iter().collect();
    let localities = zones.into_iter().map(|zone| LocalityLbEndpoints {
        locality: Some(Locality {
            zone: zone.map(|zone| zone.as_str().to_owned()).unwrap_or_default(),
            ..Default::default()
        }),
        lb_config: Some(LbConfig::LedsClusterLocalityConfig(LedsClusterLocalityConfig {
            leds_config: Some(ads()),
            leds_collection_name: collection_name(cluster, zone),
        })),
        ..Default::default()
    });
    ClusterLoadAssignment {
        cluster_name: cluster.to_string(),
        endpoints: localities.collect(),
        ..Default::default()
    }
}

/// One endpoint as a member of a collection, in few bytes: its id is in its name, and what is usual
/// (ready, a weight of 1) is what a client assumes where nothing is said.
pub fn encode_member(endpoint: &Endpoint) -> LbEndpoint {
    let health = match endpoint.health {
        Health::Ready => HealthStatus::Unknown,
        Health::Draining => HealthStatus::Draining,
        Health::Starting | Health::Unhealthy => HealthStatus::Unhealthy,
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(XdsEndpoint {
            address: Some(encode_address(endpoint.address)),
            ..Default::default()
        })),
        health_status: health as i32,
        load_balancing_weight: (endpoint.weight != 1).then_some(UInt32Value { value: endpoint.weight }),
        ..Default::default()
    }
}

// ---- decoding ----

/// Reads the member of a collection that is called `name`. Its id is the one in its metadata, or else
/// the last segment of its name. It has no zone: that is its collection's.
///
/// # Errors
/// When it has no usable address, or `name` is not the name of an endpoint.
pub fn decode_member(name: &str, value: &[u8]) -> Result<AssignedEndpoint, DecodeError> {
    let Some((_, last, _)) = cut(name).filter(|(_, last, _)| *last != "*") else {
        return Err(DecodeError::new("name", format!("is not `{SCHEME}…/{TYPE}/…/<id>`")));
    };
    let endpoint: LbEndpoint = decode(value)?;
    let mut endpoint = decode_endpoint("lb_endpoint", &endpoint, &Arc::default())?;
    if endpoint.id.is_empty() {
        endpoint.id = percent_decode_str(last).decode_utf8_lossy().into();
    }
    Ok(endpoint)
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::ApiConfigSource;
    use prost::Message;

    use super::*;
    use crate::{
        endpoint::Lease,
        xds::assignment::{AssignedCollection, Assignment, decode_assignment},
    };

    fn cluster() -> ClusterName {
        "checkout/v1.2".parse().unwrap()
    }

    fn endpoint(id: &str, health: Health, weight: u32) -> Endpoint {
        Endpoint {
            id: id.parse().unwrap(),
            address: "10.1.2.3:8080".parse().unwrap(),
            weight,
            zone: None,
            health,
            lease: Lease::Permanent,
        }
    }

    #[test]
    fn names_are_the_agreed_ones() {
        let base = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/checkout/v1.2";
        let zone: Zone = "zone-a".parse().unwrap();
        assert_eq!(collection_name(&cluster(), None), format!("{base}/-/*"));
        assert_eq!(collection_name(&cluster(), Some(&zone)), format!("{base}/zone-a/*"));
        assert_eq!(
            member_name(&cluster(), Some(&zone), &"10.0.0.1:80".parse().unwrap()),
            format!("{base}/zone-a/10.0.0.1%3A80")
        );
    }

    #[test]
    fn every_name_reads_back_and_no_two_are_equal() {
        let zones = ["-", "--", "a", "a:b", "a.b", "A_1", "%"].map(|zone| zone.parse::<Zone>().ok());
        let mut seen = BTreeSet::new();
        for zone in zones.iter().take(6).chain([&None]) {
            let zone = zone.as_ref();
            let collection = collection_name(&cluster(), zone);
            assert_eq!(parse_collection(&collection), Some((cluster(), zone.cloned())));
            assert!(is_collection(&collection) && collection_of(&collection).is_none());
            for id in ["a", "-", "a:b"] {
                let id: EndpointId = id.parse().unwrap();
                let member = member_name(&cluster(), zone, &id);
                assert_eq!(collection_of(&member).as_ref(), Some(&collection));
                assert_eq!(parse_member(&member), Some((cluster(), zone.cloned(), id)));
                assert!(!is_collection(&member) && seen.insert(member));
            }
            assert!(seen.insert(collection));
        }
    }

    #[test]
    fn names_of_other_servers_have_authorities_depths_and_parameters() {
        let base = "xdstp://authority/envoy.config.endpoint.v3.LbEndpoint";
        let glob = format!("{base}/a/b/c/*?x=1");
        assert_eq!(collection_of(&format!("{base}/a/b/c/d?x=1")), Some(glob.clone()));
        assert!(is_collection(&glob) && is_collection(&format!("{base}/*")));
        assert_eq!(parse_collection(&glob), None);
        let long = format!("{base}/{}/*", "x".repeat(MAX_NAME));
        for bad in ["", "*", "checkout/v1", &base[..20], base, &format!("{base}/"), &long] {
            assert!(!is_collection(bad) && collection_of(bad).is_none(), "{bad}");
        }
        assert!(collection_of(&format!("{base}/a/b#c")).is_none());
    }

    #[test]
    fn a_member_reads_back_with_the_id_of_its_name() {
        for (id, health, weight) in
            [("a:1", Health::Ready, 1), ("b", Health::Draining, 7), ("c", Health::Unhealthy, 2)]
        {
            let endpoint = endpoint(id, health, weight);
            let name = member_name(&cluster(), None, &endpoint.id);
            let read = decode_member(&name, &encode_member(&endpoint).encode_to_vec()).unwrap();
            assert_eq!((&*read.id, read.weight, read.health, &*read.zone), (id, weight, health, ""));
            assert_eq!(read.address, endpoint.address);
        }
        assert!(
            decode_member("a", &encode_member(&endpoint("a", Health::Ready, 1)).encode_to_vec()).is_err()
        );
    }

    #[test]
    fn a_member_is_a_few_dozen_bytes() {
        let value = encode_member(&endpoint("a", Health::Ready, 1)).encode_to_vec();
        assert!(value.len() <= 32, "{}", value.len());
    }

    #[test]
    fn an_id_in_the_metadata_goes_before_the_one_in_the_name() {
        let endpoint = endpoint("registered", Health::Ready, 1);
        let whole = super::super::assignment::encode(&cluster(), [&endpoint]);
        let value = whole.endpoints[0].lb_endpoints[0].encode_to_vec();
        let name = member_name(&cluster(), None, &"other".parse().unwrap());
        assert_eq!(&*decode_member(&name, &value).unwrap().id, "registered");
    }

    #[test]
    fn zones_read_back_as_collections_in_one_order() {
        let (a, b): (Zone, Zone) = ("a".parse().unwrap(), "b".parse().unwrap());
        let encoded = encode_assignment(&cluster(), [Some(&b), None, Some(&a), None]);
        let read = decode_assignment(&encoded.encode_to_vec()).unwrap();
        let collection = |zone: Option<&Zone>| AssignedCollection {
            name: collection_name(&cluster(), zone).as_str().into(),
            zone: zone.map_or("", Zone::as_str).into(),
        };
        let collections = [None, Some(&a), Some(&b)].map(collection).to_vec();
        assert_eq!(read, Assignment { name: "checkout/v1.2".into(), endpoints: vec![], collections });
    }

    #[test]
    fn collections_that_cannot_be_followed_are_refused_by_name() {
        let good = encode_assignment(&cluster(), [None]);
        let refuse = |change: &dyn Fn(&mut LedsClusterLocalityConfig), what: &str| {
            let mut bad = good.clone();
            let Some(LbConfig::LedsClusterLocalityConfig(config)) = &mut bad.endpoints[0].lb_config else {
                panic!("not a collection")
            };
            change(config);
            let error = decode_assignment(&bad.encode_to_vec()).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        };
        refuse(&|config| config.leds_collection_name = "checkout/v1".into(), "leds_collection_name");
        refuse(
            &|config| config.leds_collection_name = member_name(&cluster(), None, &"a".parse().unwrap()),
            "glob collection",
        );
        refuse(
            &|config| {
                config.leds_config.as_mut().unwrap().config_source_specifier =
                    Some(super::super::ConfigSourceSpecifier::ApiConfigSource(ApiConfigSource::default()));
            },
            "leds_config",
        );
        let mut twice = good.clone();
        twice.endpoints.extend(good.endpoints.clone());
        assert!(decode_assignment(&twice.encode_to_vec()).unwrap_err().to_string().contains("twice"));
    }
}
