//! What the API says of xDS resources.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::ToSchema;

/// `POST /v1/xds/resources`: all of it is done, or nothing.
#[derive(Clone, Debug, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourcesWrite {
    /// Resources to put.
    #[serde(default)]
    pub put: Vec<ResourcePut>,
    /// Resources to remove; each has been put before.
    #[serde(default)]
    pub remove: Vec<ResourceRef>,
}

/// A resource; its message is either in `value` or in `json`.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourcePut {
    /// Its type, for example `type.googleapis.com/envoy.config.cluster.v3.Cluster`.
    pub type_url: String,
    /// Its name; for most types the one in its value.
    pub name: String,
    /// Its message, in protobuf's binary format, in base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Its message, in protobuf's JSON mapping: as config dumps and Envoy's YAML have it, with
    /// `google.protobuf.Any` as an object of its fields and their `@type`. For types of the Envoy API,
    /// at most 64 messages deep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub json: Option<Box<RawValue>>,
    /// How long clients keep it without a sign of life from a server, for example `30s`, for clients
    /// that know what that is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
}

/// A resource by its name.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ResourceRef {
    /// Its type.
    pub type_url: String,
    /// Its name.
    pub name: String,
}

/// `GET /v1/xds/resources`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResourceList {
    /// The newest revision.
    pub revision: u64,
    /// Resources by type and name, never with their content.
    pub resources: Vec<ResourceView>,
    /// Whether there are more than are listed.
    pub truncated: bool,
}

/// A resource that is served.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResourceView {
    /// Its type.
    pub type_url: String,
    /// Its name.
    pub name: String,
    /// Its version: a hash of its content; empty for secrets.
    pub version: String,
    /// `common`, `collections` or `grpc`: which clients get it in this form.
    pub form: String,
    /// Whether it was put as it is, rather than compiled from services.
    pub raw: bool,
}

/// `GET /v1/proxies/{node}/resources`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProxyResources {
    /// The newest revision.
    pub revision: u64,
    /// A stream each; a proxy has one, or one a type.
    pub streams: Vec<StreamResources>,
}

/// What one stream of a proxy asked for.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct StreamResources {
    /// Where it connects from.
    pub peer: String,
    /// `incremental` or `state-of-the-world`.
    pub variant: String,
    /// Where each resource stands, by type and name.
    pub resources: Vec<ResourceStatus>,
}

/// Where a resource stands with a proxy.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ResourceStatus {
    /// Its type, for example `CDS`, or a type URL.
    pub r#type: String,
    /// Its name.
    pub name: String,
    /// `SYNCED`: acknowledged. `NOT_SENT`: there is none, or it has not been sent. `STALE`: what there
    /// is has not been acknowledged. `ERROR`: it was refused.
    pub status: String,
    /// The version there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The version that the proxy acknowledged last, as far as its stream tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acknowledged: Option<String>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}
