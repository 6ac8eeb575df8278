//! What proxies are to know, as one immutable value with a strictly rising revision.
//!
//! A resource is encoded once, when it changes; every stream sends the same bytes. A bounded log of
//! changes lets a stream compute its difference without looking at what did not change; a stream
//! that fell behind the log compares everything.

use std::{sync::Arc, time::Instant};

use bytes::{BufMut, Bytes, BytesMut};
use config::xds::{ResourceType, content_version};
use imbl::{OrdMap, Vector};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

/// The name of a resource, shared by all who hold it.
pub type Name = Arc<str>;

/// How many changes the log remembers. A stream further behind than this compares everything.
pub const LOG_LENGTH: usize = 8_192;

/// A resource as it goes on the wire.
#[derive(Debug)]
pub struct Resource {
    /// Its name.
    pub name: Name,
    /// Its content hash.
    pub version: Arc<str>,
    /// Field 2 of a `DeltaDiscoveryResponse`: tag, length, and a `Resource` message.
    incremental: Bytes,
    /// Field 2 of a `DiscoveryResponse`: tag, length, and an `Any`. A slice of `incremental`, for
    /// field 2 of a `Resource` is that same `Any`.
    state_of_the_world: Bytes,
}

impl Resource {
    /// Encodes a resource of `resource_type` whose message is `value`.
    pub fn new(resource_type: ResourceType, name: &str, value: &[u8]) -> Self {
        let version = content_version(value);
        let type_url = resource_type.type_url().as_bytes();
        let any_len = field_len(1, type_url.len()) + field_len(2, value.len());
        let resource_len = field_len(1, version.len()) + field_len(2, any_len) + field_len(3, name.len());

        let mut buffer = BytesMut::with_capacity(field_len(2, resource_len));
        field_head(2, resource_len, &mut buffer);
        field(1, version.as_bytes(), &mut buffer);
        let start = buffer.len();
        field_head(2, any_len, &mut buffer);
        field(1, type_url, &mut buffer);
        field(2, value, &mut buffer);
        let end = buffer.len();
        field(3, name.as_bytes(), &mut buffer);

        let incremental = buffer.freeze();
        let state_of_the_world = incremental.slice(start..end);
        Self { name: name.into(), version: version.into(), incremental, state_of_the_world }
    }

    /// The bytes of field 2 of a `DeltaDiscoveryResponse`.
    pub fn incremental(&self) -> &Bytes {
        &self.incremental
    }

    /// The bytes of field 2 of a `DiscoveryResponse`.
    pub fn state_of_the_world(&self) -> &Bytes {
        &self.state_of_the_world
    }
}

/// The length of a length-delimited field with `len` bytes of content.
pub(crate) fn field_len(tag: u32, len: usize) -> usize {
    key_len(tag) + encoded_len_varint(len as u64) + len
}

fn field_head(tag: u32, len: usize, buffer: &mut impl BufMut) {
    encode_key(tag, WireType::LengthDelimited, buffer);
    encode_varint(len as u64, buffer);
}

/// Writes a length-delimited field (protobuf encoding, "Length-Delimited Records").
pub(crate) fn field(tag: u32, content: &[u8], buffer: &mut impl BufMut) {
    field_head(tag, content.len(), buffer);
    buffer.put_slice(content);
}

/// A resource that changed, appeared or went.
#[derive(Clone, Debug)]
pub struct Logged {
    /// The revision that did it.
    pub revision: u64,
    /// When that was published.
    pub published: Instant,
    /// Its type.
    pub resource_type: ResourceType,
    /// Its name.
    pub name: Name,
}

/// Every resource at one revision. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshot {
    revision: u64,
    published: Instant,
    resources: [OrdMap<Name, Arc<Resource>>; ResourceType::ALL.len()],
    log: Vector<Logged>,
    /// Changes up to this revision are no longer, or never were, in the log.
    log_floor: u64,
}

/// The new form of a resource; `None` when it is gone.
pub type Update = (ResourceType, Name, Option<Arc<Resource>>);

impl Snapshot {
    /// Nothing, at `revision`.
    pub fn empty(revision: u64) -> Self {
        Self {
            revision,
            published: Instant::now(),
            resources: Default::default(),
            log: Vector::new(),
            log_floor: revision,
        }
    }

    /// The snapshot after `updates`, at `revision`, which is above this one's. Updates that change
    /// nothing leave no trace.
    #[must_use]
    pub fn with(&self, revision: u64, updates: impl IntoIterator<Item = Update>) -> Self {
        let mut next = self.clone();
        next.revision = revision;
        next.published = Instant::now();
        for (resource_type, name, resource) in updates {
            let map = &mut next.resources[resource_type.index()];
            let changed = match resource {
                Some(resource) if map.get(&name).is_some_and(|r| r.version == resource.version) => false,
                Some(resource) => {
                    map.insert(Arc::clone(&name), resource);
                    true
                }
                None => map.remove(&name).is_some(),
            };
            if changed {
                let published = next.published;
                next.log.push_back(Logged { revision, published, resource_type, name });
            }
        }
        while next.log.len() > LOG_LENGTH {
            if let Some(oldest) = next.log.pop_front() {
                next.log_floor = oldest.revision;
            }
        }
        next
    }

    /// Its revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// When it came to be.
    pub fn published(&self) -> Instant {
        self.published
    }

    /// One resource.
    pub fn resource(&self, resource_type: ResourceType, name: &str) -> Option<&Arc<Resource>> {
        self.resources[resource_type.index()].get(name)
    }

    /// Every resource of a type, by name.
    pub fn resources(&self, resource_type: ResourceType) -> &OrdMap<Name, Arc<Resource>> {
        &self.resources[resource_type.index()]
    }

    /// What changed after `revision`, newest first; `None` when the log does not reach back so far.
    pub fn changes_since(&self, revision: u64) -> Option<impl Iterator<Item = &Logged>> {
        (revision >= self.log_floor)
            .then(|| self.log.iter().rev().take_while(move |logged| logged.revision > revision))
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse},
        google::protobuf::Any,
    };
    use prost::Message;

    use super::*;

    fn cluster(name: &str, value: &[u8]) -> Update {
        let resource = Resource::new(ResourceType::Cluster, name, value);
        (ResourceType::Cluster, name.into(), Some(Arc::new(resource)))
    }

    #[test]
    fn both_variants_read_what_is_encoded_once() {
        let resource = Resource::new(ResourceType::Cluster, "a/v1", b"content");
        let any = Any { type_url: ResourceType::Cluster.type_url().into(), value: b"content".to_vec() };

        let sotw = DiscoveryResponse::decode(resource.state_of_the_world().clone()).unwrap();
        assert_eq!(sotw.resources, std::slice::from_ref(&any));

        let delta = DeltaDiscoveryResponse::decode(resource.incremental().clone()).unwrap();
        assert_eq!(delta.resources[0].resource, Some(any));
        assert_eq!(delta.resources[0].name, "a/v1");
        assert_eq!(delta.resources[0].version, content_version(b"content"));
    }

    #[test]
    fn the_log_holds_what_changed_and_nothing_else() {
        let one = Snapshot::empty(0).with(1, [cluster("a", b"1"), cluster("b", b"1")]);
        let two = one.with(2, [cluster("a", b"1"), cluster("b", b"2")]);
        let names: Vec<_> = two.changes_since(1).unwrap().map(|c| c.name.to_string()).collect();
        assert_eq!(names, ["b"]);
        let three = two.with(3, [(ResourceType::Cluster, "a".into(), None)]);
        assert!(three.resource(ResourceType::Cluster, "a").is_none());
        assert_eq!(three.changes_since(0).unwrap().count(), 4);
    }

    #[test]
    fn a_log_that_is_full_says_so_instead_of_lying() {
        let mut snapshot = Snapshot::empty(0);
        for revision in 1..=LOG_LENGTH as u64 + 10 {
            snapshot = snapshot.with(revision, [cluster("a", &revision.to_be_bytes())]);
        }
        assert!(snapshot.changes_since(9).is_none());
        assert_eq!(snapshot.changes_since(10).unwrap().count(), LOG_LENGTH);
    }
}
