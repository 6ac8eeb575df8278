//! The client of the load reporting service, on the connection of the xDS client.
//!
//! The server says how often it wants a report, and of what. A report that was made stays in the queue
//! until the server has acknowledged it, and is repeated with its number on the next stream if that
//! was lost ([`config::xds::load`]), so that it is counted once. A server that does not acknowledge
//! has a report when the connection took it: there, one that is on its way when the connection breaks
//! is lost, rather than counted twice.

use std::{
    collections::{HashSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use config::{
    bootstrap::ProxySettings,
    xds::load::{Mark, NUMBERED, SENDS_ALL_CLUSTERS, decode_interval},
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{Node, node::UserAgentVersionType},
        endpoint::v3::ClusterStats,
    },
    service::load_stats::v3::{
        LoadStatsRequest, LoadStatsResponse, load_reporting_service_client::LoadReportingServiceClient,
    },
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::message::parts;
use crate::shared::Shared;

/// How long the last report may take.
pub(crate) const LAST_REPORT: Duration = Duration::from_secs(1);
/// Pause before the next attempt at a stream: doubles from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// A server that asks for reports more often gets them this often.
const MIN_INTERVAL: Duration = Duration::from_millis(10);
/// How often when a server does not say.
const DEFAULT_INTERVAL: Duration = Duration::from_secs(1);

/// Reports to whichever server is followed.
pub(crate) struct Reporter {
    shared: Arc<Shared>,
    server: watch::Receiver<Option<Channel>>,
    node: Node,
    boot: String,
    /// Of the last report that was made.
    sequence: u64,
    /// Parts of a report that no server is known to have.
    queue: VecDeque<LoadStatsRequest>,
    /// When the last report was made.
    reported: Instant,
    open: Option<Open>,
}

/// A stream.
struct Open {
    requests: mpsc::Sender<LoadStatsRequest>,
    responses: Streaming<LoadStatsResponse>,
    /// The server acknowledges.
    numbered: bool,
    /// The first of the queue is on its way.
    sent: bool,
    wanted: Wanted,
}

/// What a server wants to know.
struct Wanted {
    /// `None` is all.
    clusters: Option<HashSet<String>>,
    interval: Duration,
    by_endpoint: bool,
}

impl From<LoadStatsResponse> for Wanted {
    fn from(response: LoadStatsResponse) -> Self {
        let interval = response.load_reporting_interval.as_ref().and_then(decode_interval);
        Self {
            clusters: (!response.send_all_clusters).then(|| response.clusters.into_iter().collect()),
            interval: interval.unwrap_or(DEFAULT_INTERVAL).max(MIN_INTERVAL),
            by_endpoint: response.report_endpoint_granularity,
        }
    }
}

impl Wanted {
    fn wants(&self, cluster: &str) -> bool {
        self.clusters.as_ref().is_none_or(|clusters| clusters.contains(cluster))
    }
}

impl Reporter {
    /// One that has not begun.
    pub(crate) fn new(settings: &ProxySettings, shared: Arc<Shared>) -> Self {
        let version = UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").to_owned());
        let node = Node {
            id: settings.node_id.clone(),
            cluster: settings.node_cluster.clone(),
            user_agent_name: "sluicegate".to_owned(),
            user_agent_version_type: Some(version),
            client_features: vec![SENDS_ALL_CLUSTERS.to_owned()],
            ..Node::default()
        };
        Self {
            server: shared.reports.server.subscribe(),
            shared,
            node,
            boot: format!("{:016x}", fastrand::u64(..)),
            sequence: 0,
            queue: VecDeque::new(),
            reported: Instant::now(),
            open: None,
        }
    }

    /// Reports until `finish` resolves, and then once more.
    pub(crate) async fn run(mut self, finish: oneshot::Receiver<()>) {
        tokio::select! {
            // Either way it is over.
            _ = finish => {}
            () = self.follow() => {}
        }
        if let Err(status) = self.finish().await {
            tracing::debug!("the last load report did not arrive: {status}");
        }
    }

    /// Never returns. May be dropped at any await: what is not known to have arrived is in the queue.
    async fn follow(&mut self) {
        let mut pause = BACK_OFF.0;
        loop {
            let Err(status) = self.stream(&mut pause).await;
            self.open = None;
            tracing::debug!("the stream of load reports ended: {status}");
            // A server that does not know the service will not learn it.
            let pausing = async {
                match status.code() {
                    Code::Unimplemented => std::future::pending().await,
                    _ => sleep(pause.mul_f64(fastrand::f64().mul_add(0.5, 0.5))).await,
                }
            };
            tokio::select! {
                () = pausing => pause = (pause * 2).min(BACK_OFF.1),
                // An error means that the process ends.
                _ = self.server.changed() => pause = BACK_OFF.0,
            }
        }
    }

    async fn stream(&mut self, pause: &mut Duration) -> Result<std::convert::Infallible, Status> {
        self.connect().await?;
        *pause = BACK_OFF.0;
        loop {
            self.step().await?;
        }
    }

    /// Opens a stream to the server that is followed, once there is one.
    async fn connect(&mut self) -> Result<(), Status> {
        let closed = |_| Status::cancelled("the proxy is stopping");
        let channel = self.server.wait_for(Option::is_some).await.map_err(closed)?.clone();
        let Some(channel) = channel else { return Err(Status::unavailable("no server is followed")) };
        let opening = open(channel, self.request(0, false, Vec::new()));
        self.open = Some(tokio::select! {
            opened = opening => opened?,
            _ = self.server.changed() => return Err(Status::unavailable("another server is followed")),
        });
        Ok(())
    }

    fn request(&self, sequence: u64, more: bool, cluster_stats: Vec<ClusterStats>) -> LoadStatsRequest {
        let mark = Mark { boot: self.boot.clone(), sequence, more };
        let node = Node { metadata: Some(mark.encode()), ..self.node.clone() };
        LoadStatsRequest { node: Some(node), cluster_stats }
    }

    /// Does what is next on an open stream.
    async fn step(&mut self) -> Result<(), Status> {
        let Some(open) = &mut self.open else { return Err(Status::unavailable("no stream")) };
        if let Some(next) = self.queue.front()
            && !(open.sent && open.numbered)
        {
            let gone = |_| Status::unavailable("the stream is closed");
            if !open.sent {
                open.requests.reserve().await.map_err(gone)?.send(next.clone());
                open.sent = true;
            }
            if !open.numbered {
                // There is room again when the connection has taken it.
                drop(open.requests.reserve().await.map_err(gone)?);
                open.sent = false;
                self.queue.pop_front();
            }
            return Ok(());
        }
        let due = self.reported + open.wanted.interval;
        tokio::select! {
            response = open.responses.message() => {
                let response = response?.ok_or_else(|| Status::unavailable("the server closed it"))?;
                open.wanted = response.into();
                if open.numbered && std::mem::take(&mut open.sent) {
                    self.queue.pop_front();
                }
            }
            () = sleep_until(due), if self.queue.is_empty() => self.make_report(),
            _ = self.server.changed() => return Err(Status::unavailable("another server is followed")),
        }
        Ok(())
    }

    /// Puts what was not reported yet into the queue.
    fn make_report(&mut self) {
        let Some(open) = &self.open else { return };
        let reports = &self.shared.reports;
        reports.follow(&self.shared.live);
        let interval = self.reported.elapsed();
        self.reported = Instant::now();
        let rows = reports.ledger().take(|cluster| open.wanted.wants(cluster));
        let parts = parts(&rows, interval, open.wanted.by_endpoint);
        let last = parts.len() - 1; // there is at least one
        for (i, part) in parts.into_iter().enumerate() {
            self.sequence += 1;
            let request = self.request(self.sequence, i < last, part);
            self.queue.push_back(request);
        }
    }

    /// Reports what is left, and waits until the server has it. The caller bounds the time.
    async fn finish(&mut self) -> Result<(), Status> {
        if self.open.is_none() {
            // Without a server it is lost.
            if self.server.borrow().is_none() {
                return Err(Status::unavailable("no server is followed"));
            }
            self.connect().await?;
        }
        while !self.queue.is_empty() {
            self.step().await?;
        }
        self.make_report();
        while !self.queue.is_empty() {
            self.step().await?;
        }
        let Some(Open { requests, mut responses, .. }) = self.open.take() else { return Ok(()) };
        // The end of the stream follows what was sent; who has read it has read that.
        drop(requests);
        while responses.message().await?.is_some() {}
        Ok(())
    }
}

async fn open(channel: Channel, first: LoadStatsRequest) -> Result<Open, Status> {
    let (requests, receiver) = mpsc::channel(1);
    // There is room for one, and somebody who receives it.
    let _ = requests.try_send(first);
    let opened =
        LoadReportingServiceClient::new(channel).stream_load_stats(ReceiverStream::new(receiver)).await?;
    let numbered = opened.metadata().contains_key(NUMBERED);
    let mut responses = opened.into_inner();
    let response = responses.message().await?;
    let wanted = response.ok_or_else(|| Status::unavailable("the server closed it"))?.into();
    Ok(Open { requests, responses, numbered, sent: false, wanted })
}
