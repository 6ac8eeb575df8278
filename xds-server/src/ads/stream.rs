//! The task of one stream: requests and snapshots in, responses out, acknowledgements counted.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use config::xds::ResourceType;
use envoy_types::pb::envoy::{
    config::core::v3::{Node, node::UserAgentVersionType},
    service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming};

use super::{Ads, wire::Frame};
use crate::{
    access::Peer,
    fleet::{Identity, Membership},
    registry::State,
    subscription::{Reply, Session, Variant},
};

/// How many responses may wait to be written: twice the number of types, for one a type is in flight
/// and one more may follow when its time is up.
pub(super) const BUFFERED: usize = 2 * ResourceType::ALL.len();

/// The requests of either variant.
pub(super) enum Requests {
    Incremental(Streaming<DeltaDiscoveryRequest>),
    StateOfTheWorld(Streaming<DiscoveryRequest>),
}

enum AnyRequest {
    Incremental(DeltaDiscoveryRequest),
    StateOfTheWorld(DiscoveryRequest),
}

impl From<Streaming<DeltaDiscoveryRequest>> for Requests {
    fn from(requests: Streaming<DeltaDiscoveryRequest>) -> Self {
        Self::Incremental(requests)
    }
}

impl From<Streaming<DiscoveryRequest>> for Requests {
    fn from(requests: Streaming<DiscoveryRequest>) -> Self {
        Self::StateOfTheWorld(requests)
    }
}

impl Requests {
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

/// One stream of one client.
pub(super) struct Stream {
    ads: Ads,
    variant: Variant,
    peer: Option<Peer>,
    requests: Requests,
    frames: mpsc::Sender<Result<Frame, Status>>,
    state: watch::Receiver<Arc<State>>,
    session: Session,
    /// Set by the first request, the only one that has to carry the node.
    client: Option<Client>,
}

struct Client {
    node: String,
    membership: Membership,
}

impl Stream {
    pub(super) fn new(
        ads: Ads,
        peer: Option<Peer>,
        requests: Requests,
        frames: mpsc::Sender<Result<Frame, Status>>,
    ) -> Self {
        let mut state = ads.state.clone();
        let snapshot = state.borrow_and_update().snapshot.clone();
        let variant = requests.variant();
        let session = Session::new(variant, snapshot);
        Self { ads, variant, peer, requests, frames, state, session, client: None }
    }

    pub(super) async fn run(mut self) {
        self.ads.metrics.streams.inc();
        let ended = self.follow().await;
        self.ads.metrics.streams.dec();
        let detail = match ended {
            Ok(()) => "the stream ended".to_owned(),
            Err(status) => {
                let detail = status.message().to_owned();
                // An error means that the client has gone already, or does not read.
                let _ = self.frames.try_send(Err(status));
                detail
            }
        };
        if let Some(client) = self.client.take() {
            let revision = self.session.applied(Instant::now());
            self.ads.timeline.proxy("disconnected", revision, &client.node, detail);
        }
    }

    async fn follow(&mut self) -> Result<(), Status> {
        loop {
            self.send(Instant::now());
            let deadline = self.session.deadline(Instant::now());
            let timeout = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = self.requests.next() => match request {
                    // A connection that broke is how clients usually leave; nothing to answer.
                    Err(_) | Ok(None) => return Ok(()),
                    Ok(Some(request)) => self.on_request(request)?,
                },
                changed = self.state.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the server is stopping"));
                    }
                    let snapshot = self.state.borrow_and_update().snapshot.clone();
                    self.session.on_snapshot(snapshot);
                }
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
            let resource_type = response.resource_type;
            let frame = Frame::new(self.variant, response);
            self.ads.metrics.responses.get_or_create(&resource_type.into()).inc();
            self.ads.metrics.response_bytes.get_or_create(&resource_type.into()).inc_by(frame.len() as u64);
            if self.frames.try_send(Ok(frame)).is_err() {
                return;
            }
        }
        if let Some(client) = &self.client {
            client.membership.applied(self.session.applied(Instant::now()));
        }
    }

    fn on_request(&mut self, mut request: AnyRequest) -> Result<(), Status> {
        if self.client.is_none() {
            // "Only the first request on a stream is guaranteed to carry the node identifier."
            let node = request.node().unwrap_or_default();
            self.ads.access.may_be_node(self.peer.as_ref(), &node.id).map_err(|refusal| {
                self.ads.metrics.streams_refused.inc();
                Status::permission_denied(refusal.to_string())
            })?;
            self.client = Some(self.join(&node));
        }
        if request.type_url().is_empty() {
            self.ads.metrics.streams_refused.inc();
            // "type_url … is required on ADS."
            return Err(Status::invalid_argument(
                "type_url is missing; it is required on an aggregated stream",
            ));
        }
        let Some(resource_type) = ResourceType::from_type_url(request.type_url()) else {
            // Other types go on; this one has no resources here.
            tracing::debug!(type_url = request.type_url(), "a client asked for a type that is not served");
            return Ok(());
        };
        let now = Instant::now();
        let reply = match request {
            AnyRequest::Incremental(request) => self.session.on_incremental(resource_type, request, now),
            AnyRequest::StateOfTheWorld(request) => {
                self.session.on_state_of_the_world(resource_type, request, now)
            }
        };
        let reply = reply.map_err(|violation| {
            self.ads.metrics.streams_refused.inc();
            Status::resource_exhausted(violation.to_string())
        })?;
        if let Some(reply) = reply {
            self.on_reply(resource_type, reply);
        }
        Ok(())
    }

    fn on_reply(&mut self, resource_type: ResourceType, reply: Reply) {
        let Some(client) = &self.client else { return };
        match reply {
            Reply::Ack(lag) => {
                self.ads.metrics.acks.get_or_create(&resource_type.into()).inc();
                if let Some(lag) = lag {
                    self.ads.metrics.propagation.observe(lag.as_secs_f64());
                }
                if !self.session.is_refused(resource_type) {
                    client.membership.acknowledged(resource_type, lag);
                }
            }
            Reply::Nack(reason) => {
                self.ads.metrics.nacks.get_or_create(&resource_type.into()).inc();
                // What a client says may be long; what is kept of it is bounded.
                let reason: String = reason.chars().take(1_024).collect();
                tracing::warn!(node = client.node, %resource_type, reason, "a client refused a response");
                let detail = format!("refused {resource_type}: {reason}");
                self.ads.timeline.proxy("nack", self.session.applied(Instant::now()), &client.node, detail);
                client.membership.refused(resource_type, reason);
            }
        }
    }

    fn join(&self, node: &Node) -> Client {
        let identity = identity(node, self.variant, self.peer.as_ref().map(|peer| peer.address));
        let node = identity.node.clone();
        let detail = format!("{} ({})", identity.agent, identity.variant);
        let membership = self.ads.fleet.join(identity);
        self.ads.timeline.proxy("connected", 0, &node, detail);
        Client { node, membership }
    }
}

/// Who a client says it is, in bounded length.
fn identity(node: &Node, variant: Variant, peer: Option<SocketAddr>) -> Identity {
    let short = |text: &str| text.chars().take(128).collect::<String>();
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    };
    let id = if node.id.is_empty() { "(no node id)" } else { &node.id };
    Identity {
        node: short(id),
        cluster: short(&node.cluster),
        agent: short(format!("{} {version}", node.user_agent_name).trim()),
        variant: match variant {
            Variant::Incremental => "incremental",
            Variant::StateOfTheWorld => "state-of-the-world",
        },
        peer,
    }
}
