//! What happens to requests, and to those who send something else.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use config::Protocol;
use http_body_util::{BodyExt, Empty, Full};
use hyper::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use support::{
    Answer, Connection, Running, World,
    backend::{Backend, Dead},
    control::{Control, cluster, endpoints, listener, routes},
    eventually, get,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

#[tokio::test]
async fn requests_and_responses_pass_as_they_are() {
    let one = Backend::start("one").await;
    let World { proxy, edge, .. } = World::start(&[one.address]).await;
    let ask = async |to: SocketAddr| {
        let stream = TcpStream::connect(to).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::post("/echo?q=1")
            .header("host", "Shop.example.com:81")
            .header("x-forwarded-for", "10.0.0.1")
            .body(Full::new(Bytes::from_static(b"hello")))
            .unwrap();
        Answer::read(sender.send_request(request).await.unwrap()).await.unwrap()
    };
    let (answer, direct) = (ask(edge).await, ask(one.address).await);
    assert_eq!((answer.status, answer.text().as_str()), (200, "hello"));
    let header = |name: &str| answer.headers.get(name).map_or("", |v| v.to_str().unwrap());
    assert_eq!(header("seen-host"), "Shop.example.com:81");
    assert_eq!(header("seen-x-forwarded-for"), "10.0.0.1, 127.0.0.1");
    assert_eq!(header("seen-x-forwarded-proto"), "http");
    // `connection` belongs to the hop.
    let own = |name: &str| name == "connection" || name.starts_with("seen-x-forwarded-");
    let of_backend = |answer: &Answer| {
        let mut headers: Vec<(String, Vec<u8>)> = answer
            .headers
            .iter()
            .filter(|(name, _)| !own(name.as_str()))
            .map(|(name, value)| (name.to_string(), value.as_bytes().to_vec()))
            .collect();
        headers.sort_unstable();
        headers
    };
    assert_eq!(of_backend(&answer), of_backend(&direct));
    assert!(of_backend(&answer).contains(&("server".to_owned(), b"backend/1".to_vec())));
    assert_eq!(answer.headers.get_all("date").iter().count(), 1);
    proxy.stopped().await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_shares_the_port_and_reaches_http2_endpoints() {
    let (one, two) = (Backend::start("one").await, Backend::start_as("two", true).await);
    for (address, protocol, name) in
        [(one.address, Protocol::Http, "one"), (two.address, Protocol::H2c, "two")]
    {
        let control = Control::start().await;
        control.set(support::shop(&[address]));
        control.set([cluster("shop/v1", protocol)]);
        let proxy = Running::start(control.servers(), |_| {}).await;
        let edge = proxy.listener("edge").await;
        assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), name);

        let stream = TcpStream::connect(edge).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        for _ in 0..3 {
            let request =
                Request::post("http://a.com/echo").body(Full::new(Bytes::from_static(b"x"))).unwrap();
            let answer = Answer::read(sender.send_request(request).await.unwrap()).await.unwrap();
            assert_eq!((answer.status, answer.text().as_str()), (200, "x"), "{name}");
            assert_eq!(answer.headers["x-name"], name);
        }
        eventually("nothing in flight", async || (proxy.in_flight("shop/v1").await == 0).then_some(())).await;
        proxy.stopped().await;
    }
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_request_while_another_one_lives() {
    let one = Backend::start("one").await;
    let (dead, deader) = (Dead::new(), Dead::new());
    let World { proxy, edge, .. } = World::start(&[dead.address, one.address, deader.address]).await;
    let mut connection = Connection::open(edge).await.unwrap();
    for _ in 0..50 {
        let answer = connection.get_soon("a.com", "/").await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "one"));
    }
    assert!(proxy.metric("retries_total").await > 0.0);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_backend_that_is_killed_loses_no_idempotent_request() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let World { proxy, edge, .. } = World::start(&[one.address, two.address]).await;
    let mut connection = Connection::open(edge).await.unwrap();
    for _ in 0..20 {
        connection.get_soon("a.com", "/").await.unwrap();
    }
    drop(one);
    for _ in 0..50 {
        let answer = connection.get_soon("a.com", "/").await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (200, "two"));
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn a_refusal_says_which_version_and_what_is_wrong() {
    let dead = Dead::new();
    let World { control, proxy, edge } = World::start(&[dead.address]).await;
    let answer = get(edge, "a.com", "/").await.unwrap();
    assert_eq!((answer.status, answer.headers["content-type"].to_str().unwrap()), (503, "text/plain"));
    assert_eq!(answer.text(), "no endpoint of shop/v1 could be connected to (1 tried)\n");

    control.set([endpoints("shop/v1", &[])]);
    control.acknowledged().await;
    let mut connection = Connection::open(edge).await.unwrap();
    for _ in 0..3 {
        let answer = connection.get_soon("a.com", "/").await.unwrap();
        assert_eq!((answer.status, answer.text().as_str()), (503, "no ready endpoint for shop/v1\n"));
    }
    assert!((proxy.metric("no_endpoint_total").await - 3.0).abs() < 0.1);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_client_that_leaves_is_counted_out() {
    let one = Backend::start("one").await;
    let World { proxy, edge, .. } = World::start(&[one.address]).await;
    for path in ["/wait", "/endless"] {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        eventually("in flight", async || (proxy.in_flight("shop/v1").await == 1).then_some(())).await;
        let clusters = proxy.json("/clusters").await;
        assert_eq!(clusters[0]["endpoints"][0]["in_flight"], 1);
        drop(stream);
        eventually("counted out", async || (proxy.in_flight("shop/v1").await == 0).then_some(())).await;
    }
    let clusters = proxy.json("/clusters").await;
    assert_eq!(clusters[0]["endpoints"][0]["in_flight"], 0);
    assert!(clusters[0]["concurrency_seconds"].as_f64().unwrap() > 0.0);
    proxy.stopped().await;
}

#[tokio::test]
async fn an_endpoint_that_is_removed_finishes_what_it_has() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    let waiting = tokio::spawn(async move { get(edge, "a.com", "/wait").await.unwrap().text() });
    eventually("in flight", async || (proxy.in_flight("shop/v1").await == 1).then_some(())).await;

    control.set([endpoints("shop/v1", &[two.address])]);
    control.acknowledged().await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "two");
    let clusters = proxy.json("/clusters").await;
    let states: Vec<_> =
        clusters[0]["endpoints"].as_array().unwrap().iter().map(|e| e["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ready", "removed"]);

    one.release.send_replace(true);
    assert_eq!(waiting.await.unwrap(), "one");
    eventually("it is gone", async || {
        let clusters = proxy.json("/clusters").await;
        (clusters[0]["endpoints"].as_array().unwrap().len() == 1).then_some(())
    })
    .await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_graceful_stop_finishes_requests_and_closes_idle_connections() {
    let one = Backend::start("one").await;
    let World { mut proxy, edge, .. } = World::start(&[one.address]).await;
    let mut idle = Connection::open(edge).await.unwrap();
    idle.get_soon("a.com", "/").await.unwrap();
    let silent = TcpStream::connect(edge).await.unwrap();
    let waiting = tokio::spawn(async move { get(edge, "a.com", "/wait").await.unwrap() });
    eventually("it has arrived", async || (one.requests() == 2).then_some(())).await;

    proxy.stop();
    eventually("the idle connection is closed", async || idle.is_closed().then_some(())).await;
    eventually("nothing is accepted", async || TcpStream::connect(edge).await.is_err().then_some(())).await;
    one.release.send_replace(true);
    let answer = waiting.await.unwrap();
    assert_eq!((answer.text().as_str(), answer.headers["connection"].to_str().unwrap()), ("one", "close"));
    proxy.stopped().await;
    drop(silent);
}

#[tokio::test]
async fn a_stop_does_not_wait_longer_than_the_drain_timeout() {
    let one = Backend::start("one").await;
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let proxy = Running::start(control.servers(), |s| s.drain_timeout = Duration::from_millis(300)).await;
    let edge = proxy.listener("edge").await;
    let endless = tokio::spawn(async move { get(edge, "a.com", "/endless").await.is_err() });
    eventually("in flight", async || (proxy.in_flight("shop/v1").await == 1).then_some(())).await;
    let begun = Instant::now();
    proxy.stopped().await;
    assert!((Duration::from_millis(250)..Duration::from_secs(5)).contains(&begun.elapsed()));
    assert!(endless.await.unwrap(), "what did not finish is cut off");
}

async fn exchange(edge: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(edge).await.expect("it accepts");
    // The proxy may close before it has read all.
    _ = stream.write_all(bytes).await;
    let mut answer = vec![0; 4_096];
    let read = tokio::time::timeout(support::DEADLINE, stream.read(&mut answer)).await;
    answer.truncate(read.expect("it answers or closes").unwrap_or(0));
    answer
}

#[tokio::test]
async fn garbage_hurts_nobody_else() {
    let one = Backend::start("one").await;
    let World { proxy, edge, .. } = World::start(&[one.address]).await;
    let seed = 21;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut honest = Connection::open(edge).await.unwrap();
    for round in 0..200 {
        let mut bytes: Vec<u8> = (0..rng.usize(1..3_000)).map(|_| rng.u8(..)).collect();
        if rng.bool() {
            bytes.splice(0..0, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".iter().copied());
        }
        let mut stream = TcpStream::connect(edge).await.unwrap();
        _ = stream.write_all(&bytes).await;
        _ = stream.shutdown().await;
        let closed = tokio::time::timeout(support::DEADLINE, stream.read_to_end(&mut Vec::new())).await;
        assert!(closed.is_ok(), "seed {seed}, round {round}: neither answered nor closed");
        if round % 20 == 0 {
            assert_eq!(
                honest.get_soon("a.com", "/").await.unwrap().text(),
                "one",
                "seed {seed}, round {round}"
            );
        }
    }
    for request in ["GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: \r\n\r\n"] {
        let answer = exchange(edge, request.as_bytes()).await;
        assert!(answer.starts_with(b"HTTP/1.1 400"), "{}", String::from_utf8_lossy(&answer));
    }
    let short = exchange(edge, b"GET / HTTP/1.0\r\n\r\n").await;
    assert!(short.starts_with(b"HTTP/1.1 200") || short.starts_with(b"HTTP/1.0 200"), "{short:?}");
    let large =
        exchange(edge, format!("GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n", "y".repeat(2 << 20)).as_bytes())
            .await;
    assert!(large.is_empty() || large.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&large));
    assert!(proxy.metric("heads_refused_total").await > 0.0);
    drop(honest);
    eventually("all are gone", async || (proxy.metric("connections_open").await < 0.5).then_some(())).await;
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn requests_are_counted_by_gateway_service_version_and_class_and_logged() {
    let one = Backend::start("one").await;
    let file = support::temporary("access-log");
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let log = config::bootstrap::AccessLog::File(file.path.clone());
    let proxy = Running::start(control.servers(), |s| s.access_log = Some(log)).await;
    let edge = proxy.listener("edge").await;
    for _ in 0..5 {
        get(edge, "a.com", "/x?secret=1").await.unwrap();
    }
    let of = r#"requests_total{gateway="edge",service="shop",version="v1",class="2xx"}"#;
    eventually("they are counted", async || ((proxy.metric(of).await - 5.0).abs() < 0.1).then_some(())).await;
    let line = eventually("a line", async || {
        let text = std::fs::read_to_string(&file.path).unwrap();
        (text.lines().count() == 5).then(|| text.lines().next().unwrap().to_owned())
    })
    .await;
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (&line["gateway"], &line["service"], &line["version"]),
        (&"edge".into(), &"shop".into(), &"v1".into())
    );
    assert_eq!(
        (&line["status"], &line["attempts"], &line["bytes_sent"]),
        (&200.into(), &1.into(), &3.into())
    );
    assert_eq!((&line["path"], &line["endpoint"]), (&"/x".into(), &one.address.to_string().into()));
    proxy.stopped().await;
}

#[tokio::test]
async fn a_head_that_is_refused_is_logged_with_what_it_was_for() {
    let file = support::temporary("access-log");
    let control = Control::start().await;
    control.set(support::shop(&[]));
    let log = config::bootstrap::AccessLog::File(file.path.clone());
    let proxy = Running::start(control.servers(), |s| s.access_log = Some(log)).await;
    let edge = proxy.listener("edge").await;
    let asked = ["POST /pay?card=1 HTTP/1.1\r\nHost : a.com\r\n\r\n", "\0\x01\r\n\r\n", "/\r\n\r\n"];
    for head in asked {
        let mut stream = TcpStream::connect(edge).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut seen = String::new();
        stream.read_to_string(&mut seen).await.unwrap();
        assert!(seen.starts_with("HTTP/1.1 400 "), "{seen}");
    }
    proxy.stopped().await;
    let text = std::fs::read_to_string(&file.path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let what: Vec<_> = lines.iter().map(|line| (&line["method"], &line["path"], &line["status"])).collect();
    let nothing = (&"".into(), &"".into(), &400.into());
    assert_eq!(what, [(&"POST".into(), &"/pay".into(), &400.into()), nothing, nothing]);
}

#[tokio::test]
async fn adding_and_removing_endpoints_under_load_fails_no_request() {
    let mut backends = Vec::new();
    for i in 0..4 {
        backends.push(Backend::start(&format!("b{i}")).await);
    }
    let addresses: Vec<SocketAddr> = backends.iter().map(|b| b.address).collect();
    let World { control, proxy, edge } = World::start(&addresses).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut connection = Connection::open(edge).await.unwrap();
                let mut count = 0;
                while !*stopped.borrow() {
                    assert_eq!(connection.get_soon("a.com", "/").await.unwrap().status, 200);
                    count += 1;
                }
                count
            })
        })
        .collect();
    for cycle in 0..200 {
        let some: Vec<SocketAddr> =
            addresses.iter().cycle().skip(cycle % 4).take(1 + cycle % 3).copied().collect();
        control.set([endpoints("shop/v1", &some)]);
        control.acknowledged().await;
    }
    stop.send_replace(true);
    let mut total = 0;
    for client in clients {
        total += client.await.unwrap();
    }
    assert!(total > 200, "there was load: {total}");
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_head_request_to_a_missing_route_has_no_body() {
    let World { proxy, edge, .. } = World::start(&[]).await;
    let stream = TcpStream::connect(edge).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for _ in 0..2 {
        let request = Request::head("/").header("host", "a").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), 503);
        assert!(response.into_body().collect().await.unwrap().to_bytes().is_empty());
        sender.ready().await.unwrap();
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn a_response_is_passed_on_as_it_comes() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let World { proxy, edge, .. } = World::start(&[listener.local_addr().unwrap()]).await;
    let mut client = TcpStream::connect(edge).await.unwrap();
    client.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut backend, _) = listener.accept().await.unwrap();
    // Each piece must arrive before the next one is sent.
    let pieces = ["HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n", "abc", "def"];
    let mut seen = String::new();
    for piece in pieces {
        backend.write_all(piece.as_bytes()).await.unwrap();
        let end = if piece.len() > 3 { "\r\n\r\n" } else { piece };
        while !seen.ends_with(end) {
            let mut buffer = vec![0; 1_000];
            let read = tokio::time::timeout(support::DEADLINE, client.read(&mut buffer)).await;
            let n = read.unwrap_or_else(|_| panic!("{piece:?} is held back after {seen:?}")).unwrap();
            assert!(n > 0, "closed after {seen:?}");
            seen.push_str(std::str::from_utf8(&buffer[..n]).unwrap());
        }
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn a_request_that_may_have_been_received_is_repeated_only_if_that_is_harmless() {
    for (method, harmless) in [("GET", true), ("POST", false)] {
        let fickle = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let World { proxy, edge, .. } = World::start(&[fickle.local_addr().unwrap()]).await;
        // Answers the first request of a connection, and closes it at the second.
        let received = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = std::sync::Arc::clone(&received);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = fickle.accept().await.unwrap();
                let mut buffer = [0; 4_096];
                assert!(stream.read(&mut buffer).await.unwrap() > 0);
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                if stream.read(&mut buffer).await.unwrap_or(0) > 0 {
                    counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                }
            }
        });
        // One connection, as each core has idle connections of its own.
        let mut stream = TcpStream::connect(edge).await.unwrap();
        let mut answer = vec![0; 4_096];
        let mut ask = async |method: &str| {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let n = stream.read(&mut answer).await.unwrap();
            answer[..n].to_vec()
        };
        assert!(ask("GET").await.starts_with(b"HTTP/1.1 200"));
        let answer = ask(method).await;
        let n = answer.len();
        let answer = String::from_utf8_lossy(&answer[..n]);
        let received = received.load(std::sync::atomic::Ordering::SeqCst);
        if harmless {
            assert!(answer.starts_with("HTTP/1.1 200"), "{method}: {answer}");
            assert_eq!(received, 3, "{method}");
        } else {
            assert!(answer.starts_with("HTTP/1.1 502"), "{method}: {answer}");
            assert_eq!(received, 2, "{method}");
        }
        proxy.stopped().await;
    }
}

/// A socket on an address that no listener of the proxy can get while it lives.
fn stranger(address: SocketAddr) -> std::net::TcpListener {
    std::net::TcpListener::bind(address).expect("it is free")
}

#[tokio::test]
async fn a_listener_that_cannot_move_serves_where_it_was() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    let first = support::backend::free_address();
    control.set([listener("edge", first)]);
    eventually("it has moved", async || (proxy.listener_now("edge").await? == first).then_some(())).await;
    assert_ne!(first, edge);
    // The same port on another address, and all addresses: the latter needs the former to close.
    for wanted in [[127, 0, 0, 2], [0, 0, 0, 0]] {
        let taken = stranger(SocketAddr::from(([127, 0, 0, 2], first.port())));
        control.set([listener("edge", SocketAddr::from((wanted, first.port())))]);
        eventually("it is refused", async || {
            let errors = proxy.json("/config_dump").await["listener_errors"].clone();
            (!errors.as_array().unwrap().is_empty()).then_some(())
        })
        .await;
        for _ in 0..3 {
            assert_eq!(get(first, "a.com", "/").await.unwrap().text(), "one");
        }
        assert_eq!(proxy.listener_now("edge").await, Some(first));
        control.set([listener("edge", first)]);
        eventually("it is told to stay", async || {
            let errors = proxy.json("/config_dump").await["listener_errors"].clone();
            errors.as_array().unwrap().is_empty().then_some(())
        })
        .await;
        drop(taken);
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn an_address_has_one_gateway_also_when_its_former_one_cannot_move() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let World { control, proxy, .. } = World::start(&[one.address]).await;
    let first = support::backend::free_address();
    control.set([listener("edge", first)]);
    eventually("it has moved", async || (proxy.listener_now("edge").await? == first).then_some(())).await;

    let taken = stranger(support::backend::free_address());
    control.set([
        cluster("other/v1", Protocol::Http),
        endpoints("other/v1", &[two.address]),
        routes("heir", "other", &[("v1", 1)]),
        listener("edge", taken.local_addr().unwrap()),
        listener("heir", first),
    ]);
    eventually("it was taken over", async || (proxy.listener_now("heir").await? == first).then_some(()))
        .await;
    for _ in 0..30 {
        assert_eq!(get(first, "a.com", "/").await.unwrap().text(), "two");
    }
    assert_eq!(proxy.listener_now("edge").await, None);
    proxy.stopped().await;
}

#[tokio::test]
async fn the_connections_of_a_removed_listener_have_a_deadline() {
    let one = Backend::start("one").await;
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let proxy = Running::start(control.servers(), |s| s.drain_timeout = Duration::from_millis(100)).await;
    let edge = proxy.listener("edge").await;
    let endless = tokio::spawn(async move { get(edge, "a.com", "/endless").await.is_err() });
    eventually("in flight", async || (proxy.in_flight("shop/v1").await == 1).then_some(())).await;
    control.remove([(config::xds::ResourceType::Listener, "edge")]);
    assert!(endless.await.unwrap(), "it is cut off although the proxy runs on");
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

/// A backend that reads a request, answers with `answer` as it is, and closes; and how many requests
/// it has read.
async fn rude(answer: &'static [u8]) -> (SocketAddr, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let received = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = std::sync::Arc::clone(&received);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            if stream.read(&mut [0; 4_096]).await.unwrap_or(0) > 0 {
                counter.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            }
            _ = stream.write_all(answer).await;
        }
    });
    (address, received)
}

/// What the access log says of the only request to such a backend, and how often it was received.
async fn rudely_treated(answer: &'static [u8], of: &str) -> (serde_json::Value, usize, String) {
    let (address, received) = rude(answer).await;
    let file = support::temporary("access-log");
    let control = Control::start().await;
    control.set(support::shop(&[address]));
    let log = config::bootstrap::AccessLog::File(file.path.clone());
    let proxy = Running::start(control.servers(), |s| s.access_log = Some(log)).await;
    let edge = proxy.listener("edge").await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    let mut seen = Vec::new();
    _ = tokio::time::timeout(support::DEADLINE, stream.read_to_end(&mut seen)).await.expect("it closes");
    eventually("it is counted", async || (proxy.metric(of).await > 0.5).then_some(())).await;
    proxy.stopped().await;
    // A stop waits until the log is written.
    let text = std::fs::read_to_string(&file.path).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let received = received.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(line["endpoint"], address.to_string().as_str(), "also after the last attempt");
    (line, received, String::from_utf8(seen).unwrap())
}

#[tokio::test]
async fn a_response_that_breaks_off_is_no_success() {
    let of = r#"aborted_total{gateway="edge",service="shop",version="v1",reason="upstream"}"#;
    let (line, received, seen) =
        rudely_treated(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", of).await;
    assert!(seen.starts_with("HTTP/1.1 200") && seen.ends_with("abc"), "{seen}");
    assert_eq!((&line["status"], &line["aborted"], received), (&200.into(), &"upstream".into(), 1));
}

#[tokio::test]
async fn a_request_that_kills_fresh_connections_is_repeated_once() {
    let of = r#"requests_total{gateway="edge",service="shop",version="v1",class="5xx"}"#;
    let (line, received, seen) = rudely_treated(b"", of).await;
    assert!(seen.starts_with("HTTP/1.1 502"), "{seen}");
    assert_eq!((&line["status"], &line["attempts"], received), (&502.into(), &2.into(), 2));
    assert_eq!(line.get("aborted"), None, "the client got a whole response");
}

#[tokio::test]
async fn instances_that_leave_and_close_at_once_fail_no_idempotent_request() {
    let permanent = Backend::start("permanent").await;
    let World { control, proxy, edge } = World::start(&[permanent.address]).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let clients: Vec<_> = (0..8)
        .map(|_| {
            let stopped = stopped.clone();
            tokio::spawn(async move {
                let mut connection = Connection::open(edge).await.unwrap();
                while !*stopped.borrow() {
                    let answer = connection.get_soon("a.com", "/").await.unwrap();
                    assert_eq!(answer.status, 200, "{}", answer.text());
                }
            })
        })
        .collect();
    for cycle in 0..100 {
        let instance = Backend::start("instance").await;
        control.set([endpoints("shop/v1", &[permanent.address, instance.address])]);
        eventually("it is reached", async || (instance.requests() > 0).then_some(())).await;
        control.set([endpoints("shop/v1", &[permanent.address])]);
        if cycle % 2 == 0 {
            control.acknowledged().await;
        }
        drop(instance); // with whatever it has accepted
    }
    stop.send_replace(true);
    for client in clients {
        client.await.unwrap();
    }
    proxy.stopped().await;
}
