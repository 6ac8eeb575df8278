//! The types of resources, in the order in which clients need them, and the forms they are served in.

use std::{fmt, sync::Arc};

/// The type of a resource. The order is make before break (xDS protocol, "Eventual consistency
/// considerations": CDS, EDS, LDS, RDS): what comes first is what the later refer to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// SDS: `Secret`
    Secret,
    /// CDS: `Cluster`
    Cluster,
    /// EDS: `ClusterLoadAssignment`
    LoadAssignment,
    /// LEDS: `LbEndpoint`
    LbEndpoint,
    /// LDS: `Listener`
    Listener,
    /// SRDS: `ScopedRouteConfiguration`
    ScopedRouteConfiguration,
    /// RDS: `RouteConfiguration`
    RouteConfiguration,
    /// VHDS: `VirtualHost`
    VirtualHost,
    /// ECDS: `TypedExtensionConfig`
    ExtensionConfig,
    /// RTDS: `Runtime`
    Runtime,
    /// A type this program knows nothing about, by its type URL.
    Other(Arc<str>),
}

impl Kind {
    /// Every type that has a name here.
    pub const KNOWN: [Self; 10] = [
        Self::Secret,
        Self::Cluster,
        Self::LoadAssignment,
        Self::LbEndpoint,
        Self::Listener,
        Self::ScopedRouteConfiguration,
        Self::RouteConfiguration,
        Self::VirtualHost,
        Self::ExtensionConfig,
        Self::Runtime,
    ];

    /// Its `type_url`.
    pub fn type_url(&self) -> &str {
        match self {
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::LoadAssignment => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::LbEndpoint => "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::ScopedRouteConfiguration => {
                "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"
            }
            Self::RouteConfiguration => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::VirtualHost => "type.googleapis.com/envoy.config.route.v3.VirtualHost",
            Self::ExtensionConfig => "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig",
            Self::Runtime => "type.googleapis.com/envoy.service.runtime.v3.Runtime",
            Self::Other(type_url) => type_url,
        }
    }

    /// The type of `type_url`.
    pub fn of(type_url: &str) -> Self {
        let known = Self::KNOWN.into_iter().find(|kind| kind.type_url() == type_url);
        known.unwrap_or_else(|| Self::Other(type_url.into()))
    }

    /// A short name for logs, metrics and tables: `CDS`.
    pub fn short(&self) -> &'static str {
        match self {
            Self::Secret => "SDS",
            Self::Cluster => "CDS",
            Self::LoadAssignment => "EDS",
            Self::LbEndpoint => "LEDS",
            Self::Listener => "LDS",
            Self::ScopedRouteConfiguration => "SRDS",
            Self::RouteConfiguration => "RDS",
            Self::VirtualHost => "VHDS",
            Self::ExtensionConfig => "ECDS",
            Self::Runtime => "RTDS",
            Self::Other(_) => "other",
        }
    }

    /// Whether a client that never names a resource means all of them, and whether the state of the
    /// world is told whole (xDS protocol, "How the client specifies what resources to return" and
    /// "Grouping Resources into Responses": listeners and clusters only).
    pub fn is_whole(&self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }

    /// The forms that resources of this type come in.
    pub fn views(&self) -> &'static [View] {
        match self {
            Self::LoadAssignment => &[View::Common, View::Collections],
            Self::Cluster | Self::Listener | Self::RouteConfiguration => &[View::Common, View::Grpc],
            _ => &[View::Common],
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(type_url) => f.write_str(type_url),
            known => f.write_str(known.short()),
        }
    }
}

/// The form in which a client gets the resources of a type. A client gets one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum View {
    /// As Envoy and most others read it.
    #[default]
    Common,
    /// Load assignments that refer to collections of endpoints, for clients of LEDS.
    Collections,
    /// As gRPC clients read it: services by name instead of gateways.
    Grpc,
}

/// What a client is, as far as it matters for what it is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// A gRPC library: asks for services by name, and never means everything.
    pub grpc: bool,
    /// Follows endpoints one by one.
    pub collections: bool,
    /// Knows what the TTL of a resource is, in the variant that it speaks.
    pub ttl: bool,
}

impl Client {
    /// The form in which this client gets resources of `kind`.
    pub fn view(self, kind: &Kind) -> View {
        match kind {
            Kind::LoadAssignment if self.collections => View::Collections,
            Kind::Cluster | Kind::Listener | Kind::RouteConfiguration if self.grpc => View::Grpc,
            _ => View::Common,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn type_urls_lead_back_to_their_types() {
        for kind in Kind::KNOWN {
            assert_eq!(Kind::of(kind.type_url()), kind);
        }
        let other = Kind::of("type.googleapis.com/my.Own");
        assert_eq!((other.type_url(), other.short()), ("type.googleapis.com/my.Own", "other"));
    }

    #[test]
    fn every_view_of_a_client_is_one_that_exists() {
        for (grpc, collections) in [(false, false), (false, true), (true, false), (true, true)] {
            for kind in Kind::KNOWN {
                let view = Client { grpc, collections, ttl: false }.view(&kind);
                assert!(kind.views().contains(&view), "{kind} {view:?}");
            }
        }
    }
}
