//! What goes wrong only at the edges: buffers that are full, connections that die unseen, and stops
//! that come between an acceptance and its first request.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;
#[allow(unreachable_pub, reason = "as the other parts of the support")]
#[path = "support/tls.rs"]
mod tls;

use std::{
    net::SocketAddr,
    os::fd::{AsRawFd, OwnedFd},
    process::Command,
    time::Duration,
};

use config::{Protocol, bootstrap::ProxySettings, xds::ResourceType};
use rustls::version::{TLS12, TLS13};
use socket2::{Domain, Socket, Type};
use support::{
    ANY, Connection, DEADLINE, Running, World,
    backend::{Backend, free_address},
    control::{Control, cluster},
    eventually,
    peer::Peer,
    shop,
};
use tls::Authority;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};

type Resource = (ResourceType, String, Vec<u8>);

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

async fn connect(to: SocketAddr) -> Peer<TcpStream> {
    Peer::new(TcpStream::connect(to).await.unwrap())
}

async fn accept(listener: &TcpListener) -> Peer<TcpStream> {
    Peer::new(timeout(DEADLINE, listener.accept()).await.expect("it connects").unwrap().0)
}

async fn endpoint() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// A world of [`shop`], with `instead` in the place of what has the same name there.
async fn world(
    endpoint: SocketAddr,
    instead: impl IntoIterator<Item = Resource>,
    change: impl FnOnce(&mut ProxySettings),
) -> World {
    let control = Control::start().await;
    control.set(shop(&[endpoint]));
    control.set(instead);
    let proxy = Running::start(control.servers(), change).await;
    let edge = proxy.listener("edge").await;
    control.acknowledged().await;
    World { control, proxy, edge }
}

/// Waits until nothing is accepted any more.
async fn stopping(proxy: &Running) {
    eventually("it stops", async || proxy.listener_now("edge").await.is_none().then_some(())).await;
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|i| (i % 251) as u8).collect()
}

/// A socket that takes little at once, so that what is sent to it waits on the other side: segments
/// are small too, by which the kernel there measures its buffer.
fn narrow() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.set_tcp_mss(536).unwrap();
    socket
}

/// A connection of such a socket.
fn reads_little(to: SocketAddr) -> TcpStream {
    let socket = narrow();
    socket.connect(&to.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    TcpStream::from_std(socket.into()).unwrap()
}

/// How much a kernel takes for a [`narrow`] socket that reads nothing.
fn capacity() -> usize {
    let listener = std::net::TcpListener::bind(ANY).unwrap();
    let reader = narrow();
    reader.connect(&listener.local_addr().unwrap().into()).unwrap();
    let (mut writer, _) = listener.accept().unwrap();
    writer.set_nonblocking(true).unwrap();
    std::iter::from_fn(|| std::io::Write::write(&mut writer, &vec![0; 32 * 1024]).ok()).sum()
}

/// Lengths of bodies, among them some a little longer than the kernel takes: TLS holds their end back.
fn lengths() -> impl Iterator<Item = usize> {
    let capacity = capacity();
    (capacity - 40_000..capacity + 80_000).step_by(8_000).chain([3_300_000, 3_317_003])
}

#[tokio::test]
async fn a_tls_client_that_reads_slowly_gets_the_last_byte_and_asks_again() {
    let authority = Authority::new();
    let (listener, address) = endpoint().await;
    let World { proxy, edge, .. } =
        world(address, [authority.listener("edge", ANY)], |s| s.threads = 1).await;
    let mut backend = None;
    for length in lengths() {
        let mut client = Peer::new(authority.connect(reads_little(edge), &TLS13).await);
        for length in [length, 2] {
            client.say(GET).await;
            if backend.is_none() {
                backend = Some(accept(&listener).await);
            }
            let backend = backend.as_mut().unwrap();
            backend.hears("\r\n\r\n").await;
            let body = pattern(length);
            backend.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n")).await;
            let reading = async {
                // Another exchange with the proxy leaves it the time to come as far as it can.
                _ = proxy.in_flight("shop/v1").await;
                client.hears("\r\n\r\n").await;
                client.takes(length).await
            };
            let ((), seen) = tokio::join!(backend.say(&body), reading);
            assert!(seen == body, "{length} bytes come as they were");
        }
    }
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_tls_endpoint_that_reads_slowly_gets_the_last_byte_and_is_used_again() {
    let authority = Authority::new();
    let socket = narrow();
    socket.bind(&ANY.into()).unwrap();
    socket.listen(8).unwrap();
    socket.set_nonblocking(true).unwrap();
    let listener = TcpListener::from_std(socket.into()).unwrap();
    let address = listener.local_addr().unwrap();
    let World { proxy, edge, .. } =
        world(address, [authority.cluster("shop/v1", Protocol::Http)], |_| {}).await;
    let mut client = connect(edge).await;
    for length in lengths() {
        let mut backend = None;
        for (length, answer) in [(length, OK), (2, LAST)] {
            let body = pattern(length);
            let sending = async {
                client.say(format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n")).await;
                client.say(&body).await;
                client.hears("ok").await;
            };
            let taking = async {
                if backend.is_none() {
                    let stream = accept(&listener).await.stream;
                    backend = Some(Peer::new(authority.acceptor().accept(stream).await.unwrap()));
                }
                // Another exchange with the proxy leaves it the time to come as far as it can.
                eventually("it is let in", async || (proxy.in_flight("shop/v1").await == 1).then_some(()))
                    .await;
                let backend = backend.as_mut().unwrap();
                backend.hears("\r\n\r\n").await;
                let seen = backend.takes(length).await;
                backend.say(answer).await;
                seen
            };
            let ((), seen) = tokio::join!(sending, taking);
            assert!(seen == body, "{length} bytes come as they were");
        }
    }
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_cluster_that_turns_to_tls_and_back_uses_no_connection_of_before() {
    let authority = Authority::new();
    let (listener, address) = endpoint().await;
    let World { control, proxy, edge } = world(address, [], |_| {}).await;
    // One connection, as each core has idle connections of its own.
    let mut client = connect(edge).await;
    client.say(GET).await;
    let mut clear = accept(&listener).await;
    clear.hears("\r\n\r\n").await;
    clear.say(OK).await;
    client.hears("ok").await;

    control.set([authority.cluster("shop/v1", Protocol::Http)]);
    control.acknowledged().await;
    client.say(GET).await;
    let stream = accept(&listener).await.stream;
    let mut secret = Peer::new(authority.acceptor().accept(stream).await.expect("it speaks TLS"));
    secret.hears("\r\n\r\n").await;
    secret.say(OK).await;
    client.hears("ok").await;

    control.set([cluster("shop/v1", Protocol::Http)]);
    control.acknowledged().await;
    client.say(GET).await;
    // The first one may be of use again.
    let mut again = Vec::new();
    let mut other = tokio::select! {
        n = clear.stream.read_buf(&mut again) => {
            if n.unwrap() > 0 { clear } else { accept(&listener).await }
        }
        other = accept(&listener) => other,
    };
    other.seen = again;
    assert!(other.hears("\r\n\r\n").await.starts_with("GET / HTTP/1.1\r\n"));
    other.say(OK).await;
    client.hears("ok").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_tls_listener_moves_with_its_certificates() {
    let authority = Authority::new();
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = world(one.address, [authority.listener("edge", ANY)], |_| {}).await;
    let first = free_address();
    for address in [first, ANY, first] {
        control.set([authority.listener("edge", address)]);
        control.acknowledged().await;
        let nack = control.requests().into_iter().find_map(|request| request.error_detail);
        assert!(nack.is_none(), "{nack:?}");
        let now = proxy.listener("edge").await;
        assert!(now != edge && (address == ANY || now == first), "{now}");
        let stream = TcpStream::connect(now).await.unwrap();
        let mut client = Peer::new(authority.connect(stream, &TLS13).await);
        client.say(GET).await;
        assert!(client.hears("\r\n\r\n").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(client.takes(3).await, b"one");
    }
    proxy.stopped().await;
}

/// Runs the test that is called `name` in a process of its own; `true` in that.
fn alone(name: &str) -> bool {
    const ALONE: &str = "SLUICEGATE_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let ran = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    assert!(ran.status.success() && out.contains("1 passed"), "{out}\n{err}");
    false
}

/// The limit of file descriptors keeps the proxy from accepting, so that the kernel holds all when the
/// listener is told to go.
#[tokio::test]
async fn connections_that_the_kernel_holds_when_their_listener_goes_are_served() {
    const CONNECTIONS: usize = 300;
    if !alone("connections_that_the_kernel_holds_when_their_listener_goes_are_served") {
        return;
    }
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = world(one.address, [], |s| s.threads = 1).await;
    let mut admin = Connection::open(proxy.admin).await.unwrap();
    admin.get_soon("admin", "/healthz").await.unwrap(); // so it is accepted
    let sockets: Vec<Socket> =
        (0..CONNECTIONS).map(|_| Socket::new(Domain::IPV4, Type::STREAM, None).unwrap()).collect();
    let (soft, hard) = rlimit::Resource::NOFILE.get().unwrap();
    let next = OwnedFd::from(std::fs::File::open("/dev/null").unwrap()).as_raw_fd();
    rlimit::Resource::NOFILE.set(u64::try_from(next).unwrap(), hard).unwrap();
    for socket in &sockets {
        socket.connect(&edge.into()).unwrap();
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
        assert_eq!(socket.send(request).unwrap(), request.len());
    }
    // From the fifth attempt on it pauses for so long that it is told to stop before the next one.
    eventually("it cannot accept", async || {
        let metrics = admin.get_soon("admin", "/metrics").await.unwrap().text();
        let errors = metrics.lines().find_map(|l| l.strip_prefix("sluicegate_proxy_accept_errors_total "));
        (errors.unwrap().parse::<f64>().unwrap() > 4.5).then_some(())
    })
    .await;
    rlimit::Resource::NOFILE.set(soft, hard).unwrap();
    control.remove([(ResourceType::Listener, "edge")]);
    let mut answers = Vec::new();
    for socket in sockets {
        socket.set_nonblocking(true).unwrap();
        let mut client = Peer::new(TcpStream::from_std(socket.into()).unwrap());
        answers.push(String::from_utf8(client.end().await.0).unwrap());
    }
    let unanswered = answers.iter().filter(|answer| answer.is_empty()).count();
    assert_eq!(unanswered, 0, "of {CONNECTIONS}");
    assert!(answers.iter().all(|answer| answer.starts_with("HTTP/1.1 200 OK\r\n")), "{}", answers[0]);
    assert_eq!(one.requests(), CONNECTIONS);
    proxy.stopped().await;
}

#[tokio::test]
async fn a_tls_connection_from_before_a_stop_has_its_first_request_answered() {
    let authority = Authority::new();
    let one = Backend::start("one").await;
    let World { proxy, edge, control } = world(one.address, [authority.listener("edge", ANY)], |_| {}).await;
    for version in [&TLS12, &TLS13] {
        let stream = TcpStream::connect(edge).await.unwrap();
        eventually("it is accepted", async || (proxy.metric("connections_open").await > 0.5).then_some(()))
            .await;
        control.remove([(ResourceType::Listener, "edge")]);
        stopping(&proxy).await;
        let stream = authority.connect(stream, version).await;
        if version.version == rustls::ProtocolVersion::TLSv1_3 {
            // Tickets tell that the proxy, too, is done with the handshake.
            timeout(DEADLINE, stream.get_ref().0.peek(&mut [0])).await.unwrap().unwrap();
        }
        let mut client = Peer::new(stream);
        client.say(GET).await;
        let (answer, _) = client.end().await;
        let answer = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 200 ok\r\n"), "{answer:?}");
        assert!(answer.contains("connection: close\r\n") && answer.ends_with("one"), "{answer:?}");
        if version.version == rustls::ProtocolVersion::TLSv1_3 {
            break;
        }
        control.set([authority.listener("edge", edge)]);
        proxy.listener("edge").await;
        eventually("the first one is gone", async || {
            (proxy.metric("connections_open").await < 0.5).then_some(())
        })
        .await;
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn a_client_that_asked_for_more_than_a_drain_answers_reads_the_last_response_whole() {
    let (listener, address) = endpoint().await;
    let World { control, proxy, edge } = world(address, [], |_| {}).await;
    let mut client = Peer::new(reads_little(edge));
    // More than the proxy reads ahead, so that some is unread when it closes.
    let ask = |i: usize| format!("GET /{i} HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(1_000));
    client.say((0..150).map(ask).collect::<String>()).await;
    let mut backend = accept(&listener).await;
    assert!(backend.hears("\r\n\r\n").await.starts_with("GET /0 "));
    control.remove([(ResourceType::Listener, "edge")]);
    stopping(&proxy).await;
    // All of it waits on the proxy's side when that closes: a reset would lose it.
    let body = pattern(60_000);
    backend.say(format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len())).await;
    backend.say(&body).await;
    proxy.idle("shop/v1").await;
    let head = client.hears("\r\n\r\n").await.to_ascii_lowercase();
    assert!(head.contains("connection: close\r\n"), "{head}");
    let (seen, reset) = client.end().await;
    assert!(seen == body && !reset, "{} of {} bytes, reset: {reset}", seen.len(), body.len());
    drop(client);
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn no_request_meets_one_of_many_idle_connections_that_the_endpoint_closed() {
    const CONNECTIONS: usize = 300;
    let (listener, address) = endpoint().await;
    let World { proxy, edge, .. } = world(address, [], |s| s.threads = 1).await;
    let (mut clients, mut backends) = (Vec::new(), Vec::new());
    for _ in 0..CONNECTIONS {
        let mut client = connect(edge).await;
        client.say(GET).await;
        let mut backend = accept(&listener).await;
        backend.hears("\r\n\r\n").await;
        clients.push(client);
        backends.push(backend);
    }
    for (client, backend) in clients.iter_mut().zip(&mut backends) {
        backend.say(OK).await;
        client.hears("ok").await;
    }
    proxy.idle("shop/v1").await;
    drop(backends);
    let client = &mut clients[0];
    client.say("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody").await;
    let answering = async {
        let mut backend = accept(&listener).await;
        backend.hears("body").await;
        backend.say(OK).await;
        backend
    };
    let answer = tokio::select! {
        () = async { answering.await; std::future::pending::<()>().await } => unreachable!(),
        answer = client.hears("\r\n\r\n") => answer,
    };
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    client.hears("ok").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_request_has_a_hundred_interim_responses_and_no_more() {
    const INTERIM: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    for (interims, status) in [(100, 200), (101, 502), (5_000, 502)] {
        let (listener, address) = endpoint().await;
        let World { proxy, edge, .. } = world(address, [], |_| {}).await;
        let mut client = connect(edge).await;
        client.say(GET).await;
        let mut backend = accept(&listener).await;
        backend.hears("\r\n\r\n").await;
        // The proxy may close before it has read all.
        _ = backend.stream.write_all(format!("{}{OK}", INTERIM.repeat(interims)).as_bytes()).await;
        let mut passed = 0;
        let last = loop {
            let head = client.hears("\r\n\r\n").await;
            if !head.starts_with("HTTP/1.1 103 ") {
                break head;
            }
            passed += 1;
        };
        assert!(last.starts_with(&format!("HTTP/1.1 {status} ")), "{interims}: {last}");
        assert_eq!(passed, 100, "{interims}");
        drop(client);
        proxy.idle("shop/v1").await;
        proxy.stopped().await;
    }
}

#[tokio::test]
async fn a_request_that_is_cut_at_the_end_of_a_drain_is_counted() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } =
        world(one.address, [], |s| s.drain_timeout = Duration::from_millis(200)).await;
    let of = r#"aborted_total{gateway="edge",service="shop",version="v1",reason="timeout"}"#;
    let (mut silent, mut begun) = (connect(edge).await, connect(edge).await);
    silent.say("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
    begun.say("GET /endless HTTP/1.1\r\nHost: a\r\n\r\n").await;
    begun.hears("\r\n\r\n").await;
    eventually("both are there", async || (one.requests() == 2).then_some(())).await;
    assert!(proxy.metric(of).await < 0.5);
    control.remove([(ResourceType::Listener, "edge")]);
    assert!(silent.end().await.0.is_empty() && begun.end().await.0.is_empty());
    proxy.idle("shop/v1").await;
    let counted = proxy.metric(of).await;
    assert!((counted - 2.0).abs() < 0.1, "{counted}");
    proxy.stopped().await;
}

/// A client that sends `\r\n` behind its body, before the response or after it, and whether the
/// connection is an idle one then: it serves, and a stop closes it at once and silently.
async fn a_stray_line(early: bool) {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = world(one.address, [], |_| {}).await;
    let mut client = connect(edge).await;
    let post = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nbody";
    for request in [post, GET, post] {
        let stray = if request == post { "\r\n" } else { "" };
        client.say(format!("{request}{}", if early { stray } else { "" })).await;
        assert!(client.hears("\r\n\r\n").await.starts_with("HTTP/1.1 200 OK\r\n"));
        assert_eq!(client.takes(3).await, b"one");
        if !early {
            client.say(stray).await;
        }
    }
    proxy.idle("shop/v1").await;
    control.remove([(ResourceType::Listener, "edge")]);
    let (said, reset) = client.end().await;
    assert!(said.is_empty() && !reset, "{:?}, reset: {reset}", String::from_utf8_lossy(&said));
    assert!(proxy.metric("heads_refused_total").await < 0.5);
    proxy.stopped().await;
}

#[tokio::test]
async fn a_stray_line_behind_a_body_begins_no_request() {
    a_stray_line(true).await;
}

#[tokio::test]
async fn a_stray_line_behind_a_response_begins_no_request() {
    a_stray_line(false).await;
}

#[tokio::test]
async fn a_request_on_a_draining_connection_finds_the_routes_that_went_with_its_listener() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = world(one.address, [], |_| {}).await;
    let mut client = connect(edge).await;
    client.say("GET / HTTP/1.1\r\n").await;
    eventually("it is accepted", async || (proxy.metric("connections_open").await > 0.5).then_some(())).await;
    control.remove([(ResourceType::Listener, "edge"), (ResourceType::RouteConfiguration, "edge")]);
    stopping(&proxy).await;
    control.acknowledged().await;
    client.say("Host: a\r\n\r\n").await;
    let (answer, _) = client.end().await;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("one"), "{answer}");
    proxy.stopped().await;
}
