//! One HTTP/1.1 connection of the load: a request at a time, and a response that is checked.

use std::{
    io::{IoSlice, Read, Write},
    net::TcpStream,
    time::Instant,
};

use super::Order;
use crate::bench::{
    http1::{Chunks, Framing, head, status},
    poll::{EventFlags, hung_up, ready},
};

const MAX_HEAD: usize = 64 * 1_024;

/// How far the response is read.
#[derive(Clone, Copy)]
enum Body {
    Head,
    Length(u64),
    Chunks(Chunks),
}

/// A request.
#[derive(Clone, Copy)]
struct InFlight {
    /// When it was sent or, in open loop, due.
    since: Instant,
    /// Which of the prepared heads, and how much of head and body is sent.
    head: usize,
    sent: usize,
    body: Body,
    /// The response is all there, and the connection is to be closed by the subject.
    answered: bool,
}

pub(super) struct Connection {
    stream: TcpStream,
    partial: Vec<u8>,
    in_flight: Option<InFlight>,
}

/// Why a connection is over: as it should be, or not.
pub(super) enum Over {
    Closed,
    Failed(&'static str),
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, partial: Vec::new(), in_flight: None }
    }

    /// Sends the request with the given of `heads`, or as much as the socket takes.
    pub(super) fn send(
        &mut self,
        since: Instant,
        head: usize,
        heads: &[Vec<u8>],
        body: &[u8],
    ) -> Result<(), Over> {
        self.in_flight = Some(InFlight { since, head, sent: 0, body: Body::Head, answered: false });
        self.write(heads, body)
    }

    pub(super) fn is_free(&self) -> bool {
        self.in_flight.is_none()
    }

    /// Since when a response is awaited, if one is.
    pub(super) fn awaited_since(&self) -> Option<Instant> {
        self.in_flight.filter(|in_flight| !in_flight.answered).map(|in_flight| in_flight.since)
    }

    /// Says in `completed` since when, if a response is now all there.
    pub(super) fn on_event(
        &mut self,
        flags: EventFlags,
        order: &Order,
        heads: &[Vec<u8>],
        body: &[u8],
        buffer: &mut [u8],
        completed: &mut Option<Instant>,
    ) -> Result<(), Over> {
        if flags.contains(EventFlags::OUT) {
            self.write(heads, body)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            return Ok(());
        }
        loop {
            let n = match ready(self.stream.read(buffer)) {
                Ok(Some(0)) => return Err(self.ended("the connection was closed before the response's end")),
                Ok(Some(n)) => n,
                Ok(None) => return Ok(()),
                Err(_) => return Err(self.ended("the connection broke")),
            };
            if let Some(in_flight) = self.take(&buffer[..n], order)? {
                *completed = Some(in_flight);
                if !order.close {
                    return Ok(());
                }
                // The subject was asked to close, and does so with the response or soon after.
                continue;
            }
            if n < buffer.len() && !hung_up(flags) {
                return Ok(());
            }
        }
    }

    /// The end of the stream is right after a response, or without a request.
    fn ended(&self, why: &'static str) -> Over {
        match &self.in_flight {
            Some(in_flight) if !in_flight.answered => Over::Failed(why),
            _ => Over::Closed,
        }
    }

    /// Sends what the socket takes of the request.
    fn write(&mut self, heads: &[Vec<u8>], body: &[u8]) -> Result<(), Over> {
        let Some(in_flight) = &mut self.in_flight else { return Ok(()) };
        let head = &heads[in_flight.head];
        while in_flight.sent < head.len() + body.len() {
            let result = match in_flight.sent.checked_sub(head.len()) {
                Some(sent) => self.stream.write(&body[sent..]),
                None if body.is_empty() => self.stream.write(&head[in_flight.sent..]),
                None => {
                    let parts = [IoSlice::new(&head[in_flight.sent..]), IoSlice::new(body)];
                    self.stream.write_vectored(&parts)
                }
            };
            match ready(result) {
                Ok(Some(n)) => in_flight.sent += n,
                // Still connecting, or full: an event follows.
                Ok(None) => return Ok(()),
                Err(e) if e.kind() == std::io::ErrorKind::NotConnected => return Ok(()),
                Err(_) => return Err(Over::Failed("the request could not be written")),
            }
        }
        Ok(())
    }

    /// Takes bytes of a response; says since when it was awaited, if that was the last of them.
    fn take(&mut self, bytes: &[u8], order: &Order) -> Result<Option<Instant>, Over> {
        let Some(in_flight) = self.in_flight.as_mut().filter(|in_flight| !in_flight.answered) else {
            return Err(Over::Failed("bytes without a request"));
        };
        let whole;
        let mut bytes = bytes;
        if !self.partial.is_empty() {
            self.partial.extend_from_slice(bytes);
            whole = std::mem::take(&mut self.partial);
            bytes = &whole;
        }
        if let Body::Head = in_flight.body {
            let head = match head(bytes) {
                Ok(Some(head)) => head,
                Ok(None) if bytes.len() < MAX_HEAD => {
                    self.partial = bytes.to_vec();
                    return Ok(None);
                }
                Ok(None) => return Err(Over::Failed("the head has no end")),
                Err(why) => return Err(Over::Failed(why)),
            };
            if status(head.start) != Some(200) {
                return Err(Over::Failed("the status is not 200"));
            }
            in_flight.body = match head.framing {
                Framing::Length(length) if length == order.expected => Body::Length(length),
                Framing::Length(_) => return Err(Over::Failed("the length is not the expected one")),
                Framing::Chunked => Body::Chunks(Chunks::default()),
                Framing::None => return Err(Over::Failed("the body is neither sized nor chunked")),
            };
            bytes = &bytes[head.length..];
        }
        let done = match &mut in_flight.body {
            Body::Head => false,
            Body::Length(left) => {
                *left = left
                    .checked_sub(bytes.len() as u64)
                    .ok_or(Over::Failed("the body is longer than its length"))?;
                *left == 0
            }
            Body::Chunks(chunks) => {
                let taken = chunks.take(bytes).map_err(Over::Failed)?;
                if taken < bytes.len() || (chunks.is_done() && chunks.body != order.expected) {
                    return Err(Over::Failed("the body is not of the expected length"));
                }
                chunks.is_done()
            }
        };
        if !done {
            return Ok(None);
        }
        let since = in_flight.since;
        in_flight.answered = true;
        if !order.close {
            self.in_flight = None;
        }
        Ok(Some(since))
    }
}
