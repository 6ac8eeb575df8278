//! A client's connection of HTTP/2: one task for it and all of its streams. Each turn takes what came,
//! lets the streams that were woken go on, and sends what all of them had to say in one write.
//!
//! - [`cancels`]: how many streams a client may cut. [`farewell`]: how long it may take to close;
//!   [`linger`]: the end of a connection.

mod cancels;
mod farewell;
mod linger;

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::{Reason, server};

use self::{cancels::Cancels, farewell::Farewell};
use super::{
    super::{gateway::Gateway, lean::incoming::Incoming, stream::Stream},
    exchange::SLOWNESS,
    request::{self, Fate, Peer},
    signal::Signal,
    wire::{SMALL_FRAMES_BUDGET, Wire},
};
use crate::{load::now_micros, worker::timer::Timer};

/// Streams at once of one client (RFC 9113 §6.5.2 wants no less).
const STREAMS: u32 = 100;
/// Bytes of a request's body that wait in a stream for a slow endpoint: what is on its way at 10 Mbit/s
/// from a client 100 ms away, or at 20 Mbit/s from one 50 ms away.
const STREAM_WINDOW: u32 = 128 * 1024;
/// The same of all streams of a connection: their sum, as those whose endpoints take nothing would use up
/// anything less, and the others wait behind them. That is 12.5 MiB at worst, for a hundred uploads that
/// are all stuck; the kernel may hold 6 MiB of a connection as it is. All clients together are bounded by
/// the requests in flight, 2^17: 16 GiB, where 256 KiB a stream in 1 MiB a connection came to 32 GiB.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS;
/// Bytes of a response that wait in a stream for the connection.
const SEND_BUFFER: usize = 32 * 1024;
/// Bytes of a request's head, as RFC 9113 §6.5.2 counts them.
const HEAD: u32 = 64 * 1024;
/// How long the beginning of a connection may take.
const PREFACE: Duration = Duration::from_secs(15);
/// How long a connection without a stream is kept.
const IDLE: Duration = Duration::from_mins(1);
/// How often a turn goes round before other connections have theirs.
const ROUNDS: usize = 4;

/// Serves a connection to its end. Some of it may have been read.
pub(crate) async fn serve(stream: Stream, peer: SocketAddr, read: Incoming, gateway: &Gateway) {
    let peer = Peer {
        socket: peer,
        address: peer.ip().to_canonical().to_string(),
        proto: if stream.is_tls() { "https" } else { "http" },
    };
    let wire = Wire::new(stream, read);
    let timer = Timer::new();
    let Some(connection) = handshake(&wire, &timer).await else { return };
    timer.clear(); // the first turn may begin with streams, which have timers of their own
    let mut turns = Turns {
        connection,
        wire,
        gateway,
        open: |request, respond| request::serve(gateway, &peer, request, respond),
        streams: FuturesUnordered::new(),
        signal: Signal::new(),
        timer: &timer,
        sent: 0,
        began: false,
        cancels: Cancels::new(now_micros()),
        stopping: false,
        farewell: None,
        waits: Waits::Nothing,
    };
    let waker = Waker::from(Arc::clone(&turns.signal));
    poll_fn(|cx| turns.poll(cx, &waker)).await;
    let Turns { connection, streams, wire, .. } = turns;
    drop(connection); // the streams that are left learn of it, and end
    linger::linger(wire, streams, &timer).await;
}

/// Reads the client's preface; `None` when none comes in time.
async fn handshake(wire: &Wire, timer: &Timer) -> Option<server::Connection<Wire, Bytes>> {
    let mut handshake = pin!(builder().handshake(wire.clone()));
    timer.set(PREFACE);
    poll_fn(|cx| {
        let result = handshake.as_mut().poll(cx);
        if matches!(wire.poll_send(cx), Poll::Ready(Err(_))) {
            return Poll::Ready(None);
        }
        match result {
            Poll::Ready(connection) => Poll::Ready(connection.ok()),
            Poll::Pending if timer.has_passed(cx) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

fn builder() -> server::Builder {
    let mut builder = server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    builder
}

/// What a connection is given time for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    /// Its streams have timers of their own.
    Nothing,
    /// The client takes what was sent.
    Sending,
    /// A request comes.
    Idle,
    /// The client closes.
    Farewell,
}

/// A connection with its streams.
struct Turns<'a, O, F> {
    connection: server::Connection<Wire, Bytes>,
    wire: Wire,
    gateway: &'a Gateway,
    open: O,
    streams: FuturesUnordered<F>,
    signal: Arc<Signal>,
    timer: &'a Timer,
    /// Bytes that had gone out at the last turn.
    sent: u64,
    /// Whether a stream was begun since the last turn ended.
    began: bool,
    cancels: Cancels,
    /// Whether the client was told that no more requests are taken.
    stopping: bool,
    /// Since the client was told so, and had no more streams.
    farewell: Option<Farewell>,
    waits: Waits,
}

impl<O, F> Turns<'_, O, F>
where
    O: Fn(http::Request<h2::RecvStream>, server::SendResponse<Bytes>) -> F,
    F: Future<Output = Fate>,
{
    /// One turn. Ready when the connection is over.
    fn poll(&mut self, cx: &mut Context<'_>, waker: &Waker) -> Poll<()> {
        self.signal.begin(cx.waker());
        let over = self.poll_all(cx, waker);
        // Also when it is over: the last word is among it.
        let sent = self.wire.poll_send(cx);
        if over || matches!(sent, Poll::Ready(Err(_))) {
            return Poll::Ready(());
        }
        let timed_out = self.poll_time(cx, sent.is_pending());
        self.signal.end();
        timed_out
    }

    /// Whether the connection is over.
    fn poll_all(&mut self, cx: &mut Context<'_>, waker: &Waker) -> bool {
        if !self.stopping && self.gateway.is_stopping() {
            self.stop();
        }
        for _ in 0..ROUNDS {
            if self.signal.take() && self.poll_connection(&mut Context::from_waker(waker)) {
                return true;
            }
            self.poll_streams(cx);
            if !self.signal.is_raised() {
                break;
            }
        }
        false
    }

    /// Takes what came and writes what is to go. Whether the connection is over.
    fn poll_connection(&mut self, cx: &mut Context<'_>) -> bool {
        loop {
            match self.connection.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    self.began = true;
                    self.streams.push((self.open)(request, respond));
                }
                // An error has been answered with a GOAWAY, as far as that was possible.
                Poll::Ready(Some(Err(_)) | None) => return true,
                Poll::Pending => return false,
            }
        }
    }

    fn poll_streams(&mut self, cx: &mut Context<'_>) {
        let mut too_many = false;
        while let Poll::Ready(Some(fate)) = self.streams.poll_next_unpin(cx) {
            match fate {
                Fate::Answered => self.cancels.answered(),
                Fate::Cancelled => too_many |= self.cancels.cancelled(now_micros()),
            }
        }
        if too_many {
            self.connection.abrupt_shutdown(Reason::ENHANCE_YOUR_CALM);
            self.signal.raise();
        }
    }

    /// Says good-bye: no more requests than those that are on their way (RFC 9113 §6.8).
    fn stop(&mut self) {
        self.stopping = true;
        self.connection.graceful_shutdown();
        self.signal.raise();
    }

    fn poll_time(&mut self, cx: &mut Context<'_>, sending: bool) -> Poll<()> {
        if self.stopping && self.streams.is_empty() {
            return self.poll_farewell(cx, sending);
        }
        self.farewell = None;
        let waits = match (sending, self.streams.is_empty()) {
            (true, _) => Waits::Sending,
            (false, true) => Waits::Idle,
            (false, false) => Waits::Nothing,
        };
        let sent = self.wire.sent();
        let moved = std::mem::replace(&mut self.sent, sent) != sent;
        let began = std::mem::take(&mut self.began);
        // Pings do not keep an idle connection.
        let goes_on = if waits == Waits::Idle { began } else { moved };
        if waits != self.waits || (goes_on && waits != Waits::Nothing) {
            self.waits = waits;
            match waits {
                Waits::Sending => self.timer.set(SLOWNESS),
                Waits::Idle => self.timer.set(IDLE),
                Waits::Nothing | Waits::Farewell => self.timer.clear(),
            }
        }
        if !self.timer.has_passed(cx) {
            return Poll::Pending;
        }
        if waits == Waits::Idle {
            self.stop();
            return self.poll_farewell(cx, sending);
        }
        Poll::Ready(())
    }

    /// The last stream has ended, and the client is to close.
    fn poll_farewell(&mut self, cx: &mut Context<'_>, sending: bool) -> Poll<()> {
        let now = Instant::now();
        // What `h2` holds of responses that have ended comes when the wire has room again.
        let owes = sending || self.signal.is_raised();
        let farewell = self.farewell.get_or_insert_with(|| Farewell::new(now));
        let moved = farewell.note(owes, now);
        let by = farewell.by();
        if self.waits != Waits::Farewell || moved {
            self.waits = Waits::Farewell;
            self.timer.set(by.saturating_duration_since(now));
        }
        if self.timer.has_passed(cx) { Poll::Ready(()) } else { Poll::Pending }
    }
}
