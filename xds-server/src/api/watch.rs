//! Seeing what goes on: proxies, the timeline, health and metrics.

use std::{convert::Infallible, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream::{self, Stream};
use serde::Deserialize;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{
    Api,
    answer::ApiError,
    request::Queried,
    types::{Event, Events, Proxies},
};
use crate::timeline;

/// Lists connected proxies and other xDS clients.
#[utoipa::path(get, path = "/v1/proxies", tag = "watch", responses((status = 200, body = Proxies)))]
pub(super) async fn proxies(State(api): State<Api>) -> Json<Proxies> {
    let revision = api.registry.state().snapshot.revision();
    Json(Proxies { revision, proxies: api.fleet.view(revision) })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    #[serde(default)]
    follow: bool,
    since: Option<u64>,
}

/// The timeline: who changed what, when, and when every proxy had it.
#[utoipa::path(
    get, path = "/v1/events", tag = "watch",
    params(
        ("follow" = Option<bool>, Query, description = "Go on with what happens from now on, one event a line"),
        ("since" = Option<u64>, Query, description = "Only what is about a later revision"),
    ),
    responses((status = 200, body = Events)),
)]
pub(super) async fn events(
    State(api): State<Api>,
    Queried(query): Queried<EventsQuery>,
) -> Result<Response, ApiError> {
    let wanted = |event: &Arc<Event>| query.since.is_none_or(|since| event.revision > since);
    if !query.follow {
        let events = api.timeline.events().iter().filter(|e| wanted(e)).map(|e| (**e).clone()).collect();
        return Ok(Json(Events { events }).into_response());
    }
    let (past, following) = api.timeline.follow();
    let past = match query.since {
        Some(_) => past.into_iter().filter(wanted).collect(),
        None => Vec::new(),
    };
    let body = Body::from_stream(lines(past, following, api.stop.clone()));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// One event a line: what was, then what comes.
fn lines(
    past: Vec<Arc<Event>>,
    following: Receiver<Arc<Event>>,
    stop: CancellationToken,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((past.into_iter(), following, stop), |(mut past, mut following, stop)| async move {
        if let Some(event) = past.next() {
            return Some((Ok(line(&event)), (past, following, stop)));
        }
        let event = tokio::select! {
            received = following.recv() => match received {
                Ok(event) => event,
                Err(RecvError::Lagged(n)) => {
                    let detail = format!("{n} events were missed; the reader was too slow");
                    Arc::new(timeline::event("lost", 0, "", String::new(), detail))
                }
                Err(RecvError::Closed) => return None,
            },
            () = stop.cancelled() => return None,
        };
        Some((Ok(line(&event)), (past, following, stop)))
    })
}

fn line(event: &Event) -> Bytes {
    let mut line = serde_json::to_vec(event).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

/// Whether the process is alive.
#[utoipa::path(get, path = "/healthz", tag = "health", responses((status = 200, body = String)))]
pub(super) async fn healthz() -> &'static str {
    "ok\n"
}

/// Whether it can be written to. It is loaded before it listens, so what is left is the store: while
/// that refuses commits, reads and xDS go on.
#[utoipa::path(
    get, path = "/readyz", tag = "health",
    responses((status = 200, body = String), (status = 503, body = String)),
)]
pub(super) async fn readyz(State(api): State<Api>) -> (StatusCode, String) {
    let refused = || "the store refused the last commit; the log says why".to_owned();
    let failing = || (api.metrics.store_failing.get() != 0).then(refused);
    match api.registry.trouble().or_else(failing) {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

/// Counters in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", tag = "health", responses((status = 200, body = String)))]
pub(super) async fn metrics(State(api): State<Api>) -> Response {
    let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, content_type)], api.metrics.render()).into_response()
}
