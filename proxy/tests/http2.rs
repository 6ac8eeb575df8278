//! HTTP/2 from clients and to endpoints, and what becomes of it where the other side speaks HTTP/1.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use config::Protocol::{Grpc, H2c, Http};
use h2::Reason;
use http::{HeaderMap, HeaderValue, Request, Response};
use support::{
    World, control, eventually,
    http2::{
        Answer, Backend, Client, echo, get, post, raw, read, read_head, read_until, send_all, soon, world,
        write,
    },
};
use tokio::{io::AsyncReadExt, net::TcpStream, sync::mpsc};

const MIB: usize = 1024 * 1024;

fn random(bytes: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(bytes as u64);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

#[tokio::test]
async fn many_streams_of_one_connection_run_at_once() {
    let (one, two) = (support::backend::Backend::start("one").await, Backend::start(echo).await);
    for (protocol, address) in [(Http, one.address), (H2c, two.address)] {
        let World { proxy, edge, .. } = world(protocol, &[address]).await;
        let mut client = Client::open(edge).await;
        let mut answers = Vec::new();
        for i in 0..250_usize {
            let (response, mut stream) = client.begin(post("/echo"), false).await;
            let body = random(i * 37);
            stream.send_data(body.clone().into(), true).unwrap();
            answers.push(tokio::spawn(async move {
                let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
                assert_eq!((answer.status, answer.body == body), (200, true), "{i}");
            }));
        }
        for answer in answers {
            answer.await.unwrap();
        }
        proxy.idle("shop/v1").await;
        proxy.stopped().await;
    }
}

#[tokio::test]
async fn large_bodies_pass_both_ways_over_http1_in_chunks_and_by_length() {
    let upstream = raw(async |mut stream| {
        loop {
            let mut peek = [0];
            if stream.peek(&mut peek).await.unwrap() == 0 {
                return;
            }
            let (head, rest) = read_head(&mut stream).await;
            if head.contains("transfer-encoding: chunked") {
                // Sent back as they came: chunks, with the trailer.
                let body = read_until(&mut stream, rest, b"0\r\nx-sum: 7\r\n\r\n").await;
                write(&mut stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                write(&mut stream, body).await;
            } else {
                assert!(head.contains("content-length: 3000000\r\n"), "{head}");
                let mut body = rest;
                while body.len() < 3_000_000 {
                    assert!(stream.read_buf(&mut body).await.unwrap() > 0);
                }
                write(&mut stream, "HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n").await;
                write(&mut stream, body).await;
            }
        }
    })
    .await;
    let World { proxy, edge, .. } = world(Http, &[upstream]).await;
    let mut client = Client::open(edge).await;
    let body = random(3_000_000);
    for chunked in [true, false, true] {
        let mut request = post("/");
        if !chunked {
            request.headers_mut().insert("content-length", HeaderValue::from(body.len()));
        }
        let (response, mut stream) = client.begin(request, false).await;
        let sent = body.clone();
        tokio::spawn(async move {
            send_all(&mut stream, sent.into(), !chunked).await;
            if chunked {
                let trailers = [("x-sum".parse().unwrap(), HeaderValue::from_static("7"))];
                stream.send_trailers(trailers.into_iter().collect()).unwrap();
            }
        });
        let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
        assert!(answer.body == body, "{chunked}: {} bytes", answer.body.len());
        let sum = answer.trailers.as_ref().and_then(|trailers| trailers.get("x-sum"));
        assert_eq!(sum.is_some(), chunked, "{:?}", answer.trailers);
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn fields_and_trailers_pass_between_http2_and_http2() {
    let upstream = Backend::start(echo).await;
    let World { proxy, edge, .. } = world(Grpc, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    let mut request = post("/a.B/C");
    for (name, value) in [("te", "trailers"), ("x-forwarded-for", "10.0.0.1"), ("expect", "100-continue")] {
        request.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    let (response, mut stream) = client.begin(request, false).await;
    stream.send_data(Bytes::from_static(b"hello"), false).unwrap();
    let trailers: HeaderMap =
        [("x-end".parse().unwrap(), HeaderValue::from_static("1"))].into_iter().collect();
    stream.send_trailers(trailers.clone()).unwrap();
    let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
    assert_eq!((answer.body.as_slice(), answer.trailers), (&b"hello"[..], Some(trailers)));
    let seen = |name: &str| answer.headers.get(format!("seen-{name}")).map(|value| value.to_str().unwrap());
    assert_eq!(seen("te"), Some("trailers"));
    assert_eq!(seen("x-forwarded-for"), Some("10.0.0.1, 127.0.0.1"));
    assert_eq!(seen("x-forwarded-proto"), Some("http"));
    assert_eq!((seen("authority"), seen("expect")), (Some("a.com"), None));
    proxy.stopped().await;
}

#[tokio::test]
async fn a_slow_reader_holds_up_its_endpoint_and_nobody_else() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&sent);
    let upstream = Backend::start(move |request, mut respond| {
        let sent = Arc::clone(&count);
        async move {
            if request.uri().path() != "/large" {
                return echo(request, respond).await;
            }
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            for i in 0..8 {
                let n = send_all(&mut stream, vec![7; MIB / 4].into(), i == 7).await;
                sent.fetch_add(n, Ordering::SeqCst);
            }
        }
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut windows = h2::client::Builder::new();
    windows.initial_window_size(20_000).initial_connection_window_size(MIB as u32);
    let mut client = Client::open_with(edge, &windows).await;
    let mut slow = Vec::new();
    for _ in 0..20 {
        let (response, _) = client.begin(get("/large"), true).await;
        slow.push(soon(response).await.unwrap().into_body());
    }
    // Nothing is read of these, and others are answered on the same connections.
    for _ in 0..50 {
        let answer = client.ask(post("/echo"), b"quick").await.unwrap();
        assert_eq!(answer.body, b"quick");
    }
    // Each has its window at the client, one buffer and its window at the proxy.
    let most = 20 * (20_000 + 2 * 32 * 1024 + 128 * 1024 + MIB / 4);
    assert!(sent.load(Ordering::SeqCst) <= most, "{} bytes are held", sent.load(Ordering::SeqCst));
    for mut stream in slow {
        assert_eq!(soon(read(&mut stream)).await.unwrap().0.len(), 2 * MIB);
    }
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_slow_endpoint_holds_up_its_client() {
    let upstream = Backend::start(async |request, mut respond| {
        let mut body = request.into_body();
        let Ok(bytes) = read_later(&mut body).await else { return };
        let response = Response::builder().header("x-bytes", bytes).body(()).unwrap();
        respond.send_response(response, true).unwrap();
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    let (response, mut stream) = client.begin(post("/"), false).await;
    let sending = tokio::spawn(async move {
        let sent = send_all(&mut stream, vec![1; 8 * MIB].into(), true).await;
        assert_eq!(sent, 8 * MIB);
    });
    let response = soon(response).await.unwrap();
    assert_eq!(response.headers()["x-bytes"], (8 * MIB).to_string());
    sending.await.unwrap();
    proxy.stopped().await;
}

/// Reads a body whose sender was stopped by flow control first.
async fn read_later(body: &mut h2::RecvStream) -> Result<usize, h2::Error> {
    let mut held = 0;
    while body.flow_control().available_capacity() > 0 {
        let Some(data) = body.data().await else { break };
        held += data?.len();
    }
    body.flow_control().release_capacity(held)?;
    Ok(held + read(body).await?.0.len())
}

#[tokio::test]
async fn a_client_that_cancels_is_cancelled_at_its_endpoint() {
    let (told, mut heard) = mpsc::unbounded_channel();
    let (say, tell) = (told.clone(), told);
    let two = Backend::start(move |_, mut respond| {
        let say = say.clone();
        async move {
            say.send("began").unwrap();
            let reset = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            assert_eq!(reset.unwrap(), Reason::CANCEL);
            say.send("ended").unwrap();
        }
    })
    .await;
    let one = raw(move |mut stream| {
        let tell = tell.clone();
        async move {
            read_head(&mut stream).await;
            tell.send("began").unwrap();
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            tell.send("ended").unwrap();
        }
    })
    .await;
    for (protocol, address) in [(Http, one), (H2c, two.address)] {
        let World { proxy, edge, .. } = world(protocol, &[address]).await;
        let mut client = Client::open(edge).await;
        let (response, mut stream) = client.begin(get("/"), true).await;
        assert_eq!(soon(heard.recv()).await, Some("began"));
        assert_eq!(proxy.in_flight("shop/v1").await, 1);
        stream.send_reset(Reason::CANCEL);
        drop(response);
        assert_eq!(soon(heard.recv()).await, Some("ended"));
        proxy.idle("shop/v1").await;
        proxy.stopped().await;
    }
}

#[tokio::test]
async fn a_stop_says_goaway_and_finishes_what_is_running() {
    let one = support::backend::Backend::start("one").await;
    let World { mut proxy, edge, .. } = world(Http, &[one.address]).await;
    let mut client = Client::open(edge).await;
    let (response, _) = client.begin(get("/wait"), true).await;
    eventually("it is there", async || (one.requests() == 1).then_some(())).await;
    let mut idle = Client::open(edge).await;
    idle.ask(get("/"), b"").await.unwrap();
    proxy.stop();
    // An idle connection closes, a busy one takes no more requests.
    soon(idle.connection).await.unwrap().unwrap();
    eventually("a GOAWAY", async || {
        std::future::poll_fn(|cx| client.send.poll_ready(cx)).await.is_err().then_some(())
    })
    .await;
    one.release.send_replace(true);
    let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"one"[..]));
    soon(client.connection).await.unwrap().unwrap();
    proxy.stopped().await;
}

#[tokio::test]
async fn what_an_endpoint_refuses_unprocessed_is_sent_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&requests);
    let upstream = Backend::start(move |request, mut respond| {
        let number = count.fetch_add(1, Ordering::SeqCst);
        async move {
            if number.is_multiple_of(2) {
                // With some of its body taken.
                _ = request.into_body().data().await;
                return respond.send_reset(Reason::REFUSED_STREAM);
            }
            echo(request, respond).await;
        }
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut client = Client::open(edge).await;
    for round in 1..=3 {
        let answer = client.ask(post("/"), b"not idempotent").await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (200, &b"not idempotent"[..]));
        assert_eq!(requests.load(Ordering::SeqCst), 2 * round);
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn a_connection_that_says_goaway_costs_no_request() {
    let listener = tokio::net::TcpListener::bind(support::ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        // One request a connection.
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut streams = tokio::task::JoinSet::new();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    connection.graceful_shutdown();
                    streams.spawn(echo(request, respond));
                }
                while streams.join_next().await.is_some() {}
            });
        }
    });
    let World { proxy, edge, .. } = world(H2c, &[address]).await;
    let mut client = Client::open(edge).await;
    for i in 0..50_u8 {
        let answer = client.ask(post("/"), &[i; 10]).await.unwrap();
        assert_eq!((answer.status, answer.body), (200, vec![i; 10]));
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn a_connection_closes_when_its_endpoint_has_left_and_its_streams_have_ended() {
    let (closed, mut closing) = mpsc::unbounded_channel();
    let (release, released) = tokio::sync::watch::channel(false);
    let listener = tokio::net::TcpListener::bind(support::ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (closed, released) = (closed.clone(), released.clone());
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                while let Some(Ok((request, respond))) = connection.accept().await {
                    let mut released = released.clone();
                    tokio::spawn(async move {
                        if request.uri().path() == "/wait" {
                            released.wait_for(|released| *released).await.unwrap();
                        }
                        echo(request, respond).await;
                    });
                }
                closed.send(()).unwrap();
            });
        }
    });
    let World { control, proxy, edge } = world(H2c, &[address]).await;
    let mut client = Client::open(edge).await;
    let (waiting, _) = client.begin(get("/wait"), true).await;
    client.ask(get("/"), b"").await.unwrap();
    control.set([control::endpoints("shop/v1", &[])]);
    control.acknowledged().await;
    assert_eq!(client.ask(get("/"), b"").await.unwrap().status, 503);
    assert!(closing.try_recv().is_err(), "it is in use");
    release.send_replace(true);
    assert_eq!(soon(waiting).await.unwrap().status(), 200);
    soon(closing.recv()).await.unwrap();
    proxy.stopped().await;
}

#[tokio::test]
async fn grpc_is_told_of_our_errors_as_it_expects() {
    let dead = support::backend::Dead::new();
    let World { control, proxy, edge } = world(Grpc, &[dead.address]).await;
    let mut client = Client::open(edge).await;
    let call = |path: &str| {
        let mut request = post(path);
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc+proto"));
        request
    };
    let status = |answer: &Answer| {
        assert_eq!(
            (answer.status, &answer.headers["content-type"]),
            (200, &HeaderValue::from_static("application/grpc"))
        );
        answer.headers["grpc-status"].to_str().unwrap().to_owned()
    };
    let answer = client.ask(call("/a.B/C"), b"\0\0\0\0\0").await.unwrap();
    assert_eq!(status(&answer), "14");
    assert_eq!(answer.headers["grpc-message"], "no endpoint of shop/v1 could be connected to (1 tried)");
    assert!(answer.body.is_empty());
    control.set([control::endpoints("shop/v1", &[])]);
    control.acknowledged().await;
    assert_eq!(status(&client.ask(call("/a.B/C"), b"\0\0\0\0\0").await.unwrap()), "14");
    // Metrics count what it is in HTTP.
    let of = r#"requests_total{gateway="edge",service="shop",version="v1",class="5xx"}"#;
    assert!((proxy.metric(of).await - 2.0).abs() < 0.1);

    let listener = tokio::net::TcpListener::bind(support::ANY).await.unwrap();
    control.set([control::endpoints("shop/v1", &[listener.local_addr().unwrap()])]);
    control.acknowledged().await;
    tokio::spawn(async move {
        // Dies with a message half sent.
        let mut connection = h2::server::handshake(listener.accept().await.unwrap().0).await.unwrap();
        let (_, mut respond) = connection.accept().await.unwrap().unwrap();
        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        stream.send_data(Bytes::from_static(b"\0\0\0"), false).unwrap();
        let driving = tokio::time::timeout(Duration::from_millis(300), connection.accept());
        _ = driving.await;
    });
    let answer = client.ask(call("/a.B/C"), b"\0\0\0\0\0").await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (200, &b"\0\0\0"[..]));
    assert_eq!(answer.trailers.unwrap()["grpc-status"], "14");
    proxy.stopped().await;
}

#[tokio::test]
async fn a_response_that_breaks_off_is_cut() {
    let upstream = raw(async |mut stream| {
        read_head(&mut stream).await;
        write(&mut stream, "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf").await;
    })
    .await;
    let World { proxy, edge, .. } = world(Http, &[upstream]).await;
    let mut client = Client::open(edge).await;
    let error = client.ask(get("/"), b"").await.unwrap_err();
    assert_eq!((error.is_reset(), error.reason()), (true, Some(Reason::INTERNAL_ERROR)));
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn who_cancels_without_end_is_sent_away() {
    let one = support::backend::Backend::start("one").await;
    let World { proxy, edge, .. } = world(Http, &[one.address]).await;
    let mut client = Client::open(edge).await;
    let mut sent = 0;
    let ended = loop {
        let ready = std::future::poll_fn(|cx| client.send.poll_ready(cx)).await;
        let begun = ready.and_then(|()| client.send.send_request(get("/wait"), true));
        match begun {
            Ok((_, mut stream)) => stream.send_reset(Reason::CANCEL),
            Err(error) => break error,
        }
        sent += 1;
        assert!(sent < 1_000_000, "nobody minds");
        tokio::task::yield_now().await;
    };
    assert_eq!((ended.is_go_away(), ended.reason()), (true, Some(Reason::ENHANCE_YOUR_CALM)), "{ended}");
    proxy.idle("shop/v1").await;
    // Others are not troubled.
    assert_eq!(Client::open(edge).await.ask(get("/"), b"").await.unwrap().body, b"one");
    proxy.stopped().await;
}

#[tokio::test]
async fn a_response_may_come_before_the_request_has_ended() {
    let one = raw(async |mut stream| {
        read_head(&mut stream).await;
        write(&mut stream, "HTTP/1.1 413 No\r\ncontent-length: 4\r\n\r\nstop").await;
        _ = stream.read(&mut [0; 1]).await;
    })
    .await;
    let two = Backend::start(async |_, mut respond| {
        let response = Response::builder().status(413).body(()).unwrap();
        let mut stream = respond.send_response(response, false).unwrap();
        stream.send_data(Bytes::from_static(b"stop"), true).unwrap();
    })
    .await;
    for (protocol, address) in [(Http, one), (H2c, two.address)] {
        let World { proxy, edge, .. } = world(protocol, &[address]).await;
        let mut client = Client::open(edge).await;
        let (response, mut stream) = client.begin(post("/"), false).await;
        let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.body.as_slice()), (413, &b"stop"[..]));
        let reset = soon(std::future::poll_fn(|cx| stream.poll_reset(cx))).await.unwrap();
        assert_eq!(reset, Reason::NO_ERROR);
        proxy.idle("shop/v1").await;
        proxy.stopped().await;
    }
}

#[tokio::test]
async fn interim_responses_and_those_without_a_body_pass() {
    let one = raw(async |mut stream| {
        let (head, _) = read_head(&mut stream).await;
        let rest = if head.starts_with("HEAD") {
            "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n"
        } else {
            "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n"
        };
        write(&mut stream, format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{rest}")).await;
        _ = stream.read(&mut [0]).await;
    })
    .await;
    let World { proxy, edge, .. } = world(Http, &[one]).await;
    let mut client = Client::open(edge).await;
    for (method, status, length) in [("HEAD", 200, Some("1000")), ("GET", 304, None)] {
        let request = Request::builder().method(method).uri("http://a.com/").body(()).unwrap();
        let (mut response, _) = client.begin(request, true).await;
        let interim = soon(std::future::poll_fn(|cx| response.poll_informational(cx))).await;
        let interim = interim.unwrap().unwrap();
        assert_eq!(
            (interim.status().as_u16(), &interim.headers()["link"]),
            (103, &HeaderValue::from_static("</a>"))
        );
        let answer = Answer::read(soon(response).await.unwrap()).await.unwrap();
        assert_eq!((answer.status, answer.body.len()), (status, 0));
        assert_eq!(answer.headers.get("content-length").map(|v| v.to_str().unwrap()), length);
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn what_is_no_valid_request_gets_no_further() {
    let one = support::backend::Backend::start("one").await;
    let World { proxy, edge, .. } = world(Http, &[one.address]).await;
    let mut client = Client::open(edge).await;
    let mut other_host = get("/");
    other_host.headers_mut().insert("host", HeaderValue::from_static("b.com"));
    let answer = client.ask(other_host, b"").await.unwrap();
    assert_eq!((answer.status, answer.body.as_slice()), (400, &b"the host is not the authority\n"[..]));
    let connect = Request::connect("a.com:443").body(()).unwrap();
    assert_eq!(client.ask(connect, b"").await.unwrap().status, 405);
    // A length that is not the body's.
    let mut lies = post("/echo");
    lies.headers_mut().insert("content-length", HeaderValue::from_static("9"));
    let error = client.ask(lies, b"four").await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR));
    assert_eq!(client.ask(get("/"), b"").await.unwrap().status, 200, "the others go on");
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_client_of_http1_reaches_endpoints_of_http2() {
    let upstream = Backend::start(async |request, mut respond| {
        if request.uri().path() == "/trailers" {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            send_all(&mut stream, Bytes::from_static(b"data"), false).await;
            let trailers = [("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))];
            return stream.send_trailers(trailers.into_iter().collect()).unwrap();
        }
        echo(request, respond).await;
    })
    .await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    for (request, head, body) in [
        (
            "POST /echo HTTP/1.1\r\nhost: a.com\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4;x\r\ndefg\r\n0\r\nx-t: 1\r\n\r\n",
            &["HTTP/1.1 200 OK\r\n", "transfer-encoding: chunked\r\n", "seen-authority: a.com\r\n"][..],
            "7\r\nabcdefg\r\n0\r\nx-t: 1\r\n\r\n",
        ),
        (
            "POST /echo HTTP/1.1\r\nhost: a.com\r\ncontent-length: 5\r\nte: trailers\r\nconnection: te\r\n\r\nhello",
            &["seen-content-length: 5\r\n", "seen-te: trailers\r\n", "seen-x-forwarded-for: 127.0.0.1\r\n"],
            "5\r\nhello\r\n0\r\n\r\n",
        ),
        (
            "GET /trailers HTTP/1.1\r\nhost: a.com\r\n\r\n",
            &["transfer-encoding: chunked\r\n"],
            "4\r\ndata\r\n0\r\ngrpc-status: 0\r\n\r\n",
        ),
        ("HEAD /empty HTTP/1.1\r\nhost: a.com\r\n\r\n", &["HTTP/1.1 200 OK\r\n"], ""),
        ("GET /empty HTTP/1.1\r\nhost: a.com\r\n\r\n", &["content-length: 0\r\n", "x-path: /empty\r\n"], ""),
    ] {
        write(&mut stream, request).await;
        let (got, rest) = soon(read_head(&mut stream)).await;
        for line in head {
            assert!(got.contains(line), "{request}: {got}");
        }
        let got = soon(read_until(&mut stream, rest, body.as_bytes())).await;
        assert_eq!(String::from_utf8(got).unwrap(), body, "{request}");
    }
    // Who waits to be asked for a body is asked.
    write(
        &mut stream,
        "POST /echo HTTP/1.1\r\nhost: a.com\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n",
    )
    .await;
    let (interim, _) = soon(read_head(&mut stream)).await;
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    write(&mut stream, "ok").await;
    let (head, rest) = soon(read_head(&mut stream)).await;
    assert!(head.starts_with("HTTP/1.1 200") && !head.contains("seen-expect"), "{head}");
    soon(read_until(&mut stream, rest, b"2\r\nok\r\n0\r\n\r\n")).await;
    // HTTP/1.0 has no chunks.
    write(&mut stream, "GET /trailers HTTP/1.0\r\nhost: a.com\r\n\r\n").await;
    let mut all = Vec::new();
    soon(stream.read_to_end(&mut all)).await.unwrap();
    let all = String::from_utf8(all).unwrap();
    assert!(all.ends_with("\r\n\r\ndata") && !all.contains("chunked"), "{all}");
    proxy.idle("shop/v1").await;
    proxy.stopped().await;
}

#[tokio::test]
async fn large_bodies_pass_between_http1_and_http2() {
    let upstream = Backend::start(echo).await;
    let World { proxy, edge, .. } = world(H2c, &[upstream.address]).await;
    let mut stream = TcpStream::connect(edge).await.unwrap();
    let body = random(5 * MIB);
    for _ in 0..2 {
        let head = format!("POST /echo HTTP/1.1\r\nhost: a.com\r\ncontent-length: {}\r\n\r\n", body.len());
        write(&mut stream, head).await;
        write(&mut stream, &body).await;
        let (_, rest) = soon(read_head(&mut stream)).await;
        let chunked = soon(read_until(&mut stream, rest, b"\r\n0\r\n\r\n")).await;
        assert!(unchunked(&chunked) == body);
    }
    proxy.stopped().await;
}

fn unchunked(mut chunked: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let end = chunked.windows(2).position(|two| two == b"\r\n").unwrap();
        let size = usize::from_str_radix(std::str::from_utf8(&chunked[..end]).unwrap(), 16).unwrap();
        if size == 0 {
            return body;
        }
        body.extend_from_slice(&chunked[end + 2..end + 2 + size]);
        chunked = &chunked[end + 4 + size..];
    }
}
