//! Random heads: what is accepted is the same to whoever reads it next.

use super::*;
use crate::edge::h1::{
    edits::{Connection, FramingEdit},
    request::RequestBody,
    response::ResponseBody,
};

const ROUNDS: usize = 200_000;

/// Lines that matter, to be put together by chance.
const LINES: [&str; 30] = [
    "Host: a",
    "host: b:80",
    "Content-Length: 5",
    "content-length: 05",
    "Content-Length: 5, 5",
    "Transfer-Encoding: chunked",
    "transfer-encoding: CHUNKED",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding:\tchunked ",
    "Transfer-Encoding : chunked",
    "Connection: close",
    "Connection: keep-alive, x-a",
    "Connection: upgrade",
    "Connection: content-length",
    "Connection: transfer-encoding",
    "Upgrade: websocket",
    "Upgrade: h2c",
    "TE: trailers",
    "Expect: 100-continue",
    "X-A: 1",
    "x-a:",
    "X-Forwarded-For: 10.0.0.1",
    "X-Forwarded-Proto: https",
    "Keep-Alive: timeout=5",
    "Cookie: a=b; c=d",
    "Accept: */*",
    "User-Agent: x \t y",
    "Content-Type: text/plain; charset=utf-8",
    "Server: \u{fc}",
    "Content-Lengt: 5",
];
const REQUESTS: [&str; 7] = [
    "GET / HTTP/1.1",
    "POST /a?b HTTP/1.1",
    "GET http://c/d HTTP/1.1",
    "PUT http://c?d HTTP/1.0",
    "OPTIONS * HTTP/1.1",
    "HEAD / HTTP/1.0",
    "CONNECT a:1 HTTP/1.1",
];
const RESPONSES: [&str; 7] = [
    "HTTP/1.1 200 OK",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 100 Continue",
    "HTTP/1.1 500 \u{fc}",
];

fn head(rng: &mut fastrand::Rng, firsts: &[&str]) -> Vec<u8> {
    let mut head = format!("{}\r\n", rng.choice(firsts).copied().unwrap()).into_bytes();
    if rng.u8(..) > 40 {
        head.extend_from_slice(b"Host: a.example\r\n");
    }
    for _ in 0..rng.usize(0..6) {
        head.extend_from_slice(rng.choice(LINES).unwrap().as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    for _ in 0..rng.usize(0..3) {
        mutate(rng, &mut head);
    }
    head
}

fn mutate(rng: &mut fastrand::Rng, head: &mut Vec<u8>) {
    const BYTES: &[u8] = b"\r\n\0 \t:,;/?#@[]%\x7f\xff0aZ";
    let at = rng.usize(0..head.len());
    match rng.u8(0..5) {
        0 => head[at] = *rng.choice(BYTES).unwrap(),
        1 => head.insert(at, *rng.choice(BYTES).unwrap()),
        2 if head.len() > 1 => drop(head.remove(at)),
        3 => head.truncate(at.max(1)),
        _ => {
            let end = rng.usize(at..head.len().min(at + 30));
            let again = head[at..end].to_vec();
            head.splice(at..at, again);
        }
    }
}

/// That every line ends with CRLF and has neither CR nor LF in it, that only the last is empty, and that
/// there is one framing at most. The lines but the first, in small letters.
fn lines_of(out: &[u8]) -> Vec<String> {
    let shown = String::from_utf8_lossy(out).to_ascii_lowercase();
    let text = shown.strip_suffix("\r\n\r\n").unwrap_or_else(|| panic!("no end: {shown:?}"));
    let mut lines: Vec<_> = text.split("\r\n").map(str::to_owned).collect();
    assert!(lines.iter().all(|line| !line.is_empty() && !line.contains(['\r', '\n', '\0'])), "{shown:?}");
    let framings = |name: &str| lines.iter().filter(|line| line.starts_with(name)).count();
    assert!(framings("content-length:") + framings("transfer-encoding:") <= 1, "{shown:?}");
    lines.remove(0);
    lines
}

/// The fields that a recipient may count on: all but those of the hop.
fn fields<'a>(all: impl Iterator<Item = (&'a str, &'a [u8])>) -> Vec<(String, Vec<u8>)> {
    const NOT: [&str; 9] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "te",
        "transfer-encoding",
        "upgrade",
        "x-a",
    ];
    let small = all.map(|(name, value)| (name.to_ascii_lowercase(), value.to_vec()));
    small.filter(|(name, _)| !NOT.contains(&name.as_str())).collect()
}

/// Whether options of the connection name other fields than those above.
fn nominates<'a>(mut connection: impl Iterator<Item = &'a [u8]>) -> bool {
    const NOT: [&str; 5] = ["close", "keep-alive", "upgrade", "transfer-encoding", "x-a"];
    connection.any(|value| {
        let value = String::from_utf8_lossy(value).to_ascii_lowercase();
        !value.split(',').all(|option| NOT.contains(&option.trim()))
    })
}

#[test]
fn a_request_that_is_sent_on_is_the_same_request() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let bytes = head(&mut rng, &REQUESTS);
        let mut first = slots();
        let Ok(Some(before)) = parse_request(&bytes, &mut first) else { continue };
        let edits = RequestEdits { upgrade: rng.bool(), te_trailers: rng.bool(), ..RequestEdits::default() };
        let mut out = Vec::new();
        before.write_upstream(&mut out, &edits);
        let lines = lines_of(&out);
        assert_eq!(lines.iter().filter(|line| line.starts_with("host:")).count(), 1);

        if before.host().is_empty() {
            continue; // to an endpoint it has the empty host, which is valid there
        }
        accepted += 1;
        let mut second = slots();
        let shown = || String::from_utf8_lossy(&bytes).into_owned();
        let after = parse_request(&out, &mut second).unwrap_or_else(|error| panic!("{error}: {:?}", shown()));
        let after = after.unwrap_or_else(|| panic!("not whole: {:?}", shown()));
        assert_eq!(after.len(), out.len(), "{:?}", shown());
        let meaning = |head: &crate::edge::h1::request::RequestHead<'_, '_>| {
            (head.method().to_owned(), head.path().to_owned(), head.host().to_owned(), head.body())
        };
        assert_eq!(meaning(&before), meaning(&after), "{:?}", shown());
        assert_eq!(after.upgrade(), before.upgrade().filter(|_| edits.upgrade), "{:?}", shown());
        assert_eq!(
            lines.iter().any(|line| line.starts_with("transfer-encoding:")),
            after.body() == RequestBody::Chunked
        );
        if !nominates(before.values("connection")) {
            assert_eq!(fields(before.fields()), fields(after.fields()), "{:?}", shown());
        }
    }
    assert!(accepted > ROUNDS / 10, "many are valid: {accepted}");
}

#[test]
fn a_response_that_is_sent_on_is_the_same_response() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut accepted = 0;
    for _ in 0..ROUNDS {
        let bytes = head(&mut rng, &RESPONSES);
        let mut first = slots();
        let to_head = rng.u8(..) < 30;
        let Ok(Some(before)) = parse_response(&bytes, &mut first, to_head) else { continue };
        accepted += 1;
        let framing = [FramingEdit::AsIs, FramingEdit::Chunk, FramingEdit::UntilClose][rng.usize(0..3)];
        let connection = [Connection::Persist, Connection::Persist10, Connection::Close, Connection::Upgrade]
            [rng.usize(0..4)];
        let edits = ResponseEdits { framing, connection, ..ResponseEdits::default() };
        let mut out = Vec::new();
        before.write_downstream(&mut out, &edits);
        lines_of(&out);

        let mut second = slots();
        let shown = || String::from_utf8_lossy(&bytes).into_owned();
        let after = parse_response(&out, &mut second, to_head);
        let after = after.unwrap_or_else(|error| panic!("{error}: {:?}", shown()));
        let after = after.unwrap_or_else(|| panic!("not whole: {:?}", shown()));
        assert_eq!((after.len(), after.status()), (out.len(), before.status()), "{:?}", shown());
        let body = match (before.body(), framing) {
            (ResponseBody::None, _) => ResponseBody::None,
            (_, FramingEdit::Chunk) => ResponseBody::Chunked,
            (ResponseBody::Chunked, FramingEdit::UntilClose) => ResponseBody::UntilClose,
            (body, _) => body,
        };
        assert_eq!(after.body(), body, "{:?}", shown());
        if !nominates(before.values("connection")) {
            assert_eq!(fields(before.fields()), fields(after.fields()), "{:?}", shown());
        }
    }
    assert!(accepted > ROUNDS / 10, "many are valid: {accepted}");
}
