//! One stream of a client's connection: a request that is let in, answered and accounted for.

use std::{
    fmt::Display, future::poll_fn, net::SocketAddr, sync::atomic::Ordering, task::Poll, time::Duration,
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{Method, Request, StatusCode, request::Parts};

use super::{
    super::{
        gateway::{self, Gateway, LogEntry},
        h1::{HeadError, request::RequestEdits},
        policy::{self, Head, Journey},
    },
    Frame,
    attempts::{self, Asked, Ended},
    client::{Client, Stream},
    exchange::SLOWNESS,
    grpc, head, refuse,
};
use crate::{
    load::{Aborted, now_micros},
    worker::timer::Timer,
};

/// How long a client may go on with its request after the response.
const LINGER: Duration = Duration::from_secs(2);

/// Whose connection it is.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) socket: SocketAddr,
    /// Its IP address, as endpoints are told it.
    pub(super) address: String,
    pub(super) proto: &'static str,
}

/// What a stream says of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It took its answer.
    Answered,
    /// It cut the stream before there was one.
    Cancelled,
}

/// Serves a stream to its end.
pub(super) async fn serve(
    gateway: &Gateway,
    peer: &Peer,
    request: Request<RecvStream>,
    respond: SendResponse<Bytes>,
) -> Fate {
    let (mut parts, body) = request.into_parts();
    let ends = body.is_end_stream();
    let stream = Stream::new(body, !ends && head::expects_continue(&parts), respond);
    let mut call = Call {
        gateway,
        stream,
        timer: Timer::new(),
        is_head: parts.method == Method::HEAD,
        is_grpc: grpc::is_grpc(&parts.headers),
        account: Account { gateway, since: now_micros(), journey: None, log: None, settled: false },
    };
    let journey = match call.admit(peer, &parts) {
        Ok(journey) => journey,
        Err(NotAdmitted::Head(error)) => {
            gateway.shared.connections.stats.heads_refused.fetch_add(1, Ordering::Relaxed);
            return call.refuse_head(&error).await;
        }
        Err(NotAdmitted::Refused(refused)) => {
            call.account.journey = refused.journey.map(|journey| *journey);
            return call.refuse(refused.refusal.status(), &refused.refusal).await;
        }
    };
    let is_http2 = journey.cluster().config.http2;
    let body = head::body(&parts, ends);
    let journey = call.account.journey.insert(journey);
    if is_http2 && let Err(error) = head::edit(&mut parts, &peer.address, peer.proto) {
        return call.refuse_head(&error).await;
    }
    let asked = Asked {
        is_idempotent: policy::is_idempotent(parts.method.as_str()),
        is_grpc: call.is_grpc,
        body,
        ends,
        edits: RequestEdits {
            client: &peer.address,
            proto: peer.proto,
            te_trailers: true,
            drop_expect: true,
            ..RequestEdits::default()
        },
        parts: &parts,
    };
    let outcome = attempts::answer(&mut call.stream, gateway, &asked, journey, &call.timer).await;
    match outcome.end {
        Ended::Complete => {
            call.linger_after(outcome.status, outcome.bytes_sent).await;
            Fate::Answered
        }
        Ended::Refused(refusal) => call.refuse(refusal.status(), &refusal).await,
        Ended::Cut(why) => call.cut(outcome.status, why, outcome.bytes_sent),
    }
}

enum NotAdmitted {
    Head(HeadError),
    Refused(policy::Refused),
}

/// A request and whoever asked it.
struct Call<'a> {
    gateway: &'a Gateway,
    stream: Stream,
    timer: Timer,
    is_head: bool,
    is_grpc: bool,
    account: Account<'a>,
}

impl Call<'_> {
    fn admit(&mut self, peer: &Peer, parts: &Parts) -> Result<Journey, NotAdmitted> {
        let host = head::host(parts).map_err(NotAdmitted::Head)?;
        let path = parts.uri.path();
        self.account.log = self.gateway.log_entry(peer.socket, parts.method.as_str(), host, path);
        let asked = Head { host, path, fields: &parts.headers };
        self.gateway.admit(&asked, self.account.since).map_err(NotAdmitted::Refused)
    }

    fn settle(mut self, status: u16, aborted: Option<Aborted>, bytes_sent: u64) -> Fate {
        self.account.settle(status, aborted, bytes_sent);
        if aborted == Some(Aborted::Client) && status == 0 { Fate::Cancelled } else { Fate::Answered }
    }

    /// The whole response was sent. What the client still sends is read for a while: some clients take
    /// the end of a stream that they still send on for a fault, whatever its reason, and forget the
    /// response.
    async fn linger_after(mut self, status: u16, bytes_sent: u64) {
        self.account.settle(status, None, bytes_sent);
        self.timer.set(LINGER);
        poll_fn(|cx| {
            let over = self.stream.poll_discard(cx).is_ready();
            if over || self.timer.has_passed(cx) { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// The response is not whole, and the client is told so as it understands it best.
    fn cut(mut self, status: u16, why: Aborted, bytes_sent: u64) -> Fate {
        let text = "the endpoint broke off its response";
        let told = self.is_grpc
            && status > 0
            && why != Aborted::Client
            && self.stream.end_with(refuse::trailers(grpc::UNAVAILABLE, &text)).is_ok();
        if !told {
            let reason = if why == Aborted::Client { Reason::CANCEL } else { Reason::INTERNAL_ERROR };
            self.stream.reset(reason);
        }
        self.settle(status, Some(why), bytes_sent)
    }

    async fn refuse_head(self, error: &HeadError) -> Fate {
        let status = StatusCode::from_u16(error.status).unwrap_or(StatusCode::BAD_REQUEST);
        self.refuse(status, error).await
    }

    /// Answers in the endpoint's stead.
    async fn refuse(mut self, status: StatusCode, text: &(dyn Display + Sync)) -> Fate {
        let (response, body) = refuse::answer(status, &format_args!("{text}"), self.is_head, self.is_grpc);
        let mut told = self.stream.send_head(response, body.is_none()).is_ok();
        if let (true, Some(body)) = (told, body) {
            let mut frame = Frame::Data(body, true);
            self.timer.set(SLOWNESS);
            told = poll_fn(|cx| {
                // What the client still sends is not to be in the way of others.
                self.stream.gather(cx);
                match self.stream.poll_send(cx, &mut frame) {
                    Poll::Pending if self.timer.has_passed(cx) => Poll::Ready(false),
                    sent => sent.map(|sent| sent.is_ok()),
                }
            })
            .await;
        }
        if !told {
            return self.cut(0, Aborted::Client, 0);
        }
        self.linger_after(status.as_u16(), 0).await;
        Fate::Answered
    }
}

/// Counts a request out, whichever way it ends; also when it is cut off where it is, as the time to
/// drain ran out.
struct Account<'a> {
    gateway: &'a Gateway,
    since: u64,
    journey: Option<Journey>,
    log: Option<Box<LogEntry>>,
    settled: bool,
}

impl Account<'_> {
    fn settle(&mut self, status: u16, aborted: Option<Aborted>, bytes_sent: u64) {
        self.settled = true;
        let ended = gateway::Ended { since: self.since, status, aborted, bytes_sent };
        self.gateway.finish(self.journey.take(), &ended, self.log.take());
    }
}

impl Drop for Account<'_> {
    fn drop(&mut self) {
        if !self.settled {
            self.settle(0, Some(Aborted::Timeout), 0);
        }
    }
}
