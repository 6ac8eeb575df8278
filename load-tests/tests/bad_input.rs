//! What clients and peers may send: a clear error, and nothing changes.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::{net::SocketAddr, time::Duration};

use hyper::{Method, StatusCode};
use load_tests::{
    backend::Backend,
    sluicegate::{Edge, Server, manifest},
    traffic::Client,
    until,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

const SOON: Duration = Duration::from_secs(15);

async fn everything(server: &Server) -> (Value, Value, Value) {
    (
        server.api.get("/v1/services").await,
        server.api.get("/v1/gateways").await,
        server.api.get("/v1/routes").await,
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_manifest_says_where_and_changes_nothing() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)])).await.ok();
    let before = everything(&server).await;
    // Each begins with a document that is fine: half of it must not be applied.
    let fine = "kind: Service\nname: other\nversions: {v1: {}}\n---\n";
    let cases = [
        ("kind: [", ":5: not valid YAML"),
        (
            "kind: Gateway\nname: g\nlisten: 127.0.0.1:1\nport: 3\n",
            ":8: port: is not a field of a Gateway; allowed: kind, name, listen",
        ),
        (
            "kind: Service\nname: s\nversions: {v1: {}}\nsplit: {weights: {v9: 1}}\n",
            ":8: split.weights.v9: is not a version of the service; declared: v1",
        ),
        (
            "kind: Service\nname: s\nversions: {v1: {}}\nsplit: {weights: {v1: 0}}\n",
            ":8: split.weights: the weights add up to 0",
        ),
        (
            "kind: Service\nname: other\nversions: {v1: {}}\n",
            ":6: name: Service other is already defined on line 1",
        ),
        (
            "kind: Route\nname: r\ngateway: edge\nrules: [{match: {path: /r}, service: nowhere}]\n",
            ":8: rules[0].service: there is no service `nowhere`",
        ),
        (
            "kind: Route\nname: r\ngateway: nowhere\nrules: [{service: shop}]\n",
            ":7: gateway: there is no gateway `nowhere`",
        ),
        (
            "kind: Route\nname: r\ngateway: edge\nrules: [{service: shop}]\n",
            ":8: rules[0].match: route all already matches the same requests on host `*`",
        ),
        (
            "kind: Service\nname: s\nversions: {v1: {endpoints: [\"300.0.0.1:80\"]}}\n",
            ":7: versions.v1.endpoints[0]: `300.0.0.1:80` is not an address",
        ),
        (
            "kind: Service\nname: shop\nprotocol: tcp\nversions: {v1: {}}\n",
            ":7: protocol: is tcp, but route all leads HTTP requests to it",
        ),
    ];
    for (text, expected) in cases {
        for path in ["/v1/apply", "/v1/apply?dry_run=true"] {
            let answer = server.api.apply_to(path, &format!("{fine}{text}")).await;
            assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{text}\n{}", answer.body);
            let at = format!("manifest{expected}");
            assert!(answer.message().starts_with(&at), "{text}\n→ {}\n≠ {at}", answer.message());
        }
    }
    assert_eq!(everything(&server).await, before);
    let rehearsed = server.api.apply_to("/v1/apply?dry_run=true", fine).await.ok();
    assert_eq!(
        (&rehearsed["dry_run"], &rehearsed["changes"][0]["action"]),
        (&json!(true), &json!("created"))
    );
    assert_eq!(everything(&server).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_request_says_what_is_allowed_and_changes_nothing() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)])).await.ok();
    let before = everything(&server).await;
    let endpoint = "/v1/services/shop/versions/v1/endpoints/a";
    let at = json!({"address": "127.0.0.1:1"});
    let cases = [
        (Method::DELETE, "/v1/services/shop", Value::Null, 409, "Service shop is used by routes: all"),
        (Method::DELETE, "/v1/gateways/edge", Value::Null, 409, "Gateway edge is used by routes: all"),
        (Method::DELETE, "/v1/routes/nothing", Value::Null, 404, "there is no route `nothing`"),
        (Method::DELETE, "/v1/services/No", Value::Null, 400, "in the path"),
        (
            Method::PUT,
            "/v1/services/shop/split",
            json!({"weights": {"v9": 1}}),
            400,
            "weights.v9: is not a version of shop; declared: v1, v2",
        ),
        (
            Method::PUT,
            "/v1/services/shop/split",
            json!({"weights": {"v1": 0}}),
            400,
            "weights: the weights add up to 0",
        ),
        (
            Method::PUT,
            "/v1/services/shop/split",
            json!({"weights": {"v1": -1}}),
            400,
            "the body is not as expected",
        ),
        (Method::PUT, endpoint, json!({"address": "nowhere"}), 400, "address: `nowhere` is not an address"),
        (Method::PUT, endpoint, json!({"address": "0.0.0.0:80"}), 400, "address: nobody can connect"),
        (Method::PUT, endpoint, json!({"address": "[fe80::1%1]:80"}), 400, "address: nobody can connect"),
        (
            Method::PUT,
            endpoint,
            json!({"address": "127.0.0.1:1", "ttl": "1ms"}),
            400,
            "ttl: `1ms` is out of bounds; allowed: 100ms to 24h",
        ),
        (
            Method::PUT,
            endpoint,
            json!({"address": "127.0.0.1:1", "weight": 0}),
            400,
            "weight: is 0; allowed: 1 to 1000",
        ),
        (
            Method::PUT,
            endpoint,
            json!({"adress": "127.0.0.1:1"}),
            400,
            "the body is not as expected: unknown field `adress`",
        ),
        (
            Method::PUT,
            "/v1/services/shop/versions/v9/endpoints/a",
            at.clone(),
            404,
            "service `shop` has no version `v9`; declared: v1, v2",
        ),
        (
            Method::PUT,
            "/v1/services/nope/versions/v1/endpoints/a",
            at.clone(),
            404,
            "there is no service `nope`",
        ),
        (Method::DELETE, endpoint, Value::Null, 404, "shop/v1 has no registered endpoint `a`"),
        (
            Method::POST,
            &format!("{endpoint}/hold"),
            json!({"address": "127.0.0.1:1", "ttl": "1s"}),
            400,
            "ttl and dry_run do not go with hold",
        ),
        (Method::PUT, &format!("{endpoint}?wiat=applied"), at.clone(), 400, "in the query"),
        (Method::PUT, &format!("{endpoint}?timeout=2s"), at, 400, "timeout: goes with wait=applied"),
        (Method::GET, "/v1/nothing", Value::Null, 404, "there is nothing at /v1/nothing"),
        (Method::PATCH, "/v1/services", Value::Null, 405, "/v1/services does not take PATCH"),
    ];
    for (method, path, body, status, message) in cases {
        let answer = server.api.json(method.clone(), path, &body).await;
        assert_eq!(answer.status.as_u16(), status, "{method} {path}: {}", answer.body);
        assert!(answer.message().starts_with(message), "{method} {path}: {}", answer.message());
    }
    assert_eq!(everything(&server).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_that_saw_something_else_is_told_so() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)])).await.ok();
    let revision = server.api.get("/v1/services/shop").await["revision"].as_u64().unwrap();
    server.api.split("shop", json!({"v1": 1, "v2": 1})).await.ok();
    let stale = split_if_match(server.api.address(), revision).await;
    assert!(stale.starts_with("HTTP/1.1 412"), "{stale}");
    let now = server.api.get("/v1/services/shop").await["revision"].as_u64().unwrap();
    let current = split_if_match(server.api.address(), now).await;
    assert!(current.starts_with("HTTP/1.1 200"), "{current}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_precondition_that_would_be_ignored_is_refused() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let before = everything(&server).await;
    let endpoint = "/v1/services/shop/versions/v1/endpoints/a";
    let cases = [
        ("POST", "/v1/apply".to_owned()),
        ("PUT", endpoint.to_owned()),
        ("DELETE", endpoint.to_owned()),
        ("POST", format!("{endpoint}/hold")),
    ];
    for (method, path) in cases {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nif-match: \"1\"\r\ncontent-length: 2\r\n\r\n{{}}"
        );
        let answer = exchange(server.api.address(), request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{method} {path}: {answer}");
        assert!(answer.contains("If-Match: is not honoured here"), "{method} {path}: {answer}");
    }
    assert_eq!(everything(&server).await, before);
}

async fn split_if_match(api: SocketAddr, revision: u64) -> String {
    let body = r#"{"weights": {"v2": 1}}"#;
    let request = format!(
        "PUT /v1/services/shop/split HTTP/1.1\r\nhost: x\r\nconnection: close\r\nif-match: \"{revision}\"\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    exchange(api, request.as_bytes()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_of_another_site_cannot_use_the_api_through_a_browser() {
    let server = Server::start().await;
    let api = server.api.address();
    let text = manifest("127.0.0.1:0", &[("v1", 1)]);
    let from = |origin: &str| {
        let length = text.len();
        let head =
            format!("POST /v1/apply HTTP/1.1\r\nhost: {api}\r\norigin: {origin}\r\nconnection: close\r\n");
        format!("{head}content-type: text/plain\r\ncontent-length: {length}\r\n\r\n{text}")
    };
    for origin in ["https://evil.example", "null", "http://127.0.0.1:1"] {
        let answer = exchange(api, from(origin).as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{origin}: {answer}");
    }
    assert_eq!(server.api.get("/v1/services").await["revision"], 0);
    let own = exchange(api, from(&format!("http://{api}")).as_bytes()).await;
    assert!(own.starts_with("HTTP/1.1 200"), "{own}");
}

/// Sends bytes, and reads until the other side closes or is silent for a while.
async fn exchange(to: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(to).await.unwrap();
    // The other side may refuse and close before it has read all.
    let _ = stream.write_all(bytes).await;
    let mut answer = Vec::new();
    let mut buffer = [0; 4_096];
    while let Ok(Ok(n @ 1..)) = tokio::time::timeout(Duration::from_secs(2), stream.read(&mut buffer)).await {
        answer.extend_from_slice(&buffer[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_a_hundred_megabytes_is_refused_and_not_kept() {
    let server = Server::start().await;
    let before = resident_kib(server.process.pid());
    for framing in ["content-length: 104857600", "transfer-encoding: chunked"] {
        let mut stream = TcpStream::connect(server.api.address()).await.unwrap();
        let head = format!("POST /v1/apply HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let sending = tokio::spawn(async move {
            let megabyte = vec![b'#'; 1 << 20];
            for _ in 0..100 {
                let size = format!("{:x}\r\n", megabyte.len());
                let sent = writing.write_all(size.as_bytes()).await.and(writing.write_all(&megabyte).await);
                if sent.and(writing.write_all(b"\r\n").await).is_err() {
                    return;
                }
            }
        });
        let mut answer = vec![0; 64 << 10];
        let n = tokio::time::timeout(SOON, reading.read(&mut answer)).await.unwrap().unwrap();
        let answer = String::from_utf8_lossy(&answer[..n]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 413"), "{framing}: {answer}");
        sending.abort();
    }
    let grown = resident_kib(server.process.pid()).saturating_sub(before);
    assert!(grown < 64 << 10, "the server grew by {grown} KiB");
}

fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_requests_at_once_are_all_answered() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let api = server.api.address();
    let at_once = 10_000;
    // A descriptor a connection on this side, and some for the rest. The server has limits of its own.
    let needed = at_once + 500;
    let allowed = rlimit::increase_nofile_limit(u64::MAX).unwrap();
    assert!(
        allowed >= needed,
        "this process may open {allowed} files; the test needs {needed}: raise it with `ulimit -n {needed}`"
    );
    let mut requests = JoinSet::new();
    for i in 0..at_once {
        requests.spawn(async move {
            let body = r#"{"address": "127.0.0.1:9"}"#;
            let request = format!(
                "PUT /v1/services/shop/versions/v1/endpoints/i{} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                i % 50,
                body.len()
            );
            let mut stream = TcpStream::connect(api).await.map_err(|e| e.to_string())?;
            stream.write_all(request.as_bytes()).await.map_err(|e| e.to_string())?;
            let mut answer = String::new();
            let read = tokio::time::timeout(Duration::from_mins(1), stream.read_to_string(&mut answer)).await;
            read.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
            Ok::<String, String>(answer.split("\r\n").next().unwrap_or_default().to_owned())
        });
    }
    let mut answers = std::collections::BTreeMap::new();
    while let Some(answer) = requests.join_next().await {
        *answers.entry(answer.unwrap()).or_insert(0) += 1;
    }
    // Busy is an answer; silence and a broken connection are not.
    let clean = |answer: &Result<String, String>| {
        matches!(answer.as_deref(), Ok("HTTP/1.1 200 OK" | "HTTP/1.1 503 Service Unavailable"))
    };
    assert!(answers.keys().all(clean), "{answers:?}");
    assert_eq!(server.api.status("/healthz").await, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_on_every_port_hurts_nobody_else() {
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let backend = Backend::start("v1").await;
    server.api.register("shop/v1", "a", backend.address).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    let gateway = edge.gateway("edge").await;
    until("an answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;

    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    println!("SEED={seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    for port in [server.api.address(), server.xds, edge.admin.address(), gateway] {
        let mut tasks = JoinSet::new();
        for round in 0..60 {
            let mut bytes = match round % 4 {
                0 => b"GET / HTTP/1.1\r\nhost: x\r\nx: ".to_vec(),
                1 => preface.clone(),
                2 => b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
                _ => Vec::new(),
            };
            bytes.extend(std::iter::repeat_with(|| rng.u8(..)).take(2_000));
            tasks.spawn(async move { exchange(port, &bytes).await });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    }
    assert_eq!(server.api.status("/healthz").await, 200);
    assert_eq!(edge.admin.status("/readyz").await, 200);
    assert_eq!(Client::new(gateway).get("/").await.as_deref(), Ok("v1"));
    let second = Backend::start("v1").await;
    server.api.register("shop/v1", "b", second.address).await.ok();
    let mut client = Client::new(gateway);
    until("a change to arrive still", SOON, async || {
        client.get("/").await.unwrap();
        (second.hits.count() > 0).then_some(())
    })
    .await;
    for log in [server.log(), edge.log()] {
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_that_never_acknowledges_holds_up_nobody_and_is_named() {
    use envoy_types::pb::envoy::{
        config::core::v3::Node,
        service::discovery::v3::{
            DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
    };
    let server = Server::start().await;
    server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
    let edge = Edge::start("edge-1", server.xds).await;
    edge.gateway("edge").await;

    let mut mute = AggregatedDiscoveryServiceClient::connect(format!("http://{}", server.xds)).await.unwrap();
    let request = |type_url: &str| DeltaDiscoveryRequest {
        node: Some(Node { id: "mute".into(), ..Default::default() }),
        type_url: format!("type.googleapis.com/envoy.config.{type_url}"),
        ..Default::default()
    };
    let (requests, outgoing) = tokio::sync::mpsc::channel(8);
    requests.send(request("cluster.v3.Cluster")).await.unwrap();
    requests.send(request("listener.v3.Listener")).await.unwrap();
    // It gets what it asks for, and neither acknowledges nor reads any of it.
    let stream = mute.delta_aggregated_resources(tokio_stream::wrappers::ReceiverStream::new(outgoing)).await;
    let _unread = stream.unwrap().into_inner();
    until("the mute client to be known", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        proxies["proxies"].as_array()?.iter().any(|p| p["node"] == "mute").then_some(())
    })
    .await;

    let path = "/v1/services/shop/versions/v1/endpoints/a?wait=applied&timeout=500ms";
    let written = server.api.json(Method::PUT, path, &json!({"address": "127.0.0.1:9"})).await.ok();
    assert_eq!(written["applied"]["complete"], false);
    let missing: Vec<&str> =
        written["applied"]["missing"].as_array().unwrap().iter().filter_map(|m| m["node"].as_str()).collect();
    assert_eq!(missing, ["mute"], "{written}");
    drop(requests);
}
