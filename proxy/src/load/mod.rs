//! What is known of the load on endpoints and versions.
//!
//! - [`integral`]: exact time-weighted concurrency.
//! - [`histogram`]: durations in fixed buckets, without a lock.
//! - [`shard`]: a part of each counter for each core.
//!
//! One shared record per live endpoint and per version, carried across updates, so that an update
//! never resets what is in flight.

mod histogram;
mod integral;
pub(crate) mod shard;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

use arc_swap::ArcSwap;

pub(crate) use histogram::{BOUNDS, Histogram};
pub(crate) use integral::{Concurrency, FOLD_EVERY};

use shard::Sharded;

/// Microseconds since the process first asked; monotonic, the same for every thread.
pub(crate) fn now_micros() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_micros() as u64
}

/// The load on one live endpoint of a cluster.
#[derive(Debug)]
pub(crate) struct EndpointLoad {
    /// Unique in the process. An endpoint that is removed and comes back is another one, so it never
    /// gets a pooled connection of the one before.
    pub(crate) generation: u64,
    /// The id it registered with, for people.
    pub(crate) id: Arc<str>,
    pub(crate) address: SocketAddr,
    /// One word for all cores, unlike other counters: balancing compares it at every pick, and adding
    /// up parts would read a line of every core. Endpoints are many, so that few cores meet at one.
    pub(crate) concurrency: Concurrency,
    /// Requests that were given to it, retries included. In the cache line that `concurrency` brings.
    pub(crate) requests: AtomicU64,
    /// Of those, the ones it failed: 5xx, no connection, no whole answer. Counted before each is counted
    /// out, and never for one that succeeds. Wraps around; who adds it up reads it more often.
    pub(crate) errors: AtomicU32,
    /// Whether it left the table: connections to it are not kept.
    pub(crate) gone: AtomicBool,
}

impl EndpointLoad {
    pub(crate) fn new(id: Arc<str>, address: SocketAddr) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self {
            generation: NEXT.fetch_add(1, Ordering::Relaxed),
            id,
            address,
            concurrency: Concurrency::default(),
            requests: AtomicU64::new(0),
            errors: AtomicU32::new(0),
            gone: AtomicBool::new(false),
        }
    }
}

/// The load on one version (an xDS cluster), over all gateways.
#[derive(Debug)]
pub(crate) struct VersionLoad {
    pub(crate) service: Arc<str>,
    /// Empty for clusters of foreign servers, whose names have no version in them.
    pub(crate) version: Arc<str>,
    pub(crate) concurrency: ShardedConcurrency,
    /// Copied on write: it gains an entry at the first request through another gateway.
    gateways: ArcSwap<Vec<Arc<Series>>>,
}

impl VersionLoad {
    /// The record of the cluster called `cluster`.
    pub(crate) fn new(cluster: &str) -> Self {
        let (service, version) = cluster.split_once('/').unwrap_or((cluster, ""));
        Self {
            service: service.into(),
            version: version.into(),
            concurrency: ShardedConcurrency::default(),
            gateways: ArcSwap::default(),
        }
    }

    /// Counts in the counters of requests that came through `gateway`.
    pub(crate) fn count(&self, gateway: &Arc<str>, count: impl FnOnce(&Series)) {
        let gateways = self.gateways.load();
        let known = gateways.iter().find(|s| Arc::ptr_eq(&s.gateway, gateway));
        match known.or_else(|| gateways.iter().find(|s| s.gateway == *gateway)) {
            Some(series) => count(series),
            None => count(&self.series(gateway)),
        }
    }

    /// The counters of requests that came through `gateway`.
    pub(crate) fn series(&self, gateway: &Arc<str>) -> Arc<Series> {
        let known = |list: &[Arc<Series>]| list.iter().find(|s| s.gateway == *gateway).cloned();
        if let Some(series) = known(&self.gateways.load()) {
            return series;
        }
        let fresh = Arc::new(Series::new(Arc::clone(gateway)));
        self.gateways.rcu(|list| match known(list) {
            Some(_) => Arc::clone(list),
            None => Arc::new(list.iter().cloned().chain([Arc::clone(&fresh)]).collect()),
        });
        known(&self.gateways.load()).unwrap_or(fresh)
    }

    /// The counters by gateway.
    pub(crate) fn gateways(&self) -> Arc<Vec<Arc<Series>>> {
        self.gateways.load_full()
    }

    /// Drops the counters of gateways that `keep` refuses.
    pub(crate) fn retain_gateways(&self, keep: impl Fn(&str) -> bool) {
        if self.gateways.load().iter().any(|s| !keep(&s.gateway)) {
            self.gateways.rcu(|list| list.iter().filter(|s| keep(&s.gateway)).cloned().collect::<Vec<_>>());
        }
    }
}

/// Why a client did not get a response to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Aborted {
    /// The endpoint broke off.
    Upstream,
    /// The client left.
    Client,
    /// One of them was silent for too long.
    Timeout,
}

impl Aborted {
    /// All of them, with the names they are shown by.
    pub(crate) const NAMES: [(Self, &'static str); 3] =
        [(Self::Upstream, "upstream"), (Self::Client, "client"), (Self::Timeout, "timeout")];
}

/// Counters of the requests of one version through one gateway.
#[derive(Debug)]
pub(crate) struct Series {
    pub(crate) gateway: Arc<str>,
    counts: Sharded<Counts>,
}

/// One core's part of a [`Series`].
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By class: no response, 1xx … 5xx, and 6: cut by the endpoint, or by time, after a head whose
    /// status had promised.
    pub(crate) classes: [AtomicU64; 7],
    /// Responses that were cut, in the order of [`Aborted::NAMES`].
    pub(crate) aborted: [AtomicU64; 3],
    pub(crate) durations: Histogram,
    /// Attempts beyond the first.
    pub(crate) retries: AtomicU64,
    /// Requests refused because no endpoint was ready.
    pub(crate) no_endpoint: AtomicU64,
    /// Requests that an endpoint did not answer in time.
    pub(crate) timeouts: AtomicU64,
}

impl Series {
    pub(crate) fn new(gateway: Arc<str>) -> Self {
        Self { gateway, counts: Sharded::default() }
    }

    /// This core's part.
    pub(crate) fn here(&self) -> &Counts {
        self.counts.here()
    }

    /// The sum of a counter over all cores.
    pub(crate) fn sum(&self, of: impl Fn(&Counts) -> &AtomicU64) -> u64 {
        self.counts.parts().map(|part| of(part).load(Ordering::Relaxed)).sum()
    }

    /// The count of each bucket of durations (not cumulative), and their sum in µs.
    pub(crate) fn durations(&self) -> ([u64; BOUNDS.len() + 1], u64) {
        self.counts.parts().fold(([0; BOUNDS.len() + 1], 0), |(mut counts, sum), part| {
            let (more, micros) = part.durations.read();
            for (count, more) in counts.iter_mut().zip(more) {
                *count += more;
            }
            (counts, sum + micros)
        })
    }

    /// A request ended with `status` (0: none was sent) after `micros`.
    pub(crate) fn finished(&self, status: u16, micros: u64, aborted: Option<Aborted>) {
        let class = match (aborted, usize::from(status / 100)) {
            (Some(Aborted::Upstream | Aborted::Timeout), 1..) => 6,
            // Beyond 599 is as 5xx (RFC 9110 §15).
            (_, class) => class.min(5),
        };
        let counts = self.here();
        counts.classes[class].fetch_add(1, Ordering::Relaxed);
        if let Some(aborted) = aborted {
            counts.aborted[aborted as usize].fetch_add(1, Ordering::Relaxed);
        }
        counts.durations.record(micros);
    }
}

/// [`Concurrency`] with a part for each core. What starts in a part ends in it.
#[derive(Debug, Default)]
pub(crate) struct ShardedConcurrency(Sharded<Concurrency>);

impl ShardedConcurrency {
    /// One more in flight since `now`; returns the part it is to end in.
    pub(crate) fn start(&self, now: u64) -> usize {
        let part = shard::here();
        self.0.at(part).start(now);
        part
    }

    /// One less in flight since `now`.
    pub(crate) fn end(&self, part: usize, now: u64) {
        self.0.at(part).end(now);
    }

    /// How many are in flight.
    pub(crate) fn in_flight(&self) -> u32 {
        self.0.parts().map(Concurrency::in_flight).sum()
    }

    /// The integral up to `now` since the record was made, in µs·requests. It never goes back.
    pub(crate) fn integral(&self, now: u64) -> u64 {
        self.0.parts().map(|part| part.integral(now)).sum()
    }
}

/// Records that outlive the routing table's view of them. Written when the table is published and
/// once a second, read by the admin interface; a request never comes here.
#[derive(Debug, Default)]
pub(crate) struct Records(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    versions: HashMap<Arc<str>, Arc<VersionLoad>>,
    /// Endpoints that left the table with requests in flight, by cluster.
    leaving: Vec<(Arc<str>, Arc<EndpointLoad>)>,
    /// Endpoints that left since this was last taken, by cluster.
    departed: Vec<(Arc<str>, Arc<EndpointLoad>)>,
}

impl Records {
    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The record of `cluster`: the one there is, or a new one.
    pub(crate) fn version(&self, cluster: &Arc<str>) -> Arc<VersionLoad> {
        let mut known = self.known();
        let entry = known.versions.entry(Arc::clone(cluster));
        Arc::clone(entry.or_insert_with(|| Arc::new(VersionLoad::new(cluster))))
    }

    /// Endpoints of `cluster` that just left the table.
    pub(crate) fn left(&self, cluster: &Arc<str>, endpoints: impl IntoIterator<Item = Arc<EndpointLoad>>) {
        let leaving = endpoints.into_iter().map(|load| (Arc::clone(cluster), load));
        let mut known = self.known();
        let before = known.leaving.len();
        known.leaving.extend(leaving);
        let Known { leaving, departed, .. } = &mut *known;
        departed.extend_from_slice(&leaving[before..]);
    }

    /// Endpoints that left since the last call, by cluster. Called once a second or more often, or they
    /// pile up.
    pub(crate) fn departed(&self) -> Vec<(Arc<str>, Arc<EndpointLoad>)> {
        std::mem::take(&mut self.known().departed)
    }

    /// Every version's record, by cluster.
    pub(crate) fn versions(&self) -> Vec<(Arc<str>, Arc<VersionLoad>)> {
        self.known().versions.iter().map(|(name, load)| (Arc::clone(name), Arc::clone(load))).collect()
    }

    /// Endpoints that left and still have requests in flight, by cluster.
    pub(crate) fn leaving(&self) -> Vec<(Arc<str>, Arc<EndpointLoad>)> {
        let mut known = self.known();
        known.leaving.retain(|(_, load)| load.concurrency.in_flight() > 0);
        known.leaving.clone()
    }

    /// Forgets what is neither live nor has a request in flight: the bound on metric labels. What
    /// `live` knows may be old by now, so a record that anyone refers to (a table that is just being
    /// published, say) stays: whoever asks for it has to meet the same one.
    pub(crate) fn prune(&self, live: impl Fn(&str) -> bool, gateway: impl Fn(&str) -> bool) {
        let mut known = self.known();
        known.leaving.retain(|(_, load)| load.concurrency.in_flight() > 0);
        known.versions.retain(|name, load| {
            load.retain_gateways(|g| gateway(g) || load.concurrency.in_flight() > 0);
            // Nobody can refer to one from now on but through this lock.
            live(name) || Arc::strong_count(load) > 1 || load.concurrency.in_flight() > 0
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cluster_name_without_a_slash_is_a_service_without_versions() {
        let load = VersionLoad::new("foreign");
        assert_eq!((&*load.service, &*load.version), ("foreign", ""));
        let load = VersionLoad::new("checkout/v2");
        assert_eq!((&*load.service, &*load.version), ("checkout", "v2"));
    }

    #[test]
    fn a_gateway_has_one_series_however_often_it_is_asked_for() {
        let load = VersionLoad::new("checkout/v2");
        let (edge, other): (Arc<str>, Arc<str>) = ("edge".into(), "other".into());
        assert!(Arc::ptr_eq(&load.series(&edge), &load.series(&edge)));
        load.series(&other);
        assert_eq!(load.gateways().len(), 2);
        load.retain_gateways(|g| g == "edge");
        assert_eq!(load.gateways().len(), 1);
    }

    #[test]
    fn a_removed_version_is_forgotten_when_its_last_request_is_over() {
        let records = Records::default();
        let name: Arc<str> = "checkout/v1".into();
        let load = records.version(&name);
        let part = load.concurrency.start(1);
        records.prune(|_| false, |_| true);
        assert!(Arc::ptr_eq(&load, &records.version(&name)));
        load.concurrency.end(part, 2);
        drop(load);
        records.prune(|_| false, |_| true);
        assert!(records.versions().is_empty());
    }
    #[test]
    fn a_record_is_not_forgotten_between_its_making_and_its_publication() {
        let records = Records::default();
        let name: Arc<str> = "checkout/v1".into();
        let made = records.version(&name);
        records.prune(|_| false, |_| true); // by a table from before
        assert!(Arc::ptr_eq(&made, &records.version(&name)), "an update never resets what is in flight");
    }
    #[test]
    fn a_response_that_was_cut_is_no_success() {
        let series = Series::new("edge".into());
        series.finished(200, 1, None);
        series.finished(200, 1, Some(Aborted::Client));
        series.finished(200, 1, Some(Aborted::Upstream));
        series.finished(200, 1, Some(Aborted::Timeout));
        series.finished(0, 1, Some(Aborted::Client));
        let classes: Vec<u64> = (0..7).map(|i| series.sum(|c| &c.classes[i])).collect();
        let aborted: Vec<u64> = (0..3).map(|i| series.sum(|c| &c.aborted[i])).collect();
        assert_eq!((classes, aborted), (vec![1, 0, 2, 0, 0, 0, 2], vec![1, 2, 1]));
        assert_eq!(series.durations().1, 5);
    }
}
