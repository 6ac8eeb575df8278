//! A service as the target of gRPC clients: `xds:///checkout` asks for the `Listener` of that name
//! (gRFC A27), which asks for the `RouteConfiguration` of that name (gRFC A28).
//!
//! Names of services and of gateways are apart, and so are these resources and those of gateways: which
//! ones a client means, [`client_kind`](super::client_kind) tells.

use envoy_types::pb::envoy::{
    config::{
        listener::v3::{ApiListener, Listener},
        route::v3::{
            Route, RouteConfiguration, RouteMatch, VirtualHost, route::Action, route_match::PathSpecifier,
        },
    },
    extensions::filters::network::http_connection_manager::v3::HttpConnectionManager,
};

use super::{listener, pack, route};
use crate::service::Service;

/// The listener of `service`; `None` when its instances do not speak HTTP/2, so that its target does not
/// exist, rather than fail on every connection.
pub fn encode(service: &Service) -> Option<Listener> {
    let name = service.name.as_str();
    let manager = HttpConnectionManager {
        stat_prefix: name.to_owned(),
        // Without a final router, requests fail (gRFC A39).
        http_filters: vec![listener::router()],
        route_specifier: Some(listener::rds(name)),
        ..Default::default()
    };
    service.protocol.is_http2().then(|| Listener {
        name: name.to_owned(),
        api_listener: Some(ApiListener { api_listener: Some(pack(&manager)) }),
        ..Default::default()
    })
}

/// The routes of the listener of `service`: everything is divided as its split says; `None` when it has
/// no listener.
///
/// Versions of weight 0 are left out. The C core and Go drop them, and others would hold connections to
/// what they never call: a client asks for the cluster of a version when a route names it, and goes on
/// with the routes it has until it knows the endpoints of that cluster (gRFC A74).
pub fn encode_routes(service: &Service) -> Option<RouteConfiguration> {
    let weights = service.split.weights().iter().filter(|(_, weight)| **weight > 0);
    let everything = Route {
        r#match: Some(RouteMatch {
            path_specifier: Some(PathSpecifier::Prefix(String::new())),
            ..Default::default()
        }),
        action: Some(Action::Route(route::divide(&service.name, weights))),
        ..Default::default()
    };
    service.protocol.is_http2().then(|| RouteConfiguration {
        name: service.name.to_string(),
        virtual_hosts: vec![VirtualHost {
            name: service.name.to_string(),
            domains: vec!["*".to_owned()],
            routes: vec![everything],
            ..Default::default()
        }],
        ..Default::default()
    })
}
