//! One version as a request sees it: how to talk to it, and its [`endpoints`]. Immutable.

mod endpoints;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use config::{
    tls::UpstreamTls,
    xds::{
        assignment::{AssignedEndpoint, Assignment},
        cluster::ClusterConfig,
    },
};

use crate::{
    load::{EndpointLoad, VersionLoad},
    tls::{Alpn, ClientTls, Tls},
};

use endpoints::Endpoints;
pub(crate) use endpoints::{Endpoint, Left};

/// What is at an address from now on; `None` when nothing is.
pub(crate) type EndpointChange = (SocketAddr, Option<AssignedEndpoint>);

/// A cluster and its endpoints.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) config: Arc<ClusterConfig>,
    pub(crate) load: Arc<VersionLoad>,
    pub(crate) endpoints: Endpoints,
    /// How to speak TLS to the endpoints; they are spoken to in clear without.
    pub(crate) tls: Option<Arc<ClusterTls>>,
}

/// TLS to the endpoints of a cluster.
#[derive(Debug)]
pub(crate) struct ClusterTls {
    /// Unique in the process, and not 0.
    id: u64,
    wanted: UpstreamTls,
    alpn: Alpn,
    /// Missing as long as the authorities cannot be read: nothing is connected to then.
    client: OnceLock<Arc<ClientTls>>,
}

impl ClusterTls {
    pub(crate) fn new(wanted: UpstreamTls, http2: bool) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let alpn = if http2 { Alpn::Http2 } else { Alpn::Http1 };
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), wanted, alpn, client: OnceLock::new() }
    }

    /// What to connect with.
    pub(crate) fn client(&self) -> Option<&Arc<ClientTls>> {
        self.client.get()
    }

    /// Tries to get it, unless it is there. Reads files, unless another cluster uses the same.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(crate) fn prepare(&self, tls: &Tls) -> Result<(), String> {
        if self.client.get().is_none() {
            let client = tls.client(&self.wanted, self.alpn).map_err(|error| error.to_string())?;
            _ = self.client.set(client); // another thread may have been faster
        }
        Ok(())
    }

    /// The same without reading anything: only if another cluster uses it, or it was just read.
    pub(crate) fn adopt(&self, tls: &Tls) -> bool {
        if self.client.get().is_none()
            && let Some(client) = tls.client_in_use(&self.wanted, self.alpn)
        {
            _ = self.client.set(client);
        }
        self.client.get().is_some()
    }

    fn is_for(&self, config: &ClusterConfig) -> bool {
        config.tls.as_ref() == Some(&self.wanted) && config.http2 == (self.alpn == Alpn::Http2)
    }
}

/// What a connection is to, for whoever keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Peer {
    generation: u64,
    /// 0 in clear.
    tls: u64,
}

#[cfg(test)]
impl Peer {
    pub(crate) fn in_clear(generation: u64) -> Self {
        Self { generation, tls: 0 }
    }
}

impl Cluster {
    /// A cluster with the endpoints of `assignment`; none before it is known. Endpoints that were in
    /// `before` keep their record; the records of those that are no longer there are added to `left`.
    pub(crate) fn new(
        config: Arc<ClusterConfig>,
        load: Arc<VersionLoad>,
        assignment: Option<&Assignment>,
        before: Option<&Cluster>,
        left: &mut Left,
    ) -> Self {
        let mut endpoints = before.map(|before| before.endpoints.clone()).unwrap_or_default();
        endpoints.replace(assignment.map_or(&[], |a| &a.endpoints), left);
        let kept = before.and_then(|before| before.tls.clone()).filter(|tls| tls.is_for(&config));
        let tls = kept.or_else(|| {
            let wanted = config.tls.clone()?;
            Some(Arc::new(ClusterTls::new(wanted, config.http2)))
        });
        Self { config, load, endpoints, tls }
    }

    /// The same cluster after `changes` of its endpoints, likewise.
    pub(crate) fn with(&self, changes: &[EndpointChange], left: &mut Left) -> Self {
        let mut endpoints = self.endpoints.clone();
        for (address, endpoint) in changes {
            match endpoint {
                Some(endpoint) => endpoints.put(endpoint, left),
                None => endpoints.remove(*address, left),
            }
        }
        Self {
            config: Arc::clone(&self.config),
            load: Arc::clone(&self.load),
            endpoints,
            tls: self.tls.clone(),
        }
    }

    /// Picks a ready endpoint whose generation is not in `tried`; returns its place.
    pub(crate) fn pick(&self, tried: &[u64], rng: &mut fastrand::Rng) -> Option<u32> {
        self.endpoints.pick(tried, rng)
    }

    /// An endpoint that [`Self::pick`] picked.
    pub(crate) fn endpoint(&self, picked: u32) -> &Endpoint {
        self.endpoints.ready().at(picked)
    }

    /// Whom connections to `endpoint` may be shared with: those to the same endpoint that are protected
    /// in the same way.
    pub(crate) fn peer(&self, endpoint: &EndpointLoad) -> Peer {
        Peer { generation: endpoint.generation, tls: self.tls.as_ref().map_or(0, |tls| tls.id) }
    }

    /// How many endpoints take requests.
    pub(crate) fn ready(&self) -> usize {
        self.endpoints.ready().len() as usize
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use config::Health;

    use super::*;

    pub(crate) fn config(name: &str) -> Arc<ClusterConfig> {
        Arc::new(ClusterConfig {
            name: name.into(),
            assignment: name.into(),
            http2: false,
            connect_timeout: Duration::from_secs(1),
            tls: None,
        })
    }

    pub(crate) fn assignment(name: &str, endpoints: &[(u16, Health)]) -> Assignment {
        let endpoint = |&(port, health): &(u16, Health)| AssignedEndpoint {
            id: format!("e{port}").into(),
            address: ([127, 0, 0, 1], port).into(),
            weight: 1,
            zone: Arc::default(),
            health,
        };
        Assignment {
            name: name.into(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            collections: vec![],
        }
    }

    fn cluster(endpoints: &[(u16, Health)], before: Option<&Cluster>) -> Cluster {
        let load = before.map_or_else(|| Arc::new(VersionLoad::new("a/v1")), |c| Arc::clone(&c.load));
        Cluster::new(config("a/v1"), load, Some(&assignment("a/v1", endpoints)), before, &mut Left::new())
    }

    /// The record of the endpoint at a port.
    pub(crate) fn record(cluster: &Cluster, port: u16) -> Arc<EndpointLoad> {
        let mut loads = cluster.endpoints.iter().map(|endpoint| &endpoint.load);
        Arc::clone(loads.find(|load| load.address.port() == port).unwrap())
    }

    #[test]
    fn only_ready_endpoints_are_picked_and_none_twice() {
        let cluster = cluster(
            &[(1, Health::Ready), (2, Health::Draining), (3, Health::Ready), (4, Health::Unhealthy)],
            None,
        );
        let seed = 5;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let first = cluster.endpoint(cluster.pick(&[], &mut rng).unwrap());
            let second = cluster.endpoint(cluster.pick(&[first.load.generation], &mut rng).unwrap());
            assert_ne!(first.load.address, second.load.address, "seed {seed}");
            assert!([1, 3].contains(&first.load.address.port()), "seed {seed}");
            assert!(cluster.pick(&[first.load.generation, second.load.generation], &mut rng).is_none());
        }
    }

    #[test]
    fn an_update_keeps_the_records_of_endpoints_that_stay() {
        let before = cluster(&[(1, Health::Ready), (2, Health::Ready)], None);
        record(&before, 1).concurrency.start(1);
        let after = cluster(&[(3, Health::Ready), (1, Health::Draining)], Some(&before));
        assert_eq!(record(&after, 1).concurrency.in_flight(), 1);
        let gone = cluster(&[(3, Health::Ready)], Some(&after));
        let back = cluster(&[(1, Health::Ready)], Some(&gone));
        assert_ne!(record(&back, 1).generation, record(&before, 1).generation);
    }
}
