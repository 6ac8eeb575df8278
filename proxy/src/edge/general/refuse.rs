//! What the proxy answers itself, in HTTP/2: a line of text, or what gRPC understands.

use std::{fmt::Display, time::SystemTime};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};

use super::grpc;

/// A response that is one head, or a head and a body.
pub(super) fn answer(
    status: StatusCode,
    text: &dyn Display,
    head_only: bool,
    is_grpc: bool,
) -> (Response<()>, Option<Bytes>) {
    let mut response = Response::new(());
    let now = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now()));
    if let Ok(now) = now {
        response.headers_mut().insert(header::DATE, now);
    }
    if is_grpc {
        // "Trailers-Only" ("gRPC over HTTP2", Responses).
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        response.headers_mut().extend(trailers(grpc::code(status), text));
        return (response, None);
    }
    *response.status_mut() = status;
    let body = Bytes::from(format!("{text}\n"));
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    fields.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    (response, (!head_only).then_some(body))
}

/// How gRPC is told that a call failed.
pub(super) fn trailers(code: u8, text: &dyn Display) -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    if let Ok(message) = HeaderValue::try_from(grpc::percent_encoded(&text.to_string())) {
        trailers.insert("grpc-message", message);
    }
    trailers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_is_told_in_trailers_only() {
        let (response, body) = answer(StatusCode::NOT_FOUND, &"no route for path /\u{fc}", false, true);
        assert_eq!((response.status().as_u16(), body), (200, None));
        let field = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!((field("grpc-status"), field("content-type")), ("12".into(), "application/grpc".into()));
        assert_eq!(field("grpc-message"), "no route for path /%C3%BC");
    }

    #[test]
    fn others_are_told_in_a_line() {
        let (response, body) = answer(StatusCode::SERVICE_UNAVAILABLE, &"no", false, false);
        assert_eq!((response.status().as_u16(), body.as_deref()), (503, Some(&b"no\n"[..])));
        assert_eq!(response.headers()["content-length"], "3");
        assert_eq!(answer(StatusCode::NOT_FOUND, &"no", true, false).1, None);
    }
}
