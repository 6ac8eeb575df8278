//! An edge holds what it routes: of a thousand services the few that its gateway leads to.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::time::{Duration, Instant};

use hyper::Method;
use load_tests::{
    api::{endpoint_path, series},
    backend::Backend,
    sluicegate::{Edge, Server},
    traffic::{Client, Traffic},
    until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const SERVICES: usize = 1_000;

/// Services `s0` to `s999`, and what else.
fn mesh(rest: &str) -> String {
    let services = (0..SERVICES).map(|i| format!("kind: Service\nname: s{i}\nversions: {{v1: {{}}}}\n---\n"));
    services.collect::<String>() + rest
}

fn gateway(name: &str, services: &[usize]) -> String {
    let rules = services.iter().map(|i| format!("{{match: {{path_prefix: /s{i}}}, service: s{i}}}"));
    let rules = rules.collect::<Vec<_>>().join(", ");
    format!(
        "kind: Gateway\nname: {name}\nlisten: 127.0.0.1:0\n\
         ---\nkind: Route\nname: all-{name}\ngateway: {name}\nrules: [{rules}]\n"
    )
}

async fn applied(server: &Server, text: &str) {
    let answer = server.api.apply_to("/v1/apply?wait=applied&timeout=20s", text).await.ok();
    assert_eq!(answer["applied"]["complete"], true, "{answer}");
}

/// Names of what the proxy holds of a type.
async fn held(edge: &Edge, kind: &str) -> Vec<String> {
    let dump = edge.admin.get("/config_dump").await;
    let names = dump["resources"][kind].as_array().unwrap().iter();
    names.map(|resource| resource["name"].as_str().unwrap().to_owned()).collect()
}

/// Names of what the server knows the proxy to follow of a type.
async fn followed(server: &Server, node: &str, kind: &str) -> Vec<String> {
    let all = server.api.get(&format!("/v1/proxies/{node}/resources")).await;
    let all = all["streams"][0]["resources"].as_array().unwrap_or_else(|| panic!("{all}")).iter();
    let of = all.filter(|resource| resource["type"] == kind);
    of.map(|resource| resource["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edge_holds_the_three_of_a_thousand_services_that_its_gateway_routes() {
    let mut server = Server::start().await;
    let both = format!("{}---\n{}", gateway("public", &[0, 1, 2]), gateway("internal", &[2, 3, 4]));
    server.api.apply(&mesh(&both)).await.ok();
    let backend = Backend::start("v1").await;
    for service in [0, 1, 2, 3, 500] {
        server.api.register(&format!("s{service}/v1"), "a", backend.address).await.ok();
    }
    let flags = ["--gateway", "public"];
    let mut edge = Edge::start_with("edge-1", server.xds, &flags).await;
    let address = edge.gateway("public").await;
    for service in 0..3 {
        assert_eq!(Client::new(address).get(&format!("/s{service}")).await.unwrap(), "v1");
    }
    let three = ["s0/v1", "s1/v1", "s2/v1"];
    assert_eq!(
        (held(&edge, "cds").await, held(&edge, "eds").await),
        (three.map(Into::into).into(), three.map(Into::into).into())
    );
    assert_eq!(
        (held(&edge, "lds").await, held(&edge, "rds").await),
        (vec!["public".into()], vec!["public".into()])
    );
    assert_eq!(held(&edge, "leds").await.len(), 3);
    let clusters = edge.admin.get("/clusters").await;
    assert_eq!(clusters.as_array().unwrap().len(), 3);
    assert_eq!(followed(&server, "edge-1", "CDS").await, three);
    assert_eq!(followed(&server, "edge-1", "LDS").await, ["public"]);

    // What it does not route does not reach it, whatever it is.
    let sent =
        async || series(&server.api.text("/metrics").await.unwrap(), "sluicegate_xds_response_bytes_total");
    let before = sent().await;
    server.api.register("s500/v1", "b", backend.address).await.ok();
    server.api.register("s3/v1", "b", backend.address).await.ok();
    applied(&server, "kind: Service\nname: s600\nversions: {v1: {}, v2: {}}\nsplit: {weights: {v2: 1}}\n")
        .await;
    applied(&server, &gateway("internal", &[3, 4, 5, 600])).await;
    applied(&server, "kind: Service\nname: s1000\nversions: {v1: {}}\n").await;
    assert!((sent().await - before).abs() < 0.5, "it was sent something");

    // A fourth comes when it is routed, and goes.
    applied(&server, &gateway("public", &[0, 1, 2, 500])).await;
    assert_eq!(Client::new(address).get("/s500").await.unwrap(), "v1");
    assert_eq!(held(&edge, "cds").await.len(), 4);
    applied(&server, &gateway("public", &[0, 1, 2])).await;
    until("the fourth to be given up", SOON, async || (held(&edge, "cds").await == three).then_some(()))
        .await;
    assert_eq!((held(&edge, "eds").await.len(), held(&edge, "leds").await.len()), (3, 3));
    assert_eq!(followed(&server, "edge-1", "CDS").await, three);

    // So much is saved, and so much is what it starts from without a server.
    edge.process.signal("TERM").await;
    edge.process.ended(SOON).await;
    server.process.kill().await;
    let edge = edge.restart_with(server.xds, &flags).await;
    let address = edge.gateway("public").await;
    until("the saved routes", SOON, async || Client::new(address).get("/s2").await.ok()).await;
    assert_eq!(held(&edge, "cds").await, three);

    // The next server has nothing to send again.
    let server = server.restart().await;
    until("the proxy to be back", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        (proxies["proxies"][0]["synced"] == true).then_some(())
    })
    .await;
    assert_eq!(followed(&server, "edge-1", "CDS").await, three);
    let bytes = series(&server.api.text("/metrics").await.unwrap(), "sluicegate_xds_response_bytes_total");
    assert!(bytes < 600.0, "{bytes}");
}

/// Milliseconds, sorted.
fn summary(mut times: Vec<Duration>) -> String {
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    format!("p50 {:.2} ms, max {:.2} ms", ms(times.len() / 2), ms(times.len() - 1))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_moves_to_a_cluster_made_in_the_same_transaction_lose_nothing() {
    let server = Server::start().await;
    let backends = [Backend::start("v0").await, Backend::start("v1").await];
    let move_to = |version: usize| {
        let address = backends[version % 2].address;
        format!(
            "kind: Service\nname: shop\nversions: {{v{version}: {{endpoints: [\"{address}\"]}}}}\n\
             ---\nkind: Gateway\nname: edge\nlisten: 127.0.0.1:0\n\
             ---\nkind: Route\nname: all\ngateway: edge\nrules: [{{service: shop}}]\n"
        )
    };
    server.api.apply(&move_to(0)).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    let address = edge.gateway("edge").await;
    until("the proxy to answer", SOON, async || Client::new(address).get("/").await.ok()).await;
    let traffic = Traffic::start(address, 8);
    let mut times = Vec::new();
    for version in 1..=20 {
        // One transaction: the new version appears, takes everything, and the old one goes.
        let began = Instant::now();
        applied(&server, &move_to(version)).await;
        times.push(began.elapsed());
        assert!(began.elapsed() < Duration::from_secs(2), "move {version}: {:?}", began.elapsed());
    }
    // And as fast as they are taken, each while the one before is on its way.
    for version in 21..=60 {
        server.api.apply(&move_to(version)).await.ok();
    }
    applied(&server, &move_to(61)).await;
    assert_eq!(Client::new(address).get("/").await.unwrap(), "v1");
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
    let proxies = server.api.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["nacks"], 0, "{proxies}");
    println!("to a new version, under load: {}", summary(times));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shifts_to_versions_that_were_not_routed_lose_nothing() {
    let server = Server::start().await;
    let backend = Backend::start("any").await;
    let versions = (0..21).map(|i| format!("v{i}: {{}}")).collect::<Vec<_>>().join(", ");
    let manifest = format!(
        "kind: Service\nname: shop\nversions: {{{versions}}}\nsplit: {{weights: {{v0: 1}}}}\n\
         ---\nkind: Gateway\nname: edge\nlisten: 127.0.0.1:0\n\
         ---\nkind: Route\nname: all\ngateway: edge\nrules: [{{service: shop}}]\n"
    );
    server.api.apply(&manifest).await.ok();
    for i in 0..21 {
        let body = json!({"address": backend.address.to_string()});
        server.api.json(Method::PUT, &endpoint_path(&format!("shop/v{i}"), "a"), &body).await.ok();
    }
    let edge = Edge::start("edge-1", server.xds).await;
    let address = edge.gateway("edge").await;
    until("the proxy to answer", SOON, async || Client::new(address).get("/").await.ok()).await;
    let mut times = Vec::new();
    for load in [0, 2] {
        let traffic = Traffic::start(address, load);
        for i in 1..21 {
            let began = Instant::now();
            let path = "/v1/services/shop/split?wait=applied&timeout=10s";
            let weights = json!({"weights": {format!("v{i}"): 1}});
            let answer: Value = server.api.json(Method::PUT, path, &weights).await.ok();
            times.push(began.elapsed());
            assert_eq!(answer["applied"]["complete"], true, "{answer}");
        }
        println!(
            "to a version that was there and not routed, {load} clients: {}",
            summary(std::mem::take(&mut times))
        );
        let outcome = traffic.stop().await;
        assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
    }
}
