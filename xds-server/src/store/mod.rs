//! Where the registry keeps what must outlive the process.
//!
//! A store knows keys and values, not the domain. The registry is its only user and calls it from
//! one thread, so an implementation may block.

mod file;

use config::{ClusterName, Endpoint, EndpointId, manifest};
use serde::{Deserialize, Serialize};

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
    pub documents: Vec<(u64, manifest::Document)>,
    /// Registered endpoints.
    pub endpoints: Vec<(ClusterName, Endpoint)>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `Service checkout` → a document with its revision, as JSON
    Documents,
    /// `checkout/v1/id` → [`Endpoint`]
    Endpoints,
}

/// A document as it is stored, in the shape of its manifest.
#[derive(Serialize, Deserialize)]
struct StoredDocument {
    revision: u64,
    document: serde_json::Value,
}

impl Operation {
    /// Puts a document.
    pub fn put_document(revision: u64, document: &manifest::Document) -> Result<Self, StoreError> {
        let stored = StoredDocument { revision, document: to_json(serde_json::to_value(document))? };
        let value = to_json(serde_json::to_string(&stored))?;
        Ok(Self { table: Table::Documents, key: document.reference().to_string(), value: Some(value) })
    }

    /// Removes a document.
    pub fn remove_document(reference: &manifest::DocumentRef) -> Self {
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

fn endpoint_key(cluster: &ClusterName, id: &EndpointId) -> String {
    format!("{cluster}/{id}")
}

impl Stored {
    /// Reads one pair back. An object that cannot be read is an error: leaving it out would be a
    /// removal that nobody asked for.
    fn read(&mut self, table: Table, key: &str, value: &str) -> Result<(), StoreError> {
        let unreadable = |why: String| StoreError(format!("the stored object `{key}` cannot be read: {why}"));
        match table {
            Table::Documents => {
                let stored: StoredDocument =
                    serde_json::from_str(value).map_err(|e| unreadable(e.to_string()))?;
                let document = manifest::from_json(key, &stored.document).map_err(|errors| {
                    unreadable(errors.first().map(ToString::to_string).unwrap_or_default())
                })?;
                self.documents.push((stored.revision, document));
            }
            Table::Endpoints => {
                let endpoint: Endpoint =
                    serde_json::from_str(value).map_err(|e| unreadable(e.to_string()))?;
                let cluster = key.rsplit_once('/').map_or(key, |(cluster, _)| cluster);
                let cluster = cluster.parse().map_err(|e| unreadable(format!("{e}")))?;
                self.endpoints.push((cluster, endpoint));
            }
        }
        Ok(())
    }
}
