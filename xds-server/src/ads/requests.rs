//! Requests of one stream: gRPC messages out of HTTP/2 data (gRPC over HTTP/2, "Length-Prefixed-Message").

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use h2::RecvStream;
use prost::Message;
use tonic::Status;

use crate::subscription::Variant;

/// How large one request may be, in bytes.
const MAX_REQUEST: usize = 4 << 20;
/// What a message begins with: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// The requests of one stream, in either variant.
pub(super) struct Requests {
    variant: Variant,
    body: RecvStream,
    /// What has come of a message that is not whole yet.
    partial: BytesMut,
}

/// A request of either variant.
pub(super) enum AnyRequest {
    Incremental(DeltaDiscoveryRequest),
    StateOfTheWorld(DiscoveryRequest),
}

impl Requests {
    pub(super) fn new(variant: Variant, body: RecvStream) -> Self {
        Self { variant, body, partial: BytesMut::new() }
    }

    pub(super) fn variant(&self) -> Variant {
        self.variant
    }

    /// The next request; `None` when the client sends no more.
    pub(super) fn poll_next(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Result<Option<AnyRequest>, Status>> {
        loop {
            if let Some(message) = take(&mut self.partial)? {
                return Poll::Ready(self.decode(&message).map(Some));
            }
            let data = match ready!(self.body.poll_data(context)) {
                Some(Ok(data)) => data,
                Some(Err(_)) => return Poll::Ready(Err(Status::cancelled("the connection broke"))),
                None if self.partial.is_empty() => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Status::invalid_argument("the last request is not whole"))),
            };
            // What is kept is bounded by the longest message, and by what the client may send ahead. An
            // error means that the stream is over, as the next look will show.
            let _ = self.body.flow_control().release_capacity(data.len());
            // Mostly a message comes in one piece, and alone.
            if self.partial.is_empty()
                && let Some(message) = whole(&data)?
            {
                return Poll::Ready(self.decode(&message).map(Some));
            }
            self.partial.extend_from_slice(&data);
        }
    }

    fn decode(&self, message: &[u8]) -> Result<AnyRequest, Status> {
        let decoded = match self.variant {
            Variant::Incremental => DeltaDiscoveryRequest::decode(message).map(AnyRequest::Incremental),
            Variant::StateOfTheWorld => DiscoveryRequest::decode(message).map(AnyRequest::StateOfTheWorld),
        };
        decoded.map_err(|e| Status::invalid_argument(format!("not a discovery request: {e}")))
    }
}

impl AnyRequest {
    pub(super) fn node(&mut self) -> Option<Node> {
        match self {
            Self::Incremental(request) => request.node.take(),
            Self::StateOfTheWorld(request) => request.node.take(),
        }
    }

    pub(super) fn type_url(&self) -> &str {
        match self {
            Self::Incremental(request) => &request.type_url,
            Self::StateOfTheWorld(request) => &request.type_url,
        }
    }
}

/// How long the message is that begins here; `None` when that has not come yet.
fn length(bytes: &[u8]) -> Result<Option<usize>, Status> {
    let Some((prefix, _)) = bytes.split_first_chunk::<PREFIX>() else { return Ok(None) };
    let [compressed, length @ ..] = *prefix;
    if compressed != 0 {
        return Err(Status::unimplemented("compressed requests are not supported"));
    }
    match u32::from_be_bytes(length) as usize {
        length if length > MAX_REQUEST => {
            let why = format!("a request of {length} bytes; at most {MAX_REQUEST} are taken");
            Err(Status::resource_exhausted(why))
        }
        length => Ok(Some(length)),
    }
}

/// The message, if it is all there is.
fn whole(data: &Bytes) -> Result<Option<Bytes>, Status> {
    Ok(length(data)?.filter(|length| data.len() == PREFIX + length).map(|_| data.slice(PREFIX..)))
}

/// Takes the first message, if all of it is there.
fn take(partial: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some(length) = length(partial)?.filter(|length| partial.len() >= PREFIX + length) else {
        return Ok(None);
    };
    partial.advance(PREFIX);
    let message = partial.split_to(length).freeze();
    if partial.is_empty() {
        // What one large message needed is not kept for the next.
        *partial = BytesMut::new();
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(message: &[u8]) -> Vec<u8> {
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        [&[0][..], &length, message].concat()
    }

    #[test]
    fn messages_are_found_wherever_they_are_cut() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let sent: Vec<Vec<u8>> =
            (0..200).map(|i| vec![u8::try_from(i).unwrap(); random.usize(..300)]).collect();
        let bytes: Vec<u8> = sent.iter().flat_map(|message| framed(message)).collect();
        let (mut partial, mut received, mut at) = (BytesMut::new(), Vec::new(), 0);
        while at < bytes.len() {
            let end = (at + random.usize(1..400)).min(bytes.len());
            partial.extend_from_slice(&bytes[at..end]);
            at = end;
            while let Some(message) = take(&mut partial).unwrap() {
                received.push(message.to_vec());
            }
        }
        assert_eq!(received, sent);
        assert!(partial.is_empty());
    }

    #[test]
    fn only_one_whole_message_is_whole() {
        let one = framed(b"abc");
        assert_eq!(whole(&one.clone().into()).unwrap().unwrap(), "abc");
        for other in [&one[..4], &one[..7], &[one.as_slice(), &[0]].concat()] {
            assert_eq!(whole(&Bytes::copy_from_slice(other)).unwrap(), None);
        }
    }

    #[test]
    fn what_is_too_long_or_compressed_is_refused_before_it_is_kept() {
        let beyond = u32::try_from(MAX_REQUEST + 1).unwrap().to_be_bytes();
        let long = length(&[&[0][..], &beyond].concat()).unwrap_err();
        assert_eq!(long.code(), tonic::Code::ResourceExhausted);
        let compressed = length(&[1, 0, 0, 0, 0]).unwrap_err();
        assert_eq!(compressed.code(), tonic::Code::Unimplemented);
    }
}
