//! Chunked bodies: whole, in pieces, and wrong.

use crate::edge::h1::chunked::{ChunkError, Chunked, Next, trailers};

/// What came of a body, and how many of the bytes were its.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    passed: String,
    trailers: Vec<(String, String)>,
    /// `None` when it is not over.
    len: Option<usize>,
}

/// Reads pieces as an engine does: what is not consumed comes again with the next piece.
fn read(pieces: &[&[u8]], framed: bool) -> Result<Read, ChunkError> {
    let mut chunked = Chunked::default();
    let (mut kept, mut passed, mut consumed) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        kept.extend_from_slice(piece);
        loop {
            let step = if framed { chunked.advance(&kept)? } else { chunked.advance_data(&kept)? };
            assert!(step.pass.end <= step.consumed && step.consumed <= kept.len(), "{step:?}");
            assert!(step.next != Next::Again || step.consumed > 0, "it moves: {step:?}");
            passed.extend_from_slice(&kept[step.pass.clone()]);
            consumed += step.consumed;
            if step.next == Next::End {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let fields = trailers(&kept[step.trailers.clone()]);
                let trailers = fields.map(|(name, value)| (name.to_owned(), text(value))).collect();
                return Ok(Read { passed: text(&passed), trailers, len: Some(consumed) });
            }
            kept.drain(..step.consumed);
            if step.next == Next::Read {
                break;
            }
        }
    }
    Ok(Read { passed: String::from_utf8_lossy(&passed).into_owned(), trailers: Vec::new(), len: None })
}

fn framed(body: &str) -> Result<Read, ChunkError> {
    read(&[body.as_bytes()], true)
}

#[test]
fn canonical_chunks_go_on_in_one_piece() {
    let body = "5\r\nhello\r\n00A\r\n0123456789\r\n0\r\n\r\nGET / ";
    let mut chunked = Chunked::default();
    let step = chunked.advance(body.as_bytes()).unwrap();
    assert_eq!((step.pass, step.consumed, step.next), (0..body.len() - 6, body.len() - 6, Next::End));
    let after = chunked.advance(b"GET / ").unwrap();
    assert_eq!((after.consumed, after.next), (0, Next::End));
    assert!(size_of::<Chunked>() <= 16);
}

#[test]
fn only_data_goes_on_to_a_recipient_of_another_framing() {
    let body = "5;a=b\r\nhello\r\n1 \t; c\r\n!\r\n0\r\nDigest: x \r\nB:\r\n\r\n";
    let read = read(&[body.as_bytes()], false).unwrap();
    assert_eq!(read.passed, "hello!");
    assert_eq!(read.trailers, [("Digest".into(), "x".into()), ("B".into(), String::new())]);
    assert_eq!(read.len, Some(body.len()));
}

#[test]
fn extensions_are_taken_out_and_trailers_stay() {
    let body = "5;a=\"b;\"\r\nhello\r\n1\t ;c\r\n!\r\n0;x\r\nDigest: x\r\n\r\n";
    let read = framed(body).unwrap();
    assert_eq!(read.passed, "5\r\nhello\r\n1\r\n!\r\n0\r\nDigest: x\r\n\r\n");
    assert_eq!(read.trailers, [("Digest".into(), "x".into())]);
}

#[test]
fn what_is_not_clearly_chunked_is_refused() {
    let long = format!("5;{}\r\n", "a".repeat(255));
    let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(65));
    let large = format!("0\r\na: {}\r\n\r\n", "b".repeat(8 * 1024));
    for (body, why) in [
        ("\r\n", "no size"),
        (";a\r\n", "only an extension"),
        ("g\r\n", "no hexadecimal digit"),
        ("-1\r\n", "a sign"),
        ("+1\r\n", "a plus"),
        ("0x1\r\n", "a prefix"),
        (" 1\r\n", "a space before"),
        ("1 \r\n", "a space after, and no extension"),
        ("1 1\r\n", "two sizes"),
        ("00000000000000001\r\n", "17 digits"),
        ("5\nhello\r\n", "bare LF after the size"),
        ("5\rhello\r\n", "bare CR after the size"),
        ("5\r\r\nhello\r\n", "CR CR LF after the size"),
        ("5;a\nhello\r\n", "bare LF in an extension"),
        ("5;a\rb\r\nhello\r\n", "bare CR in an extension"),
        ("5;\0\r\nhello\r\n", "NUL in an extension"),
        ("5\r\nhello\n", "bare LF after the data"),
        ("5\r\nhello!", "more data than the size"),
        ("5\r\nhell\r\n0\r\n", "less data than the size"),
        (long.as_str(), "a long line"),
        ("0\r\n\n", "bare LF at the end"),
        ("0\r\n\rX", "bare CR at the end"),
        ("0\r\na: b\n\r\n\r\n", "bare LF after a trailer"),
        ("0\r\na: b\n\n: c\r\n\r\n", "an empty line of bare LFs"),
        ("0\r\na: b\nc: d\r\n\r\n", "bare LF between trailers"),
        ("0\r\na: b\rc\r\n\r\n", "bare CR in a trailer"),
        ("0\r\na: b\r\n c\r\n\r\n", "a folded trailer"),
        ("0\r\n a: b\r\n\r\n", "a space before a trailer"),
        ("0\r\na : b\r\n\r\n", "a space before the colon"),
        ("0\r\na: \0\r\n\r\n", "NUL in a trailer"),
        ("0\r\nno colon\r\n\r\n", "a trailer without colon"),
        (many.as_str(), "many trailers"),
        (large.as_str(), "large trailers"),
    ] {
        assert!(framed(body).is_err(), "{why}: {:?}", framed(body));
        // The same byte by byte, and for data.
        let bytes: Vec<&[u8]> = body.as_bytes().chunks(1).collect();
        assert!(read(&bytes, true).is_err() && read(&bytes, false).is_err(), "{why}");
    }
}

#[test]
fn fields_that_frame_route_or_vouch_are_not_trailers() {
    for name in [
        "Content-Length",
        "transfer-encoding",
        "Host",
        "connection",
        "te",
        "Trailer",
        "upgrade",
        "expect",
        "Cookie",
        "authorization",
        "content-type",
        "X-Forwarded-For",
        "keep-alive",
        "proxy-authorization",
        "set-cookie",
    ] {
        assert!(framed(&format!("0\r\n{name}: 1\r\n\r\n")).is_err(), "{name}");
    }
    for name in ["grpc-status", "Digest", "server-timing", "etag"] {
        assert!(framed(&format!("0\r\n{name}: 1\r\n\r\n")).is_ok(), "{name}");
    }
}

#[test]
fn sizes_have_up_to_63_bits() {
    let mut chunked = Chunked::default();
    let step = chunked.advance(b"7fffffffffffffff\r\nabc").unwrap();
    assert_eq!((step.pass, step.next), (0..21, Next::Read));
    assert!(framed("8000000000000000\r\n").is_err());
}

/// A body with chunks, extensions and trailers by chance; rarely with a byte of it wrong.
fn body(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..rng.usize(0..6) {
        let mut data = vec![0; rng.usize(1..40)];
        rng.fill(&mut data);
        let extension = ["", "", ";a=b", " ;c", "\t; d=\"e\""][rng.usize(0..5)];
        let size = if rng.bool() { format!("{:x}", data.len()) } else { format!("{:04X}", data.len()) };
        body.extend_from_slice(format!("{size}{extension}\r\n").as_bytes());
        body.extend_from_slice(&data);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(["0\r\n", "000\r\n", "0;x\r\n"][rng.usize(0..3)].as_bytes());
    for _ in 0..rng.usize(0..3) {
        body.extend_from_slice(b"X-Sum: abc\r\n");
    }
    body.extend_from_slice(b"\r\n");
    if rng.u8(0..4) == 0 {
        let at = rng.usize(0..body.len());
        body[at] = *rng.choice(b"\r\n\0 ;0fg:").unwrap();
    }
    body.extend_from_slice(b"the next request"); // not of the body
    body
}

#[test]
fn pieces_read_as_the_whole_does() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut over = 0;
    for round in 0..20_000 {
        let body = body(&mut rng);
        for framed in [true, false] {
            let whole = read(&[&body], framed);
            let mut pieces: Vec<&[u8]> = Vec::new();
            let mut rest = &body[..];
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(rng.usize(0..=rest.len().min(12)));
                pieces.push(piece);
                rest = after;
            }
            let split = read(&pieces, framed);
            // Which rule it was that a wrong body broke first may depend on what had come.
            assert_eq!(whole.is_err(), split.is_err(), "round {round}: {:?}", String::from_utf8_lossy(&body));
            if let (Ok(whole), Ok(split)) = (whole, split) {
                assert_eq!(whole, split, "round {round}: {:?}", String::from_utf8_lossy(&body));
                over += usize::from(whole.len.is_some());
            }
        }
    }
    assert!(over > 20_000, "most bodies are valid: {over}");
}

#[test]
fn what_goes_on_is_a_body_with_the_same_data() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let body = body(&mut rng);
        let mut chunked = Chunked::default();
        let (mut rest, mut passed) = (&body[..], Vec::new());
        let over = loop {
            let Ok(step) = chunked.advance(rest) else { break false };
            passed.extend_from_slice(&rest[step.pass]);
            rest = &rest[step.consumed..];
            match step.next {
                Next::Again => {}
                Next::Read => break false,
                Next::End => break true,
            }
        };
        if over {
            let again = Chunked::default().advance(&passed).unwrap();
            assert_eq!((again.pass, again.next), (0..passed.len(), Next::End), "nothing is left to take out");
            assert_eq!(read(&[&passed], false).unwrap().passed, read(&[&body], false).unwrap().passed);
        }
    }
}
