//! A client's connection between requests: waiting for a head, and closing so that what was said last
//! arrives.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    super::{gateway::Gateway, stream::Stream},
    incoming::Incoming,
};
use crate::worker::{buffer::Output, timer::Timer};

/// How long an idle connection is kept.
const KEEP_ALIVE: Duration = Duration::from_mins(1);
/// How long the head of a request may take, from its first byte to its last.
const HEAD: Duration = Duration::from_secs(15);
/// How long a connection without a request yet is kept open after its gateway was told to stop.
const LAST_CALL: Duration = Duration::from_millis(200);
/// How long a client may take nothing of what waits for it, or leave its request body waiting.
pub(super) const SLOWNESS: Duration = Duration::from_mins(1);
/// What a client still sends after the last response is read for so long and up to so much: a close
/// with unread bytes would reset the connection, and the response be lost (RFC 9112 §9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(2), 4 << 20);

/// A client's connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) stream: Stream,
    pub(super) peer: SocketAddr,
    /// Its IP address, as endpoints are told it.
    pub(super) address: String,
    pub(super) incoming: Incoming,
    pub(super) timer: Timer,
    /// Whether a request has come on it.
    pub(super) used: bool,
}

/// Why there is no more of a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoHead {
    /// The client closed, or was idle for too long, or the gateway stops.
    Over,
    /// The head did not come to its end in time.
    Slow,
}

impl Client {
    pub(super) fn new(stream: Stream, peer: SocketAddr, incoming: Incoming) -> Self {
        let address = peer.ip().to_canonical().to_string();
        Self { stream, peer, address, incoming, timer: Timer::new(), used: false }
    }

    /// From now on the head that has begun has its time.
    pub(super) fn head_begins(&self) {
        self.timer.set(HEAD);
    }

    /// Reads the beginning of a head.
    pub(super) async fn first_bytes(&mut self, gateway: &Gateway) -> Result<(), NoHead> {
        self.timer.set(KEEP_ALIVE);
        let mut last_call = false;
        poll_fn(|cx| {
            match self.incoming.poll_more(cx, &mut self.stream) {
                Poll::Ready(Ok(n)) if n > 0 => return Poll::Ready(Ok(())),
                Poll::Ready(_) => return Poll::Ready(Err(NoHead::Over)),
                Poll::Pending => {}
            }
            if gateway.is_stopping() && !last_call {
                if self.used {
                    return Poll::Ready(Err(NoHead::Over));
                }
                // The first request may be on its way.
                last_call = true;
                self.timer.set(LAST_CALL);
            }
            if self.timer.has_passed(cx) { Poll::Ready(Err(NoHead::Over)) } else { Poll::Pending }
        })
        .await?;
        self.head_begins();
        Ok(())
    }

    /// Reads more of a head that has begun.
    pub(super) async fn more_bytes(&mut self) -> Result<(), NoHead> {
        poll_fn(|cx| match self.incoming.poll_more(cx, &mut self.stream) {
            Poll::Ready(Ok(n)) if n > 0 => Poll::Ready(Ok(())),
            Poll::Ready(_) => Poll::Ready(Err(NoHead::Over)),
            Poll::Pending if self.timer.has_passed(cx) => Poll::Ready(Err(NoHead::Slow)),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    /// Sends all of `output`.
    pub(super) async fn send(&mut self, output: &mut Output) -> io::Result<()> {
        self.timer.set(SLOWNESS);
        poll_fn(|cx| {
            let sent = self.poll_send_all(cx, output);
            if sent.is_pending() && self.timer.has_passed(cx) {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            sent
        })
        .await
    }

    fn poll_send_all(&mut self, cx: &mut Context<'_>, output: &mut Output) -> Poll<io::Result<()>> {
        while !output.is_done() {
            let n = ready!(self.stream.poll_send(cx, output.rest()))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            output.advance(n);
        }
        self.stream.poll_sent(cx)
    }

    /// From now on a close is a reset.
    pub(super) fn reset(&self) {
        // An error means that it is closed already.
        let _ = socket2::SockRef::from(self.stream.tcp()).set_linger(Some(Duration::ZERO));
    }

    /// Closes; what the client is still sending is read for a while.
    pub(super) async fn close(mut self, expects_more: bool) {
        if !expects_more && !self.stream.is_tls() {
            return; // dropping it says the same
        }
        self.timer.set(LINGER.0);
        self.incoming = Incoming::default();
        let mut budget = LINGER.1;
        poll_fn(|cx| {
            // An error means that there is nobody left to tell.
            let closed = self.stream.poll_close(cx).is_ready() || self.timer.has_passed(cx);
            if closed { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        if !expects_more {
            return;
        }
        poll_fn(|cx| {
            loop {
                match self.incoming.poll_more(cx, &mut self.stream) {
                    Poll::Ready(Ok(n)) if n > 0 && n < budget => {
                        budget -= n;
                        self.incoming = Incoming::default();
                    }
                    Poll::Ready(_) => return Poll::Ready(()),
                    Poll::Pending if self.timer.has_passed(cx) => return Poll::Ready(()),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await;
    }
}
