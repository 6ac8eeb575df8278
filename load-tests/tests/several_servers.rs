//! Several servers over one etcd: any proxy on any server, a write on one pushed by all, and what
//! happens when a server, or etcd itself, goes away.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::{
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use hyper::{Method, StatusCode};
use load_tests::{
    api::{Answer, Api, Hold, endpoint_path},
    backend::Backend,
    peers::etcd::Etcd,
    sluicegate::{Edge, Server, binary, manifest},
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
    let _log = LogOnPanic(server);
    until(&format!("a server to show {ids:?}"), SOON, async || {
        let shop = server.api.get("/v1/services/shop").await;
        (endpoints(&shop) == ids).then_some(())
    })
    .await;
}

/// Shows what a server said when a test fails.
struct LogOnPanic<'s>(&'s Server);

impl Drop for LogOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.log());
        }
    }
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

    // What a client read at one server is a precondition at every other.
    let etag = done["revision"].as_u64().unwrap();
    for (server, expected) in [(&servers[2], StatusCode::OK), (&servers[0], StatusCode::PRECONDITION_FAILED)]
    {
        let weights = r#"{"weights": {"v1": 1, "v2": 1}}"#;
        let (status, body) = split_if_match(server, etag, weights).await;
        assert_eq!(status, expected, "{body}");
    }
}

/// `PUT` of a split with a precondition.
async fn split_if_match(server: &Server, revision: u64, weights: &str) -> (StatusCode, String) {
    let url = format!("http://{}/v1/services/shop/split", server.api.address());
    let condition = format!("If-Match: \"{revision}\"");
    let arguments =
        ["--silent", "--noproxy", "*", "-X", "PUT", "-H", &condition, "-d", weights, "-w", "\n%{http_code}"];
    let said = tokio::process::Command::new("curl").args(arguments).arg(url).output().await.unwrap();
    let said = String::from_utf8(said.stdout).unwrap();
    let (body, code) = said.rsplit_once('\n').unwrap();
    (code.parse().unwrap(), body.to_owned())
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

/// What `sluicegate xds-server --store` says when it does not start.
async fn refused(store: &str) -> (Option<i32>, String) {
    let mut command = tokio::process::Command::new(binary());
    command.args(["xds-server", "--api-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--store", store]);
    let output = tokio::time::timeout(SOON, command.kill_on_drop(true).output()).await;
    let output = output.expect("it ends by itself").unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_that_makes_no_sense_is_refused_with_the_remedy() {
    let (code, said) = refused("redis://127.0.0.1:2379").await;
    assert_eq!(code, Some(2), "{said}");
    let remedy = "`redis` is no store that this server has; write etcd://host:port[,host:port…][/prefix]";
    assert!(said.contains(remedy), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_with_passwords_takes_the_right_one_and_the_wrong_one_is_told_so() {
    let etcd = Etcd::start().await;
    etcd.require_password("se:cr@et").await;
    let server = Server::start_sharing(&etcd.url_for("root:se:cr@et")).await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    let _held = server.api.hold("shop/v1", "held", backend.address).await;
    lease(&server, "leased", backend.address, "2s").await.ok();
    lease(&server, "leased", backend.address, "2s").await.ok();
    for login in ["root:wrong", ""] {
        let (code, said) = refused(&etcd.url_for(login)).await;
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("give --store a user that may read and write"), "{said}");
        assert!(!said.contains("wrong"), "{said}");
    }
}

/// Registers, or renews, an endpoint that lives for `ttl`.
async fn lease(server: &Server, id: &str, address: SocketAddr, ttl: &str) -> Answer {
    let body = json!({"address": address.to_string(), "ttl": ttl});
    server.api.json(Method::PUT, &endpoint_path("shop/v1", id), &body).await
}

/// An instance that renews its lease four times a term, at whichever of `servers` answers.
fn renewing(servers: Vec<SocketAddr>, id: &'static str, address: SocketAddr) -> tokio::task::JoinHandle<()> {
    let body = json!({"address": address.to_string(), "ttl": "2s"});
    tokio::spawn(async move {
        let apis: Vec<Api> = servers.into_iter().map(Api::new).collect();
        loop {
            for api in &apis {
                let path = endpoint_path("shop/v1", id);
                let sent = api.send(Method::PUT, &path, "application/json", body.to_string()).await;
                if sent.is_ok_and(|(status, _)| status.is_success()) {
                    break;
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_lives_by_its_renewals_and_not_by_the_server_that_took_it() {
    let etcd = Etcd::start().await;
    let mut servers = servers(&etcd, 2).await;
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    for id in ["lonely", "renewed"] {
        lease(&servers[0], id, backend.address, "2s").await.ok();
    }
    let held = servers[0].api.hold("shop/v1", "held", backend.address).await;
    let _moving = servers[0].api.hold("shop/v1", "moving", backend.address).await;
    shows(&servers[1], &["held", "lonely", "moving", "renewed"]).await;

    servers[0].process.kill().await;
    let renewing = renewing(vec![servers[1].api.address()], "renewed", backend.address);
    // An instance whose server has died comes back to another one.
    let moved = servers[1].api.hold("shop/v1", "moving", backend.address).await;
    shows(&servers[1], &["held", "moving", "renewed"]).await;
    // What nobody holds any more has its grace, and goes.
    shows(&servers[1], &["moving", "renewed"]).await;
    drop(held);
    renewing.abort();
    shows(&servers[1], &["moving"]).await;
    drop(moved);
    shows(&servers[1], &[]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_was_taken_over_at_another_server_removes_nothing() {
    let etcd = Etcd::start().await;
    let servers = servers(&etcd, 2).await;
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    let first = servers[0].api.hold("shop/v1", "a", backend.address).await;
    let second = servers[1].api.hold("shop/v1", "a", backend.address).await;
    drop(first);
    // Something that comes after it at the same server.
    servers[0].api.register("shop/v1", "b", backend.address).await.ok();
    for server in &servers {
        shows(server, &["a", "b"]).await;
    }
    drop(second);
    for server in &servers {
        shows(server, &["b"]).await;
    }
}

/// A server, a proxy on it, and a service with an endpoint of every kind.
struct Shop {
    edge: Edge,
    gateway: SocketAddr,
    backend: Backend,
    _held: Hold,
    renewing: tokio::task::JoinHandle<()>,
}

const ALL: &[&str] = &["held", "leased", "permanent"];

impl Shop {
    async fn open(servers: &[Server]) -> Self {
        servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
        let backend = Backend::start("v1").await;
        servers[0].api.register("shop/v1", "permanent", backend.address).await.ok();
        let held = servers[0].api.hold("shop/v1", "held", backend.address).await;
        let renewing = renewing(servers.iter().map(|s| s.api.address()).collect(), "leased", backend.address);
        for server in servers {
            shows(server, ALL).await;
        }
        let edge = Edge::start("edge-1", servers[0].xds).await;
        let gateway = edge.gateway("edge").await;
        until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
        Self { edge, gateway, backend, _held: held, renewing }
    }
}

impl Drop for Shop {
    fn drop(&mut self) {
        self.renewing.abort();
    }
}

/// Waits until `server` is ready.
async fn ready(server: &Server) {
    until("a server to be ready", SOON, async || (server.api.status("/readyz").await == 200).then_some(()))
        .await;
}

/// What a server without etcd does: it reads, and refuses to write, soon and with words.
async fn refuses_to_write(server: &Server, shop: &Shop) {
    let began = Instant::now();
    let refused = server.api.register("shop/v1", "new", shop.backend.address).await;
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    assert_eq!(refused.body["error"]["code"], "unavailable");
    assert!(refused.message().contains("the store etcd://127.0.0.1:"), "{}", refused.message());
    assert!(refused.message().contains("see that a majority of etcd's members run"), "{}", refused.message());
    until("a server to say so", SOON, async || (server.api.status("/readyz").await == 503).then_some(()))
        .await;
    let metrics = server.api.text("/metrics").await.unwrap();
    assert!(metrics.contains("sluicegate_xds_store_failing 1"), "{metrics}");
    // Known to be away, it is not asked: a refusal takes no time.
    let began = Instant::now();
    let refused = server.api.split("shop", json!({"v1": 7})).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    assert!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    assert_eq!(endpoints(&server.api.get("/v1/services/shop").await), ALL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_etcd_proxies_are_served_and_writes_are_refused_until_it_is_back() {
    let mut etcd = Etcd::start().await;
    let servers = servers(&etcd, 2).await;
    let shop = Shop::open(&servers).await;
    let traffic = Traffic::start(shop.gateway, 2);

    etcd.process.kill().await;
    for server in &servers {
        refuses_to_write(server, &shop).await;
    }
    // A proxy that comes now gets what is known.
    let late = Edge::start("edge-2", servers[1].xds).await;
    let gateway = late.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;

    etcd.restart().await;
    for server in &servers {
        ready(server).await;
        assert_eq!(endpoints(&server.api.get("/v1/services/shop").await), ALL);
    }
    servers[1].api.register("shop/v1", "new", shop.backend.address).await.ok();
    shows(&servers[0], &["held", "leased", "new", "permanent"]).await;
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", shop.edge.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_that_hangs_for_longer_than_every_lease_removes_nothing_that_lives() {
    let etcd = Etcd::start().await;
    let servers = servers(&etcd, 2).await;
    let shop = Shop::open(&servers).await;
    let traffic = Traffic::start(shop.gateway, 2);

    etcd.process.signal("STOP").await;
    let stopped = Instant::now();
    for server in &servers {
        refuses_to_write(server, &shop).await;
    }
    // The grace of what is held is 10 s.
    until("every lease to end", SOON, async || (stopped.elapsed() > Duration::from_secs(13)).then_some(()))
        .await;
    etcd.process.signal("CONT").await;
    for server in &servers {
        ready(server).await;
    }
    // Once something new has gone through, so has all that etcd removed before it.
    servers[0].api.register("shop/v1", "new", shop.backend.address).await.ok();
    for server in &servers {
        shows(server, &["held", "leased", "new", "permanent"]).await;
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    for server in &servers {
        shows(server, &["held", "leased", "new", "permanent"]).await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", shop.edge.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_lives_outlives_its_lease_and_no_request_notices() {
    let etcd = Etcd::start().await;
    let servers = servers(&etcd, 2).await;
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    let _held = servers[0].api.hold("shop/v1", "held", backend.address).await;
    shows(&servers[1], &["held"]).await;
    // It is held at one server, and the proxy follows the other.
    let edge = Edge::start("edge-1", servers[1].xds).await;
    let gateway = edge.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let traffic = Traffic::start(gateway, 2);
    for revivals in 1..=5 {
        let sent = traffic.sent();
        assert_eq!(etcd.end_leases().await, 1);
        until("the endpoint to be put back", SOON, async || {
            let metrics = servers[0].api.text("/metrics").await.ok()?;
            metrics.contains(&format!("sluicegate_xds_store_revivals_total {revivals}\n")).then_some(())
        })
        .await;
        until("some traffic", SOON, async || (traffic.sent() > sent + 200).then_some(())).await;
    }
    for server in &servers {
        shows(server, &["held"]).await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_away_while_etcd_forgot_loads_everything_and_removes_only_what_is_gone() {
    let mut etcd = Etcd::start().await;
    let servers = servers(&etcd, 2).await;
    let shop = Shop::open(&servers).await;
    servers[1].api.register("shop/v1", "gone", shop.backend.address).await.ok();
    shows(&servers[0], &["gone", "held", "leased", "permanent"]).await;
    let traffic = Traffic::start(shop.gateway, 2);

    // The proxy follows the first server, which sleeps while its connection to etcd breaks.
    servers[0].process.signal("STOP").await;
    etcd.process.kill().await;
    etcd.restart().await;
    ready(&servers[1]).await;
    servers[1].api.remove("shop/v1", "gone").await.ok();
    servers[1].api.register("shop/v1", "new", shop.backend.address).await.ok();
    etcd.compact().await;
    servers[0].process.signal("CONT").await;
    shows(&servers[0], &["held", "leased", "new", "permanent"]).await;
    let metrics = servers[0].api.text("/metrics").await.unwrap();
    assert!(metrics.contains("sluicegate_xds_store_reloads_total 1"), "{metrics}");
    let revision = async |server: &Server| server.api.get("/v1/services").await["revision"].as_u64();
    until("both servers to be at one revision", SOON, async || {
        (revision(&servers[0]).await? == revision(&servers[1]).await?).then_some(())
    })
    .await;
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}\n{}", shop.edge.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_etcd_in_the_place_of_the_one_that_was_removes_nothing() {
    let mut etcd = Etcd::start().await;
    let servers = servers(&etcd, 1).await;
    let shop = Shop::open(&servers).await;
    etcd.process.kill().await;
    etcd.forget();
    etcd.restart().await;
    until("the server to say so", SOON, async || {
        let said = servers[0].api.text("/readyz").await.ok()?;
        (said.contains("bring the former one back")).then_some(())
    })
    .await;
    assert_eq!(endpoints(&servers[0].api.get("/v1/services/shop").await), ALL);
    assert_eq!(Client::new(shop.gateway).get("/").await.unwrap(), "v1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_has_loaded_nothing_yet_listens_to_nobody() {
    let mut etcd = Etcd::start().await;
    let mut first = Server::start_sharing(&etcd.url()).await;
    let shop = Shop::open(std::slice::from_ref(&first)).await;
    let traffic = Traffic::start(shop.gateway, 2);
    first.process.kill().await;
    etcd.process.kill().await;
    let url = etcd.url();
    let etcd_is_back = AtomicBool::new(false);
    let starting = async {
        let first = first.restart().await;
        assert!(etcd_is_back.load(Ordering::SeqCst), "it served before it knew anything");
        first
    };
    let waiting = async {
        until("the proxy to have tried", SOON, async || {
            shop.edge.metrics().await.contains("sluicegate_proxy_xds_connected 0").then_some(())
        })
        .await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        etcd_is_back.store(true, Ordering::SeqCst);
        etcd.restart().await;
    };
    let (first, ()) = tokio::join!(starting, waiting);
    assert!(
        first.log().contains(&format!("{url} does not answer; nothing is served until it does")),
        "{}",
        first.log()
    );
    ready(&first).await;
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_server_under_churn_loses_no_change_and_no_request() {
    let etcd = Etcd::start().await;
    let mut servers = servers(&etcd, 3).await;
    let xds: Vec<SocketAddr> = servers.iter().map(|server| server.xds).collect();
    let apis: Vec<SocketAddr> = servers.iter().map(|server| server.api.address()).collect();
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let always = Backend::start("v1").await;
    servers[0].api.register("shop/v1", "always", always.address).await.ok();
    let mut backends = Vec::new();
    for _ in 0..=MOST {
        backends.push(Backend::start("v1").await);
    }
    let mut edges = Vec::new();
    for i in 0..3 {
        // Each prefers another server.
        let order: Vec<SocketAddr> = (0..3).map(|j| xds[(i + j) % 3]).collect();
        let edge = Edge::start_following(&format!("edge-{i}"), &order).await;
        let gateway = edge.gateway("edge").await;
        until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
        edges.push((edge, gateway));
    }
    let traffic: Vec<Traffic> = edges.iter().map(|(_, gateway)| Traffic::start(*gateway, 2)).collect();

    // Changes go on, each at any server that takes it; what was answered counts.
    let stop = Arc::new(AtomicBool::new(false));
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    let churn = tokio::spawn(churn(apis, addresses, Arc::clone(&stop)));
    for i in 0..3 {
        servers[i].process.kill().await;
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        let server = servers.remove(i).restart().await;
        servers.insert(i, server);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    stop.store(true, Ordering::SeqCst);
    let (mut expected, done) = churn.await.unwrap();
    expected.push("always".to_owned());
    expected.sort();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    assert!(done > 100, "only {done} changes were made");
    for server in &servers {
        shows(server, &expected).await;
    }
    // And every proxy has what every server says.
    for (edge, _) in &edges {
        until("every proxy to have it", SOON, async || {
            let clusters: Value = edge.admin.read("/clusters").await.ok()?;
            (clusters.to_string().matches("\"id\":").count() == expected.len()).then_some(())
        })
        .await;
    }
    for traffic in traffic {
        let outcome = traffic.stop().await;
        assert_eq!(outcome.failures, 0, "{outcome:?}");
        assert!(outcome.requests() > 100, "{outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_any_member_of_etcd_under_churn_loses_no_change() {
    let mut members = Etcd::cluster(3).await;
    let hosts: Vec<String> = members.iter().map(|member| member.address.to_string()).collect();
    let url = format!("etcd://{}/test", hosts.join(","));
    let servers = [Server::start_sharing(&url).await, Server::start_sharing(&url).await];
    let backend = Backend::start("v1").await;
    servers[0].api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    servers[0].api.register("shop/v1", "always", backend.address).await.ok();
    let edge = Edge::start("edge-1", servers[0].xds).await;
    let gateway = edge.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;

    let stop = Arc::new(AtomicBool::new(false));
    let apis = servers.iter().map(|server| server.api.address()).collect();
    let churn = tokio::spawn(churn(apis, vec![backend.address], Arc::clone(&stop)));
    for member in &mut members {
        member.process.kill().await;
        // Both servers are served by the other two.
        for (i, server) in servers.iter().enumerate() {
            until("a write without that member", SOON, async || {
                let id = format!("probe{i}");
                let put = server.api.register("shop/v1", &id, backend.address).await;
                put.status.is_success().then_some(())
            })
            .await;
        }
        member.restart().await;
    }
    stop.store(true, Ordering::SeqCst);
    let (mut expected, _) = churn.await.unwrap();
    expected.extend(["always", "probe0", "probe1"].map(str::to_owned));
    expected.sort();
    let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
    for server in &servers {
        shows(server, &expected).await;
    }
    assert_eq!(Client::new(gateway).get("/").await.unwrap(), "v1");
}

/// How many endpoints the churn leaves at most.
const MOST: usize = 40;

/// Registers and removes endpoints until it is stopped; says which are left, and how many changes
/// were answered.
async fn churn(
    servers: Vec<SocketAddr>,
    addresses: Vec<SocketAddr>,
    stop: Arc<AtomicBool>,
) -> (Vec<String>, usize) {
    let apis: Vec<Api> = servers.into_iter().map(Api::new).collect();
    let (mut there, mut done, mut added): (Vec<String>, usize, usize) = (Vec::new(), 0, 0);
    for i in 0.. {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let adds = there.len() < MOST / 2 || i % 2 == 0 && there.len() < MOST;
        let id = if adds { format!("e{i}") } else { there.remove(0) };
        let path = endpoint_path("shop/v1", &id);
        // The oldest goes first, so no two that are there have one address.
        let body = json!({"address": addresses[added % addresses.len()].to_string()}).to_string();
        // Until a server answers; what was done without an answer is done again, or is gone already.
        for api in apis.iter().cycle().skip(i) {
            let (method, body) =
                if adds { (Method::PUT, body.clone()) } else { (Method::DELETE, String::new()) };
            let sent = api.send(method, &path, "application/json", body).await;
            match sent.map(|(status, _)| status) {
                Ok(status) if status.is_success() || (!adds && status == StatusCode::NOT_FOUND) => break,
                Ok(status) => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}"),
                Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
        done += 1;
        if adds {
            there.push(id);
            added += 1;
        }
    }
    (there, done)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_cut_off_from_etcd_serves_what_it_knows_and_heals() {
    let Some(namespace) = Namespace::new().await else {
        eprintln!("skipped: network namespaces need root");
        return;
    };
    let etcd = Etcd::start_at(&[namespace.host_ip]).await;
    let url = |ip: IpAddr| format!("etcd://{}/test", SocketAddr::new(ip, etcd.address.port()));
    let near = Server::start_sharing(&url(etcd.address.ip())).await;
    let far = Server::start_sharing_in(&namespace.name, namespace.client_ip, &url(namespace.host_ip)).await;
    near.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    near.api.register("shop/v1", "a", backend.address).await.ok();
    shows(&far, &["a"]).await;
    let held = far.api.hold("shop/v1", "held", backend.address).await;
    shows(&near, &["a", "held"]).await;
    let edge = Edge::start("edge-1", far.xds).await;
    let gateway = edge.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let traffic = Traffic::start(gateway, 2);

    namespace.cut().await;
    near.api.register("shop/v1", "b", backend.address).await.ok();
    let refused = far.api.register("shop/v1", "c", backend.address).await;
    assert_eq!(refused.status, StatusCode::SERVICE_UNAVAILABLE, "{}", refused.body);
    // To the others what it holds is gone after its grace; to its own proxies it is not.
    shows(&near, &["a", "b"]).await;
    assert_eq!(endpoints(&far.api.get("/v1/services/shop").await), ["a", "held"]);
    namespace.heal().await;
    ready(&far).await;
    for server in [&near, &far] {
        shows(server, &["a", "b", "held"]).await;
    }
    drop(held);
    for server in [&near, &far] {
        shows(server, &["a", "b"]).await;
    }
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "{outcome:?}");
}

/// A network namespace that reaches this one over two wires: one for its clients, one for etcd, which
/// can be cut without a word to either side.
struct Namespace {
    name: String,
    wire: String,
    /// This side of etcd's wire.
    host_ip: IpAddr,
    /// The far side of the clients' wire.
    client_ip: IpAddr,
}

impl Namespace {
    /// `None` where that is not allowed.
    async fn new() -> Option<Self> {
        let tag = fastrand::u16(..);
        let name = format!("sluicegate-{tag:04x}");
        if !ip(&["netns", "add", &name]).await {
            return None;
        }
        // Addresses that are for tests and documentation only (RFC 2544, 198.18.0.0/15).
        let net = |wire: u8, side: u8| {
            format!("198.{}.{}.{}", 18 + wire, tag & 0xff, (tag >> 8 & 0x3f) * 4 + u16::from(side))
        };
        let wires = [format!("sge{tag:04x}"), format!("sgc{tag:04x}")];
        for (i, wire) in (0..).zip(&wires) {
            let far = format!("{wire}f");
            assert!(ip(&["link", "add", wire, "type", "veth", "peer", "name", &far, "netns", &name]).await);
            assert!(ip(&["addr", "add", &format!("{}/30", net(i, 1)), "dev", wire]).await);
            assert!(ip(&["link", "set", wire, "up"]).await);
            assert!(ip(&["-n", &name, "addr", "add", &format!("{}/30", net(i, 2)), "dev", &far]).await);
            assert!(ip(&["-n", &name, "link", "set", &far, "up"]).await);
        }
        assert!(ip(&["-n", &name, "link", "set", "lo", "up"]).await);
        let [wire, _] = wires;
        Some(Self { name, wire, host_ip: net(0, 1).parse().unwrap(), client_ip: net(1, 2).parse().unwrap() })
    }

    async fn cut(&self) {
        assert!(ip(&["link", "set", &self.wire, "down"]).await);
    }

    async fn heal(&self) {
        assert!(ip(&["link", "set", &self.wire, "up"]).await);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // The wires end with their far sides.
        let _ = std::process::Command::new("ip").args(["netns", "del", &self.name]).status();
    }
}

async fn ip(arguments: &[&str]) -> bool {
    let output = tokio::process::Command::new("ip").args(arguments).output().await;
    output.is_ok_and(|output| output.status.success())
}
