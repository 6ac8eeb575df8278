//! After a switch of protocols (RFC 9110 §7.8) bytes go to and fro, and nobody looks at them.

use std::{
    future::poll_fn,
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{
    super::{gateway::Ended, stream::Stream},
    client::Client,
    incoming::Incoming,
    pump::{Framing, Pump},
};
use crate::{load::Aborted, worker::buffer::Output};

/// How long nothing may pass in either direction. Long, as such protocols live with silence.
const SILENCE: Duration = Duration::from_hours(1);

/// Carries bytes until both sides have closed. `down` has what the endpoint is still owed to be said,
/// `incoming` what it already said.
pub(super) async fn run(
    client: &mut Client,
    mut endpoint: Stream,
    mut down: Pump,
    mut incoming: Incoming,
) -> Ended {
    let mut up = Pump::new(Framing::UntilClose, Output::new());
    down.continue_with(Framing::UntilClose);
    let (mut up_closed, mut down_closed) = (false, false);
    client.timer.set(SILENCE);
    let aborted = poll_fn(|cx| {
        let result = poll_both(
            cx,
            (&mut up, &mut up_closed),
            (&mut down, &mut down_closed),
            client,
            (&mut endpoint, &mut incoming),
        );
        if result.is_pending() {
            if client.timer.has_passed(cx) {
                return Poll::Ready(Some(Aborted::Timeout));
            }
            client.timer.set(SILENCE); // something moved, or this would not have been called
        }
        result
    })
    .await;
    Ended { since: 0, status: 101, aborted, bytes_sent: down.body_bytes() }
}

/// Ready when both directions are closed, or one broke: who broke it.
fn poll_both(
    cx: &mut Context<'_>,
    (up, up_closed): (&mut Pump, &mut bool),
    (down, down_closed): (&mut Pump, &mut bool),
    client: &mut Client,
    (endpoint, incoming): (&mut Stream, &mut Incoming),
) -> Poll<Option<Aborted>> {
    let mut pending = false;
    if !*up_closed {
        match poll_one(cx, up, &mut client.stream, &mut client.incoming, endpoint) {
            Poll::Ready(Ok(())) => *up_closed = true,
            Poll::Ready(Err(Side::From)) => return Poll::Ready(Some(Aborted::Client)),
            Poll::Ready(Err(Side::To)) => return Poll::Ready(Some(Aborted::Upstream)),
            Poll::Pending => pending = true,
        }
    }
    if !*down_closed {
        match poll_one(cx, down, endpoint, incoming, &mut client.stream) {
            Poll::Ready(Ok(())) => *down_closed = true,
            Poll::Ready(Err(Side::From)) => return Poll::Ready(Some(Aborted::Upstream)),
            Poll::Ready(Err(Side::To)) => return Poll::Ready(Some(Aborted::Client)),
            Poll::Pending => pending = true,
        }
    }
    if pending { Poll::Pending } else { Poll::Ready(None) }
}

enum Side {
    From,
    To,
}

/// One direction; ready when `from` has closed and `to` was told.
fn poll_one(
    cx: &mut Context<'_>,
    pump: &mut Pump,
    from: &mut Stream,
    incoming: &mut Incoming,
    to: &mut Stream,
) -> Poll<Result<(), Side>> {
    loop {
        if ready!(pump.poll_flush(cx, to, incoming)).is_err() {
            return Poll::Ready(Err(Side::To));
        }
        if pump.is_over() {
            return to.poll_close(cx).map_err(|_| Side::To);
        }
        if pump.approve(incoming).is_ok_and(|approved| approved) {
            continue;
        }
        match ready!(incoming.poll_more(cx, from)) {
            Ok(0) => _ = pump.on_close(),
            Ok(_) => {}
            Err(_) => return Poll::Ready(Err(Side::From)),
        }
    }
}
