//! What a client asks for as it needs it: endpoints one by one, virtual hosts, clusters, names with
//! parameters (xRFC TP1 for `xdstp:` names and collections).

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use envoy_types::pb::envoy::{
    config::{cluster::v3::Cluster, route::v3::VirtualHost},
    service::{
        discovery::v3::DeltaDiscoveryRequest,
        route::v3::virtual_host_discovery_service_client::VirtualHostDiscoveryServiceClient,
    },
};
use prost::Message;
use serde_json::{Value, json};

use super::support::{CDS, EDS, LEDS, Mode, Received, VHDS, World};

const OWN: &str = "type.googleapis.com/my.own.Type";

in_both_aggregated!(an_xdstp_name_is_the_same_in_any_order_of_its_parameters);
aggregated_and_a_stream_a_type!(INCREMENTAL: a_large_answer_comes_in_parts_that_clients_take);

impl World {
    async fn write(&self, put: &[Value]) {
        self.done("POST", "/v1/xds/resources", &json!({"put": put}).to_string()).await;
    }
}

fn put(type_url: &str, name: &str, message: &impl Message) -> Value {
    json!({"type_url": type_url, "name": name, "value": BASE64.encode(message.encode_to_vec())})
}

fn cluster(name: &str) -> Cluster {
    Cluster { name: name.to_owned(), ..Default::default() }
}

/// xRFC TP1, "Normalization": context parameters have no order.
async fn an_xdstp_name_is_the_same_in_any_order_of_its_parameters(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let written = "xdstp://here/my.own.Type/one?a=1&b=2";
    world.write(&[put(OWN, written, &cluster("one"))]).await;
    client.subscribe(OWN, &["xdstp://here/my.own.Type/one?b=2&a=1"]).await;
    let received = client.accept(OWN).await;
    assert_eq!(received.resources[0].value, cluster("one").encode_to_vec());
    client.silence(&world).await;
}

/// Clients of gRPC take messages of 4 MiB unless they are told otherwise.
async fn a_large_answer_comes_in_parts_that_clients_take(mode: Mode) {
    let world = World::start().await;
    let large = |name: &str| {
        let mut cluster = cluster(name);
        cluster.alt_stat_name = "x".repeat(900_000);
        put(CDS, name, &cluster)
    };
    let names: Vec<String> = (0..8).map(|i| format!("large-{i}")).collect();
    for name in &names {
        world.write(&[large(name)]).await;
    }
    let mut client = world.client(mode).await;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    client.subscribe(CDS, &names).await;
    let mut seen = Vec::new();
    while seen.len() < names.len() {
        seen.extend(client.accept(CDS).await.resources.into_iter().map(|resource| resource.name));
    }
    seen.sort();
    assert_eq!(seen, names);
    client.silence(&world).await;
}

/// `LedsClusterLocalityConfig`, and xRFC TP1, "Glob collections": a collection is followed by its name,
/// its members come and go one by one.
#[tokio::test]
async fn endpoints_come_one_by_one_to_whom_asks_for_them_so() {
    let world = World::start().await;
    world.register("cart/v1", "a").await;
    let mut client = world.client(Mode::INCREMENTAL).await;
    client.node.client_features = vec!["sluicegate.leds".to_owned()];
    let assignment = client.follow(EDS, &["cart/v1"]).await;
    assert_eq!(assignment.endpoints("cart/v1"), 0, "they are in a collection");
    let collection = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/cart/v1/-/*";
    let value = &assignment.resource("cart/v1").value;
    assert!(value.windows(collection.len()).any(|part| part == collection.as_bytes()));
    let member = |id: &str| collection.replace('*', id);

    assert_eq!(client.follow(LEDS, &[collection]).await.shape(), format!("+{}", member("a")));
    world.register("cart/v1", "b").await;
    assert_eq!(client.accept(LEDS).await.shape(), format!("+{}", member("b")));
    world.remove("cart/v1", "a").await;
    assert_eq!(client.accept(LEDS).await.shape(), format!("-{}", member("a")));
    // Those of others are none of its business.
    world.register("shop/v1", "c").await;
    // On reconnect only the difference.
    let (held, mut after) = (client, world.client(Mode::INCREMENTAL).await);
    drop(held);
    after.node.client_features = vec!["sluicegate.leds".to_owned()];
    let versions = [(member("a"), "0".repeat(16))];
    after.resume(LEDS, &[collection], &versions.into()).await;
    assert_eq!(after.accept(LEDS).await.shape(), format!("+{} -{}", member("b"), member("a")));
}

/// A collection that nobody is in does not exist, which is told once.
#[tokio::test]
async fn an_empty_collection_is_told_as_missing() {
    let world = World::start().await;
    let mut client = world.client(Mode::INCREMENTAL).await;
    client.node.client_features = vec!["sluicegate.leds".to_owned()];
    let collection = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/cart/v1/-/*";
    assert_eq!(client.follow(LEDS, &[collection]).await.shape(), format!("-{collection}"));
    world.register("cart/v1", "a").await;
    assert_eq!(client.accept(LEDS).await.shape(), format!("+{}", collection.replace('*', "a")));
    world.remove("cart/v1", "a").await;
    assert_eq!(client.accept(LEDS).await.shape(), format!("-{}", collection.replace('*', "a")));
}

/// The cost of one change of endpoints does not depend on how many there are: "at most 300 bytes".
#[tokio::test]
async fn one_endpoint_of_many_is_one_small_message() {
    let world = World::start().await;
    let addresses: Vec<String> = (0..1_000).map(|i| format!("\"10.7.{}.{}:80\"", i >> 8, i & 255)).collect();
    let many = addresses.join(", ");
    world.apply(&format!("kind: Service\nname: cart\nversions: {{v1: {{endpoints: [{many}]}}}}\n")).await;
    let mut client = world.client(Mode::INCREMENTAL).await;
    client.node.client_features = vec!["sluicegate.leds".to_owned()];
    let collection = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/cart/v1/-/*";
    assert_eq!(client.follow(LEDS, &[collection]).await.resources.len(), 1_000);
    world.register("cart/v1", "one-more").await;
    let change = client.accept(LEDS).await;
    assert_eq!(change.shape(), format!("+{}", collection.replace('*', "one-more")));
    let [resource] = &change.resources[..] else { panic!("{}", change.shape()) };
    let bytes = resource.name.len() + resource.value.len() + resource.version.len() + 2 * LEDS.len();
    assert!(bytes < 300, "{bytes}");
}

/// Virtual hosts on demand ("Virtual Host Discovery Service": incremental only): one that is not there
/// is told at once, so that the request which waits for it can be answered.
#[tokio::test]
async fn virtual_hosts_are_asked_for_when_they_are_needed() {
    let world = World::start().await;
    let host = VirtualHost { name: "a.example.com".to_owned(), ..Default::default() };
    world.write(&[put(VHDS, "edge/a.example.com", &host)]).await;
    let mut client = world.client(Mode::INCREMENTAL).await;
    assert_eq!(client.follow(VHDS, &["edge/a.example.com"]).await.shape(), "+edge/a.example.com");
    assert_eq!(client.follow(VHDS, &["edge/b.example.com"]).await.shape(), "-edge/b.example.com");
    let other = VirtualHost { name: "b.example.com".to_owned(), ..Default::default() };
    world.write(&[put(VHDS, "edge/b.example.com", &other)]).await;
    assert_eq!(client.accept(VHDS).await.shape(), "+edge/b.example.com");
    client.silence(&world).await;

    // And over its own service.
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: vec!["edge/a.example.com".to_owned()],
        ..Default::default()
    };
    let mut own = VirtualHostDiscoveryServiceClient::new(world.channel().await);
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut responses = own.delta_virtual_hosts(requests).await.unwrap().into_inner();
    let response = Received::from(responses.message().await.unwrap().unwrap());
    assert_eq!(response.shape(), "+edge/a.example.com");
}

/// Clusters on demand: named one by one, missing ones told at once, and dropped again.
#[tokio::test]
async fn clusters_are_asked_for_when_they_are_needed() {
    let world = World::start().await;
    let mut client = world.client(Mode::INCREMENTAL).await;
    assert_eq!(client.follow(CDS, &["cart/v1"]).await.shape(), "+cart/v1");
    assert_eq!(client.follow(CDS, &["shop/v1", "none/v1"]).await.shape(), "+shop/v1 -none/v1");
    client.unsubscribe(CDS, &["cart/v1"]).await;
    world.protocol("cart", "grpc").await;
    client.silence(&world).await;
}
