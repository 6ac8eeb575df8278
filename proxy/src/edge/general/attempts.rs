//! A request that was let in, sent to one endpoint after the other as the policy says.

use std::{
    future::{Future, poll_fn},
    io,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use http::{Request, request::Parts};

use super::{
    super::{
        gateway::Gateway,
        h1::request::{RequestBody, RequestEdits},
        policy::{Died, Journey, Refusal},
        upstream,
    },
    client::Client,
    exchange::{End, Exchange, SLOWNESS, Sent},
    pool as streams,
    up::{Failed, Http1, Http1Head, Http2, Up},
};
use crate::{
    load::Aborted,
    worker::{pool, timer::Timer},
};

/// Places that were waited for, on connections that turn out to be over, before an endpoint is given up.
const STALE: usize = 3;

/// What is sent.
pub(crate) struct Asked<'a> {
    /// For an endpoint of HTTP/2 the head that it gets; for one of HTTP/1 the client's.
    pub(crate) parts: &'a Parts,
    /// For an endpoint of HTTP/1.
    pub(crate) body: RequestBody,
    /// Whether the head is all of it.
    pub(crate) ends: bool,
    /// For an endpoint of HTTP/1.
    pub(crate) edits: RequestEdits<'a>,
    pub(crate) is_idempotent: bool,
    /// Whether either side may be silent for as long as it likes while its body is open.
    pub(crate) is_grpc: bool,
}

/// What became of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) end: Ended,
    /// 0: no response was begun.
    pub(crate) status: u16,
    /// Of the body of the response.
    pub(crate) bytes_sent: u64,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The response was sent to its end.
    Complete,
    /// Nothing was sent to the client yet, and it is to be told this.
    Refused(Refusal),
    /// The response had begun and was cut, or nobody is left to tell.
    Cut(Aborted),
}

impl From<Ended> for Outcome {
    fn from(end: Ended) -> Self {
        Self { end, status: 0, bytes_sent: 0 }
    }
}

/// Why there is nobody to send a request to.
enum NotOpened {
    /// The endpoint cannot be connected to.
    Failed,
    /// The client has gone.
    Gone,
    Refused(Refusal),
}

/// Brings a request to its end.
pub(crate) async fn answer(
    client: &mut impl Client,
    gateway: &Gateway,
    asked: &Asked<'_>,
    journey: &mut Journey,
    timer: &Timer,
) -> Outcome {
    let mut sent = Sent::default();
    loop {
        let up = match open(client, asked, journey, timer).await {
            Ok(up) => up,
            Err(NotOpened::Failed) => {
                if journey.connect_failed(&gateway.name, &mut fastrand::Rng::new()) {
                    continue;
                }
                return Ended::Refused(journey.unreachable()).into();
            }
            Err(NotOpened::Gone) => return Ended::Cut(Aborted::Client).into(),
            Err(NotOpened::Refused(refusal)) => return Ended::Refused(refusal).into(),
        };
        let body_patience = if asked.is_grpc { upstream::SILENCE } else { SLOWNESS };
        let mut exchange = Exchange::new(client, up, timer, &mut sent, !asked.ends, body_patience);
        let end = poll_fn(|cx| exchange.poll(cx)).await;
        let is_sent = exchange.is_sent();
        exchange.give_back();
        let (status, bytes_sent, up) = (exchange.status, exchange.bytes_sent, exchange.up);
        let end = match end {
            End::Complete => {
                if let (Up::Http1(up), Some(endpoint), true) = (up, journey.endpoint(), is_sent)
                    && let Some(stream) = up.into_reusable()
                {
                    pool::put(journey.cluster().peer(endpoint), endpoint, stream);
                }
                Ended::Complete
            }
            End::Cut(why) => Ended::Cut(why),
            End::Refused(fault) => Ended::Refused(fault.refusal(journey, &gateway.name)),
            End::Died(failed) => {
                let died = match failed {
                    Failed::Unprocessed => Died::Unprocessed,
                    _ if up.is_reused() => Died::Reused,
                    _ => Died::Fresh,
                };
                // Nobody has acted on it, or its repetition changes nothing (RFC 9110 §9.2.2).
                let safe = asked.is_idempotent || failed == Failed::Unprocessed;
                drop(up);
                if safe
                    && sent.is_replayable()
                    && journey.connection_died(died, &gateway.name, &mut fastrand::Rng::new())
                {
                    continue;
                }
                Ended::Refused(journey.broken())
            }
        };
        return Outcome { end, status, bytes_sent };
    }
}

/// A connection, or a stream of one, to the endpoint whose turn it is.
async fn open(
    client: &mut impl Client,
    asked: &Asked<'_>,
    journey: &Journey,
    timer: &Timer,
) -> Result<Up, NotOpened> {
    let Some(endpoint) = journey.endpoint() else { return Err(NotOpened::Refused(Refusal::Internal)) };
    let cluster = journey.cluster();
    let within = cluster.config.connect_timeout;
    if cluster.config.http2 {
        let request = || Request::from_parts(asked.parts.clone(), ());
        for _ in 0..STALE {
            // Those that died unnoticed, or said that they take no more, may be all there are. Each that
            // fails is retired, so this ends.
            while let Some(lease) = streams::take(cluster.peer(endpoint)) {
                if let Some(up) = Http2::new(lease, request(), asked.ends) {
                    return Ok(Up::Http2(up));
                }
            }
            // On the heap, as it is rare and large: every stream would carry its size.
            let lease = wait(client, timer, within, Box::pin(streams::lease(cluster, endpoint))).await?;
            if let Some(up) = Http2::new(lease, request(), asked.ends) {
                return Ok(Up::Http2(up));
            }
        }
        return Err(NotOpened::Failed);
    }
    let head = Http1Head::new(asked.parts, asked.body, &asked.edits)
        .map_err(|_| NotOpened::Refused(Refusal::BadRequest))?;
    if let Some(stream) = pool::take(cluster.peer(endpoint)) {
        return Ok(Up::Http1(Http1::new(stream, true, head)));
    }
    let connecting = Box::pin(upstream::connect(cluster, endpoint));
    let stream = wait(client, timer, within, connecting).await?;
    Ok(Up::Http1(Http1::new(stream, false, head)))
}

/// Waits for a connection as long as it may take and there is a client.
async fn wait<T>(
    client: &mut impl Client,
    timer: &Timer,
    within: Duration,
    mut connecting: Pin<Box<impl Future<Output = io::Result<T>>>>,
) -> Result<T, NotOpened> {
    timer.set(within);
    poll_fn(|cx| {
        if let Poll::Ready(connected) = connecting.as_mut().poll(cx) {
            return Poll::Ready(connected.map_err(|_| NotOpened::Failed));
        }
        client.gather(cx);
        if client.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(NotOpened::Gone));
        }
        if timer.has_passed(cx) { Poll::Ready(Err(NotOpened::Failed)) } else { Poll::Pending }
    })
    .await
}
