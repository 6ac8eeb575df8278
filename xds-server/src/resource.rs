//! A resource, encoded once however many streams send it, and not before the first does.

use std::{fmt, sync::Arc, sync::OnceLock, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::kind::Kind;

/// The name of a resource, shared by all who hold it.
pub type Name = Arc<str>;

/// The type URL of the message that wraps a resource where the variant has no place for its TTL.
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

/// The version of a resource: a hash of its content, so that servers agree without talking to each
/// other, and a restart never reuses a version for other content. 16 hexadecimal digits on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Version(pub u64);

impl Version {
    /// The version of what is encoded as `content`.
    pub fn of(content: &[u8]) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(content))
    }

    /// Reads what a client says it holds; `None` when it is no version of this server.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != 16 {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Encodes the message of a resource when it is first sent.
type Encode = Box<dyn Fn() -> Vec<u8> + Send + Sync>;

/// A resource of one type.
pub struct Resource {
    /// Its name.
    pub name: Name,
    /// Its version.
    pub version: Version,
    /// How long it lives without a sign of life from the server (xDS protocol, "TTL").
    pub ttl: Option<Duration>,
    kind: Kind,
    encode: Option<Encode>,
    encoded: OnceLock<Encoded>,
}

struct Encoded {
    /// A `Resource` message without TTL.
    message: Bytes,
    /// Where in it the `Any` begins and ends.
    any: (usize, usize),
}

impl Resource {
    /// A resource whose message is `value`.
    pub fn new(kind: Kind, name: impl Into<Name>, value: &[u8]) -> Self {
        let (name, version) = (name.into(), Version::of(value));
        let encoded = Encoded::new(&kind, &name, version, value);
        Self { name, version, ttl: None, kind, encode: None, encoded: OnceLock::from(encoded) }
    }

    /// A resource whose message is made when it is first sent, if it ever is. `version` changes
    /// whenever what `encode` makes does.
    pub fn lazy(
        kind: Kind,
        name: impl Into<Name>,
        version: Version,
        encode: impl Fn() -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        let encode: Option<Encode> = Some(Box::new(encode));
        Self { name: name.into(), version, ttl: None, kind, encode, encoded: OnceLock::new() }
    }

    /// The same with a time to live.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Option<Duration>) -> Self {
        // Another TTL is another version, or the change would not be sent.
        if let Some(ttl) = ttl {
            self.version = Version::of(format!("{}{}", self.version, ttl.as_nanos()).as_bytes());
            let value = self.value();
            self.encoded = OnceLock::from(Encoded::new(&self.kind, &self.name, self.version, &value));
        }
        self.ttl = ttl;
        self
    }

    fn encoded(&self) -> &Encoded {
        self.encoded.get_or_init(|| {
            // One of the two is there from the start: see the constructors.
            let value = self.encode.as_ref().map(|encode| encode()).unwrap_or_default();
            Encoded::new(&self.kind, &self.name, self.version, &value)
        })
    }

    /// Its message.
    pub fn value(&self) -> Bytes {
        let encoded = self.encoded();
        let any = encoded.message.slice(encoded.any.0..encoded.any.1);
        // The value is the last field of the `Any`, behind its type URL: see `Encoded::new`.
        let type_url = field_len(1, self.kind.type_url().len());
        let value = any.slice(type_url..);
        let Some(head) = value_head(&value) else { return Bytes::new() };
        value.slice(head..)
    }

    /// Its size on the wire in either variant, in bytes.
    pub fn size(&self) -> usize {
        self.encoded().message.len() + 16
    }

    /// Writes field 2 of a `DeltaDiscoveryResponse`: a `Resource`, with its TTL if `ttl`.
    pub(crate) fn write_incremental(&self, ttl: bool, buffer: &mut impl BufMut) {
        let message = &self.encoded().message;
        let ttl = self.ttl.filter(|_| ttl);
        field_head(2, message.len() + ttl.map_or(0, ttl_len), buffer);
        buffer.put_slice(message);
        if let Some(ttl) = ttl {
            write_ttl(ttl, buffer);
        }
    }

    /// Writes what comes before the content in either variant, and returns that, to be sent as it is;
    /// `None` where a TTL has to be told, which goes behind the content or around it.
    pub(crate) fn shared(&self, incremental: bool, ttl: bool, buffer: &mut impl BufMut) -> Option<Bytes> {
        if ttl && self.ttl.is_some() {
            return None;
        }
        let encoded = self.encoded();
        let content = if incremental {
            encoded.message.clone()
        } else {
            encoded.message.slice(encoded.any.0..encoded.any.1)
        };
        field_head(2, content.len(), buffer);
        Some(content)
    }

    /// The length of what [`Self::write_incremental`] writes.
    pub(crate) fn incremental_len(&self, ttl: bool) -> usize {
        field_len(2, self.encoded().message.len() + self.ttl.filter(|_| ttl).map_or(0, ttl_len))
    }

    /// Writes field 2 of a `DiscoveryResponse`: an `Any`, or if `ttl` and it has one, an `Any` of the
    /// `Resource` around it ("`SotW` TTL").
    pub(crate) fn write_state_of_the_world(&self, ttl: bool, buffer: &mut impl BufMut) {
        let encoded = self.encoded();
        match self.ttl.filter(|_| ttl) {
            None => {
                let any = &encoded.message[encoded.any.0..encoded.any.1];
                field(2, any, buffer);
            }
            Some(ttl) => {
                let len = encoded.message.len() + ttl_len(ttl);
                field_head(2, field_len(1, WRAPPER.len()) + field_len(2, len), buffer);
                field(1, WRAPPER.as_bytes(), buffer);
                field_head(2, len, buffer);
                buffer.put_slice(&encoded.message);
                write_ttl(ttl, buffer);
            }
        }
    }

    /// The length of what [`Self::write_state_of_the_world`] writes.
    pub(crate) fn state_of_the_world_len(&self, ttl: bool) -> usize {
        let encoded = self.encoded();
        match self.ttl.filter(|_| ttl) {
            None => field_len(2, encoded.any.1 - encoded.any.0),
            Some(ttl) => {
                let len = encoded.message.len() + ttl_len(ttl);
                field_len(2, field_len(1, WRAPPER.len()) + field_len(2, len))
            }
        }
    }

    /// A sign of life: the resource without its content ("TTL": heartbeats). Field 2 of either
    /// response.
    pub(crate) fn heartbeat(&self, wrapped: bool) -> Bytes {
        let Some(ttl) = self.ttl else { return Bytes::new() };
        let mut message = BytesMut::new();
        field(1, self.version.to_string().as_bytes(), &mut message);
        field(3, self.name.as_bytes(), &mut message);
        write_ttl(ttl, &mut message);
        let mut buffer = BytesMut::new();
        if wrapped {
            field_head(2, field_len(1, WRAPPER.len()) + field_len(2, message.len()), &mut buffer);
            field(1, WRAPPER.as_bytes(), &mut buffer);
        }
        field(2, &message, &mut buffer);
        buffer.freeze()
    }
}

/// Two resources are the same when they are of one name and version.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version && self.name == other.name && self.kind == other.kind
    }
}

impl fmt::Debug for Resource {
    /// Without its content, which may be secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}@{}", self.kind, self.name, self.version)
    }
}

impl Encoded {
    fn new(kind: &Kind, name: &str, version: Version, value: &[u8]) -> Self {
        let (type_url, version) = (kind.type_url().as_bytes(), version.to_string());
        let any_len = field_len(1, type_url.len()) + field_len(2, value.len());
        let len = field_len(1, version.len()) + field_len(2, any_len) + field_len(3, name.len());
        let mut buffer = BytesMut::with_capacity(len);
        field(1, version.as_bytes(), &mut buffer);
        field_head(2, any_len, &mut buffer);
        let start = buffer.len();
        field(1, type_url, &mut buffer);
        field(2, value, &mut buffer);
        let end = buffer.len();
        field(3, name.as_bytes(), &mut buffer);
        Self { message: buffer.freeze(), any: (start, end) }
    }
}

/// How long the tag and length of the length-delimited field at the start of `bytes` are.
fn value_head(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    prost::encoding::decode_key(&mut rest).ok()?;
    prost::encoding::decode_varint(&mut rest).ok()?;
    Some(bytes.len() - rest.len())
}

/// The length of field 6 of a `Resource`, a `google.protobuf.Duration`.
fn ttl_len(ttl: Duration) -> usize {
    field_len(6, duration_len(ttl))
}

fn duration_len(duration: Duration) -> usize {
    let seconds = duration.as_secs();
    let nanos = u64::from(duration.subsec_nanos());
    let part = |tag, value: u64| if value == 0 { 0 } else { key_len(tag) + encoded_len_varint(value) };
    part(1, seconds) + part(2, nanos)
}

fn write_ttl(ttl: Duration, buffer: &mut impl BufMut) {
    field_head(6, duration_len(ttl), buffer);
    for (tag, value) in [(1, ttl.as_secs()), (2, u64::from(ttl.subsec_nanos()))] {
        if value != 0 {
            encode_key(tag, WireType::Varint, buffer);
            encode_varint(value, buffer);
        }
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

#[cfg(test)]
mod tests {
    use envoy_types::pb::{
        envoy::service::discovery::v3::{self as discovery, DeltaDiscoveryResponse, DiscoveryResponse},
        google::protobuf::{Any, Duration as ProtoDuration},
    };
    use prost::Message;

    use super::*;

    fn incremental(resource: &Resource, ttl: bool) -> discovery::Resource {
        let mut bytes = Vec::new();
        resource.write_incremental(ttl, &mut bytes);
        assert_eq!(bytes.len(), resource.incremental_len(ttl));
        DeltaDiscoveryResponse::decode(&*bytes).unwrap().resources.remove(0)
    }

    fn state_of_the_world(resource: &Resource, ttl: bool) -> Any {
        let mut bytes = Vec::new();
        resource.write_state_of_the_world(ttl, &mut bytes);
        assert_eq!(bytes.len(), resource.state_of_the_world_len(ttl));
        DiscoveryResponse::decode(&*bytes).unwrap().resources.remove(0)
    }

    #[test]
    fn both_variants_read_what_is_encoded_once() {
        let resource = Resource::new(Kind::Cluster, "a/v1", b"content");
        let any = Any { type_url: Kind::Cluster.type_url().into(), value: b"content".to_vec() };
        assert_eq!(state_of_the_world(&resource, true), any);
        let delta = incremental(&resource, true);
        assert_eq!(delta.resource, Some(any));
        assert_eq!(delta.name, "a/v1");
        assert_eq!(Version::parse(&delta.version), Some(Version::of(b"content")));
        assert_eq!(resource.value(), b"content".as_slice());
    }

    #[test]
    fn a_time_to_live_is_told_to_those_who_know_what_it_is() {
        let ttl = Duration::from_millis(2_500);
        let plain = Resource::new(Kind::Runtime, "r", &[7; 300]);
        let version = plain.version;
        let resource = plain.with_ttl(Some(ttl));
        assert_ne!(resource.version, version);
        let wire = Some(ProtoDuration { seconds: 2, nanos: 500_000_000 });
        assert_eq!(incremental(&resource, true).ttl, wire);
        assert_eq!(incremental(&resource, false).ttl, None);
        assert_eq!(state_of_the_world(&resource, false).value, [7; 300]);
        let wrapped = state_of_the_world(&resource, true);
        assert_eq!(wrapped.type_url, WRAPPER);
        let wrapped = discovery::Resource::decode(&*wrapped.value).unwrap();
        assert_eq!((wrapped.ttl, wrapped.resource.unwrap().value.len()), (wire, 300));

        let beat = DeltaDiscoveryResponse::decode(resource.heartbeat(false)).unwrap().resources.remove(0);
        assert_eq!((beat.ttl, beat.resource, beat.name.as_str()), (wire, None, "r"));
        assert_eq!(beat.version, resource.version.to_string());
        let beat = DiscoveryResponse::decode(resource.heartbeat(true)).unwrap().resources.remove(0);
        assert_eq!(discovery::Resource::decode(&*beat.value).unwrap().ttl, wire);
    }

    #[test]
    fn what_nobody_asks_for_is_never_encoded() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let resource = Resource::lazy(Kind::LoadAssignment, "a/v1", Version(7), move || {
            counter.fetch_add(1, Ordering::SeqCst);
            b"late".to_vec()
        });
        assert_eq!(count.load(Ordering::SeqCst), 0);
        assert_eq!(state_of_the_world(&resource, true).value, b"late");
        assert_eq!(incremental(&resource, true).version, "0000000000000007");
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn only_what_this_server_would_write_is_a_version() {
        assert_eq!(Version::parse(&Version(u64::MAX).to_string()), Some(Version(u64::MAX)));
        for other in ["", "1", "zzzzzzzzzzzzzzzz", "00000000000000001"] {
            assert_eq!(Version::parse(other), None, "{other}");
        }
    }
}
