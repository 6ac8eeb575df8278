//! The routing table: one immutable value behind one `ArcSwap`. A request loads it once, so routes,
//! splits and endpoints cannot tear. Publishing one change costs the logarithm of the number of
//! clusters, plus that of the endpoints of the cluster if one of them changed, or their number if all were
//! assigned anew.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use config::xds::{assignment::Assignment, cluster::ClusterConfig, route::RouteConfig};
use tokio::sync::watch;

use crate::{
    cluster::{Cluster, EndpointChange, Left},
    load::{Records, shard::PerCore},
    names::{ClusterName, Names},
    route::RouteTable,
    tls::Tls,
};

type Map<V> =
    imbl::GenericHashMap<Arc<str>, V, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// Everything a request needs to be routed.
#[derive(Clone, Debug, Default)]
pub(crate) struct RoutingTable {
    /// By name of route configuration.
    pub(crate) routes: Map<Arc<RouteTable>>,
    /// By name.
    pub(crate) clusters: Map<Arc<PerCore<Cluster>>>,
    /// The same by the places of their names, where requests look.
    places: imbl::Vector<Option<Arc<PerCore<Cluster>>>>,
    /// Rises by one with every publication.
    pub(crate) sequence: u64,
}

impl RoutingTable {
    /// The cluster called `name`.
    pub(crate) fn cluster(&self, name: &ClusterName) -> Option<&PerCore<Cluster>> {
        self.places.get(name.place())?.as_deref()
    }

    fn show(&mut self, name: &ClusterName, cluster: Cluster) {
        let cluster = Arc::new(PerCore::new(cluster));
        self.put(name, Some(Arc::clone(&cluster)));
        self.clusters.insert(Arc::clone(name.text()), cluster);
    }

    fn put(&mut self, name: &ClusterName, cluster: Option<Arc<PerCore<Cluster>>>) {
        while self.places.len() <= name.place() {
            self.places.push_back(None);
        }
        self.places.set(name.place(), cluster);
    }
}

/// One change of the table.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A cluster is new or changed, or its endpoints are.
    Cluster(Arc<ClusterConfig>, Option<Arc<Assignment>>),
    /// Some endpoints of a cluster, if there is one of this name.
    Endpoints(Arc<str>, Arc<[EndpointChange]>),
    /// A cluster is gone.
    ClusterGone(Arc<str>),
    /// A route configuration is new or changed.
    Routes(Arc<RouteConfig>),
    /// A route configuration is gone.
    RoutesGone(Arc<str>),
}

/// The table as requests and the admin interface see it.
#[derive(Debug, Default)]
pub(crate) struct Live {
    table: ArcSwap<RoutingTable>,
    /// Of whoever publishes.
    names: Mutex<Names>,
    pub(crate) records: Records,
    pub(crate) publishes: AtomicU64,
    /// Told after a publication in which endpoints left, so that connections to them are closed.
    pub(crate) departures: watch::Sender<()>,
    pub(crate) tls: Tls,
}

impl Live {
    /// The table now. Cheap, and never blocked by a publication.
    pub(crate) fn load(&self) -> arc_swap::Guard<Arc<RoutingTable>> {
        self.table.load()
    }

    /// The table now, to be kept for a while.
    pub(crate) fn load_full(&self) -> Arc<RoutingTable> {
        self.table.load_full()
    }

    /// Tries again to get what TLS to endpoints lacks. Reads files.
    pub(crate) fn retry_tls(&self) {
        let table = self.load_full();
        for (name, cluster) in &table.clusters {
            let Some(tls) = cluster.tls.as_ref().filter(|tls| tls.client().is_none()) else { continue };
            if tls.prepare(&self.tls).is_ok() {
                tracing::info!("endpoints of {name} can be connected to now");
            }
        }
    }

    /// Applies `changes` and publishes once. Only one task publishes.
    pub(crate) fn publish(&self, changes: impl IntoIterator<Item = Change>) {
        let mut changes = changes.into_iter().peekable();
        if changes.peek().is_none() {
            return;
        }
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = RoutingTable::clone(&self.table.load());
        let (mut gone, mut left) = (false, false);
        for change in changes {
            gone |= matches!(change, Change::ClusterGone(_));
            left |= self.apply(&mut next, &mut names, change);
        }
        names.prune();
        drop(names);
        next.sequence += 1;
        let next = Arc::new(next);
        self.table.store(Arc::clone(&next));
        self.publishes.fetch_add(1, Ordering::Relaxed);
        if left {
            self.departures.send_replace(());
        }
        if gone {
            self.records.prune(|cluster| next.clusters.contains_key(cluster), |_| true);
        }
    }

    /// Returns whether endpoints left.
    fn apply(&self, table: &mut RoutingTable, names: &mut Names, change: Change) -> bool {
        let mut left = Left::new();
        let cluster = match change {
            Change::Cluster(config, assignment) => {
                let placed = names.name(&config.name);
                // The table holds the name, and with it the place.
                let name = Arc::clone(placed.text());
                let before = table.clusters.get(&name).map(|before| &***before);
                let load = self.records.version(&name);
                let cluster = Cluster::new(config, load, assignment.as_deref(), before, &mut left);
                if cluster.tls.as_ref().is_some_and(|tls| !tls.adopt(&self.tls)) {
                    tracing::warn!(
                        "endpoints of {name} cannot be connected to until its CA file can be read"
                    );
                }
                table.show(&placed, cluster);
                name
            }
            Change::Endpoints(name, changes) => {
                let Some(before) = table.clusters.get(&name) else { return false };
                let cluster = before.with(&changes, &mut left);
                table.show(&names.name(&name), cluster);
                name
            }
            Change::ClusterGone(name) => {
                let Some(before) = table.clusters.remove(&name) else { return false };
                table.put(&names.name(&name), None);
                left.extend(before.endpoints.iter().map(|endpoint| Arc::clone(&endpoint.load)));
                name
            }
            Change::Routes(config) => {
                table.routes.insert(config.name.as_str().into(), Arc::new(RouteTable::new(&config, names)));
                return false;
            }
            Change::RoutesGone(name) => {
                table.routes.remove(&name);
                return false;
            }
        };
        if left.is_empty() {
            return false;
        }
        for load in &left {
            load.gone.store(true, Ordering::Release);
        }
        self.records.left(&cluster, left);
        true
    }
}

#[cfg(test)]
mod tests {
    use config::{
        Health,
        xds::route::{PathRule, RouteEntry, VirtualHost},
    };

    use super::*;
    use crate::cluster::tests::{assignment, config, record};

    fn cluster(name: &str, ports: &[u16]) -> Change {
        let endpoints: Vec<_> = ports.iter().map(|port| (*port, Health::Ready)).collect();
        Change::Cluster(config(name), Some(Arc::new(assignment(name, &endpoints))))
    }

    #[test]
    fn a_publication_leaves_what_a_request_holds_untouched() {
        let live = Live::default();
        live.publish([cluster("a/v1", &[1])]);
        let held = live.load();
        live.publish([Change::ClusterGone("a/v1".into())]);
        assert_eq!(held.clusters.len(), 1);
        assert_eq!((live.load().clusters.len(), live.load().sequence), (0, 2));
    }

    #[test]
    fn the_other_clusters_are_shared_between_publications() {
        let live = Live::default();
        live.publish([cluster("a/v1", &[1]), cluster("b/v1", &[2])]);
        let before = Arc::clone(live.load().clusters.get("b/v1").unwrap());
        live.publish([cluster("a/v1", &[1, 3])]);
        assert!(Arc::ptr_eq(&before, live.load().clusters.get("b/v1").unwrap()));
    }

    #[test]
    fn a_name_finds_its_cluster_and_no_other_whatever_came_and_went() {
        let route = |clusters: &[String]| {
            let rule = |(i, name): (usize, &String)| RouteEntry {
                path: PathRule::Exact(format!("/{i}")),
                headers: Vec::new(),
                clusters: vec![(name.clone(), 1)],
            };
            let routes = clusters.iter().enumerate().map(rule).collect();
            let host = VirtualHost { domains: vec!["*".to_owned()], routes };
            Change::Routes(Arc::new(RouteConfig {
                name: "edge".into(),
                ignore_port: true,
                virtual_hosts: vec![host],
            }))
        };
        for seed in 0..10 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let live = Live::default();
            let mut exist = std::collections::BTreeSet::new();
            for round in 0..300 {
                // Most names are new ones, so that places are used again.
                let name = format!("s/v{}", round / 2 + rng.u32(0..3));
                let change = if rng.u8(0..3) > 0 {
                    exist.insert(name.clone());
                    cluster(&name, &[1])
                } else {
                    exist.remove(&name);
                    Change::ClusterGone(name.as_str().into())
                };
                let old: Vec<_> = exist.iter().take(exist.len() / 2).cloned().collect();
                let gone = old.into_iter().filter(|_| rng.u8(0..4) == 0).collect::<Vec<_>>();
                exist.retain(|name| !gone.contains(name));
                let gone = gone.iter().map(|name| Change::ClusterGone(name.as_str().into()));
                let asked: Vec<String> =
                    exist.iter().cloned().chain([name.clone(), "s/never".into()]).collect();
                live.publish([change].into_iter().chain(gone).chain([route(&asked)]));
                let table = live.load();
                let routes = table.routes.get("edge").unwrap();
                for (i, name) in asked.iter().enumerate() {
                    let split = routes.find("a", &format!("/{i}"), &http::HeaderMap::new()).unwrap();
                    let found = table.cluster(split.draw(&mut rng).unwrap()).map(|c| c.config.name.clone());
                    assert_eq!(found.as_ref(), exist.get(name), "seed {seed}, round {round}");
                }
            }
        }
    }

    #[test]
    fn an_endpoint_that_left_is_listed_until_its_last_request_is_over() {
        let live = Live::default();
        live.publish([cluster("a/v1", &[1, 2])]);
        let load = record(live.load().clusters.get("a/v1").unwrap(), 1);
        load.concurrency.start(1);
        live.publish([cluster("a/v1", &[2])]);
        assert_eq!(live.records.leaving().len(), 1);
        load.concurrency.end(2);
        assert!(live.records.leaving().is_empty());
    }

    #[test]
    fn a_change_of_one_endpoint_leaves_the_others_as_they_are_and_says_who_left() {
        let live = Live::default();
        let ports: Vec<u16> = (1..=200).collect();
        live.publish([cluster("a/v1", &ports)]);
        let before: Vec<_> = ports.iter().map(|&port| record(&live.load().clusters["a/v1"], port)).collect();
        let mut departures = live.departures.subscribe();
        let draining = assignment("a/v1", &[(7, Health::Draining)]).endpoints.remove(0);
        let changes = [(draining.address, Some(draining)), (before[8].address, None)];
        live.publish([Change::Endpoints("a/v1".into(), changes.into())]);
        let table = live.load();
        let after = &table.clusters["a/v1"];
        assert_eq!((after.endpoints.len(), after.ready(), table.sequence), (199, 198, 2));
        for load in before.iter().filter(|load| load.address.port() != 9) {
            assert!(Arc::ptr_eq(load, &record(after, load.address.port())));
            assert!(!load.gone.load(Ordering::Relaxed));
        }
        assert!(before[8].gone.load(Ordering::Relaxed) && departures.has_changed().unwrap());
        assert_eq!(live.records.leaving().len(), 0, "it had no request");
        departures.mark_unchanged();
        live.publish([Change::Endpoints("b/v1".into(), [(before[0].address, None)].into())]);
        assert!(!departures.has_changed().unwrap(), "there is no such cluster");
    }

    #[test]
    fn a_version_that_comes_back_keeps_its_record_while_requests_run() {
        let live = Live::default();
        live.publish([cluster("a/v1", &[1])]);
        live.load().clusters.get("a/v1").unwrap().load.concurrency.start(1);
        live.publish([Change::ClusterGone("a/v1".into())]);
        live.publish([cluster("a/v1", &[1])]);
        assert_eq!(live.load().clusters.get("a/v1").unwrap().load.concurrency.in_flight(), 1);
    }
}
