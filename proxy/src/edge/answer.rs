//! What the proxy answers itself, in HTTP/1.

use std::{fmt::Display, io::Write, time::SystemTime};

use http::StatusCode;

use crate::worker::buffer::Output;

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    Persist,
    /// To a client of HTTP/1.0, which wants to be told.
    Persist10,
    Close,
}

/// An answer of one line of text.
pub(super) fn write(
    status: StatusCode,
    text: &dyn Display,
    head_only: bool,
    persistence: Persistence,
) -> Output {
    let body = format!("{text}\n");
    let connection = match persistence {
        Persistence::Persist => "",
        Persistence::Persist10 => "connection: keep-alive\r\n",
        Persistence::Close => "connection: close\r\n",
    };
    let mut output = Output::new();
    // Writing to memory does not fail. An origin server with a clock says when (RFC 9110 §6.6.1).
    let _ = write!(
        output.bytes(),
        "HTTP/1.1 {} {}\r\ndate: {}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n{connection}\r\n",
        status.as_str(),
        status.canonical_reason().unwrap_or_default(),
        httpdate::fmt_http_date(SystemTime::now()),
        body.len(),
    );
    if !head_only {
        output.bytes().extend_from_slice(body.as_bytes());
    }
    output
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_a_whole_response() {
        let output = write(StatusCode::NOT_FOUND, &"no route", false, Persistence::Close);
        let text = std::str::from_utf8(output.rest()).unwrap();
        assert!(text.starts_with("HTTP/1.1 404 Not Found\r\ndate: "), "{text}");
        assert!(text.ends_with("content-length: 9\r\nconnection: close\r\n\r\nno route\n"), "{text}");
        let head = write(StatusCode::NOT_FOUND, &"no route", true, Persistence::Persist);
        assert!(std::str::from_utf8(head.rest()).unwrap().ends_with("content-length: 9\r\n\r\n"));
    }
}
