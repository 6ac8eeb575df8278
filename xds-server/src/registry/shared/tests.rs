use config::{Health, manifest};

use super::*;
use crate::{snapshot::Snapshot, store::etcd::Everything};

/// A writer that never reaches an etcd.
fn writer() -> SharedWriter {
    let settings = config::bootstrap::SharedStore {
        etcd: "etcd://127.0.0.1:1/test".parse().unwrap(),
        server: "one".to_owned(),
    };
    let (metrics, grace) = (Arc::<Metrics>::default(), Duration::from_secs(10));
    let state = State { world: World::default(), snapshot: Snapshot::empty(0) };
    SharedWriter {
        etcd: Etcd::new(&settings, grace, Arc::clone(&metrics)),
        feed: mpsc::channel(1).1,
        publish: watch::Sender::new(Arc::new(state)),
        timeline: Arc::default(),
        metrics,
        leases: Arc::default(),
        grace,
        draft: Draft::default(),
        revivals: VecDeque::new(),
        doubted: Default::default(),
        in_flight: BTreeMap::new(),
    }
}

fn job(write: Write) -> Job {
    let (actor, dry_run) = ("test".to_owned(), false);
    Job { write, actor, dry_run, only_if: None, hold: None, revive: false, reply: None }
}

fn apply(text: &str) -> Job {
    job(Write::Apply(manifest::parse("m", text).unwrap()))
}

fn endpoint(id: &str, lease: Lease) -> Endpoint {
    let address = "127.0.0.1:9".parse().unwrap();
    Endpoint { id: id.parse().unwrap(), address, weight: 1, zone: None, health: Health::Ready, lease }
}

fn register(id: &str, lease: Lease) -> Job {
    job(Write::PutEndpoint { cluster: "shop/v1".parse().unwrap(), endpoint: endpoint(id, lease) })
}

/// Does what `jobs` ask for, as if etcd had done it at `revision`.
fn done(writer: &mut SharedWriter, jobs: &[Job], revision: u64) {
    let attempt = writer.attempt(jobs);
    writer.in_flight.insert(revision, None);
    let changes = writer.changes(&attempt.plan, revision, revision);
    writer.absorb(Feed::Changes(changes));
    writer.in_flight.clear();
}

/// What etcd tells of a lease that has ended.
fn ended(id: &str, revision: u64) -> Feed {
    let place = Place::Object(Table::Endpoints, format!("shop/v1/{id}"));
    Feed::Changes(vec![Change { revision, place, value: None, lease: 0 }])
}

const SHOP: &str = "kind: Service\nname: shop\nversions: {v1: {}, v2: {}}\nsplit: {weights: {v1: 1}}\n";

fn ids(world: &World) -> Vec<String> {
    world.registered().map(|(_, endpoint)| endpoint.id.to_string()).collect()
}

#[tokio::test]
async fn a_registration_compares_itself_and_its_service() {
    let mut writer = writer();
    done(&mut writer, &[apply(SHOP)], 5);
    let plan = writer.attempt(&[register("a", Lease::Permanent)]).plan;
    let guards = [
        Guard::Object(Table::Documents, "Service shop".to_owned()),
        Guard::Object(Table::Endpoints, "shop/v1/a".to_owned()),
    ];
    assert_eq!(plan.guards, guards);
    assert_eq!(writer.etcd.mark(Table::Documents, "Service shop").unwrap().revision, 5);
}

#[tokio::test]
async fn a_service_that_loses_a_version_compares_its_endpoints_and_one_that_shifts_does_not() {
    let mut writer = writer();
    done(&mut writer, &[apply(SHOP)], 5);
    let fewer = writer.attempt(&[apply("kind: Service\nname: shop\nversions: {v1: {}}\n")]).plan;
    let endpoints = Guard::EndpointsOf { service: "shop".to_owned(), revision: 5 };
    assert_eq!(fewer.guards, [Guard::Documents, endpoints.clone()]);
    let object = DocumentRef::Service("shop".parse().unwrap());
    let gone = writer.attempt(&[job(Write::Delete { object, if_match: None })]).plan;
    assert_eq!(gone.guards, [Guard::Documents, endpoints]);
    let split = config::Split::all_to("v2".parse().unwrap());
    let shift = Write::Split { service: "shop".parse().unwrap(), split, if_match: None };
    assert_eq!(writer.attempt(&[job(shift)]).plan.guards, [Guard::Documents]);
}

#[tokio::test]
async fn what_lives_by_a_lease_is_written_again_for_a_new_one_and_what_does_not_is_not() {
    let mut writer = writer();
    done(&mut writer, &[apply(SHOP), register("a", Lease::Ttl(500)), register("b", Lease::Permanent)], 5);
    let again = writer.attempt(&[register("a", Lease::Ttl(500)), register("b", Lease::Permanent)]);
    assert_eq!(again.puts, BTreeMap::from([("shop/v1/a".to_owned(), Lease::Ttl(500))]));
    assert_eq!(again.plan.operations.len(), 1);
}

#[tokio::test]
async fn one_object_that_is_written_twice_is_one_operation() {
    let mut writer = writer();
    done(&mut writer, &[apply(SHOP)], 5);
    let removal = Write::RemoveEndpoint { cluster: "shop/v1".parse().unwrap(), id: "a".parse().unwrap() };
    let plan = writer.attempt(&[register("a", Lease::Permanent), job(removal)]).plan;
    assert_eq!(plan.operations.len(), 1);
    assert_eq!(plan.operations[0].value, None);
}

#[tokio::test]
async fn an_endpoint_whose_lease_has_ended_is_put_back_if_its_connection_is_open_here() {
    let mut writer = writer();
    let leases = Arc::clone(&writer.leases);
    done(&mut writer, &[apply(SHOP), register("held", Lease::Connection)], 5);
    done(&mut writer, &[register("other", Lease::Connection)], 6);
    let key = ("shop/v1".parse().unwrap(), "held".parse().unwrap());
    let (holder, _, _told) = leases.holder();
    leases.start(&key, Lease::Connection, Some(holder), writer.grace);
    writer.absorb(ended("held", 7));
    writer.absorb(ended("other", 8));
    assert_eq!(writer.revivals.len(), 1);
    assert_eq!(writer.revivals[0].0, key);
    // The other one may live at another server, which is waited for.
    assert_eq!(writer.doubted.0.len(), 1);
    assert_eq!(ids(&writer.draft.world), Vec::<String>::new());
}

#[tokio::test]
async fn a_connection_is_told_when_its_endpoint_is_registered_or_deleted_at_another_server() {
    let mut writer = writer();
    let leases = Arc::clone(&writer.leases);
    done(&mut writer, &[apply(SHOP), register("a", Lease::Connection)], 5);
    let key: Key = ("shop/v1".parse().unwrap(), "a".parse().unwrap());
    for (write, why) in [
        (register("a", Lease::Permanent), Displaced::Replaced),
        (job(Write::RemoveEndpoint { cluster: key.0.clone(), id: key.1.clone() }), Displaced::Deleted),
    ] {
        let (holder, _, told) = leases.holder();
        leases.start(&key, Lease::Connection, Some(holder), writer.grace);
        let attempt = writer.attempt(std::slice::from_ref(&write));
        let revision = writer.draft.seen + 1;
        // Not in flight here: it is somebody else's.
        let changes = writer.changes(&attempt.plan, 99, revision);
        writer.absorb(Feed::Changes(changes));
        assert_eq!(told.await, Ok(why));
    }
}

#[tokio::test]
async fn everything_after_a_gap_removes_what_is_gone_and_leaves_the_rest_alone() {
    let mut writer = writer();
    done(&mut writer, &[apply(SHOP), register("a", Lease::Permanent), register("b", Lease::Permanent)], 5);
    writer.publish();
    // Another server has seen the same, and `c` instead of `b`.
    let mut other = self::writer();
    let kept = [apply(SHOP), register("a", Lease::Permanent)];
    let mut changes = other.changes(&other.attempt(&kept).plan, 5, 5);
    changes.retain(|change| matches!(change.place, Place::Object(..)));
    done(&mut other, &kept, 5);
    changes.extend(other.changes(&other.attempt(&[register("c", Lease::Permanent)]).plan, 9, 9));
    let everything = Everything::for_test(12, changes);
    writer.absorb(Feed::Everything(everything));
    assert_eq!(ids(&writer.draft.world), ["a", "c"]);
    assert_eq!(writer.draft.seen, 12);
    assert_eq!(writer.draft.world.service(&"shop".parse().unwrap()).unwrap().revision, 5);
    writer.publish();
    assert_eq!(writer.publish.borrow().snapshot.revision(), 12);
    // What had not changed is not told of.
    let subjects: Vec<String> =
        writer.timeline.events().iter().filter(|e| e.revision == 12).map(|e| e.subject.clone()).collect();
    assert_eq!(subjects, ["Endpoint shop/v1/c", "Endpoint shop/v1/b"]);
}

#[tokio::test]
async fn what_was_told_already_is_not_done_again() {
    let mut writer = writer();
    done(&mut writer, &[apply(SHOP), register("a", Lease::Permanent)], 5);
    writer.absorb(ended("a", 5));
    assert_eq!(ids(&writer.draft.world), ["a"]);
}
