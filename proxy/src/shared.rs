//! What the two runtimes share: requests count in it, the xDS client writes it, the admin reads it.

use std::{
    cell::Cell,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use arc_swap::ArcSwap;
use serde::Serialize;
use tokio::sync::Notify;

use crate::{
    access_log::AccessLog,
    load::{Aborted, Series, VersionLoad, now_micros},
    metrics::{ConnectionStats, XdsStats},
    report::Reports,
    table::Live,
    xds::cache::{ByType, HeldMap},
};

/// Most requests in flight at once. The integral of [`crate::load::Concurrency`] relies on it.
pub(crate) const MAX_REQUESTS: usize = 1 << 17;

/// Everything that is shared.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) live: Live,
    pub(crate) connections: Arc<Connections>,
    pub(crate) requests: Requests,
    pub(crate) access_log: Option<AccessLog>,
    pub(crate) xds: Arc<XdsStats>,
    pub(crate) reports: Reports,
    /// Requests without a route, by gateway.
    unrouted: VersionLoad,
    pub(crate) listeners: ArcSwap<Vec<ListenerView>>,
    pub(crate) configuration: ArcSwap<ConfigurationView>,
}

impl Shared {
    /// With a bound on open client connections.
    pub(crate) fn new(access_log: Option<AccessLog>, max_connections: usize) -> Self {
        Self {
            live: Live::default(),
            connections: Arc::new(Connections::new(max_connections)),
            requests: Requests::new(MAX_REQUESTS),
            access_log,
            xds: Arc::default(),
            reports: Reports::default(),
            unrouted: VersionLoad::new(""),
            listeners: ArcSwap::default(),
            configuration: ArcSwap::default(),
        }
    }

    /// A request of `gateway` without a route ended with `status` after `micros`.
    pub(crate) fn unrouted_finished(
        &self,
        gateway: &Arc<str>,
        status: u16,
        micros: u64,
        aborted: Option<Aborted>,
    ) {
        self.unrouted.count(gateway, |series| series.finished(status, micros, aborted));
    }

    /// Reads every integral and forgets records that are neither live nor busy.
    pub(crate) fn fold(&self) {
        let now = now_micros();
        let table = self.live.load_full();
        for cluster in table.clusters.values() {
            for endpoint in cluster.endpoints.iter() {
                endpoint.load.concurrency.integral(now);
            }
        }
        self.reports.follow(&self.live);
        for (_, load) in self.live.records.leaving() {
            load.concurrency.integral(now);
        }
        for (_, load) in self.live.records.versions() {
            load.concurrency.integral(now);
        }
        let listeners = self.listeners.load_full();
        let runs = |gateway: &str| listeners.iter().any(|listener| listener.name == gateway);
        self.live.records.prune(|cluster| table.clusters.contains_key(cluster), runs);
        self.unrouted.retain_gateways(runs);
    }

    /// Those of every gateway.
    pub(crate) fn unrouted(&self) -> Arc<Vec<Arc<Series>>> {
        self.unrouted.gateways()
    }
}

/// A listener, as `/listeners` shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ListenerView {
    pub(crate) name: String,
    /// The address that is actually bound.
    pub(crate) address: SocketAddr,
    pub(crate) route_config: String,
}

/// The xDS client's state, as `/config_dump` and `/readyz` show it.
#[derive(Debug)]
pub(crate) struct ConfigurationView {
    /// In the order of `ResourceType::ALL`.
    pub(crate) held: ByType<HeldMap>,
    pub(crate) waiting: Vec<String>,
    pub(crate) server: Option<String>,
    pub(crate) not_ready: Option<String>,
    /// Listeners that could not be bound, and why.
    pub(crate) listener_errors: Vec<(String, String)>,
}

impl Default for ConfigurationView {
    fn default() -> Self {
        Self {
            held: Default::default(),
            waiting: Vec::new(),
            server: None,
            not_ready: Some("no listeners from a server yet".to_owned()),
            listener_errors: Vec::new(),
        }
    }
}

/// Client connections: how many there are, and the bound on them.
#[derive(Debug)]
pub(crate) struct Connections {
    pub(crate) stats: ConnectionStats,
    limit: i64,
    /// Accept loops, which may still turn what the kernel holds into connections.
    accepting: AtomicUsize,
    closed: Notify,
}

impl Connections {
    pub(crate) fn new(limit: usize) -> Self {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        Self {
            stats: ConnectionStats::default(),
            limit,
            accepting: AtomicUsize::new(0),
            closed: Notify::new(),
        }
    }

    /// Counts one more connection in; `None` at the bound.
    pub(crate) fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let admitted = Admitted(Arc::clone(self));
        if self.stats.open.fetch_add(1, Ordering::AcqRel) >= self.limit {
            self.stats.refused.fetch_add(1, Ordering::Relaxed);
            return None; // dropping `admitted` takes it back
        }
        self.stats.accepted.fetch_add(1, Ordering::Relaxed);
        Some(admitted)
    }

    /// One more accept loop, as long as the guard lives.
    pub(crate) fn accepting(self: &Arc<Self>) -> AcceptLoop {
        self.accepting.fetch_add(1, Ordering::AcqRel);
        AcceptLoop(Arc::clone(self))
    }

    /// How many are open.
    pub(crate) fn open(&self) -> i64 {
        self.stats.open.load(Ordering::Acquire)
    }

    /// Waits until none is open and none can come any more.
    pub(crate) async fn all_closed(&self) {
        loop {
            let closed = self.closed.notified();
            // In this order: a loop that has ended has counted in what it accepted.
            if self.accepting.load(Ordering::Acquire) == 0 && self.open() <= 0 {
                return;
            }
            closed.await;
        }
    }
}

/// A connection that counts as long as this lives.
#[derive(Debug)]
pub(crate) struct Admitted(Arc<Connections>);

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.0.stats.open.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.closed.notify_waiters();
        }
    }
}

/// An accept loop that counts as long as this lives.
#[derive(Debug)]
pub(crate) struct AcceptLoop(Arc<Connections>);

impl Drop for AcceptLoop {
    fn drop(&mut self) {
        if self.0.accepting.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.closed.notify_waiters();
        }
    }
}

/// The bound on requests in flight, over all gateways. Each core has its share of it, so that
/// requests on different cores do not meet.
#[derive(Debug)]
pub(crate) struct Requests {
    limit: usize,
    share: AtomicUsize,
    refused: AtomicU64,
}

thread_local! {
    static IN_FLIGHT: Cell<usize> = const { Cell::new(0) };
}

impl Requests {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, share: AtomicUsize::new(limit), refused: AtomicU64::new(0) }
    }

    /// Divides the bound among `cores`.
    pub(crate) fn share_among(&self, cores: usize) {
        self.share.store((self.limit / cores.max(1)).max(1), Ordering::Relaxed);
    }

    /// Counts one more request in on this core; `None` at the bound.
    pub(crate) fn admit(&self) -> Option<Taken> {
        let in_flight = IN_FLIGHT.get();
        if in_flight >= self.share.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        IN_FLIGHT.set(in_flight + 1);
        Some(Taken(()))
    }

    /// Refused at the bound.
    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

/// A request that counts as long as this lives. It stays on the core it was admitted on.
#[derive(Debug)]
pub(crate) struct Taken(());

impl Drop for Taken {
    fn drop(&mut self) {
        // At the end of a process it may be dropped elsewhere, where nothing counts any more.
        IN_FLIGHT.set(IN_FLIGHT.get().saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn connections_are_bounded_and_counted_out() {
        let connections = Arc::new(Connections::new(2));
        let (one, two) = (connections.admit().unwrap(), connections.admit().unwrap());
        assert!(connections.admit().is_none());
        drop(one);
        let three = connections.admit().unwrap();
        drop((two, three));
        connections.all_closed().await;
        assert_eq!(connections.stats.refused.load(Ordering::Relaxed), 1);
    }
    #[tokio::test]
    async fn a_stop_waits_for_accept_loops_too() {
        let connections = Arc::new(Connections::new(2));
        let accept_loop = connections.accepting();
        let mut all_closed = std::pin::pin!(connections.all_closed());
        assert!(futures_util::poll!(&mut all_closed).is_pending());
        let last = connections.admit().unwrap();
        drop(accept_loop);
        assert!(futures_util::poll!(&mut all_closed).is_pending());
        drop(last);
        all_closed.await;
    }
    #[test]
    fn requests_are_bounded_and_counted_out() {
        let requests = Requests::new(1);
        let one = requests.admit().unwrap();
        assert!(requests.admit().is_none());
        drop(one);
        assert!(requests.admit().is_some());
        assert_eq!(requests.refused(), 1);
    }
}
