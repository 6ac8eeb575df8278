//! A gateway as its connections see it, and what becomes of a request that ended.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::{ArcSwap, ArcSwapOption};

use super::policy::{self, Head, Journey, Refused};
use crate::{
    access_log::{self, Line},
    load::{Aborted, now_micros, shard::PerCore},
    route::{Fields, RouteTable},
    shared::Shared,
    tls::ServerTls,
};

/// One gateway. Shared by its connections on all cores, so a request does not count references to it.
#[derive(Debug)]
pub(crate) struct Gateway {
    pub(crate) name: PerCore<Arc<str>>,
    pub(crate) shared: Arc<Shared>,
    /// Name of the route configuration; the listener may be given another one while running.
    pub(crate) route_config: ArcSwap<String>,
    /// What connections from now on begin with; in clear without.
    pub(crate) tls: ArcSwapOption<ServerTls>,
    stopping: AtomicBool,
    /// The routes when it was told to stop: they may be removed before its last requests have come.
    last_routes: ArcSwapOption<RouteTable>,
}

impl Gateway {
    pub(crate) fn new(
        name: &str,
        route_config: &str,
        tls: Option<Arc<ServerTls>>,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            name: PerCore::new(name.into()),
            shared,
            route_config: ArcSwap::from_pointee(route_config.to_owned()),
            tls: ArcSwapOption::new(tls),
            stopping: AtomicBool::new(false),
            last_routes: ArcSwapOption::empty(),
        }
    }

    /// Whether idle connections are to close and others to end with their request.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// No more requests than those that are under way.
    pub(crate) fn stop(&self) {
        let routes = self.shared.live.load().routes.get(self.route_config.load().as_str()).cloned();
        self.last_routes.store(routes);
        self.stopping.store(true, Ordering::Release);
    }

    /// Lets a request in that began at `since`.
    pub(crate) fn admit(&self, head: &Head<'_, impl Fields>, since: u64) -> Result<Journey, Refused> {
        let table = self.shared.live.load();
        let last;
        let routes = match table.routes.get(self.route_config.load().as_str()) {
            None if self.is_stopping() => {
                last = self.last_routes.load_full();
                last.as_deref()
            }
            routes => routes.map(|routes| &**routes),
        };
        policy::admit(&table, routes, &self.shared.requests, &self.name, head, since)
    }

    /// Counts a request out and logs it.
    pub(crate) fn finish(&self, journey: Option<Journey>, ended: &Ended, log: Option<Box<LogEntry>>) {
        let now = now_micros();
        if let (Some(entry), Some(log)) = (log, &self.shared.access_log) {
            log.log(self.line(*entry, journey.as_ref(), ended, now));
        }
        match journey {
            Some(journey) => journey.finish(&self.name, ended.status, ended.aborted, now),
            None => {
                let micros = now.saturating_sub(ended.since);
                self.shared.unrouted_finished(&self.name, ended.status, micros, ended.aborted);
            }
        }
    }

    fn line(&self, entry: LogEntry, journey: Option<&Journey>, ended: &Ended, now: u64) -> Line {
        let empty = || Arc::<str>::from("");
        Line {
            time: access_log::now(),
            gateway: Arc::clone(&self.name),
            client: entry.client.to_string(),
            method: entry.method,
            host: entry.host,
            path: entry.path,
            status: ended.status,
            aborted: ended.aborted,
            service: journey.map_or_else(empty, |j| Arc::clone(&j.version().service)),
            version: journey.map_or_else(empty, |j| Arc::clone(&j.version().version)),
            endpoint: journey.and_then(Journey::address).map(|address| address.to_string()),
            attempts: journey.map_or(0, Journey::attempts),
            duration_ms: now.saturating_sub(ended.since) as f64 / 1e3,
            bytes_sent: ended.bytes_sent,
        }
    }

    /// What will be logged of a request; `None` when there is no log.
    pub(crate) fn log_entry(
        &self,
        client: SocketAddr,
        method: &str,
        host: &str,
        path: &str,
    ) -> Option<Box<LogEntry>> {
        self.shared.access_log.as_ref()?;
        let (method, host, path) = (access_log::cut(method), access_log::cut(host), access_log::cut(path));
        Some(Box::new(LogEntry { client, method, host, path }))
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// In µs of [`now_micros`].
    pub(crate) since: u64,
    /// 0: no response was begun.
    pub(crate) status: u16,
    pub(crate) aborted: Option<Aborted>,
    /// Of the body of the response.
    pub(crate) bytes_sent: u64,
}

/// What the access log says of a request, kept while it runs.
#[derive(Debug)]
pub(crate) struct LogEntry {
    client: SocketAddr,
    method: String,
    host: String,
    path: String,
}
