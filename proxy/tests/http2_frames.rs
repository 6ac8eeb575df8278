//! HTTP/2 frame by frame: small ones, empty ones, and those that come before a response.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    future::poll_fn,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use config::Protocol::{H2c, Http};
use h2::{Reason, RecvStream, SendStream, server::SendResponse};
use http::{HeaderValue, Request, Response, Uri};
use support::{
    World, eventually,
    http2::{Answer, Backend, Client, echo, get, post, read, send_all, soon, world},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

/// Streams that are slow at once.
const SLOW: usize = 20;
/// Frames of each, of 1 to 20 bytes. Together many more than `h2` lets wait in one connection, and
/// each less than any window.
const FRAMES: usize = 3_000;

/// What a slow stream carries.
fn body(of: usize) -> Vec<Bytes> {
    let mut rng = fastrand::Rng::with_seed(of as u64);
    (0..FRAMES).map(|_| (0..rng.usize(1..=20)).map(|_| rng.u8(..)).collect()).collect()
}

async fn send_body(stream: &mut SendStream<Bytes>, of: usize) {
    for (i, frame) in body(of).into_iter().enumerate() {
        send_all(stream, frame, i + 1 == FRAMES).await;
    }
}

/// For ends of a connection that leave small frames waiting themselves.
const PATIENT: usize = usize::MAX / 2;

/// An endpoint that counts its connections. It ends when it is dropped.
struct Counted {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Counted {
    async fn start<F>(answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(support::ANY).await.unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&connections);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut streams = JoinSet::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    streams.spawn(answer(request, respond));
                }
            }
        });
        Self { address, connections, task }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

#[tokio::test]
async fn slow_readers_of_small_frames_harm_nobody_on_their_connection() {
    let sent = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&sent);
    let upstream = Counted::start(move |request, mut respond| {
        let sent = Arc::clone(&count);
        async move {
            let Ok(of) = request.uri().path()[1..].parse() else { return echo(request, respond).await };
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            send_body(&mut stream, of).await;
            sent.fetch_add(1, Ordering::SeqCst);
        }
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(500).data_frame_budget(PATIENT).initial_max_send_streams(100);
    let mut client = Client::open_with(edge, &builder).await;
    // One that is under way all the time.
    let (echoed, mut other) = client.begin(post("/echo"), false).await;
    other.send_data(Bytes::from_static(b"one "), false).unwrap();
    let mut slow = Vec::new();
    for of in 0..SLOW {
        let (response, _) = client.begin(get(&format!("/{of}")), true).await;
        slow.push(soon(response).await.unwrap().into_body());
    }
    eventually("all is sent", async || (sent.load(Ordering::SeqCst) == SLOW).then_some(())).await;
    // Behind what was sent, on the same connections.
    for _ in 0..20 {
        assert_eq!(client.ask(post("/echo"), b"quick").await.unwrap().body, b"quick");
    }
    other.send_data(Bytes::from_static(b"two"), true).unwrap();
    assert_eq!(Answer::read(soon(echoed).await.unwrap()).await.unwrap().body, b"one two");
    for (of, mut stream) in slow.into_iter().enumerate() {
        assert!(soon(read(&mut stream)).await.unwrap().0 == body(of).concat(), "stream {of}");
    }
    assert_eq!(upstream.connections(), 1);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn uploads_of_small_frames_to_a_slow_endpoint_harm_nobody_on_their_connection() {
    let (release, released) = watch::channel(false);
    let mut builder = h2::server::Builder::new();
    builder.initial_window_size(500).data_frame_budget(PATIENT);
    let upstream = Backend::start_with(builder, move |request, respond| {
        let mut released = released.clone();
        async move {
            if request.uri().path() == "/slow" {
                released.wait_for(|released| *released).await.unwrap();
            }
            echo(request, respond).await;
        }
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    let mut slow = Vec::new();
    for of in 0..SLOW {
        let (response, mut stream) = client.begin(post("/slow"), false).await;
        soon(send_body(&mut stream, of)).await;
        // Read at once: together they are more than the client's window.
        slow.push(tokio::spawn(async { Answer::read(response.await.unwrap()).await.unwrap().body }));
    }
    for _ in 0..20 {
        assert_eq!(client.ask(post("/echo"), b"quick").await.unwrap().body, b"quick");
    }
    release.send_replace(true);
    for (of, answer) in slow.into_iter().enumerate() {
        assert!(soon(answer).await.unwrap() == body(of).concat(), "stream {of}");
    }
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, data: &[u8]) -> Vec<u8> {
    let len = (data.len() as u32).to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), data].concat()
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const RST_STREAM: u8 = 3;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// A connection whose frames a test writes and reads itself.
struct Raw(TcpStream);

impl Raw {
    async fn open(to: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
        stream.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
        Self(stream)
    }

    /// The head of a POST to a.com (RFC 7541, appendix A).
    fn post(stream: u32) -> Vec<u8> {
        frame(HEADERS, END_HEADERS, stream, b"\x83\x86\x84\x41\x05a.com")
    }

    async fn next(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let mut head = [0; 9];
        soon(self.0.read_exact(&mut head)).await.unwrap();
        let [a, b, c, kind, flags, stream @ ..] = head;
        let mut data = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        soon(self.0.read_exact(&mut data)).await.unwrap();
        (kind, flags, u32::from_be_bytes(stream), data)
    }

    /// The body of the response on a stream.
    async fn body(&mut self, of: u32) -> Vec<u8> {
        let mut body = Vec::new();
        loop {
            let (kind, flags, stream, data) = self.next().await;
            assert!(kind != GOAWAY && kind != RST_STREAM, "{data:?}");
            if kind == DATA && stream == of {
                body.extend_from_slice(&data);
            }
            if stream == of && kind != SETTINGS && flags & END_STREAM > 0 {
                return body;
            }
        }
    }
}

#[tokio::test]
async fn a_burst_of_small_frames_is_no_attack() {
    let mut builder = h2::server::Builder::new();
    builder.data_frame_budget(PATIENT);
    let upstream = Backend::start_with(builder, echo).await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut raw = Raw::open(edge).await;
    // All of it is there when the proxy first reads.
    let small = frame(DATA, 0, 1, b"x").repeat(30_000);
    raw.0.write_all(&[&Raw::post(1)[..], &small, &frame(DATA, END_STREAM, 1, b"y")].concat()).await.unwrap();
    assert!(raw.body(1).await == [&b"x".repeat(30_000)[..], b"y"].concat());
    drop(raw);
    proxy.stopped().await;
}

#[tokio::test]
async fn small_frames_that_were_on_their_way_to_cancelled_streams_are_not_held_against_an_endpoint() {
    let listener = TcpListener::bind(support::ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    let endpoint = tokio::spawn(async move {
        // The only connection.
        let mut raw = Raw(listener.accept().await.unwrap().0);
        raw.0.read_exact(&mut [0; 24]).await.unwrap();
        raw.0.write_all(&frame(SETTINGS, 0, 0, b"")).await.unwrap();
        loop {
            let mut head = [0; 9];
            if raw.0.read_exact(&mut head).await.is_err() {
                return;
            }
            let [a, b, c, kind, _, stream @ ..] = head;
            raw.0.read_exact(&mut vec![0; u32::from_be_bytes([0, a, b, c]) as usize]).await.unwrap();
            let stream = u32::from_be_bytes(stream);
            let answer = match kind {
                // Status 200 (RFC 7541, appendix A), and something.
                HEADERS => {
                    [frame(HEADERS, END_HEADERS, stream, b"\x88"), frame(DATA, 0, stream, b"x")].concat()
                }
                // As if they had crossed it.
                RST_STREAM => frame(DATA, 0, stream, b"y").repeat(2_000),
                _ => continue,
            };
            raw.0.write_all(&answer).await.unwrap();
        }
    });
    let World { proxy, edge, .. } = world(H2c, &[address]).await;
    let mut client = Client::open(edge).await;
    for _ in 0..40 {
        let (response, mut stream) = client.begin(get("/"), true).await;
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(soon(body.data()).await.unwrap().unwrap(), "x");
        stream.send_reset(Reason::CANCEL);
        proxy.idle("shop/v1").await;
    }
    proxy.stopped().await;
    soon(endpoint).await.unwrap();
}

#[tokio::test]
async fn empty_frames_over_the_life_of_a_clients_connection_harm_nobody() {
    let upstream = Backend::start(echo).await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut raw = Raw::open(edge).await;
    let empty = |stream| frame(DATA, 0, stream, b"");
    for i in 0..100 {
        let stream = 2 * i + 1;
        // Cut in any place.
        let frames = [
            Raw::post(stream),
            empty(stream),
            frame(DATA, 0, stream, b"da"),
            empty(stream),
            empty(stream),
            frame(DATA, END_STREAM, stream, b"ta"),
        ]
        .concat();
        let (one, two) = frames.split_at(i as usize % frames.len());
        raw.0.write_all(one).await.unwrap();
        tokio::task::yield_now().await;
        raw.0.write_all(two).await.unwrap();
        assert_eq!(raw.body(stream).await, b"data");
    }
    // A flood is another matter.
    raw.0.write_all(&[&Raw::post(201)[..], &empty(201).repeat(2_000)].concat()).await.unwrap();
    let last = loop {
        let (kind, _, _, data) = raw.next().await;
        if kind == GOAWAY {
            break data;
        }
    };
    assert_eq!(last[4..8], 11_u32.to_be_bytes(), "ENHANCE_YOUR_CALM");
    drop(raw);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn empty_frames_over_the_life_of_an_endpoints_connection_harm_nobody() {
    let upstream = Counted::start(async |_, mut respond| {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        for part in ["d", "a", "t", "a"] {
            stream.send_data(Bytes::new(), false).unwrap();
            stream.send_data(part.into(), false).unwrap();
            stream.send_data(Bytes::new(), false).unwrap();
        }
        stream.send_data(Bytes::new(), true).unwrap();
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    for _ in 0..40 {
        assert_eq!(client.ask(get("/"), b"").await.unwrap().body, b"data");
    }
    assert_eq!(upstream.connections(), 1);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_client_that_waits_to_be_asked_for_a_body_is_asked() {
    let (one, two) = (support::backend::Backend::start("one").await, Backend::start(echo).await);
    for (protocol, address) in [(Http, one.address), (H2c, two.address)] {
        let World { proxy, edge, .. } = world(protocol, &[address]).await;
        let mut client = Client::open(edge).await;
        let mut request = post("/echo");
        request.headers_mut().insert("expect", HeaderValue::from_static("100-continue"));
        let (mut response, mut stream) = client.begin(request, false).await;
        let interim = soon(poll_fn(|cx| response.poll_informational(cx))).await.unwrap().unwrap();
        assert_eq!(interim.status(), 100);
        stream.send_data(Bytes::from_static(b"asked"), true).unwrap();
        let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"asked"[..]));
        assert!(!answer.headers.contains_key("seen-expect"));
        // Nobody else is.
        let (mut response, mut stream) = client.begin(post("/echo"), false).await;
        tokio::task::yield_now().await;
        stream.send_data(Bytes::from_static(b"not asked"), true).unwrap();
        let interim = soon(poll_fn(|cx| response.poll_informational(cx))).await;
        assert!(interim.is_none());
        proxy.stopped().await;
    }
}

#[tokio::test]
async fn the_scheme_that_an_endpoint_sees_is_not_the_clients_word() {
    let upstream = Backend::start(async |request, mut respond| {
        let uri = request.uri();
        let seen = format!("{} {}", uri.scheme_str().unwrap(), uri.path());
        let response = Response::builder().header("x-seen", seen).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    for (scheme, path) in [("https", "/x"), ("gopher", "/")] {
        let uri = Uri::builder().scheme(scheme).authority("a.com").path_and_query(path).build().unwrap();
        let request = Request::get(uri).body(()).unwrap();
        let answer = client.ask(request, b"").await.unwrap();
        let seen = answer.headers.get("x-seen").map(|seen| seen.to_str().unwrap().to_owned());
        assert_eq!((answer.status, seen), (200, Some(format!("http {path}"))));
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn interim_responses_without_end_are_a_broken_response() {
    let upstream = Counted::start(async |request, mut respond| {
        if request.uri().path() == "/echo" {
            return echo(request, respond).await;
        }
        for i in 0..1_000 {
            let interim = Response::builder().status(103).header("link", format!("</{i}>")).body(()).unwrap();
            if respond.send_informational(interim).is_err() {
                return;
            }
        }
        // No answer follows.
        _ = poll_fn(|cx| respond.poll_reset(cx)).await;
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    let (mut response, _) = client.begin(get("/"), true).await;
    let mut interims = 0;
    while let Some(interim) = soon(poll_fn(|cx| response.poll_informational(cx))).await {
        assert_eq!(interim.unwrap().status(), 103);
        interims += 1;
    }
    assert_eq!((interims, soon(response).await.unwrap().status().as_u16()), (16, 502));
    // The others on the connection go on.
    assert_eq!(client.ask(post("/echo"), b"more").await.unwrap().body, b"more");
    assert_eq!(upstream.connections(), 1);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn an_endpoint_of_http2_cannot_switch_protocols() {
    let upstream = Backend::start(async |_, mut respond| {
        let switch = Response::builder().status(101).body(()).unwrap();
        respond.send_informational(switch).unwrap();
        assert_eq!(poll_fn(|cx| respond.poll_reset(cx)).await.unwrap(), Reason::CANCEL);
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let answer = Client::open(edge).await.ask(get("/"), b"").await.unwrap();
    assert_eq!(answer.status, 502);
    assert_eq!(support::get(edge, "a.com", "/").await.unwrap().status, 502, "of HTTP/1");
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}
