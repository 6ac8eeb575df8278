//! A service and its versions.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::Serialize;

use crate::{
    name::{ClusterName, ServiceName, VersionName},
    split::Split,
    tls::UpstreamTls,
};

/// What clients call. At least one version; the split names only versions that exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    /// Its name, unique.
    pub name: ServiceName,
    /// What its instances speak.
    pub protocol: Protocol,
    /// How its instances are reached over TLS; without it, they are spoken to in the clear. Never with
    /// [`Protocol::Tcp`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTls>,
    /// Its releases.
    pub versions: BTreeMap<VersionName, Version>,
    /// How its traffic divides.
    pub split: Split,
}

impl Service {
    /// The xDS clusters of the service, one a version.
    pub fn clusters(&self) -> impl Iterator<Item = (ClusterName, &Version)> {
        self.versions.iter().map(|(v, version)| (ClusterName::new(self.name.clone(), v.clone()), version))
    }
}

/// An immutable release of a service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Version {
    /// Instances that are written in the manifest rather than registered.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<SocketAddr>,
}

/// What the instances of a service speak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// HTTP/1.1.
    #[default]
    Http,
    /// HTTP/2 with prior knowledge (RFC 9113 §3.3); negotiated by ALPN when the service has TLS.
    H2c,
    /// gRPC over such HTTP/2.
    Grpc,
    /// Bytes. No HTTP route can lead to it.
    Tcp,
}

impl Protocol {
    /// Every protocol, by the word manifests use.
    pub const ALL: [(&'static str, Protocol); 4] =
        [("http", Self::Http), ("h2c", Self::H2c), ("grpc", Self::Grpc), ("tcp", Self::Tcp)];

    /// Whether instances speak HTTP/2.
    pub fn is_http2(self) -> bool {
        matches!(self, Self::H2c | Self::Grpc)
    }
}
