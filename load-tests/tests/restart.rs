//! The server dies, the proxy dies, both die: traffic goes on.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::time::Duration;

use hyper::Method;
use load_tests::{
    api::{endpoint_path, series},
    backend::Backend,
    sluicegate::{Edge, Server, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_stops_no_traffic_and_comes_back_with_every_endpoint() {
    let mut server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backends = [Backend::start("v1").await, Backend::start("v1").await, Backend::start("v1").await];
    server.api.register("shop/v1", "permanent", backends[0].address).await.ok();
    let leased = json!({"address": backends[1].address.to_string(), "ttl": "60s"});
    server.api.json(Method::PUT, &endpoint_path("shop/v1", "leased"), &leased).await.ok();
    let _held = server.api.hold("shop/v1", "held", backends[2].address).await;
    let edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    until("the proxy to have everything", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        (proxies["proxies"][0]["synced"] == true).then_some(())
    })
    .await;
    let before = server.api.get("/v1/services/shop").await;

    let traffic = Traffic::start(gateway, 4);
    server.process.kill().await;
    let sent = traffic.sent();
    until("traffic without a server", SOON, async || (traffic.sent() > sent + 500).then_some(())).await;

    let server = server.restart().await;
    assert_eq!(server.api.get("/v1/services/shop").await, before, "an endpoint was lost");
    until("the proxy to be back", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        (proxies["proxies"][0]["synced"] == true).then_some(())
    })
    .await;
    // The proxy said what it held, so the server had only empty greetings to send: the names of
    // types and nonces, but no resource.
    let metrics = server.api.text("/metrics").await.unwrap();
    let bytes = series(&metrics, "sluicegate_xds_response_bytes_total");
    assert!(bytes > 0.0 && bytes < 600.0, "{bytes} bytes were sent to a proxy that held everything");
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}");

    // The instance that was held by a connection did not come back: its grace ends.
    until("the held endpoint's grace to end", Duration::from_secs(30), async || {
        let service = server.api.get("/v1/services/shop").await;
        (service["versions"][0]["endpoints"].as_array()?.len() == 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_stopped_in_order_removes_no_held_endpoint() {
    let mut server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    let _held = server.api.hold("shop/v1", "held", backend.address).await;
    server.process.signal("TERM").await;
    assert!(server.process.ended(SOON).await.success());
    let server = server.restart().await;
    let service = server.api.get("/v1/services/shop").await;
    assert_eq!(service["versions"][0]["endpoints"][0]["id"], "held", "{service}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_proxy_starts_from_its_last_good_configuration_without_a_server() {
    let mut server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    server.api.register("shop/v1", "a", backend.address).await.ok();
    let mut edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    until("the configuration to be kept", SOON, async || {
        (series(&edge.metrics().await, "sluicegate_proxy_last_good_writes_total") > 0.0).then_some(())
    })
    .await;
    server.process.kill().await;
    edge.process.kill().await;

    let edge = edge.restart(server.xds).await;
    let gateway = edge.gateway("edge").await;
    let answer = until("an answer without a server", SOON, async || Client::new(gateway).get("/").await.ok());
    assert_eq!(answer.await, "v1");

    // And when the server is back, the proxy follows it again.
    let server = server.restart().await;
    server.api.remove("shop/v1", "a").await.ok();
    until("the removal to arrive", SOON, async || Client::new(gateway).get("/").await.err()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_is_stopped_finishes_what_it_has() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let slow = Backend::start_slow("v1", Duration::from_millis(800)).await;
    server.api.register("shop/v1", "slow", slow.address).await.ok();
    let mut edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let request = tokio::spawn(async move { Client::new(gateway).get("/").await });
    until("the request to be in flight", SOON, async || {
        (slow.hits.in_flight.load(std::sync::atomic::Ordering::SeqCst) > 0).then_some(())
    })
    .await;
    edge.process.signal("TERM").await;
    assert_eq!(request.await.unwrap().as_deref(), Ok("v1"));
    assert!(edge.process.ended(SOON).await.success());
}
