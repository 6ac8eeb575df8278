//! What of the counters was not reported yet.
//!
//! Counters only rise, and the ledger knows how much of each it has given out, so everything is given
//! out once, whatever becomes of tables, clusters and endpoints meanwhile. An endpoint that left is
//! kept until nobody else refers to its record, and so nobody can count in it; what is left of it
//! then is summed up by locality.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use crate::{load::EndpointLoad, table::RoutingTable};

/// How many localities of versions whose endpoints left are kept apart until they are reported.
const MAX_REST: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Ledger {
    /// By generation.
    endpoints: HashMap<u64, Tracked, foldhash::fast::RandomState>,
    /// What is left of endpoints that are gone, by cluster and zone.
    rest: HashMap<(Arc<str>, Arc<str>), Counts>,
    /// The table that was followed last.
    sequence: Option<u64>,
}

#[derive(Debug)]
struct Tracked {
    load: Arc<EndpointLoad>,
    cluster: Arc<str>,
    zone: Arc<str>,
    /// The table it was last seen in.
    seen: u64,
    /// What was given out.
    given: Counts,
    /// The errors that were read last, which wrap around.
    errors: u32,
}

/// Requests of an endpoint or a locality.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) issued: u64,
    pub(super) successful: u64,
    pub(super) errors: u64,
    pub(super) in_progress: u64,
}

impl Counts {
    pub(super) fn add(&mut self, more: Self) {
        self.issued += more.issued;
        self.successful += more.successful;
        self.errors += more.errors;
        self.in_progress += more.in_progress;
    }

    fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// What is reported of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) cluster: Arc<str>,
    pub(super) zone: Arc<str>,
    /// `None`: of endpoints that are gone.
    pub(super) address: Option<SocketAddr>,
    pub(super) counts: Counts,
}

impl Ledger {
    /// Notes the endpoints of `table`, and those that left since the last time.
    pub(super) fn follow(&mut self, table: &RoutingTable, departed: Vec<(Arc<str>, Arc<EndpointLoad>)>) {
        let sequence = table.sequence;
        if self.sequence != Some(sequence) {
            self.sequence = Some(sequence);
            for (name, cluster) in &table.clusters {
                for endpoint in cluster.endpoints.iter() {
                    let tracked = self.tracked(name, &endpoint.load);
                    tracked.seen = sequence;
                    if tracked.zone != endpoint.zone {
                        tracked.zone = Arc::clone(&endpoint.zone);
                    }
                }
            }
        }
        for (cluster, load) in departed {
            // It may have come and gone between two looks.
            self.tracked(&cluster, &load);
        }
        let rest = &mut self.rest;
        self.endpoints.retain(|_, tracked| {
            // Nobody else can refer to it from now on.
            if tracked.seen == sequence || Arc::strong_count(&tracked.load) > 1 {
                return true;
            }
            let counts = tracked.give();
            if !counts.is_zero() {
                let mut key = (Arc::clone(&tracked.cluster), Arc::clone(&tracked.zone));
                if rest.len() >= MAX_REST && !rest.contains_key(&key) {
                    key = ("".into(), "".into());
                }
                rest.entry(key).or_default().add(counts);
            }
            false
        });
    }

    fn tracked(&mut self, cluster: &Arc<str>, load: &Arc<EndpointLoad>) -> &mut Tracked {
        self.endpoints.entry(load.generation).or_insert_with(|| Tracked {
            load: Arc::clone(load),
            cluster: Arc::clone(cluster),
            zone: "".into(),
            seen: 0,
            given: Counts::default(),
            errors: 0,
        })
    }

    /// Gives out what was not given out before, of clusters that are `wanted`. What is in progress is as
    /// it is now.
    pub(super) fn take(&mut self, wanted: impl Fn(&str) -> bool) -> Vec<Row> {
        let mut rows = Vec::new();
        for tracked in self.endpoints.values_mut().filter(|tracked| wanted(&tracked.cluster)) {
            let counts = tracked.give();
            if !counts.is_zero() {
                rows.push(Row {
                    cluster: Arc::clone(&tracked.cluster),
                    zone: Arc::clone(&tracked.zone),
                    address: Some(tracked.load.address),
                    counts,
                });
            }
        }
        self.rest.retain(|(cluster, zone), counts| {
            let taken = wanted(cluster);
            if taken {
                let (cluster, zone) = (Arc::clone(cluster), Arc::clone(zone));
                rows.push(Row { cluster, zone, address: None, counts: *counts });
            }
            !taken
        });
        rows
    }
}

impl Tracked {
    /// In this order: one that is over by the time `in_flight` is read has counted its error before; one
    /// that began after `requests` was read makes what is successful too low, which the next time mends.
    fn give(&mut self) -> Counts {
        let issued = self.load.requests.load(Ordering::Acquire);
        let in_progress = u64::from(self.load.concurrency.in_flight());
        let errors = self.load.errors.load(Ordering::Acquire);
        let failed = self.given.errors + u64::from(errors.wrapping_sub(self.errors));
        self.errors = errors;
        let over = issued.saturating_sub(in_progress);
        let successful = over.saturating_sub(failed).max(self.given.successful);
        let now = Counts { issued, successful, errors: failed, in_progress: 0 };
        let before = std::mem::replace(&mut self.given, now);
        Counts {
            issued: issued - before.issued,
            successful: successful - before.successful,
            errors: failed - before.errors,
            in_progress,
        }
    }
}

#[cfg(test)]
mod tests {
    use config::Health;

    use super::*;
    use crate::{
        cluster::tests::{assignment, config},
        table::{Change, Live},
    };

    fn publish(live: &Live, cluster: &str, ports: &[u16]) {
        let endpoints: Vec<_> = ports.iter().map(|port| (*port, Health::Ready)).collect();
        live.publish([Change::Cluster(config(cluster), Some(Arc::new(assignment(cluster, &endpoints))))]);
    }

    fn follow(ledger: &mut Ledger, live: &Live) {
        // As the fold does once a second.
        live.records.leaving();
        ledger.follow(&live.load_full(), live.records.departed());
    }

    fn begin(load: &EndpointLoad) {
        load.concurrency.start(1);
        load.requests.fetch_add(1, Ordering::Relaxed);
    }

    fn end(load: &EndpointLoad, failed: bool) {
        if failed {
            load.errors.fetch_add(1, Ordering::Relaxed);
        }
        load.concurrency.end(2);
    }

    fn sum(rows: &[Row]) -> Counts {
        let mut sum = Counts::default();
        for row in rows {
            sum.add(row.counts);
        }
        sum
    }

    #[test]
    fn everything_is_given_out_once_whatever_comes_and_goes() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (live, mut ledger) = (Live::default(), Ledger::default());
            let (mut truth, mut given) = (Counts::default(), Counts::default());
            let mut running: Vec<Arc<EndpointLoad>> = Vec::new();
            for _ in 0..300 {
                let cluster = *rng.choice(&["a/v1", "a/v2", "b/v1"]).unwrap();
                match rng.u8(0..12) {
                    0 | 1 => {
                        let ports: Vec<u16> = (1..=6).filter(|_| rng.bool()).collect();
                        publish(&live, cluster, &ports);
                    }
                    2 => live.publish([Change::ClusterGone(cluster.into())]),
                    3..6 => {
                        let table = live.load_full();
                        let all =
                            table.clusters.get(cluster).map(|c| c.endpoints.clone()).unwrap_or_default();
                        if let Some(endpoint) = rng.choice(all.iter().collect::<Vec<_>>()) {
                            begin(&endpoint.load);
                            truth.issued += 1;
                            running.push(Arc::clone(&endpoint.load));
                        }
                    }
                    6..9 if !running.is_empty() => {
                        let failed = rng.u8(0..4) == 0;
                        let load = running.swap_remove(rng.usize(..running.len()));
                        end(&load, failed);
                        if failed {
                            truth.errors += 1;
                        } else {
                            truth.successful += 1;
                        }
                    }
                    9 | 10 => follow(&mut ledger, &live),
                    _ => {
                        follow(&mut ledger, &live);
                        let rows = ledger.take(|_| true);
                        let now = sum(&rows);
                        assert_eq!(now.in_progress, running.len() as u64, "seed {seed}");
                        given.add(Counts { in_progress: 0, ..now });
                        assert_eq!(given, truth, "seed {seed}");
                    }
                }
            }
            let over = running.len() as u64;
            for load in running.drain(..) {
                end(&load, false);
            }
            truth.successful += over;
            follow(&mut ledger, &live);
            given.add(sum(&ledger.take(|_| true)));
            assert_eq!(given, truth, "seed {seed}");
            for cluster in ["a/v1", "a/v2", "b/v1"] {
                publish(&live, cluster, &[]);
            }
            follow(&mut ledger, &live);
            follow(&mut ledger, &live);
            assert!(ledger.take(|_| true).is_empty(), "seed {seed}");
            assert_eq!((ledger.endpoints.len(), ledger.rest.len()), (0, 0), "seed {seed}");
        }
    }

    #[test]
    fn what_is_not_wanted_is_kept_for_whoever_wants_it() {
        let (live, mut ledger) = (Live::default(), Ledger::default());
        publish(&live, "a/v1", &[1]);
        follow(&mut ledger, &live);
        let load =
            Arc::clone(&live.load().clusters.get("a/v1").unwrap().endpoints.iter().next().unwrap().load);
        begin(&load);
        end(&load, false);
        drop(load);
        assert!(ledger.take(|cluster| cluster == "b/v1").is_empty());
        publish(&live, "a/v1", &[2]);
        follow(&mut ledger, &live);
        assert!(ledger.take(|cluster| cluster == "b/v1").is_empty());
        let rows = ledger.take(|_| true);
        assert_eq!((rows.len(), rows[0].address, rows[0].counts.successful), (1, None, 1));
    }

    #[test]
    fn errors_that_wrap_around_are_counted_on() {
        let mut tracked = Tracked {
            load: Arc::new(EndpointLoad::new("e".into(), ([127, 0, 0, 1], 1).into())),
            cluster: "a/v1".into(),
            zone: "".into(),
            seen: 0,
            given: Counts::default(),
            errors: 0,
        };
        let load = Arc::clone(&tracked.load);
        let mut errors = 0;
        for _ in 0..3 {
            let many = u32::MAX / 2 + 7;
            load.errors.fetch_add(many, Ordering::Relaxed);
            load.requests.fetch_add(u64::from(many), Ordering::Relaxed);
            errors += u64::from(many);
            let counts = tracked.give();
            assert_eq!((counts.errors, counts.successful), (u64::from(many), 0));
        }
        assert_eq!(tracked.given.errors, errors);
    }
}
