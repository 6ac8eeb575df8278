//! One stream: requests and states in, responses out, acknowledgements counted.
//!
//! It is polled by its connection, whenever that has heard something, there is a new state, or its
//! deadline has passed: it has no task of its own.

use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::config::core::v3::Node;
use tonic::Status;

use super::{
    Ads,
    feed::Feed,
    node,
    outgoing::{Gone, Outgoing},
    requests::{AnyRequest, Requests},
    wire::Frame,
};
use crate::{
    access::Peer,
    fleet::Membership,
    kind::{Client, Kind},
    metrics::Metrics,
    subscription::{ACK_TIMEOUT, Reply, Session, Variant},
};

/// How long the first request may take.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long the name of a type may be, in bytes.
const MAX_TYPE_URL: usize = 256;
/// How many requests are taken before others have their turn.
const REQUESTS_A_TURN: usize = 16;

/// One stream of one client.
pub(super) struct Stream {
    ads: Ads,
    feed: Arc<Feed>,
    /// The type it is of; `None` for all.
    only: Option<Kind>,
    peer: Peer,
    requests: Requests,
    outgoing: Outgoing,
    phase: Phase,
}

enum Phase {
    /// The client has not said who it is, and has until then to do so.
    Silent(Instant),
    Following(Box<Followed>),
    /// What is on its way is still sent, until then.
    Ending(Instant),
}

/// A client that has said who it is.
struct Followed {
    ads: Ads,
    client: Client,
    session: Session,
    node: String,
    membership: Membership,
    /// The state that the session has.
    turn: u64,
    /// The revision that was last told to the membership.
    applied: u64,
    /// Why it ended.
    ended: Option<String>,
}

/// Why a stream ends.
enum End {
    /// The client sends no more requests.
    Left,
    Gone,
    Status(Status),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<Gone> for End {
    fn from(_: Gone) -> Self {
        Self::Gone
    }
}

impl Stream {
    pub(super) fn new(
        ads: Ads,
        feed: Arc<Feed>,
        only: Option<Kind>,
        peer: Peer,
        requests: Requests,
        outgoing: Outgoing,
    ) -> Self {
        ads.metrics.streams.inc();
        let phase = Phase::Silent(Instant::now() + FIRST_REQUEST);
        Self { ads, feed, only, peer, requests, outgoing, phase }
    }

    /// Goes as far as it can; ready when the stream is over.
    pub(super) fn poll(&mut self, context: &mut Context<'_>, now: Instant) -> Poll<()> {
        let end = match self.advance(context, now) {
            Ok(()) => return Poll::Pending,
            Err(end) => end,
        };
        let followed = if let Phase::Following(followed) = &mut self.phase { Some(followed) } else { None };
        let (detail, status) = match end {
            End::Left => ("the stream ended".to_owned(), Some(Status::ok(""))),
            End::Gone => ("the connection broke".to_owned(), None),
            End::Status(status) => (status.message().to_owned(), Some(status)),
        };
        if let Some(followed) = followed {
            followed.ended = Some(detail);
        }
        match status {
            // How clients usually leave: they still get what is on its way.
            Some(status) if status.code() == tonic::Code::Ok && !matches!(self.phase, Phase::Ending(_)) => {
                self.phase = Phase::Ending(now + ACK_TIMEOUT);
                self.poll(context, now)
            }
            Some(status) => {
                self.outgoing.end(&status);
                Poll::Ready(())
            }
            None => Poll::Ready(()),
        }
    }

    /// When it wants to be polled though nothing happened.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        match &self.phase {
            Phase::Silent(until) | Phase::Ending(until) => Some(*until),
            Phase::Following(followed) => followed.session.deadline(now),
        }
    }

    fn advance(&mut self, context: &mut Context<'_>, now: Instant) -> Result<(), End> {
        if self.feed.is_stopping() {
            return Err(Status::unavailable("the server is stopping").into());
        }
        if let Phase::Ending(until) = self.phase {
            return match self.outgoing.poll(context)? {
                Poll::Pending if now < until => Ok(()),
                _ => Err(End::Left),
            };
        }
        self.take_requests(context, now)?;
        let Phase::Following(followed) = &mut self.phase else { return Ok(()) };
        if let Some(state) = self.feed.newer(&mut followed.turn) {
            followed.session.on_snapshot(state.snapshot.clone());
        }
        while let Poll::Ready(Some(inquiry)) = followed.membership.poll_inquiry(context) {
            // An error means that whoever asked has gone.
            let _ = inquiry.send(followed.session.standings());
        }
        followed.send(&mut self.outgoing, self.requests.variant(), context, now)?;
        Ok(())
    }

    fn take_requests(&mut self, context: &mut Context<'_>, now: Instant) -> Result<(), End> {
        for _ in 0..REQUESTS_A_TURN {
            let request = match self.requests.poll_next(context) {
                Poll::Pending => return self.still_silent(now),
                Poll::Ready(Ok(Some(request))) => request,
                Poll::Ready(Ok(None)) => return Err(End::Left),
                Poll::Ready(Err(status)) => return Err(faulty(&self.ads.metrics, status).into()),
            };
            self.on_request(request, now)?;
        }
        context.waker().wake_by_ref();
        Ok(())
    }

    fn still_silent(&self, now: Instant) -> Result<(), End> {
        match self.phase {
            Phase::Silent(until) if now >= until => Err(End::Left),
            _ => Ok(()),
        }
    }

    fn on_request(&mut self, mut request: AnyRequest, now: Instant) -> Result<(), Status> {
        if let Phase::Silent(_) = self.phase {
            // "Only the first request on a stream is guaranteed to carry the node identifier."
            let node = request.node().unwrap_or_default();
            if let Err(refusal) = self.ads.access.may_be_node(Some(&self.peer), &node.id) {
                return Err(refused(&self.ads.metrics, Status::permission_denied(refusal.to_string())));
            }
            self.phase = Phase::Following(Box::new(self.follow(&node)));
        }
        let kind = kind_of(self.only.as_ref(), &request).map_err(|why| refused(&self.ads.metrics, why))?;
        match &mut self.phase {
            Phase::Following(followed) => followed.on_request(&kind, request, now),
            Phase::Silent(_) | Phase::Ending(_) => Ok(()),
        }
    }

    fn follow(&self, node: &Node) -> Followed {
        let variant = self.requests.variant();
        let client = node::client(node, variant);
        let identity = node::identity(node, variant, Some(self.peer.address));
        let name = identity.node.clone();
        let detail = format!("{} ({})", identity.agent, identity.variant);
        let membership = self.ads.fleet.join(identity);
        self.ads.timeline.proxy("connected", 0, &name, detail);
        let mut turn = 0;
        let state = self.feed.newer(&mut turn).unwrap_or_else(|| self.feed.state());
        let snapshot = state.snapshot.clone();
        let session = match &self.only {
            Some(_) => Session::of_one_type(variant, client, snapshot),
            None => Session::new(variant, client, snapshot),
        };
        let ads = self.ads.clone();
        Followed { ads, client, session, node: name, membership, turn, applied: 0, ended: None }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.ads.metrics.streams.dec();
    }
}

impl Followed {
    /// Sends what is due and notes how far the client has come.
    fn send(
        &mut self,
        outgoing: &mut Outgoing,
        variant: Variant,
        context: &mut Context<'_>,
        now: Instant,
    ) -> Result<(), Gone> {
        // A client that does not read leaves one response waiting; the session merges what comes meanwhile.
        while outgoing.poll(context)?.is_ready()
            && let Some(response) = self.session.poll(now)
        {
            let kind = response.kind.short().into();
            let frame = Frame::new(variant, self.client.ttl, response);
            self.ads.metrics.responses.get_or_create(&kind).inc();
            self.ads.metrics.response_bytes.get_or_create(&kind).inc_by(frame.len() as u64);
            outgoing.begin(frame);
        }
        let applied = self.session.applied(now);
        // All streams share what the membership writes to.
        if std::mem::replace(&mut self.applied, applied) != applied {
            self.membership.applied(applied);
        }
        Ok(())
    }

    fn on_request(&mut self, kind: &Kind, request: AnyRequest, now: Instant) -> Result<(), Status> {
        // A type that nothing is known of is one without resources: names of it do not exist.
        let reply = match request {
            AnyRequest::Incremental(request) => self.session.on_incremental(kind, request, now),
            AnyRequest::StateOfTheWorld(request) => self.session.on_state_of_the_world(kind, request, now),
        };
        let reply = reply.map_err(|violation| {
            refused(&self.ads.metrics, Status::resource_exhausted(violation.to_string()))
        })?;
        if let Some(reply) = reply {
            self.on_reply(kind, reply);
        }
        Ok(())
    }

    fn on_reply(&mut self, kind: &Kind, reply: Reply) {
        let label = kind.short().into();
        match reply {
            Reply::Ack(lag) => {
                self.ads.metrics.acks.get_or_create(&label).inc();
                if let Some(lag) = lag {
                    self.ads.metrics.propagation.observe(lag.as_secs_f64());
                }
                if !self.session.is_refused(kind) {
                    self.membership.acknowledged(kind, lag);
                }
            }
            Reply::Nack(reason) => {
                self.ads.metrics.nacks.get_or_create(&label).inc();
                tracing::warn!(node = self.node, %kind, reason, "a client refused a response");
                let detail = format!("refused {kind}: {reason}");
                let applied = self.session.applied(Instant::now());
                self.ads.timeline.proxy("nack", applied, &self.node, detail);
                self.membership.refused(kind, reason);
            }
        }
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        let detail = self.ended.take().unwrap_or_else(|| "the connection broke".to_owned());
        let revision = self.session.applied(Instant::now());
        self.ads.timeline.proxy("disconnected", revision, &self.node, detail);
    }
}

fn kind_of(only: Option<&Kind>, request: &AnyRequest) -> Result<Kind, Status> {
    let type_url = request.type_url();
    match only {
        // "This is implicit in requests made via singleton xDS APIs such as CDS, LDS, etc. but is
        // required for ADS."
        None if type_url.is_empty() => {
            Err(Status::invalid_argument("type_url is missing; it is required on an aggregated stream"))
        }
        None if type_url.len() > MAX_TYPE_URL => {
            Err(Status::invalid_argument(format!("type_url has more than {MAX_TYPE_URL} bytes")))
        }
        None => Ok(Kind::of(type_url)),
        Some(only) if type_url.is_empty() || type_url == only.type_url() => Ok(only.clone()),
        Some(only) => {
            let url = only.type_url();
            Err(Status::invalid_argument(format!("type_url is not {url}, which this service is of")))
        }
    }
}

/// Why no request could be read: one that is none, or a connection that broke.
fn faulty(metrics: &Metrics, status: Status) -> Status {
    if status.code() == tonic::Code::Cancelled { status } else { refused(metrics, status) }
}

fn refused(metrics: &Metrics, status: Status) -> Status {
    metrics.streams_refused.inc();
    status
}
