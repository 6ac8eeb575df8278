//! Between heads of HTTP/1 and those of the `http` crate, for engines with HTTP/2 on one side. The same
//! fields are left out and added as from HTTP/1 to HTTP/1.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header, request,
    response,
    uri::{Authority, PathAndQuery, Scheme},
};

use super::{
    HeadError,
    edits::{RequestEdits, ResponseEdits},
    field::Field,
    lines::{self, Lines, Set},
    request::{RequestBody, RequestHead},
    response::{self as h1_response, ResponseBody, ResponseHead},
    target::is_host,
};

const FIELD: HeadError = HeadError::bad("a field is not valid");

/// A request for an endpoint that speaks HTTP/2. Host, port and `scheme` are in its URI; a known length is
/// among its fields.
pub(crate) fn to_request(
    head: &RequestHead<'_, '_>,
    scheme: &Scheme,
    edits: &RequestEdits<'_>,
) -> Result<Request<()>, HeadError> {
    const TARGET: HeadError = HeadError::bad("the request target has invalid characters");
    let mut origin = Vec::with_capacity(head.target().len() + 1);
    match edits.target {
        Some(target) => origin.extend_from_slice(target.as_bytes()),
        None => head.write_origin(&mut origin),
    }
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = Some(PathAndQuery::try_from(origin).map_err(|_| TARGET)?);
    let host = edits.host.unwrap_or(head.host());
    if !host.is_empty() {
        // RFC 9113 §8.3.1: the authority, in place of `Host`.
        let authority = Authority::try_from(host).map_err(|_| HeadError::bad("the host is not valid"))?;
        uri.authority = Some(authority);
        uri.scheme = Some(scheme.clone());
    }
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method().as_bytes()).map_err(|_| FIELD)?;
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| TARGET)?;

    let fields = request.headers_mut();
    copy(&head.lines, head.left_out(edits) | head.found(Field::Host), fields)?;
    if let (true, RequestBody::Length(length)) = (head.restates_length(), head.body()) {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    if edits.says_client() {
        let mut chain = Vec::new();
        head.write_forwarded_for(&mut chain, edits.client);
        add(fields, "x-forwarded-for", &chain)?;
    }
    if edits.says_proto() {
        add(fields, "x-forwarded-proto", edits.proto.as_bytes())?;
    }
    add_set(fields, edits.set)?;
    // RFC 9113 §8.2.2: the one value of `te` that HTTP/2 has.
    if edits.te_trailers && head.te_trailers() {
        fields.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    Ok(request)
}

/// A response for a client that speaks HTTP/2. A known length is among its fields.
pub(crate) fn to_response(
    head: &ResponseHead<'_, '_>,
    edits: &ResponseEdits<'_>,
) -> Result<Response<()>, HeadError> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status()).map_err(|_| FIELD.gateway())?;
    let fields = response.headers_mut();
    copy(&head.lines, head.left_out(edits), fields).map_err(HeadError::gateway)?;
    if let Some(length) = head.restated_length() {
        fields.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    add_set(fields, edits.set).map_err(HeadError::gateway)?;
    Ok(response)
}

fn copy(lines: &Lines<'_, '_>, without: Set, fields: &mut HeaderMap) -> Result<(), HeadError> {
    fields.reserve(lines.fields.len());
    for (place, field) in lines.fields.iter().enumerate() {
        if without & (1 << place) == 0 {
            add(fields, field.name, field.value)?;
        }
    }
    Ok(())
}

fn add_set(fields: &mut HeaderMap, set: &[(&str, &str)]) -> Result<(), HeadError> {
    for (name, value) in set.iter().filter(|(name, _)| Field::of(name).is_editable()) {
        add(fields, name, value.as_bytes())?;
    }
    Ok(())
}

fn add(fields: &mut HeaderMap, name: &str, value: &[u8]) -> Result<(), HeadError> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| FIELD)?;
    let value = HeaderValue::from_bytes(value).map_err(|_| FIELD)?;
    fields.try_append(name, value).map(drop).map_err(|_| HeadError::new(431, "too many fields"))
}

/// Appends the head that an endpoint of HTTP/1 gets for a request of HTTP/2, whose `body` is framed as
/// told. Nothing is appended that is not valid; then `out` is as it was.
pub(crate) fn write_request(
    parts: &request::Parts,
    body: RequestBody,
    out: &mut Vec<u8>,
    edits: &RequestEdits<'_>,
) -> Result<(), HeadError> {
    if parts.method == Method::CONNECT {
        return Err(HeadError::new(501, "CONNECT is not supported"));
    }
    let target = match edits.target {
        Some(target) => target,
        None => origin(parts)?,
    };
    let host = match edits.host {
        Some(host) => host,
        None => host(parts)?,
    };
    let expect = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if !parts.headers.get_all(header::EXPECT).iter().all(expect) {
        return Err(HeadError::new(417, "an expectation other than 100-continue")); // RFC 9110 §10.1.1
    }

    out.reserve(512);
    out.extend_from_slice(parts.method.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(target.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
    lines::write_field(out, "host", host.as_bytes());
    for (name, value) in &parts.headers {
        let left_out = match Field::of(name.as_str()) {
            Field::Other => *name == header::COOKIE,
            Field::Expect => edits.drop_expect,
            Field::ForwardedFor => !edits.client.is_empty(),
            Field::ForwardedProto => !edits.proto.is_empty(),
            _ => true, // hop-by-hop, or written anew
        };
        if !left_out && !edits.names(name.as_str()) {
            lines::write_field(out, name.as_str(), value.as_bytes());
        }
    }
    if !edits.names("cookie") {
        // RFC 9113 §8.2.3: crumbs become one field.
        write_joined(out, "cookie", b"; ", values(&parts.headers, &header::COOKIE), None);
    }
    match body {
        RequestBody::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        RequestBody::Length(length) => lines::write_length(out, length),
        RequestBody::None => {}
    }
    if edits.says_client() {
        let chain = values(&parts.headers, &HeaderName::from_static("x-forwarded-for"));
        write_joined(out, "x-forwarded-for", b", ", chain, Some(edits.client));
    }
    if edits.says_proto() {
        lines::write_field(out, "x-forwarded-proto", edits.proto.as_bytes());
    }
    lines::write_set(out, edits.set);
    let mut te = values(&parts.headers, &header::TE).into_iter().flat_map(lines::list);
    if edits.te_trailers && te.any(|element| element.eq_ignore_ascii_case(b"trailers")) {
        out.extend_from_slice(b"connection: te\r\nte: trailers\r\n"); // RFC 9110 §10.1.4
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

fn values<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Vec<&'a [u8]> {
    let values = fields.get_all(name).iter().map(HeaderValue::as_bytes);
    values.filter(|value| !value.is_empty()).collect()
}

fn write_joined(out: &mut Vec<u8>, name: &str, with: &[u8], values: Vec<&[u8]>, last: Option<&str>) {
    let mut values = values.into_iter().chain(last.map(str::as_bytes));
    let Some(first) = values.next() else { return };
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(first);
    for value in values {
        out.extend_from_slice(with);
        out.extend_from_slice(value);
    }
    out.extend_from_slice(b"\r\n");
}

/// The target in origin-form or, for OPTIONS, the asterisk (RFC 9113 §8.3.1).
fn origin(parts: &request::Parts) -> Result<&str, HeadError> {
    let text = parts.uri.path_and_query().map_or("", PathAndQuery::as_str);
    let is_options = parts.method == Method::OPTIONS;
    match text {
        "" if is_options => Ok("*"),
        "" => Ok("/"),
        "*" if is_options => Ok(text),
        // The `http` crate takes more than ASCII; RFC 9112 §3.2 does not.
        _ if text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text),
        _ => Err(HeadError::bad("the request target has invalid characters")),
    }
}

/// The host of a request: `:authority`, else `Host`; both only if they are the same (RFC 9113 §8.3.1).
fn host(parts: &request::Parts) -> Result<&str, HeadError> {
    const INVALID: HeadError = HeadError::bad("the host is not valid");
    let mut fields = parts.headers.get_all(header::HOST).iter();
    let field = fields.next().map(|host| host.to_str().map_err(|_| INVALID)).transpose()?;
    if fields.next().is_some() {
        return Err(HeadError::bad("more than one host"));
    }
    let host = match (parts.uri.authority().map(Authority::as_str), field) {
        (Some(authority), Some(field)) if !authority.eq_ignore_ascii_case(field) => {
            return Err(HeadError::bad("the host is not the authority"));
        }
        (Some(host), _) | (None, Some(host)) => host,
        (None, None) => return Err(HeadError::bad("the request names no host")),
    };
    if is_host(host) { Ok(host) } else { Err(INVALID) }
}

/// Appends the head that a client of HTTP/1 gets for a response of HTTP/2, with a `body` as told.
pub(crate) fn write_response(
    parts: &response::Parts,
    body: ResponseBody,
    out: &mut Vec<u8>,
    edits: &ResponseEdits<'_>,
) {
    out.reserve(512);
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(parts.status.as_str().as_bytes());
    out.push(b' '); // RFC 9112 §4: also without a reason
    out.extend_from_slice(parts.status.canonical_reason().unwrap_or_default().as_bytes());
    out.extend_from_slice(b"\r\n");
    for (name, value) in &parts.headers {
        let field = Field::of(name.as_str());
        let copied = !field.is_hop_by_hop() && field != Field::ContentLength;
        if copied && !lines::is_named(name.as_str(), edits.set, edits.remove) {
            lines::write_field(out, name.as_str(), value.as_bytes());
        }
    }
    // RFC 9110 §8.6: none in 1xx and 204; with HEAD and 304 it is that of the content not sent.
    let silent = parts.status.is_informational() || parts.status == StatusCode::NO_CONTENT;
    match body {
        _ if edits.framing.is_chunked(body) => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        ResponseBody::Length(length) => lines::write_length(out, length),
        ResponseBody::None if !silent => {
            let field = parts.headers.get(header::CONTENT_LENGTH);
            if let Some(length) = field.and_then(|length| lines::decimal(length.as_bytes())) {
                lines::write_length(out, length);
            }
        }
        _ => {}
    }
    lines::write_set(out, edits.set);
    h1_response::write_connection(out, edits.connection, None);
    out.extend_from_slice(b"\r\n");
}
