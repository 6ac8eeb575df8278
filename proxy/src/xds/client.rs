//! The incremental ADS stream: connects, fails over, backs off, and carries out what the cache
//! decides. One task owns the cache, the listeners and the right to publish.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use config::bootstrap::ProxySettings;
use envoy_types::pb::envoy::{
    config::core::v3::{Node, node::UserAgentVersionType},
    service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Endpoint};

use super::{
    cache::{Cache, Update},
    last_good::{self, Saver},
};
use crate::{
    edge::listener::Listeners,
    load::now_micros,
    shared::{ConfigurationView, Shared},
};

/// Bound on one attempt to connect, name resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent server is asked for a sign of life this often, and given this long.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Pause before the next attempt, jittered: doubles from the first to the last.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// Bound on one response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Requests that may wait for a server that does not read, and how long.
const OUTBOX: (usize, Duration) = (256, Duration::from_secs(10));
/// How long a server may take to answer at start before the last good configuration is used.
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// How often a listener that could not be bound is tried again.
const BIND_RETRY: Duration = Duration::from_millis(250);
/// Flow-control windows of HTTP/2, in bytes, for a stream and a connection: the default of 64 KiB
/// makes a large response wait for a round trip every 64 KiB.
const WINDOWS: (u32, u32) = (2 << 20, 4 << 20);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error("`{0}` is not a host and a port")]
    Address(String),
    #[error("no connection in {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
    #[error(transparent)]
    Status(#[from] tonic::Status),
    #[error("the server closed the stream")]
    Closed,
    #[error("the server does not read")]
    Stuck,
    /// Not a fault: the state was replaced, and the server is to be told what is held.
    #[error("restarted with the last good configuration")]
    Restored,
}

/// Follows the servers.
pub(crate) struct Client {
    settings: ProxySettings,
    cache: Cache,
    shared: Arc<Shared>,
    listeners: Listeners,
    saver: Option<Saver>,
    /// Where to restore from; `None` once a server has answered or it was tried.
    fallback: Option<PathBuf>,
    started: Instant,
    answered: bool,
    ready: bool,
    stopping: bool,
    server: Option<String>,
    retry_binding: Option<Instant>,
    /// Whether something is held that was not handed to the saver.
    unsaved: bool,
}

impl Client {
    /// A client that has not connected yet.
    pub(crate) fn new(
        settings: ProxySettings,
        shared: Arc<Shared>,
        listeners: Listeners,
        saver: Option<Saver>,
    ) -> Self {
        let fallback = settings.last_good.clone();
        Self {
            settings,
            cache: Cache::default(),
            shared,
            listeners,
            saver,
            fallback,
            started: Instant::now(),
            answered: false,
            ready: false,
            stopping: false,
            server: None,
            retry_binding: None,
            unsaved: false,
        }
    }

    /// Follows the servers until `shutdown` resolves; then stops the listeners.
    pub(crate) async fn run(mut self, shutdown: impl Future<Output = ()>) {
        tokio::select! {
            () = shutdown => {}
            () = self.follow() => {}
        }
        self.listeners.stop_all();
        // Whatever sends requests here should send them elsewhere now.
        self.stopping = true;
        self.show();
    }

    /// Never returns: without a server the proxy goes on with what it has.
    async fn follow(&mut self) {
        let mut rng = fastrand::Rng::new();
        let mut pause = BACK_OFF.0;
        loop {
            let mut lived = false;
            // From the first server on each time, so that a preferred one that is back is used at
            // the next reconnect; the next one as soon as one fails.
            for server in self.settings.servers.clone() {
                let before = self.shared.xds.updates.load(Ordering::Relaxed);
                let error = match self.stream(&server).await {
                    Ok(never) => match never {},
                    Err(error) => error,
                };
                self.disconnected();
                lived = self.shared.xds.updates.load(Ordering::Relaxed) > before
                    || matches!(error, StreamError::Restored);
                tracing::info!("xDS server {server}: {error}");
                if lived {
                    break;
                }
            }
            if lived {
                pause = BACK_OFF.0;
            } else if self.fallback.is_some() {
                self.restore().await;
                continue;
            }
            self.waiting_for(tokio::time::sleep(pause.mul_f64(rng.f64().mul_add(0.5, 0.5)))).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    fn disconnected(&mut self) {
        self.server = None;
        self.shared.xds.connected.store(false, Ordering::Relaxed);
        self.cache.on_disconnected();
        self.show();
    }

    /// One stream, from connecting to its end.
    async fn stream(&mut self, server: &str) -> Result<std::convert::Infallible, StreamError> {
        let endpoint = Endpoint::from_shared(format!("http://{server}"))
            .map_err(|_| StreamError::Address(server.to_owned()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1);
        let connecting = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect());
        let channel = self.waiting_for(connecting).await.map_err(|_| StreamError::ConnectTimeout)??;
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_RESPONSE);

        let (outbox, requests) = mpsc::channel(OUTBOX.0);
        let mut first = self.cache.on_connected();
        if let Some(request) = first.first_mut() {
            request.node = Some(self.node());
        }
        self.send(&outbox, first).await?;
        // A server may send the head of its answer only with its first message: no bound but the
        // keep-alive above.
        let opening = client.delta_aggregated_resources(ReceiverStream::new(requests));
        tokio::pin!(opening);
        let mut inbound: Streaming<DeltaDiscoveryResponse> = loop {
            tokio::select! {
                opened = &mut opening => break opened?.into_inner(),
                () = tokio::time::sleep_until(self.next_tick().into()) => self.tick(Some(&outbox)).await?,
            }
        };
        self.server = Some(server.to_owned());
        self.shared.xds.connected.store(true, Ordering::Relaxed);
        self.shared.xds.streams.fetch_add(1, Ordering::Relaxed);
        self.show();
        tracing::info!("xDS server {server}: connected");
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let response = message?.ok_or(StreamError::Closed)?;
                    let requests = self.take_in(response);
                    self.send(&outbox, requests).await?;
                }
                () = tokio::time::sleep_until(self.next_tick().into()) => self.tick(Some(&outbox)).await?,
            }
        }
    }

    fn take_in(&mut self, response: DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        self.answered = true;
        self.fallback = None;
        let xds = &self.shared.xds;
        xds.on_last_good.store(false, Ordering::Relaxed);
        xds.updates.fetch_add(1, Ordering::Relaxed);
        let update = self.cache.on_response(response, Instant::now());
        let requests = self.carry_out(update);
        self.shared.xds.last_update.store(now_micros(), Ordering::Relaxed);
        requests
    }

    // Exclusive, so that what the client owns need not be shareable between threads.
    async fn send(
        &mut self,
        outbox: &mpsc::Sender<DeltaDiscoveryRequest>,
        requests: Vec<DeltaDiscoveryRequest>,
    ) -> Result<(), StreamError> {
        for request in requests {
            match &request.error_detail {
                Some(reason) => {
                    tracing::warn!("refused a response: {}", reason.message);
                    self.shared.xds.nacks.fetch_add(1, Ordering::Relaxed);
                }
                None if !request.response_nonce.is_empty() => {
                    self.shared.xds.acks.fetch_add(1, Ordering::Relaxed);
                }
                None => {}
            }
            // A full outbox means that the server has not read for long; a closed one that the
            // stream is over, which reading it says better.
            if outbox.send_timeout(request, OUTBOX.1).await.is_err() {
                return Err(StreamError::Stuck);
            }
        }
        Ok(())
    }

    fn node(&self) -> Node {
        Node {
            id: self.settings.node_id.clone(),
            cluster: self.settings.node_cluster.clone(),
            user_agent_name: "sluicegate".to_owned(),
            user_agent_version_type: Some(UserAgentVersionType::UserAgentVersion(
                env!("CARGO_PKG_VERSION").to_owned(),
            )),
            ..Default::default()
        }
    }

    /// Publishes first, acknowledges last: returns what is to be sent now.
    fn carry_out(&mut self, update: Update) -> Vec<DeltaDiscoveryRequest> {
        let live = &self.shared.live;
        let mut requests = update.requests;
        match update.listeners {
            None => live.publish(update.upserts.into_iter().chain(update.removals)),
            Some(wanted) => {
                live.publish(update.upserts);
                requests.extend(self.bind(&wanted));
                self.shared.live.publish(update.removals);
            }
        }
        self.unsaved |= update.changed;
        // A state in the middle of a change would have to wait at start for what may never come.
        if self.unsaved && self.cache.settled() && self.cache.not_ready().is_none() {
            self.unsaved = false;
            if let Some(saver) = &self.saver {
                saver.save(self.cache.last_good());
            }
        }
        self.show();
        requests
    }

    fn bind(&mut self, wanted: &[config::xds::listener::ListenerConfig]) -> Vec<DeltaDiscoveryRequest> {
        let outcomes = self.listeners.apply(wanted);
        let failed = !self.listeners.errors().is_empty();
        self.retry_binding = failed.then(|| Instant::now() + BIND_RETRY);
        let outcomes = outcomes.iter().map(|(name, outcome)| (name.as_str(), outcome.clone()));
        let update = self.cache.on_listeners(outcomes, Instant::now());
        self.unsaved |= update.changed;
        update.requests
    }

    /// When there is something to do that no server triggers.
    fn next_tick(&self) -> Instant {
        let far = Instant::now() + Duration::from_hours(1);
        let restore = self.fallback.as_ref().map(|_| self.started + FIRST_ANSWER);
        [self.cache.next_deadline(), self.retry_binding, restore].into_iter().flatten().min().unwrap_or(far)
    }

    async fn tick(
        &mut self,
        outbox: Option<&mpsc::Sender<DeltaDiscoveryRequest>>,
    ) -> Result<(), StreamError> {
        let now = Instant::now();
        if self.fallback.is_some() && now >= self.started + FIRST_ANSWER && self.restore().await {
            return Err(StreamError::Restored);
        }
        let mut requests = Vec::new();
        if self.retry_binding.is_some_and(|at| now >= at) {
            let wanted = self.cache.live_listeners();
            requests.extend(self.bind(&wanted));
        }
        let update = self.cache.on_time(now);
        requests.extend(self.carry_out(update));
        match outbox {
            Some(outbox) => self.send(outbox, requests).await,
            None => Ok(()),
        }
    }

    /// Waits for `future` and meanwhile does what time demands.
    async fn waiting_for<F: Future>(&mut self, future: F) -> F::Output {
        tokio::pin!(future);
        loop {
            tokio::select! {
                output = &mut future => return output,
                () = tokio::time::sleep_until(self.next_tick().into()) => {
                    // Only a stream has to be told; there is none.
                    let _ = self.tick(None).await;
                }
            }
        }
    }

    /// Starts from the last good configuration, once. Whether there was one.
    async fn restore(&mut self) -> bool {
        let Some(path) = self.fallback.take() else { return false };
        if self.answered {
            return false;
        }
        let file = path.clone();
        let saved = match tokio::task::spawn_blocking(move || last_good::load(&file)).await {
            Ok(Ok(saved)) => saved,
            Ok(Err(last_good::LoadError::Io(error))) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::warn!("no server answers, and there is no last good configuration yet");
                return false;
            }
            Ok(Err(error)) => {
                tracing::warn!("the last good configuration {} is not used: {error}", path.display());
                return false;
            }
            Err(error) => {
                tracing::error!("reading the last good configuration failed: {error}");
                return false;
            }
        };
        let count = saved.len();
        let (update, refused) = self.cache.restore(&saved, Instant::now());
        for reason in refused {
            tracing::warn!("in the last good configuration: {reason}");
        }
        tracing::warn!("no server answers: running on the last good configuration ({count} resources)");
        self.shared.xds.on_last_good.store(true, Ordering::Relaxed);
        // No stream holds these nonces, so there is nothing to send.
        let _ = self.carry_out(update);
        true
    }

    /// Shows the state to the admin interface.
    fn show(&mut self) {
        let not_ready = match (self.stopping, self.ready) {
            (true, _) => Some("stopping".to_owned()),
            (false, true) => None,
            (false, false) => self.cache.not_ready(),
        };
        self.ready |= not_ready.is_none();
        self.shared.xds.warming_timeouts.store(self.cache.warming_timeouts(), Ordering::Relaxed);
        self.shared.configuration.store(Arc::new(ConfigurationView {
            held: self.cache.held(),
            waiting: self.cache.waiting(),
            server: self.server.clone(),
            not_ready,
            listener_errors: self.listeners.errors().to_vec(),
        }));
    }
}
