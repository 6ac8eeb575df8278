//! Requests: what is refused and how, and exactly what an endpoint gets.

#![expect(
    clippy::redundant_closure_for_method_calls,
    reason = "a path to the method is of one lifetime, and a head's is any"
)]

use super::*;
use crate::edge::h1::request::{RequestBody, RequestHead};

fn refused(request: &str) -> u16 {
    match sent(request) {
        Ok(sent) => panic!("{request:?} was sent on as {sent:?}"),
        Err(error) => error.status,
    }
}

/// A GET of HTTP/1.1 with these lines.
fn get(lines: &str) -> String {
    format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n")
}

fn with<T>(request: &str, look: impl FnOnce(&RequestHead<'_, '_>) -> T) -> T {
    let mut slots = slots();
    look(&parse_request(request.as_bytes(), &mut slots).unwrap().expect("the head is whole"))
}

#[test]
fn an_unchanged_request_is_sent_byte_for_byte_but_for_connection() {
    let expected = BROWSER.replace("Connection: keep-alive\r\n", "");
    assert_eq!(sent(BROWSER).unwrap(), expected);
}

#[test]
fn a_head_is_read_only_when_it_is_whole() {
    let long = format!("\r\n{BROWSER}the body");
    for end in 0..long.len() {
        let mut slots = slots();
        let head = parse_request(&long.as_bytes()[..end], &mut slots).unwrap();
        assert_eq!(
            head.map(|head| head.len()),
            (end >= BROWSER.len() + 2).then_some(BROWSER.len() + 2),
            "{end}"
        );
    }
}

#[test]
fn lines_are_refused_that_two_readers_could_take_for_different_things() {
    for (request, why) in [
        ("GET / HTTP/1.1\nHost: a\r\n\r\n", "bare LF after the request line"),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", "bare LF after a field"),
        ("GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", "bare LF between fields"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX:\nY: b\r\n\r\n", "bare LF after an empty value"),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", "bare LF as the empty line"),
        ("GET / HTTP/1.1\n\n", "bare LFs only"),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bare LF in front"),
        ("\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "two empty lines in front"),
        ("\r\n\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "an empty line and a bare LF in front"),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", "bare CR in front"),
        ("GET / HTTP/1.1\rHost: a\r\n\r\n", "bare CR after the request line"),
        ("GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", "bare CR in a value"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\r\n\r\n", "CR CR LF"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n c\r\n\r\n", "a folded line"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n\tc\r\n\r\n", "a line folded with a tab"),
        ("GET / HTTP/1.1\r\n Host: a\r\n\r\n", "white space before the first field"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "a space before the colon"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\t: b\r\n\r\n", "a tab before the colon"),
        ("GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n", "no name"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n", "no colon"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX(: b\r\n\r\n", "a name that is no token"),
        ("GET / HTTP/1.1\r\nHost: a\r\nÜ: b\r\n\r\n", "a name that is not ASCII"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\0c\r\n\r\n", "NUL"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\x0bc\r\n\r\n", "a vertical tab"),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: b\x7fc\r\n\r\n", "DEL"),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", "two spaces"),
        ("GET /  HTTP/1.1\r\nHost: a\r\n\r\n", "two spaces before the version"),
        ("GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n", "a tab in the request line"),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", "a space after the version"),
        (" GET / HTTP/1.1\r\nHost: a\r\n\r\n", "a space in front"),
        ("G@T / HTTP/1.1\r\nHost: a\r\n\r\n", "a method that is no token"),
        ("GET /\r\n\r\n", "HTTP/0.9"),
        ("GET / HTTP/11\r\n\r\n", "a version that is none"),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", "a version in small letters"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "the beginning of HTTP/2"),
    ] {
        assert_eq!(refused(request), 400, "{why}");
    }
}

#[test]
fn one_empty_line_before_a_request_is_skipped() {
    assert_eq!(sent("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").unwrap(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn values_keep_what_is_allowed_in_them() {
    let bytes = b"GET / HTTP/1.1\r\nHost: a\r\nX:\t b\tc \xff \r\nY:\r\n\r\n";
    let mut slots = slots();
    let head = parse_request(bytes, &mut slots).unwrap().unwrap();
    assert_eq!(head.values("x").collect::<Vec<_>>(), [b"b\tc \xff"]);
    assert_eq!(head.values("y").collect::<Vec<_>>(), [b""]);
    let mut out = Vec::new();
    head.write_upstream(&mut out, &RequestEdits::default());
    assert_eq!(out, bytes);
}

#[test]
fn other_versions_are_505() {
    for version in ["HTTP/2.0", "HTTP/1.2", "HTTP/0.9", "HTTP/3.0"] {
        assert_eq!(refused(&format!("GET / {version}\r\nHost: a\r\n\r\n")), 505, "{version}");
    }
}

#[test]
fn more_fields_than_there_is_room_for_are_431() {
    assert!(sent(&get(&"X: 1\r\n".repeat(127))).is_ok());
    assert_eq!(refused(&get(&"X: 1\r\n".repeat(128))), 431);
}

#[test]
fn a_request_has_one_valid_host() {
    for host in
        ["a", "a.example:80", "A_b-c.", "a:", "127.0.0.1:8080", "[::1]", "[2001:db8::1]:443", "%C3%BC"]
    {
        let request = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        assert_eq!(with(&request, |head| head.host().to_owned()), host);
    }
    for host in [
        "", "a b", "a,b", "a/b", "u@a", "a:b", "a:80:80", "a:99999", ":80", "[::1", "[::1]x", "[]", "[g::]",
        "a#b", "a?b", "a\\b", "<a>", "%", "%4", "%zz", "ü",
    ] {
        assert_eq!(refused(&format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")), 400, "{host:?}");
    }
    assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), 400);
    assert_eq!(refused("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n"), 400);
    assert_eq!(refused("GET http://a/ HTTP/1.1\r\n\r\n"), 400, "also with an authority in the target");
    assert_eq!(refused("GET / HTTP/1.0\r\nHost: a\r\nhost: b\r\n\r\n"), 400);
}

#[test]
fn http_1_0_may_have_no_host_and_then_an_endpoint_is_told_an_empty_one() {
    let lone = "GET /x HTTP/1.0\r\nA: b\r\n\r\n";
    assert_eq!(with(lone, |head| head.host().to_owned()), "");
    assert_eq!(sent(lone).unwrap(), "GET /x HTTP/1.1\r\nhost: \r\nA: b\r\n\r\n");
    let edits = RequestEdits { host: Some("h"), ..RequestEdits::default() };
    assert_eq!(sent_with(lone.as_bytes(), &edits).unwrap(), "GET /x HTTP/1.1\r\nhost: h\r\nA: b\r\n\r\n");
    assert_eq!(sent("GET / HTTP/1.0\r\nHost: a\r\n\r\n").unwrap(), "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn targets_have_one_of_the_forms_for_origin_servers() {
    for (method, target, host, path, sent_as) in [
        ("GET", "/", "a", "/", "GET / HTTP/1.1\r\nHost: a"),
        ("GET", "//b/c?d?e", "a", "//b/c", "GET //b/c?d?e HTTP/1.1\r\nHost: a"),
        ("GET", "/http://b/", "a", "/http://b/", "GET /http://b/ HTTP/1.1\r\nHost: a"),
        ("GET", "http://b:81/c?d", "b:81", "/c", "GET /c?d HTTP/1.1\r\nhost: b:81"),
        ("GET", "HTTPS://b", "b", "/", "GET / HTTP/1.1\r\nhost: b"),
        ("GET", "http://b?c=/d", "b", "/", "GET /?c=/d HTTP/1.1\r\nhost: b"),
        ("OPTIONS", "*", "a", "*", "OPTIONS * HTTP/1.1\r\nHost: a"),
        ("OPTIONS", "http://b", "b", "*", "OPTIONS * HTTP/1.1\r\nhost: b"),
        ("OPTIONS", "http://b/", "b", "/", "OPTIONS / HTTP/1.1\r\nhost: b"),
    ] {
        let request = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(sent(&request).unwrap(), format!("{sent_as}\r\n\r\n"), "{target}");
        with(&request, |head| assert_eq!((head.host(), head.path(), head.target()), (host, path, target)));
    }
    for target in [
        "*",
        "a",
        "a:80",
        "/a#b",
        "/ü",
        "ftp://a/",
        "http:/a",
        "http://",
        "http:///a",
        "http://u@b/",
        "http://b:x/",
        "://a/",
        "http://b#c",
        "?a",
        "http://b\\c/",
        "https:a",
    ] {
        assert_eq!(refused(&format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n")), 400, "{target}");
    }
    assert_eq!(refused("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"), 501);
}

#[test]
fn a_body_is_framed_in_one_way_or_the_request_is_refused() {
    for (lines, body) in [
        ("", RequestBody::None),
        ("Content-Length: 0\r\n", RequestBody::Length(0)),
        ("content-LENGTH:   9223372036854775807  \r\n", RequestBody::Length(i64::MAX as u64)),
        ("Transfer-Encoding: chunked\r\n", RequestBody::Chunked),
        ("transfer-encoding: CHUNKED\r\n", RequestBody::Chunked),
    ] {
        assert_eq!(with(&get(lines), |head| head.body()), body, "{lines}");
    }
    for (lines, status) in [
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
        ("Transfer-Encoding: gzip\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 5\r\n", 400),
        ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        ("Content-Length: 5, 5\r\n", 400),
        ("Content-Length:\r\n", 400),
        ("Content-Length: +5\r\n", 400),
        ("Content-Length: -5\r\n", 400),
        ("Content-Length: 0x5\r\n", 400),
        ("Content-Length: 5 5\r\n", 400),
        ("Content-Length: 5;\r\n", 400),
        ("Content-Length: 18446744073709551616\r\n", 400),
        ("Transfer-Encoding: chunked, chunked\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
        ("Transfer-Encoding: chunked, gzip\r\n", 400),
        ("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", 400),
        ("Transfer-Encoding: chunked;a=b\r\n", 400),
        ("Transfer-Encoding: chunked,\r\n", 400),
        ("Transfer-Encoding: ,chunked\r\n", 400),
        ("Transfer-Encoding:\r\n", 400),
        ("Transfer-Encoding: gzip, chunked\r\n", 501),
        ("Transfer-Encoding: gzip;q=1\r\n", 501),
        ("Transfer-Encoding: xchunked\r\n", 501),
        ("Transfer-Encoding: \"chunked\"\r\n", 501),
        ("Transfer-Encoding: identity\r\n", 501),
    ] {
        assert_eq!(refused(&get(lines)), status, "{lines}");
    }
    assert_eq!(refused("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), 400);
}

#[test]
fn framing_is_written_as_it_was_understood() {
    let chunked = get("Transfer-Encoding:  Chunked\r\nX: y\r\n");
    assert_eq!(sent(&chunked).unwrap(), get("X: y\r\ntransfer-encoding: chunked\r\n"));
    assert_eq!(sent(&get("Content-Length: 007\r\nX: y\r\n")).unwrap(), get("X: y\r\ncontent-length: 7\r\n"));
    assert_eq!(sent(&get("Content-Length: 7\r\nX: y\r\n")).unwrap(), get("Content-Length: 7\r\nX: y\r\n"));
}

#[test]
fn what_belongs_to_the_clients_connection_is_not_forwarded() {
    let request = get(
        "Keep-Alive: timeout=5\r\nA: 1\r\nConnection: close, x-Mine ,TE\r\nTE: trailers\r\nB: 2\r\nX-MINE: 1\r\n\
         Proxy-Connection: keep-alive\r\nProxy-Authorization: Basic eDp5\r\nX-Mine: 2\r\nUpgrade: websocket\r\n\
         HTTP2-Settings: AAMAAABk\r\nTrailer: C\r\nD: 4\r\n",
    );
    assert_eq!(sent(&request).unwrap(), get("A: 1\r\nB: 2\r\nTrailer: C\r\nD: 4\r\n"));
}

#[test]
fn connection_cannot_take_away_what_frames_routes_or_vouches_for_a_request() {
    for name in ["host", "Content-Length", "expect", "X-Forwarded-For", "x-forwarded-proto"] {
        let request = get(&format!("Content-Length: 5\r\nConnection: close, {name}\r\n"));
        assert_eq!(refused(&request), 400, "{name}");
    }
    // It is the connection's own anyway, and some senders name it.
    let request = get("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n");
    assert_eq!(sent(&request).unwrap(), get("transfer-encoding: chunked\r\n"));
    assert_eq!(refused(&get(&format!("Connection: {}\r\n", "a,".repeat(40)))), 400, "many options");
}

#[test]
fn a_connection_goes_on_as_version_and_options_say() {
    for (version, connection, goes_on) in [
        ("1.1", "", true),
        ("1.1", "close", false),
        ("1.1", "Keep-Alive, Close", false),
        ("1.1", "keep-alive", true),
        ("1.1", "closed", true),
        ("1.0", "", false),
        ("1.0", "Keep-Alive", true),
        ("1.0", "keep-alive\r\nConnection: close", false),
    ] {
        let request = format!("GET / HTTP/{version}\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
        assert_eq!(with(&request, |head| head.keep_alive()), goes_on, "{version} {connection}");
    }
}

#[test]
fn an_expectation_is_100_continue_or_417() {
    let request = get("Expect: 100-Continue\r\nContent-Length: 1\r\n");
    assert!(with(&request, |head| head.expects_continue()));
    assert_eq!(sent(&request).unwrap(), request);
    let edits = RequestEdits { drop_expect: true, ..RequestEdits::default() };
    assert_eq!(sent_with(request.as_bytes(), &edits).unwrap(), get("Content-Length: 1\r\n"));
    assert_eq!(refused(&get("Expect: 200-ok\r\n")), 417);
    let old = "GET / HTTP/1.0\r\nHost: a\r\nExpect: 100-continue\r\n\r\n";
    assert!(!with(old, |head| head.expects_continue()));
    assert_eq!(sent(old).unwrap(), get(""));
}

#[test]
fn an_upgrade_goes_on_only_when_connection_names_it_and_the_engine_keeps_it() {
    let kept = RequestEdits { upgrade: true, ..RequestEdits::default() };
    let request = get("Upgrade: websocket\r\nX: y\r\nConnection: keep-alive, Upgrade\r\n");
    assert_eq!(with(&request, |head| head.upgrade().map(str::to_owned)), Some("websocket".to_owned()));
    let expected = get("X: y\r\nconnection: upgrade\r\nupgrade: websocket\r\n");
    assert_eq!(sent_with(request.as_bytes(), &kept).unwrap(), expected);
    assert_eq!(sent(&request).unwrap(), get("X: y\r\n"));
    for lines in [
        "Upgrade: websocket\r\n",
        "Connection: upgrade\r\n",
        "Connection: upgrade\r\nUpgrade:\r\n",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Connection: upgrade\r\nUpgrade: websocket, H2C\r\n",
        "Connection: upgrade\r\nUpgrade: websocket\r\nUpgrade: websocket\r\n",
    ] {
        assert_eq!(with(&get(lines), |head| head.upgrade().map(str::to_owned)), None, "{lines}");
        assert_eq!(sent_with(get(lines).as_bytes(), &kept).unwrap(), get(""), "{lines}");
    }
    let old = "GET / HTTP/1.0\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(with(old, |head| head.upgrade().map(str::to_owned)), None);
}

#[test]
fn the_client_is_appended_to_those_it_came_through() {
    let edits = RequestEdits { client: "192.0.2.1", proto: "https", ..RequestEdits::default() };
    let added =
        |chain: &str| get(&format!("A: b\r\nx-forwarded-for: {chain}\r\nx-forwarded-proto: https\r\n"));
    for (lines, chain) in [
        ("A: b\r\n", "192.0.2.1"),
        ("X-Forwarded-For: 10.0.0.1\r\nA: b\r\n", "10.0.0.1, 192.0.2.1"),
        (
            "X-Forwarded-For: x, y\r\nx-forwarded-proto: http\r\nA: b\r\nX-Forwarded-For:\r\nx-forwarded-for: z\r\n",
            "x, y, z, 192.0.2.1",
        ),
    ] {
        assert_eq!(sent_with(get(lines).as_bytes(), &edits).unwrap(), added(chain), "{lines}");
    }
}

#[test]
fn te_goes_on_only_as_trailers_and_if_the_engine_keeps_it() {
    let kept = RequestEdits { te_trailers: true, upgrade: true, ..RequestEdits::default() };
    let request = get("TE: gzip;q=1, Trailers\r\n");
    assert!(with(&request, |head| head.te_trailers()));
    assert_eq!(sent_with(request.as_bytes(), &kept).unwrap(), get("connection: te\r\nte: trailers\r\n"));
    let both = get("TE: trailers\r\nConnection: te, upgrade\r\nUpgrade: websocket\r\n");
    let expected = get("connection: upgrade, te\r\nte: trailers\r\nupgrade: websocket\r\n");
    assert_eq!(sent_with(both.as_bytes(), &kept).unwrap(), expected);
    assert_eq!(sent_with(get("TE: gzip\r\n").as_bytes(), &kept).unwrap(), get(""));
}

#[test]
fn filters_edit_fields_but_not_framing_or_the_host() {
    let request = get("Content-Length: 5\r\nA: 1\r\nB: 2\r\na: 3\r\nC: 4\r\nX-Forwarded-For: x\r\n");
    let edits = RequestEdits {
        client: "192.0.2.1",
        proto: "http",
        target: Some("/new?q"),
        host: Some("h"),
        set: &[("A", "z"), ("content-length", "9"), ("host", "evil"), ("connection", "x"), ("new", "n")],
        remove: &["b", "Content-Length", "HOST", "x-forwarded-for"],
        ..RequestEdits::default()
    };
    assert_eq!(
        sent_with(request.as_bytes(), &edits).unwrap(),
        "GET /new?q HTTP/1.1\r\nhost: h\r\nContent-Length: 5\r\nC: 4\r\nx-forwarded-proto: http\r\nA: z\r\nnew: n\r\n\r\n"
    );
}

#[test]
fn a_head_tells_its_method_and_fields() {
    with("HEAD / HTTP/1.0\r\nA: 1\r\nb: 2\r\na: 3\r\n\r\n", |head| {
        assert!(head.is_head() && head.is_http10());
        assert_eq!(head.method(), "HEAD");
        assert_eq!(head.values("A").collect::<Vec<_>>(), [b"1", b"3"]);
        assert_eq!(head.fields().map(|(name, _)| name).collect::<Vec<_>>(), ["A", "b", "a"]);
    });
}
