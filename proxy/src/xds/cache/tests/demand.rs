//! Only what is routed is asked for and held.

use super::*;

fn names(requests: &[DeltaDiscoveryRequest], kind: ResourceType) -> (Vec<&str>, Vec<&str>) {
    let of = || requests.iter().filter(move |r| r.type_url == kind.type_url());
    let more = of().flat_map(|r| &r.resource_names_subscribe).map(String::as_str).collect();
    (more, of().flat_map(|r| &r.resource_names_unsubscribe).map(String::as_str).collect())
}

#[test]
fn nothing_is_asked_for_before_a_route_names_it() {
    let mut world = World::default();
    let first = world.cache.on_connected();
    let kinds: Vec<&str> = first.iter().map(|r| r.type_url.as_str()).collect();
    assert_eq!(kinds, [ResourceType::Listener.type_url()], "no name would mean every cluster");
}

#[test]
fn what_routes_cease_to_name_is_given_up_once_they_are_live_and_not_before() {
    let now = Instant::now();
    let mut world = running(now);
    let sent = world.respond(now, &[routes("edge", &["v2"])], &[]);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec!["s/v2"], vec![]));
    let sent = world.respond(now, &[cluster("s/v2")], &[]);
    assert_eq!(names(&sent, ResourceType::LoadAssignment), (vec!["s/v2"], vec![]));
    world.assert_whole("while it is warming");
    let sent = world.respond(now, &[endpoints("s/v2", &[2])], &[]);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec![], vec!["s/v1"]));
    assert_eq!(names(&sent, ResourceType::LoadAssignment), (vec![], vec!["s/v1"]));
    assert_eq!(world.clusters.keys().collect::<Vec<_>>(), ["s/v2"]);
    for held in [world.cache.held(), world.cache.last_good()] {
        assert!(ResourceType::ALL[..4].iter().all(|kind| held[kind.index()].len() == 1));
    }
    // And back: what was given up is asked for anew.
    let sent = world.respond(now, &[routes("edge", &["v1"])], &[]);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec!["s/v1"], vec![]));
}

#[test]
fn routes_that_are_replaced_before_they_were_live_leave_nothing_behind() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[routes("edge", &["v1", "v2"])], &[]);
    let sent = world.respond(now, &[routes("edge", &["v1", "v3"])], &[]);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec!["s/v3"], vec!["s/v2"]));
    let sent = world.respond(now, &[routes("edge", &["v1"])], &[]);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec![], vec!["s/v3"]));
    assert_eq!(acks(&sent), ["5", "6", "7"]);
    assert!(world.cache.settled() && world.cache.next_deadline().is_none());
    world.respond(now, &[cluster("s/v2")], &[]);
    assert_eq!(world.clusters.len(), 1, "it was on its way");
}

#[test]
fn routes_to_what_does_not_exist_do_not_hold_back_the_newer_ones() {
    let now = Instant::now();
    let mut world = running(now);
    assert!(acks(&world.respond(now, &[routes("edge", &["v2"])], &[])).is_empty());
    let sent = world.respond(now, &[], &[(ResourceType::Cluster, "s/v2")]);
    let mut acknowledged = acks(&sent);
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, ["5", "6"], "the server has newer routes, and sends them after this");
    assert_eq!(world.live_versions("edge"), ["s/v1"], "what works is not replaced by what cannot");
    assert!(!world.cache.settled());

    world.respond(now, &[routes("edge", &["v3"])], &[]);
    world.respond(now, &[cluster("s/v3")], &[]);
    world.respond(now, &[endpoints("s/v3", &[3])], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v3"]);
    assert_eq!(world.cache.warming_timeouts(), 0);

    // A server that means it gets what it wants, late; and the cluster is taken in whenever it comes.
    world.respond(now, &[routes("edge", &["v4"])], &[]);
    world.respond(now, &[], &[(ResourceType::Cluster, "s/v4")]);
    world.pass(now + WARMING_TIMEOUT);
    assert_eq!(world.live_versions("edge"), ["s/v4"]);
    world.respond(now, &[cluster("s/v4")], &[]);
    world.respond(now, &[endpoints("s/v4", &[4])], &[]);
    world.assert_whole("at the end");
}

#[test]
fn a_proxy_of_one_gateway_asks_for_it_by_name_and_takes_no_other() {
    let now = Instant::now();
    let mut world = World { cache: Cache::new(["edge"], Duration::ZERO), ..World::default() };
    let first = world.cache.on_connected();
    assert_eq!(names(&first, ResourceType::Listener), (vec!["edge"], vec![]));
    assert_eq!(first.len(), 1);
    world.respond(now, &[listener("internal", 81), listener("edge", 80)], &[]);
    let sent = world.respond(now, &[routes("edge", &["v1"])], &[]);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec!["s/v1"], vec![]));
    world.respond(now, &[cluster("s/v1")], &[]);
    world.respond(now, &[endpoints("s/v1", &[1])], &[]);
    assert_eq!((world.listeners.len(), world.cache.not_ready()), (1, None));
    assert_eq!(world.cache.held()[ResourceType::Listener.index()].len(), 1);

    // Of what a proxy of all gateways saved, it starts with its own.
    let saved = [listener("internal", 81), listener("edge", 80), routes("internal", &["v2"])]
        .into_iter()
        .chain([routes("edge", &["v1"]), cluster("s/v1"), cluster("s/v2")])
        .chain([endpoints("s/v1", &[1]), endpoints("s/v2", &[2])]);
    let saved: Vec<_> = saved.map(|encoded| (encoded.0, resource(&encoded))).collect();
    let mut other = World { cache: Cache::new(["edge"], Duration::ZERO), ..World::default() };
    let (update, refused) = other.cache.restore(&saved, now);
    assert!(refused.is_empty());
    other.carry_out(update, now);
    assert_eq!(other.clusters.keys().collect::<Vec<_>>(), ["s/v1"]);
    assert_eq!((other.listeners.len(), other.cache.not_ready()), (1, None));
    // What it does without is saved no longer.
    assert!(other.cache.last_good().iter().take(4).all(|held| held.len() == 1));
}

#[test]
fn the_last_connections_of_a_listener_that_went_find_what_they_need() {
    let now = Instant::now();
    let linger = Duration::from_secs(30);
    let mut world = World { cache: Cache::new([], linger), ..World::default() };
    world.cache.on_connected();
    world.respond(now, &[listener("edge", 80)], &[]);
    world.respond(now, &[routes("edge", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v1")], &[]);
    world.respond(now, &[endpoints("s/v1", &[1])], &[]);
    world.respond(now, &[], &[(ResourceType::Listener, "edge")]);
    assert!(world.routes.is_empty() && world.cache.settled());
    world.respond(now, &[endpoints("s/v1", &[1, 2])], &[]);
    assert_eq!(world.clusters["s/v1"].as_ref().unwrap().endpoints.len(), 2, "and as it is by then");

    let sent = world.pass(now + linger);
    assert_eq!(names(&sent, ResourceType::Cluster), (vec![], vec!["s/v1"]));
    assert!(world.clusters.is_empty() && world.cache.next_deadline().is_none());
    assert!(world.cache.last_good().iter().all(HeldMap::is_empty));
}

#[test]
fn a_listener_that_comes_back_while_its_last_connections_end_needs_nothing_anew() {
    let now = Instant::now();
    let linger = Duration::from_secs(30);
    let mut world = running(now);
    world.cache.linger = linger;
    for _ in 0..3 {
        world.respond(now, &[], &[(ResourceType::Listener, "edge")]);
        world.respond(now, &[listener("edge", 80)], &[]);
        let sent = world.respond(now, &[routes("edge", &["v1"])], &[]);
        assert_eq!(names(&sent, ResourceType::Cluster), (vec![], vec![]));
        assert_eq!(world.live_versions("edge"), ["s/v1"], "it is warm");
    }
    world.pass(now + linger);
    world.assert_whole("after that");
    assert_eq!(world.clusters.len(), 1);
}
