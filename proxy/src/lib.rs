//! The data plane of Sluicegate: an edge proxy that follows any standard xDS server.
//!
//! # Rooms
//! - `xds`: the client. `cache` (pure: responses → changes, then ACK or NACK), `client` (the stream),
//!   `servers` (pure: failover and back-off), `last_good` (the file that stands in when no server
//!   gives a configuration).
//! - `table`: the routing table, one immutable value behind one `ArcSwap`; made of `route`
//!   (host, path, headers → split) and `cluster` (a version and its endpoints).
//! - `balance`: choosing a version and an endpoint. `load`: what is in flight, exactly, over time.
//! - `edge`: listeners, two engines, and `policy`, which decides for them. `worker`: the threads they
//!   run on. `tls`: certificates and authorities, followed like their files.
//! - [`hot`]: the pure part of the request path, for benchmarks.
//! - `report`: what was sent where, to the server, as long as it wants to know.
//! - `admin`, `metrics`, `access_log`: looking in. `shared`: what the runtimes share.
//!
//! # Runtimes
//! Requests are served by `worker`, one runtime a core. The xDS client, the admin interface and the
//! writing of files run on the caller's, so that neither can starve the other. They meet in
//! `shared`: an update swaps a pointer there, a request loads it once.
//!
//! # Architecture invariants
//! - `xds::cache`, `route`, `cluster`, `balance`, `load` and `edge::policy` do no I/O. What does I/O
//!   imports them, never the reverse.
//! - The request path takes no lock that an update holds.
//! - Only the xDS client publishes.
//! - Absent on purpose: polling of any kind, health checks by the proxy, file configuration.

mod access_log;
mod admin;
mod balance;
mod cluster;
mod edge;
pub mod hot;
mod load;
mod metrics;
mod names;
mod report;
mod route;
mod shared;
mod table;
mod tls;
mod worker;
mod xds;

use std::{
    future::{Future, IntoFuture},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use config::bootstrap::{AccessLog, ProxySettings};
use tokio::{net::TcpListener, task::AbortHandle, time::timeout};

use crate::{
    edge::listener::Listeners, load::FOLD_EVERY, shared::Shared, worker::Workers, xds::client::Client,
};

/// Most client connections at once, whatever the limit on file descriptors.
const MAX_CONNECTIONS: u64 = 65_536;
/// How often what TLS to endpoints lacks is looked for.
const TLS_RETRY: Duration = Duration::from_secs(2);
/// How long the access log may take to be written to its end after the drain.
const LAST_LINES: Duration = Duration::from_secs(1);
/// File descriptors kept for everything that is not a request: xDS, admin, files, listeners.
const RESERVED_FILES: u64 = 256;

/// Why a proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings name no xDS server.
    #[error("no xDS server is given; give at least one as host:port")]
    NoServers,
    /// The admin interface cannot listen.
    #[error("the admin interface cannot listen on {address}; choose another address with --admin-addr")]
    Admin {
        /// Where it was to listen.
        address: SocketAddr,
        /// Why it cannot.
        source: io::Error,
    },
    /// The access log cannot be opened.
    #[error("the access log {} cannot be opened", path.display())]
    AccessLog {
        /// Its file; `-` for standard output.
        path: PathBuf,
        /// Why it cannot.
        source: io::Error,
    },
    /// The threads that serve requests cannot be started.
    #[error("the threads that serve requests cannot be started")]
    Runtime(#[source] io::Error),
}

/// A proxy whose admin interface is bound and that does not run yet.
#[derive(Debug)]
pub struct Proxy {
    settings: ProxySettings,
    admin: TcpListener,
    admin_addr: SocketAddr,
    shared: Arc<Shared>,
}

impl Proxy {
    /// Binds the admin listener and opens the access log. Within a tokio runtime.
    ///
    /// # Errors
    /// When the settings cannot be followed; see [`StartError`].
    pub async fn bind(settings: ProxySettings) -> Result<Self, StartError> {
        if settings.servers.is_empty() {
            return Err(StartError::NoServers);
        }
        let address = settings.admin_addr;
        let failed = |source| StartError::Admin { address, source };
        let admin = TcpListener::bind(address).await.map_err(failed)?;
        let admin_addr = admin.local_addr().map_err(failed)?;
        let access_log = settings.access_log.as_ref().map(|target| {
            access_log::AccessLog::open(target).map_err(|source| {
                let path = match target {
                    AccessLog::Stdout => "-".into(),
                    AccessLog::File(path) => path.clone(),
                };
                StartError::AccessLog { path, source }
            })
        });
        let shared = Arc::new(Shared::new(access_log.transpose()?, max_connections()));
        Ok(Self { settings, admin, admin_addr, shared })
    }

    /// Where the admin interface listens.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Runs until `shutdown` resolves; then stops accepting, lets requests in flight finish for up
    /// to the settings' `drain_timeout`, and returns.
    ///
    /// # Errors
    /// [`StartError::Runtime`] when no threads can be started. Once it runs, nothing ends it but
    /// `shutdown`.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), StartError> {
        let workers = Workers::start(self.settings.threads, &self.shared).map_err(StartError::Runtime)?;
        // Here until the end: when the last reference goes, what still runs is cut off.
        let workers = Arc::new(workers);
        let drain_timeout = self.settings.drain_timeout;
        let listeners = Listeners::new(Arc::clone(&workers), Arc::clone(&self.shared), drain_timeout);

        let (saver, saving) = match self.settings.last_good.clone() {
            Some(path) => {
                let (saver, saving) = xds::last_good::Saver::new(path, Arc::clone(&self.shared.xds));
                (Some(saver), Some(tokio::spawn(saving)))
            }
            None => (None, None),
        };
        let admin = axum::serve(self.admin, admin::router(Arc::clone(&self.shared)));
        let _admin = AbortOnDrop(tokio::spawn(admin.into_future()).abort_handle());
        let _folding = AbortOnDrop(tokio::spawn(fold(Arc::clone(&self.shared))).abort_handle());
        let _retrying = AbortOnDrop(tokio::spawn(retry_tls(Arc::clone(&self.shared))).abort_handle());
        let _watcher = self.shared.live.tls.watch();

        let (finish, finishing) = tokio::sync::oneshot::channel::<()>();
        let reporter = report::Reporter::new(&self.settings, Arc::clone(&self.shared));
        let reporting = tokio::spawn(reporter.run(finishing));
        let _reporting = AbortOnDrop(reporting.abort_handle());

        let client = Client::new(self.settings, Arc::clone(&self.shared), listeners, saver);
        // Stops the listeners when it returns.
        client.run(shutdown).await;

        if timeout(drain_timeout, self.shared.connections.all_closed()).await.is_err() {
            let open = self.shared.connections.open();
            tracing::warn!("{open} connections were still open after {drain_timeout:?}");
        }
        // Every request is counted out by now.
        drop(finish);
        let _ = timeout(report::LAST_REPORT, reporting).await;
        if let Some(log) = &self.shared.access_log {
            log.close(LAST_LINES).await;
        }
        if let Some(saving) = saving {
            // The client is gone and its saver with it: the last state is written, then it ends.
            let _ = saving.await;
        }
        Ok(())
    }
}

/// Reads every record once a second, so that no integral wraps unseen, and forgets records that
/// nothing refers to any more.
async fn fold(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(FOLD_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        shared.fold();
    }
}

/// Files of authorities that could not be read may appear.
async fn retry_tls(shared: Arc<Shared>) {
    let mut ticks = tokio::time::interval(TLS_RETRY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let shared = Arc::clone(&shared);
        // An error means that the runtime is ending.
        let _ = tokio::task::spawn_blocking(move || shared.live.retry_tls()).await;
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Two file descriptors a request (client and endpoint) within the limit of the process.
fn max_connections() -> usize {
    let limit = rlimit::Resource::NOFILE.get_soft().unwrap_or(MAX_CONNECTIONS);
    (limit.saturating_sub(RESERVED_FILES) / 2).clamp(64, MAX_CONNECTIONS) as usize
}
