//! What an endpoint answers: each response arrives as it was meant, or as an error, or is cut; and none
//! leaves anything behind for the next request.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, timeout_at},
};

use crate::{
    PATIENCE, PEERS_PATIENCE,
    message::{self, Fault, Fields, Parsed},
    peers,
    support::stand::{Settings, Stand},
};

struct Case {
    name: &'static str,
    /// Sections of RFC 9110 and RFC 9112.
    rule: &'static str,
    method: &'static str,
    bytes: Vec<u8>,
    /// The endpoint closes the connection behind them.
    closes: bool,
    /// The status and body that a client may see; a 502 is right without.
    forward: Option<(u16, &'static str)>,
    /// A 502 is right.
    broken: bool,
    /// A fault of the body: a response that ends before it is whole is right as well.
    late: bool,
}

fn case(name: &'static str, rule: &'static str, bytes: impl AsRef<[u8]>) -> Case {
    let bytes = bytes.as_ref().to_vec();
    Case { name, rule, method: "GET", bytes, closes: false, forward: None, broken: false, late: false }
}

impl Case {
    fn forwarded(self, status: u16, body: &'static str) -> Self {
        Self { forward: Some((status, body)), ..self }
    }

    fn broken(self) -> Self {
        Self { broken: true, ..self }
    }

    fn torn(self) -> Self {
        Self { broken: true, late: true, ..self }
    }

    fn closing(self) -> Self {
        Self { closes: true, ..self }
    }

    fn for_head(self) -> Self {
        Self { method: "HEAD", ..self }
    }

    /// Why what a client saw is wrong.
    fn judge(&self, seen: &Seen) -> Result<(), String> {
        let right = match &seen.first {
            Came::Whole(response) => match self.forward {
                Some((status, body)) if response.status == status => response.body == body.as_bytes(),
                _ => self.broken && response.status == 502,
            },
            Came::Cut(_) => self.late,
            Came::Silence | Came::Ambiguous(_) => false,
        };
        match right {
            false => Err(format!("{:?}", seen.first)),
            true if !seen.next => Err("the next request got another answer than its own".to_owned()),
            true => Ok(()),
        }
    }
}

fn table() -> Vec<Case> {
    let ok = |headers: &str, body: &str| format!("HTTP/1.1 200 OK\r\n{headers}\r\n{body}");
    let other = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nsmuggled";
    let chunks = "5\r\nhello\r\n0\r\n\r\n";
    let chunked = |chunks: &str| ok("transfer-encoding: chunked\r\n", chunks);
    let hello = |case: Case| case.forwarded(200, "hello");
    vec![
        hello(case("a length", "9112 §6.2", ok("content-length: 5\r\n", "hello"))),
        hello(case("chunks", "9112 §7.1", chunked(chunks))),
        hello(case("until the end", "9112 §6.3 (8)", ok("", "hello")).closing()),
        hello(case(
            "a response behind the response",
            "9112 §9.2",
            ok("content-length: 5\r\n", &format!("hello{other}")),
        )),
        hello(case("a response behind chunks", "9112 §9.2", chunked(&format!("{chunks}{other}")))),
        case("a body behind 204", "9112 §6.3 (1)", format!("HTTP/1.1 204 No Content\r\n\r\n{other}"))
            .forwarded(204, ""),
        case(
            "304 with a length",
            "9112 §6.3 (1)",
            format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n{other}"),
        )
        .forwarded(304, ""),
        case("a body behind HEAD", "9112 §6.3 (1)", ok("content-length: 5\r\n", other))
            .for_head()
            .forwarded(200, ""),
        hello(case(
            "interim responses first",
            "9110 §15.2",
            format!(
                "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: <a>\r\n\r\n{}",
                ok("content-length: 5\r\n", "hello")
            ),
        )),
        hello(case(
            "length and chunks",
            "9112 §6.3 (3)",
            ok("content-length: 9\r\ntransfer-encoding: chunked\r\n", chunks),
        ))
        .broken(),
        hello(case(
            "length twice, same",
            "9110 §8.6",
            ok("content-length: 5\r\ncontent-length: 5\r\n", "hello"),
        ))
        .broken(),
        case(
            "length twice, other",
            "9112 §6.3 (5)",
            ok("content-length: 5\r\ncontent-length: 6\r\n", "hello"),
        )
        .broken(),
        case("length +5", "9112 §6.3 (5)", ok("content-length: +5\r\n", "hello")).broken(),
        case(
            "length beyond 64 bits",
            "9112 §6.3 (5)",
            ok("content-length: 18446744073709551621\r\n", "hello"),
        )
        .broken(),
        case("xchunked", "9112 §6.3 (4)", ok("transfer-encoding: xchunked\r\n", chunks)).closing().broken(),
        case("chunked, gzip", "9112 §6.3 (4)", ok("transfer-encoding: chunked, gzip\r\n", chunks))
            .closing()
            .broken(),
        case("body too short", "9112 §8", ok("content-length: 10\r\n", "hello")).closing().torn(),
        case("no last chunk", "9112 §8", chunked("5\r\nhello\r\n")).closing().torn(),
        case("no last CRLF", "9112 §8", chunked("5\r\nhello\r\n0\r\n")).closing().torn(),
        case("size 0x5", "9112 §7.1", chunked("0x5\r\nhello\r\n0\r\n\r\n")).torn(),
        case("size beyond 64 bits", "9112 §7.1", chunked("10000000000000005\r\nhello\r\n0\r\n\r\n")).torn(),
        case("data too long", "9112 §7.1", chunked("5\r\nhello!\r\n0\r\n\r\n")).torn(),
        // What is forwarded then has neither: a client's reading of it is the judge.
        hello(case("folded", "9112 §5.2", ok("x: a\r\n b\r\ncontent-length: 5\r\n", "hello"))).broken(),
        hello(case("space before the colon", "9112 §5.1", ok("x : y\r\ncontent-length: 5\r\n", "hello")))
            .broken(),
        case("space before a length's colon", "9112 §5.1", ok("content-length : 5\r\n", "hello"))
            .forwarded(200, "hello")
            .broken(),
        hello(case("CR in a value", "9112 §2.2", ok("x: a\rb\r\ncontent-length: 5\r\n", "hello"))).broken(),
        hello(case("NUL in a value", "9110 §5.5", ok("x: a\0b\r\ncontent-length: 5\r\n", "hello"))).broken(),
        hello(case("LF after a field", "9112 §2.2", ok("x: y\ncontent-length: 5\r\n", "hello"))).broken(),
        case("no colon", "9112 §5", ok("nothing\r\ncontent-length: 5\r\n", "hello")).broken(),
        case("no HTTP", "9112 §4", "hello\r\n\r\n").closing().broken(),
        case("nothing", "9110 §15.6.3", "").closing().broken(),
        case("half a head", "9110 §15.6.3", "HTTP/1.1 200 OK\r\nx:").closing().broken(),
        case("HTTP/2.0", "9112 §2.3", "HTTP/2.0 200 OK\r\ncontent-length: 5\r\n\r\nhello").broken(),
        case("status 20", "9112 §4", "HTTP/1.1 20 OK\r\ncontent-length: 5\r\n\r\nhello").broken(),
        case("status 2000", "9112 §4", "HTTP/1.1 2000 OK\r\ncontent-length: 5\r\n\r\nhello").broken(),
        hello(case("no reason", "9112 §4", "HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello")),
        case(
            "101 that nobody asked for",
            "9110 §15.2.2",
            format!("HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n{other}"),
        )
        .broken(),
        case(
            "field of 1 MiB",
            "9110 §5.4",
            ok(&format!("x: {}\r\ncontent-length: 5\r\n", "v".repeat(1 << 20)), "hello"),
        )
        .broken(),
    ]
}

#[derive(Debug)]
struct Response {
    status: u16,
    body: Vec<u8>,
}

/// What a client that reads strictly makes of what came.
enum Came {
    Whole(Response),
    /// Closed before it was whole, or before it began.
    Cut(String),
    /// Not whole, and nothing more for too long.
    Silence,
    Ambiguous(&'static str),
}

impl std::fmt::Debug for Came {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Whole(response) => {
                write!(f, "{} with {} bytes", response.status, response.body.len())
            }
            Self::Cut(what) => write!(f, "cut: {what}"),
            Self::Silence => write!(f, "silence"),
            Self::Ambiguous(why) => write!(f, "ambiguous: {why}"),
        }
    }
}

struct Seen {
    first: Came,
    /// The requests after it got their own answers.
    next: bool,
}

/// The final response in `bytes`; `ended` when no more will come.
fn parse(mut bytes: &[u8], method: &str, ended: bool) -> Parsed<Response> {
    loop {
        let (line, rest) = message::line(bytes)?;
        let line = message::text(line)?;
        let status = line.strip_prefix("HTTP/1.1 ").and_then(|l| l.split(' ').next());
        let status = status.filter(|s| s.len() == 3).and_then(|s| s.parse::<u16>().ok());
        let status = status.ok_or(Fault::Ambiguous("the status line is not one"))?;
        let (headers, rest) = message::fields(rest)?;
        if (100..200).contains(&status) && status != 101 {
            bytes = rest;
            continue;
        }
        let body = body(&headers, rest, method == "HEAD" || matches!(status, 101 | 204 | 304), ended)?;
        return Ok(Response { status, body });
    }
}

/// RFC 9112 §6.3, for a reader that accepts no doubt.
fn body(headers: &Fields, rest: &[u8], none: bool, ended: bool) -> Parsed<Vec<u8>> {
    let of = |name: &str| -> Vec<&str> {
        headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    };
    match (&of("transfer-encoding")[..], &of("content-length")[..]) {
        (_, _) if none => Ok(Vec::new()),
        ([], []) if ended => Ok(rest.to_vec()),
        ([], []) => Err(Fault::Incomplete),
        ([], [length]) if !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit()) => {
            let length = length.parse().map_err(|_| Fault::Ambiguous("Content-Length is too large"))?;
            rest.get(..length).map(<[u8]>::to_vec).ok_or(Fault::Incomplete)
        }
        (["chunked"], []) => message::chunked(rest).map(|(body, _, _)| body),
        _ => Err(Fault::Ambiguous("Transfer-Encoding and Content-Length leave a doubt")),
    }
}

/// One request, and what came back on its connection.
async fn ask(stream: &mut TcpStream, method: &str, target: &str, patience: Duration) -> Came {
    let request = format!("{method} {target} HTTP/1.1\r\nhost: a.example\r\n\r\n");
    let _ = stream.write_all(request.as_bytes()).await;
    let (mut received, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    let deadline = Instant::now() + patience;
    loop {
        let read = timeout_at(deadline, stream.read(&mut buffer)).await;
        // A connection that was reset is closed, and has not ended what was on it.
        let (n, ended, closed) = match read {
            Ok(Ok(n)) => (n, n == 0, n == 0),
            Ok(Err(_)) => (0, false, true),
            Err(_) => return Came::Silence,
        };
        received.extend_from_slice(&buffer[..n]);
        match parse(&received, method, ended) {
            Ok(response) => return Came::Whole(response),
            Err(Fault::Ambiguous(why)) => return Came::Ambiguous(why),
            Err(Fault::Incomplete) if closed => {
                return Came::Cut(received[..received.len().min(200)].escape_ascii().to_string());
            }
            Err(Fault::Incomplete) => {}
        }
    }
}

/// An endpoint that answers `/0`, `/1`, … with the bytes of the cases, and `/next` as it should be.
async fn endpoint(cases: &Arc<Vec<Case>>, tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, cases) = (listener.local_addr().unwrap(), Arc::clone(cases));
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let cases = Arc::clone(&cases);
            // An error is a proxy that closed, which it may.
            connections.spawn(async move { drop(answer(stream, &cases).await) });
        }
    });
    address
}

async fn answer(mut stream: TcpStream, cases: &[Case]) -> std::io::Result<()> {
    let (mut received, mut buffer) = (Vec::new(), vec![0; 16 << 10]);
    loop {
        while let Some(end) = received.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            received.drain(..end + 4);
            let target = head.split(' ').nth(1).unwrap_or_default();
            match target.trim_start_matches('/').parse::<usize>().ok().and_then(|i| cases.get(i)) {
                None => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext").await?,
                Some(case) => {
                    stream.write_all(&case.bytes).await?;
                    if case.closes {
                        return stream.shutdown().await;
                    }
                }
            }
        }
        let n = stream.read(&mut buffer).await?;
        if n == 0 {
            return Ok(());
        }
        received.extend_from_slice(&buffer[..n]);
    }
}

/// What clients of the proxy at `address` saw of each case.
async fn seen(cases: &[Case], address: SocketAddr, patience: Duration) -> Vec<Seen> {
    let mut all = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let first = ask(&mut stream, case.method, &format!("/{i}"), patience).await;
        let own = |came: &Came| matches!(came, Came::Whole(r) if r.status == 200 && r.body == b"next");
        // On the same connection, which may have been closed behind the response, and on others, which
        // may get the connection to the endpoint that the first one used.
        let mut next = matches!(first, Came::Cut(_) | Came::Ambiguous(_)) || {
            let came = ask(&mut stream, "GET", "/next", patience).await;
            own(&came) || matches!(came, Came::Cut(_))
        };
        for _ in 0..3 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            next &= own(&ask(&mut stream, "GET", "/next", patience).await);
        }
        all.push(Seen { first, next });
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_response_arrives_as_it_was_meant_or_is_an_error_and_leaves_nothing_for_the_next() {
    let cases = Arc::new(table());
    let mut tasks = JoinSet::new();
    let address = endpoint(&cases, &mut tasks).await;
    let (nginx, haproxy) = (peers::nginx(address).await, peers::haproxy(address).await);
    let stand = Stand::start(&Settings::new("http"), Some(address)).await;
    let (theirs, others, ours) = tokio::join!(
        seen(&cases, nginx.address, PEERS_PATIENCE),
        seen(&cases, haproxy.address, PEERS_PATIENCE),
        seen(&cases, stand.gateway, PATIENCE),
    );
    let mut wrong = Vec::new();
    println!("| case | rule | nginx | HAProxy | Sluicegate | |\n|---|---|---|---|---|---|");
    for (i, case) in cases.iter().enumerate() {
        let short = |seen: &Seen| {
            let first = match &seen.first {
                Came::Whole(response) => format!("{} ({})", response.status, response.body.len()),
                Came::Cut(what) if what.is_empty() => "closed".to_owned(),
                Came::Cut(_) => "cut".to_owned(),
                Came::Silence => "…".to_owned(),
                Came::Ambiguous(_) => "!".to_owned(),
            };
            format!("{first}{}", if seen.next { "" } else { " next!" })
        };
        let [nginx, haproxy, own] = [&theirs[i], &others[i], &ours[i]].map(short);
        let judged = case.judge(&ours[i]);
        let mark = if judged.is_ok() { "" } else { "✗" };
        println!("| {} | {} | {nginx} | {haproxy} | {own} | {mark} |", case.name, case.rule);
        wrong.extend(judged.err().map(|why| format!("{} ({}): {why}", case.name, case.rule)));
    }
    assert!(wrong.is_empty(), "{} faults in {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(!stand.edge.log().contains("panicked"), "{}", stand.edge.log());
}
