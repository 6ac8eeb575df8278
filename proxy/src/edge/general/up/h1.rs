//! An endpoint that speaks HTTP/1: its connection belongs to one request at a time.

use std::task::{Context, Poll, ready};

use bytes::Bytes;

use super::{
    super::{
        super::{
            h1::{
                self, HeadError, convert,
                request::{RequestBody, RequestEdits},
                response::{ResponseEdits, parse_response},
            },
            lean::incoming::Incoming,
            stream::Stream,
        },
        Frame,
        body::{Reading, Writing},
    },
    Event, Failed,
};
use crate::worker::buffer::Output;

/// Bytes of a request that gather before they are sent.
const GATHERED: usize = 32 * 1024;

pub(in super::super) struct Http1 {
    stream: Stream,
    reused: bool,
    out: Output,
    /// Whether TLS may hold something back.
    unsent: bool,
    writing: Writing,
    incoming: Incoming,
    /// Of the response; `None` before its head.
    reading: Option<Reading>,
    to_head: bool,
    keep_alive: bool,
    /// Whether any byte of the request was sent.
    began: bool,
    /// Whether any byte of a response came.
    heard: bool,
}

impl Http1 {
    /// Begins with a head in `out`.
    pub(in super::super) fn new(stream: Stream, reused: bool, head: RequestHead) -> Self {
        Self {
            stream,
            reused,
            out: head.out,
            unsent: false,
            writing: head.writing,
            incoming: Incoming::default(),
            reading: None,
            to_head: head.is_head,
            keep_alive: false,
            began: false,
            heard: false,
        }
    }

    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }

    /// The connection, when it can have another request: after a response to its end.
    pub(in super::super) fn into_reusable(self) -> Option<Stream> {
        // Bytes beyond a response belong to nothing that was asked.
        (self.keep_alive && self.out.is_done() && !self.unsent && self.incoming.is_empty())
            .then_some(self.stream)
    }

    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        if self.out.rest().len() < GATHERED { Poll::Ready(Ok(())) } else { self.poll_flush(cx) }
    }

    pub(super) fn send(&mut self, frame: &mut Frame) {
        self.out.forget_sent();
        self.writing.write(self.out.bytes(), frame);
        if let Frame::Data(data, _) = frame {
            *data = Bytes::new();
        }
    }

    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        while !self.out.is_done() {
            match ready!(self.stream.poll_send(cx, self.out.rest())) {
                Ok(n) if n > 0 => {
                    (self.began, self.unsent) = (true, true);
                    self.out.advance(n);
                }
                _ => return Poll::Ready(Err(())),
            }
        }
        if self.unsent {
            ready!(self.stream.poll_sent(cx)).map_err(|_| ())?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failed>> {
        loop {
            if let Some(event) = self.read()? {
                return Poll::Ready(Ok(event));
            }
            if self.incoming.is_full() {
                return Poll::Ready(Err(Failed::Broken));
            }
            match ready!(self.incoming.poll_more(cx, &mut self.stream)) {
                Ok(n) if n > 0 => self.heard = true,
                ended => return Poll::Ready(self.on_close(ended.is_ok())),
            }
        }
    }

    /// What can be made of what came.
    fn read(&mut self) -> Result<Option<Event>, Failed> {
        match &mut self.reading {
            Some(reading) => {
                let frame = reading.take(&mut self.incoming).map_err(|_| Failed::Broken)?;
                Ok(frame.map(Event::Body))
            }
            None => self.read_head(),
        }
    }

    fn read_head(&mut self) -> Result<Option<Event>, Failed> {
        loop {
            if self.incoming.is_empty() {
                return Ok(None);
            }
            let mut slots = h1::slots();
            let parsed = parse_response(self.incoming.bytes(), &mut slots, self.to_head);
            let Some(head) = parsed.map_err(|_| Failed::Broken)? else { return Ok(None) };
            let len = head.len();
            let response =
                |head| convert::to_response(head, &ResponseEdits::default()).map_err(|_| Failed::Broken);
            match head.status() {
                100 => {}                          // nobody waits for it
                101 => return Err(Failed::Broken), // nobody asked for it
                102..=199 => {
                    let response = response(&head)?;
                    self.incoming.consume(len);
                    return Ok(Some(Event::Interim(response)));
                }
                _ => {
                    let reading = Reading::from(head.body());
                    self.keep_alive = head.keep_alive();
                    let ends = reading.is_over();
                    let response = response(&head)?;
                    self.reading = Some(reading);
                    self.incoming.consume(len);
                    return Ok(Some(Event::Head(Box::new(response), ends)));
                }
            }
            self.incoming.consume(len);
        }
    }

    fn on_close(&mut self, cleanly: bool) -> Result<Event, Failed> {
        match &mut self.reading {
            None if !self.began => Err(Failed::Unprocessed),
            None if !self.heard => Err(Failed::Lost),
            Some(reading @ Reading::UntilClose) if cleanly => {
                *reading = Reading::Over;
                Ok(Event::Body(Frame::End))
            }
            _ => Err(Failed::Broken),
        }
    }
}

/// The head of a request as an endpoint of HTTP/1 gets it.
pub(in super::super) struct RequestHead {
    out: Output,
    writing: Writing,
    is_head: bool,
}

impl RequestHead {
    /// # Errors
    /// When it cannot be said in HTTP/1.
    pub(in super::super) fn new(
        parts: &http::request::Parts,
        body: RequestBody,
        edits: &RequestEdits<'_>,
    ) -> Result<Self, HeadError> {
        let mut out = Output::new();
        convert::write_request(parts, body, out.bytes(), edits)?;
        let writing = match body {
            RequestBody::None => Writing::None,
            RequestBody::Length(_) => Writing::Plain,
            RequestBody::Chunked => Writing::Chunks,
        };
        Ok(Self { out, writing, is_head: parts.method == http::Method::HEAD })
    }
}
