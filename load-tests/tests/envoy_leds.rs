//! Real Envoy as a client that asks for endpoints one by one (LEDS).

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::time::Duration;

use load_tests::{
    api::endpoint_path,
    backend::Backend,
    peers::envoy::{Envoy, Variant},
    sluicegate::{Server, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// How many responses of a type the server has sent.
async fn responses(server: &Server, kind: &str) -> u64 {
    let metrics = server.api.text("/metrics").await.unwrap();
    let series = format!("sluicegate_xds_responses_total{{type=\"{kind}\"}} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&series));
    line.map_or(0, |count| count.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_endpoints_one_by_one_and_loses_no_request() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)])).await.ok();
    let backends = [Backend::start("v1").await, Backend::start("v1").await, Backend::start("v2").await];
    server.api.register("shop/v1", "a", backends[0].address).await.ok();
    server.api.register("shop/v2", "c", backends[2].address).await.ok();
    let envoy = Envoy::start_edited("envoy-1", server.xds, Variant::Incremental, |bootstrap| {
        bootstrap["node"]["metadata"] = json!({"sluicegate.leds": true});
    })
    .await;
    let gateway = envoy.gateway("edge").await;
    let mut client = Client::new(gateway);
    until("Envoy to answer", SOON, async || client.get("/").await.ok()).await;
    let traffic = Traffic::start(gateway, 2);
    let assignments = responses(&server, "EDS").await;

    for round in 0..20 {
        let (old, new) = if round % 2 == 0 { ("a", "b") } else { ("b", "a") };
        let backend = &backends[usize::from(new == "b")];
        backend.hits.forget();
        server.api.register("shop/v1", new, backend.address).await.ok();
        until("the new endpoint to be reached", SOON, async || (backend.hits.count() > 0).then_some(()))
            .await;
        let path = format!("{}?wait=applied&timeout=10s", endpoint_path("shop/v1", old));
        let removed = server.api.json(hyper::Method::DELETE, &path, &Value::Null).await.ok();
        assert_eq!(removed["applied"]["complete"], true, "{removed}\n{}", envoy.log());
    }
    let (now, members) = (responses(&server, "EDS").await, responses(&server, "LEDS").await);
    assert_eq!(now, assignments, "no assignment was sent again");
    assert!(members >= 40, "{members}");

    // A shift to the other version, and a cluster that changes and warms anew with the same members.
    let shift = "/v1/services/shop/split?wait=applied&timeout=10s";
    let shifted = server.api.json(hyper::Method::PUT, shift, &json!({"weights": {"v2": 1}})).await.ok();
    assert_eq!(shifted["applied"]["complete"], true, "{shifted}\n{}", envoy.log());
    until("Envoy's workers to have the shift", SOON, async || {
        (Traffic::run(gateway, 2, 50).await.share("v2") >= 100.0).then_some(())
    })
    .await;
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}\n{}", outcome.requests(), outcome.reasons, envoy.log());
    let proxies = server.api.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["nacks"], 0, "{proxies}\n{}", envoy.log());
}
