//! Where the registry keeps what must outlive the process.
//!
//! - here: what is kept, as keys and JSON. A store knows those, not the domain.
//! - `file`: one server's own file. The registry calls it from one thread, so it may block.
//! - [`etcd`]: what several servers share, each of which follows what the others write.

pub mod etcd;
mod file;

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use config::{
    ClusterName, Endpoint, EndpointId,
    manifest::{self, Document, DocumentRef},
};
use serde::{Deserialize, Serialize};

use crate::{kind::Kind, registry::raw::Raw, resource::Name};

pub use file::FileStore;

/// Durable key-value storage with atomic commits.
pub trait Store: Send {
    /// Everything that was committed.
    fn load(&mut self) -> Result<Stored, StoreError>;

    /// Makes `revision` and all of `operations` durable, or nothing. With `scope` `Everything`, what
    /// `operations` does not put is removed.
    ///
    /// After an error it is not known which of the two happened: the next commit has to be of
    /// everything.
    fn commit(&mut self, revision: u64, operations: &[Operation], scope: Scope) -> Result<(), StoreError>;
}

/// What a commit is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// What changed.
    Changes,
    /// All there is.
    Everything,
}

/// What a store failed at, with the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub(crate) String);

/// What was committed.
#[derive(Debug, Default)]
pub struct Stored {
    /// The newest revision.
    pub revision: u64,
    /// Documents in the shape of their manifest, each with the revision that last changed it.
    pub documents: Vec<(u64, Document)>,
    /// Registered endpoints.
    pub endpoints: Vec<(ClusterName, Endpoint)>,
    /// Resources that were written as they are, each with the revision that last changed it.
    pub raw: Vec<(u64, Raw)>,
}

/// One put or, without a value, one removal.
#[derive(Debug)]
pub struct Operation {
    /// Documents or endpoints.
    pub table: Table,
    /// Its key within the table.
    pub key: String,
    /// JSON.
    pub value: Option<String>,
}

/// The two kinds of things that are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// `Service checkout` → a document with its revision, as JSON
    Documents,
    /// `checkout/v1/id` → [`Endpoint`]
    Endpoints,
    /// `type.googleapis.com/envoy.config.cluster.v3.Cluster name` → [`Raw`] with its revision, as JSON
    Resources,
}

/// A document as it is stored, in the shape of its manifest.
#[derive(Serialize, Deserialize)]
struct StoredDocument {
    revision: u64,
    document: serde_json::Value,
}

/// A resource as it is stored.
#[derive(Serialize, Deserialize)]
struct StoredRaw {
    revision: u64,
    type_url: String,
    name: String,
    /// In base64.
    value: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
}

impl Operation {
    /// Puts a resource that was written as it is.
    pub fn put_raw(revision: u64, raw: &Raw) -> Result<Self, StoreError> {
        let stored = StoredRaw {
            revision,
            type_url: raw.kind.type_url().to_owned(),
            name: raw.name.to_string(),
            value: BASE64.encode(&raw.value),
            ttl_ms: raw.ttl.map(|ttl| ttl.as_millis() as u64),
        };
        let value = to_json(serde_json::to_string(&stored))?;
        Ok(Self { table: Table::Resources, key: raw_key(&raw.kind, &raw.name), value: Some(value) })
    }

    /// Removes a resource that was written as it is.
    pub fn remove_raw(kind: &Kind, name: &str) -> Self {
        Self { table: Table::Resources, key: raw_key(kind, name), value: None }
    }

    /// Puts a document.
    pub fn put_document(revision: u64, document: &Document) -> Result<Self, StoreError> {
        let stored = StoredDocument { revision, document: to_json(serde_json::to_value(document))? };
        let value = to_json(serde_json::to_string(&stored))?;
        Ok(Self { table: Table::Documents, key: document.reference().to_string(), value: Some(value) })
    }

    /// Removes a document.
    pub fn remove_document(reference: &DocumentRef) -> Self {
        Self { table: Table::Documents, key: reference.to_string(), value: None }
    }

    /// Puts an endpoint.
    pub fn put_endpoint(cluster: &ClusterName, endpoint: &Endpoint) -> Result<Self, StoreError> {
        let value = to_json(serde_json::to_string(endpoint))?;
        let key = endpoint_key(cluster, &endpoint.id);
        Ok(Self { table: Table::Endpoints, key, value: Some(value) })
    }

    /// Removes an endpoint.
    pub fn remove_endpoint(cluster: &ClusterName, id: &EndpointId) -> Self {
        Self { table: Table::Endpoints, key: endpoint_key(cluster, id), value: None }
    }
}

fn to_json<T>(result: Result<T, serde_json::Error>) -> Result<T, StoreError> {
    result.map_err(|e| StoreError(format!("cannot write an object as JSON: {e}")))
}

/// A type URL has no space in it.
pub(crate) fn raw_key(kind: &Kind, name: &str) -> String {
    format!("{} {name}", kind.type_url())
}

pub(crate) fn endpoint_key(cluster: &ClusterName, id: &EndpointId) -> String {
    format!("{cluster}/{id}")
}

impl Stored {
    /// Reads one pair back. An object that cannot be read is an error: leaving it out would be a
    /// removal that nobody asked for.
    fn read(&mut self, table: Table, key: &str, value: &str) -> Result<(), StoreError> {
        match Object::read(table, key, value.as_bytes())? {
            Object::Document(revision, document) => self.documents.push((revision, *document)),
            Object::Endpoint(cluster, endpoint) => self.endpoints.push((cluster, endpoint)),
            Object::Raw(revision, raw) => self.raw.push((revision, raw)),
        }
        Ok(())
    }
}

/// An object that was read back.
#[derive(Debug)]
pub enum Object {
    /// A document, and the revision it was written with.
    Document(u64, Box<Document>),
    /// A registered endpoint.
    Endpoint(ClusterName, Endpoint),
    /// A resource that was written as it is, and the revision it was written with.
    Raw(u64, Raw),
}

impl Object {
    /// Reads a pair of `table`.
    pub(crate) fn read(table: Table, key: &str, value: &[u8]) -> Result<Self, StoreError> {
        let unreadable = |why: String| StoreError(format!("the stored object `{key}` cannot be read: {why}"));
        match table {
            Table::Documents => {
                let stored: StoredDocument =
                    serde_json::from_slice(value).map_err(|e| unreadable(e.to_string()))?;
                let document = manifest::from_json(key, &stored.document).map_err(|errors| {
                    unreadable(errors.first().map(ToString::to_string).unwrap_or_default())
                })?;
                Ok(Self::Document(stored.revision, Box::new(document)))
            }
            Table::Endpoints => {
                let endpoint: Endpoint =
                    serde_json::from_slice(value).map_err(|e| unreadable(e.to_string()))?;
                let cluster = key.rsplit_once('/').map_or(key, |(cluster, _)| cluster);
                let cluster = cluster.parse().map_err(|e| unreadable(format!("{e}")))?;
                Ok(Self::Endpoint(cluster, endpoint))
            }
            Table::Resources => {
                let stored: StoredRaw =
                    serde_json::from_slice(value).map_err(|e| unreadable(e.to_string()))?;
                let content = BASE64.decode(&stored.value).map_err(|e| unreadable(e.to_string()))?;
                let raw = Raw {
                    kind: Kind::of(&stored.type_url),
                    name: stored.name.into(),
                    value: content.into(),
                    ttl: stored.ttl_ms.map(Duration::from_millis),
                };
                Ok(Self::Raw(stored.revision, raw))
            }
        }
    }
}

/// What a key names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// A document.
    Document(DocumentRef),
    /// A registered endpoint.
    Endpoint(ClusterName, EndpointId),
    /// A resource that was written as it is.
    Raw(Kind, Name),
}

impl Reference {
    /// Reads a key of `table`; `None` when it is none of ours.
    pub(crate) fn read(table: Table, key: &str) -> Option<Self> {
        match table {
            Table::Documents => {
                let (kind, name) = key.split_once(' ')?;
                Some(Self::Document(match kind {
                    "Service" => DocumentRef::Service(name.parse().ok()?),
                    "Gateway" => DocumentRef::Gateway(name.parse().ok()?),
                    "Route" => DocumentRef::Route(name.parse().ok()?),
                    _ => return None,
                }))
            }
            Table::Endpoints => {
                let (cluster, id) = key.rsplit_once('/')?;
                Some(Self::Endpoint(cluster.parse().ok()?, id.parse().ok()?))
            }
            Table::Resources => {
                let (type_url, name) = key.split_once(' ')?;
                Some(Self::Raw(Kind::of(type_url), name.into()))
            }
        }
    }
}
