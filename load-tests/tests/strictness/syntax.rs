//! What a head may look like: lines, names, values, targets, versions, sizes.

use crate::case::{Case, case, meant};

const INVALID: &[u16] = &[400];
const TOO_LARGE: &[u16] = &[400, 413, 414, 431];
const METHOD: &[u16] = &[400, 405, 501];
const VERSION: &[u16] = &[400, 505];

/// A GET with these header lines, each with its CRLF.
fn get(headers: impl AsRef<[u8]>) -> Vec<u8> {
    [b"GET /p HTTP/1.1\r\nhost: a.example\r\n", headers.as_ref(), b"\r\n"].concat()
}

fn ordinary(case: Case) -> Case {
    case.forwarded(&[meant("GET", "/p", "")])
}

pub(crate) fn lines() -> Vec<Case> {
    let post = |headers: &str| format!("POST /p HTTP/1.1\r\nhost: a.example\r\n{headers}\r\nhello");
    vec![
        // §2.2: a lone LF may be taken for a line's end; what is forwarded then ends in CRLF.
        ordinary(case("LF everywhere", "9112 §2.2", "GET /p HTTP/1.1\nhost: a.example\n\n")).refused(INVALID),
        ordinary(case("LF after a field", "9112 §2.2", get("x: y\nz: w\r\n"))).refused(INVALID),
        case("LF before a length", "9112 §2.2", post("x: y\ncontent-length: 5\r\n"))
            .forwarded(&[meant("POST", "/p", "hello")])
            .refused(INVALID),
        ordinary(case("LF at the end of the head", "9112 §2.2", "GET /p HTTP/1.1\r\nhost: a.example\r\n\n"))
            .refused(INVALID),
        case("CR in place of CRLF", "9112 §2.2", "GET /p HTTP/1.1\rhost: a.example\r\r")
            .refused(INVALID)
            .waits(),
        ordinary(case("CR in a value", "9112 §2.2", get("x: a\rb\r\n"))).refused(INVALID),
        case("CR before a length", "9112 §2.2", post("x: y\rcontent-length: 5\r\n")).refused(INVALID),
        case("CR in the request line", "9112 §2.2", "GET /p\r HTTP/1.1\r\nhost: a.example\r\n\r\n")
            .refused(INVALID),
        ordinary(case("folded", "9112 §5.2", get("x: a\r\n b\r\n"))).refused(INVALID),
        ordinary(case("folded with a tab", "9112 §5.2", get("x: a\r\n\tb\r\n"))).refused(INVALID),
        ordinary(case(
            "space before the first field",
            "9112 §2.2",
            "GET /p HTTP/1.1\r\n host: a.example\r\nhost: a.example\r\n\r\n",
        ))
        .refused(INVALID),
        case("space before the colon", "9112 §5.1", get("x : y\r\n")).refused(INVALID),
        case("tab before the colon", "9112 §5.1", get("x\t: y\r\n")).refused(INVALID),
        case("space before a length's colon", "9112 §5.1", post("content-length : 5\r\n")).refused(INVALID),
        case("name empty", "9110 §5.1", get(": y\r\n")).refused(INVALID),
        case("no colon", "9112 §5", get("nothing\r\n")).refused(INVALID),
        case("name with @", "9110 §5.6.2", get("x@y: z\r\n")).refused(INVALID),
        case("name with NUL", "9110 §5.6.2", get("x\0: z\r\n")).refused(INVALID),
        case("name above ASCII", "9110 §5.6.2", get(b"x\xe9: z\r\n")).refused(INVALID),
        // §5.5: refused, or replaced by a space.
        ordinary(case("value with NUL", "9110 §5.5", get("x: a\0b\r\n"))).refused(INVALID),
        ordinary(case("value with a control character", "9110 §5.5", get("x: a\x01b\r\n"))).refused(INVALID),
        ordinary(case("value above ASCII", "9110 §5.5", get(b"x: \xe9\r\n"))),
        ordinary(case("value empty", "9110 §5.5", get("x:\r\n"))).with("x", ""),
        ordinary(case("value between spaces", "9112 §5.1", get("x: \t y \t\r\n"))).with("x", "y"),
        ordinary(case("empty line first", "9112 §2.2", [b"\r\n", &get("")[..]].concat())),
        // 1 MiB, and 20,000 fields.
        case("field of 1 MiB", "9110 §5.4", get(format!("x: {}\r\n", "v".repeat(1 << 20))))
            .refused(TOO_LARGE)
            .late(),
        case("20,000 fields", "9110 §5.4", get("x: y\r\n".repeat(20_000))).refused(TOO_LARGE).late(),
        case("target of 1 MiB", "9110 §4.1", request(format!("GET /{} HTTP/1.1", "a".repeat(1 << 20))))
            .refused(TOO_LARGE)
            .late(),
    ]
}

/// A request with this first line.
fn request(line: impl AsRef<[u8]>) -> Vec<u8> {
    [line.as_ref(), b"\r\nhost: a.example\r\n\r\n"].concat()
}

pub(crate) fn targets() -> Vec<Case> {
    let host = |host: &str| format!("GET /p HTTP/1.1\r\n{host}\r\n");
    vec![
        ordinary(case("absolute form", "9112 §3.2.2", request("GET http://a.example/p HTTP/1.1")))
            .with("host", "a.example"),
        // The target's authority counts, and Host is replaced by it.
        ordinary(case(
            "absolute form, other Host",
            "9112 §3.2.2",
            request("GET http://b.example/p HTTP/1.1"),
        ))
        .with("host", "b.example")
        .refused(INVALID),
        case("absolute form with user", "9110 §4.2.4", request("GET http://u@a.example/p HTTP/1.1"))
            .refused(INVALID)
            .forwarded(&[meant("GET", "/p", "")])
            .with("host", "a.example"),
        case("two Hosts", "9112 §3.2", host("host: a.example\r\nhost: b.example\r\n")).refused(INVALID),
        case("two Hosts, same", "9112 §3.2", host("host: a.example\r\nhost: a.example\r\n")).refused(INVALID),
        case("no Host", "9112 §3.2", host("")).refused(INVALID),
        ordinary(case("Host empty", "9110 §7.2", host("host:\r\n"))).refused(INVALID),
        case("Host with a space", "9112 §3.2", host("host: a.example b\r\n")).refused(INVALID),
        case("Host with a slash", "9112 §3.2", host("host: a.example/b\r\n")).refused(INVALID),
        case("Host with @", "9112 §3.2", host("host: u@a.example\r\n")).refused(INVALID),
        case("Host with a comma", "9112 §3.2", host("host: a.example, b.example\r\n")).refused(INVALID),
        ordinary(case("Host with a port", "9110 §7.2", host("host: a.example:81\r\n")))
            .with("host", "a.example:81"),
        ordinary(case("HTTP/1.0 without Host", "9112 §3.2", "GET /p HTTP/1.0\r\n\r\n")).refused(INVALID),
        case("HTTP/0.9", "9112 §2.3", "GET /p\r\n").refused(VERSION),
        case("HTTP/2.0", "9110 §15.6.6", request("GET /p HTTP/2.0")).refused(VERSION),
        // §2.5: as if it were 1.1, which is what is forwarded.
        ordinary(case("HTTP/1.2", "9110 §2.5", request("GET /p HTTP/1.2"))).refused(VERSION),
        case("HTTP/1.10", "9112 §2.3", request("GET /p HTTP/1.10")).refused(VERSION),
        case("HTTP/01.1", "9112 §2.3", request("GET /p HTTP/01.1")).refused(VERSION),
        case("http/1.1", "9112 §2.3", request("GET /p http/1.1")).refused(VERSION),
        case("HTTP/1.1 with a suffix", "9112 §2.3", request("GET /p HTTP/1.1x")).refused(VERSION),
        case("a second version", "9112 §3", request("GET /p HTTP/1.1 HTTP/1.0")).refused(VERSION),
        // Methods are case-sensitive tokens: another method, not GET.
        case("get", "9110 §9.1", request("get /p HTTP/1.1"))
            .refused(METHOD)
            .forwarded(&[meant("get", "/p", "")]),
        case("method of nothing", "9112 §3", request(" /p HTTP/1.1")).refused(INVALID),
        case("method with (", "9110 §9.1", request("G(T /p HTTP/1.1")).refused(INVALID),
        case("CONNECT", "9110 §9.3.6", request("CONNECT a.example:80 HTTP/1.1")).refused(METHOD),
        case("OPTIONS *", "9112 §3.2.4", request("OPTIONS * HTTP/1.1"))
            .forwarded(&[meant("OPTIONS", "*", "")])
            .refused(&[400, 404, 405, 501]),
        case("GET *", "9112 §3.2.4", request("GET * HTTP/1.1")).refused(&[400, 404]),
        case("fragment", "9112 §3.2", request("GET /p#f HTTP/1.1")).refused(INVALID),
        // Not in the grammar, but sent by many and the same to all.
        case("target above ASCII", "9112 §3.2", request(b"GET /p\xc3\xa9 HTTP/1.1"))
            .refused(INVALID)
            .forwarded(&[meant("GET", "/p\u{c3}\u{a9}", "")]),
        case("target with a control character", "9112 §3.2", request("GET /p\x01 HTTP/1.1")).refused(INVALID),
        case("target with NUL", "9112 §3.2", request("GET /p\0 HTTP/1.1")).refused(INVALID),
        case("target with a space", "9112 §3.2", request("GET /p q HTTP/1.1")).refused(VERSION),
        case("target of nothing", "9112 §3.2", request("GET  HTTP/1.1")).refused(INVALID),
        case("target without a slash", "9112 §3.2", request("GET p HTTP/1.1")).refused(INVALID),
        // §3: a lenient reader may; what is forwarded has single spaces.
        ordinary(case("two spaces", "9112 §3", request("GET  /p HTTP/1.1"))).refused(INVALID),
        ordinary(case("a tab for a space", "9112 §3", request("GET\t/p HTTP/1.1"))).refused(INVALID),
        ordinary(case("space after the version", "9112 §3", request("GET /p HTTP/1.1 "))).refused(VERSION),
    ]
}
