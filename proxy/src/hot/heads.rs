//! Heads and chunked bodies: read alone, and read and written for the other side.

use crate::edge::h1::{
    self,
    chunked::{Chunked, Next},
    request::{RequestEdits, parse_request},
    response::{ResponseEdits, parse_response},
};

/// What the lean engine changes in every request.
pub(super) fn request_edits() -> RequestEdits<'static> {
    RequestEdits { client: "203.0.113.9", proto: "http", ..RequestEdits::default() }
}

/// What the lean engine changes in every response.
pub(super) fn response_edits() -> ResponseEdits<'static> {
    ResponseEdits::default()
}

/// Reads the head of a request; its length in bytes, `None` when it is refused or not whole.
pub fn parsed_request(bytes: &[u8]) -> Option<usize> {
    let mut slots = h1::slots();
    Some(parse_request(bytes, &mut slots).ok()??.len())
}

/// The same, and writes to `out` what the endpoint gets.
pub fn written_request(bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut slots = h1::slots();
    let head = parse_request(bytes, &mut slots).ok()??;
    out.clear();
    head.write_upstream(out, &request_edits());
    Some(out.len())
}

/// Reads the head of a response to GET; its length in bytes, `None` when it is refused or not whole.
pub fn parsed_response(bytes: &[u8]) -> Option<usize> {
    let mut slots = h1::slots();
    Some(parse_response(bytes, &mut slots, false).ok()??.len())
}

/// The same, and writes to `out` what the client gets.
pub fn written_response(bytes: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let mut slots = h1::slots();
    let head = parse_response(bytes, &mut slots, false).ok()??;
    out.clear();
    head.write_downstream(out, &response_edits());
    Some(out.len())
}

/// Reads a chunked body that came at once; how many of its bytes go on. `None` when it is refused or
/// not whole.
pub fn chunks(mut body: &[u8]) -> Option<usize> {
    let (mut chunked, mut passed) = (Chunked::default(), 0);
    loop {
        let step = chunked.advance(body).ok()?;
        passed += step.pass.len();
        match step.next {
            Next::Again => body = &body[step.consumed..],
            Next::Read => return None,
            Next::End => return Some(passed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_is_measured_is_written_whole() {
        let request = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let mut out = Vec::new();
        assert_eq!(parsed_request(request), Some(request.len()));
        assert_eq!(written_request(request, &mut out), Some(out.len()));
        assert!(out.ends_with(b"x-forwarded-proto: http\r\n\r\n"));
        let response = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(parsed_response(response), Some(response.len()));
        assert_eq!(written_response(response, &mut out), Some(response.len()));
        assert_eq!(parsed_request(b"GET / HTTP/1.1\r\n"), None);
    }

    #[test]
    fn all_of_a_chunked_body_goes_on_but_extensions() {
        assert_eq!(chunks(b"3\r\nabc\r\n2;x\r\nde\r\n0\r\n\r\n"), Some(20));
        assert_eq!(chunks(b"3\r\nab"), None);
    }
}
