//! The vocabulary both sides of Sluicegate share. No sockets, no tasks, no clocks; files are read
//! in `tls` only.
//!
//! # Rooms
//! - [`name`]: validated names ([`ServiceName`], [`VersionName`], [`ClusterName`], …).
//! - [`endpoint`]: one running instance of a version, its health and its lease.
//! - [`service`], [`split`]: what clients call, its versions, and how traffic divides over them.
//! - [`route`]: gateways, and routes from a gateway to services.
//! - [`tls`]: certificates, keys and trusted authorities: files by name, and what they hold.
//! - [`access`]: who may do what: tokens, client certificates, nodes.
//! - [`manifest`]: YAML/JSON documents to the types above; errors name file, line and field.
//! - [`xds`]: the only rooms that know protobuf; encode and decode, one file a resource type.
//! - [`bootstrap`]: settings of the processes. [`etcd`]: where an etcd cluster is.
//!
//! Architecture invariant: a value of one of these types that exists is valid, so no holder checks
//! again. What spans several objects (a route to a missing service) is the registry's to check.

pub mod access;
pub mod bootstrap;
pub mod endpoint;
pub mod etcd;
pub mod manifest;
pub mod name;
pub mod route;
pub mod service;
pub mod split;
pub mod tls;
pub mod xds;

pub use endpoint::{Endpoint, Health, Lease};
pub use name::{
    ClusterName, EndpointId, GatewayName, NameError, RouteName, SecretName, ServiceName, VersionName, Zone,
};
pub use route::{Gateway, HeaderMatch, HeaderPredicate, HostPattern, PathMatch, Route, RouteMatch, Rule};
pub use service::{Protocol, Service, Version};
pub use split::{Split, SplitError};
pub use tls::{CertificateFiles, Certificates, GatewayTls, UpstreamTls};
