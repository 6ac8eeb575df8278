//! The discovery services ("RPC Services and Methods for Each Variant").

use crate::{kind::Kind, subscription::Variant};

/// One discovery service.
pub(super) struct Discovery {
    /// Its full name.
    pub(super) name: &'static str,
    /// The type it is of; `None` for the aggregated one.
    pub(super) kind: Option<Kind>,
    /// The method of the state of the world; `None` for types that are incremental only.
    stream: Option<&'static str>,
    /// The incremental method.
    delta: &'static str,
}

macro_rules! discovery {
    ($name:literal, $kind:expr, $stream:expr, $delta:literal) => {
        Discovery { name: concat!("envoy.service.", $name), kind: $kind, stream: $stream, delta: $delta }
    };
}

/// Every service.
pub(super) const SERVICES: [Discovery; 11] = [
    discovery!(
        "discovery.v3.AggregatedDiscoveryService",
        None,
        Some("/StreamAggregatedResources"),
        "/DeltaAggregatedResources"
    ),
    discovery!(
        "listener.v3.ListenerDiscoveryService",
        Some(Kind::Listener),
        Some("/StreamListeners"),
        "/DeltaListeners"
    ),
    discovery!(
        "route.v3.RouteDiscoveryService",
        Some(Kind::RouteConfiguration),
        Some("/StreamRoutes"),
        "/DeltaRoutes"
    ),
    discovery!(
        "route.v3.ScopedRoutesDiscoveryService",
        Some(Kind::ScopedRouteConfiguration),
        Some("/StreamScopedRoutes"),
        "/DeltaScopedRoutes"
    ),
    discovery!("route.v3.VirtualHostDiscoveryService", Some(Kind::VirtualHost), None, "/DeltaVirtualHosts"),
    discovery!(
        "cluster.v3.ClusterDiscoveryService",
        Some(Kind::Cluster),
        Some("/StreamClusters"),
        "/DeltaClusters"
    ),
    discovery!(
        "endpoint.v3.EndpointDiscoveryService",
        Some(Kind::LoadAssignment),
        Some("/StreamEndpoints"),
        "/DeltaEndpoints"
    ),
    discovery!(
        "endpoint.v3.LocalityEndpointDiscoveryService",
        Some(Kind::LbEndpoint),
        None,
        "/DeltaLocalityEndpoints"
    ),
    discovery!(
        "secret.v3.SecretDiscoveryService",
        Some(Kind::Secret),
        Some("/StreamSecrets"),
        "/DeltaSecrets"
    ),
    discovery!(
        "extension.v3.ExtensionConfigDiscoveryService",
        Some(Kind::ExtensionConfig),
        Some("/StreamExtensionConfigs"),
        "/DeltaExtensionConfigs"
    ),
    discovery!(
        "runtime.v3.RuntimeDiscoveryService",
        Some(Kind::Runtime),
        Some("/StreamRuntime"),
        "/DeltaRuntime"
    ),
];

/// What is asked for by a path.
pub(super) enum Method {
    /// A stream of a discovery service.
    Discovery(&'static Discovery, Variant),
    /// A method of one that there is not.
    Unknown,
    /// Another service.
    Elsewhere,
}

/// The method of `path`.
pub(super) fn find(path: &str) -> Method {
    let name = path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(name, _)| name);
    match SERVICES.iter().find(|service| service.name == name) {
        None => Method::Elsewhere,
        Some(service) => {
            service.variant(path).map_or(Method::Unknown, |variant| Method::Discovery(service, variant))
        }
    }
}

impl Discovery {
    /// The variant that the method of `path` speaks; `None` when there is no such method.
    fn variant(&self, path: &str) -> Option<Variant> {
        let method = path.strip_prefix('/')?.strip_prefix(self.name)?;
        if method == self.delta {
            Some(Variant::Incremental)
        } else if Some(method) == self.stream {
            Some(Variant::StateOfTheWorld)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_with_a_name_has_its_service() {
        for kind in Kind::KNOWN {
            assert_eq!(SERVICES.iter().filter(|s| s.kind.as_ref() == Some(&kind)).count(), 1, "{kind}");
        }
    }

    #[test]
    fn methods_are_found_by_their_paths() {
        let virtual_hosts = SERVICES.iter().find(|s| s.kind == Some(Kind::VirtualHost)).unwrap();
        let path = "/envoy.service.route.v3.VirtualHostDiscoveryService/DeltaVirtualHosts";
        assert_eq!(virtual_hosts.variant(path), Some(Variant::Incremental));
        for none in ["/envoy.service.route.v3.VirtualHostDiscoveryService/StreamVirtualHosts", "/", ""] {
            assert_eq!(virtual_hosts.variant(none), None, "{none}");
        }
    }
}
