//! Traffic divides as the split says, also while endpoints change.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use load_tests::{
    backend::Backend,
    sluicegate::{Edge, Server, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::json;

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_within_half_a_point_while_endpoints_change() {
    let server = Arc::new(Server::start().await);
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 1), ("v3", 1)])).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    let mut backends = Vec::new();
    for version in ["v1", "v2", "v3"] {
        for i in 0..2 {
            let backend = Backend::start(version).await;
            server.api.register(&format!("shop/{version}"), &format!("b{i}"), backend.address).await.ok();
            backends.push(backend);
        }
    }
    for version in ["v1", "v2", "v3"] {
        until("every version to answer", SOON, async || {
            Client::new(gateway).get("/").await.ok().filter(|v| v == version)
        })
        .await;
    }

    let stop = Arc::new(AtomicBool::new(false));
    let churn = tokio::spawn({
        let (server, stop) = (Arc::clone(&server), Arc::clone(&stop));
        let extra = Backend::start("v2").await;
        async move {
            let mut changes = 0;
            while !stop.load(Ordering::Relaxed) {
                server.api.register("shop/v2", "extra", extra.address).await.ok();
                server.api.remove("shop/v2", "extra").await.ok();
                changes += 2;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            changes
        }
    });
    for weights in [[90, 10, 0], [99, 1, 0], [1, 1, 1]] {
        let [v1, v2, v3] = weights;
        let path = "/v1/services/shop/split?wait=applied&timeout=5s";
        let body = json!({"weights": {"v1": v1, "v2": v2, "v3": v3}});
        let shifted = server.api.json(hyper::Method::PUT, path, &body).await.ok();
        assert_eq!(shifted["applied"]["complete"], true, "{shifted}");
        // Shares are drawn by lot. Half a point is five standard deviations of 90/10 at 100,000
        // draws, and of thirds at 200,000: chance fails this once in some millions of runs.
        let requests = if v3 > 0 { 200_000 } else { 100_000 };
        let outcome = Traffic::run(gateway, 16, requests).await;
        assert_eq!(outcome.failures, 0, "{outcome:?}");
        for (version, weight) in [("v1", v1), ("v2", v2), ("v3", v3)] {
            let expected = f64::from(weight) * 100.0 / f64::from(v1 + v2 + v3);
            let share = outcome.share(version);
            assert!(
                (share - expected).abs() <= 0.5,
                "{version} has {share}% of {weights:?}, not {expected}%"
            );
        }
    }
    stop.store(true, Ordering::Relaxed);
    assert!(churn.await.unwrap() > 100, "the endpoints hardly changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_choose_by_host_path_and_header() {
    let server = Server::start().await;
    let mut services = String::new();
    let mut backends = Vec::new();
    for service in ["a", "b", "c", "d", "e"] {
        let backend = Backend::start(service).await;
        let address = backend.address;
        services += &format!(
            "kind: Service\nname: {service}\nversions: {{v1: {{endpoints: [\"{address}\"]}}}}\n---\n"
        );
        backends.push(backend);
    }
    let routes = r#"
kind: Gateway
name: edge
listen: 127.0.0.1:0
---
kind: Route
name: shop
gateway: edge
hosts: [shop.example.com, "*.shops.example.com"]
rules:
- match: {path: /exact}
  service: a
- match: {path_prefix: /checkout}
  service: b
- match: {path_prefix: /checkout, headers: [{name: x-beta, exact: "1"}]}
  service: c
- service: d
---
kind: Route
name: rest
gateway: edge
rules:
- match: {path_prefix: /}
  service: e
"#;
    server.api.apply(&format!("{services}{routes}")).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    let mut client = Client::new(edge.gateway("edge").await);
    until("the routes", SOON, async || client.get("/").await.ok()).await;
    let cases = [
        ("shop.example.com", "/exact", &[][..], "a"),
        ("shop.example.com", "/exact?q=1", &[], "a"),
        ("shop.example.com", "/exact/more", &[], "d"),
        ("shop.example.com", "/checkout", &[], "b"),
        ("shop.example.com", "/checkout/cart?x=/exact", &[], "b"),
        ("shop.example.com", "/checkouts", &[], "d"),
        ("shop.example.com", "/checkout", &[("x-beta", "1")], "c"),
        ("shop.example.com", "/checkout", &[("X-Beta", "2")], "b"),
        ("SHOP.example.com:8080", "/checkout", &[], "b"),
        ("one.shops.example.com", "/checkout", &[], "b"),
        ("shops.example.com", "/checkout", &[], "e"),
        ("elsewhere", "/exact", &[], "e"),
    ];
    for (host, path, headers, expected) in cases {
        let reached = client.get_with(path, host, headers).await;
        assert_eq!(reached.as_deref(), Ok(expected), "{host} {path} {headers:?}");
    }
}
