//! The sending side of one stream: bytes when the connection has room for them, in the end the status.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http::HeaderMap;
use tonic::Status;

use super::wire::{Frame, Writing};

/// Where one stream sends to.
pub(super) struct Outgoing {
    stream: SendStream<Bytes>,
    writing: Option<Writing>,
    /// What is made and not sent.
    chunk: Bytes,
}

/// The client has gone.
pub(super) struct Gone;

impl Outgoing {
    pub(super) fn new(stream: SendStream<Bytes>) -> Self {
        Self { stream, writing: None, chunk: Bytes::new() }
    }

    /// Gives it a frame to send, once the last is sent.
    pub(super) fn begin(&mut self, frame: Frame) {
        self.writing = Some(Writing::new(frame));
    }

    /// Sends what it has been given; ready when all of it is sent.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        loop {
            if self.chunk.is_empty() {
                match self.writing.as_mut().map(Writing::next) {
                    None => return Poll::Ready(Ok(())),
                    Some(None) => self.writing = None,
                    Some(Some(bytes)) => self.chunk = bytes,
                }
                continue;
            }
            self.stream.reserve_capacity(self.chunk.len());
            let room = self.stream.capacity().min(self.chunk.len());
            if room > 0 {
                let sent = self.stream.send_data(self.chunk.split_to(room), false);
                sent.map_err(|_| Gone)?;
            } else if !matches!(ready!(self.stream.poll_capacity(context)), Some(Ok(_))) {
                return Poll::Ready(Err(Gone));
            }
        }
    }

    /// Ends the stream (gRPC over HTTP/2, "Trailers"), whatever it had to send.
    pub(super) fn end(&mut self, status: &Status) {
        let mut trailers = HeaderMap::new();
        if status.add_header(&mut trailers).is_err() || self.stream.send_trailers(trailers).is_err() {
            self.stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}
