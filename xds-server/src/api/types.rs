//! What the API says, in JSON. The command reads the same types.

use std::collections::BTreeMap;

use config::{EndpointId, Health, ServiceName, VersionName, Zone, manifest::ManifestError};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer to every write.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct WriteAnswer {
    /// The revision the write made, or the current one when nothing changed.
    pub revision: u64,
    /// Whether this was only a rehearsal.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// What changed, in the order of the request.
    pub changes: Vec<Change>,
    /// With `?wait=applied`: who has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied: Option<Applied>,
}

/// One object that was written.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Change {
    /// What happened to it.
    pub action: Action,
    /// `Service`, `Gateway`, `Route`, `Split` or `Endpoint`.
    pub kind: String,
    /// Its name; of an endpoint `service/version/id`.
    pub name: String,
    /// What changed about it, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is new.
    Created,
    /// It is different.
    Updated,
    /// It was as asked already.
    Unchanged,
    /// Its lease was renewed and nothing else changed.
    Renewed,
    /// It is gone.
    Deleted,
}

/// Which proxies have applied a revision.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Applied {
    /// Whether every connected proxy has.
    pub complete: bool,
    /// How many proxies are connected.
    pub proxies: usize,
    /// How long it took until all had it, or until the wait ended, in ms.
    pub ms: f64,
    /// Nodes that have not, with the reason if they refused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
}

/// A proxy that has not applied a revision.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Missing {
    /// Its node id.
    pub node: String,
    /// The newest revision it has applied.
    pub revision: u64,
    /// Why it refused, if it did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nack: Option<String>,
}

/// The answer to every request that was refused.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorAnswer {
    /// What was wrong.
    pub error: ErrorBody,
}

/// What was wrong.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// A word for programs: `invalid`, `not_found`, `in_use`, `conflict`, `too_large`, `busy`, `unavailable`, `timeout`, `unauthenticated`, `forbidden`, `internal`.
    pub code: String,
    /// A sentence for people, with the remedy.
    pub message: String,
    /// Every fault of a manifest, with its file, line and field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub details: Vec<ManifestError>,
}

/// Several manifest files, applied together (`content-type: application/vnd.sluicegate.files+json`).
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The files.
    pub files: Vec<File>,
}

/// One manifest file.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// What to call it in errors.
    pub name: String,
    /// Its text, YAML or JSON.
    pub text: String,
}

/// The body of `PUT …/split`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SplitBody {
    /// Weights by version: whole numbers, a total above zero.
    #[schema(value_type = BTreeMap<String, u32>)]
    pub weights: BTreeMap<VersionName, u32>,
}

/// The body of a registration.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EndpointBody {
    /// Where it listens: an IP address and a port.
    pub address: String,
    /// How long it lives after each renewal, for example `10s` or `500ms`; without it, until it is
    /// deleted. Not with `hold`, which lives as long as its connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Share relative to the other endpoints of the version, 1 to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub zone: Option<Zone>,
}

/// `GET /v1/services`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Services {
    /// The revision this is a view of.
    pub revision: u64,
    /// The services, by name.
    pub services: Vec<ServiceView>,
}

/// A service and its versions.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: ServiceName,
    /// `http`, `h2c`, `grpc` or `tcp`.
    pub protocol: String,
    /// How proxies reach its instances over TLS; left out when they do not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<UpstreamTlsView>,
    /// The revision that last changed it; its `ETag`.
    pub revision: u64,
    /// Its versions, by name.
    pub versions: Vec<VersionView>,
}

/// How proxies reach the instances of a service over TLS.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct UpstreamTlsView {
    /// The PEM file of the authorities that are trusted.
    pub ca: String,
    /// The name that is sent, and that their certificates are for.
    pub sni: String,
}

/// A version and its endpoints.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: VersionName,
    /// Its weight in the split; 0 when the split does not name it.
    pub weight: u32,
    /// Its share of the service's traffic, in basis points (1/100 of a percent).
    pub basis_points: u32,
    /// How many endpoints take traffic.
    pub ready: usize,
    /// Its endpoints, by id.
    pub endpoints: Vec<EndpointView>,
}

/// One running instance.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EndpointView {
    /// Unique within the version.
    #[schema(value_type = String)]
    pub id: EndpointId,
    /// Where it listens.
    pub address: String,
    /// Share relative to the others.
    pub weight: u32,
    /// Failure domain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub zone: Option<Zone>,
    /// `starting`, `ready`, `draining` or `unhealthy`.
    #[schema(value_type = String)]
    pub health: Health,
    /// What keeps it alive: `manifest`, `permanent`, `connection` or `ttl 10s`.
    pub lease: String,
}

/// `GET /v1/gateways`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Gateways {
    /// The revision this is a view of.
    pub revision: u64,
    /// The gateways, in the shape of their manifest (`tls` only if they have it), each with its
    /// `revision`.
    #[schema(value_type = Vec<Object>)]
    pub gateways: Vec<serde_json::Value>,
}

/// `GET /v1/routes`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Routes {
    /// The revision this is a view of.
    pub revision: u64,
    /// The routes, in the shape of their manifest, each with its `revision`.
    #[schema(value_type = Vec<Object>)]
    pub routes: Vec<serde_json::Value>,
}

/// `GET /v1/proxies`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Proxies {
    /// The newest revision.
    pub revision: u64,
    /// Connected xDS streams, by node.
    pub proxies: Vec<ProxyView>,
}

/// A connected xDS client.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProxyView {
    /// Its node id.
    pub node: String,
    /// Its node cluster.
    pub cluster: String,
    /// What it says it is, for example `envoy 1.40.0`.
    pub agent: String,
    /// `incremental` or `state-of-the-world`.
    pub variant: String,
    /// Where it connects from.
    pub peer: String,
    /// How long it has been connected, in ms.
    pub age_ms: u64,
    /// The newest revision it has applied.
    pub revision: u64,
    /// From the newest change it has applied being pushed to its acknowledgement, in ms.
    pub lag_ms: f64,
    /// Whether it has applied the newest revision.
    pub synced: bool,
    /// How many responses it has refused.
    pub nacks: u64,
    /// The refusal that still stands, newest first, one a type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Nack>,
}

/// A response that a client refused.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Nack {
    /// `CDS`, `EDS`, `LDS` or `RDS`.
    #[serde(rename = "type")]
    pub resource_type: String,
    /// The client's reason.
    pub reason: String,
    /// How long ago, in ms.
    pub age_ms: u64,
}

/// `GET /v1/events`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Events {
    /// The newest first come last.
    pub events: Vec<Event>,
}

/// One entry of the timeline. With `?follow=true`, one a line.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Event {
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// `change`, `applied`, `connected`, `disconnected`, `nack` or `lost` (the follower was too
    /// slow and missed entries).
    pub event: String,
    /// The revision it is about.
    pub revision: u64,
    /// Who did it: the token or certificate of the request, its `x-sluicegate-actor` header (with `as`
    /// before it when there is either) and its address; `lease`; or a node.
    pub actor: String,
    /// What it is about, for example `Service checkout`; empty where it is about all.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub subject: String,
    /// What happened, for people.
    pub detail: String,
    /// Of `applied`: from the change to the last proxy's acknowledgement, in ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<f64>,
    /// Of `applied`: how many proxies acknowledged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxies: Option<usize>,
}
