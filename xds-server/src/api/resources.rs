//! xDS resources: putting them as they are, listing them, and where each stands with a proxy.

use axum::{Json, body::Body, extract::State, http::HeaderMap};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use serde::Deserialize;

use super::{
    Api,
    answer::ApiError,
    request::{Actor, Named, Queried, WriteQuery, answer, duration, json, no_if_match},
    resource_types::{
        ProxyResources, ResourceList, ResourcePut, ResourceStatus, ResourceView, ResourcesWrite,
        StreamResources,
    },
    types::{ErrorAnswer, WriteAnswer},
};
use crate::{
    kind::{Kind, View},
    message,
    registry::{
        raw::{MAX_VALUE, Raw, name_fault},
        write::{Refusal, Write},
    },
    resource::Name,
    subscription::view::{Standing, Status},
};

/// How large a write may be, in bytes.
const MAX_WRITE: usize = 8 << 20;
/// How many streams of one proxy are asked.
const MAX_STREAMS: usize = 32;
/// How many resources are listed at once.
const MAX_LISTED: usize = 100_000;

/// Puts resources as they are and removes such, all or nothing.
///
/// They are served beside those compiled from services, whose names they cannot take, in the same order
/// and by the same rules. Values are checked to be messages of their type, where it is known. The same JSON is
/// the same message, and so the same version, on every server.
#[utoipa::path(
    post, path = "/v1/xds/resources", tag = "xds",
    params(
        ("dry_run" = Option<bool>, Query, description = "Only say what would change"),
        ("wait" = Option<String>, Query, description = "`applied`: answer when every connected proxy has it"),
        ("timeout" = Option<String>, Query, description = "How long to wait, `2s` by default"),
    ),
    request_body = ResourcesWrite,
    responses((status = 200, body = WriteAnswer), (status = 400, body = ErrorAnswer), (status = 413, body = ErrorAnswer)),
)]
pub(super) async fn write(
    State(api): State<Api>,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WriteAnswer>, ApiError> {
    let waiting = query.waiting()?;
    no_if_match(&headers)?;
    let request: ResourcesWrite = json(&headers, body, MAX_WRITE).await?;
    if request.put.is_empty() && request.remove.is_empty() {
        return Err(ApiError::bad_request("put, remove: are both empty; name at least one resource"));
    }
    let ResourcesWrite { put, remove } = request;
    // Messages in JSON are work, and before the first their types are read.
    let put = tokio::task::spawn_blocking(move || read_all(put)).await;
    let put = put.map_err(|_| Refusal::Store("resources could not be read".to_owned()))??;
    let remove = remove.into_iter().enumerate().map(|(i, resource)| {
        let kind = Kind::of(&resource.type_url);
        match name_fault(&kind, &resource.name) {
            Some(fault) => Err(ApiError::bad_request(format!("remove[{i}].{fault}"))),
            None => Ok((kind, Name::from(resource.name))),
        }
    });
    let remove = remove.collect::<Result<Vec<(Kind, Name)>, ApiError>>()?;
    let done = api.registry.write(Write::Resources { put, remove }, &actor, query.dry_run).await?;
    Ok(Json(answer(&api, done, query.dry_run, waiting).await))
}

fn read_all(put: Vec<ResourcePut>) -> Result<Vec<Raw>, ApiError> {
    put.into_iter().enumerate().map(|(i, put)| read(i, put)).collect()
}

fn read(i: usize, put: ResourcePut) -> Result<Raw, ApiError> {
    let fault = |fault: String| ApiError::bad_request(format!("put[{i}]{fault}"));
    let value = match (put.value, put.json) {
        (Some(value), None) => {
            Bytes::from(BASE64.decode(value).map_err(|e| fault(format!(".value: is not base64: {e}")))?)
        }
        (None, Some(json)) => {
            let value = message::from_json(&put.type_url, &json).map_err(|e| fault(format!(".json{e}")))?;
            if value.len() > MAX_VALUE {
                return Err(fault(format!(".json: makes a message of more than {MAX_VALUE} bytes")));
            }
            value
        }
        (Some(_), Some(_)) => return Err(fault(": has value and json; a message is in one of them".into())),
        (None, None) => return Err(fault(": has no message; it goes in value or in json".into())),
    };
    let ttl = put.ttl.map(|ttl| duration(&format!("put[{i}].ttl"), &ttl)).transpose()?;
    Ok(Raw { kind: Kind::of(&put.type_url), name: put.name.into(), value, ttl })
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    type_url: Option<String>,
    #[serde(default)]
    raw: bool,
}

/// Lists the resources that are served: names and versions, never their content.
#[utoipa::path(
    get, path = "/v1/xds/resources", tag = "xds",
    params(
        ("type_url" = Option<String>, Query, description = "Only of this type"),
        ("raw" = Option<bool>, Query, description = "Only those that were put as they are"),
    ),
    responses((status = 200, body = ResourceList)),
)]
pub(super) async fn list(
    State(api): State<Api>,
    Queried(query): Queried<ListQuery>,
) -> Result<Json<ResourceList>, ApiError> {
    let state = api.registry.state();
    let wanted = query.type_url.as_deref().map(Kind::of);
    let mut resources = Vec::new();
    let mut truncated = false;
    for (shelf, on) in state.snapshot.shelves() {
        if wanted.as_ref().is_some_and(|kind| *kind != shelf.0) {
            continue;
        }
        for resource in on.values() {
            let raw = state.world.is_raw(&shelf.0, &resource.name);
            if query.raw && !raw {
                continue;
            }
            if resources.len() >= MAX_LISTED {
                truncated = true;
                break;
            }
            resources.push(ResourceView {
                type_url: shelf.0.type_url().to_owned(),
                name: resource.name.to_string(),
                version: if shelf.0 == Kind::Secret { String::new() } else { resource.version.to_string() },
                form: form(shelf.1).to_owned(),
                raw,
            });
        }
    }
    Ok(Json(ResourceList { revision: state.snapshot.revision(), resources, truncated }))
}

fn form(view: View) -> &'static str {
    match view {
        View::Common => "common",
        View::Collections => "collections",
        View::Grpc => "grpc",
    }
}

/// Where every resource stands with a connected proxy.
#[utoipa::path(
    get, path = "/v1/proxies/{node}/resources", tag = "watch", params(("node" = String, Path)),
    responses((status = 200, body = ProxyResources), (status = 404, body = ErrorAnswer)),
)]
pub(super) async fn of_proxy(
    State(api): State<Api>,
    Named(node): Named<String>,
) -> Result<Json<ProxyResources>, ApiError> {
    let handles = api.fleet.streams(|other| other == node);
    let mut streams = Vec::new();
    for stream in handles.iter().take(MAX_STREAMS) {
        if let Some(standings) = stream.standings().await {
            let identity = &stream.identity;
            streams.push(StreamResources {
                peer: identity.peer.map(|peer| peer.to_string()).unwrap_or_default(),
                variant: identity.variant.to_owned(),
                resources: standings.iter().map(status).collect(),
            });
        }
    }
    if streams.is_empty() {
        let node: String = node.chars().take(128).collect();
        let message = format!("no proxy `{node}` is connected; GET /v1/proxies lists those that are");
        return Err(Refusal::NotFound(message).into());
    }
    let revision = api.registry.state().snapshot.revision();
    Ok(Json(ProxyResources { revision, streams }))
}

fn status(standing: &Standing) -> ResourceStatus {
    // A hash of a secret is a way to guess it.
    let secret = standing.kind == Kind::Secret;
    let told = |_: &&_| !secret;
    ResourceStatus {
        r#type: standing.kind.to_string(),
        name: standing.name.to_string(),
        status: match standing.status {
            Status::Synced => "SYNCED",
            Status::NotSent => "NOT_SENT",
            Status::Stale => "STALE",
            Status::Error => "ERROR",
        }
        .to_owned(),
        version: standing.resource.as_ref().filter(told).map(|resource| resource.version.to_string()),
        acknowledged: standing.acknowledged.filter(|_| !secret).map(|version| version.to_string()),
        reason: standing.reason.as_ref().map(ToString::to_string),
    }
}
