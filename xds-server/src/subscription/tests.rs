mod demand;
mod random;

use envoy_types::pb::google::rpc::Status;

use super::*;
use crate::{
    kind::View,
    snapshot::{Shelf, Update},
};

const CDS: Kind = Kind::Cluster;
const EDS: Kind = Kind::LoadAssignment;
const LEDS: Kind = Kind::LbEndpoint;
const LDS: Kind = Kind::Listener;
const RDS: Kind = Kind::RouteConfiguration;

fn on(kind: Kind) -> Shelf {
    (kind, View::Common)
}

fn put(kind: Kind, name: &str, value: &str) -> Update {
    let resource = Resource::new(kind.clone(), name, value.as_bytes());
    (on(kind), name.into(), Some(Arc::new(resource)))
}

fn gone(kind: Kind, name: &str) -> Update {
    (on(kind), name.into(), None)
}

/// A stream and its client's hand on it.
struct Wire {
    session: Session,
    now: Instant,
}

impl Wire {
    fn new(variant: Variant, snapshot: &Snapshot) -> Self {
        Self { session: Session::new(variant, Client::default(), snapshot.clone()), now: Instant::now() }
    }

    fn delta(&mut self, kind: &Kind, subscribe: &[&str], unsubscribe: &[&str]) {
        let request = DeltaDiscoveryRequest {
            resource_names_subscribe: subscribe.iter().map(ToString::to_string).collect(),
            resource_names_unsubscribe: unsubscribe.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        self.session.on_incremental(kind, request, self.now).unwrap();
    }

    fn sotw(&mut self, kind: &Kind, names: &[&str], nonce: &str) {
        let request = DiscoveryRequest {
            resource_names: names.iter().map(ToString::to_string).collect(),
            response_nonce: nonce.to_owned(),
            ..Default::default()
        };
        self.session.on_state_of_the_world(kind, request, self.now).unwrap();
    }

    fn ack(&mut self, response: &Response) -> Option<Reply> {
        let request =
            DeltaDiscoveryRequest { response_nonce: response.nonce.to_string(), ..Default::default() };
        self.session.on_incremental(&response.kind, request, self.now).unwrap()
    }

    fn nack(&mut self, response: &Response, reason: &str) -> Option<Reply> {
        let request = DeltaDiscoveryRequest {
            response_nonce: response.nonce.to_string(),
            error_detail: Some(Status { message: reason.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        self.session.on_incremental(&response.kind, request, self.now).unwrap()
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
    format!("{}{}", response.kind, sent.chain(removed).collect::<String>())
}

#[test]
fn a_wildcard_gets_everything_and_then_only_what_changes() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&CDS, &[], &[]);
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
            Variant::Incremental => wire.delta(&LDS, &[], &[]),
            Variant::StateOfTheWorld => wire.sotw(&LDS, &[], ""),
        }
        assert_eq!(shape(wire.poll().as_ref()), "LDS", "{variant:?}");
    }
}

#[test]
fn a_missing_name_is_said_once_and_sent_when_it_appears() {
    let one = Snapshot::empty(0);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&EDS, &["x"], &[]);
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
    wire.delta(&EDS, &["x"], &[]);
    let first = wire.poll().unwrap();
    wire.ack(&first);
    wire.delta(&EDS, &["x"], &[]);
    assert_eq!(shape(wire.poll().as_ref()), "EDS +x");
}

#[test]
fn a_name_dropped_under_a_wildcard_is_answered_with_what_there_is() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "x", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&CDS, &["*", "x", "y"], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "CDS +x -y");
    wire.ack(&first);
    wire.delta(&CDS, &[], &["x", "y", "phantom"]);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +x -y");
}

#[test]
fn a_reconnect_gets_only_the_difference() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    let versions = [("a", one.resource(&on(CDS), "a").unwrap().version.to_string()), ("z", "old".to_owned())];
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: versions.into_iter().map(|(n, v)| (n.to_owned(), v)).collect(),
        response_nonce: "of another stream".to_owned(),
        ..Default::default()
    };
    wire.session.on_incremental(&CDS, request, wire.now).unwrap();
    assert_eq!(shape(wire.poll().as_ref()), "CDS +b -z");
}

#[test]
fn one_response_a_type_is_in_flight_and_the_next_skips_to_the_newest() {
    let mut snapshot = Snapshot::empty(0).with(1, [put(CDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &snapshot);
    wire.delta(&CDS, &[], &[]);
    let first = wire.poll().unwrap();
    for revision in 2..50 {
        snapshot = snapshot.with(revision, [put(CDS, "a", &revision.to_string())]);
        wire.session.on_snapshot(snapshot.clone());
        assert!(wire.poll().is_none());
    }
    wire.ack(&first);
    let second = wire.poll().unwrap();
    assert_eq!(second.resources[0].version, snapshot.resource(&on(CDS), "a").unwrap().version);
}

#[test]
fn a_client_that_never_acknowledges_is_neither_starved_nor_counted_as_current() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LDS, &[], &[]);
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
    wire.delta(&LDS, &[], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(wire.nack(&first, "a: bad address"), Some(Reply::Nack("a: bad address".into())));
    assert!(wire.poll().is_none());
    assert_eq!(wire.session.applied(wire.now), 0);

    // Another resource goes through; the refusal of `a` stands.
    let two = one.with(2, [put(LDS, "b", "2")]);
    wire.session.on_snapshot(two.clone());
    let second = wire.poll().unwrap();
    wire.ack(&second);
    assert!(wire.session.is_refused(&LDS));
    assert_eq!(wire.session.applied(wire.now), 0);

    wire.session.on_snapshot(two.with(3, [put(LDS, "a", "3")]));
    let third = wire.poll().unwrap();
    assert_eq!(shape(Some(&third)), "LDS +a");
    wire.ack(&third);
    assert!(!wire.session.is_refused(&LDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

fn connected(snapshot: &Snapshot) -> Wire {
    let mut wire = Wire::new(Variant::Incremental, snapshot);
    wire.delta(&CDS, &[], &[]);
    wire.delta(&LDS, &[], &[]);
    wire.delta(&EDS, &["a", "b"], &[]);
    wire.delta(&RDS, &["r"], &[]);
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
    wire.sotw(&CDS, &[], "");
    wire.sotw(&EDS, &["a", "b", "missing"], "");
    let clusters = wire.poll().unwrap();
    let endpoints = wire.poll().unwrap();
    assert_eq!((shape(Some(&clusters)), shape(Some(&endpoints))), ("CDS +a +b".into(), "EDS +a +b".into()));
    wire.sotw(&CDS, &[], &clusters.nonce);
    wire.sotw(&EDS, &["a", "b", "missing"], &endpoints.nonce);
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
    wire.sotw(&CDS, &[], "");
    wire.sotw(&LDS, &[], "");
    wire.sotw(&RDS, &["r"], "");
    while let Some(response) = wire.poll() {
        let names: &[&str] = if response.kind == RDS { &["r"] } else { &[] };
        wire.sotw(&response.kind, names, &response.nonce);
    }
    wire.session.on_snapshot(one.with(2, [put(CDS, "b", "1"), put(RDS, "r", "→b"), gone(CDS, "a")]));
    let clusters = wire.poll().unwrap();
    assert_eq!(shape(Some(&clusters)), "CDS +a +b", "still there while a route may need it");
    wire.sotw(&CDS, &[], &clusters.nonce);
    let routes = wire.poll().unwrap();
    assert_eq!(shape(Some(&routes)), "RDS +r");
    wire.sotw(&RDS, &["r"], &routes.nonce);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +b");
}

/// A gRPC client whose target is gone may keep its subscriptions (gRFC A53): nothing that it says tells the
/// server to go on.
#[test]
fn state_of_the_world_goes_on_after_what_it_cannot_say() {
    let types = [&LDS, &RDS, &CDS, &EDS];
    let one = Snapshot::empty(0).with(1, types.map(|kind| put(kind.clone(), "x", "1")));
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    for kind in types {
        wire.sotw(kind, &["x"], "");
        let response = wire.poll().unwrap();
        wire.sotw(kind, &["x"], &response.nonce);
    }
    wire.session.on_snapshot(one.with(2, types.map(|kind| gone(kind.clone(), "x"))));
    let listeners = wire.poll().unwrap();
    assert_eq!(shape(Some(&listeners)), "LDS");
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
    wire.sotw(&LDS, &["x"], &listeners.nonce);
    let clusters = wire.poll().unwrap();
    assert_eq!(shape(Some(&clusters)), "CDS");
    wire.sotw(&CDS, &["x"], &clusters.nonce);
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
    assert_eq!(wire.session.applied(wire.now), 2);
}

#[test]
fn a_stale_nonce_gets_no_answer_in_state_of_the_world() {
    let one = Snapshot::empty(0).with(1, [put(EDS, "a", "1"), put(EDS, "b", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(&EDS, &["a"], "from an earlier stream");
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "EDS +a");
    wire.sotw(&EDS, &["a", "b"], "stale");
    assert!(wire.poll().is_none());
    wire.sotw(&EDS, &["a", "b"], &first.nonce);
    assert_eq!(shape(wire.poll().as_ref()), "EDS +b");
}

#[test]
fn names_then_no_names_means_nothing_any_more() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(&CDS, &["a"], "");
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "CDS +a");
    wire.sotw(&CDS, &[], &first.nonce);
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "2"), put(CDS, "b", "2")]));
    assert!(wire.poll().is_none());
}

#[test]
fn too_many_names_end_the_stream() {
    let mut session = Session::new(Variant::Incremental, Client::default(), Snapshot::empty(0));
    let request = DeltaDiscoveryRequest {
        resource_names_subscribe: (0..=MAX_NAMES).map(|i| i.to_string()).collect(),
        ..Default::default()
    };
    assert_eq!(session.on_incremental(&EDS, request, Instant::now()), Err(Violation::TooManyNames));
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
    wire.delta(&RDS, &[], &["r"]);
    let removal = wire.poll().unwrap();
    assert_eq!(shape(Some(&removal)), "CDS -a");
    wire.ack(&removal);
    assert_eq!(wire.session.applied(wire.now), 2);

    // State of the world cannot say that a route configuration is gone, and need not.
    let mut wire = Wire::new(Variant::StateOfTheWorld, &two);
    wire.sotw(&LDS, &[], "");
    wire.sotw(&RDS, &["r"], "");
    while let Some(response) = wire.poll() {
        if response.kind == RDS {
            let request = DiscoveryRequest {
                resource_names: vec!["r".to_owned()],
                response_nonce: response.nonce.to_string(),
                error_detail: Some(Status { message: "r: no".to_owned(), ..Default::default() }),
                ..Default::default()
            };
            wire.session.on_state_of_the_world(&RDS, request, wire.now).unwrap();
        } else {
            wire.sotw(&LDS, &[], &response.nonce);
        }
    }
    assert!(wire.session.is_refused(&RDS));
    wire.session.on_snapshot(two.with(3, [gone(RDS, "r")]));
    assert!(wire.poll().is_none());
    assert!(!wire.session.is_refused(&RDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

#[test]
fn a_precise_refusal_leaves_an_earlier_vague_one_as_it_was() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1"), put(LDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LDS, &[], &[]);
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
    assert!(!wire.session.is_refused(&LDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

#[test]
fn a_late_refusal_counts() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1"), put(LDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.session.on_snapshot(one.with(2, [put(LDS, "b", "2")]));
    wire.wait(ACK_TIMEOUT);
    let second = wire.poll().unwrap();
    assert_eq!(wire.nack(&first, "a: bad"), Some(Reply::Nack("a: bad".into())));
    assert!(wire.ack(&second).is_some());
    assert!(wire.session.is_refused(&LDS));
    assert_eq!(wire.session.applied(wire.now), 0);
}

#[test]
fn a_refusal_that_names_what_is_wrong_accepts_the_rest() {
    let one = Snapshot::empty(0).with(1, [put(LDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.nack(&first, "a: bad");
    let two = one.with(2, [put(LDS, "a", "2"), put(LDS, "b", "1")]);
    wire.session.on_snapshot(two.clone());
    let second = wire.poll().unwrap();
    wire.nack(&second, "b: bad");
    let three = two.with(3, [gone(LDS, "b")]);
    wire.session.on_snapshot(three);
    let third = wire.poll().unwrap();
    wire.ack(&third);
    assert!(!wire.session.is_refused(&LDS));
    assert_eq!(wire.session.applied(wire.now), 3);
}

#[test]
fn a_late_refusal_of_what_was_given_up_or_is_gone_does_not_stand() {
    let one = Snapshot::empty(0).with(1, [put(RDS, "r", "1"), put(RDS, "s", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&RDS, &["r", "s"], &[]);
    let first = wire.poll().unwrap();
    wire.delta(&RDS, &[], &["r"]);
    assert_eq!(wire.nack(&first, "r: bad"), Some(Reply::Nack("r: bad".into())));
    assert!(!wire.session.is_refused(&RDS));

    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(&RDS, &["r"], "");
    let first = wire.poll().unwrap();
    wire.session.on_snapshot(one.with(2, [gone(RDS, "r")]));
    wire.wait(ACK_TIMEOUT);
    assert!(wire.poll().is_none(), "that it is gone cannot be said");
    let refusal = DiscoveryRequest {
        resource_names: vec!["r".to_owned()],
        response_nonce: first.nonce.to_string(),
        error_detail: Some(Status { message: "r: bad".to_owned(), ..Default::default() }),
        ..Default::default()
    };
    wire.session.on_state_of_the_world(&RDS, refusal, wire.now).unwrap();
    assert!(!wire.session.is_refused(&RDS));
}

#[test]
fn a_whole_state_that_is_refused_again_blames_what_was_wrong_before() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "bad", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    let refuse = |wire: &mut Wire, reason: &str| {
        let refusal = DiscoveryRequest {
            resource_names: vec!["bad".to_owned(), "good".to_owned()],
            response_nonce: wire.poll().unwrap().nonce.to_string(),
            error_detail: Some(Status { message: reason.to_owned(), ..Default::default() }),
            ..Default::default()
        };
        wire.session.on_state_of_the_world(&CDS, refusal, wire.now).unwrap();
    };
    wire.sotw(&CDS, &["bad", "good"], "");
    refuse(&mut wire, "bad: no");
    let two = one.with(2, [put(CDS, "good", "1")]);
    wire.session.on_snapshot(two.clone());
    refuse(&mut wire, "bad: no");
    let refused = |wire: &Wire| {
        let standings = wire.session.standings().into_iter();
        let refused = standings.filter(|standing| standing.reason.is_some());
        refused.map(|standing| standing.name.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(refused(&wire), ["bad"]);

    let three = two.with(3, [put(CDS, "good", "2")]);
    wire.session.on_snapshot(three.clone());
    refuse(&mut wire, "no");
    assert_eq!(refused(&wire), ["bad", "good"]);
    wire.session.on_snapshot(three.with(4, [put(CDS, "bad", "2")]));
    let all = wire.poll().unwrap();
    wire.sotw(&CDS, &["bad", "good"], &all.nonce);
    assert_eq!(refused(&wire), [""; 0], "all there is was accepted");
    wire.wait(ACK_TIMEOUT);
    assert_eq!(wire.session.applied(wire.now), 4);
}

#[test]
fn a_sign_of_life_that_has_to_wait_is_no_deadline_that_has_passed() {
    let ttl = Some(Duration::from_secs(9));
    let resource = Resource::new(LDS, "l", b"1").with_ttl(ttl);
    let one = Snapshot::empty(0).with(1, [(on(LDS), "l".into(), Some(Arc::new(resource)))]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.session = Session::new(Variant::Incremental, Client { ttl: true, ..Client::default() }, one.clone());
    wire.delta(&CDS, &[], &[]);
    wire.delta(&LDS, &[], &[]);
    while let Some(response) = wire.poll() {
        wire.ack(&response);
    }
    let due = wire.session.deadline(wire.now).unwrap();
    wire.now = due.checked_sub(Duration::from_millis(1)).unwrap();
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "1")]));
    let clusters = wire.poll().unwrap();
    wire.now = due;
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "listeners wait for the clusters");
    assert!(wire.session.deadline(wire.now).unwrap() > wire.now);
    wire.ack(&clusters);
    assert_eq!(wire.poll().unwrap().heartbeats.len(), 1);
}

#[test]
fn a_client_without_listeners_counts_by_what_it_asks_for() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&CDS, &[], &[]);
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
    let held = |snapshot: &Snapshot, kind| {
        let version = snapshot.resource(&on(kind), "a").unwrap().version.to_string();
        [("a".to_owned(), version)].into_iter().collect()
    };
    let new = old.with(2, [put(CDS, "a", "2")]);
    let mut wire = Wire::new(Variant::Incremental, &new);
    let request = DeltaDiscoveryRequest { initial_resource_versions: held(&old, CDS), ..Default::default() };
    wire.session.on_incremental(&CDS, request, wire.now).unwrap();
    // Answered before the client has asked for assignments.
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: held(&new, EDS),
        resource_names_subscribe: vec!["a".to_owned()],
        ..Default::default()
    };
    wire.session.on_incremental(&EDS, request, wire.now).unwrap();
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
            if response.kind == RDS {
                routed = Some(revision);
            }
            wire.ack(&response);
            if response.kind == CDS {
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
    wire.delta(&LDS, &[], &[]);
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
    let mut session = Session::new(Variant::Incremental, Client::default(), Snapshot::empty(0));
    let subscribe =
        |names: Vec<String>| DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() };
    let now = Instant::now();
    let all = (0..MAX_NAMES).map(|i| i.to_string()).collect();
    session.on_incremental(&EDS, subscribe(all), now).unwrap();
    session.on_incremental(&EDS, subscribe(vec!["7".to_owned()]), now).unwrap();
    let long = "x".repeat(MAX_NAME_LENGTH + 1);
    assert_eq!(session.on_incremental(&CDS, subscribe(vec![long]), now), Err(Violation::NameTooLong));
}

#[test]
fn a_collection_is_followed_member_by_member() {
    let name = |id: &str| format!("xdstp:///envoy.config.endpoint.v3.LbEndpoint/s/v1/z/{id}");
    let one = Snapshot::empty(0).with(1, [put(LEDS, &name("a"), "1"), put(LEDS, &name("b/c"), "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LEDS, &[&name("*")], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), format!("LEDS +{}", name("a")));
    wire.ack(&first);
    let two = one.with(2, [put(LEDS, &name("d"), "1"), gone(LEDS, &name("a"))]);
    wire.session.on_snapshot(two.clone());
    let second = wire.poll().unwrap();
    assert_eq!(shape(Some(&second)), format!("LEDS +{} -{}", name("d"), name("a")));
    wire.ack(&second);
    // Asked for again, it is sent again; given up, it is not sent any more.
    wire.delta(&LEDS, &[&name("*")], &[]);
    let third = wire.poll().unwrap();
    assert_eq!(shape(Some(&third)), format!("LEDS +{}", name("d")));
    wire.ack(&third);
    wire.delta(&LEDS, &[], &[&name("*")]);
    wire.session.on_snapshot(two.with(3, [put(LEDS, &name("e"), "1")]));
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
}

#[test]
fn an_empty_collection_is_said_to_be_empty() {
    let mut wire = Wire::new(Variant::Incremental, &Snapshot::empty(0));
    wire.delta(&LEDS, &["xdstp:///t/s/*"], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), "LEDS -xdstp:///t/s/*");
    wire.ack(&first);
    assert_eq!(shape(wire.poll().as_ref()), "nothing");
}

#[test]
fn a_cluster_that_changed_gets_its_members_again() {
    let name = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/1";
    let one = Snapshot::empty(0).with(1, [put(CDS, "a/v1", "1"), put(LEDS, name, "1"), put(LDS, "l", "1")]);
    let mut wire = connected(&one);
    wire.delta(&LEDS, &["xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/*"], &[]);
    while let Some(response) = wire.poll() {
        wire.ack(&response);
    }
    wire.session.on_snapshot(one.with(2, [put(CDS, "a/v1", "2")]));
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a/v1");
    assert_eq!(shape(wire.poll().as_ref()), format!("LEDS +{name}"));
}

#[test]
fn a_cluster_that_changed_gets_what_it_calls_otherwise_again() {
    use envoy_types::pb::envoy::config::{
        cluster::v3::{Cluster, cluster::EdsClusterConfig},
        endpoint::v3::{
            ClusterLoadAssignment, LedsClusterLocalityConfig, LocalityLbEndpoints,
            locality_lb_endpoints::LbConfig,
        },
    };
    use prost::Message;

    let put = |kind: Kind, name: &str, value: &[u8]| {
        (on(kind.clone()), Name::from(name), Some(Arc::new(Resource::new(kind, name, value))))
    };
    let cluster = |alt_stat_name: &str| {
        let eds = EdsClusterConfig { service_name: "elsewhere".to_owned(), ..Default::default() };
        let alt_stat_name = alt_stat_name.to_owned();
        Cluster { eds_cluster_config: Some(eds), alt_stat_name, ..Default::default() }.encode_to_vec()
    };
    let leds = LedsClusterLocalityConfig {
        leds_collection_name: "xdstp:///t/own/*".to_owned(),
        ..Default::default()
    };
    let locality = LocalityLbEndpoints {
        lb_config: Some(LbConfig::LedsClusterLocalityConfig(leds)),
        ..Default::default()
    };
    let assignment = ClusterLoadAssignment { endpoints: vec![locality], ..Default::default() };
    let one = Snapshot::empty(0).with(
        1,
        [
            put(CDS, "own", &cluster("1")),
            put(EDS, "elsewhere", &assignment.encode_to_vec()),
            put(LEDS, "xdstp:///t/own/a", b"1"),
            put(LDS, "l", b"1"),
        ],
    );
    let mut wire = connected(&one);
    wire.delta(&EDS, &["elsewhere"], &[]);
    wire.delta(&LEDS, &["xdstp:///t/own/*"], &[]);
    while let Some(response) = wire.poll() {
        wire.ack(&response);
    }
    wire.session.on_snapshot(one.with(2, [put(CDS, "own", &cluster("2"))]));
    assert_eq!(shape(wire.poll().as_ref()), "CDS +own");
    assert_eq!(shape(wire.poll().as_ref()), "EDS +elsewhere");
    assert_eq!(shape(wire.poll().as_ref()), "LEDS +xdstp:///t/own/a");
}

#[test]
fn a_member_asked_for_again_by_its_collection_is_told_as_gone() {
    let name = |id: &str| format!("xdstp:///t/s/{id}");
    let one = Snapshot::empty(0).with(1, [put(LEDS, &name("a"), "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LEDS, &[&name("a")], &[]);
    let first = wire.poll().unwrap();
    assert_eq!(shape(Some(&first)), format!("LEDS +{}", name("a")));
    // It is held when its collection is asked for, and goes with its name before that is answered.
    wire.delta(&LEDS, &[&name("*")], &[]);
    wire.delta(&LEDS, &[], &[&name("a")]);
    wire.ack(&first);
    wire.session.on_snapshot(one.with(2, [gone(LEDS, &name("a"))]));
    wire.wait(ACK_TIMEOUT);
    assert_eq!(shape(wire.poll().as_ref()), format!("LEDS -{} -{}", name("*"), name("a")));
}

#[test]
fn what_is_named_beside_a_wildcard_is_left_out_when_it_is_gone() {
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.sotw(&CDS, &["*"], "");
    let first = wire.poll().unwrap();
    // Named, gone and not named any more, before anything is sent.
    wire.sotw(&CDS, &["*", "a"], &first.nonce);
    wire.session.on_snapshot(one.with(2, [gone(CDS, "a")]));
    wire.sotw(&CDS, &["*"], &first.nonce);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +b");
}

#[test]
fn what_is_too_large_for_one_response_comes_in_several() {
    let large = "x".repeat(RESPONSE_BYTES / 3);
    let names = ["a", "b", "c", "d", "e"];
    let one = Snapshot::empty(0).with(1, names.map(|name| put(CDS, name, &large)));
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&CDS, &[], &[]);
    let mut shapes = Vec::new();
    while let Some(response) = wire.poll() {
        assert_eq!(wire.session.applied(wire.now), 0);
        shapes.push(shape(Some(&response)));
        wire.ack(&response);
    }
    assert_eq!(shapes, ["CDS +a +b", "CDS +c +d", "CDS +e"]);
}

#[test]
fn a_grpc_client_never_means_everything() {
    let one = Snapshot::empty(0).with(1, [((CDS, View::Grpc), "a".into(), put(CDS, "a", "1").2)]);
    let grpc = Client { grpc: true, ..Client::default() };
    let mut wire = Wire::new(Variant::StateOfTheWorld, &one);
    wire.session = Session::new(Variant::StateOfTheWorld, grpc, one.clone());
    wire.sotw(&CDS, &[], "");
    assert_eq!(shape(wire.poll().as_ref()), "CDS", "an answer, and nothing in it");
    wire.session = Session::new(Variant::StateOfTheWorld, grpc, one);
    wire.sotw(&CDS, &["a"], "");
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
}

#[test]
fn a_resource_with_a_time_to_live_is_kept_alive() {
    let ttl = Duration::from_secs(9);
    let resource = Resource::new(CDS, "a", b"1").with_ttl(Some(ttl));
    let one = Snapshot::empty(0).with(1, [(on(CDS), "a".into(), Some(Arc::new(resource)))]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.session = Session::new(Variant::Incremental, Client { ttl: true, ..Client::default() }, one.clone());
    wire.delta(&CDS, &[], &[]);
    let first = wire.poll().unwrap();
    wire.ack(&first);
    for _ in 0..3 {
        assert_eq!(shape(wire.poll().as_ref()), "nothing");
        let due = wire.session.deadline(wire.now).unwrap();
        assert!(due - wire.now <= ttl / 3);
        wire.now = due;
        let beat = wire.poll().unwrap();
        assert_eq!((shape(Some(&beat)), beat.heartbeats.len()), ("CDS".to_owned(), 1));
        wire.ack(&beat);
    }
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "2")]));
    let second = wire.poll().unwrap();
    wire.ack(&second);
    wire.wait(ttl);
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "it has no time to live any more");
}

#[test]
fn where_a_resource_stands_is_known() {
    use view::Status::{Error, NotSent, Stale, Synced};
    let one = Snapshot::empty(0).with(1, [put(CDS, "a", "1"), put(CDS, "b", "1")]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    let stands = |wire: &Wire| -> Vec<_> {
        let all = wire.session.standings();
        all.into_iter().map(|s| (s.name.to_string(), s.status, s.acknowledged.is_some())).collect()
    };
    wire.delta(&CDS, &["*", "missing"], &[]);
    let row = |name: &str, status, acknowledged| (name.to_owned(), status, acknowledged);
    let missing = row("missing", NotSent, false);
    assert_eq!(stands(&wire), [row("a", NotSent, false), row("b", NotSent, false), missing.clone()]);
    let first = wire.poll().unwrap();
    assert_eq!(stands(&wire)[..2], [row("a", Stale, false), row("b", Stale, false)]);
    wire.ack(&first);
    assert_eq!(stands(&wire), [row("a", Synced, true), row("b", Synced, true), missing]);
    wire.session.on_snapshot(one.with(2, [put(CDS, "a", "2"), put(CDS, "b", "2")]));
    let second = wire.poll().unwrap();
    wire.nack(&second, "a: no");
    let now = wire.session.standings();
    assert_eq!((now[0].status, now[1].status), (Error, Synced));
    assert_eq!(now[0].acknowledged, one.resource(&on(CDS), "a").map(|r| r.version));
    assert_eq!(now[0].reason.as_deref(), Some("a: no"));
}

#[test]
fn a_type_nobody_knows_has_no_resources_and_disturbs_no_other() {
    let other = Kind::of("type.googleapis.com/not.Known");
    let mut wire = Wire::new(Variant::Incremental, &Snapshot::empty(0).with(1, [put(CDS, "a", "1")]));
    wire.delta(&other, &["x"], &[]);
    wire.delta(&CDS, &[], &[]);
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
    assert_eq!(shape(wire.poll().as_ref()), "type.googleapis.com/not.Known -x");
    for i in 0..2 * MAX_TYPES {
        wire.delta(&Kind::of(&format!("t/{i}")), &["x"], &[]);
    }
    assert_eq!(wire.session.standings().len(), MAX_TYPES);
}

#[test]
fn what_goes_before_it_is_sent_again_is_told_as_gone() {
    let name = |id: &str| format!("xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/{id}");
    let one = Snapshot::empty(0).with(
        1,
        [put(CDS, "a/v1", "1"), put(LEDS, &name("1"), "1"), put(LEDS, &name("2"), "1"), put(LDS, "l", "1")],
    );
    let mut wire = connected(&one);
    wire.delta(&LEDS, &[&name("*")], &[]);
    while let Some(response) = wire.poll() {
        wire.ack(&response);
    }
    // The cluster changes, so its members are owed; one of them goes before they are sent.
    let two = one.with(2, [put(CDS, "a/v1", "2")]);
    wire.session.on_snapshot(two.clone());
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a/v1");
    wire.session.on_snapshot(two.with(3, [gone(LEDS, &name("1"))]));
    assert_eq!(shape(wire.poll().as_ref()), format!("LEDS +{} -{}", name("2"), name("1")));
}

#[test]
fn a_client_that_comes_back_is_told_that_what_it_holds_lives_on() {
    let resource = Resource::new(CDS, "a", b"1").with_ttl(Some(Duration::from_secs(9)));
    let version = resource.version.to_string();
    let one = Snapshot::empty(0).with(1, [(on(CDS), "a".into(), Some(Arc::new(resource)))]);
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.session = Session::new(Variant::Incremental, Client { ttl: true, ..Client::default() }, one);
    let request = DeltaDiscoveryRequest {
        initial_resource_versions: [("a".to_owned(), version)].into_iter().collect(),
        ..Default::default()
    };
    wire.session.on_incremental(&CDS, request, wire.now).unwrap();
    assert_eq!(shape(wire.poll().as_ref()), "CDS +a");
}

#[test]
fn routes_wait_for_the_endpoints_of_new_clusters_and_not_for_churn() {
    let one = Snapshot::empty(0)
        .with(1, [put(CDS, "a", "1"), put(EDS, "a", "1"), put(LDS, "l", "1"), put(RDS, "r", "1")]);
    let mut wire = connected(&one);
    // An assignment that only changes is on its way when a cluster and its route come.
    let two = one.with(2, [put(EDS, "a", "2")]);
    wire.session.on_snapshot(two.clone());
    let churn = wire.poll().unwrap();
    let three = two.with(3, [put(CDS, "b", "1"), put(EDS, "b", "1"), put(RDS, "r", "2")]);
    wire.session.on_snapshot(three.clone());
    let clusters = wire.poll().unwrap();
    assert_eq!(shape(Some(&clusters)), "CDS +b");
    wire.ack(&clusters);
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "the endpoints of b have to go first");
    wire.ack(&churn);
    assert_eq!(shape(wire.poll().as_ref()), "EDS +b");
    assert_eq!(shape(wire.poll().as_ref()), "RDS +r");
}
