//! What the server counts, in Prometheus' text format.

use std::sync::{Mutex, PoisonError};

use prometheus_client::{
    collector::Collector,
    encoding::{EncodeLabelSet, EncodeLabelValue, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::access::Refused;

/// Every series of the server. Labels are words of this program, never of its clients, so their
/// number is bounded.
pub struct Metrics {
    /// The newest revision.
    pub revision: Gauge,
    /// Writes that were done.
    pub writes: Counter,
    /// Writes that were refused.
    pub refused_writes: Counter,
    /// Commits that the store refused.
    pub store_failures: Counter,
    /// 1 while the store refuses commits or does not answer, else 0.
    pub store_failing: Gauge,
    /// Writes that another server was faster than, and that were tried again.
    pub store_conflicts: Counter,
    /// Watches of the shared store that broke or went silent.
    pub store_watches_lost: Counter,
    /// How often everything was loaded anew, because changes were missed for good.
    pub store_reloads: Counter,
    /// Endpoints put back because they live though their lease in the shared store had ended.
    pub store_revivals: Counter,
    /// Values in the shared store that cannot be read; the objects stay as they were.
    pub store_unreadable: Counter,
    /// Endpoints removed because their lease ended.
    pub expired_leases: Counter,
    /// Leases renewed.
    pub renewals: Counter,
    /// API requests by status class.
    pub api_requests: Family<Class, Counter>,
    /// API connections that are open.
    pub api_connections: Gauge,
    /// API connections refused because too many were open.
    pub api_connections_refused: Counter,
    /// Requests, connections and streams refused for who asked, by what was wrong.
    pub requests_refused: Family<Refused, Counter>,
    /// How many of the access file and the TLS files cannot be used as they are now.
    pub access_failing: Gauge,
    /// Open xDS streams.
    pub streams: Gauge,
    /// Responses sent, by type.
    pub responses: Family<Type, Counter>,
    /// Bytes of responses sent, by type.
    pub response_bytes: Family<Type, Counter>,
    /// Acknowledgements, by type.
    pub acks: Family<Type, Counter>,
    /// Refusals, by type.
    pub nacks: Family<Type, Counter>,
    /// Streams ended because the client broke the protocol or a bound.
    pub streams_refused: Counter,
    /// From the publication of a snapshot to its acknowledgement by a client, in seconds.
    pub propagation: Histogram,
    registry: Mutex<Registry>,
}

/// A status class of HTTP: `2xx`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Class {
    /// The class.
    pub class: StatusClass,
}

/// The first digit of a status code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum StatusClass {
    /// 1xx to 3xx
    Success,
    /// 4xx
    ClientError,
    /// 5xx
    ServerError,
}

/// A resource type.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Type {
    /// `CDS`, `EDS` and so on, or `other`.
    pub r#type: &'static str,
}

impl From<&'static str> for Type {
    fn from(short: &'static str) -> Self {
        Self { r#type: short }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let buckets = [0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 5.0];
        let mut registry = Registry::with_prefix("sluicegate_xds");
        let mut metrics = Self {
            revision: Gauge::default(),
            writes: Counter::default(),
            refused_writes: Counter::default(),
            store_failures: Counter::default(),
            store_failing: Gauge::default(),
            store_conflicts: Counter::default(),
            store_watches_lost: Counter::default(),
            store_reloads: Counter::default(),
            store_revivals: Counter::default(),
            store_unreadable: Counter::default(),
            expired_leases: Counter::default(),
            renewals: Counter::default(),
            api_requests: Family::default(),
            api_connections: Gauge::default(),
            api_connections_refused: Counter::default(),
            requests_refused: Family::default(),
            access_failing: Gauge::default(),
            streams: Gauge::default(),
            responses: Family::default(),
            response_bytes: Family::default(),
            acks: Family::default(),
            nacks: Family::default(),
            streams_refused: Counter::default(),
            propagation: Histogram::new(buckets),
            registry: Mutex::default(),
        };
        let m = &metrics;
        registry.register("revision", "The newest revision", m.revision.clone());
        registry.register("writes", "Writes that were done", m.writes.clone());
        registry.register("writes_refused", "Writes that were refused", m.refused_writes.clone());
        registry.register("store_failures", "Commits the store refused", m.store_failures.clone());
        registry.register(
            "store_failing",
            "1 while the store refuses commits or does not answer",
            m.store_failing.clone(),
        );
        let conflicts = "Writes tried again because another server was faster";
        registry.register("store_conflicts", conflicts, m.store_conflicts.clone());
        let lost = "Watches of the shared store that broke or went silent";
        registry.register("store_watches_lost", lost, m.store_watches_lost.clone());
        let reloads = "Loads of everything because changes were missed for good";
        registry.register("store_reloads", reloads, m.store_reloads.clone());
        let revivals = "Endpoints put back because they outlived their lease in the shared store";
        registry.register("store_revivals", revivals, m.store_revivals.clone());
        let unreadable = "Values in the shared store that cannot be read";
        registry.register("store_unreadable", unreadable, m.store_unreadable.clone());
        registry.register("leases_expired", "Endpoints whose lease ended", m.expired_leases.clone());
        registry.register("lease_renewals", "Leases renewed", m.renewals.clone());
        registry.register("api_requests", "API requests by status class", m.api_requests.clone());
        registry.register("api_connections", "Open API connections", m.api_connections.clone());
        registry.register(
            "api_connections_refused",
            "API connections refused at the bound",
            m.api_connections_refused.clone(),
        );
        registry.register(
            "requests_refused",
            "Requests, connections and streams refused for who asked",
            m.requests_refused.clone(),
        );
        registry.register(
            "access_failing",
            "How many of the access file and the TLS files have changed and cannot be used",
            m.access_failing.clone(),
        );
        registry.register("streams", "Open xDS streams", m.streams.clone());
        registry.register("responses", "xDS responses sent", m.responses.clone());
        registry.register("response_bytes", "Bytes of xDS responses sent", m.response_bytes.clone());
        registry.register("acks", "xDS responses acknowledged", m.acks.clone());
        registry.register("nacks", "xDS responses refused by clients", m.nacks.clone());
        registry.register(
            "streams_refused",
            "xDS streams ended for breaking the protocol or a bound, and connections refused at theirs",
            m.streams_refused.clone(),
        );
        registry.register(
            "propagation_seconds",
            "From publication to a client's acknowledgement",
            m.propagation.clone(),
        );
        metrics.registry = Mutex::new(registry);
        metrics
    }
}

impl Metrics {
    /// Adds series that are made when they are read.
    pub fn register(&self, collector: Box<dyn Collector>) {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).register_collector(collector);
    }

    /// Every series, as Prometheus reads them.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a String cannot fail.
        let _ = text::encode(&mut out, &registry);
        out
    }
}
