//! The routing table: one immutable value behind one `ArcSwap`. A request loads it once, so routes,
//! splits and endpoints cannot tear. Publishing one change costs the logarithm of the number of
//! clusters, plus the endpoints of the cluster that changed.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use arc_swap::ArcSwap;
use config::xds::{assignment::Assignment, cluster::ClusterConfig, route::RouteConfig};
use tokio::sync::watch;

use crate::{
    cluster::{Cluster, Endpoint},
    load::{Records, shard::PerCore},
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
    /// Rises by one with every publication.
    pub(crate) sequence: u64,
}

/// One change of the table.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// A cluster is new or changed, or its endpoints are.
    Cluster(Arc<ClusterConfig>, Option<Arc<Assignment>>),
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
        let mut next = RoutingTable::clone(&self.table.load());
        let (mut gone, mut left) = (false, false);
        for change in changes {
            gone |= matches!(change, Change::ClusterGone(_));
            left |= self.apply(&mut next, change);
        }
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
    fn apply(&self, table: &mut RoutingTable, change: Change) -> bool {
        let mut left = false;
        match change {
            Change::Cluster(config, assignment) => {
                let name: Arc<str> = config.name.as_str().into();
                let before = table.clusters.get(&name).cloned();
                let load = self.records.version(&name);
                let cluster =
                    Cluster::new(config, load, assignment.as_deref(), before.as_deref().map(|b| &**b));
                if cluster.tls.as_ref().is_some_and(|tls| !tls.adopt(&self.tls)) {
                    tracing::warn!(
                        "endpoints of {name} cannot be connected to until its CA file can be read"
                    );
                }
                if let Some(before) = before {
                    left = self.note_left(&name, &before, Some(&cluster));
                }
                table.clusters.insert(name, Arc::new(PerCore::new(cluster)));
            }
            Change::ClusterGone(name) => {
                if let Some(before) = table.clusters.remove(&name) {
                    left = self.note_left(&name, &before, None);
                }
            }
            Change::Routes(config) => {
                table.routes.insert(config.name.as_str().into(), Arc::new(RouteTable::new(&config)));
            }
            Change::RoutesGone(name) => _ = table.routes.remove(&name),
        }
        left
    }

    fn note_left(&self, name: &Arc<str>, before: &Cluster, after: Option<&Cluster>) -> bool {
        let staying: std::collections::HashSet<u64, foldhash::fast::RandomState> =
            after.iter().flat_map(|c| &c.endpoints).map(|e| e.load.generation).collect();
        let gone = |e: &&Endpoint| !staying.contains(&e.load.generation);
        let left: Vec<_> = before.endpoints.iter().filter(gone).map(|e| Arc::clone(&e.load)).collect();
        for load in &left {
            load.gone.store(true, Ordering::Release);
        }
        let any = !left.is_empty();
        self.records.left(name, left);
        any
    }
}

#[cfg(test)]
mod tests {
    use config::Health;

    use super::*;
    use crate::cluster::tests::{assignment, config};

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
    fn an_endpoint_that_left_is_listed_until_its_last_request_is_over() {
        let live = Live::default();
        live.publish([cluster("a/v1", &[1, 2])]);
        let load = Arc::clone(&live.load().clusters.get("a/v1").unwrap().endpoints[0].load);
        load.concurrency.start(1);
        live.publish([cluster("a/v1", &[2])]);
        assert_eq!(live.records.leaving().len(), 1);
        load.concurrency.end(2);
        assert!(live.records.leaving().is_empty());
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
