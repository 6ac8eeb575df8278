//! HTTP/1 on both sides, byte by byte: what an endpoint sees of a request, and a client of a response.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{net::SocketAddr, time::Duration};

use support::{DEADLINE, World, control::endpoints, eventually, peer::Peer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// A proxy between a client's connection and an endpoint that the test plays.
struct Stage {
    world: World,
    endpoint: TcpListener,
    client: Peer<TcpStream>,
}

impl Stage {
    async fn new() -> Self {
        let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let world = World::start(&[endpoint.local_addr().unwrap()]).await;
        let client = connect(world.edge).await;
        Self { world, endpoint, client }
    }

    async fn accept(&self) -> Peer<TcpStream> {
        peer(timeout(DEADLINE, self.endpoint.accept()).await.expect("it connects").unwrap().0)
    }

    async fn over(self) {
        drop(self.client);
        self.world.proxy.idle("shop/v1").await;
        self.world.proxy.stopped().await;
    }
}

fn peer(stream: TcpStream) -> Peer<TcpStream> {
    stream.set_nodelay(true).unwrap();
    Peer::new(stream)
}

async fn connect(edge: SocketAddr) -> Peer<TcpStream> {
    peer(TcpStream::connect(edge).await.unwrap())
}

#[tokio::test]
async fn a_head_is_edited_in_place_and_both_connections_are_used_again() {
    let mut stage = Stage::new().await;
    stage
        .client
        .say("GET /a?b HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, x-mine\r\nX-Mine: 1\r\nAccept: */*\r\n\r\n")
        .await;
    let mut endpoint = stage.accept().await;
    assert_eq!(
        endpoint.hears("\r\n\r\n").await,
        "GET /a?b HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nx-forwarded-for: 127.0.0.1\r\n\
         x-forwarded-proto: http\r\n\r\n"
    );
    endpoint
        .say(
            "HTTP/1.1 200 Fine\r\nConnection: x-own\r\nX-Own: 1\r\nServer: me\r\nContent-Length: 2\r\n\r\nok",
        )
        .await;
    assert_eq!(
        stage.client.hears("ok").await,
        "HTTP/1.1 200 Fine\r\nServer: me\r\nContent-Length: 2\r\n\r\nok"
    );
    stage.client.say("HEAD / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    endpoint.head().await; // on the same connection
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n").await;
    assert!(stage.client.head().await.contains("content-length: 10"));
    for status in ["204 No Content", "304 Not Modified"] {
        stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        endpoint.head().await;
        endpoint.say(format!("HTTP/1.1 {status}\r\nETag: \"1\"\r\n\r\n")).await;
        assert!(stage.client.head().await.contains("etag: \"1\""));
    }
    stage.over().await;
}

#[tokio::test]
async fn requests_in_a_pipeline_are_answered_in_their_order() {
    let mut stage = Stage::new().await;
    let ask = |path: &str| format!("POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nxyz");
    stage.client.say([ask("/1"), ask("/2"), ask("/3")].concat()).await;
    let mut endpoint = stage.accept().await;
    for path in ["/1", "/2", "/3"] {
        let request = endpoint.hears("xyz").await;
        assert!(request.starts_with(&format!("POST {path} ")), "{request}");
        endpoint.say(format!("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{path}")).await;
    }
    assert!(stage.client.hears("/3").await.contains("/1HTTP/1.1 200 OK"));
    stage.over().await;
}

#[tokio::test]
async fn chunks_pass_with_their_trailers_and_without_extensions() {
    let mut stage = Stage::new().await;
    stage
        .client
        .say("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;ext=1\r\nabc\r\n")
        .await;
    let mut endpoint = stage.accept().await;
    assert!(endpoint.head().await.contains("transfer-encoding: chunked"));
    assert_eq!(endpoint.hears("abc\r\n").await, "3\r\nabc\r\n");
    stage.client.say("2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n").await;
    assert_eq!(endpoint.hears("\r\n\r\n").await, "2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n");
    endpoint.say("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n").await;
    assert!(stage.client.head().await.contains("transfer-encoding: chunked"));
    assert_eq!(stage.client.hears("hi\r\n").await, "2\r\nhi\r\n", "it does not wait for the end");
    endpoint.say("0\r\n\r\n").await;
    stage.client.hears("0\r\n\r\n").await;
    stage.client.say("GET /again HTTP/1.1\r\nHost: a\r\n\r\n").await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    stage.client.head().await;
    stage.over().await;
}

#[tokio::test]
async fn interim_responses_pass_and_a_body_waits_for_them() {
    let mut stage = Stage::new().await;
    stage.client.say("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    assert!(endpoint.head().await.contains("expect: 100-continue"));
    endpoint.say("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n").await;
    assert!(stage.client.head().await.starts_with("http/1.1 103 "));
    assert!(stage.client.head().await.starts_with("http/1.1 100 "));
    stage.client.say("body").await;
    endpoint.hears("body").await;
    endpoint.say("HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n").await;
    assert!(stage.client.head().await.starts_with("http/1.1 201 "));
    stage.over().await;
}

#[tokio::test]
async fn a_response_may_come_before_the_request_has_ended() {
    let mut stage = Stage::new().await;
    stage.client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\nbegin").await;
    let mut endpoint = stage.accept().await;
    endpoint.hears("begin").await;
    endpoint.say("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno\n").await;
    drop(endpoint);
    let head = stage.client.head().await;
    assert!(head.starts_with("http/1.1 413 ") && head.contains("connection: close"), "{head}");
    // Still sending is no reason to lose the answer.
    _ = stage.client.stream.write_all(&vec![b'x'; 100_000]).await;
    assert_eq!(stage.client.ends().await, ("no\n".to_owned(), false));
    stage.over().await;
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_becomes_chunks() {
    let mut stage = Stage::new().await;
    for (asked, body) in [
        ("HTTP/1.1\r\nHost: a", "3\r\nabc\r\n0\r\n\r\n"),
        ("HTTP/1.0\r\nHost: a\r\nConnection: keep-alive", "abc"),
    ] {
        stage.client.say(format!("GET / {asked}\r\n\r\n")).await;
        let mut endpoint = stage.accept().await;
        endpoint.head().await;
        endpoint.say("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nabc").await;
        drop(endpoint);
        let head = stage.client.head().await;
        assert_eq!(head.contains("chunked"), body.len() > 3, "{head}");
        assert_eq!(stage.client.hears(body).await, body);
    }
    assert_eq!(stage.client.ends().await, (String::new(), false), "HTTP/1.0 has no other end");
    stage.over().await;
}

#[tokio::test]
async fn http_1_0_gets_no_chunks_and_keeps_its_connection_when_it_asks() {
    let mut stage = Stage::new().await;
    stage.client.say("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    assert!(endpoint.head().await.starts_with("get / http/1.1\r\n"));
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na").await;
    let head = stage.client.head().await;
    assert!(head.contains("connection: keep-alive"), "{head}");
    stage.client.hears("a").await;
    stage.client.say("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    endpoint.say("1;x\r\nb\r\n1\r\nc\r\n0\r\nx: y\r\n\r\n").await;
    let head = stage.client.head().await;
    assert!(head.starts_with("http/1.1 200") && !head.contains("chunked"), "{head}");
    assert_eq!(stage.client.ends().await, ("bc".to_owned(), false));
    stage.over().await;
}

#[tokio::test]
async fn what_is_cut_is_not_taken_for_the_whole() {
    for (asked, answered, reset) in [
        ("HTTP/1.1", "Transfer-Encoding: chunked\r\n\r\n5\r\nab", false),
        ("HTTP/1.1", "Content-Length: 5\r\n\r\nab", false),
        // Only a reset tells it from the end.
        ("HTTP/1.0", "Transfer-Encoding: chunked\r\n\r\n5\r\nab", true),
    ] {
        let mut stage = Stage::new().await;
        stage.client.say(format!("GET / {asked}\r\nHost: a\r\n\r\n")).await;
        let mut endpoint = stage.accept().await;
        endpoint.head().await;
        endpoint.say(format!("HTTP/1.1 200 OK\r\n{answered}")).await;
        stage.client.hears("ab").await;
        drop(endpoint);
        assert_eq!(stage.client.ends().await, (String::new(), reset), "{asked} {answered}");
        stage.over().await;
    }
}

#[tokio::test]
async fn protocols_are_switched_when_both_sides_say_so() {
    let mut stage = Stage::new().await;
    let ask = "GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    stage.client.say(ask).await;
    let mut endpoint = stage.accept().await;
    let head = endpoint.head().await;
    assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
    endpoint
        .say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
        .await;
    let head = stage.client.head().await;
    assert!(head.contains("connection: upgrade") && head.contains("upgrade: websocket"), "{head}");
    stage.client.hears("hello").await;
    stage.client.say("to you").await;
    endpoint.hears("to you").await;
    let big = "x".repeat(300_000) + "end";
    let (mut from, mut to) = (endpoint, stage.client);
    tokio::join!(from.say(&big), to.hears("end"));
    // Each side closes for itself.
    from.stream.shutdown().await.unwrap();
    assert_eq!(to.ends().await, (String::new(), false));
    to.say("last words").await;
    from.hears("last words").await;
    drop(to);
    assert_eq!(from.ends().await, (String::new(), false));
    stage.world.proxy.idle("shop/v1").await;
    stage.world.proxy.stopped().await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_a_fault_of_the_endpoint() {
    let mut stage = Stage::new().await;
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n").await;
    assert!(stage.client.head().await.starts_with("http/1.1 502 "));
    stage.over().await;
}

#[tokio::test]
async fn a_refused_switch_is_a_plain_response() {
    let mut stage = Stage::new().await;
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n").await;
    assert!(stage.client.head().await.starts_with("http/1.1 403 "));
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    stage.client.head().await;
    stage.over().await;
}

#[tokio::test]
async fn an_endpoint_that_leaves_loses_its_idle_connections_at_once() {
    let mut stage = Stage::new().await;
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    stage.client.head().await;
    stage.world.control.set([endpoints("shop/v1", &[])]);
    let closed = timeout(Duration::from_secs(2), endpoint.ends()).await.expect("not when it grows old");
    assert_eq!(closed, (String::new(), false));
    stage.over().await;
}

#[tokio::test]
async fn bytes_beyond_a_response_are_nobodys() {
    let mut stage = Stage::new().await;
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\nevil").await;
    assert!(stage.client.hears("ok").await.ends_with("\r\n\r\nok"));
    assert_eq!(endpoint.ends().await.0, "");
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut other = stage.accept().await;
    other.head().await;
    other.say("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
    assert!(stage.client.hears("good").await.starts_with("HTTP/1.1 200 OK"));
    stage.over().await;
}

#[tokio::test]
async fn a_large_body_passes_both_ways_at_the_pace_of_the_slower_side() {
    let stage = Stage::new().await;
    let body: Vec<u8> = (0..3_000_000_u32).map(|i| (i % 251) as u8).collect();
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {}\r\n\r\n", body.len());
    let (mut reader, mut writer) = stage.client.stream.into_split();
    let sent = body.clone();
    let sending = tokio::spawn(async move {
        writer.write_all(head.as_bytes()).await.unwrap();
        writer.write_all(&sent).await.unwrap();
        writer
    });
    let mut endpoint = peer(stage.endpoint.accept().await.unwrap().0);
    endpoint.head().await;
    let mut seen = std::mem::take(&mut endpoint.seen);
    while seen.len() < body.len() {
        assert!(endpoint.stream.read_buf(&mut seen).await.unwrap() > 0);
    }
    assert!(seen == body, "what arrived is what was sent");
    let writer = sending.await.unwrap();
    endpoint.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    let (mut answer, sent) = (Vec::new(), body.clone());
    let answering = tokio::spawn(async move {
        endpoint.say(&sent).await;
        endpoint
    });
    while answer.len() < body.len() {
        assert!(reader.read_buf(&mut answer).await.unwrap() > 0);
    }
    assert!(answer.ends_with(&body[1_000..]));
    drop((answering.await.unwrap(), reader, writer));
    stage.world.proxy.stopped().await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_endpoint() {
    let mut stage = Stage::new().await;
    stage.client.say("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut endpoint = stage.accept().await;
    endpoint.head().await;
    drop(stage.client);
    assert_eq!(endpoint.ends().await.0, "");
    eventually("it is counted out", async || {
        let clusters = stage.world.proxy.json("/clusters").await;
        (clusters[0]["in_flight"] == 0).then_some(())
    })
    .await;
    stage.world.proxy.stopped().await;
}

#[tokio::test]
async fn a_head_in_crumbs_is_understood_and_one_too_large_refused() {
    let mut stage = Stage::new().await;
    for byte in b"GET / HTTP/1.1\r\nHost: a\r\n\r\n" {
        stage.client.say([*byte]).await;
    }
    let mut endpoint = stage.accept().await;
    endpoint.head().await;
    endpoint.say("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
    stage.client.head().await;
    stage.client.say(format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "y".repeat(40_000))).await;
    assert!(stage.client.head().await.starts_with("http/1.1 431 "));
    assert!(stage.world.proxy.metric("heads_refused_total").await > 0.5);
    stage.over().await;
}
