//! Responses to bytes (envoy/service/discovery/v3/discovery.proto).

use std::marker::PhantomData;

use bytes::{BufMut, Bytes};
use prost::Message;
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

use crate::{
    resource::{field, field_len},
    subscription::{Response, Variant},
};

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

    fn write(&self, buffer: &mut impl BufMut) {
        let response = &self.response;
        match self.variant {
            // DeltaDiscoveryResponse: system_version_info 1, resources 2, type_url 4, nonce 5,
            // removed_resources 6. The system version is the revision, "used for debugging".
            Variant::Incremental => {
                field(1, decimal(response.revision).as_bytes(), buffer);
                response.resources.iter().for_each(|r| r.write_incremental(self.ttl, buffer));
            }
            // DiscoveryResponse: version_info 1, resources 2, type_url 4, nonce 5.
            Variant::StateOfTheWorld => {
                field(1, response.version_info.as_bytes(), buffer);
                response.resources.iter().for_each(|r| r.write_state_of_the_world(self.ttl, buffer));
            }
        }
        self.heartbeats.iter().for_each(|beat| buffer.put_slice(beat));
        field(4, response.kind.type_url().as_bytes(), buffer);
        field(5, response.nonce.as_bytes(), buffer);
        if self.variant == Variant::Incremental {
            response.removed.iter().for_each(|name| field(6, name.as_bytes(), buffer));
        }
    }
}

fn decimal(revision: u64) -> String {
    revision.to_string()
}

/// Encodes [`Frame`]s, decodes requests of type `R`.
pub(super) struct AdsCodec<R> {
    request: PhantomData<fn() -> R>,
}

impl<R> AdsCodec<R> {
    pub(super) fn new() -> Self {
        Self { request: PhantomData }
    }
}

impl<R: Message + Default + 'static> Codec for AdsCodec<R> {
    type Encode = Frame;
    type Decode = R;
    type Encoder = FrameEncoder;
    type Decoder = RequestDecoder<R>;

    fn encoder(&mut self) -> FrameEncoder {
        FrameEncoder
    }

    fn decoder(&mut self) -> RequestDecoder<R> {
        RequestDecoder(PhantomData)
    }
}

pub(super) struct FrameEncoder;

impl Encoder for FrameEncoder {
    type Item = Frame;
    type Error = Status;

    fn encode(&mut self, frame: Frame, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(frame.len());
        frame.write(buffer);
        Ok(())
    }
}

pub(super) struct RequestDecoder<R>(PhantomData<fn() -> R>);

impl<R: Message + Default> Decoder for RequestDecoder<R> {
    type Item = R;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<R>, Status> {
        R::decode(buffer)
            .map(Some)
            .map_err(|e| Status::invalid_argument(format!("not a discovery request: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryResponse, DiscoveryResponse};

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

    #[test]
    fn an_incremental_frame_is_the_message_it_stands_for() {
        let frame = Frame::new(Variant::Incremental, true, response());
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        assert_eq!(bytes.len(), frame.len());
        let read = DeltaDiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!(read.system_version_info, "12345");
        assert_eq!((read.type_url.as_str(), read.nonce.as_str()), (Kind::Cluster.type_url(), "7f"));
        assert_eq!(read.removed_resources, ["c/v1"]);
        assert_eq!(
            read.resources.iter().map(|r| r.name.as_str()).collect::<Vec<_>>(),
            ["a/v1", "b/v1", "d/v1"]
        );
    }

    #[test]
    fn a_state_of_the_world_frame_is_the_message_it_stands_for() {
        let frame = Frame::new(Variant::StateOfTheWorld, false, response());
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        assert_eq!(bytes.len(), frame.len());
        let read = DiscoveryResponse::decode(&*bytes).unwrap();
        assert_eq!((read.version_info.as_str(), read.nonce.as_str()), ("abc", "7f"));
        assert_eq!(read.resources[0].value, b"one");
        assert_eq!((read.resources.len(), read.resources[1].value.len()), (2, 300));
    }
}
