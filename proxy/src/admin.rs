//! The admin interface: what the proxy knows and does, as text and JSON. It only reads.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use config::{
    Health,
    xds::{
        ResourceType,
        assignment::{AssignedEndpoint, decode_assignment},
        cluster::decode_cluster,
        leds::decode_member,
        listener::decode_listener,
        route::{PathRule, RouteConfig, decode_route_config},
        secret::decode_secret,
    },
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    load::{EndpointLoad, now_micros},
    metrics,
    shared::{ListenerView, Shared},
};

/// The paths of the interface.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/metrics", get(metrics_text))
        .route("/config_dump", get(config_dump))
        .route("/clusters", get(clusters))
        .route("/listeners", get(listeners))
        .route("/certificates", get(certificates))
        .route("/readyz", get(readyz))
        .route("/healthz", get(async || "ok\n"))
        .with_state(shared)
}

async fn metrics_text(State(shared): State<Arc<Shared>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match metrics::encode(&shared) {
        Ok(text) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn readyz(State(shared): State<Arc<Shared>>) -> (StatusCode, String) {
    match &shared.configuration.load().not_ready {
        None => (StatusCode::OK, "ready\n".to_owned()),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

async fn listeners(State(shared): State<Arc<Shared>>) -> Json<Vec<ListenerView>> {
    Json(Vec::clone(&shared.listeners.load()))
}

/// What listeners show to clients, and whom endpoints are verified by.
async fn certificates(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let tls = &shared.live.tls;
    Json(json!({"certificates": tls.certificates(), "authorities": tls.authorities()}))
}

#[derive(Serialize)]
struct ClusterView {
    name: String,
    service: String,
    version: String,
    protocol: &'static str,
    ready: usize,
    in_flight: u32,
    concurrency_seconds: f64,
    endpoints: Vec<EndpointView>,
}

#[derive(Serialize)]
struct EndpointView {
    id: String,
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    weight: u32,
    state: &'static str,
    in_flight: u32,
    requests: u64,
    concurrency_seconds: f64,
}

/// Endpoints in the table, and those that left and still have requests in flight (`removed`).
async fn clusters(State(shared): State<Arc<Shared>>) -> Json<Vec<ClusterView>> {
    let table = shared.live.load();
    let now = now_micros();
    let endpoint = |load: &EndpointLoad, zone: &str, weight, state| EndpointView {
        id: load.id.to_string(),
        address: load.address.to_string(),
        zone: (!zone.is_empty()).then(|| zone.to_owned()),
        weight,
        state,
        in_flight: load.concurrency.in_flight(),
        requests: load.requests.load(Ordering::Relaxed),
        concurrency_seconds: load.concurrency.integral(now) as f64 / 1e6,
    };
    let mut leaving: HashMap<Arc<str>, Vec<EndpointView>> = HashMap::new();
    for (cluster, load) in shared.live.records.leaving() {
        leaving.entry(cluster).or_default().push(endpoint(&load, "", 0, "removed"));
    }
    // Versions that left the table and still have requests in flight are shown too.
    let mut views = BTreeMap::new();
    for (name, load) in shared.live.records.versions() {
        let cluster = table.clusters.get(&name);
        let mut listed: Vec<_> = cluster.iter().flat_map(|c| c.endpoints.iter()).collect();
        listed.sort_unstable_by_key(|e| e.load.address);
        let mut endpoints: Vec<_> =
            listed.into_iter().map(|e| endpoint(&e.load, &e.zone, e.weight, state(e.health))).collect();
        endpoints.extend(leaving.remove(&name).unwrap_or_default());
        let view = ClusterView {
            name: name.to_string(),
            service: load.service.to_string(),
            version: load.version.to_string(),
            protocol: if cluster.is_some_and(|c| c.config.http2) { "http2" } else { "http1" },
            ready: cluster.map_or(0, |c| c.ready()),
            in_flight: load.concurrency.in_flight(),
            concurrency_seconds: load.concurrency.integral(now) as f64 / 1e6,
            endpoints,
        };
        views.insert(name, view);
    }
    Json(views.into_values().collect())
}

fn state(health: Health) -> &'static str {
    match health {
        Health::Ready => "ready",
        Health::Starting => "starting",
        Health::Draining => "draining",
        Health::Unhealthy => "unhealthy",
    }
}

/// What is held of each type with its version, and what is not live yet.
async fn config_dump(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let view = shared.configuration.load_full();
    let table = shared.live.load_full();
    let mut dump = serde_json::Map::new();
    for (kind, held) in ResourceType::ALL.into_iter().zip(&view.held) {
        let sorted: BTreeMap<&Arc<str>, _> = held.iter().collect();
        let resources: Vec<Value> = sorted
            .into_iter()
            .map(|(name, held)| match kind {
                // Whom it is for, and no hash to guess it by.
                ResourceType::Secret => json!({"name": &**name, "resource": readable(kind, name, &held.value)}),
                _ => json!({"name": &**name, "version": &*held.version, "resource": readable(kind, name, &held.value)}),
            })
            .collect();
        dump.insert(kind.short().to_lowercase(), resources.into());
    }
    Json(json!({
        "resources": dump,
        "live": {
            "sequence": table.sequence,
            "routes": table.routes.keys().map(|name| &**name).collect::<Vec<_>>(),
            "clusters": table.clusters.len(),
            "listeners": &**shared.listeners.load(),
        },
        "waiting": view.waiting,
        "listener_errors": view.listener_errors,
        "server": view.server,
        "on_last_good": shared.xds.on_last_good.load(Ordering::Relaxed),
    }))
}

/// A resource as the proxy understands it.
fn readable(kind: ResourceType, name: &str, value: &[u8]) -> Value {
    let endpoint = |e: &AssignedEndpoint| {
        json!({
            "id": e.id, "address": e.address, "weight": e.weight, "zone": e.zone,
            "state": state(e.health),
        })
    };
    let read = match kind {
        ResourceType::Cluster => decode_cluster(value).map(|c| {
            json!({
                "assignment": c.assignment,
                "http2": c.http2,
                "connect_timeout_ms": c.connect_timeout.as_millis() as u64,
            })
        }),
        ResourceType::LoadAssignment => decode_assignment(value).map(|a| {
            json!({
                "endpoints": a.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
                "collections": a.collections.iter().map(|c| &c.name).collect::<Vec<_>>(),
            })
        }),
        ResourceType::Listener => {
            decode_listener(value).map(|l| json!({"address": l.address, "route_config": l.route_config}))
        }
        ResourceType::RouteConfiguration => decode_route_config(value).map(|config| routes(&config)),
        ResourceType::LbEndpoint => decode_member(name, value).map(|e| endpoint(&e)),
        ResourceType::Secret => {
            decode_secret(value).map(|secret| json!({"names": secret.certificate.certificate.names}))
        }
    };
    // What is held was read once already, so there is no error to show.
    read.unwrap_or(Value::Null)
}

fn routes(config: &RouteConfig) -> Value {
    let hosts = config.virtual_hosts.iter().map(|host| {
        let routes = host.routes.iter().map(|route| {
            let (how, path) = match &route.path {
                PathRule::Exact(path) => ("exact", path),
                PathRule::Prefix(path) => ("prefix", path),
                PathRule::Segments(path) => ("path_prefix", path),
            };
            json!({how: path, "headers": route.headers, "clusters": route.clusters})
        });
        json!({"domains": host.domains, "routes": routes.collect::<Vec<_>>()})
    });
    json!({"ignore_port": config.ignore_port, "virtual_hosts": hosts.collect::<Vec<_>>()})
}
