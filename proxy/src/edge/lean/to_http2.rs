//! A client of HTTP/1 whose request goes to an endpoint of HTTP/2: the client's side of an exchange of
//! the [`general`] engine. The head was read and let in as any other.

use std::{
    io,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Response, StatusCode, header::CONTENT_LENGTH, request::Parts, uri::Scheme};

use super::{
    super::{
        gateway::{Ended, Gateway},
        general::{
            Frame,
            attempts::{self, Asked as Attempt, Ended as AttemptEnded},
            body::{Reading, Writing},
            client::{Client as Side, Gone, NoBody},
        },
        h1::{
            HeadError, convert,
            request::{RequestBody, RequestEdits, RequestHead},
            response::{Connection, FramingEdit, ResponseBody, ResponseEdits},
        },
        policy::{self, Journey},
    },
    After,
    client::Client,
    request::Asked,
};
use crate::worker::{buffer::Output, timer::Timer};

/// Bytes of a response that gather before they are sent.
const GATHERED: usize = 32 * 1024;

/// A request in the terms of HTTP/2.
#[derive(Debug)]
pub(super) struct Head {
    parts: Parts,
    body: RequestBody,
    /// Whether the client waits for `100 (Continue)`.
    waits: bool,
}

impl Head {
    /// # Errors
    /// When it cannot be said in HTTP/2.
    pub(super) fn new(head: &RequestHead<'_, '_>, edits: &RequestEdits<'_>) -> Result<Box<Self>, HeadError> {
        let scheme = if edits.proto == "https" { Scheme::HTTPS } else { Scheme::HTTP };
        // The proxy answers the expectation: few servers of HTTP/2 do.
        let edits = RequestEdits { te_trailers: true, drop_expect: true, upgrade: false, ..*edits };
        let request = convert::to_request(head, &scheme, &edits)?;
        let parts = request.into_parts().0;
        Ok(Box::new(Self { parts, body: head.body(), waits: head.expects_continue() }))
    }
}

/// Brings a request to its end.
pub(super) async fn answer(
    client: &mut Client,
    gateway: &Gateway,
    mut asked: Asked,
    mut journey: Journey,
    head: Box<Head>,
) -> After {
    let Head { parts, body, waits } = *head;
    let reading = Reading::from(body);
    let attempt = Attempt {
        parts: &parts,
        body,
        ends: reading.is_over(),
        edits: RequestEdits::default(),
        is_idempotent: policy::is_idempotent(parts.method.as_str()),
        is_grpc: false,
    };
    let mut side = Http1 {
        client,
        asked: &mut asked,
        gateway,
        reading,
        waits,
        writing: Writing::None,
        output: Output::new(),
        unsent: false,
        closes: false,
        ends_by_closing: false,
    };
    let timer = Timer::new();
    let outcome = attempts::answer(&mut side, gateway, &attempt, &mut journey, &timer).await;
    let (all_taken, closes, ends_by_closing) = (side.reading.is_over(), side.closes, side.ends_by_closing);
    let mut output = side.output;
    let ended = |aborted| Ended { since: 0, status: outcome.status, aborted, bytes_sent: outcome.bytes_sent };
    match outcome.end {
        AttemptEnded::Complete => {
            super::finish(gateway, journey, asked, ended(None));
            // What was not taken of the request is still on its way.
            if closes || !all_taken { After::Close { sends: !all_taken } } else { After::Next }
        }
        AttemptEnded::Refused(refusal) => {
            // Interim responses that were said first.
            if !output.is_done() {
                _ = client.send(&mut output).await;
            }
            super::refuse(client, gateway, asked, Some(journey), &refusal, all_taken).await
        }
        AttemptEnded::Cut(why) => {
            if ends_by_closing {
                client.reset();
            }
            super::finish(gateway, journey, asked, ended(Some(why)));
            After::Cut
        }
    }
}

/// The client's side.
struct Http1<'a> {
    client: &'a mut Client,
    asked: &'a mut Asked,
    gateway: &'a Gateway,
    reading: Reading,
    waits: bool,
    writing: Writing,
    output: Output,
    /// Whether TLS may hold something back.
    unsent: bool,
    /// Whether the connection ends with this response.
    closes: bool,
    /// Whether the end of the connection is the end of the response.
    ends_by_closing: bool,
}

impl Http1<'_> {
    fn poll_output(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_done() {
            match ready!(self.client.stream.poll_send(cx, self.output.rest()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => {
                    self.unsent = true;
                    self.output.advance(n);
                }
            }
        }
        if self.unsent {
            ready!(self.client.stream.poll_sent(cx))?;
            self.unsent = false;
        }
        Poll::Ready(Ok(()))
    }

    /// How the body of a response is told of, and written.
    fn framing(&self, response: &Response<()>, ends: bool) -> (ResponseBody, Writing) {
        let status = response.status();
        // RFC 9112 §6.3: these have none, whatever their fields say.
        if self.asked.is_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            return (ResponseBody::None, Writing::None);
        }
        let length = response.headers().get(CONTENT_LENGTH);
        match length.and_then(|length| length.to_str().ok()?.parse().ok()) {
            _ if ends => (ResponseBody::Length(0), Writing::None),
            Some(length) => (ResponseBody::Length(length), Writing::Plain),
            // RFC 9112 §6.1: HTTP/1.0 knows no chunks.
            None if self.asked.http10 => (ResponseBody::UntilClose, Writing::Plain),
            None => (ResponseBody::Chunked, Writing::Chunks),
        }
    }
}

impl Side for Http1<'_> {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, NoBody>> {
        loop {
            match self.reading.take(&mut self.client.incoming) {
                Ok(Some(frame)) => return Poll::Ready(Ok(frame)),
                Ok(None) if self.client.incoming.is_full() => return Poll::Ready(Err(NoBody::Bad)),
                Ok(None) => {}
                Err(_) => return Poll::Ready(Err(NoBody::Bad)),
            }
            if self.waits {
                // RFC 9110 §10.1.1: not when the body is on its way already.
                self.waits = false;
                if self.client.incoming.is_empty() {
                    self.asked.interim = true;
                    self.output.bytes().extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
            }
            match ready!(self.client.incoming.poll_more(cx, &mut self.client.stream)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(Err(NoBody::Gone)),
            }
        }
    }

    /// What was taken was copied, and makes room by itself.
    fn passed_on(&mut self, _: usize) {}

    fn send_interim(&mut self, response: Response<()>) {
        // HTTP/1.0 has none (RFC 9110 §15.2).
        if !self.asked.http10 {
            self.asked.interim = true;
            let parts = response.into_parts().0;
            let edits = ResponseEdits::default();
            convert::write_response(&parts, ResponseBody::None, self.output.bytes(), &edits);
        }
    }

    fn send_head(&mut self, response: Response<()>, ends: bool) -> Result<(), Gone> {
        let (body, writing) = self.framing(&response, ends);
        self.waits = false; // this answers it
        self.ends_by_closing = body == ResponseBody::UntilClose;
        self.closes = self.ends_by_closing
            || !self.reading.is_over()
            || !self.asked.keep_alive
            || self.gateway.is_stopping();
        let connection = match (self.closes, self.asked.http10) {
            (true, _) => Connection::Close,
            (false, true) => Connection::Persist10,
            (false, false) => Connection::Persist,
        };
        let framing = if self.ends_by_closing { FramingEdit::UntilClose } else { FramingEdit::AsIs };
        let edits = ResponseEdits { framing, connection, ..ResponseEdits::default() };
        self.writing = writing;
        self.output.forget_sent();
        convert::write_response(&response.into_parts().0, body, self.output.bytes(), &edits);
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, frame: &mut Frame) -> Poll<Result<(), Gone>> {
        if self.output.rest().len() >= GATHERED {
            ready!(self.poll_output(cx)).map_err(|_| Gone)?;
        }
        self.output.forget_sent();
        self.writing.write(self.output.bytes(), frame);
        if let Frame::Data(data, _) = frame {
            *data = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        self.poll_output(cx).map_err(|_| Gone)
    }

    /// Looks whether the client closed while its response is awaited. What it sends meanwhile is its next
    /// request.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.reading.is_over() && !self.client.incoming.is_full() {
            match ready!(self.client.incoming.poll_more(cx, &mut self.client.stream)) {
                Ok(n) if n > 0 => {}
                _ => return Poll::Ready(()),
            }
        }
        Poll::Pending
    }
}
