//! What is understood of the head of a request that came by HTTP/2, and what an endpoint of HTTP/2 gets
//! of it. `h2` has refused fields of connections and malformed pseudo-fields (RFC 9113 §8.2, §8.3).

use http::{
    HeaderName, HeaderValue, Method, Uri,
    header::{CONTENT_LENGTH, EXPECT, HOST},
    request::Parts,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::super::h1::{HeadError, request::RequestBody};

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

const BAD_HOST: HeadError = HeadError::bad("the host is not valid");

/// The host a request is for; checks the target along the way.
pub(super) fn host(parts: &Parts) -> Result<&str, HeadError> {
    if parts.method == Method::CONNECT {
        // RFC 9110 §15.5.6; also the extended one (RFC 8441), which is not offered.
        return Err(HeadError { status: 405, reason: "CONNECT is not supported" });
    }
    let target = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let is_path = target.starts_with('/') && target.bytes().all(|byte| byte.is_ascii_graphic());
    let is_server = parts.method == Method::OPTIONS && matches!(target, "" | "*");
    if !is_path && !is_server {
        return Err(HeadError::bad("the path is not valid"));
    }
    let mut fields = parts.headers.get_all(HOST).iter();
    let field = fields.next().map(|host| host.to_str().map_err(|_| BAD_HOST)).transpose()?;
    if fields.next().is_some() {
        return Err(HeadError::bad("more than one host"));
    }
    // RFC 9113 §8.3.1: both only if they are the same.
    let host = match (parts.uri.authority().map(Authority::as_str), field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            return Err(HeadError::bad("the host is not the authority"));
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err(HeadError::bad("the request names no host")),
    };
    // §8.3.1: without user information.
    if host.is_empty() || host.contains('@') { Err(BAD_HOST) } else { Ok(host) }
}

/// Whether the client waits to be asked for the body (RFC 9110 §10.1.1).
pub(super) fn expects_continue(parts: &Parts) -> bool {
    let mut expectations = parts.headers.get_all(EXPECT).iter().filter_map(|value| value.to_str().ok());
    expectations.any(|value| value.split(',').any(|one| one.trim().eq_ignore_ascii_case("100-continue")))
}

/// How the body is framed in HTTP/1. Its length is checked by `h2`.
pub(super) fn body(parts: &Parts, ends: bool) -> RequestBody {
    let length = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    match length {
        Some(length) if !ends || length == 0 => RequestBody::Length(length),
        _ if !ends => RequestBody::Chunked,
        // RFC 9110 §8.6: where content is usual, its absence is said.
        _ if matches!(parts.method, Method::POST | Method::PUT | Method::PATCH) => RequestBody::Length(0),
        _ => RequestBody::None,
    }
}

/// Makes it the head that an endpoint of HTTP/2 gets.
///
/// # Errors
/// When its host is not one.
pub(super) fn edit(parts: &mut Parts, client: &str, proto: &'static str) -> Result<(), HeadError> {
    let host = parts.headers.remove(HOST);
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    if let (None, Some(host)) = (&uri.authority, host) {
        // RFC 9113 §8.3.1: an intermediary makes one of the other.
        uri.authority = Some(Authority::try_from(host.as_bytes()).map_err(|_| BAD_HOST)?);
    }
    // What the client says of its connection is not what it is, or it is of no use.
    uri.scheme = Some(if proto == "https" { Scheme::HTTPS } else { Scheme::HTTP });
    parts.uri = Uri::from_parts(uri).map_err(|_| BAD_HOST)?;
    // The body is sent without being asked for.
    parts.headers.remove(EXPECT);
    let mut chain = Vec::new();
    for value in parts.headers.get_all(FORWARDED_FOR).iter().filter(|value| !value.is_empty()) {
        chain.extend_from_slice(value.as_bytes());
        chain.extend_from_slice(b", ");
    }
    chain.extend_from_slice(client.as_bytes());
    if let Ok(chain) = HeaderValue::from_maybe_shared(bytes::Bytes::from(chain)) {
        parts.headers.insert(FORWARDED_FOR, chain);
    }
    parts.headers.insert(FORWARDED_PROTO, HeaderValue::from_static(proto));
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(method: &str, uri: &str, fields: &[(&'static str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn the_host_is_the_authority_or_the_field_and_not_two_things() {
        for (method, uri, fields, expected) in [
            ("GET", "http://a.com/x", &[][..], Ok("a.com")),
            ("GET", "http://a.com/x", &[("host", "A.com")], Ok("a.com")),
            ("GET", "/x", &[("host", "b.com:8080")], Ok("b.com:8080")),
            ("OPTIONS", "*", &[("host", "b.com")], Ok("b.com")),
            ("GET", "*", &[("host", "b.com")], Err(400)),
            ("GET", "http://a.com/x", &[("host", "b.com")], Err(400)),
            ("GET", "http://u:p@a.com/x", &[], Err(400)),
            ("GET", "/x", &[("host", "a.com"), ("host", "a.com")], Err(400)),
            ("GET", "/x", &[], Err(400)),
            ("CONNECT", "a.com:443", &[], Err(405)),
        ] {
            let parts = parts(method, uri, fields);
            assert_eq!(host(&parts).map_err(|error| error.status), expected, "{method} {uri} {fields:?}");
        }
    }

    #[test]
    fn a_body_has_its_length_or_is_chunked() {
        for (method, length, ends, expected) in [
            ("GET", None, true, RequestBody::None),
            ("POST", None, true, RequestBody::Length(0)),
            ("POST", None, false, RequestBody::Chunked),
            ("POST", Some("7"), false, RequestBody::Length(7)),
            ("GET", Some("0"), true, RequestBody::Length(0)),
        ] {
            let fields: Vec<_> = length.map(|length| ("content-length", length)).into_iter().collect();
            assert_eq!(body(&parts(method, "http://a/", &fields), ends), expected, "{method} {length:?}");
        }
    }

    #[test]
    fn an_endpoint_learns_who_asked() {
        let mut parts = parts(
            "GET",
            "http://a.com/",
            &[("host", "a.com"), ("x-forwarded-for", "10.0.0.1"), ("x-forwarded-proto", "gopher")],
        );
        edit(&mut parts, "10.0.0.2", "https").unwrap();
        assert_eq!(parts.headers["x-forwarded-for"], "10.0.0.1, 10.0.0.2");
        assert_eq!(parts.headers["x-forwarded-proto"], "https");
        assert!(!parts.headers.contains_key(HOST));

        let mut parts = self::parts("GET", "/x?y", &[("host", "a.com")]);
        edit(&mut parts, "10.0.0.2", "http").unwrap();
        assert_eq!(parts.uri, "http://a.com/x?y");
    }

    #[test]
    fn the_scheme_is_that_of_the_connection() {
        for (method, uri, proto, expected) in [
            ("GET", "https://a.com/x", "http", "http://a.com/x"),
            ("GET", "gopher://a.com/x", "https", "https://a.com/x"),
            ("GET", "http://a.com/", "http", "http://a.com/"),
        ] {
            let mut parts = parts(method, uri, &[]);
            edit(&mut parts, "10.0.0.2", proto).unwrap();
            assert_eq!(parts.uri, expected);
        }
        // As `h2` takes the server as a whole apart.
        for (authority, host) in [(Some("a.com"), None), (None, Some(("host", "a.com")))] {
            let mut parts = parts("OPTIONS", "*", host.as_slice());
            let mut uri = std::mem::take(&mut parts.uri).into_parts();
            uri.authority = authority.map(|authority| authority.parse().unwrap());
            uri.scheme = authority.map(|_| "x".parse().unwrap());
            parts.uri = Uri::from_parts(uri).unwrap();
            edit(&mut parts, "10.0.0.2", "https").unwrap();
            let uri = parts.uri.into_parts();
            assert_eq!((uri.scheme, uri.authority.unwrap().as_str()), (Some(Scheme::HTTPS), "a.com"));
            assert_eq!(uri.path_and_query.unwrap().as_str(), "*");
        }
    }

    #[test]
    fn the_expectation_is_one_of_a_list() {
        for (value, expected) in [("100-Continue", true), ("a, 100-continue", true), ("100", false)] {
            let parts = parts("POST", "http://a/", &[("expect", value)]);
            assert_eq!(expects_continue(&parts), expected, "{value}");
        }
    }
}
