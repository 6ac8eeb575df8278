//! `StreamLoadStats`: gRPC around the accounts (`envoy/service/load_stats/v3/lrs.proto`).
//!
//! The client begins with its node; the server says of what it wants reports, and how often; from then
//! on the client reports. There is no more to the protocol, but for clients that number their reports
//! ([`config::xds::load`]): each of theirs is answered.

use std::{pin::Pin, sync::Arc, time::Duration};

use config::xds::load::{MAX_INTERVAL, Mark, NUMBERED, SENDS_ALL_CLUSTERS, encode_interval};
use envoy_types::pb::envoy::service::load_stats::v3::{
    LoadStatsRequest, LoadStatsResponse,
    load_reporting_service_server::{LoadReportingService, LoadReportingServiceServer},
};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_stream::{Stream as Responses, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, metadata::MetadataValue};

use super::{Loads, OpenStream, read::read};
use crate::{
    access::{Access, Peer},
    registry::State,
};

/// How large one report may be, in bytes.
const MAX_REQUEST: usize = 1 << 20;
/// How long a client may take to say who it is.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long a response may wait for a client that does not read.
const UNREAD: Duration = Duration::from_secs(10);
/// A client that reports faster than this is read no faster.
const PACE: Duration = Duration::from_millis(5);
/// How often those who need the names of clusters get them anew, at most.
const NAMES_EVERY: Duration = Duration::from_secs(1);
/// The shortest interval that is asked for.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// The longest node id that is kept, in characters.
const MAX_NODE: usize = 128;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct LoadReporting {
    loads: Arc<Loads>,
    interval: Duration,
    access: Arc<Access>,
    stop: CancellationToken,
}

impl LoadReporting {
    /// Takes reports into `loads` until `stop`, and asks for one each `interval`: 10 ms to 1 h, others
    /// are brought into it.
    pub fn new(loads: Arc<Loads>, interval: Duration, access: Arc<Access>, stop: CancellationToken) -> Self {
        Self { loads, interval: interval.clamp(MIN_INTERVAL, MAX_INTERVAL), access, stop }
    }

    /// To be added to a server.
    pub(crate) fn into_service(self) -> LoadReportingServiceServer<Self> {
        LoadReportingServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }
}

#[tonic::async_trait]
impl LoadReportingService for LoadReporting {
    type StreamLoadStatsStream =
        Pin<Box<dyn Responses<Item = Result<LoadStatsResponse, Status>> + Send + 'static>>;

    async fn stream_load_stats(
        &self,
        request: Request<Streaming<LoadStatsRequest>>,
    ) -> Result<Response<Self::StreamLoadStatsStream>, Status> {
        let (responses, receiver) = mpsc::channel(1);
        let peer = request.extensions().get::<Peer>().cloned();
        let stream = Reporting { service: self.clone(), peer, requests: request.into_inner(), responses };
        tokio::spawn(stream.run());
        let receiver: Self::StreamLoadStatsStream = Box::pin(ReceiverStream::new(receiver));
        let mut response = Response::new(receiver);
        response.metadata_mut().insert(NUMBERED, MetadataValue::from_static("1"));
        Ok(response)
    }
}

/// One stream of one client.
struct Reporting {
    service: LoadReporting,
    peer: Option<Peer>,
    requests: Streaming<LoadStatsRequest>,
    responses: mpsc::Sender<Result<LoadStatsResponse, Status>>,
}

impl Reporting {
    async fn run(mut self) {
        let stop = self.service.stop.clone();
        let ended = tokio::select! {
            ended = self.follow() => ended,
            () = stop.cancelled() => Err(Status::unavailable("the server is stopping")),
        };
        if let Err(status) = ended {
            // An error means that the client has gone already, or does not read.
            let _ = self.responses.try_send(Err(status));
        }
    }

    async fn follow(&mut self) -> Result<(), Status> {
        let first = timeout(FIRST_REQUEST, self.requests.message()).await;
        let late = |_| Status::deadline_exceeded("the first request has to name the node, at once");
        let Some(first) = self.read(first.map_err(late)?)? else { return Ok(()) };
        // "Node identifier": only the first request has to have it.
        let node = first.node.clone().unwrap_or_default();
        let may = self.service.access.may_be_node(self.peer.as_ref(), &node.id);
        may.map_err(|refusal| Status::permission_denied(refusal.to_string()))?;
        let mark = Mark::decode(&node);
        let id: String =
            if node.id.is_empty() { "(no node id)" } else { &node.id }.chars().take(MAX_NODE).collect();
        let boot = mark.map(|mark| mark.boot);
        let open = self
            .service
            .loads
            .open(&id, boot)
            .map_err(|refused| Status::resource_exhausted(refused.to_string()))?;
        // "Only clients that advertise the capability … will honor this field."
        let sends_all = node.client_features.iter().any(|feature| feature == SENDS_ALL_CLUSTERS);
        let mut names = (!sends_all).then(|| Names::new(self.service.loads.state.clone()));
        self.respond(&mut names).await?;
        if !first.cluster_stats.is_empty() {
            self.take(&open, first, &mut names).await?;
        }
        loop {
            let changed = async {
                match &mut names {
                    Some(names) => names.changed().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = self.requests.message() => match self.read(request)? {
                    Some(request) => {
                        let began = Instant::now();
                        self.take(&open, request, &mut names).await?;
                        sleep_until(began + PACE).await;
                    }
                    None => return Ok(()),
                },
                () = changed => self.respond(&mut names).await?,
                () = self.responses.closed() => return Ok(()),
            }
        }
    }

    /// A request; `None` when the client has left, as clients do: by ending the stream, or by breaking
    /// the connection.
    fn read(
        &self,
        request: Result<Option<LoadStatsRequest>, Status>,
    ) -> Result<Option<LoadStatsRequest>, Status> {
        match request {
            Ok(request) => Ok(request),
            // The message is too large, or not one.
            Err(status) if matches!(status.code(), tonic::Code::OutOfRange | tonic::Code::Internal) => {
                self.service.loads.counters.streams_refused.inc();
                Err(status)
            }
            Err(_) => Ok(None),
        }
    }

    async fn take(
        &self,
        open: &OpenStream,
        request: LoadStatsRequest,
        names: &mut Option<Names>,
    ) -> Result<(), Status> {
        let report = read(request);
        open.take(&report);
        match &report.mark {
            Some(mark) if mark.sequence > 0 => self.respond(names).await,
            _ => Ok(()),
        }
    }

    /// Says what reports are wanted, and so that one was taken.
    async fn respond(&self, names: &mut Option<Names>) -> Result<(), Status> {
        let response = LoadStatsResponse {
            send_all_clusters: names.is_none(),
            clusters: names.as_mut().map(Names::all).unwrap_or_default(),
            load_reporting_interval: Some(encode_interval(self.service.interval)),
            report_endpoint_granularity: true,
        };
        // A client that has gone is noticed when it is read.
        match timeout(UNREAD, self.responses.send(Ok(response))).await {
            Ok(_) => Ok(()),
            Err(_) => Err(Status::resource_exhausted("the client does not read")),
        }
    }
}

/// The names of all clusters, for clients that have to be told.
struct Names {
    state: watch::Receiver<Arc<State>>,
    told: Vec<String>,
    /// When to look whether there are others, after a change.
    look: Option<Instant>,
}

impl Names {
    fn new(state: watch::Receiver<Arc<State>>) -> Self {
        Self { state, told: Vec::new(), look: None }
    }

    /// Waits until there are others than those told. Most changes are of endpoints, so that they are
    /// looked at once in a while only. May be dropped and called again.
    async fn changed(&mut self) {
        loop {
            if let Some(at) = self.look {
                sleep_until(at).await;
                self.look = None;
                if self.now() != self.told {
                    return;
                }
            } else {
                if self.state.changed().await.is_err() {
                    // The registry has ended, and so does the server.
                    std::future::pending::<()>().await;
                }
                self.look = Some(Instant::now() + NAMES_EVERY);
            }
        }
    }

    fn all(&mut self) -> Vec<String> {
        self.told = self.now();
        self.told.clone()
    }

    fn now(&mut self) -> Vec<String> {
        let state = Arc::clone(&self.state.borrow_and_update());
        let services = state.world.services();
        let clusters = services.flat_map(|entry| entry.value.clusters());
        clusters.map(|(name, _)| name.to_string()).collect()
    }
}
