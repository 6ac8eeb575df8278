//! Where a body ends: Content-Length, Transfer-Encoding, and chunks.

use crate::case::{Case, case, meant};

const HELLO: &str = "5\r\nhello\r\n0\r\n\r\n";
const INVALID: &[u16] = &[400];
/// A coding that is not understood (RFC 9112 §6.1), or is wrong.
const CODING: &[u16] = &[400, 501];

/// A POST with these header lines, each with its CRLF, and what follows the head.
fn post(headers: &str, body: &str) -> String {
    format!("POST /p HTTP/1.1\r\nhost: a.example\r\n{headers}\r\n{body}")
}

fn hello(case: Case) -> Case {
    case.forwarded(&[meant("POST", "/p", "hello")])
}

/// `hello` with a Content-Length of these bytes.
fn length(name: &'static str, rule: &'static str, value: &str) -> Case {
    case(name, rule, post(&format!("content-length:{value}\r\n"), "hello"))
}

pub(crate) fn lengths() -> Vec<Case> {
    let smuggled = "0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: a.example\r\n\r\n";
    vec![
        hello(length("a length", "9112 §6.2", " 5")),
        hello(case("chunks", "9112 §7.1", post("transfer-encoding: chunked\r\n", HELLO))),
        case("neither", "9112 §6.3 (7)", post("", "")).forwarded(&[meant("POST", "/p", "")]),
        // §6.1: refuse, or believe the chunks alone and close.
        hello(case(
            "length and chunks",
            "9112 §6.3 (3)",
            post("content-length: 15\r\ntransfer-encoding: chunked\r\n", HELLO),
        ))
        .refused(INVALID),
        hello(case(
            "chunks and length",
            "9112 §6.3 (3)",
            post("transfer-encoding: chunked\r\ncontent-length: 5\r\n", HELLO),
        ))
        .refused(INVALID),
        case(
            "length that covers a request, and chunks",
            "9112 §6.3 (3)",
            post("content-length: 50\r\ntransfer-encoding: chunked\r\n", smuggled),
        )
        .forwarded(&[meant("POST", "/p", "")])
        .refused(INVALID),
        hello(length("length twice, same", "9110 §8.6", " 5\r\ncontent-length: 5")).refused(INVALID),
        length("length twice, other", "9112 §6.3 (5)", " 5\r\ncontent-length: 6").refused(INVALID),
        hello(length("length list, same", "9110 §8.6", " 5, 5")).refused(INVALID),
        length("length list, other", "9112 §6.3 (5)", " 5, 6").refused(INVALID),
        length("length +5", "9110 §8.6", " +5").refused(INVALID),
        length("length -5", "9110 §8.6", " -5").refused(INVALID),
        length("length 5 5", "9110 §8.6", " 5 5").refused(INVALID),
        length("length 0x5", "9110 §8.6", " 0x5").refused(INVALID),
        length("length 5.0", "9110 §8.6", " 5.0").refused(INVALID),
        length("length 5abc", "9110 §8.6", " 5abc").refused(INVALID),
        length("length of commas", "9110 §8.6", " ,").refused(INVALID),
        length("length empty", "9110 §8.6", "").refused(INVALID),
        // 2^64 + 5
        length("length beyond 64 bits", "9110 §8.6", " 18446744073709551621").refused(&[400, 413]),
        length("length with VT", "9110 §5.5", " \x0b5").refused(INVALID),
        length("length with NUL", "9110 §5.5", " 5\0").refused(INVALID),
        hello(length("length 0005", "9110 §8.6", " 0005")),
        hello(length("length between tabs", "9112 §5.1", "\t5\t ")),
        case(
            "length on GET",
            "9112 §6.3 (6)",
            "GET /p HTTP/1.1\r\nhost: a.example\r\ncontent-length: 5\r\n\r\nhello",
        )
        .forwarded(&[meant("GET", "/p", "hello")]),
        case(
            "a request as a body",
            "9112 §6.3 (6)",
            post("content-length: 28\r\n", "GET /s HTTP/1.1\r\nhost: b\r\n\r\n"),
        )
        .forwarded(&[meant("POST", "/p", "GET /s HTTP/1.1\r\nhost: b\r\n\r\n")]),
        case("body too short", "9112 §8", post("content-length: 10\r\n", "hello")).waits(),
        hello(case(
            "garbage after the body",
            "9112 §2.2",
            post("content-length: 5\r\n", "hello\0\x01:\r\n\r\n"),
        )),
    ]
}

/// `hello` in chunks, with a Transfer-Encoding of these bytes.
fn coding(name: &'static str, rule: &'static str, value: &str) -> Case {
    case(name, rule, post(&format!("transfer-encoding:{value}\r\n"), HELLO))
}

pub(crate) fn codings() -> Vec<Case> {
    let old = |headers: &str| format!("POST /p HTTP/1.0\r\nhost: a.example\r\n{headers}\r\n{HELLO}");
    vec![
        hello(coding("CHUNKED", "9112 §7", " CHUNKED")),
        hello(case("tRANSFER-eNCODING", "9110 §5.1", post("tRANSFER-eNCODING: chunked\r\n", HELLO))),
        hello(coding("chunked between tabs", "9112 §5.1", "\tchunked\t")),
        coding("chunked on two lines", "9112 §6.1", " chunked\r\ntransfer-encoding: chunked").refused(CODING),
        coding("chunked, chunked", "9112 §6.1", " chunked, chunked").refused(CODING),
        coding("xchunked", "9112 §6.1", " xchunked").refused(CODING),
        coding("chunkedx", "9112 §6.1", " chunkedx").refused(CODING),
        coding("gzip, chunked", "9112 §6.1", " gzip, chunked").refused(CODING),
        coding("chunked, gzip", "9112 §6.3 (4)", " chunked, gzip").refused(CODING),
        coding("identity", "9112 §6.3 (4)", " identity").refused(CODING),
        coding("identity, chunked", "9112 §6.1", " identity, chunked").refused(CODING),
        coding("identity and chunked", "9112 §6.1", " identity\r\ntransfer-encoding: chunked")
            .refused(CODING),
        coding("coding empty", "9112 §6.3 (4)", "").refused(CODING),
        hello(coding(", chunked", "9110 §5.6.1", " , chunked"))
            .refused(CODING)
            .unlike_peers("§5.6.1.2: a recipient ignores empty elements of a list"),
        hello(coding("chunked,", "9110 §5.6.1", " chunked,")).refused(CODING),
        coding("\"chunked\"", "9112 §7", " \"chunked\"").refused(CODING),
        coding("chunked;q=1", "9112 §7.1", " chunked;q=1").refused(CODING),
        coding("VT chunked", "9110 §5.5", " \x0bchunked").refused(CODING),
        coding("chunked NUL", "9110 §5.5", " chunked\0").refused(CODING),
        coding("chunked CR", "9112 §2.2", " chunked\r\r").refused(CODING),
        case(
            "space before the colon",
            "9112 §5.1",
            post("transfer-encoding : chunked\r\ncontent-length: 5\r\n", HELLO),
        )
        .refused(INVALID),
        // Another header: the length counts, and the chunks' bytes are the body.
        case(
            "transfer_encoding",
            "9110 §5.1",
            post("transfer_encoding: chunked\r\ncontent-length: 15\r\n", HELLO),
        )
        .forwarded(&[meant("POST", "/p", HELLO)]),
        hello(coding("coding folded", "9112 §5.2", "\r\n chunked")).refused(INVALID),
        case(
            "coding in a folded line",
            "9112 §5.2",
            post("x: y\r\n transfer-encoding: chunked\r\ncontent-length: 15\r\n", HELLO),
        )
        .forwarded(&[meant("POST", "/p", HELLO)])
        .refused(INVALID),
        hello(case("HTTP/1.0 in chunks", "9112 §6.1", old("transfer-encoding: chunked\r\n"))).refused(CODING),
        case(
            "HTTP/1.0 in chunks with a length",
            "9112 §6.1",
            old("transfer-encoding: chunked\r\ncontent-length: 15\r\n"),
        )
        .refused(CODING),
    ]
}

/// A body of these chunks.
fn body(name: &'static str, rule: &'static str, chunks: &str) -> Case {
    case(name, rule, post("transfer-encoding: chunked\r\n", chunks))
}

pub(crate) fn chunks() -> Vec<Case> {
    let wide = format!("5;{}\r\nhello\r\n0\r\n\r\n", "e".repeat(1 << 20));
    vec![
        hello(body("two chunks", "9112 §7.1", "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n")),
        body("size 0x5", "9112 §7.1", "0x5\r\nhello\r\n0\r\n\r\n").broken(),
        body("size +5", "9112 §7.1", "+5\r\nhello\r\n0\r\n\r\n").broken(),
        body("size -5", "9112 §7.1", "-5\r\nhello\r\n0\r\n\r\n").broken(),
        body("space before the size", "9112 §7.1", " 5\r\nhello\r\n0\r\n\r\n").broken(),
        // Not in the grammar, and some senders pad: normalised or refused.
        hello(body("space after the size", "9112 §7.1", "5  \r\nhello\r\n0\r\n\r\n")).broken(),
        // 2^64 + 5
        body("size beyond 64 bits", "9112 §7.1", "10000000000000005\r\nhello\r\n0\r\n\r\n").broken(),
        body("size FFFFFFFFFFFFFFFF", "9112 §7.1", "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n").broken().waits(),
        body("size 5g", "9112 §7.1", "5g\r\nhello\r\n0\r\n\r\n").broken(),
        body("size A", "9112 §7.1", "A\r\nhellohello\r\n0\r\n\r\n").forwarded(&[meant(
            "POST",
            "/p",
            "hellohello",
        )]),
        hello(body("size 0005", "9112 §7.1", "0005\r\nhello\r\n0\r\n\r\n")),
        body("size missing", "9112 §7.1", "\r\nhello\r\n0\r\n\r\n").broken(),
        hello(body("extension", "9112 §7.1.1", "5;a=b;c=\"d e\"\r\nhello\r\n0;last\r\n\r\n")),
        body("extension with LF", "9112 §7.1.1", "5;a\nhello\r\n0\r\n\r\n").broken(),
        body("extension with CR", "9112 §7.1.1", "5;a\rb\r\nhello\r\n0\r\n\r\n").broken(),
        body("extension of 1 MiB", "9112 §7.1.1", &wide).broken(),
        body("LF after the size", "9112 §2.2", "5\nhello\r\n0\r\n\r\n").broken(),
        body("CR after the size", "9112 §2.2", "5\rhello\r\n0\r\n\r\n").broken(),
        body("LF after the data", "9112 §2.2", "5\r\nhello\n0\r\n\r\n").broken(),
        body("other bytes after the data", "9112 §7.1", "5\r\nhelloXX0\r\n\r\n").broken(),
        body("data too long", "9112 §7.1", "5\r\nhello!\r\n0\r\n\r\n").broken(),
        body("LF at the end", "9112 §2.2", "5\r\nhello\r\n0\r\n\n").broken(),
        body("no last CRLF", "9112 §7.1", "5\r\nhello\r\n0\r\n").waits(),
        body("no last chunk", "9112 §8", "5\r\nhello\r\n").waits(),
        hello(body("a trailer", "9112 §7.1.2", "5\r\nhello\r\n0\r\nx-t: v\r\n\r\n")),
        // §6.5.1: such fields are not for trailers, and are dropped if not refused.
        hello(body("length as a trailer", "9110 §6.5.1", "5\r\nhello\r\n0\r\ncontent-length: 9\r\n\r\n"))
            .broken()
            .without("content-length"),
        hello(body("host as a trailer", "9110 §6.5.1", "5\r\nhello\r\n0\r\nhost: b.example\r\n\r\n"))
            .broken()
            .with("host", "a.example"),
        body("trailer without a colon", "9112 §7.1.2", "5\r\nhello\r\n0\r\nnothing\r\n\r\n").broken(),
        body("trailer with a space before the colon", "9112 §5.1", "5\r\nhello\r\n0\r\nx : y\r\n\r\n")
            .broken(),
    ]
}
