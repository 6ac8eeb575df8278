//! Instances come and go under load.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::time::Duration;

use hyper::Method;
use load_tests::{
    api::endpoint_path,
    backend::Backend,
    sluicegate::{Edge, Server, binary, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(10);

async fn stage() -> (Server, Edge, std::net::SocketAddr) {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    (server, edge, gateway)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_cycles_of_adding_and_removing_fail_no_request() {
    let (server, _edge, gateway) = stage().await;
    let permanent = Backend::start("v1").await;
    server.api.register("shop/v1", "permanent", permanent.address).await.ok();
    until("the first answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;

    let traffic = Traffic::start(gateway, 8);
    let mut reached = 0;
    for cycle in 0..1_000 {
        let instance = Backend::start("v1").await;
        let id = format!("i{cycle}");
        server.api.register("shop/v1", &id, instance.address).await.ok();
        if cycle % 10 == 0 {
            until("the new instance to be reached", SOON, async || (instance.hits.count() > 0).then_some(()))
                .await;
        }
        // As an instance that leaves in order: taken out everywhere, then stopped.
        let path = format!("{}?wait=applied&timeout=5s", endpoint_path("shop/v1", &id));
        let removed = server.api.json(Method::DELETE, &path, &Value::Null).await.ok();
        assert_eq!(removed["applied"]["complete"], true, "{removed}");
        reached += u64::from(instance.hits.count() > 0);
        instance.stop().await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
    assert!(reached >= 100, "only {reached} instances were ever reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_instance_is_taken_out_at_once_and_unsent_requests_go_elsewhere() {
    let (server, edge, gateway) = stage().await;
    let permanent = Backend::start("v1").await;
    server.api.register("shop/v1", "permanent", permanent.address).await.ok();

    let api = format!("http://{}", server.api.address());
    for round in 0..5 {
        let mut command = tokio::process::Command::new(binary());
        let id = format!("victim-{round}");
        command.args(["echo", "--version", "v1", "--service", "shop", "--id", &id, "--api", &api]);
        let log = load_tests::temp::TempDir::new();
        let mut victim = load_tests::process::Process::start(command, &log.join("log"));
        until("the instance to be known to the proxy", SOON, async || {
            let clusters = edge.admin.text("/clusters").await.ok()?;
            clusters.contains(&id).then_some(())
        })
        .await;

        let traffic = Traffic::start(gateway, 4);
        until("some traffic", SOON, async || (traffic.sent() > 200).then_some(())).await;
        victim.kill().await;
        until("the killed instance to be gone", Duration::from_secs(1), async || {
            let clusters = edge.admin.get("/clusters").await;
            (!admits(&clusters, &id)).then_some(())
        })
        .await;
        let after = traffic.sent() + 200;
        until("more traffic", SOON, async || (traffic.sent() > after).then_some(())).await;
        let outcome = traffic.stop().await;
        // What the instance had in its hands when it was killed may be lost: one a connection.
        assert!(outcome.failures <= 4, "{outcome:?}");
    }
}

/// Whether a proxy still counts an endpoint among those it chooses from.
fn admits(clusters: &Value, id: &str) -> bool {
    fn find<'v>(value: &'v Value, id: &str) -> Option<&'v Value> {
        match value {
            Value::Object(map) if map.get("id").is_some_and(|found| found == id) => Some(value),
            Value::Object(map) => map.values().find_map(|v| find(v, id)),
            Value::Array(items) => items.iter().find_map(|v| find(v, id)),
            _ => None,
        }
    }
    find(clusters, id).is_some_and(|endpoint| endpoint["state"] == "ready")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_refuses_connections_costs_no_request() {
    let (server, _edge, gateway) = stage().await;
    let alive = Backend::start("v1").await;
    let dead = Backend::start("v1").await;
    let nobody = dead.address;
    dead.stop().await;
    server.api.register("shop/v1", "alive", alive.address).await.ok();
    server.api.register("shop/v1", "dead", nobody).await.ok();
    until("the first answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let outcome = Traffic::run(gateway, 4, 1_000).await;
    assert_eq!(outcome.failures, 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_when_nobody_renews_it_and_a_renewal_makes_no_revision() {
    let (server, _edge, _gateway) = stage().await;
    let path = endpoint_path("shop/v1", "leased");
    let body = json!({"address": "127.0.0.1:9", "ttl": "2s"});
    let first = server.api.json(Method::PUT, &path, &body).await.ok();
    assert_eq!(first["changes"][0]["action"], "created");
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let renewed = server.api.json(Method::PUT, &path, &body).await.ok();
        assert_eq!(renewed["changes"][0]["action"], "renewed");
        assert_eq!(renewed["revision"], first["revision"]);
    }
    until("the lease to end", SOON, async || {
        let service = server.api.get("/v1/services/shop").await;
        service["versions"][0]["endpoints"].as_array()?.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_timeline_says_who_changed_what_and_when_every_proxy_had_it() {
    let (server, _edge, _gateway) = stage().await;
    let path = format!("{}?wait=applied", endpoint_path("shop/v1", "a"));
    let written = server.api.json(Method::PUT, &path, &json!({"address": "127.0.0.1:9"})).await.ok();
    assert_eq!(written["applied"]["complete"], true);
    assert_eq!(written["applied"]["proxies"], 1);
    let applied = until("the timeline to say so", SOON, async || {
        let events = server.api.get("/v1/events").await;
        let mut events = events["events"].as_array()?.clone().into_iter();
        let change = events.find(|e| e["subject"] == "Endpoint shop/v1/a")?;
        assert_eq!(change["event"], "change");
        assert!(change["actor"].as_str().unwrap().contains("127.0.0.1"), "{change}");
        events.find(|e| e["event"] == "applied" && e["revision"] == written["revision"])
    })
    .await;
    assert_eq!(applied["proxies"], 1);
    assert!(applied["ms"].as_f64().unwrap() > 0.0);
    let proxies = server.api.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["node"], "edge-1");
    assert_eq!(proxies["proxies"][0]["synced"], true);
}
