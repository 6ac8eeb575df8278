//! The task of one stream: requests and snapshots in, responses out, acknowledgements counted.

use std::{sync::Arc, time::Instant};

use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming, body::Body};

use super::{
    Ads, MAX_REQUEST, node,
    wire::{Frame, RequestDecoder},
};
use crate::{
    access::Peer,
    fleet::Membership,
    kind::{Client, Kind},
    metrics::Metrics,
    registry::State,
    subscription::{Reply, Session, Variant},
};

/// How many responses may wait to be written. A response a type is in flight; clients that read slowly
/// leave the rest to be merged.
pub(super) const BUFFERED: usize = 8;
/// How long the first request may take.
const FIRST_REQUEST: std::time::Duration = std::time::Duration::from_secs(10);

/// The requests of either variant.
pub(super) enum Requests {
    Incremental(Streaming<DeltaDiscoveryRequest>),
    StateOfTheWorld(Streaming<DiscoveryRequest>),
}

enum AnyRequest {
    Incremental(DeltaDiscoveryRequest),
    StateOfTheWorld(DiscoveryRequest),
}

impl Requests {
    pub(super) fn new(variant: Variant, body: Body) -> Self {
        match variant {
            Variant::Incremental => Self::Incremental(Streaming::new_request(
                RequestDecoder::new(),
                body,
                None,
                Some(MAX_REQUEST),
            )),
            Variant::StateOfTheWorld => Self::StateOfTheWorld(Streaming::new_request(
                RequestDecoder::new(),
                body,
                None,
                Some(MAX_REQUEST),
            )),
        }
    }

    fn variant(&self) -> Variant {
        match self {
            Self::Incremental(_) => Variant::Incremental,
            Self::StateOfTheWorld(_) => Variant::StateOfTheWorld,
        }
    }

    async fn next(&mut self) -> Result<Option<AnyRequest>, Status> {
        Ok(match self {
            Self::Incremental(requests) => requests.message().await?.map(AnyRequest::Incremental),
            Self::StateOfTheWorld(requests) => requests.message().await?.map(AnyRequest::StateOfTheWorld),
        })
    }
}

impl AnyRequest {
    fn node(&mut self) -> Option<Node> {
        match self {
            Self::Incremental(request) => request.node.take(),
            Self::StateOfTheWorld(request) => request.node.take(),
        }
    }

    fn type_url(&self) -> &str {
        match self {
            Self::Incremental(request) => &request.type_url,
            Self::StateOfTheWorld(request) => &request.type_url,
        }
    }
}

/// A stream whose client has not said who it is.
pub(super) struct Stream {
    ads: Ads,
    /// The type it is of; `None` for all.
    only: Option<Kind>,
    peer: Option<Peer>,
    requests: Requests,
    frames: mpsc::Sender<Result<Frame, Status>>,
}

/// One stream of one client.
struct Followed {
    ads: Ads,
    only: Option<Kind>,
    variant: Variant,
    client: Client,
    requests: Requests,
    frames: mpsc::Sender<Result<Frame, Status>>,
    state: watch::Receiver<Arc<State>>,
    session: Session,
    node: String,
    membership: Membership,
    /// The revision that was last told to the membership.
    applied: u64,
}

impl Stream {
    pub(super) fn new(
        ads: Ads,
        only: Option<Kind>,
        peer: Option<Peer>,
        requests: Requests,
        frames: mpsc::Sender<Result<Frame, Status>>,
    ) -> Self {
        Self { ads, only, peer, requests, frames }
    }

    pub(super) async fn run(mut self) {
        // "Only the first request on a stream is guaranteed to carry the node identifier."
        let first = tokio::select! {
            first = tokio::time::timeout(FIRST_REQUEST, self.requests.next()) => first,
            () = self.ads.stop.cancelled() => return,
        };
        let mut first = match first {
            Ok(Ok(Some(first))) => first,
            Ok(Err(status)) => {
                // An error means that the client has gone already.
                let _ = self.frames.try_send(Err(faulty(&self.ads.metrics, status)));
                return;
            }
            Ok(Ok(None)) | Err(_) => return,
        };
        let metrics = Arc::clone(&self.ads.metrics);
        metrics.streams.inc();
        let node = first.node().unwrap_or_default();
        match self.ads.access.may_be_node(self.peer.as_ref(), &node.id) {
            Ok(()) => self.follow(&node, first).await,
            Err(refusal) => {
                let status = refused(&metrics, Status::permission_denied(refusal.to_string()));
                // An error means that the client has gone already.
                let _ = self.frames.try_send(Err(status));
            }
        }
        metrics.streams.dec();
    }

    async fn follow(self, node: &Node, first: AnyRequest) {
        let variant = self.requests.variant();
        let client = node::client(node, variant);
        let identity = node::identity(node, variant, self.peer.as_ref().map(|peer| peer.address));
        let name = identity.node.clone();
        let detail = format!("{} ({})", identity.agent, identity.variant);
        let membership = self.ads.fleet.join(identity);
        self.ads.timeline.proxy("connected", 0, &name, detail);
        let mut state = self.ads.state.clone();
        let snapshot = state.borrow_and_update().snapshot.clone();
        let session = match &self.only {
            Some(_) => Session::of_one_type(variant, client, snapshot),
            None => Session::new(variant, client, snapshot),
        };
        let Self { ads, only, requests, frames, .. } = self;
        let followed = Followed {
            ads,
            only,
            variant,
            client,
            requests,
            frames,
            state,
            session,
            node: name,
            membership,
            applied: 0,
        };
        followed.run(first).await;
    }
}

impl Followed {
    async fn run(mut self, first: AnyRequest) {
        let ended = match self.on_request(first) {
            Ok(()) => self.follow().await,
            Err(status) => Err(status),
        };
        let detail = match ended {
            Ok(()) => "the stream ended".to_owned(),
            Err(status) => {
                let detail = status.message().to_owned();
                // An error means that the client has gone already, or does not read.
                let _ = self.frames.try_send(Err(status));
                detail
            }
        };
        let revision = self.session.applied(Instant::now());
        self.ads.timeline.proxy("disconnected", revision, &self.node, detail);
    }

    async fn follow(&mut self) -> Result<(), Status> {
        loop {
            // One time for both: a deadline that passed between them would never be met.
            let now = Instant::now();
            self.send(now);
            let deadline = self.session.deadline(now);
            let timeout = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = self.requests.next() => match request {
                    // How clients usually leave.
                    Ok(None) => return Ok(()),
                    Err(status) => return Err(faulty(&self.ads.metrics, status)),
                    Ok(Some(request)) => self.on_request(request)?,
                },
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the server is stopping"));
                    }
                    let snapshot = self.state.borrow_and_update().snapshot.clone();
                    self.session.on_snapshot(snapshot);
                }
                Some(inquiry) = self.membership.inquiry() => {
                    // An error means that whoever asked has gone.
                    let _ = inquiry.send(self.session.standings());
                }
                // Responses may be due that there was no room for.
                () = async { drop(self.frames.reserve().await) }, if self.frames.capacity() == 0 => {}
                () = timeout => {}
                () = self.ads.stop.cancelled() => return Err(Status::unavailable("the server is stopping")),
                () = self.frames.closed() => return Ok(()),
            }
        }
    }

    /// Sends what is due and notes how far the client has come.
    fn send(&mut self, now: Instant) {
        // A client that does not read leaves responses waiting; the session merges what comes
        // meanwhile, and looks again when an acknowledgement or its deadline comes.
        while self.frames.capacity() > 0
            && let Some(response) = self.session.poll(now)
        {
            let kind = response.kind.short().into();
            let frame = Frame::new(self.variant, self.client.ttl, response);
            self.ads.metrics.responses.get_or_create(&kind).inc();
            self.ads.metrics.response_bytes.get_or_create(&kind).inc_by(frame.len() as u64);
            if self.frames.try_send(Ok(frame)).is_err() {
                return;
            }
        }
        let applied = self.session.applied(now);
        // All streams share what the membership writes to.
        if std::mem::replace(&mut self.applied, applied) != applied {
            self.membership.applied(applied);
        }
    }

    fn on_request(&mut self, request: AnyRequest) -> Result<(), Status> {
        let kind = self.kind_of(&request)?;
        let now = Instant::now();
        // A type that nothing is known of is one without resources: names of it do not exist.
        let reply = match request {
            AnyRequest::Incremental(request) => self.session.on_incremental(&kind, request, now),
            AnyRequest::StateOfTheWorld(request) => self.session.on_state_of_the_world(&kind, request, now),
        };
        let reply = reply.map_err(|violation| {
            refused(&self.ads.metrics, Status::resource_exhausted(violation.to_string()))
        })?;
        if let Some(reply) = reply {
            self.on_reply(&kind, reply);
        }
        Ok(())
    }

    fn kind_of(&self, request: &AnyRequest) -> Result<Kind, Status> {
        let type_url = request.type_url();
        let refuse = |why: String| Err(refused(&self.ads.metrics, Status::invalid_argument(why)));
        match &self.only {
            // "This is implicit in requests made via singleton xDS APIs such as CDS, LDS, etc. but is
            // required for ADS."
            None if type_url.is_empty() => {
                refuse("type_url is missing; it is required on an aggregated stream".to_owned())
            }
            None if type_url.len() > MAX_TYPE_URL => {
                refuse(format!("type_url has more than {MAX_TYPE_URL} bytes"))
            }
            None => Ok(Kind::of(type_url)),
            Some(only) if type_url.is_empty() || type_url == only.type_url() => Ok(only.clone()),
            Some(only) => refuse(format!("type_url is not {}, which this service is of", only.type_url())),
        }
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

/// How long the name of a type may be, in bytes.
const MAX_TYPE_URL: usize = 256;

/// Why no request could be read: one that is none, or a connection that broke.
fn faulty(metrics: &Metrics, status: Status) -> Status {
    use tonic::Code::{InvalidArgument, OutOfRange, ResourceExhausted};
    if matches!(status.code(), InvalidArgument | OutOfRange | ResourceExhausted) {
        return refused(metrics, status);
    }
    Status::cancelled("the connection broke")
}

fn refused(metrics: &Metrics, status: Status) -> Status {
    metrics.streams_refused.inc();
    status
}
