use prost::Message;

use super::*;
use crate::{
    endpoint::{Endpoint, Health, Lease},
    manifest::{self, Document},
    name::ClusterName,
    route::{Gateway, HeaderPredicate, Route},
    service::{Protocol, Service},
};

const MANIFEST: &str = r#"
kind: Service
name: checkout
protocol: grpc
versions: {v1: {}, v2: {}}
split: {weights: {v1: 90, v2: 10}}
---
kind: Gateway
name: edge
listen: 127.0.0.1:8080
---
kind: Route
name: shop
gateway: edge
hosts: ["shop.example.com", "*"]
rules:
- match: {path_prefix: /}
  service: checkout
- match: {path_prefix: /checkout, headers: [{name: X-Beta, exact: "1"}]}
  service: checkout
- match: {path: /exact}
  service: checkout
"#;

fn domain() -> (Service, Gateway, Route) {
    let mut documents = manifest::parse("m", MANIFEST).unwrap().into_iter().map(|l| l.document);
    match (documents.next(), documents.next(), documents.next()) {
        (Some(Document::Service(s)), Some(Document::Gateway(g)), Some(Document::Route(r))) => (s, g, r),
        other => panic!("{other:?}"),
    }
}

#[test]
fn type_urls_are_those_of_the_messages() {
    use envoy_types::pb::envoy::config::{
        cluster::v3::Cluster,
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint},
        listener::v3::Listener,
        route::v3::RouteConfiguration,
    };
    assert_eq!(ResourceType::LbEndpoint.type_url(), LbEndpoint::type_url());
    assert_eq!(ResourceType::Cluster.type_url(), Cluster::type_url());
    assert_eq!(ResourceType::LoadAssignment.type_url(), ClusterLoadAssignment::type_url());
    assert_eq!(ResourceType::Listener.type_url(), Listener::type_url());
    assert_eq!(ResourceType::RouteConfiguration.type_url(), RouteConfiguration::type_url());
    for (i, t) in ResourceType::ALL.into_iter().enumerate() {
        assert_eq!((t.index(), ResourceType::from_type_url(t.type_url())), (i, Some(t)));
    }
}

#[test]
fn a_gateway_reads_back_as_its_listener() {
    let (_, gateway, _) = domain();
    let read = listener::decode_listener(&listener::encode(&gateway).encode_to_vec()).unwrap();
    assert_eq!((read.name.as_str(), read.route_config.as_str()), ("edge", "edge"));
    assert_eq!(read.address, gateway.listen);
}

#[test]
fn a_version_reads_back_as_its_cluster() {
    let name: ClusterName = "checkout/v1".parse().unwrap();
    for (protocol, http2) in [(Protocol::Grpc, true), (Protocol::H2c, true), (Protocol::Http, false)] {
        let read = cluster::decode_cluster(&cluster::encode(&name, protocol, None).encode_to_vec()).unwrap();
        assert_eq!(
            (read.name.as_str(), read.assignment.as_str(), read.http2),
            ("checkout/v1", "checkout/v1", http2)
        );
        assert_eq!(read.connect_timeout, cluster::DEFAULT_CONNECT_TIMEOUT);
    }
}

#[test]
fn routes_read_back_from_the_most_to_the_least_specific() {
    let (service, gateway, route) = domain();
    let encoded = route::encode(&gateway.name, [&route], |_| Some(&service.split)).encode_to_vec();
    let read = route::decode_route_config(&encoded).unwrap();
    assert!(read.ignore_port);
    let domains: Vec<_> = read.virtual_hosts.iter().flat_map(|h| h.domains.clone()).collect();
    assert_eq!(domains, ["*", "shop.example.com"]);
    let routes = &read.virtual_hosts[0].routes;
    let paths: Vec<_> = routes.iter().map(|r| r.path.clone()).collect();
    assert_eq!(
        paths,
        [
            route::PathRule::Exact("/exact".into()),
            route::PathRule::Segments("/checkout".into()),
            route::PathRule::Prefix("/".into())
        ]
    );
    assert_eq!(routes[1].headers[0].name, "x-beta");
    assert_eq!(routes[1].headers[0].predicate, HeaderPredicate::Exact("1".into()));
    assert_eq!(routes[0].clusters, [("checkout/v1".into(), 90), ("checkout/v2".into(), 10)]);
    assert_eq!(read.clusters().into_iter().collect::<Vec<_>>(), ["checkout/v1", "checkout/v2"]);
}

fn endpoint(id: &str, address: &str, zone: Option<&str>, health: Health) -> Endpoint {
    Endpoint {
        id: id.parse().unwrap(),
        address: address.parse().unwrap(),
        weight: 3,
        zone: zone.map(|z| z.parse().unwrap()),
        health,
        lease: Lease::Permanent,
    }
}

#[test]
fn endpoints_read_back_with_id_weight_zone_and_health() {
    let name: ClusterName = "checkout/v1".parse().unwrap();
    let endpoints = [
        endpoint("a", "127.0.0.1:1", Some("z1"), Health::Ready),
        endpoint("b", "[::1]:2", None, Health::Draining),
        endpoint("c", "127.0.0.1:3", None, Health::Starting),
    ];
    let encoded = assignment::encode(&name, &endpoints).encode_to_vec();
    let read = assignment::decode_assignment(&encoded).unwrap();
    let mut seen: Vec<_> = read.endpoints.iter().map(|e| (&*e.id, &*e.zone, e.weight, e.health)).collect();
    seen.sort_by_key(|e| e.0);
    assert_eq!(
        seen,
        [("a", "z1", 3, Health::Ready), ("b", "", 3, Health::Draining), ("c", "", 3, Health::Unhealthy)]
    );
}

#[test]
fn ids_that_share_an_address_are_one_endpoint() {
    let name: ClusterName = "checkout/v1".parse().unwrap();
    let endpoints = [
        endpoint("old", "127.0.0.1:1", None, Health::Ready),
        endpoint("young", "127.0.0.1:1", None, Health::Ready),
    ];
    let read = assignment::decode_assignment(&assignment::encode(&name, &endpoints).encode_to_vec()).unwrap();
    assert_eq!(read.endpoints.len(), 1);
    assert_eq!(&*read.endpoints[0].id, "young");
}

#[test]
fn equal_content_has_equal_versions() {
    let name: ClusterName = "checkout/v1".parse().unwrap();
    let a = endpoint("a", "127.0.0.1:1", Some("z1"), Health::Ready);
    let b = endpoint("b", "127.0.0.1:2", None, Health::Ready);
    let one = assignment::encode(&name, [&a, &b]).encode_to_vec();
    let other = assignment::encode(&name, [&b, &a]).encode_to_vec();
    assert_eq!(content_version(&one), content_version(&other));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    use envoy_types::pb::envoy::config::{
        cluster::v3::Cluster,
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint, LocalityLbEndpoints},
    };
    let static_cluster = Cluster { name: "x".into(), ..Default::default() };
    let error = cluster::decode_cluster(&static_cluster.encode_to_vec()).unwrap_err();
    assert!(error.to_string().contains("only EDS"), "{error}");

    let no_host = ClusterLoadAssignment {
        cluster_name: "x".into(),
        endpoints: vec![LocalityLbEndpoints {
            lb_endpoints: vec![LbEndpoint::default()],
            ..Default::default()
        }],
        ..Default::default()
    };
    let error = assignment::decode_assignment(&no_host.encode_to_vec()).unwrap_err();
    assert!(error.to_string().starts_with("endpoints[0].lb_endpoints[0]"), "{error}");
}

#[test]
fn no_bytes_make_a_decoder_panic() {
    let (service, gateway, routes) = domain();
    let name: ClusterName = "checkout/v1".parse().unwrap();
    let good = [
        listener::encode(&gateway).encode_to_vec(),
        cluster::encode(&name, Protocol::Grpc, None).encode_to_vec(),
        route::encode(&gateway.name, [&routes], |_| Some(&service.split)).encode_to_vec(),
        assignment::encode(&name, &[endpoint("a", "127.0.0.1:1", Some("z"), Health::Ready)]).encode_to_vec(),
        leds::encode_assignment(&name, [None, Some(&"z".parse().unwrap())]).encode_to_vec(),
        leds::encode_member(&endpoint("a", "127.0.0.1:1", None, Health::Draining)).encode_to_vec(),
    ];
    let member = leds::member_name(&name, None, &"a".parse().unwrap());
    let seed = 3;
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let mut bytes = rng.choice(&good).unwrap().clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..bytes.len());
            bytes[at] = rng.u8(..);
        }
        let _ = listener::decode_listener(&bytes);
        let _ = cluster::decode_cluster(&bytes);
        let _ = route::decode_route_config(&bytes);
        let _ = assignment::decode_assignment(&bytes);
        let _ = leds::decode_member(&member, &bytes);
        let text = String::from_utf8_lossy(&bytes);
        let _ = (leds::parse_collection(&text), leds::parse_member(&text), leds::collection_of(&text));
    }
}
