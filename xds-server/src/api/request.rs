//! What a request may say: bodies in bounds, queries, preconditions, who asks.

use std::{net::IpAddr, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, HeaderValue, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::{Deserialize, de::DeserializeOwned};

use super::{Api, answer::ApiError, types::WriteAnswer};
use crate::{
    access::{By, Peer, Who},
    registry::Done,
};

/// How large a set of manifests may be, in bytes.
pub(super) const MAX_MANIFEST: usize = 8 << 20;
/// How large any other body may be, in bytes.
pub(super) const MAX_BODY: usize = 64 << 10;
/// How long a body may take to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a write waits for proxies, unless it says otherwise.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
/// The longest it may ask for.
const MAX_WAIT: Duration = Duration::from_mins(5);

/// Refuses what a page of another site sends through somebody's browser: without an access file the API
/// asks nobody who they are, and a browser on this machine reaches loopback, or has a certificate
/// (RFC 6454 §7, `Origin`).
pub(super) async fn no_foreign_page(State(api): State<Api>, request: Request, next: Next) -> Response {
    let knows_who = request.extensions().get::<Who>().is_some_and(Who::is_known);
    if is_foreign(request.headers(), knows_who) {
        let from = request.extensions().get::<Peer>().map(|peer| peer.address.to_string());
        api.access.note(By::Page, format_args!("a page of another site, from {}", from.unwrap_or_default()));
        ApiError::ForeignPage.into_response()
    } else {
        next.run(request).await
    }
}

/// A page of this host is no other site; but while nobody has to say who they are, a host by name may be
/// another site's, whose name leads to this machine for a moment (DNS rebinding).
fn is_foreign(headers: &HeaderMap, knows_who: bool) -> bool {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    text(header::ORIGIN).is_some_and(|origin| {
        let authority = origin.split_once("://").map(|(_, authority)| authority);
        authority.is_none_or(|authority| {
            Some(authority) != text(header::HOST) || !knows_who && !is_of_this_machine(authority)
        })
    })
}

/// Whether a browser that goes to `authority` asks no name server for the way.
fn is_of_this_machine(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host == "localhost" || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
}

/// Who asks: who was admitted, if they had to say; the `x-sluicegate-actor` header, which anybody may
/// write and so comes second; and the address.
pub(super) struct Actor(pub(super) String);

impl<S: Sync> FromRequestParts<S> for Actor {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let peer = parts.extensions.get::<Peer>().map(|peer| peer.address.to_string()).unwrap_or_default();
        let named = parts.headers.get("x-sluicegate-actor").and_then(|value| value.to_str().ok());
        let named = named.map(|name| name.chars().take(128).collect::<String>());
        let admitted = parts.extensions.get::<Who>().filter(|who| **who != Who::Anybody);
        Ok(Self(match (admitted, named) {
            (Some(who), Some(name)) => format!("{who} as {name} ({peer})"),
            (Some(who), None) => format!("{who} ({peer})"),
            (None, Some(name)) => format!("{name} ({peer})"),
            (None, None) => peer,
        }))
    }
}

/// A parameter of the path that parses as `T`.
pub(super) struct Named<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match Path::<T>::from_request_parts(parts, state).await {
            Ok(Path(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(format!("in the path: {}", rejection.body_text()))),
        }
    }
}

/// The query of a write.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteQuery {
    #[serde(default)]
    pub(super) dry_run: bool,
    wait: Option<Wait>,
    timeout: Option<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Wait {
    Applied,
}

/// A query that parses as `T`, unknown parameters refused.
pub(super) struct Queried<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Queried<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        match axum::extract::Query::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Query(value)) => Ok(Self(value)),
            Err(rejection) => Err(ApiError::bad_request(format!("in the query: {}", rejection.body_text()))),
        }
    }
}

impl WriteQuery {
    /// How long to wait for proxies, if at all. Read before the write is done, so that a bad value
    /// changes nothing.
    pub(super) fn waiting(&self) -> Result<Option<Duration>, ApiError> {
        let timeout = match &self.timeout {
            Some(text) => duration("timeout", text)?.min(MAX_WAIT),
            None => DEFAULT_WAIT,
        };
        match (self.wait, &self.timeout) {
            (Some(Wait::Applied), _) => Ok(Some(timeout)),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(ApiError::bad_request("timeout: goes with wait=applied")),
        }
    }
}

/// The answer to a write, after waiting for proxies if that was asked.
pub(super) async fn answer(api: &Api, done: Done, dry_run: bool, waiting: Option<Duration>) -> WriteAnswer {
    let applied = match waiting {
        Some(timeout) if !dry_run => Some(api.fleet.applied(done.revision, timeout).await),
        _ => None,
    };
    WriteAnswer { revision: done.revision, dry_run, changes: done.changes, applied }
}

/// The text of a body of at most `limit` bytes.
pub(super) async fn text(headers: &HeaderMap, body: Body, limit: usize) -> Result<String, ApiError> {
    let bytes = bytes(headers, body, limit).await?;
    String::from_utf8(bytes.into()).map_err(|e| ApiError::bad_request(format!("the body is not UTF-8: {e}")))
}

/// A JSON body of at most `limit` bytes.
pub(super) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limit: usize,
) -> Result<T, ApiError> {
    let bytes = bytes(headers, body, limit).await?;
    serde_json::from_slice(&bytes)
        .map_err(|e| ApiError::bad_request(format!("the body is not as expected: {e}")))
}

async fn bytes(headers: &HeaderMap, body: Body, limit: usize) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::TooLarge(limit));
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge(limit)),
        Ok(Err(error)) => Err(ApiError::bad_request(format!("the body broke off: {error}"))),
        Err(_) => Err(ApiError::Timeout),
    }
}

/// The revision of an `If-Match` header (RFC 9110 §13.1.1); `None` without one or with `*`.
pub(super) fn if_match(headers: &HeaderMap) -> Result<Option<u64>, ApiError> {
    let Some(value) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let value = value.to_str().unwrap_or_default().trim();
    if value == "*" {
        return Ok(None);
    }
    let revision = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).and_then(|v| v.parse().ok());
    revision.map(Some).ok_or_else(|| {
        ApiError::bad_request(
            "If-Match: is not an ETag of this server; send the `revision` that GET shows, in double quotes",
        )
    })
}

/// Refuses `If-Match` where it means nothing: who sends it believes to be safe from other writers.
pub(super) fn no_if_match(headers: &HeaderMap) -> Result<(), ApiError> {
    if !headers.contains_key(header::IF_MATCH) {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "If-Match: is not honoured here, but by PUT of a split and by DELETE of a service, gateway or route; its value is the `revision` that GET shows, in double quotes",
    ))
}

/// A duration such as `10s` or `500ms`.
pub(super) fn duration(field: &str, text: &str) -> Result<Duration, ApiError> {
    humantime::parse_duration(text).map_err(|e| {
        let text: String = text.chars().take(40).collect();
        ApiError::bad_request(format!(
            "{field}: `{text}` is not a duration ({e}); write for example `10s` or `500ms`"
        ))
    })
}
