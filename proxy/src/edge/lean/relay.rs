//! One request and its response between two connections, both directions at once: a response may begin
//! before the request has ended (RFC 9112 §9.5), and be preceded by interim ones (RFC 9110 §15.2).

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    super::{
        fault::Fault,
        gateway::Gateway,
        h1::{
            self,
            chunked::Chunked,
            response::{Connection, FramingEdit, ResponseBody, ResponseEdits, ResponseHead, parse_response},
        },
        stream::Stream,
        upstream,
    },
    client::{Client, SLOWNESS},
    incoming::Incoming,
    pump::{Framing, Pump},
    request::Asked,
};
use crate::{load::Aborted, worker::buffer::Output};

/// Interim responses to one request.
const MAX_INTERIMS: u32 = 100;

/// How an attempt to exchange a request for a response ended.
#[derive(Debug)]
pub(super) enum End {
    /// The response was sent to its end.
    Complete {
        /// Whether the connection to the endpoint can be used again.
        reusable: bool,
    },
    /// The endpoint switched protocols: bytes go to and fro from now on.
    Switched,
    /// The connection to the endpoint was lost before any byte of a response.
    Died,
    /// Nothing was sent to the client yet, and it is to be told this.
    Refused(Fault),
    /// The response had begun and was cut, or nobody is left to tell.
    Cut(Aborted),
}

impl From<Fault> for End {
    fn from(fault: Fault) -> Self {
        Self::Refused(fault)
    }
}

/// Everything an attempt works with.
pub(super) struct Relay<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) client: &'a mut Client,
    pub(super) asked: &'a mut Asked,
    pub(super) up: &'a mut Pump,
    pub(super) endpoint: &'a mut Stream,
    pub(super) down: Pump,
    /// From the endpoint.
    incoming: Incoming,
    /// Of the response, once its head was read.
    pub(super) status: u16,
    /// Whether the endpoint takes no more of the request; it may have answered even so.
    up_broken: bool,
    interims: u32,
    turn: Turn,
    endpoint_persists: bool,
    /// Whether the client's connection ends with this response.
    pub(super) closes: bool,
}

impl<'a> Relay<'a> {
    pub(super) fn new(
        gateway: &'a Gateway,
        client: &'a mut Client,
        asked: &'a mut Asked,
        up: &'a mut Pump,
        endpoint: &'a mut Stream,
    ) -> Self {
        client.timer.set(upstream::SILENCE);
        Self {
            gateway,
            client,
            asked,
            up,
            endpoint,
            down: Pump::new(Framing::Done, Output::new()),
            incoming: Incoming::default(),
            status: 0,
            up_broken: false,
            interims: 0,
            turn: Turn::Request,
            endpoint_persists: false,
            closes: false,
        }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        match self.turn {
            Turn::Request => return self.let_others_read(cx, Turn::Responses),
            Turn::Responses => return self.let_others_read(cx, Turn::Response),
            Turn::Response | Turn::Over => {}
        }
        match self.poll_exchange(cx) {
            // In the middle of an interim response nothing else can be said.
            Poll::Ready(End::Refused(_)) if self.down.is_midway() => Poll::Ready(End::Cut(Aborted::Upstream)),
            other => other,
        }
    }

    /// Sends after all connections that have something to read had their turn: first the responses,
    /// then the requests. What is sent in one go wakes the other side once; for what came one by one,
    /// or to clients and endpoints by turns, its kernel would be interrupted again and again, which
    /// costs more than the turns (measured with 32 connections: 0.8 µs a request for the first, 0.3 for
    /// the second).
    fn let_others_read<T>(&mut self, cx: &mut Context<'_>, next: Turn) -> Poll<T> {
        self.turn = next;
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_exchange(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        let up = match self.poll_up(cx) {
            Poll::Ready(Err(end)) => return Poll::Ready(end),
            Poll::Ready(Ok(())) => Up::Over,
            // Until it is told to go on, a client that asked owes nothing.
            Poll::Pending if self.up.is_flushed() && !self.asked.awaits_continue => Up::WaitsForClient,
            Poll::Pending => Up::WaitsForEndpoint,
        };
        if let Poll::Ready(end) = self.poll_down(cx) {
            return Poll::Ready(end);
        }
        if up == Up::Over && self.has_client_left(cx) {
            return Poll::Ready(End::Cut(Aborted::Client));
        }
        self.poll_time(cx, up)
    }

    /// The request. Ready when there is nothing more to send.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while !self.up_broken {
            if ready!(self.up.poll_flush(cx, self.endpoint, &mut self.client.incoming)).is_err() {
                self.up_broken = true; // what the endpoint says of it is read by the other direction
                break;
            }
            if self.up.is_over() {
                break;
            }
            match self.up.approve(&mut self.client.incoming) {
                Ok(true) => continue,
                Ok(false) if self.client.incoming.is_full() => return Poll::Ready(Err(self.bad_body())),
                Ok(false) => {}
                Err(_) => return Poll::Ready(Err(self.bad_body())),
            }
            match ready!(self.client.incoming.poll_more(cx, &mut self.client.stream)) {
                Ok(n) if n > 0 => self.asked.awaits_continue = false,
                _ => return Poll::Ready(Err(End::Cut(Aborted::Client))),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn bad_body(&self) -> End {
        if self.status > 0 { End::Cut(Aborted::Client) } else { Fault::BadBody.into() }
    }

    /// The response.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        loop {
            if self.turn == Turn::Response && self.status > 0 {
                return self.let_others_read(cx, Turn::Over);
            }
            if ready!(self.down.poll_flush(cx, &mut self.client.stream, &mut self.incoming)).is_err() {
                return Poll::Ready(End::Cut(Aborted::Client));
            }
            let moved = if self.status == 0 { self.read_head() } else { self.read_body() };
            match moved {
                Ok(true) => continue,
                Ok(false) if self.incoming.is_full() => return Poll::Ready(self.broken()),
                Ok(false) => {}
                Err(end) => return Poll::Ready(end),
            }
            match ready!(self.incoming.poll_more(cx, self.endpoint)) {
                Ok(n) if n > 0 => {}
                ended => {
                    if let Some(end) = self.on_endpoint_closed(ended.is_ok()) {
                        return Poll::Ready(end);
                    }
                }
            }
        }
    }

    /// Approves more of the body; `false` when more has to come.
    fn read_body(&mut self) -> Result<bool, End> {
        if self.down.is_over() {
            return Err(self.complete());
        }
        self.down.approve(&mut self.incoming).map_err(|_| End::Cut(Aborted::Upstream))
    }

    fn complete(&mut self) -> End {
        let sent = self.up.is_over() && self.up.is_flushed() && !self.up_broken;
        self.closes |= !sent;
        // Bytes beyond a response belong to nothing that was asked.
        End::Complete { reusable: self.endpoint_persists && sent && self.incoming.is_empty() }
    }

    fn broken(&self) -> End {
        if self.status > 0 { End::Cut(Aborted::Upstream) } else { Fault::Broken.into() }
    }

    /// `None` when that is how the body ends.
    fn on_endpoint_closed(&mut self, cleanly: bool) -> Option<End> {
        if self.status == 0 {
            let untouched = self.incoming.is_empty() && !self.asked.interim;
            return Some(if untouched { End::Died } else { Fault::Broken.into() });
        }
        if cleanly && self.down.on_close() {
            return None;
        }
        Some(End::Cut(Aborted::Upstream))
    }

    /// Reads a head; `false` when more of it has to come.
    fn read_head(&mut self) -> Result<bool, End> {
        if self.incoming.is_empty() {
            return Ok(false);
        }
        let mut slots = h1::slots();
        let parsed = parse_response(self.incoming.bytes(), &mut slots, self.asked.is_head);
        let Some(head) = parsed.map_err(|_| Fault::Broken)? else { return Ok(false) };
        let len = head.len();
        match head.status() {
            101 => {
                if !self.asked.upgrade || !head.upgrades() || !self.up.is_over() || !self.up.is_flushed() {
                    return Err(Fault::Broken.into());
                }
                let edits = ResponseEdits { connection: Connection::Upgrade, ..ResponseEdits::default() };
                head.write_downstream(self.down.output(), &edits);
                self.incoming.consume(len);
                self.status = 101;
                return Err(End::Switched);
            }
            100..=199 => {
                // HTTP/1.0 has no interim responses (RFC 9110 §15.2).
                self.interims += 1;
                if self.interims > MAX_INTERIMS {
                    return Err(Fault::Broken.into());
                }
                if !self.asked.http10 {
                    head.write_downstream(self.down.output(), &ResponseEdits::default());
                    self.asked.interim = true;
                    self.asked.awaits_continue = false;
                }
            }
            status => {
                let (framing, edit, closes) = framing(&head, self.asked.http10);
                let sent = self.up.is_over() && self.up.is_flushed() && !self.up_broken;
                self.closes = closes || !sent || !self.asked.keep_alive || self.gateway.is_stopping();
                let connection = match (self.closes, self.asked.http10) {
                    (true, _) => Connection::Close,
                    (false, true) => Connection::Persist10,
                    (false, false) => Connection::Persist,
                };
                let edits = ResponseEdits { framing: edit, connection, ..ResponseEdits::default() };
                head.write_downstream(self.down.output(), &edits);
                self.endpoint_persists =
                    head.keep_alive() && !matches!(framing, Framing::UntilClose | Framing::IntoChunks);
                self.status = status;
                self.down.continue_with(framing);
            }
        }
        self.incoming.consume(len);
        // What came with the head leaves with it.
        self.down.approve(&mut self.incoming).map_err(|_| End::Cut(Aborted::Upstream))?;
        Ok(true)
    }

    /// Looks whether the client closed while its response is awaited. What it sends meanwhile is its
    /// next request.
    fn has_client_left(&mut self, cx: &mut Context<'_>) -> bool {
        while !self.client.incoming.is_full() {
            match self.client.incoming.poll_more(cx, &mut self.client.stream) {
                Poll::Ready(Ok(n)) if n > 0 => {}
                Poll::Ready(_) => return true,
                Poll::Pending => return false,
            }
        }
        false
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, up: Up) -> Poll<End> {
        let client_takes_nothing = !self.down.is_flushed();
        let patience: Duration =
            if client_takes_nothing || up == Up::WaitsForClient { SLOWNESS } else { upstream::SILENCE };
        if !self.client.timer.has_passed(cx) {
            self.client.timer.set(patience); // something moved, or this would not have been called
            return Poll::Pending;
        }
        Poll::Ready(match (self.status, up) {
            (1.., _) => End::Cut(Aborted::Timeout),
            _ if client_takes_nothing => End::Cut(Aborted::Timeout),
            (_, Up::WaitsForClient) => Fault::SlowBody.into(),
            _ => Fault::TimedOut.into(),
        })
    }

    /// Whether only a reset tells a client that the response was cut: its end would be the connection's.
    pub(super) fn ends_by_closing(&self) -> bool {
        self.down.ends_by_closing()
    }

    /// What both sides said beyond the head of a switch of protocols.
    pub(super) fn into_switched(self) -> (Pump, Incoming) {
        (self.down, self.incoming)
    }
}

/// What other connections were not let before yet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    Request,
    Responses,
    Response,
    Over,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Up {
    Over,
    WaitsForClient,
    WaitsForEndpoint,
}

/// How the body of a response goes on to a client, and whether its end is the connection's.
fn framing(head: &ResponseHead<'_, '_>, http10: bool) -> (Framing, FramingEdit, bool) {
    use FramingEdit::{AsIs, Chunk, UntilClose};
    match (head.body(), http10) {
        (ResponseBody::None, _) => (Framing::Done, AsIs, false),
        (ResponseBody::Length(length), _) => (Framing::Length(length), AsIs, false),
        (ResponseBody::Chunked, false) => (Framing::Chunks(Chunked::default()), AsIs, false),
        // HTTP/1.0 knows no chunks (RFC 9112 §6.1).
        (ResponseBody::Chunked, true) => (Framing::Data(Chunked::default()), UntilClose, true),
        (ResponseBody::UntilClose, false) => (Framing::IntoChunks, Chunk, false),
        (ResponseBody::UntilClose, true) => (Framing::UntilClose, UntilClose, true),
    }
}
