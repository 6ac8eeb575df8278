//! What gRPC clients check, as their parsers do (`xds_{listener,route_config,cluster,endpoint}_parser.cc`
//! of the C core): a resource that fails one of these is refused.

use envoy_types::pb::envoy::{
    config::{
        cluster::v3::cluster::LbPolicy,
        core::v3::{ConfigSource, config_source::ConfigSourceSpecifier, transport_socket::ConfigType},
        endpoint::v3::ClusterLoadAssignment,
        route::v3::{route::Action, route_action::ClusterSpecifier, route_match::PathSpecifier},
    },
    extensions::{
        filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, http_connection_manager::RouteSpecifier, http_filter,
            },
        },
        transport_sockets::tls::v3::{UpstreamTlsContext, common_tls_context::ValidationContextType},
    },
    r#type::matcher::v3::string_matcher::MatchPattern,
};

use super::*;
use crate::{
    endpoint::{Endpoint, Health, Lease},
    manifest::{self, Document},
    name::ClusterName,
    service::Service,
    tls::UpstreamTls,
};

fn service(protocol: &str, weights: &str) -> Service {
    let text = format!(
        "kind: Service\nname: checkout\nprotocol: {protocol}\nversions: {{v1: {{}}, v2: {{}}, v3: {{}}}}\nsplit: {{weights: {weights}}}\n"
    );
    match manifest::parse("m", &text).unwrap().remove(0).document {
        Document::Service(service) => service,
        other => panic!("{other:?}"),
    }
}

fn is_ads(source: Option<&ConfigSource>) -> bool {
    matches!(source.unwrap().config_source_specifier, Some(ConfigSourceSpecifier::Ads(_)))
}

#[test]
fn a_target_is_a_listener_that_asks_for_the_routes_of_its_name() {
    let listener = api_listener::encode(&service("grpc", "{v1: 1}")).unwrap();
    assert_eq!(listener.name, "checkout");
    // An address would make it a listener of a server (gRFC A36).
    assert!(listener.address.is_none() && listener.filter_chains.is_empty());
    let manager = listener.api_listener.unwrap().api_listener.unwrap();
    assert_eq!(manager.type_url, HttpConnectionManager::type_url());
    let manager: HttpConnectionManager = decode(&manager.value).unwrap();
    let [filter] = manager.http_filters.as_slice() else { panic!("{:?}", manager.http_filters) };
    let Some(http_filter::ConfigType::TypedConfig(router)) = &filter.config_type else {
        panic!("{filter:?}")
    };
    assert_eq!(router.type_url, Router::type_url());
    // gRFC A41.
    assert!(manager.xff_num_trusted_hops == 0 && manager.original_ip_detection_extensions.is_empty());
    let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier else { panic!("no RDS") };
    assert_eq!(rds.route_config_name, "checkout");
    assert!(is_ads(rds.config_source.as_ref()));
}

#[test]
fn every_path_of_a_target_is_divided_as_the_split_says() {
    let routes = api_listener::encode_routes(&service("h2c", "{v1: 90, v2: 0, v3: 10}")).unwrap();
    assert_eq!(routes.name, "checkout");
    let [host] = routes.virtual_hosts.as_slice() else { panic!("{routes:?}") };
    assert_eq!(host.domains, ["*"]);
    let [route] = host.routes.as_slice() else { panic!("{host:?}") };
    assert_eq!(route.r#match.as_ref().unwrap().path_specifier, Some(PathSpecifier::Prefix(String::new())));
    let Some(Action::Route(action)) = &route.action else { panic!("{route:?}") };
    let Some(ClusterSpecifier::WeightedClusters(weighted)) = &action.cluster_specifier else {
        panic!("{action:?}")
    };
    let weights = weighted.clusters.iter().map(|c| (c.name.as_str(), c.weight.unwrap().value));
    assert_eq!(weights.collect::<Vec<_>>(), [("checkout/v1", 90), ("checkout/v3", 10)]);
}

#[test]
fn what_does_not_speak_http2_is_no_target() {
    for protocol in ["http", "tcp"] {
        let service = service(protocol, "{v1: 1}");
        assert_eq!(api_listener::encode(&service), None, "{protocol}");
        assert_eq!(api_listener::encode_routes(&service), None, "{protocol}");
    }
}

#[test]
fn a_cluster_for_grpc_asks_for_a_policy_that_every_client_has() {
    let name: ClusterName = "checkout/v1".parse().unwrap();
    let cluster = cluster::encode_for_grpc(&name, None);
    assert_eq!((cluster.name.as_str(), cluster.lb_policy()), ("checkout/v1", LbPolicy::RoundRobin));
    assert!(is_ads(cluster.eds_cluster_config.as_ref().unwrap().eds_config.as_ref()));
    assert!(cluster.transport_socket.is_none());
    let read = cluster::decode_cluster(&cluster.encode_to_vec()).unwrap();
    assert_eq!(read.assignment, "checkout/v1");
}

#[test]
fn tls_for_grpc_names_a_certificate_provider_and_whom_the_certificate_is_for() {
    let name: ClusterName = "checkout/v1".parse().unwrap();
    let tls = UpstreamTls { ca: "/etc/ca.pem".into(), sni: "checkout.internal".to_owned() };
    let socket = cluster::encode_for_grpc(&name, Some(&tls)).transport_socket.unwrap();
    assert_eq!(socket.name, "envoy.transport_sockets.tls");
    let Some(ConfigType::TypedConfig(any)) = socket.config_type else { panic!("no config") };
    let context: UpstreamTlsContext = decode(&any.value).unwrap();
    assert_eq!(context.sni, "checkout.internal");
    let common = context.common_tls_context.unwrap();
    // Each of them is refused (gRFC A29).
    assert!(common.tls_params.is_none() && common.custom_handshaker.is_none());
    assert!(common.tls_certificates.is_empty());
    let Some(ValidationContextType::ValidationContext(validation)) = common.validation_context_type else {
        panic!("no validation context")
    };
    let provider = validation.ca_certificate_provider_instance.unwrap();
    assert_eq!(provider.instance_name, cluster::GRPC_CERTIFICATE_PROVIDER);
    #[expect(deprecated, reason = "what gRPC clients read")]
    let names = validation.match_subject_alt_names;
    assert_eq!(names[0].match_pattern, Some(MatchPattern::Exact("checkout.internal".to_owned())));
    assert!(validation.trusted_ca.is_none(), "a path of the server's machine means nothing to a client");
}

fn endpoint(id: &str, port: u16, zone: Option<&str>, health: Health) -> Endpoint {
    Endpoint {
        id: id.parse().unwrap(),
        address: ([127, 0, 0, 1], port).into(),
        weight: 3,
        zone: zone.map(|zone| zone.parse().unwrap()),
        health,
        lease: Lease::Permanent,
    }
}

#[test]
fn a_zone_weighs_what_its_ready_endpoints_do() {
    let endpoints = [
        endpoint("a", 1, Some("east"), Health::Ready),
        endpoint("b", 2, Some("east"), Health::Draining),
        endpoint("c", 3, Some("east"), Health::Ready),
        endpoint("d", 4, Some("west"), Health::Unhealthy),
    ];
    let assignment: ClusterLoadAssignment = assignment::encode(&"checkout/v1".parse().unwrap(), &endpoints);
    let zones = assignment.endpoints.iter().map(|locality| {
        let zone = locality.locality.as_ref().unwrap().zone.as_str();
        (zone, locality.priority, locality.load_balancing_weight.map(|weight| weight.value))
    });
    // Envoy's rule: a weight that is there is at least 1.
    assert_eq!(zones.collect::<Vec<_>>(), [("east", 0, Some(6)), ("west", 0, None)]);
}
