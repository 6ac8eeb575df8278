//! The HTTP API: JSON over HTTP/1.1, described by an OpenAPI document it serves itself.
//!
//! - [`types`], [`resource_types`]: what it says.
//! - `guard`: who may ask for what.
//! - `request`: what a request may say: bodies in bounds, queries, preconditions, who asks.
//! - `answer`: refusals as answers.
//! - `manifests`, `objects`, `endpoints`, `resources`, `watch`: the handlers.
//! - [`load`]: what proxies report of their load.
//! - `openapi`: the document.
//! - `server`: connections, in bounds.

mod answer;
mod endpoints;
mod guard;
pub mod load;
mod manifests;
mod objects;
mod openapi;
mod request;
pub mod resource_types;
mod resources;
mod server;
pub mod types;
mod watch;

use std::sync::Arc;

use axum::{
    Extension, Router,
    extract::DefaultBodyLimit,
    routing::{delete, get, post, put},
};
use tokio_util::sync::CancellationToken;

use crate::{
    access::Access, fleet::Fleet, load_report::Loads, metrics::Metrics, registry::Registry,
    timeline::Timeline,
};
pub(crate) use answer::error_body;
pub(crate) use manifests::{check_certificates, read as read_manifests};
pub use server::serve;

/// What every handler shares.
#[derive(Clone)]
pub struct Api {
    /// The registry.
    pub registry: Registry,
    /// The connected clients.
    pub fleet: Arc<Fleet>,
    /// The timeline.
    pub timeline: Arc<Timeline>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// What proxies report of their load.
    pub loads: Arc<Loads>,
    /// Who may do what.
    pub access: Arc<Access>,
    /// Ends what would go on for ever.
    pub stop: CancellationToken,
}

fn router(api: Api) -> Router {
    Router::new()
        .route("/v1/apply", post(manifests::apply))
        .route("/v1/services", get(objects::services))
        .route("/v1/services/{service}", get(objects::service).delete(objects::delete_service))
        .route("/v1/services/{service}/split", put(objects::put_split))
        .route("/v1/gateways", get(objects::gateways))
        .route("/v1/gateways/{gateway}", delete(objects::delete_gateway))
        .route("/v1/routes", get(objects::routes))
        .route("/v1/routes/{route}", delete(objects::delete_route))
        .route(
            "/v1/services/{service}/versions/{version}/endpoints/{id}",
            put(endpoints::register).delete(endpoints::remove),
        )
        .route("/v1/services/{service}/versions/{version}/endpoints/{id}/hold", post(endpoints::hold))
        .route("/v1/proxies", get(watch::proxies))
        .route("/v1/proxies/{node}/resources", get(resources::of_proxy))
        .route("/v1/xds/resources", get(resources::list).post(resources::write))
        .route("/v1/events", get(watch::events))
        .route("/v1/load", get(load::load))
        .route("/v1/openapi.json", get(openapi::document))
        .route("/healthz", get(watch::healthz))
        .route("/readyz", get(watch::readyz))
        .route("/metrics", get(watch::metrics))
        .fallback(answer::no_such_page)
        .method_not_allowed_fallback(answer::no_such_method)
        .layer(axum::middleware::from_fn_with_state(api.clone(), request::no_foreign_page))
        .layer(axum::middleware::from_fn_with_state(api.clone(), guard::admit))
        // Each handler reads its body within its own bound.
        .layer(DefaultBodyLimit::disable())
        .layer(Extension(endpoints::Holds::default()))
        .with_state(api)
}
