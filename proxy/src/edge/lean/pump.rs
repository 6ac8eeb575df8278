//! One direction of an exchange: what may go on of the bytes that came, and how far it went. The
//! framing decides; it is the same for requests and responses.

use std::{
    io::{self, Write},
    task::{Context, Poll, ready},
};

use super::{
    super::{
        h1::chunked::{ChunkError, Chunked, Next},
        stream::Stream,
    },
    incoming::Incoming,
};
use crate::worker::buffer::Output;

/// So much of a body is copied behind its head, to leave in one plain write.
const TOGETHER: usize = 8 * 1024;

/// How the end of a body is known, and what its bytes become.
#[derive(Debug)]
pub(super) enum Framing {
    /// So many bytes more.
    Length(u64),
    /// Chunks go on as they came, but for extensions.
    Chunks(Chunked),
    /// The data of chunks goes on; the end of the connection is the end of the body.
    Data(Chunked),
    /// All up to the end of the connection.
    UntilClose,
    /// All up to the end of the connection becomes chunks.
    IntoChunks,
    /// The body is over, or there is none.
    Done,
}

/// One direction.
#[derive(Debug)]
pub(super) struct Pump {
    framing: Framing,
    /// Sent before the approved bytes.
    output: Output,
    /// Bytes at the front of what came that may go on.
    approved: usize,
    /// Bytes behind the approved ones that are only framing.
    skipped: usize,
    /// Body bytes that went on.
    body_bytes: u64,
    /// Whether body bytes went on that are not in the output.
    passed: bool,
    /// Whether TLS may still hold back what it took.
    unsent: bool,
    /// Whether the other side takes the end of its connection for the end of the body.
    ends_by_closing: bool,
}

impl Pump {
    /// Begins with what is in `output`.
    pub(super) fn new(framing: Framing, output: Output) -> Self {
        Self {
            framing,
            output,
            approved: 0,
            skipped: 0,
            body_bytes: 0,
            passed: false,
            unsent: false,
            ends_by_closing: false,
        }
    }

    /// After a head: what comes now.
    pub(super) fn continue_with(&mut self, framing: Framing) {
        self.ends_by_closing = matches!(framing, Framing::Data(_) | Framing::UntilClose);
        self.framing = framing;
    }

    /// To append a head to. What has gone is forgotten.
    pub(super) fn output(&mut self) -> &mut Vec<u8> {
        self.output.forget_sent();
        self.output.bytes()
    }

    /// Whether something has gone in part.
    pub(super) fn is_midway(&self) -> bool {
        self.output.began() && !self.output.is_done()
    }

    /// Whether everything that may go on has gone.
    pub(super) fn is_flushed(&self) -> bool {
        self.approved == 0 && self.output.is_done() && !self.unsent
    }

    /// Whether the body came to its end.
    pub(super) fn is_over(&self) -> bool {
        self.approved == 0 && matches!(self.framing, Framing::Done | Framing::Length(0))
    }

    pub(super) fn body_bytes(&self) -> u64 {
        self.body_bytes
    }

    /// Whether any byte was sent.
    pub(super) fn began(&self) -> bool {
        self.passed || self.output.began()
    }

    /// Whether all of it is in the output, so that it can be sent once more.
    pub(super) fn is_replayable(&self) -> bool {
        self.is_over() && !self.passed
    }

    /// Begins again. Only what [`Self::is_replayable`], or has not begun.
    pub(super) fn rewind(&mut self) {
        self.output.rewind();
        self.unsent = false;
    }

    /// Whether the other side takes the end of its connection for the end of the body.
    pub(super) fn ends_by_closing(&self) -> bool {
        self.ends_by_closing
    }

    /// Whether the end of the connection is the end of the body. If so it is noted.
    pub(super) fn on_close(&mut self) -> bool {
        match self.framing {
            Framing::UntilClose => {}
            Framing::IntoChunks => self.output.bytes().extend_from_slice(b"0\r\n\r\n"),
            _ => return false,
        }
        self.framing = Framing::Done;
        true
    }

    /// Approves what it can of `incoming`; `false` when more has to come first, or none will.
    ///
    /// # Errors
    /// When the chunks are not chunks.
    pub(super) fn approve(&mut self, incoming: &mut Incoming) -> Result<bool, ChunkError> {
        let available = incoming.bytes().len();
        if self.approved > 0 || available == 0 {
            return Ok(self.approved > 0);
        }
        match &mut self.framing {
            Framing::Done => return Ok(false),
            Framing::Length(rest) => {
                self.approved = usize::try_from(*rest).map_or(available, |rest| rest.min(available));
                *rest -= self.approved as u64;
            }
            Framing::UntilClose => self.approved = available,
            Framing::IntoChunks => {
                self.approved = available;
                self.output.forget_sent();
                // Writing to memory does not fail.
                let _ = write!(self.output.bytes(), "{available:x}\r\n");
            }
            Framing::Chunks(_) | Framing::Data(_) => self.approve_chunks(incoming)?,
        }
        Ok(self.approved > 0 || matches!(self.framing, Framing::Done))
    }

    fn approve_chunks(&mut self, incoming: &mut Incoming) -> Result<(), ChunkError> {
        loop {
            let step = match &mut self.framing {
                Framing::Chunks(chunked) => chunked.advance(incoming.bytes())?,
                Framing::Data(chunked) => chunked.advance_data(incoming.bytes())?,
                _ => return Ok(()),
            };
            if step.next == Next::End {
                self.framing = Framing::Done;
            }
            self.approved = step.pass.len();
            if self.approved > 0 {
                incoming.consume(step.pass.start);
                self.skipped = step.consumed - step.pass.end;
                return Ok(());
            }
            incoming.consume(step.consumed);
            if step.next != Next::Again {
                return Ok(());
            }
        }
    }

    /// Sends what may go on.
    pub(super) fn poll_flush(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut Stream,
        incoming: &mut Incoming,
    ) -> Poll<io::Result<()>> {
        if self.is_flushed() {
            return Poll::Ready(Ok(()));
        }
        self.gather(incoming);
        while self.approved > 0 || !self.output.is_done() {
            self.unsent = true;
            let (head, body) = (self.output.rest(), &incoming.bytes()[..self.approved]);
            let sent = match (head.is_empty(), body.is_empty()) {
                (false, true) => stream.poll_send(cx, head),
                (true, _) => stream.poll_send(cx, body),
                (false, false) => stream.poll_send_two(cx, head, body),
            };
            let sent = ready!(sent)?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_head = sent.min(head.len());
            self.output.advance(of_head);
            if sent > of_head {
                self.passed = true;
                self.take(sent - of_head, incoming);
            }
        }
        ready!(stream.poll_sent(cx))?;
        self.unsent = false;
        Poll::Ready(Ok(()))
    }

    /// Small bodies leave with their head.
    fn gather(&mut self, incoming: &mut Incoming) {
        if (1..=TOGETHER).contains(&self.approved) && !self.output.is_done() && !self.output.began() {
            let body = &incoming.bytes()[..self.approved];
            self.output.bytes().extend_from_slice(body);
            self.take(self.approved, incoming);
        }
    }

    /// `n` approved bytes went on.
    fn take(&mut self, n: usize, incoming: &mut Incoming) {
        self.approved -= n;
        self.body_bytes += n as u64;
        incoming.consume(n);
        if self.approved == 0 {
            incoming.consume(std::mem::take(&mut self.skipped));
            if matches!(self.framing, Framing::IntoChunks) {
                self.output.bytes().extend_from_slice(b"\r\n");
            }
        }
    }
}
