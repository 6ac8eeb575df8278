//! Responses to bytes (envoy/service/discovery/v3/discovery.proto), as the body of a gRPC response
//! (gRPC over HTTP/2, "Responses").
//!
//! Bytes are made when the connection has room for them, and no more at once than a few: however large a
//! response is, a stream holds little more than pointers to what is shared.

use bytes::{BufMut, Bytes, BytesMut};

use crate::{
    resource::{field, field_len},
    subscription::{Response, Variant},
};

/// How much is made at once, in bytes.
const CHUNK: usize = 16 << 10;
/// Resources from this size on are not copied, in bytes.
const LARGE: usize = 8 << 10;
/// What a message begins with: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A response of either variant, not yet copied into a stream's buffer.
#[derive(Debug)]
pub(super) struct Frame {
    variant: Variant,
    /// Whether the client knows what a TTL is.
    ttl: bool,
    response: Response,
    /// Signs of life, as they go on the wire.
    heartbeats: Vec<Bytes>,
}

impl Frame {
    pub(super) fn new(variant: Variant, ttl: bool, mut response: Response) -> Self {
        let wrapped = variant == Variant::StateOfTheWorld;
        let beats = std::mem::take(&mut response.heartbeats);
        // To others the resource never had a TTL.
        let heartbeats = beats.iter().filter(|_| ttl).map(|r| r.heartbeat(wrapped)).collect();
        Self { variant, ttl, response, heartbeats }
    }

    /// Its length on the wire, in bytes.
    pub(super) fn len(&self) -> usize {
        let response = &self.response;
        let type_url = field_len(4, response.kind.type_url().len());
        let nonce = field_len(5, response.nonce.len());
        let heartbeats: usize = self.heartbeats.iter().map(Bytes::len).sum();
        let rest = match self.variant {
            Variant::Incremental => {
                let resources: usize = response.resources.iter().map(|r| r.incremental_len(self.ttl)).sum();
                let removed: usize = response.removed.iter().map(|name| field_len(6, name.len())).sum();
                field_len(1, decimal(response.revision).len()) + resources + removed
            }
            Variant::StateOfTheWorld => {
                let resources: usize =
                    response.resources.iter().map(|r| r.state_of_the_world_len(self.ttl)).sum();
                field_len(1, response.version_info.len()) + resources
            }
        };
        type_url + nonce + heartbeats + rest
    }

    /// What comes before the resources.
    fn write_head(&self, buffer: &mut impl BufMut) {
        // The first field of both: the system version, which is the revision, "used for debugging", or the
        // version.
        match self.variant {
            Variant::Incremental => field(1, decimal(self.response.revision).as_bytes(), buffer),
            Variant::StateOfTheWorld => field(1, self.response.version_info.as_bytes(), buffer),
        }
    }

    /// A resource, field 2 of both; returns what of it is not written but to be sent as it is.
    fn write_resource(&self, at: usize, buffer: &mut impl BufMut) -> Option<Bytes> {
        let resource = &self.response.resources[at];
        let incremental = self.variant == Variant::Incremental;
        if resource.size() >= LARGE
            && let Some(shared) = resource.shared(incremental, self.ttl, buffer)
        {
            return Some(shared);
        }
        match self.variant {
            Variant::Incremental => resource.write_incremental(self.ttl, buffer),
            Variant::StateOfTheWorld => resource.write_state_of_the_world(self.ttl, buffer),
        }
        None
    }

    /// What comes after the resources: signs of life, which are resources too, then `type_url` 4 and
    /// `nonce` 5 of both, and `removed_resources` 6 of the incremental variant.
    fn write_tail(&self, buffer: &mut impl BufMut) {
        let response = &self.response;
        self.heartbeats.iter().for_each(|beat| buffer.put_slice(beat));
        field(4, response.kind.type_url().as_bytes(), buffer);
        field(5, response.nonce.as_bytes(), buffer);
        if self.variant == Variant::Incremental {
            response.removed.iter().for_each(|name| field(6, name.as_bytes(), buffer));
        }
    }
}

/// A frame on its way.
pub(super) struct Writing {
    frame: Frame,
    len: usize,
    /// How many of its resources are written; `None` before anything is.
    resources: Option<usize>,
    /// What is to be sent as it is, next.
    shared: Option<Bytes>,
    done: bool,
}

impl Writing {
    pub(super) fn new(frame: Frame) -> Self {
        let len = frame.len();
        Self { frame, len, resources: None, shared: None, done: false }
    }

    /// The next bytes; `None` when that was all.
    pub(super) fn next(&mut self) -> Option<Bytes> {
        if let Some(shared) = self.shared.take() {
            return Some(shared);
        }
        if self.done {
            return None;
        }
        let mut buffer = BytesMut::with_capacity((self.len + PREFIX).min(CHUNK + LARGE));
        let mut at = self.resources.unwrap_or_else(|| {
            buffer.put_u8(0);
            // A response is bounded far below 4 GiB, and whole states by what there is.
            buffer.put_u32(self.len as u32);
            self.frame.write_head(&mut buffer);
            0
        });
        while buffer.len() < CHUNK && self.shared.is_none() && at < self.frame.response.resources.len() {
            self.shared = self.frame.write_resource(at, &mut buffer);
            at += 1;
        }
        if self.shared.is_none() && at == self.frame.response.resources.len() && buffer.len() < CHUNK {
            self.frame.write_tail(&mut buffer);
            self.done = true;
        }
        self.resources = Some(at);
        Some(buffer.freeze())
    }
}

fn decimal(revision: u64) -> String {
    revision.to_string()
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};
    use prost::Message;

    use super::*;
    use crate::{kind::Kind, resource::Resource};

    fn response() -> Response {
        Response {
            kind: Kind::Cluster,
            revision: 12_345,
            nonce: "7f".into(),
            version_info: "abc".into(),
            resources: vec![
                Arc::new(Resource::new(Kind::Cluster, "a/v1", b"one")),
                Arc::new(Resource::new(Kind::Cluster, "b/v1", &[0; 300])),
            ],
            removed: vec!["c/v1".into()],
            heartbeats: vec![Arc::new(
                Resource::new(Kind::Cluster, "d/v1", b"lives").with_ttl(Some(Duration::from_secs(9))),
            )],
        }
    }

    /// The message that the frame is written as, in so many pieces.
    fn written(frame: Frame) -> (Vec<u8>, usize) {
        let len = frame.len();
        let mut writing = Writing::new(frame);
        let pieces: Vec<Bytes> = std::iter::from_fn(|| writing.next()).collect();
        let bytes = pieces.concat();
        assert_eq!(bytes[..PREFIX], [&[0][..], &u32::try_from(len).unwrap().to_be_bytes()].concat());
        assert_eq!(bytes.len(), len + PREFIX);
        (bytes[PREFIX..].to_vec(), pieces.len())
    }

    #[test]
    fn an_incremental_frame_is_the_message_it_stands_for() {
        let (bytes, pieces) = written(Frame::new(Variant::Incremental, true, response()));
        assert_eq!(pieces, 1);
        let read = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!(read.system_version_info, "12345");
        assert_eq!((read.type_url.as_str(), read.nonce.as_str()), (Kind::Cluster.type_url(), "7f"));
        assert_eq!(read.removed_resources, ["c/v1"]);
        let names: Vec<_> = read.resources.iter().map(|r| r.name.as_str()).collect();
        assert_eq!(names, ["a/v1", "b/v1", "d/v1"]);
    }

    #[test]
    fn a_state_of_the_world_frame_is_the_message_it_stands_for() {
        let (bytes, _) = written(Frame::new(Variant::StateOfTheWorld, false, response()));
        let read = DiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!((read.version_info.as_str(), read.nonce.as_str()), ("abc", "7f"));
        assert_eq!(read.resources[0].value, b"one");
        assert_eq!((read.resources.len(), read.resources[1].value.len()), (2, 300));
    }

    #[test]
    fn a_large_frame_is_made_piece_by_piece_and_a_large_resource_is_shared() {
        let resource = |i: usize, len: usize| {
            let name = format!("s{i}/v1");
            Arc::new(Resource::new(Kind::Cluster, name.as_str(), &vec![i as u8; len]))
        };
        for variant in [Variant::Incremental, Variant::StateOfTheWorld] {
            let sizes = [10, 3_000, 100_000, 1, 8_000, 9_000, 20, 40_000];
            let resources: Vec<_> = (0..100).map(|i| resource(i, sizes[i % sizes.len()])).collect();
            let large = Response { resources: resources.clone(), ..response() };
            let frame = Frame::new(variant, false, large);
            let whole = frame.len();
            let (bytes, pieces) = written(frame);
            assert!(pieces > whole / (CHUNK + 100_000), "{pieces}");
            let values: Vec<Vec<u8>> = match variant {
                Variant::Incremental => {
                    let read = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
                    read.resources.into_iter().map(|r| r.resource.unwrap().value).collect()
                }
                Variant::StateOfTheWorld => {
                    let read = DiscoveryResponse::decode(&*bytes).unwrap();
                    read.resources.into_iter().map(|any| any.value).collect()
                }
            };
            assert!(
                values.iter().eq(resources.iter().map(|r| r.value().to_vec()).collect::<Vec<_>>().iter())
            );
        }
    }
}
