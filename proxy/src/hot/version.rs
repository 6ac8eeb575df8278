//! One version: picking an endpoint, and counting a request in and out.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    cluster::{Cluster, Left},
    load::{VersionLoad, shard::PerCore},
    shared::{MAX_REQUESTS, Requests},
};

/// What a request that is counted took, in µs.
const TOOK: u64 = 700;

/// A version and its endpoints, all ready and of one weight.
#[derive(Debug)]
pub struct Version {
    cluster: PerCore<Cluster>,
    requests: Requests,
    gateway: Arc<str>,
}

impl Version {
    /// With `endpoints` endpoints.
    pub fn new(endpoints: u16) -> Self {
        let (config, assignment) = super::cluster("shop/v1", endpoints);
        let load = Arc::new(VersionLoad::new("shop/v1"));
        let cluster = Cluster::new(Arc::new(config), load, Some(&assignment), None, &mut Left::new());
        Self { cluster: PerCore::new(cluster), requests: Requests::new(MAX_REQUESTS), gateway: "edge".into() }
    }

    /// Picks an endpoint by what each has in flight; `None` only of a version without any.
    pub fn pick(&self, rng: &mut fastrand::Rng) -> Option<u32> {
        self.cluster.pick(&[], rng)
    }

    /// Counts a request that began at `now` (µs) in and out, in the version and in the endpoint that was
    /// picked for it. `None` when the bound on requests is reached.
    pub fn count(&self, picked: u32, now: u64) -> Option<()> {
        self.in_and_out(now, |cluster| {
            let endpoint = &cluster.endpoint(picked).load;
            endpoint.concurrency.start(now);
            endpoint.requests.fetch_add(1, Ordering::Relaxed);
            endpoint.concurrency.end(now + TOOK);
        })
    }

    /// The same in the version only: the part in which cores do not meet.
    pub fn count_in_version(&self, now: u64) -> Option<()> {
        self.in_and_out(now, |_| ())
    }

    /// What `edge::policy::Journey` does of this, without route and clock.
    fn in_and_out(&self, now: u64, endpoint: impl FnOnce(&Cluster)) -> Option<()> {
        let _taken = self.requests.admit()?;
        let cluster = self.cluster.hold();
        let part = cluster.load.concurrency.start(now);
        endpoint(&cluster);
        cluster.load.count(&self.gateway, |series| series.finished(200, TOOK, None));
        cluster.load.concurrency.end(part, now + TOOK);
        Some(())
    }

    /// Requests that were counted in and not yet out; in the version and in all endpoints.
    pub fn in_flight(&self) -> (u32, u32) {
        let endpoints = self.cluster.endpoints.iter().map(|e| e.load.concurrency.in_flight()).sum();
        (self.cluster.load.concurrency.in_flight(), endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_in_is_counted_out() {
        let (version, seed) = (Version::new(3), 1);
        let mut rng = fastrand::Rng::with_seed(seed);
        for now in 0..100 {
            let picked = version.pick(&mut rng).unwrap();
            assert!(version.count(picked, now).is_some() && version.count_in_version(now).is_some());
        }
        assert_eq!(version.in_flight(), (0, 0), "seed {seed}");
        let requests = version.cluster.endpoints.iter().map(|e| e.load.requests.load(Ordering::Relaxed));
        assert_eq!(requests.sum::<u64>(), 100, "seed {seed}");
    }
}
