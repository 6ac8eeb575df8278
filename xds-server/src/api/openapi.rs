//! The OpenAPI document, made from the handlers.

use std::sync::LazyLock;

use axum::{http::header, response::IntoResponse};
use utoipa::{
    Modify, OpenApi,
    openapi::{
        path::Operation,
        security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme},
    },
};

use super::{endpoints, load, manifests, objects, resources, watch};
use crate::access::rules::{Rule, rule};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Sluicegate",
        description = "Registers instances, shifts traffic by version, and shows which proxy has applied what."
    ),
    modifiers(&Security),
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

/// What each operation needs, from the one table of it. The scopes are roles.
struct Security;

impl Modify for Security {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let schemes = &mut document.components.get_or_insert_default().security_schemes;
        let described =
            "A token of the server's access file. Without such a file, nobody has to say who they are.";
        let bearer = Http::builder().scheme(HttpAuthScheme::Bearer).description(Some(described)).build();
        schemes.insert("token".to_owned(), SecurityScheme::Http(bearer));
        let described = "A client certificate that the server's access file names.".to_owned();
        let mutual = SecurityScheme::MutualTls { description: Some(described), extensions: None };
        schemes.insert("certificate".to_owned(), mutual);
        for (path, item) in &mut document.paths.paths {
            let operations: [(&str, &mut Option<Operation>); 4] = [
                ("GET", &mut item.get),
                ("PUT", &mut item.put),
                ("POST", &mut item.post),
                ("DELETE", &mut item.delete),
            ];
            for (method, operation) in operations {
                let Some(operation) = operation else { continue };
                operation.security = Some(match rule(method, Some(path)) {
                    Rule::Open => Vec::new(),
                    Rule::Needs(role) => ["token", "certificate"]
                        .map(|scheme| SecurityRequirement::new(scheme, [role.to_string()]))
                        .into(),
                });
            }
        }
    }
}

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
    fn every_operation_says_what_it_needs_and_only_probes_and_reading_need_no_more_than_read() {
        let document: serde_json::Value = serde_json::from_str(&DOCUMENT).unwrap();
        assert_eq!(document["components"]["securitySchemes"]["token"]["scheme"], "bearer");
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                let needs = operation["security"].as_array().unwrap();
                let role = needs.first().map(|need| need["token"][0].as_str().unwrap());
                let expected: &[Option<&str>] = match (method.as_str(), path.as_str()) {
                    (_, "/healthz" | "/readyz") => &[None],
                    ("get", _) => &[Some("read"), Some("admin")],
                    (_, path) if path.contains("/endpoints/") => &[Some("register")],
                    (_, path) if path.ends_with("/split") => &[Some("shift")],
                    // What has no rule of its own.
                    _ => &[Some("admin")],
                };
                assert!(expected.contains(&role), "{method} {path} needs {role:?}");
            }
        }
    }

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
