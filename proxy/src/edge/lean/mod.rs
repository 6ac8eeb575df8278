//! The lean engine: HTTP/1 to HTTP/1, in clear and through TLS. One task a connection, nothing spawned,
//! sent through a channel, locked or allocated for a request in the common case: a head is read, understood, edited and
//! sent on in one write, and so is its response. Whatever is forwarded is framed anew from what was
//! understood.
//!
//! - [`client`]: a client's connection between requests. [`incoming`]: what was read and not consumed.
//! - [`request`]: from bytes to a request that was let in.
//! - [`relay`]: one request and its response, both directions at once; [`pump`] is one direction.
//! - [`to_http2`]: one request to an endpoint of HTTP/2. [`tunnel`]: after a switch of protocols.

mod client;
pub(crate) mod incoming;
mod pump;
mod relay;
mod request;
mod to_http2;
mod tunnel;

use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    sync::atomic::Ordering,
    task::Poll,
};

use http::StatusCode;

use super::{
    answer,
    gateway::{Ended, Gateway},
    h1::HeadError,
    policy::{Died, Journey, Refusal},
    stream::Stream,
    upstream,
};
use crate::{
    load::{Aborted, EndpointLoad, now_micros},
    worker::pool,
};
use client::{Client, NoHead};
use incoming::Incoming;
use pump::Pump;
use relay::{End, Relay};
use request::{Asked, Request};

const TOO_LARGE: HeadError = HeadError { status: 431, reason: "the head of the request is too large" };
const TOO_SLOW: HeadError = HeadError { status: 408, reason: "the head of the request took too long" };

/// What becomes of a client's connection after a request.
enum After {
    /// The next request.
    Next,
    /// It closes; whether the client may still be sending.
    Close { sends: bool },
    /// It is cut, so that nobody takes what was sent for the whole.
    Cut,
}

/// Serves a connection to its end. Some of it may have been read.
pub(crate) async fn serve(stream: Stream, peer: SocketAddr, incoming: Incoming, gateway: &Gateway) {
    let mut client = Client::new(stream, peer, incoming);
    loop {
        let after = match next(&mut client, gateway).await {
            Ok(Some(request)) => answer(&mut client, gateway, request).await,
            Ok(None) => After::Close { sends: false },
            Err(error) => refuse_head(&mut client, gateway, &error).await,
        };
        match after {
            After::Next => {}
            After::Close { sends } => return client.close(sends).await,
            After::Cut => return,
        }
    }
}

/// Waits for a request; `None` when none comes.
async fn next(client: &mut Client, gateway: &Gateway) -> Result<Option<Request>, HeadError> {
    // Some clients end a body with a CRLF that is not of it (RFC 9112 §2.2).
    let mut stray = false;
    loop {
        if !stray && client.incoming.bytes() == b"\r\n" {
            stray = true;
            client.incoming.consume(2);
        }
        if !client.incoming.is_empty() {
            client.head_begins();
            break;
        }
        if client.first_bytes(gateway).await.is_err() {
            return Ok(None);
        }
    }
    let mut looked_at = 0;
    loop {
        // A head that comes in crumbs is parsed anew only when a line has come to its end: there are
        // few in what is valid so far.
        let bytes = client.incoming.bytes();
        if (looked_at == 0 || bytes[looked_at..].contains(&b'\n'))
            && let Some(request) = request::read(client, gateway)?
        {
            return Ok(Some(request));
        }
        if client.incoming.is_full() {
            return Err(TOO_LARGE);
        }
        looked_at = client.incoming.bytes().len();
        match client.more_bytes().await {
            Ok(()) => {}
            Err(NoHead::Over) => return Ok(None),
            Err(NoHead::Slow) => return Err(TOO_SLOW),
        }
    }
}

/// Says that a head is not one; the connection ends with it, as nobody knows where the next begins.
async fn refuse_head(client: &mut Client, gateway: &Gateway, error: &HeadError) -> After {
    let since = now_micros();
    gateway.shared.connections.stats.heads_refused.fetch_add(1, Ordering::Relaxed);
    let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
    let (method, path) = request_line(client.incoming.bytes());
    let log = gateway.log_entry(client.peer, method, "", path);
    let mut output = answer::write(status, error, false, answer::Persistence::Close);
    let told = client.send(&mut output).await.is_ok();
    let ended = Ended { since, status: if told { status.as_u16() } else { 0 }, aborted: None, bytes_sent: 0 };
    gateway.finish(None, &ended, log);
    After::Close { sends: true }
}

/// Method and path of a head that was refused, as far as they can be told: for the log, where somebody
/// looks for them.
fn request_line(head: &[u8]) -> (&str, &str) {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).find(|line| !line.is_empty());
    let line = line.filter(|line| line.iter().all(|byte| matches!(byte, b' '..=b'~')));
    let line = line.and_then(|line| str::from_utf8(line).ok()).unwrap_or_default();
    let (method, rest) = line.split_once(' ').unwrap_or_default();
    (method, rest.split([' ', '?']).next().unwrap_or_default())
}

/// Brings a request to its end.
async fn answer(client: &mut Client, gateway: &Gateway, request: Request) -> After {
    let Request { mut asked, journey, mut up, http2 } = request;
    let mut journey = match journey {
        Ok(journey) => journey,
        Err(refused) => {
            let journey = refused.journey.map(|journey| *journey);
            return refuse(client, gateway, asked, journey, &refused.refusal, up.is_over()).await;
        }
    };
    if let Some(head) = http2 {
        // On the heap, so that other connections do not carry its size.
        return Box::pin(to_http2::answer(client, gateway, asked, journey, head)).await;
    }
    let mut rng = fastrand::Rng::new();
    loop {
        let Some(endpoint) = journey.endpoint() else {
            return refuse(client, gateway, asked, None, &Refusal::Internal, up.is_over()).await;
        };
        let reused = pool::take(journey.cluster().peer(endpoint));
        let is_reused = reused.is_some();
        let connected = match reused {
            Some(stream) => Ok(stream),
            None => connect(client, &journey, endpoint).await,
        };
        let Ok(mut stream) = connected else {
            if journey.connect_failed(&gateway.name, &mut rng) {
                continue;
            }
            let refusal = journey.unreachable();
            return refuse(client, gateway, asked, Some(journey), &refusal, up.is_over()).await;
        };
        let keep_alive = asked.keep_alive;
        let mut relay = Relay::new(gateway, client, &mut asked, &mut up, &mut stream);
        let end = poll_fn(|cx| relay.poll(cx)).await;
        let (status, closes, bytes_sent) = (relay.status, relay.closes, relay.down.body_bytes());
        let ended = |aborted| Ended { since: 0, status, aborted, bytes_sent };
        match end {
            End::Complete { reusable } => {
                if reusable && let Some(endpoint) = journey.endpoint() {
                    pool::put(journey.cluster().peer(endpoint), endpoint, stream);
                }
                finish(gateway, journey, asked, ended(None));
                // A client that wanted to go on may have sent its next request already.
                let sends = !up.is_over() || keep_alive;
                return if closes { After::Close { sends } } else { After::Next };
            }
            End::Switched => {
                let (down, incoming) = relay.into_switched();
                let switched = tunnel::run(client, stream, down, incoming).await;
                finish(gateway, journey, asked, Ended { since: 0, status, ..switched });
                return After::Close { sends: false };
            }
            End::Cut(why) => {
                if relay.ends_by_closing() {
                    client.reset();
                }
                finish(gateway, journey, asked, ended(Some(why)));
                return After::Cut;
            }
            End::Refused(fault) => {
                let refusal = fault.refusal(&journey, &gateway.name);
                return refuse(client, gateway, asked, Some(journey), &refusal, up.is_over()).await;
            }
            End::Died => {
                if may_repeat(&asked, &up)
                    && journey.connection_died(died(is_reused), &gateway.name, &mut rng)
                {
                    up.rewind();
                    continue;
                }
                let refusal = journey.broken();
                return refuse(client, gateway, asked, Some(journey), &refusal, up.is_over()).await;
            }
        }
    }
}

/// Whether a request whose connection was lost can be sent once more: all of it is still here, and
/// either nothing of it was taken or its repetition changes nothing (RFC 9110 §9.2.2).
fn may_repeat(asked: &Asked, up: &Pump) -> bool {
    up.is_replayable() && (asked.is_idempotent || !up.began())
}

fn died(reused: bool) -> Died {
    if reused { Died::Reused } else { Died::Fresh }
}

async fn connect(client: &Client, journey: &Journey, endpoint: &EndpointLoad) -> io::Result<Stream> {
    let cluster = journey.cluster();
    let mut connecting = std::pin::pin!(upstream::connect(cluster, endpoint));
    client.timer.set(cluster.config.connect_timeout);
    poll_fn(|cx| match connecting.as_mut().poll(cx) {
        Poll::Pending if client.timer.has_passed(cx) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
        connected => connected,
    })
    .await
}

/// Answers in the endpoint's stead.
async fn refuse(
    client: &mut Client,
    gateway: &Gateway,
    asked: Asked,
    journey: Option<Journey>,
    refusal: &Refusal,
    is_body_over: bool,
) -> After {
    // What is left of a body would be taken for the next request.
    let persists = asked.keep_alive && is_body_over && !asked.interim && !gateway.is_stopping();
    let persistence = match (persists, asked.http10) {
        (false, _) => answer::Persistence::Close,
        (true, false) => answer::Persistence::Persist,
        (true, true) => answer::Persistence::Persist10,
    };
    let status = refusal.status();
    let mut output = answer::write(status, &format_args!("{refusal}"), asked.is_head, persistence);
    let told = client.send(&mut output).await.is_ok();
    let ended = Ended {
        since: asked.since,
        status: if told { status.as_u16() } else { 0 },
        aborted: (!told).then_some(Aborted::Client),
        bytes_sent: 0,
    };
    gateway.finish(journey, &ended, asked.log);
    match (told, persists) {
        (true, true) => After::Next,
        (true, false) => After::Close { sends: true },
        (false, _) => After::Cut,
    }
}

fn finish(gateway: &Gateway, journey: Journey, asked: Asked, ended: Ended) {
    gateway.finish(Some(journey), &Ended { since: asked.since, ..ended }, asked.log);
}
