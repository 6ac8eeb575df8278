//! Real gRPC clients, without a proxy between: `xds:///shop` from our server.
//!
//! What a removed endpoint answers is never an error here: it keeps running until its calls are done.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

mod support;

use std::{net::SocketAddr, time::Duration};

use hyper::Method;
use load_tests::{
    api::endpoint_path,
    backend::Backend,
    peers::grpc::{GrpcClient, Language, Options},
    sluicegate::Server,
    until,
};
use serde_json::{Value, json};
use support::{SOON, certificates::Authority, peer::Serving};

const NODE: &str = "grpc-1";
/// Tells a client to keep what it has when the server says that it is gone (gRFC A53).
const IGNORE_DELETION: Options<'_> = Options { features: &["ignore_resource_deletion"], ca: None };

/// Service `shop`, and a gateway of that name, which is not what a gRPC client means.
fn manifest(weights: &[(&str, u32)]) -> String {
    let versions: Vec<String> = weights.iter().map(|(version, _)| format!("{version}: {{}}")).collect();
    let weights: Vec<String> =
        weights.iter().map(|(version, weight)| format!("{version}: {weight}")).collect();
    format!(
        "kind: Service\nname: shop\nprotocol: grpc\nversions: {{{}}}\nsplit: {{weights: {{{}}}}}\n\
         ---\nkind: Gateway\nname: shop\nlisten: 127.0.0.1:0\n\
         ---\nkind: Route\nname: shop\ngateway: shop\nrules: [{{match: {{path: /nothing}}, service: shop}}]\n",
        versions.join(", "),
        weights.join(", ")
    )
}

/// A write that every client has acknowledged.
async fn applied(server: &Server, method: Method, path: &str, body: Value) {
    let path = format!("{path}?wait=applied&timeout=10s");
    let answer = server.api.json(method, &path, &body).await.ok();
    assert_eq!(answer["applied"]["complete"], true, "{answer}");
}

async fn add(server: &Server, cluster: &str, id: &str, address: SocketAddr) {
    let body = json!({"address": address.to_string()});
    applied(server, Method::PUT, &endpoint_path(cluster, id), body).await;
}

async fn remove(server: &Server, cluster: &str, id: &str) {
    applied(server, Method::DELETE, &endpoint_path(cluster, id), Value::Null).await;
}

async fn shift(server: &Server, weights: Value) {
    applied(server, Method::PUT, "/v1/services/shop/split", json!({"weights": weights})).await;
}

/// The client as the server sees it; it has refused nothing.
async fn proxy(server: &Server) -> Value {
    let proxies = server.api.get("/v1/proxies").await;
    let [proxy] = proxies["proxies"].as_array().unwrap().as_slice() else { panic!("{proxies}") };
    assert_eq!((&proxy["node"], &proxy["nacks"]), (&json!(NODE), &json!(0)), "{proxies}");
    proxy.clone()
}

/// Waits until the client has asked for something, and has been answered.
async fn asked(server: &Server) {
    // Node has a thousand files to read before.
    until("the client to ask", Duration::from_mins(1), async || {
        let proxies = server.api.get("/v1/proxies").await;
        proxies["proxies"].as_array()?.first()?["synced"].as_bool()?.then_some(())
    })
    .await;
}

async fn calls_and_follows_endpoints(language: Language, agent: &str) {
    let server = Server::start().await;
    server.api.apply(&manifest(&[("v1", 1), ("v2", 0)])).await.ok();
    let (first, second) = (Backend::start("first").await, Backend::start("second").await);
    server.api.register("shop/v1", "a", first.address).await.ok();
    let mut client = GrpcClient::start(language, NODE, server.xds, "xds:///shop", Options::default());
    let outcome = client.run(50).await;
    assert_eq!(outcome.versions.get("first"), Some(&50), "{outcome:?}\n{}", client.log());
    let seen = proxy(&server).await;
    assert!(seen["agent"].as_str().unwrap().starts_with(agent), "{seen}");
    assert_eq!((&seen["variant"], &seen["synced"]), (&json!("state-of-the-world"), &json!(true)), "{seen}");

    client.begin().await;
    add(&server, "shop/v1", "b", second.address).await;
    until("the second endpoint to be called", SOON, async || (second.hits.count() > 0).then_some(())).await;
    remove(&server, "shop/v1", "a").await;
    // Acknowledged is understood; the connections follow a moment later.
    until("the first endpoint to be left alone", SOON, async || {
        let (before, others) = (first.hits.count(), second.hits.count());
        until("calls", SOON, async || (second.hits.count() > others + 20).then_some(())).await;
        (first.hits.count() == before).then_some(())
    })
    .await;
    let outcome = client.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", client.log());
    let outcome = client.run(50).await;
    assert_eq!(outcome.versions.get("second"), Some(&50), "{outcome:?}");
    proxy(&server).await;
}

async fn follows_splits(language: Language) {
    let server = Server::start().await;
    server.api.apply(&manifest(&[("v1", 1), ("v2", 0)])).await.ok();
    let backends = [Backend::start("v1").await, Backend::start("v1").await, Backend::start("v2").await];
    for (backend, (cluster, id)) in
        backends.iter().zip([("shop/v1", "a"), ("shop/v1", "b"), ("shop/v2", "c")])
    {
        server.api.register(cluster, id, backend.address).await.ok();
    }
    let mut client = GrpcClient::start(language, NODE, server.xds, "xds:///shop", IGNORE_DELETION);
    let outcome = client.run(100).await;
    assert_eq!(outcome.versions.get("v1"), Some(&100), "{outcome:?}\n{}", client.log());

    client.begin().await;
    shift(&server, json!({"v1": 1, "v2": 1})).await;
    until("v2 to be called", SOON, async || (backends[2].hits.count() > 0).then_some(())).await;
    let so_far = client.stop().await;
    assert_eq!(so_far.failures, 0, "{so_far:?}\n{}", client.log());
    // Ten points are nine standard deviations.
    let half = client.run(2_000).await;
    assert_eq!(half.failures, 0, "{half:?}");
    assert!((half.share("v2") - 50.0).abs() < 10.0, "{half:?}");

    client.begin().await;
    shift(&server, json!({"v2": 1})).await;
    until("v1 to be left alone", SOON, async || {
        let (before, others) = (client.so_far().await, backends[2].hits.count());
        until("calls", SOON, async || (backends[2].hits.count() > others + 50).then_some(())).await;
        (client.so_far().await.versions.get("v1") == before.versions.get("v1")).then_some(())
    })
    .await;
    let moved = client.stop().await;
    assert_eq!(moved.failures, 0, "{moved:?}\n{}", client.log());
    let outcome = client.run(200).await;
    assert_eq!(outcome.versions.get("v2"), Some(&200), "{outcome:?}");
    proxy(&server).await;
}

/// One endpoint appears or goes, a hundred times, and one is there all the time or nearly so: before the
/// last one goes another has come.
async fn loses_no_call_in_a_hundred_endpoint_changes(language: Language) {
    let server = Server::start().await;
    server.api.apply(&manifest(&[("v1", 1)])).await.ok();
    let mut backends = Vec::new();
    for name in ["a", "b", "c"] {
        backends.push((name, Backend::start(name).await));
    }
    server.api.register("shop/v1", "a", backends[0].1.address).await.ok();
    let mut client = GrpcClient::start(language, NODE, server.xds, "xds:///shop", Options::default());
    client.run(10).await;
    client.begin().await;
    for change in 0..50 {
        let ((old, _), (new, backend)) = (&backends[change % 3], &backends[(change + 1) % 3]);
        add(&server, "shop/v1", new, backend.address).await;
        let before = backend.hits.count();
        until("the new endpoint to be called", SOON, async || (backend.hits.count() > before).then_some(()))
            .await;
        remove(&server, "shop/v1", old).await;
    }
    let outcome = client.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", client.log());
    assert_eq!(outcome.versions.len(), 3, "{outcome:?}");
    let last = client.run(50).await;
    assert_eq!(last.versions.get(backends[50 % 3].0), Some(&50), "{last:?}");
    proxy(&server).await;
}

/// A restart finds everybody where they were: calls go on without a server, and with the next one.
async fn outlives_a_restart_of_the_server(language: Language) {
    let mut server = Server::start().await;
    server.api.apply(&manifest(&[("v1", 1)])).await.ok();
    let (first, second) = (Backend::start("first").await, Backend::start("second").await);
    server.api.register("shop/v1", "a", first.address).await.ok();
    let mut client = GrpcClient::start(language, NODE, server.xds, "xds:///shop", Options::default());
    client.run(10).await;
    client.begin().await;
    server.process.kill().await;
    let before = first.hits.count();
    until("calls without a server", SOON, async || (first.hits.count() > before + 50).then_some(())).await;
    let server = server.restart().await;
    server.api.register("shop/v1", "b", second.address).await.ok();
    // Its back-off may have come to some seconds (gRPC connection back-off: 1 s, and 1.6 times as long each
    // time).
    until("the next server to be followed", SOON, async || (second.hits.count() > 0).then_some(())).await;
    let outcome = client.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", client.log());
    proxy(&server).await;
}

/// A target that does not exist yet is waited for (gRFC A27: 15 s), and one that goes is gone; unless the
/// client was told to keep what it has.
async fn a_target_comes_and_goes(language: Language, options: Options<'_>, keeps: bool) {
    let server = Server::start().await;
    let backend = Backend::start("v1").await;
    let mut client = GrpcClient::start(language, NODE, server.xds, "xds:///shop", options);
    client.begin().await;
    asked(&server).await;
    let version = format!("versions: {{v1: {{endpoints: [\"{}\"]}}}}", backend.address);
    server.api.apply(&format!("kind: Service\nname: shop\nprotocol: grpc\n{version}\n")).await.ok();
    until("the target to be called", SOON, async || (backend.hits.count() > 0).then_some(())).await;
    let outcome = client.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", client.log());

    applied(&server, Method::DELETE, "/v1/services/shop", Value::Null).await;
    if keeps {
        let outcome = client.run(200).await;
        assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", client.log());
    } else {
        let gone =
            until("the target to be gone", SOON, async || client.run(1).await.reasons.first().cloned());
        let gone = gone.await;
        assert!(gone.starts_with("UNAVAILABLE"), "{gone}");
    }
    proxy(&server).await;
}

/// TLS as the server says: with a certificate for the name that the service has, and with none for
/// another. A client without a certificate provider refuses the cluster, and the server says so.
async fn does_as_the_server_says_about_tls(language: Language) {
    let authority = Authority::new().await;
    let server = Server::start().await;
    let ca = authority.ca();
    let start = |options| GrpcClient::start(language, NODE, server.xds, "xds:///shop", options);
    let serve = async |file: &str, name: &str, serial| {
        let pair = authority.issue(file, name, serial).await;
        let pair = [&pair.cert, &pair.key].map(|path| path.to_str().unwrap());
        Serving::start_with("grpc_server.py", &pair).await
    };
    let (right, wrong) =
        (serve("right", "shop.internal", 1).await, serve("wrong", "other.internal", 2).await);
    let tls = format!("tls: {{ca: {}, sni: shop.internal}}\n", ca.display());
    server.api.apply(&manifest(&[("v1", 1)]).replacen("---\n", &format!("{tls}---\n"), 1)).await.ok();
    server.api.register("shop/v1", "right", right.address).await.ok();
    let mut client = start(Options { ca: Some(&ca), ..Options::default() });
    let outcome = client.run(20).await;
    assert_eq!(outcome.versions.get("grpcio"), Some(&20), "{outcome:?}\n{}", client.log());
    proxy(&server).await;

    server.api.register("shop/v1", "wrong", wrong.address).await.ok();
    server.api.remove("shop/v1", "right").await.ok();
    until("the wrong certificate to be refused", SOON, async || {
        client.run(1).await.reasons.first().filter(|reason| reason.starts_with("UNAVAILABLE")).cloned()
    })
    .await;
    drop(client);

    let mut client = start(Options::default());
    let outcome = client.run(1).await;
    assert!(outcome.reasons[0].starts_with("UNAVAILABLE"), "{outcome:?}");
    let refused = until("the refusal to be shown", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        let proxy = proxies["proxies"].as_array()?.iter().find(|proxy| proxy["nacks"] != 0)?;
        Some(proxy.to_string())
    });
    let refused = refused.await;
    assert!(refused.contains("ca_certificate_provider_instance"), "{refused}");
}

macro_rules! tests {
    ($($name:ident: $test:expr;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            $test.await;
        }
    )*};
}

tests! {
    grpcio_calls_and_follows_endpoints: calls_and_follows_endpoints(Language::Python, "gRPC C-core ");
    grpc_js_calls_and_follows_endpoints: calls_and_follows_endpoints(Language::Node, "gRPC Node Pure JS ");
    grpcio_follows_splits: follows_splits(Language::Python);
    grpc_js_follows_splits: follows_splits(Language::Node);
    grpcio_loses_no_call_in_a_hundred_endpoint_changes:
        loses_no_call_in_a_hundred_endpoint_changes(Language::Python);
    grpc_js_loses_no_call_in_a_hundred_endpoint_changes:
        loses_no_call_in_a_hundred_endpoint_changes(Language::Node);
    grpcio_outlives_a_restart_of_the_server: outlives_a_restart_of_the_server(Language::Python);
    grpc_js_outlives_a_restart_of_the_server: outlives_a_restart_of_the_server(Language::Node);
    grpcio_believes_that_a_target_is_gone: a_target_comes_and_goes(Language::Python, Options::default(), false);
    grpc_js_believes_that_a_target_is_gone: a_target_comes_and_goes(Language::Node, Options::default(), false);
    grpcio_keeps_a_target_as_it_was_told: a_target_comes_and_goes(Language::Python, IGNORE_DELETION, true);
    grpc_js_keeps_a_target_as_it_was_told: a_target_comes_and_goes(Language::Node, IGNORE_DELETION, true);
    grpcio_does_as_the_server_says_about_tls: does_as_the_server_says_about_tls(Language::Python);
    grpc_js_does_as_the_server_says_about_tls: does_as_the_server_says_about_tls(Language::Node);
}
