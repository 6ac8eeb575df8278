//! The task of a connection to an endpoint: it moves the frames, and looks after the connection's life.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{Ping, PingPong, client};

use super::{
    super::wire::Wire,
    alive::{Alive, Now, PING, Verdict},
    close,
    lease::State,
    settle,
};
use crate::worker::timer::Timer;

pub(super) struct Driver {
    connection: client::Connection<Wire, Bytes>,
    wire: Wire,
    pings: Option<PingPong>,
    state: Arc<State>,
    alive: Alive,
}

impl Driver {
    pub(super) fn new(
        mut connection: client::Connection<Wire, Bytes>,
        wire: Wire,
        state: Arc<State>,
    ) -> Self {
        let pings = connection.ping_pong();
        Self { connection, wire, pings, state, alive: Alive::default() }
    }

    /// Moves frames until the connection is over.
    pub(super) async fn run(mut self) {
        let timer = Timer::new();
        timer.set(PING);
        poll_fn(|cx| self.poll(cx, &timer)).await;
        close(&self.state);
    }

    fn poll(&mut self, cx: &mut Context<'_>, timer: &Timer) -> Poll<()> {
        if Pin::new(&mut self.connection).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        let sent = self.wire.poll_send(cx);
        if matches!(sent, Poll::Ready(Err(_))) {
            return Poll::Ready(());
        }
        // SETTINGS may have come; the first ones say how many of those who wait can go on.
        if self.state.learn(self.connection.max_concurrent_send_streams()) {
            settle(self.state.peer);
        }
        if self.alive.asked && self.pings.as_mut().is_some_and(|pings| pings.poll_pong(cx).is_ready()) {
            self.alive.asked = false;
        }
        if timer.has_passed(cx) {
            let now = Now {
                received: self.wire.received(),
                sent: self.wire.sent(),
                sending: sent.is_pending(),
                streams: self.state.streams(),
            };
            match self.alive.after_a_while(now) {
                Verdict::Fine => {}
                // It is written when the connection is polled, which this asks for.
                Verdict::Ask => {
                    let asked = self.pings.as_mut().map(|pings| pings.send_ping(Ping::opaque()));
                    self.alive.asked = matches!(asked, Some(Ok(())));
                }
                // Closes when nobody can send on it any more.
                Verdict::Idle => close(&self.state),
                Verdict::Dead => return Poll::Ready(()),
            }
            timer.set(PING);
            _ = timer.has_passed(cx);
        }
        Poll::Pending
    }
}
