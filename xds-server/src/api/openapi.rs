//! The OpenAPI document, made from the handlers.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use utoipa::OpenApi;

use super::{endpoints, load, manifests, objects, resources, watch};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluicegate",
        description = "Registers instances, shifts traffic by version, and shows which proxy has applied what."
    ),
    paths(
        manifests::apply,
        objects::services,
        objects::service,
        objects::delete_service,
        objects::put_split,
        objects::gateways,
        objects::delete_gateway,
        objects::routes,
        objects::delete_route,
        endpoints::register,
        endpoints::remove,
        endpoints::hold,
        watch::proxies,
        resources::of_proxy,
        resources::list,
        resources::write,
        watch::events,
        load::load,
        watch::healthz,
        watch::readyz,
        watch::metrics,
        document,
    )
)]
struct Document;

static DOCUMENT: LazyLock<String> = LazyLock::new(|| Document::openapi().to_json().unwrap_or_default());

/// This document.
#[utoipa::path(get, path = "/v1/openapi.json", tag = "health", responses((status = 200)))]
pub(super) async fn document() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_of_the_api_is_described() {
        let document: serde_json::Value = serde_json::from_str(&DOCUMENT).unwrap();
        let paths = document["paths"].as_object().unwrap();
        for path in [
            "/v1/apply",
            "/v1/services",
            "/v1/services/{service}",
            "/v1/services/{service}/split",
            "/v1/services/{service}/versions/{version}/endpoints/{id}",
            "/v1/services/{service}/versions/{version}/endpoints/{id}/hold",
            "/v1/gateways",
            "/v1/gateways/{gateway}",
            "/v1/routes",
            "/v1/routes/{route}",
            "/v1/proxies",
            "/v1/proxies/{node}/resources",
            "/v1/xds/resources",
            "/v1/events",
            "/v1/load",
            "/v1/openapi.json",
            "/healthz",
            "/readyz",
            "/metrics",
        ] {
            assert!(paths.contains_key(path), "{path}");
        }
    }
}
