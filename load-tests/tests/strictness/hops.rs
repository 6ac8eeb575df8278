//! What ends at each hop: nominated headers, upgrades, and where one request ends and the next begins.

use crate::case::{Case, case, meant};

const INVALID: &[u16] = &[400];

/// A GET with these header lines, each with its CRLF.
fn get(headers: &str) -> String {
    format!("GET /p HTTP/1.1\r\nhost: a.example\r\n{headers}\r\n")
}

fn ordinary(case: Case) -> Case {
    case.forwarded(&[meant("GET", "/p", "")])
}

fn post(headers: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nhost: a.example\r\n{headers}\r\n{body}")
}

pub(crate) fn nominated() -> Vec<Case> {
    let hello = |case: Case| case.forwarded(&[meant("POST", "/p", "hello")]).refused(INVALID);
    vec![
        ordinary(case("a nominated field", "9110 §7.6.1", get("connection: x-a\r\nx-a: 1\r\n"))).without("x-a"),
        ordinary(case(
            "nominated in a list, on two lines",
            "9110 §7.6.1",
            get("x-a: 1\r\nconnection: keep-alive, X-A\r\nconnection: ,x-b\r\nX-B: 2\r\nx-c: 3\r\n"),
        ))
        .without("x-a")
        .without("x-b")
        .with("x-c", "3"),
        // §7.6.1: these are not for one hop, so nominating them is a fault, and obeying it an attack.
        hello(case("nominated: length", "9110 §7.6.1", post("connection: content-length\r\ncontent-length: 5\r\n", "hello"))),
        hello(case(
            "nominated: coding",
            "9110 §7.6.1",
            post("connection: transfer-encoding\r\ntransfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n\r\n"),
        )),
        ordinary(case("nominated: host", "9110 §7.6.1", get("connection: host\r\n")))
            .with("host", "a.example")
            .refused(INVALID),
        ordinary(case(
            "fields of one hop",
            "9110 §7.6.1",
            get("keep-alive: timeout=5\r\nproxy-connection: keep-alive\r\nconnection: te, keep-alive\r\nte: gzip;q=1\r\n"),
        ))
        .without("keep-alive")
        .without("proxy-connection")
        .without("te"),
        // Obsolete (RFC 9113 §3.1), and a way past rules that know HTTP/1 only.
        ordinary(case(
            "upgrade to h2c",
            "9110 §7.8",
            get("connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAARAAAAAAAIAAAAA\r\n"),
        ))
        .without("upgrade")
        .without("http2-settings")
        .refused(INVALID),
        ordinary(case("upgrade that is not nominated", "9110 §7.8", get("upgrade: websocket\r\n"))).without("upgrade"),
        ordinary(case("an unknown expectation", "9110 §10.1.1", get("expect: 200-ok\r\n"))).refused(&[417]),
    ]
}

pub(crate) fn boundaries() -> Vec<Case> {
    let (first, second) =
        ("GET /1 HTTP/1.1\r\nhost: a.example\r\n", "GET /2 HTTP/1.1\r\nhost: a.example\r\n\r\n");
    let one = [meant("GET", "/1", "")];
    vec![
        case("pipelined", "9112 §9.3.2", format!("{first}\r\n{second}"))
            .forwarded(&[meant("GET", "/1", ""), meant("GET", "/2", "")]),
        case(
            "pipelined after a body",
            "9112 §9.3.2",
            post("content-length: 5\r\n", &format!("hello{second}")),
        )
        .forwarded(&[meant("POST", "/p", "hello"), meant("GET", "/2", "")]),
        case(
            "pipelined after chunks",
            "9112 §9.3.2",
            post("transfer-encoding: chunked\r\n", &format!("5\r\nhello\r\n0\r\n\r\n{second}")),
        )
        .forwarded(&[meant("POST", "/p", "hello"), meant("GET", "/2", "")]),
        case(
            "an empty line between",
            "9112 §2.2",
            post("content-length: 5\r\n", &format!("hello\r\n{second}")),
        )
        .forwarded(&[meant("POST", "/p", "hello"), meant("GET", "/2", "")]),
        case(
            "a bad one behind a good one",
            "9112 §9.3.2",
            format!("{first}\r\nGET /2 HTTP/1.1\r\nx : y\r\n\r\n"),
        )
        .forwarded(&one),
        // §9.6: whatever follows is not processed.
        case("one behind close", "9112 §9.6", format!("{first}connection: close\r\n\r\n{second}"))
            .forwarded(&one),
        case(
            "one behind HTTP/1.0",
            "9112 §9.3",
            format!("GET /1 HTTP/1.0\r\nhost: a.example\r\n\r\n{second}"),
        )
        .forwarded(&one),
    ]
}
