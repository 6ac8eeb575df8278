//! Responses: what is refused, and exactly what a client gets.

#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "a path to the method is of one lifetime, and a head's is any"
)]

use super::*;
use crate::edge::h1::{
    edits::{Connection, FramingEdit},
    response::{ResponseBody, ResponseHead},
};

fn with<T>(response: &str, to_head: bool, look: impl FnOnce(&ResponseHead<'_, '_>) -> T) -> T {
    let mut slots = slots();
    look(&parse_response(response.as_bytes(), &mut slots, to_head).unwrap().expect("the head is whole"))
}

fn answered(response: &str) -> Result<String, HeadError> {
    answered_with(response.as_bytes(), &ResponseEdits::default())
}

/// A 200 of HTTP/1.1 with these lines.
fn ok(lines: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{lines}\r\n")
}

#[test]
fn an_unchanged_response_is_sent_byte_for_byte_but_for_connection() {
    assert_eq!(answered(ANSWER).unwrap(), ANSWER.replace("Connection: keep-alive\r\n", ""));
    for end in 0..ANSWER.len() {
        let mut slots = slots();
        assert!(parse_response(&ANSWER.as_bytes()[..end], &mut slots, false).unwrap().is_none(), "{end}");
    }
}

#[test]
fn what_is_not_clearly_a_response_is_502() {
    for (response, why) in [
        ("HTTP/1.1 200 OK\n\n", "bare LFs"),
        ("HTTP/1.1 200 OK\nA: b\r\n\r\n", "bare LF after the status line"),
        ("HTTP/1.1 200\nA: b\r\n\r\n", "bare LF after the status"),
        ("HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n", "bare LF after a field"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n\n", "bare LF as the empty line"),
        ("HTTP/1.1 200 OK\rA: b\r\n\r\n", "bare CR"),
        ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "bare CR in a value"),
        ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "a folded line"),
        ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", "a space before the colon"),
        ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", "NUL"),
        ("HTTP/1.1 200 O\x08K\r\n\r\n", "a control character in the reason"),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", "an empty line in front"),
        ("HTTP/2.0 200 OK\r\n\r\n", "another version"),
        ("HTTP/1.1  200 OK\r\n\r\n", "two spaces"),
        ("HTTP/1.1 20 OK\r\n\r\n", "two digits"),
        ("HTTP/1.1 2000 OK\r\n\r\n", "four digits"),
        ("HTTP/1.1 099 OK\r\n\r\n", "a status that is none"),
        ("ICY 200 OK\r\n\r\n", "another protocol"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "two framings"),
        (
            "HTTP/1.1 304 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "two framings of none",
        ),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", "two lengths"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n", "a list of lengths"),
        ("HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\n", "a length that is none"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "an unknown coding"),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", "chunked is not last"),
        ("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "chunked in HTTP/1.0"),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: content-length\r\n\r\n",
            "a length is nominated",
        ),
    ] {
        assert_eq!(answered(response).map_err(|error| error.status), Err(502), "{why}");
    }
    assert_eq!(answered(&ok(&"X: 1\r\n".repeat(129))).unwrap_err().status, 502);
}

#[test]
fn a_body_is_framed_as_request_status_and_fields_say() {
    for (response, to_head, body, goes_on) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", false, ResponseBody::Length(5), true),
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true, ResponseBody::None, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false, ResponseBody::Chunked, true),
        ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true, ResponseBody::None, true),
        ("HTTP/1.1 200 OK\r\n\r\n", false, ResponseBody::UntilClose, false),
        ("HTTP/1.1 200 OK\r\n\r\n", true, ResponseBody::None, true),
        ("HTTP/1.1 100 Continue\r\n\r\n", false, ResponseBody::None, true),
        ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", false, ResponseBody::None, true),
        ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", false, ResponseBody::None, true),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\n",
            false,
            ResponseBody::Length(5),
            false,
        ),
        ("HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", false, ResponseBody::Length(5), false),
        (
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: Keep-Alive\r\n\r\n",
            false,
            ResponseBody::Length(5),
            true,
        ),
        ("HTTP/1.1 101 Go\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", false, ResponseBody::None, false),
    ] {
        with(response, to_head, |head| {
            assert_eq!((head.body(), head.keep_alive()), (body, goes_on), "{response}");
        });
    }
}

#[test]
fn the_status_line_is_of_http_1_1_with_the_endpoints_reason() {
    for (line, expected) in [
        ("HTTP/1.1 200 Fine by me\r\n", "HTTP/1.1 200 Fine by me\r\n"),
        ("HTTP/1.0 200 OK\r\n", "HTTP/1.1 200 OK\r\n"),
        ("HTTP/1.1 200 \r\n", "HTTP/1.1 200 \r\n"),
        ("HTTP/1.1 200\r\n", "HTTP/1.1 200 \r\n"),
        ("HTTP/1.0 200\r\n", "HTTP/1.1 200 \r\n"),
        ("HTTP/1.1 799 Odd\r\n", "HTTP/1.1 799 Odd\r\n"),
        ("HTTP/1.1 200 für dich\r\n", "HTTP/1.1 200 für dich\r\n"),
    ] {
        let response = format!("{line}Content-Length: 0\r\n\r\n");
        assert_eq!(answered(&response).unwrap(), format!("{expected}Content-Length: 0\r\n\r\n"));
    }
}

#[test]
fn framing_and_connection_are_what_the_client_understands() {
    let edit = |framing, connection| ResponseEdits { framing, connection, ..ResponseEdits::default() };
    let persist = Connection::Persist;
    for (response, edits, expected) in [
        (ok("A: b\r\n"), edit(FramingEdit::Chunk, persist), ok("A: b\r\ntransfer-encoding: chunked\r\n")),
        (
            ok("A: b\r\n"),
            edit(FramingEdit::UntilClose, Connection::Close),
            ok("A: b\r\nconnection: close\r\n"),
        ),
        (
            ok("Transfer-Encoding: Chunked\r\nA: b\r\n"),
            edit(FramingEdit::AsIs, persist),
            ok("A: b\r\ntransfer-encoding: chunked\r\n"),
        ),
        (
            ok("Transfer-Encoding: chunked\r\nA: b\r\n"),
            edit(FramingEdit::UntilClose, Connection::Close),
            ok("A: b\r\nconnection: close\r\n"),
        ),
        (
            ok("Content-Length: 5\r\nA: b\r\n"),
            edit(FramingEdit::AsIs, Connection::Persist10),
            ok("Content-Length: 5\r\nA: b\r\nconnection: keep-alive\r\n"),
        ),
        (ok("Content-Length: 05\r\n"), edit(FramingEdit::AsIs, persist), ok("content-length: 5\r\n")),
        (
            ok("Content-Length: 5\r\n"),
            edit(FramingEdit::Chunk, persist),
            ok("transfer-encoding: chunked\r\n"),
        ),
        (
            ok("Content-Length: 05\r\n"),
            edit(FramingEdit::Chunk, persist),
            ok("transfer-encoding: chunked\r\n"),
        ),
    ] {
        assert_eq!(answered_with(response.as_bytes(), &edits).unwrap(), expected, "{response} {edits:?}");
    }
}

#[test]
fn a_response_without_a_body_gets_no_framing_but_the_length_it_would_have() {
    let chunk = ResponseEdits { framing: FramingEdit::Chunk, ..ResponseEdits::default() };
    for (status, kept) in [(100, false), (103, false), (204, false), (304, true)] {
        let response = format!("HTTP/1.1 {status} x\r\nContent-Length: 5\r\n\r\n");
        let bare = format!("HTTP/1.1 {status} x\r\n\r\n");
        let expected = if kept { &response } else { &bare };
        assert_eq!(answered_with(response.as_bytes(), &chunk).unwrap(), *expected);
    }
    for lines in ["Content-Length: 5\r\n", "", "Transfer-Encoding: chunked\r\n"] {
        with(&ok(lines), true, |head| {
            let mut out = Vec::new();
            head.write_downstream(&mut out, &chunk);
            let kept = if lines.starts_with("Content") { lines } else { "" };
            assert_eq!(String::from_utf8(out).unwrap(), ok(kept));
        });
    }
}

#[test]
fn what_belongs_to_the_endpoints_connection_is_not_forwarded() {
    let response =
        ok("Content-Length: 0\r\nConnection: keep-alive, X-Mine\r\nKeep-Alive: timeout=5\r\nx-mine: 1\r\n\
         Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nTrailer: A\r\nSet-Cookie: a=b\r\n");
    assert_eq!(answered(&response).unwrap(), ok("Content-Length: 0\r\nTrailer: A\r\nSet-Cookie: a=b\r\n"));
}

#[test]
fn a_switch_of_protocols_is_told() {
    let edits = ResponseEdits { connection: Connection::Upgrade, ..ResponseEdits::default() };
    let response = "HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nA: b\r\n\r\n";
    assert!(with(response, false, |head| head.upgrades()));
    assert_eq!(
        answered_with(response.as_bytes(), &edits).unwrap(),
        "HTTP/1.1 101 Switching\r\nA: b\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    );
    for other in
        ["HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 101 x\r\nConnection: upgrade\r\n\r\n"]
    {
        assert!(!with(other, false, |head| head.upgrades()), "{other}");
    }
}

#[test]
fn filters_edit_fields_but_not_framing() {
    let edits = ResponseEdits {
        set: &[("server", "sluicegate"), ("content-length", "9"), ("transfer-encoding", "gzip")],
        remove: &["etag", "content-length"],
        ..ResponseEdits::default()
    };
    let response = ok("Server: x\r\nContent-Length: 5\r\nETag: 1\r\n");
    assert_eq!(
        answered_with(response.as_bytes(), &edits).unwrap(),
        ok("Content-Length: 5\r\nserver: sluicegate\r\n")
    );
}
