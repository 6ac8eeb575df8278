//! Real Envoy as a client of the server, in both variants of the protocol.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use hyper::Method;
use load_tests::{
    api::{endpoint_path, series},
    backend::Backend,
    peers::envoy::{Envoy, Variant},
    sluicegate::{Server, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
/// Long for a change, and short for an Envoy that waits for what does not come
/// (`initial_fetch_timeout`: 15 s).
const STALL: Duration = Duration::from_secs(5);

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
    for version in 1..=20 {
        // One transaction: the new version appears, takes everything, and the old one goes.
        let began = Instant::now();
        let answer = server.api.apply_to("/v1/apply?wait=applied&timeout=20s", &move_to(version)).await.ok();
        assert_eq!(answer["applied"]["complete"], true, "{answer}\n{}", envoy.log());
        assert!(began.elapsed() < STALL, "move {version} was applied after {:?}", began.elapsed());
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_moves_to_a_cluster_made_in_the_same_transaction_lose_nothing_incremental() {
    moves_to_new_versions_without_loss(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_moves_to_a_cluster_made_in_the_same_transaction_lose_nothing_state_of_the_world() {
    moves_to_new_versions_without_loss(Variant::StateOfTheWorld).await;
}

/// A server with `shop/v1` and this endpoint, Envoy that answers from it, and where.
async fn stand(variant: Variant, id: &str, endpoint: SocketAddr) -> (Server, Envoy, SocketAddr) {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    server.api.register("shop/v1", id, endpoint).await.ok();
    let envoy = Envoy::start("envoy-1", server.xds, variant).await;
    let gateway = envoy.gateway("edge").await;
    until("Envoy to answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    (server, envoy, gateway)
}

/// A write that Envoy's main thread has acknowledged.
async fn applied(server: &Server, method: Method, path: &str, body: Value) {
    let answer = server.api.json(method, &format!("{path}?wait=applied&timeout=10s"), &body).await.ok();
    assert_eq!(answer["applied"]["complete"], true, "{answer}");
}

async fn refused_nothing(server: &Server, envoy: &Envoy) {
    let proxies = server.api.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["nacks"], 0, "{proxies}\n{}", envoy.log());
}

/// One endpoint comes and the one before goes, which keeps running: fifty times each.
async fn follows_a_hundred_endpoint_changes(variant: Variant) {
    let backends = [Backend::start("a").await, Backend::start("b").await, Backend::start("c").await];
    let (server, envoy, gateway) = stand(variant, "0", backends[0].address).await;
    let traffic = Traffic::start(gateway, 2);
    for change in 0..50 {
        let new = &backends[(change + 1) % 3];
        let before = new.hits.count();
        let path = endpoint_path("shop/v1", &(change + 1).to_string());
        applied(&server, Method::PUT, &path, json!({"address": new.address.to_string()})).await;
        until("the new endpoint to be reached", SOON, async || (new.hits.count() > before).then_some(()))
            .await;
        applied(&server, Method::DELETE, &endpoint_path("shop/v1", &change.to_string()), Value::Null).await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
    refused_nothing(&server, &envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_endpoint_changes_lose_nothing_incremental() {
    follows_a_hundred_endpoint_changes(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_endpoint_changes_lose_nothing_state_of_the_world() {
    follows_a_hundred_endpoint_changes(Variant::StateOfTheWorld).await;
}

/// A cluster that changes warms anew, and gets the load assignment that it waits for, though that did not
/// change.
async fn a_changed_cluster_does_not_stall(variant: Variant) {
    let backend = Backend::start("v1").await;
    let (server, envoy, gateway) = stand(variant, "a", backend.address).await;
    let traffic = Traffic::start(gateway, 2);
    for (protocol, connections) in [("h2c", "http2"), ("http", "http1"), ("h2c", "http2"), ("http", "http1")]
    {
        let text = manifest("127.0.0.1:0", &[("v1", 1)]);
        let text = text.replace("name: shop\n", &format!("name: shop\nprotocol: {protocol}\n"));
        let stat = format!("cluster.shop/v1.upstream_cx_{connections}_total");
        let so_far = async || {
            let stats = envoy.admin.text("/stats?filter=upstream_cx_http").await.ok()?;
            let line = stats.lines().find(|line| line.starts_with(&stat))?;
            line.rsplit_once(' ')?.1.parse::<u64>().ok()
        };
        let before = so_far().await.unwrap_or(0);
        let began = Instant::now();
        let answer = server.api.apply_to("/v1/apply?wait=applied&timeout=20s", &text).await.ok();
        let took = began.elapsed();
        assert_eq!(answer["applied"]["complete"], true, "{answer}\n{}", envoy.log());
        assert!(took < STALL, "{protocol} was applied after {took:?}");
        until("the instance to be spoken to in it", SOON, async || {
            (so_far().await.unwrap_or(0) > before).then_some(())
        })
        .await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
    refused_nothing(&server, &envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_cluster_does_not_stall_incremental() {
    a_changed_cluster_does_not_stall(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_cluster_does_not_stall_state_of_the_world() {
    a_changed_cluster_does_not_stall(Variant::StateOfTheWorld).await;
}

/// Killed, and stopped in order: no request notices, and the next server finds Envoy where it was.
async fn a_restart_of_the_server_loses_nothing(variant: Variant) {
    let first = Backend::start("v1").await;
    let (mut server, envoy, gateway) = stand(variant, "a", first.address).await;
    let traffic = Traffic::start(gateway, 2);
    for (round, signal) in ["KILL", "TERM"].into_iter().enumerate() {
        server.process.signal(signal).await;
        server.process.ended(SOON).await;
        let sent = traffic.sent();
        until("traffic without a server", SOON, async || (traffic.sent() > sent + 200).then_some(())).await;
        server = server.restart().await;
        until("Envoy to be back", SOON, async || {
            let proxies = server.api.get("/v1/proxies").await;
            (proxies["proxies"][0]["synced"] == true).then_some(())
        })
        .await;
        let metrics = server.api.text("/metrics").await.unwrap();
        for short in ["CDS", "EDS", "LDS", "RDS"] {
            let name = format!("sluicegate_xds_response_bytes_total{{type=\"{short}\"}}");
            let bytes = series(&metrics, &name);
            match variant {
                // A greeting: the name of the type and a nonce, less than any resource has.
                Variant::Incremental => assert!(bytes < 100.0, "{bytes} bytes of {short}: {metrics}"),
                Variant::StateOfTheWorld => assert!(bytes > 100.0, "{bytes} bytes of {short}: {metrics}"),
            }
        }
        let second = Backend::start("v1").await;
        server.api.register("shop/v1", &format!("b-{round}"), second.address).await.ok();
        until("the next server to be followed", SOON, async || (second.hits.count() > 0).then_some(())).await;
        let path = endpoint_path("shop/v1", &format!("b-{round}"));
        applied(&server, Method::DELETE, &path, Value::Null).await;
        until("Envoy's workers to have the removal", SOON, async || {
            let before = second.hits.count();
            Traffic::run(gateway, 1, 50).await;
            (second.hits.count() == before).then_some(())
        })
        .await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
    refused_nothing(&server, &envoy).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_loses_nothing_and_sends_nothing_again_incremental() {
    a_restart_of_the_server_loses_nothing(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_of_the_server_loses_nothing_state_of_the_world() {
    a_restart_of_the_server_loses_nothing(Variant::StateOfTheWorld).await;
}
