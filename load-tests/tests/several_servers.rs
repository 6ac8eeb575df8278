//! Several servers over one etcd: any proxy on any server, a write on one pushed by all, and what
//! happens when a server, or etcd itself, goes away.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use load_tests::{
    api::endpoint_path,
    backend::Backend,
    peers::etcd::Etcd,
    sluicegate::{Edge, Server, manifest},
    traffic::{Client, Traffic},
    until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);

/// `count` servers that share an etcd.
async fn servers(etcd: &Etcd, count: usize) -> Vec<Server> {
    let mut servers = Vec::new();
    for _ in 0..count {
        servers.push(Server::start_sharing(&etcd.url()).await);
    }
    servers
}

/// Waits until `server` shows exactly `ids` as the endpoints of `shop/v1`.
async fn shows(server: &Server, ids: &[&str]) {
    until(&format!("a server to show {ids:?}"), SOON, async || {
        let shop = server.api.get("/v1/services/shop").await;
        (endpoints(&shop) == ids).then_some(())
    })
    .await;
}

fn endpoints(shop: &Value) -> Vec<String> {
    let of = shop["versions"][0]["endpoints"].as_array().into_iter().flatten();
    of.filter_map(|endpoint| Some(endpoint["id"].as_str()?.to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_on_one_server_is_pushed_by_all_and_every_server_says_the_same() {
    let etcd = Etcd::start().await;
    let servers = servers(&etcd, 3).await;
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)])).await.ok();
    // At another server, at once: what the first one did is known there, or waited for.
    let (v1, v2) = (Backend::start("v1").await, Backend::start("v2").await);
    servers[1].api.register("shop/v1", "a", v1.address).await.ok();
    servers[2].api.register("shop/v2", "b", v2.address).await.ok();

    let mut edges = Vec::new();
    for (i, server) in servers.iter().enumerate() {
        let edge = Edge::start(&format!("edge-{i}"), server.xds).await;
        let gateway = edge.gateway("edge").await;
        let version = until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
        assert_eq!(version, "v1");
        edges.push((edge, gateway));
    }
    let done = servers[1].api.split("shop", json!({"v1": 0, "v2": 1})).await.ok();
    for (_, gateway) in &edges {
        until("the shift to arrive", SOON, async || {
            (Client::new(*gateway).get("/").await.ok()? == "v2").then_some(())
        })
        .await;
    }
    // The revision is etcd's, so it is the same everywhere; so are the ETags.
    for server in &servers {
        let shop = server.api.get("/v1/services/shop").await;
        assert_eq!(shop["revision"], done["revision"], "{shop}");
        until("the timeline to say who shifted", SOON, async || {
            let events = server.api.get("/v1/events").await;
            let all = events["events"].as_array()?.iter();
            let shift = all.filter(|e| e["event"] == "change" && e["subject"] == "Split shop").count();
            (shift == 1).then_some(())
        })
        .await;
    }
    let events = servers[0].api.get("/v1/events").await;
    let shift = events["events"].as_array().unwrap().iter().find(|e| e["subject"] == "Split shop").unwrap();
    assert!(shift["actor"].as_str().unwrap().contains(" at "), "{shift}");
    assert_eq!(shift["revision"], done["revision"]);

    // A precondition that was true is refused on every server once it is not.
    let etag = done["revision"].as_u64().unwrap();
    servers[0].api.split("shop", json!({"v1": 1, "v2": 1})).await.ok();
    for server in &servers {
        let path = format!("/v1/services/shop/split?if_match={etag}");
        drop(path);
        let shop = until("the servers to agree", SOON, async || {
            let shop = server.api.get("/v1/services/shop").await;
            (shop["revision"].as_u64()? > etag).then_some(shop)
        })
        .await;
        assert_eq!(shop["versions"][0]["basis_points"], 5_000);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_two_servers_write_at_once_is_never_mixed() {
    let etcd = Etcd::start().await;
    let servers = servers(&etcd, 3).await;
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let address = "127.0.0.1:9".parse().unwrap();
    // Registrations against the deletion of what they register with.
    for round in 0..10 {
        let service = format!("kind: Service\nname: s{round}\nversions: {{v1: {{}}}}\n");
        servers[0].api.apply(&service).await.ok();
        let cluster = format!("s{round}/v1");
        let path = format!("/v1/services/s{round}");
        let (put, deleted) = tokio::join!(
            servers[1].api.register(&cluster, "a", address),
            servers[2].api.json(Method::DELETE, &path, &Value::Null),
        );
        // One of them comes first, and the other one is told.
        assert!(
            put.status.is_success() != deleted.status.is_success(),
            "{} {}: {} {}",
            put.status,
            put.body,
            deleted.status,
            deleted.body
        );
    }
    // Many writers of one object: none is lost.
    let writer = async |server: &Server, name: &str| {
        for i in 0..30 {
            let id = format!("{name}{i}");
            server.api.register("shop/v1", &id, address).await.ok();
            let split = server.api.split("shop", json!({"v1": i + 1})).await;
            assert!(split.status.is_success(), "{}", split.body);
        }
    };
    tokio::join!(writer(&servers[0], "a"), writer(&servers[1], "b"), writer(&servers[2], "c"));
    for server in &servers {
        until("every registration to be everywhere", SOON, async || {
            (endpoints(&server.api.get("/v1/services/shop").await).len() == 90).then_some(())
        })
        .await;
    }
}
