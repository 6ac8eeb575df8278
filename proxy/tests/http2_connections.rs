//! The life of connections of HTTP/2: what endpoints and clients allow on them, and how they end.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use config::Protocol::{H2c, Http};
use h2::{Ping, RecvStream, SendStream, server};
use http::{Request, Response};
use support::{
    World, eventually,
    http2::{Answer, Backend, Client, echo, get, post, read, soon, world, write},
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

const MIB: usize = 1024 * 1024;

async fn bind() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(support::ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Begins GETs at once, each read in a task.
async fn ask_all(client: &mut Client, paths: impl IntoIterator<Item = &str>) -> Vec<JoinHandle<u16>> {
    let mut answers = Vec::new();
    for path in paths {
        let (response, _) = client.begin(get(path), true).await;
        let status = async { Answer::read(soon(response).await.unwrap()).await.unwrap().status };
        answers.push(tokio::spawn(status));
    }
    answers
}

/// An endpoint that speaks only when it was spoken to, takes `limit` streams a connection, and answers
/// when something else had its turn. It counts the streams that it let in, at most of a connection.
async fn narrow(listener: TcpListener, limit: u32, connections: Arc<AtomicUsize>, most: usize) {
    while connections.load(Ordering::SeqCst) < most {
        let (stream, _) = listener.accept().await.unwrap();
        connections.fetch_add(1, Ordering::SeqCst);
        tokio::spawn(async move {
            stream.peek(&mut [0]).await.unwrap();
            let mut builder = server::Builder::new();
            builder.max_concurrent_streams(limit);
            let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
            let mut streams = JoinSet::new();
            while let Some(Ok((request, respond))) = connection.accept().await {
                streams.spawn(async move {
                    for _ in 0..20 {
                        tokio::task::yield_now().await;
                    }
                    echo(request, respond).await;
                });
            }
        });
    }
}

const RETRIES: &str = r#"retries_total{gateway="edge",service="shop",version="v1"}"#;

#[tokio::test]
async fn a_cold_burst_to_an_endpoint_that_takes_few_streams_is_answered_without_a_refusal() {
    for limit in [1, 2, 50] {
        let (listener, address) = bind().await;
        let connections = Arc::default();
        let endpoint = tokio::spawn(narrow(listener, limit, Arc::clone(&connections), usize::MAX));
        let World { proxy, edge, .. } = world(H2c, &[address]).await;
        let mut client = Client::open(edge).await;
        for answer in ask_all(&mut client, ["/"; 80]).await {
            assert_eq!(answer.await.unwrap(), 200);
        }
        assert!(proxy.metric(RETRIES).await < 0.5, "{limit}: some were refused");
        let connections = connections.load(Ordering::SeqCst);
        assert!(connections <= 80_usize.div_ceil(limit as usize), "{limit}: {connections} connections");
        proxy.idle("shop/v1").await;
        proxy.stopped().await;
        endpoint.abort();
    }
}

#[tokio::test]
async fn a_full_endpoint_that_takes_no_further_connection_answers_all_on_those_it_has() {
    let (listener, address) = bind().await;
    let connections = Arc::default();
    tokio::spawn(narrow(listener, 2, Arc::clone(&connections), 1));
    let World { proxy, edge, .. } = world(H2c, &[address]).await;
    let mut client = Client::open(edge).await;
    for answer in ask_all(&mut client, ["/"; 50]).await {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    proxy.stopped().await;
}

/// What endpoints are told to do.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Hold,
    AnswerShort,
    SayGoodbye,
    AnswerAll,
}

/// A connection of two streams at once.
async fn staged(stream: TcpStream, mut stage: watch::Receiver<Stage>, begun: Arc<AtomicUsize>) {
    let mut builder = server::Builder::new();
    builder.max_concurrent_streams(2);
    let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
    let mut pings = connection.ping_pong().unwrap();
    let mut streams = JoinSet::new();
    let mut farewell = stage.clone();
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((request, respond))) = accepted else { break };
                let mut stage = stage.clone();
                let begun = Arc::clone(&begun);
                streams.spawn(async move {
                    begun.fetch_add(1, Ordering::SeqCst);
                    let until = match request.uri().path() {
                        "/wait" => Stage::AnswerAll,
                        "/short" => Stage::AnswerShort,
                        _ => Stage::Hold,
                    };
                    stage.wait_for(|stage| *stage >= until).await.unwrap();
                    echo(request, respond).await;
                });
            }
            said = farewell.wait_for(|stage| *stage >= Stage::SayGoodbye) => {
                said.unwrap();
                break connection.graceful_shutdown();
            }
        }
    }
    if *stage.borrow_and_update() < Stage::SayGoodbye {
        return;
    }
    let driving = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    // Its answer says that what was sent before was read.
    soon(pings.ping(Ping::opaque())).await.unwrap();
    begun.fetch_sub(2, Ordering::SeqCst);
    while streams.join_next().await.is_some() {}
    driving.await.unwrap();
}

#[tokio::test]
async fn connections_that_all_said_goaway_cost_no_request() {
    let (listener, address) = bind().await;
    let (stage, staging) = watch::channel(Stage::Hold);
    let begun = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&begun);
    tokio::spawn(async move {
        for _ in 0..6 {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(staged(stream, staging.clone(), Arc::clone(&counting)));
        }
        // What comes now stays.
        let (stream, _) = listener.accept().await.unwrap();
        let mut connection = server::handshake(stream).await.unwrap();
        let mut streams = JoinSet::new();
        while let Some(Ok((request, respond))) = connection.accept().await {
            streams.spawn(echo(request, respond));
        }
    });
    let World { proxy, edge, .. } = world(H2c, &[address]).await;
    let mut client = Client::open(edge).await;
    let (mut waiting, mut short) = (Vec::new(), Vec::new());
    for i in 0..6 {
        waiting.extend(ask_all(&mut client, ["/wait"]).await);
        short.extend(ask_all(&mut client, ["/short"]).await);
        let reached = || begun.load(Ordering::SeqCst) == 2 * (i + 1);
        eventually("two more", async || reached().then_some(())).await;
    }
    stage.send_replace(Stage::AnswerShort);
    for answer in short {
        assert_eq!(answer.await.unwrap(), 200);
    }
    stage.send_replace(Stage::SayGoodbye);
    eventually("all were told", async || (begun.load(Ordering::SeqCst) == 0).then_some(())).await;
    // Six connections have room, and take no more.
    for answer in ask_all(&mut client, ["/"; 10]).await {
        assert_eq!(answer.await.unwrap(), 200);
    }
    stage.send_replace(Stage::AnswerAll);
    for answer in waiting {
        assert_eq!(answer.await.unwrap(), 200);
    }
    assert!(proxy.metric(RETRIES).await < 0.5);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

/// Sends as much as there is room for, and counts it.
async fn upload(mut stream: SendStream<Bytes>, bytes: usize, count: Arc<AtomicUsize>) {
    let mut left = bytes;
    while left > 0 {
        stream.reserve_capacity(left.min(16 * 1024));
        let room = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await.unwrap().unwrap();
        let now = room.min(left);
        left -= now;
        count.fetch_add(now, Ordering::SeqCst);
        stream.send_data(vec![7; now].into(), left == 0).unwrap();
    }
}

#[tokio::test]
async fn stalled_uploads_hold_up_no_others_of_their_connection() {
    const STALLED: usize = 90;
    let (release, released) = watch::channel(false);
    // Its own windows are no bottleneck.
    let mut windows = server::Builder::new();
    windows.initial_connection_window_size(64 * MIB as u32);
    let upstream = Backend::start_with(windows, move |request: Request<RecvStream>, mut respond| {
        let mut released = released.clone();
        async move {
            if request.uri().path() != "/stall" {
                return echo(request, respond).await;
            }
            released.wait_for(|released| *released).await.unwrap();
            let (body, _) = read(&mut request.into_body()).await.unwrap();
            let response = Response::builder().header("x-bytes", body.len()).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        }
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    let count = Arc::new(AtomicUsize::new(0));
    let mut stalled = Vec::new();
    for _ in 0..STALLED {
        let (response, stream) = client.begin(post("/stall"), false).await;
        tokio::spawn(upload(stream, MIB, Arc::clone(&count)));
        stalled.push(response);
    }
    // Until nothing moves any more.
    let mut before = 0;
    eventually("they stall", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = count.load(Ordering::SeqCst);
        (now > 0 && std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
    // Each its window at the proxy, one at the endpoint, and a buffer in between.
    let most = STALLED * (128 + 64 + 2 * 32) * 1024;
    assert!(before <= most, "{before} bytes were taken");
    let body = vec![8; 2 * MIB];
    let answer = client.ask(post("/echo"), &body).await.unwrap();
    assert!(answer.body == body);
    release.send_replace(true);
    for response in stalled {
        assert_eq!(soon(response).await.unwrap().headers()["x-bytes"], MIB.to_string());
    }
    proxy.stopped().await;
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

#[tokio::test]
async fn a_request_that_came_with_the_preface_may_take_longer_than_a_preface() {
    // GET / of a.com, on stream 1.
    const REQUEST: &[u8] = b"\0\0\x0a\x01\x05\0\0\0\x01\x82\x84\x86\x41\x05a.com";
    let (release, released) = watch::channel(false);
    let upstream = Backend::start(move |request, respond| {
        let mut released = released.clone();
        async move {
            released.wait_for(|released| *released).await.unwrap();
            echo(request, respond).await;
        }
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    write(&mut stream, [PREFACE, SETTINGS, REQUEST].concat()).await;
    eventually("it is let in", async || (proxy.in_flight("shop/v1").await == 1).then_some(())).await;
    // A preface has 15 s.
    tokio::time::sleep(Duration::from_secs(16)).await;
    assert_eq!(proxy.in_flight("shop/v1").await, 1);
    release.send_replace(true);
    let (mut head, mut came) = ([0; 9], Vec::new());
    while came.last() != Some(&1) {
        soon(stream.read_exact(&mut head)).await.unwrap();
        came.push(head[3]);
        let mut rest = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        soon(stream.read_exact(&mut rest)).await.unwrap();
    }
    drop(stream);
    proxy.stopped().await;
}

#[tokio::test]
async fn pings_do_not_put_off_the_end_of_a_connection() {
    const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingping";
    let one = support::backend::Backend::start("one").await;
    let World { mut proxy, edge, .. } = world(Http, &[one.address]).await;
    // Answers nothing that it is asked, as h2 would end the connection when it is.
    let mut stream = TcpStream::connect(edge).await.unwrap();
    write(&mut stream, [PREFACE, SETTINGS, PING].concat()).await;
    let mut bytes = [0; 9];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(bytes[3], 4, "SETTINGS");
    proxy.stop();
    let began = Instant::now();
    let (mut from, mut to) = stream.into_split();
    let pinging = tokio::spawn(async move {
        while tokio::io::AsyncWriteExt::write_all(&mut to, PING).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let mut said = Vec::new();
    soon(from.read_to_end(&mut said)).await.unwrap();
    assert!(began.elapsed() > Duration::from_secs(4), "it had its time");
    assert!(said.windows(8).any(|eight| eight == b"pingping"), "it was answered");
    pinging.await.unwrap();
    proxy.stopped().await;
}
