//! Real Envoy as a client of the server, in both variants of the protocol.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::time::Duration;

use load_tests::{
    backend::Backend,
    peers::envoy::{Envoy, Variant},
    sluicegate::{Server, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(20);

async fn follows_endpoints_and_splits(variant: Variant) {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)])).await.ok();
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    server.api.register("shop/v1", "a", v1.address).await.ok();
    server.api.register("shop/v2", "b", v2.address).await.ok();
    let envoy = Envoy::start("envoy-1", server.xds, variant).await;
    let gateway = envoy.gateway("edge").await;
    let mut client = Client::new(gateway);
    until("Envoy to answer", SOON, async || client.get("/").await.ok()).await;

    let proxies = server.api.get("/v1/proxies").await;
    let expected = match variant {
        Variant::Incremental => "incremental",
        Variant::StateOfTheWorld => "state-of-the-world",
    };
    assert_eq!(proxies["proxies"][0]["variant"], expected, "{proxies}");
    assert!(proxies["proxies"][0]["agent"].as_str().unwrap().starts_with("envoy 1."), "{proxies}");
    assert_eq!(proxies["proxies"][0]["nacks"], 0, "{proxies}\n{}", envoy.log());

    // All to v1, then half, then all to v2: no request lost on the way.
    let all_v1 = Traffic::run(gateway, 4, 500).await;
    assert_eq!((all_v1.failures, all_v1.share("v1")), (0, 100.0), "{all_v1:?}");
    let traffic = Traffic::start(gateway, 1);
    let shift = async |weights| {
        let path = "/v1/services/shop/split?wait=applied&timeout=10s";
        let answer = server.api.json(hyper::Method::PUT, path, &json!({"weights": weights})).await.ok();
        assert_eq!(answer["applied"]["complete"], true, "{answer}");
    };
    shift(json!({"v1": 1, "v2": 1})).await;
    let half = Traffic::run(gateway, 4, 4_000).await;
    assert!((half.share("v2") - 50.0).abs() < 5.0, "{half:?}");
    shift(json!({"v2": 1})).await;
    // Envoy acknowledges when its main thread has a change; its workers follow a moment later.
    until("Envoy's workers to have the shift", SOON, async || {
        (Traffic::run(gateway, 4, 50).await.share("v2") >= 100.0).then_some(())
    })
    .await;
    let all_v2 = Traffic::run(gateway, 4, 500).await;
    assert_eq!((all_v2.failures, all_v2.share("v2")), (0, 100.0), "{all_v2:?}");

    // A second endpoint takes its share, and takes none once it is removed.
    let second = Backend::start("v2").await;
    server.api.register("shop/v2", "c", second.address).await.ok();
    until("the second endpoint to be reached", SOON, async || (second.hits.count() > 0).then_some(())).await;
    let path = format!("{}?wait=applied&timeout=10s", load_tests::api::endpoint_path("shop/v2", "c"));
    let removed = server.api.json(hyper::Method::DELETE, &path, &serde_json::Value::Null).await.ok();
    assert_eq!(removed["applied"]["complete"], true, "{removed}");
    until("Envoy's workers to have the removal", SOON, async || {
        let before = second.hits.count();
        Traffic::run(gateway, 4, 50).await;
        (second.hits.count() == before).then_some(())
    })
    .await;
    second.hits.forget();
    Traffic::run(gateway, 4, 500).await;
    assert_eq!(second.hits.first_ns(), None, "a removed endpoint was reached");

    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_over_incremental_ads() {
    follows_endpoints_and_splits(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_over_state_of_the_world_ads() {
    follows_endpoints_and_splits(Variant::StateOfTheWorld).await;
}

/// Order alone is not enough: the routes are held until Envoy has warmed the new cluster.
async fn moves_to_new_versions_without_loss(variant: Variant) {
    let server = Server::start().await;
    let backends = [Backend::start("v0").await, Backend::start("v1").await];
    let move_to = |version: usize| {
        let address = backends[version % 2].address;
        let listen = "127.0.0.1:0";
        format!(
            "kind: Service\nname: shop\nversions: {{v{version}: {{endpoints: [\"{address}\"]}}}}\n\
             ---\nkind: Gateway\nname: edge\nlisten: {listen}\n\
             ---\nkind: Route\nname: all\ngateway: edge\nrules: [{{service: shop}}]\n"
        )
    };
    server.api.apply(&move_to(0)).await.ok();
    let envoy = Envoy::start("envoy-1", server.xds, variant).await;
    let gateway = envoy.gateway("edge").await;
    until("Envoy to answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let traffic = Traffic::start(gateway, 8);
    for version in 1..=10 {
        // One transaction: the new version appears, takes everything, and the old one goes.
        let answer = server.api.apply_to("/v1/apply?wait=applied&timeout=20s", &move_to(version)).await.ok();
        assert_eq!(answer["applied"]["complete"], true, "{answer}\n{}", envoy.log());
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_moves_to_a_cluster_made_in_the_same_transaction_lose_nothing_incremental() {
    moves_to_new_versions_without_loss(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_moves_to_a_cluster_made_in_the_same_transaction_lose_nothing_state_of_the_world() {
    moves_to_new_versions_without_loss(Variant::StateOfTheWorld).await;
}
