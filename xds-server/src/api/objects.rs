//! Services, gateways and routes: reading, removing, shifting.

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse, Response},
};
use config::{
    ClusterName, Endpoint, GatewayName, Health, Lease, Protocol, RouteName, Service, ServiceName, Split,
    manifest::DocumentRef,
};
use serde::Serialize;

use super::{
    Api,
    answer::ApiError,
    request::{Actor, MAX_BODY, Named, Queried, WriteQuery, answer, if_match, json},
    types::{
        EndpointView, ErrorAnswer, Gateways, Routes, ServiceView, Services, SplitBody, UpstreamTlsView,
        VersionView, WriteAnswer,
    },
};
use crate::registry::{
    world::{Entry, World},
    write::{Refusal, Write},
};

/// Lists services with their versions and endpoints.
#[utoipa::path(get, path = "/v1/services", tag = "services", responses((status = 200, body = Services)))]
pub(super) async fn services(State(api): State<Api>) -> Json<Services> {
    let state = api.registry.state();
    let services = state.world.services().map(|entry| view(&state.world, entry)).collect();
    Json(Services { revision: state.snapshot.revision(), services })
}

/// One service; its `ETag` is what `If-Match` takes.
#[utoipa::path(
    get, path = "/v1/services/{service}", tag = "services", params(("service" = String, Path)),
    responses((status = 200, body = ServiceView), (status = 404, body = ErrorAnswer)),
)]
pub(super) async fn service(
    State(api): State<Api>,
    Named(name): Named<ServiceName>,
) -> Result<Response, ApiError> {
    let state = api.registry.state();
    let Some(entry) = state.world.service(&name) else {
        return Err(Refusal::NotFound(format!("there is no service `{name}`")).into());
    };
    let etag = HeaderValue::from_str(&format!("\"{}\"", entry.revision)).ok();
    let mut response = Json(view(&state.world, entry)).into_response();
    if let Some(etag) = etag {
        response.headers_mut().insert(header::ETAG, etag);
    }
    Ok(response)
}

fn view(world: &World, entry: &Entry<Service>) -> ServiceView {
    let service = &entry.value;
    let versions = service.versions.keys().map(|version| {
        let cluster = ClusterName::new(service.name.clone(), version.clone());
        let endpoints = world.endpoints_of(&cluster);
        VersionView {
            name: version.clone(),
            weight: service.split.weights().get(version).copied().unwrap_or(0),
            basis_points: service.split.basis_points(version),
            ready: endpoints.iter().filter(|e| e.health == Health::Ready).count(),
            endpoints: endpoints.iter().map(|endpoint| endpoint_view(endpoint)).collect(),
        }
    });
    let protocol = Protocol::ALL.into_iter().find(|(_, p)| *p == service.protocol);
    let tls = service
        .tls
        .as_ref()
        .map(|tls| UpstreamTlsView { ca: tls.ca.display().to_string(), sni: tls.sni.clone() });
    ServiceView {
        tls,
        name: service.name.clone(),
        protocol: protocol.map_or("", |(word, _)| word).to_owned(),
        revision: entry.revision,
        versions: versions.collect(),
    }
}

fn endpoint_view(endpoint: &Endpoint) -> EndpointView {
    let lease = match endpoint.lease {
        Lease::Static => "manifest".to_owned(),
        Lease::Permanent => "permanent".to_owned(),
        Lease::Connection => "connection".to_owned(),
        Lease::Ttl(ms) => format!("ttl {}", humantime::format_duration(std::time::Duration::from_millis(ms))),
    };
    EndpointView {
        id: endpoint.id.clone(),
        address: endpoint.address.to_string(),
        weight: endpoint.weight,
        zone: endpoint.zone.clone(),
        health: endpoint.health,
        lease,
    }
}

/// Lists gateways.
#[utoipa::path(get, path = "/v1/gateways", tag = "gateways", responses((status = 200, body = Gateways)))]
pub(super) async fn gateways(State(api): State<Api>) -> Json<Gateways> {
    let state = api.registry.state();
    let gateways = state.world.gateways().map(with_revision).collect();
    Json(Gateways { revision: state.snapshot.revision(), gateways })
}

/// Lists routes.
#[utoipa::path(get, path = "/v1/routes", tag = "routes", responses((status = 200, body = Routes)))]
pub(super) async fn routes(State(api): State<Api>) -> Json<Routes> {
    let state = api.registry.state();
    let routes = state.world.routes().map(with_revision).collect();
    Json(Routes { revision: state.snapshot.revision(), routes })
}

fn with_revision<T: Serialize>(entry: &Entry<T>) -> serde_json::Value {
    // The domain types are maps of strings and numbers, which JSON can always say.
    let mut value = serde_json::to_value(&*entry.value).unwrap_or_default();
    value["revision"] = entry.revision.into();
    value
}

/// Divides a service's traffic over its versions.
#[utoipa::path(
    put, path = "/v1/services/{service}/split", tag = "services",
    params(
        ("service" = String, Path),
        ("wait" = Option<String>, Query, description = "`applied`: answer when every connected proxy has it"),
        ("timeout" = Option<String>, Query, description = "How long to wait, `2s` by default"),
        ("If-Match" = Option<String>, Header, description = "The ETag of the service as it was read"),
    ),
    request_body = SplitBody,
    responses((status = 200, body = WriteAnswer), (status = 400, body = ErrorAnswer), (status = 404, body = ErrorAnswer), (status = 412, body = ErrorAnswer)),
)]
pub(super) async fn put_split(
    State(api): State<Api>,
    Named(service): Named<ServiceName>,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WriteAnswer>, ApiError> {
    let (waiting, if_match) = (query.waiting()?, if_match(&headers)?);
    let body: SplitBody = json(&headers, body, MAX_BODY).await?;
    let split = Split::new(body.weights).map_err(|e| ApiError::bad_request(format!("weights: {e}")))?;
    let done = api.registry.write(Write::Split { service, split, if_match }, &actor, query.dry_run).await?;
    Ok(Json(answer(&api, done, query.dry_run, waiting).await))
}

/// Removes a service that no route leads to and no endpoint is registered with.
#[utoipa::path(
    delete, path = "/v1/services/{service}", tag = "services", params(("service" = String, Path)),
    responses((status = 200, body = WriteAnswer), (status = 404, body = ErrorAnswer), (status = 409, body = ErrorAnswer)),
)]
pub(super) async fn delete_service(
    State(api): State<Api>,
    Named(name): Named<ServiceName>,
    actor: Actor,
    query: Queried<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<WriteAnswer>, ApiError> {
    remove(&api, DocumentRef::Service(name), actor, query, &headers).await
}

/// Removes a gateway that no route is attached to.
#[utoipa::path(
    delete, path = "/v1/gateways/{gateway}", tag = "gateways", params(("gateway" = String, Path)),
    responses((status = 200, body = WriteAnswer), (status = 404, body = ErrorAnswer), (status = 409, body = ErrorAnswer)),
)]
pub(super) async fn delete_gateway(
    State(api): State<Api>,
    Named(name): Named<GatewayName>,
    actor: Actor,
    query: Queried<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<WriteAnswer>, ApiError> {
    remove(&api, DocumentRef::Gateway(name), actor, query, &headers).await
}

/// Removes a route.
#[utoipa::path(
    delete, path = "/v1/routes/{route}", tag = "routes", params(("route" = String, Path)),
    responses((status = 200, body = WriteAnswer), (status = 404, body = ErrorAnswer)),
)]
pub(super) async fn delete_route(
    State(api): State<Api>,
    Named(name): Named<RouteName>,
    actor: Actor,
    query: Queried<WriteQuery>,
    headers: HeaderMap,
) -> Result<Json<WriteAnswer>, ApiError> {
    remove(&api, DocumentRef::Route(name), actor, query, &headers).await
}

async fn remove(
    api: &Api,
    object: DocumentRef,
    Actor(actor): Actor,
    Queried(query): Queried<WriteQuery>,
    headers: &HeaderMap,
) -> Result<Json<WriteAnswer>, ApiError> {
    let (waiting, if_match) = (query.waiting()?, if_match(headers)?);
    let done = api.registry.write(Write::Delete { object, if_match }, &actor, query.dry_run).await?;
    Ok(Json(answer(api, done, query.dry_run, waiting).await))
}
