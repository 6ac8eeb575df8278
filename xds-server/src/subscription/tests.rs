use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::google::rpc::Status;

use super::*;
use crate::snapshot::Update;

const CDS: ResourceType = ResourceType::Cluster;
const EDS: ResourceType = ResourceType::LoadAssignment;
const LDS: ResourceType = ResourceType::Listener;
const RDS: ResourceType = ResourceType::RouteConfiguration;

fn put(resource_type: ResourceType, name: &str, value: &str) -> Update {
    let resource = Resource::new(resource_type, name, value.as_bytes());
    (resource_type, name.into(), Some(Arc::new(resource)))
}

fn gone(resource_type: ResourceType, name: &str) -> Update {
    (resource_type, name.into(), None)
}

/// A stream and its client's hand on it.
struct Wire {
    session: Session,
    now: Instant,
}

impl Wire {
    fn new(variant: Variant, snapshot: &Snapshot) -> Self {
        Self { session: Session::new(variant, snapshot.clone()), now: Instant::now() }
    }

    fn delta(&mut self, resource_type: ResourceType, subscribe: &[&str], unsubscribe: &[&str]) {
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.session.on_incremental(resource_type, request, self.now).unwrap();
    }

    fn sotw(&mut self, resource_type: ResourceType, names: &[&str], nonce: &str) {
        let request = DiscoveryRequest {
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        };
        self.session.on_state_of_the_world(resource_type, request, self.now).unwrap();
    }

    fn ack(&mut self, response: &Response) -> Option<Reply> {
        let request =
            DeltaDiscoveryRequest { response_nonce: response.nonce.to_string(), ..Default::default() };
        self.session.on_incremental(response.resource_type, request, self.now).unwrap()
    }

    fn nack(&mut self, response: &Response, reason: &str) -> Option<Reply> {
        let request = DeltaDiscoveryRequest {
            response_nonce: response.nonce.to_string(),
            error_detail: Some(Status { message: reason.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        self.session.on_incremental(response.resource_type, request, self.now).unwrap()
    }

    fn poll(&mut self) -> Option<Response> {
        self.session.poll(self.now)
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
    }
}

/// `CDS +a +b -c`, to compare in one line.
fn shape(response: Option<&Response>) -> String {
    let Some(response) = response else { return "nothing".to_owned() };
    let sent = response.resources.iter().map(|r| format!(" +{}", r.name));
    let removed = response.removed.iter().map(|name| format!(" -{name}"));
    format!("{}{}", response.resource_type, sent.chain(removed).collect::<String>())
}

#[test]
fn a_wildcard_gets_everything_and_then_only_what_changes() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(CDS, &[], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "CDS +a +b");
    assert!(matches!(wire.ack(&first), Some(Reply::Ack(_))));

    let two = one.with(2, [put(CDS, "a", "2"), gone(CDS, "b"), put(CDS, "c", "1")]);
    wire.session.on_snapshot(two);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a +c -b");
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
}

#[test]
fn an_empty_world_still_answers_the_first_request() {
    for variant in [Variant::Incremental, Variant::StateOfTheWorld] {
        let mut wire = Wire::new(variant, &Snapshot::empty(0));
        match variant {
            Variant::Incremental => wire.delta(LDS, &[], &[]),
            Variant::StateOfTheWorld => wire.sotw(LDS, &[], ""),
        }
        assert_eq!(shape(wire.poll().as_ref()), "LDS", "{variant:?}");
    }
}

#[test]
fn a_missing_name_is_said_once_and_sent_when_it_appears() {
    let one = Snapshot::empty(0);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(EDS, &["x"], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "EDS -x");
    wire.ack(&first);
    let two = one.with(1, [put(EDS, "y", "1")]);
    wire.session.on_snapshot(two.clone());
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
    wire.session.on_snapshot(two.with(2, [put(EDS, "x", "1")]));
    assert_eq!(shape(wire.poll().as_ref()), "EDS +x");
}

#[test]
fn subscribing_again_sends_again() {
    let one = Snapshot::empty(0).with(1, [put(EDS, "x", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(EDS, &["x"], &[]);
    let first = wire.poll().unwrap();
    wire.ack(&first);
    wire.delta(EDS, &["x"], &[]);
    assert_eq!(shape(wire.poll().as_ref()), "EDS +x");
}

#[test]
fn a_name_dropped_under_a_wildcard_is_answered_with_what_there_is() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "x", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(CDS, &["*", "x", "y"], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "CDS +x -y");
    wire.ack(&first);
    wire.delta(CDS, &[], &["x", "y", "phantom"]);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +x -y");
}

#[test]
fn a_reconnect_gets_only_the_difference() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    let versions = [("a", one.resource(CDS, "a").unwrap().version.to_string()), ("z", "old".to_owned())];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        response_nonce: "of another stream".to_owned(),
        ..Default::default()
    };
    wire.session.on_incremental(CDS, request, wire.now).unwrap();
    assert_eq!(shape(wire.poll().as_ref()), "CDS +b -z");
}

#[test]
fn one_response_a_type_is_in_flight_and_the_next_skips_to_the_newest() {
    let mut snapshot = Snapshot::empty(0).with(1, [put(CDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &snapshot);
    wire.delta(CDS, &[], &[]);
    let first = wire.poll().unwrap();
    for revision in 2..50 {
        snapshot = snapshot.with(revision, [put(CDS, "a", &revision.to_string())]);
        wire.session.on_snapshot(snapshot.clone());
        assert!(wire.poll().is_none());
    }
    wire.ack(&first);
    let second = wire.poll().unwrap();
    assert_eq!(second.resources[0].version, snapshot.resource(CDS, "a").unwrap().version);
}

#[test]
fn a_client_that_never_acknowledges_is_neither_starved_nor_counted_as_current() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(LDS, &[], &[]);
    wire.poll().unwrap();
    wire.session.on_snapshot(one.with(2, [put(LDS, "a", "2")]));
    assert!(wire.poll().is_none());
    let deadline = wire.session.deadline(wire.now).unwrap();
    assert_eq!(deadline - wire.now, ACK_TIMEOUT);
    wire.wait(ACK_TIMEOUT);
    assert_eq!(shape(wire.poll().as_ref()), "LDS +a");
    assert_eq!(wire.session.applied(wire.now), 0);
}

#[test]
fn a_refusal_is_not_answered_with_the_same_and_keeps_the_revision_open() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1"), put(LDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(LDS, &[], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(wire.nack(&first, "a: bad address"), Some(Reply::Nack("a: bad address".into())));
    assert!(wire.poll().is_none());
    assert_eq!(wire.session.applied(wire.now), 0);

    // Another resource goes through; the refusal of `a` stands.
    let two = one.with(2, [put(LDS, "b", "2")]);
    wire.session.on_snapshot(two.clone());
    let second = wire.poll().unwrap();
    wire.ack(&second);
    assert!(wire.session.is_refused(LDS));
    assert_eq!(wire.session.applied(wire.now), 0);

    wire.session.on_snapshot(two.with(3, [put(LDS, "a", "3")]));
    let third = wire.poll().unwrap();
    assert_eq!(shape(Some(&third)), "LDS +a");
    wire.ack(&third);
    assert!(!wire.session.is_refused(LDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

fn connected(snapshot: &Snapshot) -> Wire {
    let mut wire = Wire::new(Variant::Incremental, snapshot);
    wire.delta(CDS, &[], &[]);
    wire.delta(LDS, &[], &[]);
    wire.delta(EDS, &["a", "b"], &[]);
    wire.delta(RDS, &["r"], &[]);
    while let Some(response) = wire.poll() {
        wire.ack(&response);
    }
    wire
}

#[test]
fn routes_wait_for_clusters_and_removals_for_routes() {
    let one = Snapshot::empty(0)
        .with(1, [put(CDS, "a", "1"), put(EDS, "a", "1"), put(LDS, "l", "1"), put(RDS, "r", "→a")]);
    let mut wire = connected(&one);
    assert_eq!(wire.session.applied(wire.now), 1);
    let two = one.with(
        2,
        [put(CDS, "b", "1"), put(EDS, "b", "1"), put(RDS, "r", "→b"), gone(CDS, "a"), gone(EDS, "a")],
    );
    wire.session.on_snapshot(two);

    let clusters = wire.poll().unwrap();
    assert_eq!(shape(Some(&clusters)), "CDS +b");
    let endpoints = wire.poll().unwrap();
    assert_eq!(shape(Some(&endpoints)), "EDS +b");
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "routes wait for the clusters");
    wire.ack(&endpoints);
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
    wire.ack(&clusters);
    let routes = wire.poll().unwrap();
    assert_eq!(shape(Some(&routes)), "RDS +r");
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "removals wait for the routes");
    assert_eq!(wire.session.applied(wire.now), 1);
    wire.ack(&routes);
    let removal = wire.poll().unwrap();
    assert_eq!(shape(Some(&removal)), "CDS -a");
    wire.ack(&removal);
    let removal = wire.poll().unwrap();
    assert_eq!(shape(Some(&removal)), "EDS -a");
    wire.ack(&removal);
    assert_eq!(wire.session.applied(wire.now), 2);
}

#[test]
fn a_cluster_that_changed_gets_its_assignment_again() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(EDS, "a", "1"), put(LDS, "l", "1")]);
    let mut wire = connected(&one);
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "2")]));
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
    assert_eq!(shape(wire.poll().as_ref()), "EDS +a");
}

#[test]
fn routes_wait_for_an_unacknowledged_cluster_only_so_long() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "l", "1"), put(RDS, "r", "1")]);
    let mut wire = connected(&one);
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "1"), put(RDS, "r", "2")]));
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
    assert!(wire.poll().is_none());
    wire.wait(ACK_TIMEOUT);
    assert_eq!(shape(wire.poll().as_ref()), "RDS +r");
}

#[test]
fn state_of_the_world_sends_all_clusters_and_only_changed_assignments() {
    let one = Snapshot::empty(0)
        .with(1, [put(CDS, "a", "1"), put(CDS, "b", "1"), put(EDS, "a", "1"), put(EDS, "b", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(CDS, &[], "");
    wire.sotw(EDS, &["a", "b", "missing"], "");
    let clusters = wire.poll().unwrap();
    let endpoints = wire.poll().unwrap();
    assert_eq!((shape(Some(&clusters)), shape(Some(&endpoints))), ("CDS +a +b".into(), "EDS +a +b".into()));
    wire.sotw(CDS, &[], &clusters.nonce);
    wire.sotw(EDS, &["a", "b", "missing"], &endpoints.nonce);
    assert!(wire.poll().is_none());

    let two = one.with(2, [put(CDS, "b", "2"), put(EDS, "missing", "1")]);
    wire.session.on_snapshot(two);
    let clusters = wire.poll().unwrap();
    assert_eq!(shape(Some(&clusters)), "CDS +a +b");
    assert_eq!(shape(wire.poll().as_ref()), "EDS +b +missing");
}

#[test]
fn state_of_the_world_removes_by_leaving_out_after_the_routes() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(LDS, "l", "1"), put(RDS, "r", "→a")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(CDS, &[], "");
    wire.sotw(LDS, &[], "");
    wire.sotw(RDS, &["r"], "");
    while let Some(response) = wire.poll() {
        let names: &[&str] = if response.resource_type == RDS { &["r"] } else { &[] };
        wire.sotw(response.resource_type, names, &response.nonce);
    }
    wire.session.on_snapshot(one.with(2, [put(CDS, "b", "1"), put(RDS, "r", "→b"), gone(CDS, "a")]));
    let clusters = wire.poll().unwrap();
    assert_eq!(shape(Some(&clusters)), "CDS +a +b", "still there while a route may need it");
    wire.sotw(CDS, &[], &clusters.nonce);
    let routes = wire.poll().unwrap();
    assert_eq!(shape(Some(&routes)), "RDS +r");
    wire.sotw(RDS, &["r"], &routes.nonce);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +b");
}

#[test]
fn a_stale_nonce_gets_no_answer_in_state_of_the_world() {
    let one = Snapshot::empty(0).with(1, [put(EDS, "a", "1"), put(EDS, "b", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(EDS, &["a"], "from an earlier stream");
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "EDS +a");
    wire.sotw(EDS, &["a", "b"], "stale");
    assert!(wire.poll().is_none());
    wire.sotw(EDS, &["a", "b"], &first.nonce);
    assert_eq!(shape(wire.poll().as_ref()), "EDS +b");
}

#[test]
fn names_then_no_names_means_nothing_any_more() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(CDS, &["a"], "");
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "CDS +a");
    wire.sotw(CDS, &[], &first.nonce);
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "2"), put(CDS, "b", "2")]));
    assert!(wire.poll().is_none());
}

#[test]
fn too_many_names_end_the_stream() {
    let mut session = Session::new(Variant::Incremental, Snapshot::empty(0));
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=MAX_NAMES).map(|i| i.to_string()).collect(),
        ..Default::default()
    };
    assert_eq!(session.on_incremental(EDS, request, Instant::now()), Err(Violation::TooManyNames));
}

/// A client that applies what it is sent, like any real one.
#[derive(Default)]
struct Client {
    held: BTreeMap<String, Arc<str>>,
    names: BTreeSet<String>,
    wildcard: bool,
    unanswered: Option<Response>,
}

impl Client {
    fn apply(&mut self, response: &Response, variant: Variant) {
        if variant == Variant::StateOfTheWorld {
            self.held.clear();
        }
        for resource in &response.resources {
            self.held.insert(resource.name.to_string(), Arc::clone(&resource.version));
        }
        for name in &response.removed {
            self.held.remove(&**name);
        }
    }

    fn request(&self) -> DeltaDiscoveryRequest {
        let mut names: Vec<String> = self.names.iter().cloned().collect();
        if self.wildcard && !names.is_empty() {
            names.push("*".to_owned());
        }
        DeltaDiscoveryRequest {
            resource_names_subscribe: names,
            initial_resource_versions: self.held.iter().map(|(n, v)| (n.clone(), v.to_string())).collect(),
            ..Default::default()
        }
    }
}

/// Design invariant 3: deltas in order give exactly the subscribed part of the snapshot, under any
/// order of changes, acknowledgements, subscriptions and reconnects.
#[test]
fn any_interleaving_ends_with_the_subscribed_part_of_the_snapshot() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(42);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..400 {
        let mut snapshot = Snapshot::empty(0);
        let mut revision = 0;
        let mut now = Instant::now();
        let mut client = Client { wildcard: rng.bool(), ..Client::default() };
        if !client.wildcard {
            // A first request without names would be a wildcard by the legacy rule.
            client.names.insert("0".to_owned());
        }
        let mut session = Session::new(Variant::Incremental, snapshot.clone());
        session.on_incremental(CDS, client.request(), now).unwrap();
        for _ in 0..rng.usize(1..120) {
            match rng.u8(0..12) {
                0..=3 => {
                    revision += 1;
                    let updates: Vec<Update> = (0..rng.usize(1..4))
                        .map(|_| {
                            let name = rng.u8(0..8).to_string();
                            if rng.u8(0..3) == 0 {
                                gone(CDS, &name)
                            } else {
                                put(CDS, &name, &rng.u8(0..4).to_string())
                            }
                        })
                        .collect();
                    snapshot = snapshot.with(revision, updates);
                    session.on_snapshot(snapshot.clone());
                }
                4..=6 => {
                    if let Some(response) = session.poll(now) {
                        client.apply(&response, Variant::Incremental);
                        client.unanswered = Some(response);
                    }
                }
                7..=8 => {
                    if let Some(response) = client.unanswered.take() {
                        let request = DeltaDiscoveryRequest {
                            response_nonce: response.nonce.to_string(),
                            ..Default::default()
                        };
                        session.on_incremental(CDS, request, now).unwrap();
                    }
                }
                9 => {
                    let name = rng.u8(0..8).to_string();
                    let add = rng.bool();
                    let request = if add {
                        client.names.insert(name.clone());
                        DeltaDiscoveryRequest { resource_names_subscribe: vec![name], ..Default::default() }
                    } else {
                        if client.names.remove(&name) && !client.wildcard {
                            client.held.remove(&name);
                        }
                        DeltaDiscoveryRequest { resource_names_unsubscribe: vec![name], ..Default::default() }
                    };
                    session.on_incremental(CDS, request, now).unwrap();
                }
                10 => {
                    session = Session::new(Variant::Incremental, snapshot.clone());
                    client.unanswered = None;
                    if !client.wildcard && client.names.is_empty() {
                        client.names.insert("0".to_owned());
                    }
                    session.on_incremental(CDS, client.request(), now).unwrap();
                }
                _ => now += Duration::from_secs(rng.u64(0..5)),
            }
        }
        for _ in 0..8 {
            now += ACK_TIMEOUT;
            while let Some(response) = session.poll(now) {
                client.apply(&response, Variant::Incremental);
                let ack = DeltaDiscoveryRequest {
                    response_nonce: response.nonce.to_string(),
                    ..Default::default()
                };
                session.on_incremental(CDS, ack, now).unwrap();
            }
        }
        let expected: BTreeMap<String, Arc<str>> = snapshot
            .resources(CDS)
            .iter()
            .filter(|(name, _)| client.wildcard || client.names.contains(&***name))
            .map(|(name, resource)| (name.to_string(), Arc::clone(&resource.version)))
            .collect();
        assert_eq!(client.held, expected, "SEED={seed}, round {round}");
    }
}

#[test]
fn state_of_the_world_ends_with_the_same() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(43);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..300 {
        let mut snapshot = Snapshot::empty(0);
        let now = Instant::now();
        let mut client = Client::default();
        let mut session = Session::new(Variant::StateOfTheWorld, snapshot.clone());
        session.on_state_of_the_world(CDS, DiscoveryRequest::default(), now).unwrap();
        for revision in 1..rng.u64(2..60) {
            let name = rng.u8(0..8).to_string();
            let update =
                if rng.u8(0..3) == 0 { gone(CDS, &name) } else { put(CDS, &name, &rng.u8(0..4).to_string()) };
            snapshot = snapshot.with(revision, [update]);
            session.on_snapshot(snapshot.clone());
            if rng.bool()
                && let Some(response) = session.poll(now)
            {
                client.apply(&response, Variant::StateOfTheWorld);
                client.unanswered = Some(response);
            }
            if rng.bool()
                && let Some(response) = client.unanswered.take()
            {
                let ack =
                    DiscoveryRequest { response_nonce: response.nonce.to_string(), ..Default::default() };
                session.on_state_of_the_world(CDS, ack, now).unwrap();
            }
        }
        let later = now + ACK_TIMEOUT;
        while let Some(response) = session.poll(later) {
            client.apply(&response, Variant::StateOfTheWorld);
            let ack = DiscoveryRequest { response_nonce: response.nonce.to_string(), ..Default::default() };
            session.on_state_of_the_world(CDS, ack, later).unwrap();
        }
        let all = snapshot.resources(CDS).iter();
        let expected: BTreeMap<String, Arc<str>> =
            all.map(|(name, resource)| (name.to_string(), Arc::clone(&resource.version))).collect();
        assert_eq!(client.held, expected, "SEED={seed}, round {round}");
    }
}

#[test]
fn a_refusal_ends_when_its_resource_is_dropped_or_gone() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(LDS, "l", "1"), put(RDS, "r", "1")]);
    let mut wire = connected(&one);
    let two = one.with(2, [put(RDS, "r", "2"), gone(CDS, "a")]);
    wire.session.on_snapshot(two.clone());
    let routes = wire.poll().unwrap();
    wire.nack(&routes, "r: no");
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "the old routes may need the cluster");
    wire.delta(RDS, &[], &["r"]);
    let removal = wire.poll().unwrap();
    assert_eq!(shape(Some(&removal)), "CDS -a");
    wire.ack(&removal);
    assert_eq!(wire.session.applied(wire.now), 2);

    // State of the world cannot say that a route configuration is gone, and need not.
    let mut wire = Wire::new(Variant::StateOfTheWorld, &two);
    wire.sotw(LDS, &[], "");
    wire.sotw(RDS, &["r"], "");
    while let Some(response) = wire.poll() {
        if response.resource_type == RDS {
            let request = DiscoveryRequest {
                resource_names: vec!["r".to_owned()],
                response_nonce: response.nonce.to_string(),
                error_detail: Some(Status { message: "r: no".to_owned(), ..Default::default() }),
                ..Default::default()
            };
            wire.session.on_state_of_the_world(RDS, request, wire.now).unwrap();
        } else {
            wire.sotw(LDS, &[], &response.nonce);
        }
    }
    assert!(wire.session.is_refused(RDS));
    wire.session.on_snapshot(two.with(3, [gone(RDS, "r")]));
    assert!(wire.poll().is_none());
    assert!(!wire.session.is_refused(RDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

#[test]
fn a_precise_refusal_leaves_an_earlier_vague_one_as_it_was() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1"), put(LDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(LDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.nack(&first, "something is wrong");
    let two = one.with(2, [put(LDS, "c", "1")]);
    wire.session.on_snapshot(two.clone());
    let second = wire.poll().unwrap();
    wire.nack(&second, "c: bad");
    let three = two.with(3, [put(LDS, "a", "2"), put(LDS, "c", "2")]);
    wire.session.on_snapshot(three);
    let third = wire.poll().unwrap();
    wire.ack(&third);
    assert!(!wire.session.is_refused(LDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

#[test]
fn a_late_refusal_counts() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1"), put(LDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(LDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.session.on_snapshot(one.with(2, [put(LDS, "b", "2")]));
    wire.wait(ACK_TIMEOUT);
    let second = wire.poll().unwrap();
    assert_eq!(wire.nack(&first, "a: bad"), Some(Reply::Nack("a: bad".into())));
    assert!(wire.ack(&second).is_some());
    assert!(wire.session.is_refused(LDS));
    assert_eq!(wire.session.applied(wire.now), 0);
}

#[test]
fn a_client_without_listeners_counts_by_what_it_asks_for() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(CDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.ack(&first);
    assert_eq!(wire.session.applied(wire.now), 0, "it may be about to ask");
    assert_eq!(wire.session.deadline(wire.now), Some(wire.now + ACK_TIMEOUT));
    wire.wait(ACK_TIMEOUT);
    assert_eq!(wire.session.applied(wire.now), 1);
}

#[test]
fn a_cluster_that_changed_while_the_client_was_away_gets_its_assignment_again() {
    let old = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(EDS, "a", "1")]);
    let held = |snapshot: &Snapshot, resource_type| {
        let version = snapshot.resource(resource_type, "a").unwrap().version.to_string();
        [("a".to_owned(), version)].into_iter().collect()
    };
    let new = old.with(2, [put(CDS, "a", "2")]);
    let mut wire = Wire::new(Variant::Incremental, &new);
    let request = DeltaDiscoveryRequest { initial_resource_versions: held(&old, CDS), ..Default::default() };
    wire.session.on_incremental(CDS, request, wire.now).unwrap();
    // Answered before the client has asked for assignments.
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: held(&new, EDS),
        resource_names_subscribe: vec!["a".to_owned()],
        ..Default::default()
    };
    wire.session.on_incremental(EDS, request, wire.now).unwrap();
    assert_eq!(shape(wire.poll().as_ref()), "EDS +a");
}

#[test]
fn clusters_that_keep_changing_do_not_hold_routes_back_for_ever() {
    let mut snapshot =
        Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(LDS, "l", "1"), put(RDS, "r", "1")]);
    let mut wire = connected(&snapshot);
    let mut routed = None;
    snapshot = snapshot.with(2, [put(RDS, "r", "2"), put(CDS, "a", "2")]);
    for revision in 3..10_000 {
        wire.session.on_snapshot(snapshot.clone());
        wire.wait(Duration::from_millis(1));
        while let Some(response) = wire.poll() {
            snapshot = snapshot.with(revision, [put(CDS, "a", &revision.to_string())]);
            wire.session.on_snapshot(snapshot.clone());
            if response.resource_type == RDS {
                routed = Some(revision);
            }
            wire.ack(&response);
            if response.resource_type == CDS {
                break;
            }
        }
        if routed.is_some() {
            break;
        }
    }
    let limit = u64::try_from(ACK_TIMEOUT.as_millis()).unwrap() + 10;
    assert!(routed.is_some_and(|revision| revision < limit), "{routed:?}");
}

#[test]
fn an_acknowledgement_measures_from_the_change_and_not_from_the_greeting() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(LDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.wait(Duration::from_secs(5));
    assert_eq!(wire.ack(&first), Some(Reply::Ack(None)));
    wire.session.on_snapshot(one.with(2, [put(LDS, "a", "2")]));
    let second = wire.poll().unwrap();
    wire.wait(Duration::from_secs(1));
    let Some(Reply::Ack(Some(lag))) = wire.ack(&second) else { panic!() };
    assert!(lag >= Duration::from_secs(1));
}

#[test]
fn names_are_bounded_in_length_and_known_ones_may_be_named_again() {
    let mut session = Session::new(Variant::Incremental, Snapshot::empty(0));
    let subscribe =
        |names: Vec<String>| DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() };
    let now = Instant::now();
    let all = (0..MAX_NAMES).map(|i| i.to_string()).collect();
    session.on_incremental(EDS, subscribe(all), now).unwrap();
    session.on_incremental(EDS, subscribe(vec!["7".to_owned()]), now).unwrap();
    let long = "x".repeat(MAX_NAME_LENGTH + 1);
    assert_eq!(session.on_incremental(CDS, subscribe(vec![long]), now), Err(Violation::NameTooLong));
}
