//! The general engine: whatever has HTTP/2 on one side at least. A client's connection is one task with
//! all of its streams, so that what is ready together leaves together; the task of a connection to an
//! endpoint only moves its frames.
//!
//! - [`server`]: a client's connection. [`request`]: one of its streams: let in, answered, accounted for.
//! - [`exchange`]: one request and its response, whatever is spoken on either side. Written once over
//!   [`client`] (whoever asks, by HTTP/2 or, in [`lean`], by HTTP/1) and [`up`] (whoever answers).
//! - [`attempts`]: one endpoint after the other, as the policy says.
//! - [`head`]: what is forwarded of a head of HTTP/2. [`body`]: bodies of HTTP/1 to and from frames.
//! - [`refuse`]: own answers; [`grpc`]: what they are to gRPC.
//! - [`pool`]: connections of HTTP/2 to endpoints.
//! - [`inflow`]: a body that comes by HTTP/2, taken out of `h2` in time.
//! - [`wire`]: the bytes below `h2`, gathered into few writes. [`sieve`]: which of them `h2` gets.
//! - [`signal`]: whether `h2` has work to do.
//!
//! [`lean`]: super::lean

pub(crate) mod attempts;
pub(crate) mod body;
pub(crate) mod client;
mod exchange;
mod grpc;
mod head;
mod inflow;
pub(crate) mod pool;
mod refuse;
mod request;
mod server;
mod sieve;
mod signal;
mod up;
mod wire;

pub(crate) use server::serve;

use bytes::Bytes;
use http::HeaderMap;

/// What comes of a body, in either direction.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    /// Bytes, and whether the body ends with them.
    Data(Bytes, bool),
    /// The end, with trailers.
    Trailers(HeaderMap),
    /// The end.
    End,
}

impl Frame {
    /// Bytes of data.
    fn len(&self) -> usize {
        match self {
            Self::Data(data, _) => data.len(),
            Self::Trailers(_) | Self::End => 0,
        }
    }

    /// Whether it is the last one.
    fn ends(&self) -> bool {
        !matches!(self, Self::Data(_, false))
    }
}
