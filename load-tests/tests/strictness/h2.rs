//! Requests in HTTP/2 that would mean something else in HTTP/1.1 (RFC 9113 §8): refused, or forwarded as
//! what they meant.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};

use crate::{
    PATIENCE, PEERS_PATIENCE, SILENCE,
    case::{Case, Meant, Outcome, case, meant},
    client::Answers,
    peers,
    support::{
        nginx::Nginx,
        stand::{Settings, Stand},
    },
    upstream::{Upstream, marked},
};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// Any answer that is not 200, a reset stream, or a closed connection (RFC 9113 §8.1.1).
const NO: &[u16] = &[400];

/// A frame of stream 1, or of the connection (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let stream = u8::from(!matches!(kind, SETTINGS | GOAWAY));
    [&length[1..], &[kind, flags, 0, 0, 0, stream], payload].concat()
}

/// Fields as literals without indexing and without Huffman's code (RFC 7541 §6.2.2).
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            // A length of up to 126 fits the prefix; more follows in 7 bits each (§5.1).
            match text.len() {
                n @ 0..=126 => block.push(n as u8),
                n => {
                    block.push(127);
                    let mut rest = n - 127;
                    while rest >= 128 {
                        block.push((rest % 128) as u8 | 128);
                        rest /= 128;
                    }
                    block.push(rest as u8);
                }
            }
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// A request with these fields, and with these bytes as its data if there are any.
fn request(fields: &[(&str, &str)], data: &str) -> Vec<u8> {
    if data.is_empty() {
        return frame(HEADERS, END_HEADERS | END_STREAM, &block(fields));
    }
    [frame(HEADERS, END_HEADERS, &block(fields)), frame(DATA, END_STREAM, data.as_bytes())].concat()
}

const GET: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "a.example"), (":path", "/p")];
const POST: [(&str, &str); 4] =
    [(":method", "POST"), (":scheme", "http"), (":authority", "a.example"), (":path", "/p")];

/// A GET with one more field.
fn get(name: &'static str, rule: &'static str, field: (&str, &str)) -> Case {
    case(name, rule, request(&[&GET[..], &[field]].concat(), ""))
}

/// A GET with another value for one of its pseudo-headers.
fn pseudo(name: &'static str, rule: &'static str, field: (&str, &str)) -> Case {
    case(name, rule, request(&GET.map(|own| if own.0 == field.0 { field } else { own }), ""))
}

/// A POST with one more field, and data.
fn post(name: &'static str, rule: &'static str, field: (&str, &str), data: &str) -> Case {
    case(name, rule, request(&[&POST[..], &[field]].concat(), data))
}

fn ordinary(case: Case) -> Case {
    case.forwarded(&[meant("GET", "/p", "")])
}

fn hello(case: Case) -> Case {
    case.forwarded(&[meant("POST", "/p", "hello")])
}

/// Cases, and what may have been forwarded when the fault is found.
fn table() -> Vec<(Case, Option<Meant>)> {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";
    let with_trailers = |trailers: &[(&str, &str)]| {
        let data = frame(DATA, 0, b"hello");
        [
            frame(HEADERS, END_HEADERS, &block(&POST)),
            data,
            frame(HEADERS, END_HEADERS | END_STREAM, &block(trailers)),
        ]
        .concat()
    };
    let wide = block(&[("x", &"v".repeat(1_000))]);
    let flood: Vec<u8> = std::iter::repeat_n(frame(CONTINUATION, 0, &wide), 2_000).flatten().collect();
    let without = |name: &str| GET.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
    let whole = vec![
        ordinary(case("GET", "8.3.1", request(&GET, ""))).with("host", "a.example"),
        hello(case("POST without a length", "8.1", request(&POST, "hello"))),
        hello(post("POST with a length", "8.1.1", ("content-length", "5"), "hello")),
        post("transfer-encoding", "8.2.2", ("transfer-encoding", "chunked"), smuggled).refused(NO),
        post("length +5", "8.1.1", ("content-length", "+5"), "hello").refused(NO),
        case(
            "two lengths",
            "8.1.1",
            request(&[&POST[..], &[("content-length", "5"), ("content-length", "6")]].concat(), "hello"),
        )
        .refused(NO),
        // §8.2.2: fields of a connection make a request malformed; leaving them out harms nobody.
        ordinary(get("connection", "8.2.2", ("connection", "x-a"))).without("x-a").refused(NO),
        ordinary(get("upgrade", "8.2.2", ("upgrade", "websocket"))).without("upgrade").refused(NO),
        ordinary(get("keep-alive", "8.2.2", ("keep-alive", "timeout=5"))).without("keep-alive").refused(NO),
        ordinary(get("te: gzip", "8.2.2", ("te", "gzip"))).without("te").refused(NO),
        ordinary(get("te: trailers", "8.2.2", ("te", "trailers"))),
        get("value with CRLF", "8.2.1", ("x", "a\r\nx-b: c")).refused(NO),
        get("value with two CRLFs", "8.2.1", ("x", "a\r\n\r\nGET /smuggled HTTP/1.1\r\nx: y")).refused(NO),
        get("value with LF", "8.2.1", ("x", "a\nx-b: c")).refused(NO),
        get("value with CR", "8.2.1", ("x", "a\rb")).refused(NO),
        get("value with NUL", "8.2.1", ("x", "a\0b")).refused(NO),
        ordinary(get("value between spaces", "8.2.1", ("x", " y "))).with("x", "y").refused(NO),
        get("name in upper case", "8.2.1", ("X-A", "y")).refused(NO),
        get("name with a space", "8.2.1", ("x a", "y")).refused(NO),
        get("name with a colon", "8.2.1", ("x:a", "y")).refused(NO),
        get("name with CRLF", "8.2.1", ("x: y\r\nx-b", "z")).refused(NO),
        get("name empty", "8.2.1", ("", "y")).refused(NO),
        pseudo("path empty", "8.3.1", (":path", "")).refused(NO),
        pseudo("path without a slash", "8.3.1", (":path", "p")).refused(NO),
        pseudo("path with a space", "8.3.1", (":path", "/p HTTP/1.1")).refused(NO),
        pseudo("path with CRLF", "8.3.1", (":path", "/p HTTP/1.1\r\nx-b: c\r\nx: ")).refused(NO),
        // No part of a path (RFC 3986 §3.3), and never sent: left out if not refused.
        ordinary(pseudo("path with a fragment", "8.3.1", (":path", "/p#f"))).refused(NO),
        pseudo("path with NUL", "8.3.1", (":path", "/p\0")).refused(NO),
        pseudo("method with a space", "8.3.1", (":method", "GET /smuggled HTTP/1.1\r\nx:")).refused(NO),
        pseudo("method empty", "8.3.1", (":method", "")).refused(NO),
        pseudo("authority with CRLF", "8.3.1", (":authority", "a.example\r\nx-b: c")).refused(NO),
        pseudo("authority with a user", "8.3.1", (":authority", "u@a.example")).refused(NO),
        pseudo("authority with a slash", "8.3.1", (":authority", "a.example/b")).refused(NO),
        get("two paths", "8.3", (":path", "/q")).refused(NO),
        get("two methods", "8.3", (":method", "POST")).refused(NO),
        get("an unknown pseudo-header", "8.3", (":x", "y")).refused(NO),
        get("a pseudo-header of responses", "8.3", (":status", "200")).refused(NO),
        case("pseudo-headers last", "8.3", request(&[&[("x", "y")], &GET[..]].concat(), "")).refused(NO),
        case("no method", "8.3.1", request(&without(":method"), "")).refused(NO),
        case("no path", "8.3.1", request(&without(":path"), "")).refused(NO),
        case("no scheme", "8.3.1", request(&without(":scheme"), "")).refused(NO),
        case("neither authority nor host", "8.3.1", request(&without(":authority"), "")).refused(NO),
        ordinary(case(
            "host for authority",
            "8.3.1",
            request(&[&without(":authority")[..], &[("host", "b.example")]].concat(), ""),
        ))
        .with("host", "b.example"),
        ordinary(get("another host", "8.3.1", ("host", "b.example"))).with("host", "a.example").refused(NO),
        ordinary(case(
            "cookies",
            "8.2.3",
            request(&[&GET[..], &[("cookie", "a=b"), ("cookie", "c=d")]].concat(), ""),
        ))
        .with("cookie", "a=b; c=d"),
        case("CONNECT", "8.5", request(&[(":method", "CONNECT"), (":authority", "a.example:80")], ""))
            .refused(NO),
        get("CONNECT for a WebSocket, not offered", "RFC 8441 §3", (":protocol", "websocket")).refused(NO),
        hello(case("trailers", "8.1", with_trailers(&[("x-t", "v")]))),
        hello(case("a length as a trailer", "8.1", with_trailers(&[("content-length", "9")])))
            .broken()
            .without("content-length")
            .unlike_peers("nginx 1.22 refuses every trailer; RFC 9110 §6.5.1: such a one may be dropped"),
        hello(case("trailers with a pseudo-header", "8.1", with_trailers(&[(":path", "/q")])))
            .broken()
            .unlike_peers("nginx 1.22 refuses every trailer; left out, nothing of it reaches HTTP/1.1"),
        case("a head of 2 MB", "10.5.1", [frame(HEADERS, END_STREAM, &block(&GET)), flood].concat())
            .refused(NO),
    ];
    let mut all: Vec<_> = whole.into_iter().map(|case| (case, None)).collect();
    // The length is forwarded before the data has come: then the data must not be, beyond the length.
    let length = |name, length: &str, data| post(name, "8.1.1", ("content-length", length), data).broken();
    all.push((length("data shorter than its length", "10", "hello"), None));
    all.push((length("data longer than its length", "3", "hello"), Some(meant("POST", "/p", "hel"))));
    let behind = "GET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";
    all.push((length("a request behind a length of 0", "0", behind), Some(meant("POST", "/p", ""))));
    all
}

/// The preface and the frames, and what came back: 200, or 400 for any refusal.
async fn exchange(to: SocketAddr, frames: &[u8], patience: Duration) -> Answers {
    let mut stream = TcpStream::connect(to).await.unwrap();
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &frame(SETTINGS, 0, &[])[..], frames].concat();
    let (mut reading, mut writing) = stream.split();
    let (mut received, mut buffer, mut statuses) = (Vec::new(), vec![0; 16 << 10], Vec::new());
    let deadline = Instant::now() + patience;
    let receiving = async {
        loop {
            while let Some((kind, flags, payload)) = next(&mut received) {
                match kind {
                    HEADERS if statuses.is_empty() => statuses.push(if is_200(&payload) { 200 } else { 400 }),
                    RST_STREAM | GOAWAY if statuses.is_empty() => statuses.push(400),
                    _ => {}
                }
                let ended = matches!(kind, HEADERS | DATA) && flags & END_STREAM != 0;
                if ended || matches!(kind, RST_STREAM | GOAWAY) {
                    return Answers { statuses, closed: false };
                }
            }
            match timeout_at(deadline, reading.read(&mut buffer)).await {
                Ok(Ok(n @ 1..)) => received.extend_from_slice(&buffer[..n]),
                Ok(_) => {
                    // Closed is refused, if nothing was said.
                    let said = if statuses.is_empty() { vec![400] } else { statuses };
                    return Answers { statuses: said, closed: true };
                }
                Err(_) => return Answers { statuses, closed: false },
            }
        }
    };
    let sending = async {
        // Whoever refuses may close before it has read everything. Settings are not acknowledged:
        // nobody may wait for that before it answers.
        let _ = writing.write_all(&preface).await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        answers = receiving => answers,
        () = sending => unreachable!(),
    }
}

/// Whether a response begins with `:status: 200`, by its index in the static table (RFC 7541 appendix A).
fn is_200(mut block: &[u8]) -> bool {
    // A size of the dynamic table may come first (§6.3), its number going on after 31 (§5.1).
    while let [first, rest @ ..] = block
        && first >> 5 == 1
    {
        let more = rest.iter().take_while(|byte| **byte >= 128).count() + 1;
        block = if first & 31 == 31 { rest.get(more..).unwrap_or_default() } else { rest };
    }
    block.first() == Some(&0x88)
}

/// The first whole frame: its type, flags and payload.
fn next(received: &mut Vec<u8>) -> Option<(u8, u8, Vec<u8>)> {
    let [a, b, c, kind, flags, ..] = received[..] else { return None };
    let end = 9 + u32::from_be_bytes([0, a, b, c]) as usize;
    (received.len() >= end).then(|| {
        let frame: Vec<u8> = received.drain(..end).collect();
        (kind, flags, frame[9..].to_vec())
    })
}

async fn outcomes(
    cases: &[(Case, Option<Meant>)],
    address: SocketAddr,
    upstream: &mut Upstream,
    patience: Duration,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (number, (case, _)) in cases.iter().enumerate() {
        let answers = exchange(address, &marked(&case.bytes, number), patience).await;
        outcomes.push(Outcome { answers, received: upstream.take(number, SILENCE).await });
    }
    outcomes
}

fn judge(case: &Case, prefix: Option<&Meant>, outcome: &Outcome) -> Result<(), String> {
    let judged = case.judge(outcome);
    let (messages, faults) = outcome.understood();
    match (&messages[..], prefix) {
        ([only], Some(prefix)) if faults.is_empty() => {
            let same = (only.path(), &only.body[..]) == (prefix.target, prefix.body.as_bytes());
            if same { Ok(()) } else { judged }
        }
        _ => judged,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_of_http_2_arrives_in_http_1_1_as_it_was_meant_or_is_refused() {
    let cases = table();
    let mut upstreams = [Upstream::start().await, Upstream::start().await, Upstream::start().await];
    let [at_nginx, at_haproxy, own] = &mut upstreams;
    let nginx = Nginx::start("http2", &peers::nginx_location(at_nginx.address)).await;
    let haproxy = peers::haproxy(at_haproxy.address).await;
    let stand = Stand::start(&Settings::new("http"), Some(own.address)).await;
    let (theirs, others, ours) = tokio::join!(
        outcomes(&cases, nginx.address, at_nginx, PEERS_PATIENCE),
        outcomes(&cases, haproxy.address, at_haproxy, PEERS_PATIENCE),
        outcomes(&cases, stand.gateway, own, PATIENCE),
    );
    let mut wrong = Vec::new();
    println!("| case | RFC 9113 § | nginx | HAProxy | Sluicegate | right | |\n|---|---|---|---|---|---|---|");
    for (i, (case, prefix)) in cases.iter().enumerate() {
        let mut found: Vec<String> = judge(case, prefix.as_ref(), &ours[i]).err().into_iter().collect();
        if theirs[i].refused() && others[i].refused() && !ours[i].refused() && case.exception.is_none() {
            found.push("nginx and HAProxy refuse it".to_owned());
        }
        let [nginx, haproxy, ours] = [&theirs[i], &others[i], &ours[i]].map(Outcome::short);
        let (name, rule, right) = (case.name, case.rule, case.expected());
        let mark = if found.is_empty() { "" } else { "✗" };
        println!("| {name} | {rule} | {nginx} | {haproxy} | {ours} | {right} | {mark} |");
        wrong.extend(found.into_iter().map(|why| format!("{name} ({rule}; right: {right}): {why}")));
    }
    assert!(wrong.is_empty(), "{} faults in {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(!stand.edge.log().contains("panicked"), "{}", stand.edge.log());
}
