//! The incremental ADS stream: connects, gives up on who is silent, and carries out what the cache
//! decides. One task owns the cache, the listeners and the right to publish.

use std::{
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use config::{
    bootstrap::ProxySettings,
    xds::{
        leds,
        listener::{ListenerConfig, ListenerTls},
    },
};
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
    cache::{Cache, Update, WARMING_TIMEOUT},
    last_good::{self, Saver},
    servers::{Servers, root_cause},
};
use crate::{
    cluster::ClusterTls,
    edge::listener::{Listeners, PreparedTls},
    load::now_micros,
    shared::{ConfigurationView, Shared},
    table::Change,
};

/// Bound on one attempt to connect, name resolution included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent server is asked for a sign of life this often, and given this long.
const KEEP_ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));
/// Bound on one response, in bytes.
const MAX_RESPONSE: usize = 64 * 1024 * 1024;
/// Requests that may wait for a server that does not read, and how long.
const OUTBOX: (usize, Duration) = (256, Duration::from_secs(10));
/// How long a server may take to answer at start before the last good configuration is used.
const FIRST_ANSWER: Duration = Duration::from_secs(1);
/// How long it may pause in the middle of its first configuration before that is used: longer than
/// what is incomplete is waited for.
const NEXT_ANSWER: Duration = WARMING_TIMEOUT.saturating_add(Duration::from_secs(1));
/// How long a new stream may be silent when not everything is held: doubles from the first to the
/// last with each that was, as all servers may only be slow.
const SILENCE: (Duration, Duration) = (Duration::from_secs(5), Duration::from_mins(1));
/// How long files may take to be read: a network mount may hang, and the stream with it.
const FILES: Duration = Duration::from_secs(10);
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
    #[error("{0}")]
    Tls(String),
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
    #[error("the server is there and does not answer")]
    Silent,
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
    /// Where to restore from; `None` once a whole configuration has come or it was tried.
    fallback: Option<PathBuf>,
    started: Instant,
    /// When a server last said something.
    heard_at: Option<Instant>,
    stream: Option<StreamState>,
    patience: Duration,
    ready: bool,
    stopping: bool,
    server: Option<String>,
    retry_binding: Option<Instant>,
    /// Whether something is held that was not handed to the saver.
    unsaved: bool,
}

/// What there is to know about a stream, from the connection on.
#[derive(Clone, Copy)]
struct StreamState {
    began: Instant,
    /// Whether the server has sent anything.
    answered: bool,
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
        let cache = Cache::new(settings.gateways.iter().map(String::as_str), settings.drain_timeout);
        Self {
            settings,
            cache,
            shared,
            listeners,
            saver,
            fallback,
            started: Instant::now(),
            heard_at: None,
            stream: None,
            patience: SILENCE.0,
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
        let mut servers = Servers::new(self.settings.servers.clone());
        loop {
            let server = servers.current().to_owned();
            let Err(error) = self.stream(&server).await;
            let stream = self.disconnected();
            let lived = match error {
                StreamError::Restored => {
                    // This one had its chance.
                    servers.skip();
                    continue;
                }
                // However long it was waited for, it did not work.
                StreamError::Silent => Duration::ZERO,
                _ => stream.map_or(Duration::ZERO, |stream| stream.began.elapsed()),
            };
            let cause = root_cause(&error);
            let ended = servers.ended(&cause, lived);
            if ended.news {
                tracing::warn!("xDS server {server}: {cause}; trying until it is back");
            }
            // Lost in the middle of the first configuration, or no server left to try.
            let lost = stream.is_some_and(|stream| stream.answered) || ended.pause.is_some();
            if lost && self.restore().await {
                continue;
            }
            if let Some(pause) = ended.pause {
                let jittered = pause.mul_f64(rng.f64().mul_add(0.5, 0.5));
                self.waiting_for(tokio::time::sleep(jittered)).await;
            }
        }
    }

    /// The stream is over, if there was one; returns how it was.
    fn disconnected(&mut self) -> Option<StreamState> {
        self.server = None;
        self.shared.xds.connected.store(false, Ordering::Relaxed);
        self.shared.reports.server.send_replace(None);
        self.cache.on_disconnected();
        self.show();
        self.stream.take()
    }

    /// One stream, from connecting to its end.
    async fn stream(&mut self, server: &str) -> Result<std::convert::Infallible, StreamError> {
        let scheme = if self.settings.xds_tls.is_some() { "https" } else { "http" };
        let endpoint = Endpoint::from_shared(format!("{scheme}://{server}"))
            .map_err(|_| StreamError::Address(server.to_owned()))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE.0)
            .keep_alive_timeout(KEEP_ALIVE.1)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(WINDOWS.0)
            .initial_connection_window_size(WINDOWS.1);
        let channel = match self.settings.xds_tls.clone() {
            None => {
                let connecting = tokio::time::timeout(CONNECT_TIMEOUT, endpoint.connect());
                self.waiting_for(connecting).await.map_err(|_| StreamError::ConnectTimeout)??
            }
            Some(tls) => {
                let connector = super::tls::connector(tls, self.settings.xds_name.clone(), CONNECT_TIMEOUT);
                let connecting = async {
                    let connector = connector.await.map_err(StreamError::Tls)?;
                    Ok::<_, StreamError>(endpoint.connect_with_connector(connector).await?)
                };
                let connecting = tokio::time::timeout(CONNECT_TIMEOUT, connecting);
                self.waiting_for(connecting).await.map_err(|_| StreamError::ConnectTimeout)??
            }
        };
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel.clone()).max_decoding_message_size(MAX_RESPONSE);

        let (outbox, requests) = mpsc::channel(OUTBOX.0);
        let mut first = self.cache.on_connected();
        if let Some(request) = first.first_mut() {
            request.node = Some(self.node());
        }
        self.send(&outbox, first).await?;
        self.stream = Some(StreamState { began: Instant::now(), answered: false });
        // A server may send the head of its answer only with its first message.
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
        self.shared.reports.server.send_replace(Some(channel));
        self.show();
        tracing::info!("xDS server {server}: connected");
        loop {
            tokio::select! {
                message = inbound.message() => {
                    let response = message?.ok_or(StreamError::Closed)?;
                    let requests = self.take_in(response).await;
                    self.send(&outbox, requests).await?;
                }
                () = tokio::time::sleep_until(self.next_tick().into()) => self.tick(Some(&outbox)).await?,
            }
        }
    }

    async fn take_in(&mut self, response: DeltaDiscoveryResponse) -> Vec<DeltaDiscoveryRequest> {
        let now = Instant::now();
        self.heard_at = Some(now);
        self.patience = SILENCE.0;
        if let Some(stream) = &mut self.stream {
            stream.answered = true;
        }
        self.shared.xds.updates.fetch_add(1, Ordering::Relaxed);
        let update = self.cache.on_response(response, now);
        let requests = self.carry_out(update).await;
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
            client_features: vec![leds::CLIENT_FEATURE.to_owned()],
            ..Default::default()
        }
    }

    /// Publishes first, acknowledges last: returns what is to be sent now.
    async fn carry_out(&mut self, update: Update) -> Vec<DeltaDiscoveryRequest> {
        let ready = self.ready_tls(&update.upserts).await;
        let live = &self.shared.live;
        for secret in &update.secrets {
            live.tls.put_secret(secret);
        }
        let mut requests = update.requests;
        match update.listeners {
            None => live.publish(update.upserts.into_iter().chain(update.removals)),
            Some(wanted) => {
                live.publish(update.upserts);
                requests.extend(self.bind(&wanted).await);
                self.shared.live.publish(update.removals);
            }
        }
        self.forget_secrets(&update.secrets_gone);
        drop(ready); // until here, so that the publication finds what was read
        self.unsaved |= update.changed;
        self.disarm();
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

    /// Nothing names them any more.
    fn forget_secrets(&self, names: &[Arc<str>]) {
        for name in names {
            self.shared.live.tls.drop_secret(name);
        }
    }

    /// A part of a configuration serves nobody: the file stands in until the server's is whole.
    fn disarm(&mut self) {
        if self.stream.is_some_and(|stream| stream.answered) && self.cache.not_ready().is_none() {
            self.fallback = None;
            self.shared.xds.on_last_good.store(false, Ordering::Relaxed);
        }
    }

    /// Reads what TLS to endpoints needs, where no publication waits for a disk.
    async fn ready_tls(&self, upserts: &[Change]) -> Vec<ClusterTls> {
        let wanted = upserts.iter().filter_map(|change| match change {
            Change::Cluster(config, _) => Some(ClusterTls::new(config.tls.clone()?, config.http2)),
            _ => None,
        });
        let wanted: Vec<ClusterTls> = wanted.collect();
        if wanted.is_empty() {
            return wanted;
        }
        let tls = self.shared.live.tls.clone();
        let read = move || {
            for cluster in &wanted {
                let _ = cluster.prepare(&tls); // told when it is published
            }
            wanted
        };
        let reading = tokio::task::spawn_blocking(read);
        tokio::time::timeout(FILES, reading).await.ok().and_then(Result::ok).unwrap_or_default()
    }

    /// Reads the certificates of listeners that are new or changed.
    async fn prepare_tls(&self, wanted: &[ListenerConfig]) -> PreparedTls {
        let unprepared = self.listeners.unprepared(wanted);
        if unprepared.is_empty() {
            return PreparedTls::default();
        }
        let names: Vec<String> = unprepared.iter().map(|(name, _)| name.clone()).collect();
        let tls = self.shared.live.tls.clone();
        let read = move || {
            let read = |wanted: &ListenerTls| tls.prepare(wanted).map_err(|error| error.to_string());
            unprepared.into_iter().map(|(name, wanted)| (name, read(&wanted))).collect()
        };
        let reading = tokio::task::spawn_blocking(read);
        match tokio::time::timeout(FILES, reading).await {
            Ok(Ok(prepared)) => prepared,
            _ => {
                let error = || Err(format!("its certificates could not be read in {FILES:?}"));
                names.into_iter().map(|name| (name, error())).collect()
            }
        }
    }

    async fn bind(&mut self, wanted: &[ListenerConfig]) -> Vec<DeltaDiscoveryRequest> {
        let prepared = self.prepare_tls(wanted).await;
        let outcomes = self.listeners.apply(wanted, prepared);
        let failed = !self.listeners.errors().is_empty();
        self.retry_binding = failed.then(|| Instant::now() + BIND_RETRY);
        let outcomes = outcomes.iter().map(|(name, outcome)| (name.as_str(), outcome.clone()));
        let update = self.cache.on_listeners(outcomes, Instant::now());
        self.unsaved |= update.changed;
        self.shared.live.publish(update.removals);
        self.forget_secrets(&update.secrets_gone);
        update.requests
    }

    /// When there is something to do that no server triggers.
    fn next_tick(&self) -> Instant {
        let far = Instant::now() + Duration::from_hours(1);
        let due = [self.cache.next_deadline(), self.retry_binding, self.restore_at(), self.give_up_at()];
        due.into_iter().flatten().min().unwrap_or(far)
    }

    /// When what the servers said is too little for too long.
    fn restore_at(&self) -> Option<Instant> {
        self.fallback.as_ref()?;
        Some(self.heard_at.map_or(self.started + FIRST_ANSWER, |at| at + NEXT_ANSWER))
    }

    /// When the server has been silent for too long. With everything held it may have nothing to say.
    fn give_up_at(&self) -> Option<Instant> {
        let silent = self.stream.filter(|stream| !stream.answered)?;
        self.cache.lacks_something().then_some(silent.began + self.patience)
    }

    async fn tick(
        &mut self,
        outbox: Option<&mpsc::Sender<DeltaDiscoveryRequest>>,
    ) -> Result<(), StreamError> {
        let now = Instant::now();
        if self.restore_at().is_some_and(|at| now >= at) && self.restore().await {
            return Err(StreamError::Restored);
        }
        if self.give_up_at().is_some_and(|at| now >= at) {
            self.patience = (self.patience * 2).min(SILENCE.1);
            return Err(StreamError::Silent);
        }
        let mut requests = Vec::new();
        if self.retry_binding.is_some_and(|at| now >= at) {
            let wanted = self.cache.live_listeners();
            requests.extend(self.bind(&wanted).await);
        }
        let update = self.cache.on_time(now);
        requests.extend(self.carry_out(update).await);
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
        tracing::warn!(
            "no server gives a configuration: running on the last good configuration ({count} resources)"
        );
        // No stream holds these nonces, so there is nothing to send.
        let _ = self.carry_out(update).await;
        self.shared.xds.on_last_good.store(true, Ordering::Relaxed);
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
