//! What proxies report of their load is what they sent: ours over lost connections and to their end,
//! and Envoy.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use load_tests::{
    backend::Backend,
    peers::envoy::{Envoy, Variant},
    sluicegate::{Edge, Server, binary, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::Value;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

const SOON: Duration = Duration::from_secs(20);

/// Passes connections on, and can cut them all.
struct Relay {
    address: SocketAddr,
    cut: tokio::sync::watch::Sender<()>,
    /// Connections passed on so far.
    passed: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Relay {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, cuts) = tokio::sync::watch::channel(());
        let passed = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&passed);
        let accepting = tokio::spawn(async move {
            loop {
                let mut near = listener.accept().await.unwrap().0;
                let (mut cuts, passed) = (cuts.clone(), Arc::clone(&counted));
                cuts.mark_unchanged();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    passed.fetch_add(1, Ordering::SeqCst);
                    tokio::select! {
                        _ = copy_bidirectional(&mut near, &mut far) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, cut, passed, accepting }
    }

    fn cut(&self) {
        self.cut.send_replace(());
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The sum of a field over the versions.
fn sum(load: &Value, field: &str) -> u64 {
    load["versions"].as_array().unwrap().iter().map(|version| version[field].as_u64().unwrap()).sum()
}

fn endpoint<'a>(load: &'a Value, id: &str) -> &'a Value {
    let versions = load["versions"].as_array().unwrap().iter();
    let endpoints = versions.flat_map(|version| version["endpoints"].as_array().unwrap());
    endpoints.into_iter().find(|endpoint| endpoint["id"] == id).unwrap_or_else(|| panic!("no {id}: {load:#}"))
}

async fn stopped(mut edge: Edge) {
    edge.process.signal("TERM").await;
    assert!(edge.process.ended(SOON).await.success(), "{}", edge.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_two_proxies_were_stopped_the_sum_is_every_request_that_was_answered() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 3), ("v2", 1)])).await.ok();
    let backends = [Backend::start("v1").await, Backend::start("v1").await, Backend::start("v2").await];
    for (i, backend) in backends.iter().enumerate() {
        let cluster = if i < 2 { "shop/v1" } else { "shop/v2" };
        server.api.register(cluster, &format!("e{i}"), backend.address).await.ok();
    }
    // One of them loses its connection to the server again and again.
    let relay = Relay::start(server.xds).await;
    let edges = [Edge::start("edge-1", server.xds).await, Edge::start("edge-2", relay.address).await];
    let mut traffic = Vec::new();
    for edge in &edges {
        let gateway = edge.gateway("edge").await;
        traffic.push(Traffic::start(gateway, 4));
    }
    for _ in 0..5 {
        let (sent, passed) = (traffic[1].sent(), relay.passed.load(Ordering::SeqCst));
        until("traffic", SOON, async || (traffic[1].sent() > sent + 300).then_some(())).await;
        relay.cut();
        until("it to connect again", SOON, async || {
            (relay.passed.load(Ordering::SeqCst) > passed).then_some(())
        })
        .await;
    }
    until("both to report", SOON, async || {
        let load = server.api.get("/v1/load").await;
        let reporters = load["reporters"].as_array()?;
        let both = reporters.len() == 2 && reporters.iter().all(|r| r["streams"] == 1 && r["reports"] != 0);
        both.then_some(())
    })
    .await;
    let mut answered = 0;
    for traffic in traffic {
        let outcome = traffic.stop().await;
        assert_eq!(outcome.failures, 0, "{:?}", outcome.reasons);
        answered += outcome.requests();
    }
    for edge in edges {
        stopped(edge).await;
    }

    let load = server.api.get("/v1/load").await;
    assert_eq!((sum(&load, "requests"), sum(&load, "successful")), (answered, answered), "{load:#}");
    assert_eq!((sum(&load, "errors"), sum(&load, "in_progress")), (0, 0), "{load:#}");
    for (i, backend) in backends.iter().enumerate() {
        assert_eq!(endpoint(&load, &format!("e{i}"))["requests"], backend.hits.count(), "{load:#}");
    }
    let proxies = load["versions"].as_array().unwrap().iter().flat_map(|v| v["proxies"].as_array().unwrap());
    assert_eq!(proxies.map(|proxy| proxy["requests"].as_u64().unwrap()).sum::<u64>(), answered, "{load:#}");
    let unknown =
        load["unknown"]["requests"].as_u64().unwrap() + load["removed"]["requests"].as_u64().unwrap();
    assert_eq!(unknown, 0, "{load:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_nobody_can_connect_to_has_errors_and_one_that_left_is_in_its_locality() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let (good, leaving) = (Backend::start("v1").await, Backend::start("v1").await);
    let dead = {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        taken.local_addr().unwrap()
    };
    for (id, address) in [("good", good.address), ("dead", dead), ("leaving", leaving.address)] {
        server.api.register("shop/v1", id, address).await.ok();
    }
    let edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    let outcome = Traffic::run(gateway, 4, 500).await;
    assert_eq!(outcome.failures, 0, "{:?}", outcome.reasons);
    server.api.remove("shop/v1", "leaving").await.ok();
    until("the endpoint to leave", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        (proxies["proxies"][0]["synced"] == true).then_some(())
    })
    .await;
    stopped(edge).await;
    let load = server.api.get("/v1/load").await;
    let dead = endpoint(&load, "dead");
    assert!(dead["requests"].as_u64().unwrap() > 0, "{load:#}");
    assert_eq!((&dead["requests"], &dead["successful"]), (&dead["errors"], &0.into()), "{load:#}");
    assert_eq!(endpoint(&load, "good")["requests"], good.hits.count(), "{load:#}");
    assert_eq!(sum(&load, "successful"), outcome.requests(), "{load:#}");
    assert_eq!(sum(&load, "errors"), dead["errors"].as_u64().unwrap(), "{load:#}");
    let localities = load["versions"][0]["localities"].as_array().unwrap();
    let in_localities: u64 = localities.iter().map(|l| l["successful"].as_u64().unwrap()).sum();
    assert_eq!(in_localities, good.hits.count() + leaving.hits.count(), "{load:#}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_shows_what_is_in_progress_while_it_is() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let slow = Backend::start_slow("v1", Duration::from_secs(4)).await;
    server.api.register("shop/v1", "slow", slow.address).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    let request = tokio::spawn(async move { Client::new(gateway).get("/").await });
    until("the request to be shown", SOON, async || {
        let load = server.api.get("/v1/load").await;
        (load["versions"][0]["in_progress"] == 1).then_some(())
    })
    .await;
    let api = server.api.address().to_string();
    let run = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(binary());
        command.arg("load").args(arguments).args(["--api", &api]);
        let output = command.output().await.unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = run(&["shop", "v1"]).await;
    assert_eq!(code, Some(0), "{text}");
    for (words, after) in
        [(["shop", "v1"], "IN PROGRESS"), (["v1", "slow"], "ENDPOINT"), (["edge-1", "1"], "PROXY")]
    {
        let line = text.lines().find(|line| {
            let cells: Vec<&str> = line.split_whitespace().collect();
            cells.starts_with(&words)
        });
        assert!(text.contains(after) && line.is_some(), "{words:?}: {text}");
    }
    let (code, json) = run(&["shop", "-o", "json"]).await;
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((code, &json["versions"][0]["in_progress"]), (Some(0), &1.into()));
    assert_eq!(run(&["none"]).await.0, Some(1), "a service that does not exist");
    assert_eq!(run(&["No"]).await.0, Some(2), "what is no name");
    assert_eq!(request.await.unwrap().as_deref(), Ok("v1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_reports_what_it_sends() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 1)])).await.ok();
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    server.api.register("shop/v1", "a", v1.address).await.ok();
    server.api.register("shop/v2", "b", v2.address).await.ok();
    let mut envoy = Envoy::start("envoy-1", server.xds, Variant::Incremental).await;
    let gateway = envoy.gateway("edge").await;
    // Envoy counts a cluster from the first period on that began with it.
    let reports = async || server.api.get("/v1/load").await["reporters"][0]["reports"].as_u64();
    let before = until("a report", SOON, reports).await;
    until("a whole period", SOON, async || (reports().await? >= before + 2).then_some(())).await;
    let outcome = Traffic::run(gateway, 4, 1_000).await;
    assert_eq!(outcome.failures, 0, "{:?}", outcome.reasons);
    let load = until("Envoy to have reported all of them", SOON, async || {
        let load = server.api.get("/v1/load").await;
        (sum(&load, "requests") >= 1_000 && sum(&load, "in_progress") == 0).then_some(load)
    })
    .await;
    assert_eq!((sum(&load, "requests"), sum(&load, "successful")), (1_000, 1_000), "{load:#}");
    assert_eq!(endpoint(&load, "a")["requests"], v1.hits.count(), "{load:#}");
    assert_eq!(endpoint(&load, "b")["requests"], v2.hits.count(), "{load:#}");
    assert_eq!(load["versions"][0]["proxies"][0]["node"], "envoy-1", "{load:#}");
    envoy.process.kill().await;
    until("it to be gone", SOON, async || {
        (server.api.get("/v1/load").await["reporters"][0]["streams"] == 0).then_some(())
    })
    .await;
    assert_eq!(sum(&server.api.get("/v1/load").await, "requests"), 1_000);
}
