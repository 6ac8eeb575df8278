//! "TTL": resources that a client keeps for a while only, and their signs of life.

use std::time::{Duration, Instant};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use prost::Message;
use serde_json::json;

use super::support::{CDS, Mode, World};

in_both_aggregated!(
    a_time_to_live_is_told_and_renewed,
    a_client_that_does_not_know_of_ttls_gets_plain_resources,
);

/// Puts cluster `own`.
async fn own(world: &World, ttl: Option<&str>) {
    let value = BASE64.encode(Cluster { name: "own".to_owned(), ..Default::default() }.encode_to_vec());
    let mut own = json!({"type_url": CDS, "name": "own", "value": value});
    if let Some(ttl) = ttl {
        own["ttl"] = json!(ttl);
    }
    world.done("POST", "/v1/xds/resources", &json!({"put": [own]}).to_string()).await;
}

/// "a response can be sent that provides a Resource with the resource unset and version matching the
/// most recently sent version".
async fn a_time_to_live_is_told_and_renewed(mode: Mode) {
    let world = World::start().await;
    own(&world, Some("1s")).await;
    let mut client = world.client(mode).await;
    let features = ["xds.config.supports-resource-ttl", "xds.config.supports-resource-in-sotw"];
    client.node.client_features = features.map(str::to_owned).to_vec();
    let first = client.follow(CDS, &["own"]).await;
    let resource = first.resource("own").clone();
    assert_eq!((resource.ttl, resource.is_heartbeat), (Some(1), false));
    let began = Instant::now();
    for _ in 0..3 {
        let beat = client.accept(CDS).await;
        let beat = beat.resource("own");
        assert_eq!((beat.ttl, &beat.version), (Some(1), &resource.version));
        // State of the world of clusters has all of them, so a sign of life may come with the resource.
        assert!(beat.is_heartbeat || beat.value == resource.value);
    }
    // Each of them in time: 3 do not take longer than 3 times to live.
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    // "To remove the TTL, the management server resends the resource with the TTL field unset."
    own(&world, None).await;
    let mut last = client.accept(CDS).await;
    while last.resource("own").is_heartbeat {
        last = client.accept(CDS).await;
    }
    assert_eq!(last.resource("own").ttl, None);
    client.silence(&world).await;
}

/// "For clients that support the *xds.config.supports-resource-ttl* client feature".
async fn a_client_that_does_not_know_of_ttls_gets_plain_resources(mode: Mode) {
    let world = World::start().await;
    own(&world, Some("1s")).await;
    let mut client = world.client(mode).await;
    let first = client.follow(CDS, &["own"]).await;
    assert_eq!(first.resource("own").ttl, None);
    client.silence(&world).await;
}
