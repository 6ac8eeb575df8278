//! The accounts under any order of reports, lost streams, comings and goings.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use config::{ClusterName, Endpoint, EndpointId, Health, Lease, Protocol, Service, Split, xds::load::Mark};
use imbl::OrdMap;

use super::{
    accounts::{Accounts, KEEP_LEFT, KEEP_REMOVED, MAX_STREAMS_A_NODE, TooMany},
    count::{Counts, Metric},
    read::{OfCluster, OfEndpoint, OfLocality, Report},
    version::{MAX_LOCALITIES, Members},
};

/// What is declared and registered.
#[derive(Default)]
struct World(HashMap<ClusterName, Members>);

impl World {
    fn with(clusters: &[&str]) -> Self {
        let mut world = Self::default();
        for cluster in clusters {
            world.declare(cluster);
        }
        world
    }

    fn declare(&mut self, cluster: &str) {
        let name = cluster_name(cluster);
        let declared = Service {
            name: name.service.clone(),
            protocol: Protocol::Http,
            tls: None,
            versions: BTreeMap::from([(name.version.clone(), config::Version::default())]),
            split: Split::all_to(name.version.clone()),
        };
        self.0.insert(name, Members { declared: Arc::new(declared), registered: OrdMap::new() });
    }

    fn remove(&mut self, cluster: &str) {
        self.0.remove(&cluster_name(cluster));
    }

    fn register(&mut self, cluster: &str, id: &str, port: u16) {
        let Some(members) = self.0.get_mut(&cluster_name(cluster)) else { return };
        let id: EndpointId = id.parse().unwrap();
        let endpoint = Endpoint {
            id: id.clone(),
            address: at(port),
            weight: 1,
            zone: None,
            health: Health::Ready,
            lease: Lease::Permanent,
        };
        members.registered.insert(id, Arc::new(endpoint));
    }

    fn unregister(&mut self, cluster: &str, id: &str) {
        if let Some(members) = self.0.get_mut(&cluster_name(cluster)) {
            members.registered.remove(&id.parse::<EndpointId>().unwrap());
        }
    }

    fn take(&self, accounts: &mut Accounts, stream: u64, report: &Report, now: Instant) -> bool {
        accounts.take(stream, report, &|cluster| self.0.get(cluster).cloned(), now).repeated
    }

    fn prune(&self, accounts: &mut Accounts, now: Instant) {
        accounts.prune(&|cluster| self.0.get(cluster).cloned(), now);
    }
}

fn cluster_name(cluster: &str) -> ClusterName {
    cluster.parse().unwrap()
}

fn at(port: u16) -> std::net::SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// `issued` requests to the endpoint at `port`, `in_progress` of them not over.
fn requests(cluster: &str, zone: &str, port: u16, issued: u64, in_progress: u64) -> OfCluster {
    let errors = issued / 10;
    let counts = Counts { issued, successful: issued - errors, errors, dropped: 0 };
    let endpoint = OfEndpoint { address: at(port), counts, in_progress, metrics: Vec::new() };
    let locality = OfLocality {
        name: zone.to_owned(),
        counts,
        in_progress,
        metrics: Vec::new(),
        endpoints: vec![endpoint],
    };
    OfCluster {
        cluster: cluster.parse().ok(),
        interval: Some(Duration::from_secs(1)),
        dropped: issued / 5,
        categories: vec![("overload".to_owned(), issued / 5)],
        localities: vec![locality],
    }
}

fn report(clusters: Vec<OfCluster>) -> Report {
    Report { clusters, ..Report::default() }
}

fn sum(accounts: &Accounts) -> Counts {
    let mut sum = accounts.elsewhere.unknown;
    sum.add(accounts.elsewhere.removed);
    for version in accounts.versions.values() {
        sum.add(version.counts);
    }
    sum
}

/// A client that repeats a report until it is acknowledged, as ours does; or one that does not.
struct Client {
    node: &'static str,
    boot: Option<String>,
    sequence: u64,
    pending: Option<Report>,
    streams: Vec<u64>,
    /// In progress, as of what was last taken on its newest stream.
    in_progress: u64,
}

impl Client {
    fn new(node: &'static str, numbered: bool) -> Self {
        let boot = numbered.then(|| format!("boot of {node}"));
        Self { node, boot, sequence: 0, pending: None, streams: Vec::new(), in_progress: 0 }
    }

    fn connect(&mut self, accounts: &mut Accounts, now: Instant) {
        if self.boot.is_none() {
            // Nobody can tell that an older stream of it is dead.
            for stream in self.streams.drain(..) {
                accounts.close(stream, now);
            }
        }
        self.streams.push(accounts.open(self.node, self.boot.clone(), now).unwrap());
        self.in_progress = 0;
    }

    fn report(&mut self, rng: &mut fastrand::Rng) -> Counts {
        let some = |rng: &mut fastrand::Rng| {
            let cluster = *rng.choice(&["shop/v1", "shop/v2", "cart/v1", "gone/v9", "xds", ""]).unwrap();
            let zone = *rng.choice(&["a", "b", ""]).unwrap();
            requests(cluster, zone, rng.u16(1..9), rng.u64(0..100), rng.u64(0..10))
        };
        let mut report = report((0..rng.usize(0..5)).map(|_| some(rng)).collect());
        self.sequence += 1;
        let mark = |boot| Mark { boot, sequence: self.sequence, more: false };
        report.mark = self.boot.clone().map(mark);
        let mut counts = Counts::default();
        for cluster in &report.clusters {
            counts.add(cluster.counts());
        }
        self.pending = Some(report);
        counts
    }
}

#[test]
fn the_sum_is_what_was_issued_in_any_order_of_reports_losses_and_changes() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let removes = seed % 2 == 1;
        let mut world = World::with(&["shop/v1", "shop/v2", "cart/v1"]);
        let mut accounts = Accounts::default();
        let mut clients =
            [Client::new("a", true), Client::new("b", true), Client::new("c", true), Client::new("d", false)];
        let (mut now, mut truth) = (Instant::now(), Counts::default());
        for step in 0..300 {
            now += Duration::from_millis(rng.u64(0..4_000));
            let (cluster, port) = (*rng.choice(&["shop/v1", "shop/v2", "cart/v1"]).unwrap(), rng.u16(1..9));
            match rng.u8(0..20) {
                0..6 => world.register(cluster, &format!("e{}", rng.u8(0..12)), port),
                6..9 => world.unregister(cluster, &format!("e{}", rng.u8(0..12))),
                9 if removes => world.remove(cluster),
                10 => world.declare(cluster),
                _ => {}
            }
            let client = rng.choice(&mut clients).unwrap();
            if client.streams.is_empty() {
                client.connect(&mut accounts, now);
            }
            let newest = *client.streams.last().unwrap();
            if client.pending.is_none() {
                let counts = client.report(&mut rng);
                if client.boot.is_some() {
                    truth.add(counts);
                }
            }
            let report = client.pending.as_ref().unwrap();
            let told = report.clusters.iter().filter(|of| {
                of.cluster
                    .as_ref()
                    .is_some_and(|name| world.0.contains_key(name) || accounts.versions.contains_key(name))
            });
            let in_progress = told.map(OfCluster::in_progress).sum();
            match rng.u8(0..10) {
                // Taken, but the acknowledgement is lost with the stream; another stream begins.
                0 | 1 if client.boot.is_some() => {
                    world.take(&mut accounts, newest, report, now);
                    client.connect(&mut accounts, now);
                }
                // The report comes late, over the stream that was thought lost.
                2 if client.boot.is_some() => {
                    let old = newest;
                    client.connect(&mut accounts, now);
                    let report = client.pending.as_ref().unwrap();
                    world.take(&mut accounts, old, report, now);
                }
                // Lost on the way.
                3 | 4 => {
                    if client.boot.is_none() {
                        client.pending = None;
                    }
                    client.connect(&mut accounts, now);
                }
                _ => {
                    let repeated = world.take(&mut accounts, newest, report, now);
                    if client.boot.is_none() {
                        assert!(!repeated);
                        for cluster in &report.clusters {
                            truth.add(cluster.counts());
                        }
                    }
                    client.in_progress = in_progress;
                    client.pending = None;
                }
            }
            // The server notices at some time that a stream is dead.
            if client.streams.len() > 1 && rng.bool() {
                let dead = client.streams.remove(0);
                accounts.close(dead, now);
            }
            let shown: u64 = accounts.lines(now).iter().map(|line| line.in_progress).sum();
            let expected: u64 = clients.iter().map(|client| client.in_progress).sum();
            // What is in progress in a version that is forgotten is shown no more.
            assert!(shown <= expected, "seed {seed}, step {step}: {shown} > {expected}");
            if !removes {
                assert_eq!(shown, expected, "seed {seed}, step {step}");
            }
        }
        for client in &mut clients {
            if client.boot.is_some() {
                client.connect(&mut accounts, now);
                if let Some(report) = client.pending.take() {
                    world.take(&mut accounts, *client.streams.last().unwrap(), &report, now);
                }
            }
            for stream in client.streams.drain(..) {
                accounts.close(stream, now);
            }
        }
        assert_eq!(sum(&accounts), truth, "seed {seed}");
        for (name, version) in &accounts.versions {
            let mut localities = Counts { dropped: version.counts.dropped, ..Counts::default() };
            for locality in version.localities.values() {
                localities.add(locality.counts);
            }
            assert_eq!(localities, version.counts, "seed {seed}: {name}");
            for (address, row) in &version.endpoints {
                assert_eq!(version.id(*address), Some(&row.id), "seed {seed}: {name}");
            }
        }
        let view = accounts.view(|_, _| true, now);
        assert!(view.versions.iter().all(|version| version.in_progress == 0), "seed {seed}");
        world.0.clear();
        world.prune(&mut accounts, now + Duration::from_secs(1));
        world.prune(&mut accounts, now + Duration::from_secs(1) + KEEP_REMOVED);
        assert!(accounts.versions.is_empty(), "seed {seed}");
        assert_eq!(sum(&accounts), truth, "seed {seed}");
        world.prune(&mut accounts, now + KEEP_LEFT);
        assert!(accounts.nodes.is_empty(), "seed {seed}");
    }
}

#[test]
fn a_proxy_that_leaves_loses_none_of_its_last_report_and_takes_what_was_in_progress_with_it() {
    let mut world = World::with(&["shop/v1"]);
    world.register("shop/v1", "e1", 1);
    let (mut accounts, now) = (Accounts::default(), Instant::now());
    let stream = accounts.open("edge", None, now).unwrap();
    world.take(&mut accounts, stream, &report(vec![requests("shop/v1", "a", 1, 10, 4)]), now);
    let view = accounts.view(|_, _| true, now);
    assert_eq!((view.versions[0].in_progress, view.versions[0].endpoints[0].in_progress), (4, 4));
    assert!((view.versions[0].rps - 10.0).abs() < 1e-9, "{}", view.versions[0].rps);
    accounts.close(stream, now);
    let view = accounts.view(|_, _| true, now);
    let version = &view.versions[0];
    assert_eq!((version.counts.requests, version.counts.errors, version.in_progress), (10, 1, 0));
    assert_eq!((version.endpoints[0].counts.requests, version.endpoints[0].in_progress), (10, 0));
    assert_eq!((version.proxies[0].counts.requests, version.proxies[0].in_progress), (10, 0));
    assert_eq!((view.reporters[0].streams, view.reporters[0].reports), (0, 1));
}

#[test]
fn what_a_report_does_not_mention_is_not_in_progress_unless_more_of_it_is_to_come() {
    let world = World::with(&["shop/v1", "shop/v2"]);
    let (mut accounts, now) = (Accounts::default(), Instant::now());
    let stream = accounts.open("edge", Some("b".to_owned()), now).unwrap();
    let in_progress = |accounts: &Accounts| -> Vec<u64> {
        accounts.lines(now).iter().map(|line| line.in_progress).collect()
    };
    let part = |accounts: &mut Accounts, sequence, more, cluster: &str, count| {
        let mut report = report(vec![requests(cluster, "", 1, 1, count)]);
        report.mark = Some(Mark { boot: "b".to_owned(), sequence, more });
        world.take(accounts, stream, &report, now)
    };
    part(&mut accounts, 1, true, "shop/v1", 3);
    part(&mut accounts, 2, false, "shop/v2", 5);
    assert_eq!(in_progress(&accounts), [3, 5]);
    part(&mut accounts, 3, false, "shop/v2", 6);
    assert_eq!(in_progress(&accounts), [0, 6]);
    assert!(part(&mut accounts, 3, false, "shop/v2", 6), "the same number again");
    assert_eq!(sum(&accounts).issued, 3);
}

#[test]
fn an_endpoint_that_comes_back_at_an_address_is_another_one() {
    let mut world = World::with(&["shop/v1"]);
    world.register("shop/v1", "e1", 1);
    let (mut accounts, now) = (Accounts::default(), Instant::now());
    let stream = accounts.open("edge", None, now).unwrap();
    let ten = report(vec![requests("shop/v1", "a", 1, 10, 0)]);
    world.take(&mut accounts, stream, &ten, now);
    world.unregister("shop/v1", "e1");
    world.take(&mut accounts, stream, &ten, now);
    assert!(accounts.view(|_, _| true, now).versions[0].endpoints.is_empty());
    world.register("shop/v1", "e2", 1);
    world.take(&mut accounts, stream, &ten, now);
    let view = accounts.view(|_, _| true, now);
    let version = &view.versions[0];
    assert_eq!((version.endpoints[0].id.as_str(), version.endpoints[0].counts.requests), ("e2", 10));
    assert_eq!((version.localities[0].counts.requests, version.counts.requests), (30, 30));
}

#[test]
fn metrics_are_averaged_over_all_localities() {
    let world = World::with(&["shop/v1"]);
    let (mut accounts, now) = (Accounts::default(), Instant::now());
    let stream = accounts.open("edge", None, now).unwrap();
    for (zone, finished, total) in [("a", 1, 0.9), ("b", 3, 0.3)] {
        let mut reported = requests("shop/v1", zone, 1, 1, 0);
        reported.localities[0].metrics.push(("cpu_utilization".to_owned(), Metric { finished, total }));
        world.take(&mut accounts, stream, &report(vec![reported]), now);
    }
    let view = accounts.view(|_, _| true, now);
    let metric = view.versions[0].metrics["cpu_utilization"];
    assert!((metric.average - 0.3).abs() < 1e-9 && metric.requests == 4, "{metric:?}");
}

#[test]
fn rates_are_of_the_last_interval_and_end_with_the_reports() {
    let world = World::with(&["shop/v1"]);
    let (mut accounts, began) = (Accounts::default(), Instant::now());
    let stream = accounts.open("edge", None, began).unwrap();
    let rps = |accounts: &Accounts, at| accounts.view(|_, _| true, at).versions[0].rps;
    // One that does not say over how long: since the last.
    let mut reported = requests("shop/v1", "a", 1, 50, 0);
    reported.interval = None;
    let at = began + Duration::from_millis(500);
    world.take(&mut accounts, stream, &report(vec![reported]), at);
    assert!((rps(&accounts, at) - 100.0).abs() < 1e-9);
    let (fresh, stale) = (at + Duration::from_secs(2), at + Duration::from_secs(4));
    assert!(rps(&accounts, fresh) > 0.0 && rps(&accounts, stale).abs() < f64::EPSILON);
}

#[test]
fn everything_is_bounded() {
    let world = World::with(&["shop/v1"]);
    let (mut accounts, now) = (Accounts::default(), Instant::now());
    let streams: Vec<u64> =
        (0..MAX_STREAMS_A_NODE).map(|_| accounts.open("edge", None, now).unwrap()).collect();
    assert_eq!(accounts.open("edge", None, now), Err(TooMany));
    let many = (0..3 * MAX_LOCALITIES).map(|i| requests("shop/v1", &format!("zone-{i}"), 1, 1, 0));
    world.take(&mut accounts, streams[0], &report(many.collect()), now);
    let version = &accounts.versions[&cluster_name("shop/v1")];
    assert_eq!(version.localities.len(), MAX_LOCALITIES + 1);
    assert_eq!(version.counts.issued, 3 * MAX_LOCALITIES as u64);
    let strangers = (0..1_000).map(|i| requests(&format!("stranger/v{i}"), "", 1, 1, 0));
    world.take(&mut accounts, streams[0], &report(strangers.collect()), now);
    assert_eq!((accounts.versions.len(), accounts.elsewhere.unknown.issued), (1, 1_000));
    let huge = requests("shop/v1", "zone-0", 1, u64::MAX, u64::MAX);
    world.take(&mut accounts, streams[0], &report(vec![huge]), now);
    let huge = requests("shop/v1", "zone-0", 1, u64::MAX, u64::MAX);
    world.take(&mut accounts, streams[1], &report(vec![huge]), now);
    let line = &accounts.lines(now)[0];
    assert_eq!((line.counts.issued, line.in_progress), (u64::MAX, u64::MAX));
}
