//! Endpoints one by one: collections, their members, and what waits for them.

use config::{Zone, xds::leds};

use super::*;

fn zone(zone: &str) -> Option<Zone> {
    zone.parse().ok()
}

fn glob(cluster: &str, in_zone: &str) -> String {
    leds::collection_name(&cluster.parse().unwrap(), zone(in_zone).as_ref())
}

/// The assignment of `cluster`, with a collection a zone; "" is none.
fn collections(cluster: &str, zones: &[&str]) -> Encoded {
    let zones: Vec<_> = zones.iter().map(|name| zone(name)).collect();
    let value = leds::encode_assignment(&cluster.parse().unwrap(), zones.iter().map(Option::as_ref));
    (ResourceType::LoadAssignment, cluster.into(), value.encode_to_vec())
}

fn member(cluster: &str, in_zone: &str, id: &str, port: u16) -> Encoded {
    let endpoint = Endpoint {
        id: id.parse().unwrap(),
        address: ([127, 0, 0, 1], port).into(),
        weight: 1,
        zone: None,
        health: Health::Ready,
        lease: Lease::Permanent,
    };
    let name = leds::member_name(&cluster.parse().unwrap(), zone(in_zone).as_ref(), &endpoint.id);
    (ResourceType::LbEndpoint, name, leds::encode_member(&endpoint).encode_to_vec())
}

fn gone(encoded: &Encoded) -> [(ResourceType, &str); 1] {
    [(ResourceType::LbEndpoint, &encoded.1)]
}

/// Id, port and zone of each endpoint that requests would see.
fn seen(world: &World, cluster: &str) -> Vec<(String, u16, String)> {
    let endpoints = world.clusters[cluster].iter().flat_map(|assignment| &assignment.endpoints);
    let mut seen: Vec<_> =
        endpoints.map(|e| (e.id.to_string(), e.address.port(), e.zone.to_string())).collect();
    seen.sort();
    seen
}

fn one(id: &str, port: u16, zone: &str) -> (String, u16, String) {
    (id.into(), port, zone.into())
}

/// Endpoints of `cluster` in several zones, some at the same address: the resources of a server that has
/// collections, and the assignment of one that has none.
pub(super) fn random(cluster: &str, rng: &mut fastrand::Rng) -> (Vec<Encoded>, Vec<u8>) {
    let name = cluster.parse().unwrap();
    let zones = ["", "x", "-"];
    let mut all: Vec<Endpoint> = Vec::new();
    for number in 0..rng.u8(0..8) {
        all.push(Endpoint {
            id: format!("e{number}").parse().unwrap(),
            address: ([127, 0, 0, 1], 1 + rng.u16(0..5)).into(),
            weight: rng.u32(1..3),
            zone: zone(rng.choice(zones).unwrap()),
            health: *rng.choice(&[Health::Ready, Health::Draining]).unwrap(),
            lease: Lease::Permanent,
        });
    }
    // One of the zones may have no member.
    let named: BTreeSet<Option<&Zone>> = all.iter().map(|e| e.zone.as_ref()).collect();
    let spare = zone(rng.choice(zones).unwrap());
    let value = leds::encode_assignment(&name, named.into_iter().chain([spare.as_ref()]));
    let mut resources = vec![(ResourceType::LoadAssignment, cluster.to_owned(), value.encode_to_vec())];
    resources.extend(all.iter().map(|endpoint| {
        let member = leds::member_name(&name, endpoint.zone.as_ref(), &endpoint.id);
        (ResourceType::LbEndpoint, member, leds::encode_member(endpoint).encode_to_vec())
    }));
    (resources, config::xds::assignment::encode(&name, &all).encode_to_vec())
}

/// A gateway `edge` on `s/v1`, whose endpoints `a` and `b` are in a collection without a zone; all live.
fn running(now: Instant) -> World {
    let mut world = World::connected();
    world.respond(now, &[listener("edge", 80)], &[]);
    world.respond(now, &[routes("edge", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v1")], &[]);
    world.respond(now, &[collections("s/v1", &[""])], &[]);
    world.respond(now, &[member("s/v1", "", "a", 1), member("s/v1", "", "b", 2)], &[]);
    assert_eq!((world.live_versions("edge"), world.cache.not_ready()), (vec!["s/v1".to_owned()], None));
    world
}

#[test]
fn a_cluster_is_warm_when_all_its_collections_have_been_answered() {
    let now = Instant::now();
    let mut world = World::connected();
    world.respond(now, &[listener("edge", 80)], &[]);
    world.respond(now, &[routes("edge", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v1")], &[]);
    let sent = world.respond(now, &[collections("s/v1", &["x", "y"])], &[]);
    assert_eq!(sent.len(), 1, "{sent:?}");
    assert_eq!(sent[0].type_url, ResourceType::LbEndpoint.type_url());
    assert_eq!(sent[0].resource_names_subscribe, [glob("s/v1", "x"), glob("s/v1", "y")]);

    let sent = world.respond(now, &[member("s/v1", "x", "a", 1)], &[]);
    assert_eq!(acks(&sent), ["5"], "itself, as the rest may come only after that");
    assert!(world.routes.is_empty(), "one collection is missing");
    assert!(world.cache.lacks_something() && !world.cache.settled());

    let empty = glob("s/v1", "y");
    let sent = world.respond(now, &[], &[(ResourceType::LbEndpoint, &empty)]);
    let mut acknowledged = acks(&sent);
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, ["1", "2", "3", "4", "6"], "the last piece releases all");
    assert_eq!(seen(&world, "s/v1"), [one("a", 1, "x")]);
    assert_eq!(world.live_versions("edge"), ["s/v1"]);
    assert!(!world.cache.lacks_something() && world.cache.settled());
}

#[test]
fn one_change_publishes_one_endpoint_and_many_in_a_response_publish_once() {
    let now = Instant::now();
    let mut world = running(now);
    let all: Vec<Encoded> = (3..300).map(|i| member("s/v1", "", &format!("m{i}"), i)).collect();
    let published = |world: &mut World, resources: &[Encoded], removed: &[(ResourceType, &str)]| {
        let response = DeltaDiscoveryResponse {
            type_url: ResourceType::LbEndpoint.type_url().to_owned(),
            resources: resources.iter().map(resource).collect(),
            removed_resources: removed.iter().map(|(_, name)| (*name).to_owned()).collect(),
            nonce: "any".to_owned(),
            ..Default::default()
        };
        let update = world.cache.on_response(response, now);
        let [Change::Endpoints(name, changes)] = &update.upserts[..] else { panic!("{update:?}") };
        assert_eq!(&**name, "s/v1");
        let count = changes.len();
        assert_eq!(acks(&world.carry_out(update, now)).len(), 1);
        count
    };
    assert_eq!(published(&mut world, &all, &[]), 297);
    assert_eq!(published(&mut world, &[member("s/v1", "", "m7", 1007)], &[]), 2, "two addresses");
    assert_eq!(published(&mut world, &[], &gone(&all[9])), 1);
    assert_eq!(published(&mut world, &all[9..10], &gone(&all[11])), 2);
    assert_eq!(seen(&world, "s/v1").len(), 298);
    assert!(seen(&world, "s/v1").contains(&one("m7", 1007, "")));

    let again = world.respond(now, &all[..1], &[]);
    assert_eq!(acks(&again).len(), 1, "nothing has changed, and it is acknowledged");
}

#[test]
fn a_refused_member_is_named_and_the_rest_is_applied() {
    let now = Instant::now();
    let mut world = running(now);
    let (kind, name, _) = member("s/v1", "", "a", 9);
    let sent = world.respond(now, &[(kind, name.clone(), vec![0xff]), member("s/v1", "", "c", 3)], &[]);
    let [(_, reason)] = nacks(&sent)[..] else { panic!("{sent:?}") };
    assert!(reason.contains(&format!("LEDS `{name}`")), "{reason}");
    assert_eq!(seen(&world, "s/v1"), [one("a", 1, ""), one("b", 2, ""), one("c", 3, "")]);

    // A collection of which nothing can be read is not waited for.
    world.respond(now, &[routes("edge", &["v1", "v2"])], &[]);
    world.respond(now, &[cluster("s/v2")], &[]);
    world.respond(now, &[collections("s/v2", &[""])], &[]);
    let (kind, name, _) = member("s/v2", "", "a", 1);
    world.respond(now, &[(kind, name, vec![0xff])], &[]);
    assert!(world.cache.settled() && seen(&world, "s/v2").is_empty());
}

#[test]
fn endpoints_stay_until_the_collections_that_replace_theirs_have_been_answered() {
    let now = Instant::now();
    let mut world = running(now);
    let sent = world.respond(now, &[collections("s/v1", &["x"])], &[]);
    assert_eq!(sent[0].resource_names_subscribe, [glob("s/v1", "x")]);
    assert!(acks(&sent).is_empty() && sent[0].resource_names_unsubscribe.is_empty());
    assert_eq!(seen(&world, "s/v1").len(), 2);

    // What is live goes on changing meanwhile.
    world.respond(now, &[], &gone(&member("s/v1", "", "b", 2)));
    assert_eq!(seen(&world, "s/v1"), [one("a", 1, "")]);

    let sent = world.respond(now, &[member("s/v1", "x", "a", 1)], &[]);
    assert_eq!(seen(&world, "s/v1"), [one("a", 1, "x")]);
    let unsubscribed: Vec<_> = sent.iter().flat_map(|r| &r.resource_names_unsubscribe).collect();
    assert_eq!(unsubscribed, [&glob("s/v1", "")]);
    assert_eq!(acks(&sent).len(), 2);
    let held = &world.cache.held()[ResourceType::LbEndpoint.index()];
    assert_eq!(held.keys().map(|name| &**name).collect::<Vec<_>>(), [member("s/v1", "x", "a", 1).1]);
    assert_eq!(world.cache.last_good()[ResourceType::LbEndpoint.index()].len(), 1);
}

#[test]
fn a_collection_that_is_never_answered_is_waited_for_once() {
    let now = Instant::now();
    let mut world = World::connected();
    world.respond(now, &[listener("edge", 80)], &[]);
    world.respond(now, &[routes("edge", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v1")], &[]);
    world.respond(now, &[collections("s/v1", &["x", "y"])], &[]);
    world.respond(now, &[member("s/v1", "x", "a", 1)], &[]);
    let later = now + WARMING_TIMEOUT;
    let sent = world.pass(later);
    assert_eq!(acks(&sent).len(), 4, "{sent:?}");
    assert_eq!(seen(&world, "s/v1"), [one("a", 1, "x")]);
    assert!(world.cache.warming_timeouts() > 0 && world.cache.next_deadline().is_none());
    assert!(world.cache.lacks_something());

    world.respond(later, &[collections("s/v1", &["y"])], &[]);
    assert!(seen(&world, "s/v1").is_empty() && world.cache.settled());
    world.respond(later, &[member("s/v1", "y", "b", 2)], &[]);
    assert_eq!(seen(&world, "s/v1"), [one("b", 2, "y")], "it is taken in whenever it comes");
}

#[test]
fn what_is_saved_starts_another_run_with_its_members() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[collections("s/v1", &["", "x"])], &[]);
    let empty = glob("s/v1", "x");
    world.respond(now, &[], &[(ResourceType::LbEndpoint, &empty)]);
    let saved: Vec<(ResourceType, Resource)> = ResourceType::ALL
        .into_iter()
        .zip(world.cache.last_good())
        .flat_map(|(kind, held)| {
            let encoded =
                held.into_iter().map(move |(name, held)| (kind, name.to_string(), held.value.to_vec()));
            encoded.map(|encoded| (encoded.0, resource(&encoded))).collect::<Vec<_>>()
        })
        .collect();

    let mut other = World::default();
    let (update, refused) = other.cache.restore(&saved, now);
    assert!(refused.is_empty(), "{refused:?}");
    other.carry_out(update, now);
    assert_eq!(seen(&other, "s/v1"), [one("a", 1, ""), one("b", 2, "")]);
    assert_eq!((other.live_versions("edge"), other.cache.not_ready()), (vec!["s/v1".to_owned()], None));

    let first = other.cache.on_connected();
    let leds = first.iter().find(|r| r.type_url == ResourceType::LbEndpoint.type_url()).unwrap();
    assert_eq!(leds.resource_names_subscribe, [glob("s/v1", ""), glob("s/v1", "x")]);
    let (_, name, value) = member("s/v1", "", "a", 1);
    assert_eq!(leds.initial_resource_versions.len(), 2);
    assert_eq!(leds.initial_resource_versions[&name], config::xds::content_version(&value));
}

#[test]
fn a_cluster_that_goes_takes_its_collections_along() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[routes("edge", &["v1", "v2"])], &[]);
    world.respond(now, &[cluster("s/v2")], &[]);
    world.respond(now, &[collections("s/v2", &["x", "y"])], &[]);
    world.respond(now, &[member("s/v2", "x", "a", 1)], &[]);
    // It goes before it was ever warm.
    world.respond(now, &[], &[(ResourceType::Cluster, "s/v2")]);
    let sent = world.respond(now, &[routes("edge", &["v1"])], &[]);
    let unsubscribed: BTreeSet<_> = sent.iter().flat_map(|r| r.resource_names_unsubscribe.clone()).collect();
    assert_eq!(unsubscribed, BTreeSet::from(["s/v2".into(), glob("s/v2", "x"), glob("s/v2", "y")]));
    assert_eq!(world.cache.held()[ResourceType::LbEndpoint.index()].len(), 2, "those of s/v1");
    assert!(world.cache.settled() && world.cache.withheld.iter().all(VecDeque::is_empty));

    let late = world.respond(now, &[member("s/v2", "x", "b", 2)], &[]);
    assert_eq!(acks(&late).len(), 1, "it was on its way");
    assert_eq!(world.cache.held()[ResourceType::LbEndpoint.index()].len(), 2, "and is not kept");
}

#[test]
fn one_of_several_members_at_an_address_is_its_endpoint_in_whatever_order_they_come() {
    let now = Instant::now();
    let mut world = running(now);
    let (old, young) = (member("s/v1", "", "old", 5), member("s/v1", "", "young", 5));
    for order in [[&old, &young], [&young, &old]] {
        for encoded in order {
            world.respond(now, std::slice::from_ref(encoded), &[]);
        }
        assert!(seen(&world, "s/v1").contains(&one("young", 5, "")));
        world.respond(now, &[], &gone(&young));
        assert!(seen(&world, "s/v1").contains(&one("old", 5, "")));
        world.respond(now, &[], &gone(&old));
        assert_eq!(seen(&world, "s/v1").len(), 2);
    }
}

#[test]
fn a_server_may_go_from_collections_to_assignments_and_back() {
    let now = Instant::now();
    let mut world = running(now);
    let sent = world.respond(now, &[endpoints("s/v1", &[1, 7])], &[]);
    assert_eq!(seen(&world, "s/v1"), [one("e1", 1, ""), one("e7", 7, "")]);
    let unsubscribed: Vec<_> = sent.iter().flat_map(|r| &r.resource_names_unsubscribe).collect();
    assert_eq!(unsubscribed, [&glob("s/v1", "")]);
    world.respond(now, &[collections("s/v1", &[""])], &[]);
    assert_eq!(seen(&world, "s/v1").len(), 2, "until the collection is answered");
    world.respond(now, &[member("s/v1", "", "c", 3)], &[]);
    assert_eq!(seen(&world, "s/v1"), [one("c", 3, "")]);
}

#[test]
fn clusters_that_share_an_assignment_share_its_changes() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[routes("edge", &["v1", "v2"])], &[]);
    let mut other = config::xds::cluster::encode(&"s/v2".parse().unwrap(), Protocol::Http, None);
    other.eds_cluster_config.as_mut().unwrap().service_name = "s/v1".into();
    world.respond(now, &[(ResourceType::Cluster, "s/v2".into(), other.encode_to_vec())], &[]);
    assert_eq!(seen(&world, "s/v2"), seen(&world, "s/v1"));
    world.respond(now, &[member("s/v1", "", "c", 3)], &gone(&member("s/v1", "", "a", 1)));
    assert_eq!(seen(&world, "s/v1"), [one("b", 2, ""), one("c", 3, "")]);
    assert_eq!(seen(&world, "s/v2"), seen(&world, "s/v1"));
}
