//! Between HTTP/1 and the `http` crate.

use http::{Method, Request, Response, uri::Scheme};

use super::*;
use crate::edge::h1::{
    convert::{to_request, to_response, write_request, write_response},
    edits::{Connection, FramingEdit},
    request::RequestBody,
    response::ResponseBody,
};

fn asked(request: &str, edits: &RequestEdits<'_>) -> Result<Request<()>, HeadError> {
    let mut slots = slots();
    let head = parse_request(request.as_bytes(), &mut slots)?.expect("the head is whole");
    to_request(&head, &Scheme::HTTP, edits)
}

fn fields(fields: &http::HeaderMap) -> Vec<String> {
    fields.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect()
}

#[test]
fn a_request_of_http_1_keeps_its_meaning() {
    let edits =
        RequestEdits { client: "192.0.2.1", proto: "https", te_trailers: true, ..RequestEdits::default() };
    let request = asked(
        "POST /a?b HTTP/1.1\r\nHost: shop:81\r\nX-Forwarded-For: x\r\nConnection: x-mine, te\r\nX-Mine: 1\r\n\
         TE: trailers\r\nTransfer-Encoding: chunked\r\nX-A: 1\r\nx-a: 2\r\n\r\n",
        &edits,
    )
    .unwrap();
    assert_eq!((request.method(), request.uri().to_string().as_str()), (&Method::POST, "http://shop:81/a?b"));
    assert_eq!(
        fields(request.headers()),
        ["x-a: 1", "x-a: 2", "x-forwarded-for: x, 192.0.2.1", "x-forwarded-proto: https", "te: trailers"]
    );

    let none = RequestEdits::default();
    let request = asked("GET http://b?c HTTP/1.1\r\nHost: a\r\nContent-Length: 07\r\n\r\n", &none).unwrap();
    assert_eq!(request.uri().to_string(), "http://b/?c");
    assert_eq!(fields(request.headers()), ["content-length: 7"]);
    let request = asked("OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", &none).unwrap();
    assert_eq!((request.uri().path(), request.uri().host()), ("*", Some("a")));
    let request = asked("GET / HTTP/1.0\r\n\r\n", &none).unwrap();
    assert_eq!((request.uri().path(), request.uri().host()), ("/", None));

    let edits = RequestEdits {
        host: Some("h"),
        target: Some("/t"),
        set: &[("x-new", "1"), ("host", "evil")],
        remove: &["x-a"],
        ..none
    };
    let request = asked("GET / HTTP/1.1\r\nHost: a\r\nX-A: 1\r\n\r\n", &edits).unwrap();
    assert_eq!(request.uri().to_string(), "http://h/t");
    assert_eq!(fields(request.headers()), ["x-new: 1"]);
}

fn written(
    request: http::request::Builder,
    body: RequestBody,
    edits: &RequestEdits<'_>,
) -> Result<String, HeadError> {
    let (parts, ()) = request.body(()).unwrap().into_parts();
    let mut out = Vec::new();
    let done = write_request(&parts, body, &mut out, edits);
    assert!(done.is_ok() || out.is_empty(), "nothing is written of what is refused");
    done.map(|()| String::from_utf8(out).unwrap())
}

#[test]
fn a_request_of_http_2_becomes_one_of_http_1() {
    let request = Request::post("https://shop:81/a?b")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("te", "trailers")
        .header("connection", "x")
        .header("content-length", "99")
        .header("transfer-encoding", "gzip")
        .header("x-forwarded-for", "x")
        .header("x-a", "1");
    let edits =
        RequestEdits { client: "192.0.2.1", proto: "https", te_trailers: true, ..RequestEdits::default() };
    assert_eq!(
        written(request, RequestBody::Length(5), &edits).unwrap(),
        "POST /a?b HTTP/1.1\r\nhost: shop:81\r\nx-a: 1\r\ncookie: a=1; b=2\r\ncontent-length: 5\r\n\
         x-forwarded-for: x, 192.0.2.1\r\nx-forwarded-proto: https\r\nconnection: te\r\nte: trailers\r\n\r\n"
    );
    let none = RequestEdits::default();
    assert_eq!(
        written(Request::put("http://a"), RequestBody::Chunked, &none).unwrap(),
        "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    assert_eq!(
        written(Request::options("*").header("host", "a"), RequestBody::None, &none).unwrap(),
        "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n"
    );
}

#[test]
fn a_request_of_http_2_that_http_1_cannot_say_is_refused() {
    for (request, status) in [
        (Request::get("/"), 400),
        (Request::get("http://u@a/"), 400),
        (Request::get("http://a/").header("host", "b"), 400),
        (Request::get("/").header("host", "a").header("host", "a"), 400),
        (Request::get("/").header("host", "a b"), 400),
        (Request::get("*").header("host", "a"), 400),
        (Request::get("http://a/\u{fc}"), 400),
        (Request::connect("a:443"), 501),
        (Request::get("http://a/").header("expect", "more"), 417),
    ] {
        let shown = format!("{request:?}");
        let refused = written(request, RequestBody::None, &RequestEdits::default());
        assert_eq!(refused.map_err(|error| error.status), Err(status), "{shown}");
    }
    let same = Request::get("http://A:80/").header("host", "a:80");
    assert!(written(same, RequestBody::None, &RequestEdits::default()).is_ok());
}

#[test]
fn a_response_of_http_1_keeps_its_meaning() {
    let read = |response: &str, to_head| {
        let mut slots = slots();
        let head = parse_response(response.as_bytes(), &mut slots, to_head).unwrap().unwrap();
        to_response(&head, &ResponseEdits { set: &[("b", "2")], ..ResponseEdits::default() }).unwrap()
    };
    let response = read(
        "HTTP/1.0 404 Gone\r\nConnection: close, x\r\nX: 1\r\nContent-Length: 05\r\nA: 1\r\nKeep-Alive: x\r\n\r\n",
        false,
    );
    assert_eq!(response.status(), 404);
    assert_eq!(fields(response.headers()), ["a: 1", "content-length: 5", "b: 2"]);
    let response = read("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", false);
    assert_eq!(fields(response.headers()), ["b: 2"]);
    let response = read("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", true);
    assert_eq!(fields(response.headers()), ["content-length: 5", "b: 2"]);
}

#[test]
fn a_response_of_http_2_becomes_one_of_http_1() {
    let written = |response: http::response::Builder, body, framing, connection| {
        let (parts, ()) = response.body(()).unwrap().into_parts();
        let mut out = Vec::new();
        write_response(
            &parts,
            body,
            &mut out,
            &ResponseEdits { framing, connection, ..ResponseEdits::default() },
        );
        String::from_utf8(out).unwrap()
    };
    let response =
        || Response::builder().header("a", "1").header("content-length", "5").header("connection", "x");
    for (body, framing, connection, lines) in [
        (ResponseBody::Length(5), FramingEdit::AsIs, Connection::Persist, "content-length: 5\r\n"),
        (ResponseBody::None, FramingEdit::AsIs, Connection::Persist, "content-length: 5\r\n"),
        (
            ResponseBody::None,
            FramingEdit::Chunk,
            Connection::Close,
            "content-length: 5\r\nconnection: close\r\n",
        ),
        (ResponseBody::UntilClose, FramingEdit::Chunk, Connection::Persist, "transfer-encoding: chunked\r\n"),
        (ResponseBody::UntilClose, FramingEdit::UntilClose, Connection::Close, "connection: close\r\n"),
    ] {
        let expected = format!("HTTP/1.1 200 OK\r\na: 1\r\n{lines}\r\n");
        assert_eq!(written(response(), body, framing, connection), expected);
    }
    assert_eq!(
        written(response().status(204), ResponseBody::None, FramingEdit::Chunk, Connection::Persist),
        "HTTP/1.1 204 No Content\r\na: 1\r\n\r\n"
    );
    assert_eq!(
        written(
            Response::builder().status(299),
            ResponseBody::Length(0),
            FramingEdit::AsIs,
            Connection::Persist10
        ),
        "HTTP/1.1 299 \r\ncontent-length: 0\r\nconnection: keep-alive\r\n\r\n"
    );
}
