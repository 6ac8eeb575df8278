//! Registering instances: for a term, for good, or for as long as a connection lives.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    body::Body,
    extract::State,
    http::{HeaderMap, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use config::{
    ClusterName, Endpoint, EndpointId, Health, Lease, ServiceName, VersionName,
    endpoint::{MAX_ENDPOINT_WEIGHT, check_address},
};
use futures_util::stream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    Api,
    answer::ApiError,
    request::{Actor, MAX_BODY, Named, Queried, WriteQuery, answer, duration, json, no_if_match},
    server::MAX_CONNECTIONS,
    types::{Action, Change, EndpointBody, ErrorAnswer, ErrorBody, WriteAnswer},
};
use crate::{
    lease::Displaced,
    registry::{
        Done, Hold,
        write::{Refusal, Write},
    },
};

/// How often a held registration is written to, so that a peer that vanished is noticed.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How many connections may be held registrations. The others are left for removals and health
/// checks, which have to get through when everybody registers.
const MAX_HOLDS: usize = MAX_CONNECTIONS - 1_024;

/// Places for held registrations.
#[derive(Clone)]
pub(super) struct Holds(Arc<Semaphore>);

impl Default for Holds {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_HOLDS)))
    }
}

impl Holds {
    /// A place, for as long as the permit lives.
    fn take(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        Arc::clone(&self.0).try_acquire_owned().map_err(|_| {
            Refusal::Busy(format!(
                "{MAX_HOLDS} registrations are held open already; register with a ttl, or try again later"
            ))
        })
    }
}

type EndpointPath = (ServiceName, VersionName, EndpointId);

/// Registers an instance, or renews its lease when it is registered just so.
#[utoipa::path(
    put, path = "/v1/services/{service}/versions/{version}/endpoints/{id}", tag = "endpoints",
    params(
        ("service" = String, Path), ("version" = String, Path), ("id" = String, Path),
        ("wait" = Option<String>, Query, description = "`applied`: answer when every connected proxy has it"),
        ("timeout" = Option<String>, Query, description = "How long to wait, `2s` by default"),
    ),
    request_body = EndpointBody,
    responses((status = 200, body = WriteAnswer), (status = 400, body = ErrorAnswer), (status = 404, body = ErrorAnswer)),
)]
pub(super) async fn register(
    State(api): State<Api>,
    Named((service, version, id)): Named<EndpointPath>,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WriteAnswer>, ApiError> {
    let waiting = query.waiting()?;
    no_if_match(&headers)?;
    let body: EndpointBody = json(&headers, body, MAX_BODY).await?;
    let cluster = ClusterName::new(service, version);
    let lease = match &body.ttl {
        Some(text) => Lease::Ttl(ttl(text)?),
        None => Lease::Permanent,
    };
    let endpoint = endpoint(id, body, lease)?;
    let done = if !query.dry_run && api.registry.renew(&cluster, &endpoint).await? {
        api.metrics.renewals.inc();
        renewed(&api, &cluster, &endpoint.id)
    } else {
        api.registry.write(Write::PutEndpoint { cluster, endpoint }, &actor, query.dry_run).await?
    };
    Ok(Json(answer(&api, done, query.dry_run, waiting).await))
}

fn renewed(api: &Api, cluster: &ClusterName, id: &EndpointId) -> Done {
    let change = Change {
        action: Action::Renewed,
        kind: "Endpoint".to_owned(),
        name: format!("{cluster}/{id}"),
        detail: String::new(),
    };
    Done { revision: api.registry.state().snapshot.revision(), changes: vec![change] }
}

/// Removes an instance.
#[utoipa::path(
    delete, path = "/v1/services/{service}/versions/{version}/endpoints/{id}", tag = "endpoints",
    params(
        ("service" = String, Path), ("version" = String, Path), ("id" = String, Path),
        ("wait" = Option<String>, Query, description = "`applied`: answer when every connected proxy has it"),
        ("timeout" = Option<String>, Query, description = "How long to wait, `2s` by default"),
    ),
    responses((status = 200, body = WriteAnswer), (status = 400, body = ErrorAnswer), (status = 404, body = ErrorAnswer)),
)]
pub(super) async fn remove(
    State(api): State<Api>,
    Named((service, version, id)): Named<EndpointPath>,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<WriteAnswer>, ApiError> {
    let waiting = query.waiting()?;
    no_if_match(&headers)?;
    let write = Write::RemoveEndpoint { cluster: ClusterName::new(service, version), id };
    let done = api.registry.write(write, &actor, query.dry_run).await?;
    Ok(Json(answer(&api, done, query.dry_run, waiting).await))
}

/// Registers an instance for as long as this connection lives.
///
/// The response stays open: a line of JSON, then an empty line every second. When the endpoint is
/// deleted or registered by somebody else, it ends with a line that is an error answer saying so.
#[utoipa::path(
    post, path = "/v1/services/{service}/versions/{version}/endpoints/{id}/hold", tag = "endpoints",
    params(("service" = String, Path), ("version" = String, Path), ("id" = String, Path)),
    request_body = EndpointBody,
    responses((status = 200, body = WriteAnswer, content_type = "application/x-ndjson"), (status = 400, body = ErrorAnswer), (status = 404, body = ErrorAnswer), (status = 503, body = ErrorAnswer)),
)]
pub(super) async fn hold(
    State(api): State<Api>,
    Extension(holds): Extension<Holds>,
    Named((service, version, id)): Named<EndpointPath>,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let waiting = query.waiting()?;
    no_if_match(&headers)?;
    let body: EndpointBody = json(&headers, body, MAX_BODY).await?;
    if body.ttl.is_some() || query.dry_run {
        return Err(ApiError::bad_request(
            "ttl and dry_run do not go with hold: the endpoint lives as long as the connection",
        ));
    }
    let endpoint = endpoint(id, body, Lease::Connection)?;
    let place = holds.take()?;
    let (done, hold) = api.registry.hold(ClusterName::new(service, version), endpoint, &actor).await?;
    let answer = answer(&api, done, false, waiting).await;
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    let body = Body::from_stream(heartbeats(line.into(), (hold, place), api.stop.clone()));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], body).into_response())
}

/// The answer, then a line a second for as long as the hold is good. Dropping the stream, as the
/// server does when the connection closes, drops the hold.
fn heartbeats(
    first: Bytes,
    held: (Hold, OwnedSemaphorePermit),
    stop: CancellationToken,
) -> impl stream::Stream<Item = Result<Bytes, Infallible>> {
    stream::unfold((Some(first), Some(held), stop), |(first, held, stop)| async move {
        let (mut hold, place) = held?;
        if let Some(line) = first {
            return Some((Ok(line), (None, Some((hold, place)), stop)));
        }
        tokio::select! {
            () = tokio::time::sleep(HEARTBEAT) => {
                Some((Ok(Bytes::from_static(b"\n")), (None, Some((hold, place)), stop)))
            }
            why = hold.displaced() => Some((Ok(farewell(&hold.name(), why)), (None, None, stop))),
            () = stop.cancelled() => None,
        }
    })
}

/// The last line of a hold that is over though its connection is not.
fn farewell(name: &str, why: Displaced) -> Bytes {
    let (code, message) = match why {
        Displaced::Replaced => (
            "conflict",
            format!("{name} was registered again by somebody else; give each instance its own id"),
        ),
        Displaced::Deleted => ("not_found", format!("{name} was deleted")),
    };
    let error = ErrorBody { code: code.to_owned(), message, details: Vec::new() };
    let mut line = serde_json::to_vec(&ErrorAnswer { error }).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn endpoint(id: EndpointId, body: EndpointBody, lease: Lease) -> Result<Endpoint, ApiError> {
    let address: std::net::SocketAddr = body.address.parse().map_err(|_| {
        let shown: String = body.address.chars().take(80).collect();
        ApiError::bad_request(format!(
            "address: `{shown}` is not an address; write an IP address and a port, for example `127.0.0.1:9001`"
        ))
    })?;
    check_address(address).map_err(|why| ApiError::bad_request(format!("address: {why}")))?;
    let weight = body.weight.unwrap_or(1);
    if !(1..=MAX_ENDPOINT_WEIGHT).contains(&weight) {
        return Err(ApiError::bad_request(format!(
            "weight: is {weight}; allowed: 1 to {MAX_ENDPOINT_WEIGHT}"
        )));
    }
    Ok(Endpoint { id, address, weight, zone: body.zone, health: Health::Ready, lease })
}

/// A time to live in ms.
fn ttl(text: &str) -> Result<u64, ApiError> {
    let ttl = duration("ttl", text)?;
    if !(Lease::MIN_TTL..=Lease::MAX_TTL).contains(&ttl) {
        return Err(ApiError::bad_request(format!("ttl: `{text}` is out of bounds; allowed: 100ms to 24h")));
    }
    Ok(ttl.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_leave_connections_for_everybody_else() {
        let holds = Holds::default();
        let mut places: Vec<_> = (0..MAX_HOLDS).map(|_| holds.take().unwrap()).collect();
        assert!(matches!(holds.take(), Err(Refusal::Busy(_))));
        places.pop();
        assert!(holds.take().is_ok());
    }
}
