//! What was read from a connection and not consumed.

use std::{
    io,
    task::{Context, Poll, ready},
};

use super::super::stream::Stream;
use crate::worker::buffer::Buffer;

/// Bytes that came and wait. No buffer is held while there are none.
#[derive(Debug, Default)]
pub(crate) struct Incoming(Option<Buffer>);

impl Incoming {
    pub(crate) fn bytes(&self) -> &[u8] {
        self.0.as_ref().map_or(&[], Buffer::bytes)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Whether there is no room for more.
    pub(crate) fn is_full(&self) -> bool {
        self.0.as_ref().is_some_and(Buffer::is_full)
    }

    /// Puts `bytes` behind what came, as far as there is room.
    #[cfg(test)]
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        self.0.get_or_insert_with(Buffer::new).append(bytes);
    }

    /// All of it, in the buffer it came in.
    pub(crate) fn take_all(&mut self) -> Option<Buffer> {
        self.0.take()
    }

    /// The first `n` bytes are done with.
    pub(crate) fn consume(&mut self, n: usize) {
        if let Some(buffer) = &mut self.0 {
            buffer.consume(n);
            if buffer.is_empty() {
                self.0 = None;
            }
        }
    }

    /// Reads more from `stream`; 0 is the end. There must be room.
    pub(crate) fn poll_more(&mut self, cx: &mut Context<'_>, stream: &mut Stream) -> Poll<io::Result<usize>> {
        debug_assert!(!self.is_full(), "there is room");
        let mut buffer = match self.0.take() {
            Some(buffer) => buffer,
            None => {
                if let Stream::Tcp(tcp) = &*stream {
                    ready!(tcp.poll_read_ready(cx))?;
                }
                Buffer::new()
            }
        };
        let read = stream.poll_read_into(cx, buffer.room());
        if let Poll::Ready(Ok(n)) = &read {
            buffer.filled(*n);
        }
        if !buffer.is_empty() {
            self.0 = Some(buffer);
        }
        read
    }
}
