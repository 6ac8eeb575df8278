mod demand;
mod endpoints;
mod secrets;

use std::collections::{BTreeMap, HashMap};

use config::xds::{
    assignment::{AssignedEndpoint, Assignment},
    leds,
};
use config::{Endpoint, Gateway, Health, Lease, PathMatch, Protocol, Route, RouteMatch, Rule, Split};
use envoy_types::pb::google::protobuf::Any;
use prost::Message;

use super::*;
use crate::table::Live;

type Encoded = (ResourceType, String, Vec<u8>);

fn cluster(name: &str) -> Encoded {
    let value = config::xds::cluster::encode(&name.parse().unwrap(), Protocol::Http, None).encode_to_vec();
    (ResourceType::Cluster, name.into(), value)
}

fn endpoints(name: &str, ports: &[u16]) -> Encoded {
    let endpoint = |port: &u16| Endpoint {
        id: format!("e{port}").parse().unwrap(),
        address: ([127, 0, 0, 1], *port).into(),
        weight: 1,
        zone: None,
        health: Health::Ready,
        lease: Lease::Permanent,
    };
    let endpoints: Vec<_> = ports.iter().map(endpoint).collect();
    let value = config::xds::assignment::encode(&name.parse().unwrap(), &endpoints).encode_to_vec();
    (ResourceType::LoadAssignment, name.into(), value)
}

fn listener(name: &str, port: u16) -> Encoded {
    let gateway = Gateway { name: name.parse().unwrap(), listen: ([127, 0, 0, 1], port).into(), tls: None };
    (ResourceType::Listener, name.into(), config::xds::listener::encode(&gateway).encode_to_vec())
}

/// Everything of gateway `name` to service `s`, split over `versions`.
fn routes(name: &str, versions: &[&str]) -> Encoded {
    weighted(name, &versions.iter().map(|version| (*version, 1)).collect::<Vec<_>>())
}

fn weighted(name: &str, versions: &[(&str, u32)]) -> Encoded {
    let split = Split::new(versions.iter().map(|(v, w)| (v.parse().unwrap(), *w)).collect()).unwrap();
    let rule = Rule {
        matches: RouteMatch { path: PathMatch::Prefix("/".into()), headers: vec![] },
        service: "s".parse().unwrap(),
    };
    let route = Route {
        name: "r".parse().unwrap(),
        gateway: name.parse().unwrap(),
        hosts: vec!["*".parse().unwrap()],
        rules: vec![rule],
    };
    let value =
        config::xds::route::encode(&name.parse().unwrap(), [&route], |_| Some(&split)).encode_to_vec();
    (ResourceType::RouteConfiguration, name.into(), value)
}

fn resource((kind, name, value): &Encoded) -> Resource {
    Resource {
        name: name.clone(),
        version: config::xds::content_version(value),
        resource: Some(Any { type_url: kind.type_url().to_owned(), value: value.clone() }),
        ..Default::default()
    }
}

/// What requests would see, as the updates make it.
#[derive(Default)]
struct World {
    cache: Cache,
    /// The table as requests really see it.
    live: Live,
    clusters: BTreeMap<String, Option<Arc<Assignment>>>,
    routes: BTreeMap<String, Arc<RouteConfig>>,
    listeners: Vec<ListenerConfig>,
    /// Certificates by the name of their secret.
    secrets: BTreeMap<String, String>,
    /// Listeners that cannot be bound.
    unbindable: Vec<String>,
    nonce: u64,
}

impl World {
    fn connected() -> Self {
        let mut world = Self::default();
        world.cache.on_connected();
        world
    }

    /// A response of the server; returns what is sent because of it.
    fn respond(
        &mut self,
        now: Instant,
        resources: &[Encoded],
        removed: &[(ResourceType, &str)],
    ) -> Vec<DeltaDiscoveryRequest> {
        let kind = resources.first().map_or_else(|| removed[0].0, |(kind, ..)| *kind);
        self.nonce += 1;
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources: resources.iter().map(resource).collect(),
            removed_resources: removed.iter().map(|(_, name)| (*name).to_owned()).collect(),
            nonce: self.nonce.to_string(),
            ..Default::default()
        };
        let update = self.cache.on_response(response, now);
        self.carry_out(update, now)
    }

    fn carry_out(&mut self, update: Update, now: Instant) -> Vec<DeltaDiscoveryRequest> {
        let mut requests = update.requests;
        for secret in update.secrets {
            self.secrets.insert(secret.name, secret.certificate.chain);
        }
        self.publish(update.upserts);
        if let Some(listeners) = update.listeners {
            let outcomes = listeners.iter().map(|l| {
                let failed = self.unbindable.contains(&l.name);
                (l.name.as_str(), if failed { Err("address in use".to_owned()) } else { Ok(()) })
            });
            let bound = self.cache.on_listeners(outcomes, now);
            requests.extend(bound.requests);
            self.publish(bound.removals);
            for name in &bound.secrets_gone {
                self.secrets.remove(&**name);
            }
            self.listeners = listeners;
        }
        self.publish(update.removals);
        for name in &update.secrets_gone {
            self.secrets.remove(&**name);
        }
        requests
    }

    /// Time passes until `to`, with everything that falls due on the way.
    fn pass(&mut self, to: Instant) -> Vec<DeltaDiscoveryRequest> {
        let mut sent = Vec::new();
        while let Some(due) = self.cache.next_deadline().filter(|due| *due <= to) {
            let update = self.cache.on_time(due);
            sent.extend(self.carry_out(update, due));
            assert!(self.cache.next_deadline() > Some(due) || self.cache.next_deadline().is_none());
        }
        sent
    }

    fn publish(&mut self, changes: Vec<Change>) {
        self.live.publish(changes.clone());
        for change in changes {
            match change {
                Change::Cluster(config, assignment) => {
                    _ = self.clusters.insert(config.name.clone(), assignment);
                }
                Change::Endpoints(name, changes) => {
                    let Some(Some(assignment)) = self.clusters.get_mut(&*name) else { panic!("{name}") };
                    let assignment = Arc::make_mut(assignment);
                    for (address, endpoint) in changes.iter() {
                        assignment.endpoints.retain(|endpoint| endpoint.address != *address);
                        assignment.endpoints.extend(endpoint.clone());
                    }
                }
                Change::ClusterGone(name) => _ = self.clusters.remove(&*name),
                Change::Routes(config) => _ = self.routes.insert(config.name.clone(), config),
                Change::RoutesGone(name) => _ = self.routes.remove(&*name),
            }
        }
    }

    fn live_versions(&self, gateway: &str) -> Vec<String> {
        self.routes.get(gateway).map_or(vec![], |r| r.clusters().into_iter().map(str::to_owned).collect())
    }

    /// No live route names a cluster that is not there with its endpoints.
    fn assert_whole(&self, context: &str) {
        for (name, config) in &self.routes {
            for cluster in config.clusters() {
                assert!(
                    self.clusters.get(cluster).is_some_and(Option::is_some),
                    "{context}: routes `{name}` name `{cluster}`, which is not warm"
                );
            }
        }
    }
}

fn acks(requests: &[DeltaDiscoveryRequest]) -> Vec<&str> {
    let acks = requests.iter().filter(|r| !r.response_nonce.is_empty() && r.error_detail.is_none());
    acks.map(|r| r.response_nonce.as_str()).collect()
}

fn nacks(requests: &[DeltaDiscoveryRequest]) -> Vec<(&str, &str)> {
    let nacks = requests.iter().filter_map(|r| Some((r.response_nonce.as_str(), r.error_detail.as_ref()?)));
    nacks.map(|(nonce, error)| (nonce, error.message.as_str())).collect()
}

/// A gateway `edge` on version `s/v1`, all live.
fn running(now: Instant) -> World {
    let mut world = World::connected();
    world.respond(now, &[listener("edge", 80)], &[]);
    world.respond(now, &[routes("edge", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v1")], &[]);
    world.respond(now, &[endpoints("s/v1", &[1])], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v1"]);
    assert_eq!((world.listeners.len(), world.cache.not_ready()), (1, None));
    world
}

#[test]
fn routes_wait_for_their_clusters_and_acknowledgements_for_what_they_acknowledge() {
    let now = Instant::now();
    let mut world = World::connected();
    let sent = world.respond(now, &[listener("edge", 80)], &[]);
    assert_eq!(sent.len(), 1, "asks for routes, acknowledges nothing: {sent:?}");
    assert_eq!(sent[0].resource_names_subscribe, ["edge"]);
    let sent = world.respond(now, &[routes("edge", &["v1"])], &[]);
    assert_eq!(sent.len(), 1, "asks for the cluster, acknowledges nothing: {sent:?}");
    assert_eq!(sent[0].type_url, ResourceType::Cluster.type_url());
    assert_eq!(sent[0].resource_names_subscribe, ["s/v1"]);
    assert!(world.routes.is_empty() && world.listeners.is_empty());

    let sent = world.respond(now, &[cluster("s/v1")], &[]);
    assert_eq!(sent[0].resource_names_subscribe, ["s/v1"]);
    assert!(acks(&sent).is_empty(), "CDS waits for the assignment");

    let sent = world.respond(now, &[endpoints("s/v1", &[1])], &[]);
    let mut acknowledged = acks(&sent);
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, ["1", "2", "3", "4"], "the last piece releases all");
    assert_eq!((world.live_versions("edge"), world.listeners.len()), (vec!["s/v1".to_owned()], 1));
}

#[test]
fn the_old_routes_stay_live_until_the_new_ones_are_warm() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[routes("edge", &["v2"])], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v1"]);
    world.respond(now, &[cluster("s/v2")], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v1"]);
    world.respond(now, &[endpoints("s/v2", &[2])], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v2"]);
    assert_eq!(world.cache.warming_timeouts(), 0);
}

#[test]
fn nothing_waits_longer_than_the_warming_timeout() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[routes("edge", &["v2"])], &[]); // nonce 5
    world.respond(now, &[cluster("s/v2")], &[]); // nonce 6
    assert_eq!(world.cache.next_deadline(), Some(now + WARMING_TIMEOUT));
    let later = now + WARMING_TIMEOUT;
    let update = world.cache.on_time(later);
    let sent = world.carry_out(update, later);
    assert_eq!(world.live_versions("edge"), ["s/v2"]);
    let mut acknowledged = acks(&sent);
    acknowledged.sort_unstable();
    assert_eq!(acknowledged, ["5", "6"]);
    assert!(world.cache.warming_timeouts() > 0);
    assert_eq!(world.cache.next_deadline(), None, "nothing is left to wait for");
}

#[test]
fn a_cluster_in_use_outlives_its_removal_with_its_endpoints() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[], &[(ResourceType::LoadAssignment, "s/v1")]);
    world.respond(now, &[], &[(ResourceType::Cluster, "s/v1")]);
    world.assert_whole("after the removal");
    assert_eq!(world.clusters["s/v1"].as_ref().unwrap().endpoints.len(), 1);

    world.respond(now, &[routes("edge", &["v2"])], &[]);
    world.respond(now, &[cluster("s/v2")], &[]);
    world.assert_whole("while its successor is warming");
    let sent = world.respond(now, &[endpoints("s/v2", &[2])], &[]);
    assert!(!world.clusters.contains_key("s/v1"), "no live route names it any more");
    let given_up = |r: &DeltaDiscoveryRequest| r.resource_names_unsubscribe == ["s/v1"];
    let of: Vec<_> = sent.iter().filter(|r| given_up(r)).map(|r| r.type_url.as_str()).collect();
    assert_eq!(of, [ResourceType::Cluster.type_url(), ResourceType::LoadAssignment.type_url()]);
}

#[test]
fn a_bad_resource_is_kept_out_and_named_and_the_rest_is_applied() {
    let now = Instant::now();
    let mut world = running(now);
    let bad = (ResourceType::LoadAssignment, "s/v2".to_owned(), vec![0xff; 9]);
    world.respond(now, &[cluster("s/v2")], &[]);
    let worse = (ResourceType::LoadAssignment, "s/v3".to_owned(), b"\x0a".to_vec());
    let sent = world.respond(now, &[bad, endpoints("s/v1", &[1, 2]), worse], &[]);
    let [(nonce, reason)] = nacks(&sent)[..] else { panic!("{sent:?}") };
    assert_eq!(nonce, "6");
    assert!(
        reason.contains("EDS `s/v2`") && reason.contains("EDS `s/v3`") && !reason.contains("s/v1"),
        "{reason}"
    );
    assert_eq!(world.clusters["s/v1"].as_ref().unwrap().endpoints.len(), 2);

    let broken = (ResourceType::RouteConfiguration, "edge".to_owned(), vec![0xff]);
    assert_eq!(nacks(&world.respond(now, &[broken], &[])).len(), 1);
    assert_eq!(world.live_versions("edge"), ["s/v1"], "the one before stays");
}

#[test]
fn a_listener_that_cannot_be_bound_is_refused_and_asked_for_again() {
    let now = Instant::now();
    let mut world = World::connected();
    world.unbindable.push("edge".into());
    world.respond(now, &[listener("edge", 80)], &[]);
    world.respond(now, &[routes("edge", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v1")], &[]);
    let sent = world.respond(now, &[endpoints("s/v1", &[1])], &[]);
    assert_eq!(nacks(&sent), [("1", "LDS `edge`: address in use")]);
    world.cache.on_disconnected();
    let first = world.cache.on_connected();
    let lds = first.iter().find(|r| r.type_url == ResourceType::Listener.type_url()).unwrap();
    assert!(lds.initial_resource_versions.is_empty(), "it is not held");
}

#[test]
fn something_lacks_until_all_that_is_asked_for_has_come() {
    let now = Instant::now();
    let mut world = World::connected();
    for step in [listener("edge", 80), routes("edge", &["v1"]), cluster("s/v1"), endpoints("s/v1", &[1])] {
        assert!(world.cache.lacks_something());
        world.respond(now, &[step], &[]);
    }
    assert!(!world.cache.lacks_something());
    world.cache.on_disconnected();
    world.cache.on_connected();
    assert!(!world.cache.lacks_something(), "a silent server has nothing to say");
}

#[test]
fn what_is_saved_of_a_listener_is_what_was_bound_last() {
    let now = Instant::now();
    let saved = |world: &World| {
        world.cache.last_good()[ResourceType::Listener.index()].get("edge").map(|held| held.value.to_vec())
    };
    let mut world = running(now);
    world.unbindable.push("edge".into());
    world.respond(now, &[listener("edge", 81)], &[]);
    assert_eq!(saved(&world), Some(listener("edge", 80).2), "the old one still runs");

    // A retry succeeds: nothing comes from the server, and there is something to save.
    let update = world.cache.on_listeners([("edge", Ok(()))], now);
    assert!(update.changed);
    assert_eq!(saved(&world), Some(listener("edge", 81).2));
    assert!(!world.cache.on_listeners([("edge", Ok(()))], now).changed, "no news the second time");

    world.respond(now, &[], &[(ResourceType::Listener, "edge")]);
    assert_eq!(saved(&world), None);
}

/// Listener `edge` that is to use the routes `side`.
fn moved_listener(port: u16) -> Encoded {
    let (kind, name, mut value) = listener("edge", port);
    let at: Vec<usize> = (0..value.len() - 3).filter(|&i| value[i..].starts_with(b"edge")).collect();
    let to_side = at.iter().find(|&&i| {
        let mut other = value.clone();
        other[i..i + 4].copy_from_slice(b"side");
        decode_listener(&other).is_ok_and(|l| l.name == "edge" && l.route_config == "side")
    });
    let at = *to_side.expect("the name of its routes is in it");
    value[at..at + 4].copy_from_slice(b"side");
    (kind, name, value)
}

#[test]
fn what_goes_on_because_its_successor_cannot_be_bound_keeps_its_routes() {
    let now = Instant::now();
    let mut world = running(now);
    world.unbindable.push("edge".into());
    world.respond(now, &[moved_listener(81)], &[]);
    world.respond(now, &[routes("side", &["v1"])], &[]);
    assert_eq!((world.live_versions("edge").len(), world.live_versions("side").len()), (1, 1));
    assert!(world.cache.last_good()[ResourceType::RouteConfiguration.index()].contains_key("edge"));

    let update = world.cache.on_listeners([("edge", Ok(()))], now);
    let unsubscribed: Vec<_> = update.requests.iter().flat_map(|r| &r.resource_names_unsubscribe).collect();
    assert_eq!(unsubscribed, ["edge"]);
    world.publish(update.removals);
    assert!(world.live_versions("edge").is_empty() && world.live_versions("side").len() == 1);
}

#[test]
fn what_a_server_forgot_and_is_in_use_is_saved() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[], &[(ResourceType::LoadAssignment, "s/v1")]);
    world.respond(now, &[], &[(ResourceType::Cluster, "s/v1")]);
    world.respond(now, &[], &[(ResourceType::RouteConfiguration, "edge")]);
    let saved = world.cache.last_good();
    assert!(ResourceType::ALL[..4].iter().all(|kind| saved[kind.index()].len() == 1));

    world.respond(now, &[], &[(ResourceType::Listener, "edge")]);
    assert!(world.cache.last_good().iter().all(HeldMap::is_empty), "nothing uses any of it now");
}

#[test]
fn a_new_stream_says_what_is_held_and_asks_for_what_is_needed() {
    let now = Instant::now();
    let mut world = running(now);
    world.cache.on_disconnected();
    let first = world.cache.on_connected();
    let of = |kind: ResourceType| first.iter().find(|r| r.type_url == kind.type_url()).unwrap();
    for (kind, name, value) in
        [cluster("s/v1"), endpoints("s/v1", &[1]), listener("edge", 80), routes("edge", &["v1"])]
    {
        let versions = HashMap::from([(name.clone(), config::xds::content_version(&value))]);
        assert_eq!(of(kind).initial_resource_versions, versions, "{kind}");
        let names = if kind == ResourceType::Listener { vec![] } else { vec![name] };
        assert_eq!(of(kind).resource_names_subscribe, names, "{kind}");
    }
}

#[test]
fn what_was_saved_is_live_at_once_and_held() {
    let now = Instant::now();
    let world = running(now);
    let saved: Vec<_> = ResourceType::ALL
        .into_iter()
        .zip(world.cache.last_good())
        .flat_map(|(kind, held)| {
            let of = move |(name, held): (Arc<str>, Held)| (kind, name.to_string(), held.value.to_vec());
            held.into_iter().map(of).map(|encoded| (encoded.0, resource(&encoded))).collect::<Vec<_>>()
        })
        .collect();
    let mut fresh = World::default();
    let (update, refused) = fresh.cache.restore(&saved, now);
    fresh.carry_out(update, now);
    assert!(refused.is_empty() && fresh.cache.not_ready().is_none());
    assert_eq!((fresh.live_versions("edge"), fresh.listeners.len()), (vec!["s/v1".to_owned()], 1));
    assert_eq!(fresh.cache.held(), world.cache.held());
    assert_eq!(fresh.cache.last_good(), world.cache.last_good());
}

#[test]
fn what_was_not_asked_for_is_not_kept() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[endpoints("s/v9", &[9]), routes("edge", &["v1"])][..1], &[]);
    world.respond(now, &[routes("other", &["v1"])], &[]);
    world.respond(now, &[cluster("s/v9")], &[]);
    assert!(!world.clusters.contains_key("s/v9") && !world.routes.contains_key("other"));
    assert_eq!(world.cache.held()[ResourceType::Cluster.index()].len(), 1);
    assert_eq!(world.cache.held()[ResourceType::LoadAssignment.index()].len(), 1);
    let unknown = DeltaDiscoveryResponse { type_url: "type.googleapis.com/x".into(), ..Default::default() };
    assert!(world.cache.on_response(unknown, now).requests.is_empty());
}

#[test]
fn updates_do_not_restart_the_warming_timeout() {
    let start = Instant::now();
    let mut world = running(start);
    let second = |i: u64| start + Duration::from_secs(i);
    for i in 0..8 {
        world.pass(second(i));
        let weight = 1 + u32::try_from(i % 2).unwrap();
        world.respond(second(i), &[weighted("edge", &[("v1", weight), ("v2", 1)])], &[]);
        world.respond(second(i), &[cluster("s/v2")], &[]); // and never its assignment
        let live = &world.routes["edge"].virtual_hosts[0].routes[0].clusters;
        if i < 5 {
            assert_eq!(live.len(), 1, "second {i}");
        } else {
            assert_eq!(live[0].1, weight, "second {i}: it is not waited for again");
        }
    }
    // Once it is there, a later absence is waited for again.
    world.respond(second(8), &[endpoints("s/v2", &[2])], &[]);
    world.respond(second(8), &[routes("edge", &["v1"])], &[]);
    world.respond(second(8), &[routes("edge", &["v2"])], &[]);
    world.respond(second(8), &[cluster("s/v2")], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v1"]);
}

#[test]
fn listeners_that_change_do_not_restart_the_warming_timeout_either() {
    let start = Instant::now();
    let mut world = World::connected();
    let second = |i: u16| start + Duration::from_secs(u64::from(i));
    for i in 0..8 {
        world.pass(second(i));
        world.respond(second(i), &[listener("edge", 80 + i)], &[]);
        let ports: Vec<u16> = world.listeners.iter().map(|l| l.address.port()).collect();
        assert_eq!(ports, if i < 5 { vec![] } else { vec![80 + i] }, "second {i}");
    }
}

#[test]
fn a_refused_cluster_is_not_waited_for_until_it_is_accepted() {
    let now = Instant::now();
    let mut world = running(now);
    world.respond(now, &[routes("edge", &["v1", "v2"])], &[]);
    world.respond(now, &[(ResourceType::Cluster, "s/v2".to_owned(), vec![0xff])], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v1", "s/v2"]);

    world.respond(now, &[routes("edge", &["v3"])], &[]); // nonce 7
    world.respond(now, &[cluster("s/v3")], &[]); // nonce 8
    let bad = (ResourceType::LoadAssignment, "s/v3".to_owned(), vec![0xff]);
    let sent = world.respond(now, &[bad], &[]);
    assert_eq!(acks(&sent), ["8", "7"], "the cluster is applied as far as it can be");
    assert_eq!(world.live_versions("edge"), ["s/v3"]);

    world.respond(now, &[routes("edge", &["v2"])], &[]);
    world.respond(now, &[cluster("s/v2")], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v3"], "its assignment will come");
    world.respond(now, &[endpoints("s/v2", &[2])], &[]);
    assert_eq!(world.live_versions("edge"), ["s/v2"]);
}

#[test]
fn withheld_acknowledgements_are_bounded_for_every_type() {
    let now = Instant::now();
    let mut world = World::connected();
    for i in 0..=MAX_WITHHELD {
        let port = 80 + u16::try_from(i % 1_000).unwrap();
        world.respond(now, &[listener("edge", port)], &[]);
    }
    assert_eq!(world.cache.withheld[ResourceType::Listener.index()].len(), MAX_WITHHELD);
}

#[test]
fn a_listener_that_is_sent_again_is_not_refused_for_an_earlier_attempt() {
    let now = Instant::now();
    let mut world = running(now);
    world.unbindable.push("edge".into());
    assert_eq!(nacks(&world.respond(now, &[listener("edge", 81)], &[])).len(), 1);
    world.unbindable.clear();
    let sent = world.respond(now, &[listener("edge", 81)], &[]);
    assert_eq!((nacks(&sent), acks(&sent)), (vec![], vec!["6"]));
}

#[test]
fn whatever_comes_and_whenever_nothing_waits_longer_than_the_warming_timeout() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut now = Instant::now();
        let mut world = running(now);
        let mut waits_since: Option<Instant> = None;
        for step in 0..100 {
            let context = format!("seed {seed}, step {step}");
            now += Duration::from_millis(rng.u64(0..2_000));
            world.pass(now);
            // It may have gone live just now and wait for something else after this step.
            waits_since = waits_since.filter(|_| world.cache.routes["edge"].staged.is_some());
            let version = format!("v{}", rng.u8(0..6));
            let name = format!("s/{version}");
            match rng.u8(0..10) {
                0 | 1 => _ = world.respond(now, &[cluster(&name)], &[]),
                2 => _ = world.respond(now, &[endpoints(&name, &[1])], &[]),
                3 => _ = world.respond(now, &[], &[(ResourceType::Cluster, &name)]),
                4 => _ = world.respond(now, &[listener("edge", rng.u16(80..90))], &[]),
                _ => _ = world.respond(now, &[routes("edge", &["v1", &version][..rng.usize(1..3)])], &[]),
            }
            let waits = world.cache.routes["edge"].staged.is_some();
            waits_since = waits.then(|| waits_since.unwrap_or(now));
            let waited = waits_since.map_or(Duration::ZERO, |since| now - since);
            assert!(waited < WARMING_TIMEOUT, "{context}: {:?}", world.cache.waiting());
            let oldest = world.cache.withheld.iter().filter_map(|queue| queue.front()).map(|w| w.until).min();
            assert!(oldest.is_none_or(|until| until > now), "{context}: an acknowledgement is overdue");
        }
        world.pass(now + WARMING_TIMEOUT);
        assert!(world.cache.settled() && world.cache.withheld.iter().all(VecDeque::is_empty), "seed {seed}");
    }
}

/// A server of the incremental variant that sends one type at a time, in any order of types.
#[derive(Default)]
struct Server {
    resources: BTreeMap<(ResourceType, String), Vec<u8>>,
    names: ByType<BTreeSet<String>>,
    has: ByType<HashMap<String, String>>,
    asked: ByType<bool>,
    /// Collections without members, and clusters that do not exist, that the client was told of.
    empty: BTreeSet<String>,
    /// The assignments with all their endpoints.
    whole: BTreeMap<String, Vec<u8>>,
}

impl Server {
    fn hear(&mut self, requests: Vec<DeltaDiscoveryRequest>) {
        for request in requests {
            assert_eq!(request.error_detail, None);
            let i = ResourceType::from_type_url(&request.type_url).unwrap().index();
            self.asked[i] = true;
            self.names[i].extend(request.resource_names_subscribe);
            for name in request.resource_names_unsubscribe {
                self.names[i].remove(&name);
                self.has[i].remove(&name);
                self.has[i].retain(|has, _| leds::collection_of(has).as_ref() != Some(&name));
                self.empty.remove(&name);
            }
            self.has[i].extend(request.initial_resource_versions);
        }
    }

    fn reconnect(&mut self, cache: &mut Cache) {
        (self.names, self.has, self.asked, self.empty) = Default::default();
        cache.on_disconnected();
        self.hear(cache.on_connected());
    }

    /// Sends what is missing of one type; whether there was anything.
    fn send(&mut self, kind: ResourceType, world: &mut World, now: Instant) -> bool {
        let i = kind.index();
        let wanted = |name: &String| match kind {
            ResourceType::LbEndpoint => self.names[i].contains(&leds::collection_of(name).unwrap()),
            _ => kind == ResourceType::Listener || self.names[i].contains(name),
        };
        let current: Vec<Encoded> = self
            .resources
            .iter()
            .filter(|((k, name), _)| *k == kind && self.asked[i] && wanted(name))
            .map(|((_, name), value)| (kind, name.clone(), value.clone()))
            .collect();
        let version = |encoded: &Encoded| config::xds::content_version(&encoded.2);
        let mut changed: Vec<Encoded> =
            current.iter().filter(|e| self.has[i].get(&e.1) != Some(&version(e))).cloned().collect();
        let mut removed: Vec<String> =
            self.has[i].keys().filter(|name| !current.iter().any(|e| e.1 == **name)).cloned().collect();
        if kind == ResourceType::LbEndpoint {
            changed.truncate(2); // a large collection may come in pieces
            let of = |glob: &String| current.iter().any(|e| leds::collection_of(&e.1).as_ref() == Some(glob));
            self.empty.retain(|glob| !of(glob));
            let empty = self.names[i].iter().filter(|glob| !of(glob) && !self.empty.contains(*glob)).cloned();
            let empty: Vec<String> = empty.collect();
            self.empty.extend(empty.clone());
            removed.extend(empty);
        }
        if kind == ResourceType::Cluster {
            let there = |name: &String| current.iter().any(|e| e.1 == *name);
            self.empty.retain(|name| !there(name));
            let absent = self.names[i].iter().filter(|name| !there(name) && !removed.contains(name));
            let absent: Vec<String> =
                absent.filter(|name| self.empty.insert((*name).clone())).cloned().collect();
            removed.extend(absent);
        }
        if changed.is_empty() && removed.is_empty() {
            return false;
        }
        self.has[i].retain(|name, _| !removed.contains(name));
        self.has[i].extend(changed.iter().map(|e| (e.1.clone(), version(e))));
        let removed: Vec<_> = removed.iter().map(|name| (kind, name.as_str())).collect();
        let sent = world.respond(now, &changed, &removed);
        self.hear(sent);
        true
    }

    /// Makes its resources those of a configuration that is whole in itself.
    fn configure(&mut self, rng: &mut fastrand::Rng) {
        self.resources.clear();
        self.whole.clear();
        let versions: Vec<String> = (0..5).filter(|_| rng.bool()).map(|i| format!("v{i}")).collect();
        let mut put = |(kind, name, value): Encoded| _ = self.resources.insert((kind, name), value);
        for version in &versions {
            let name = format!("s/{version}");
            put(cluster(&name));
            if rng.bool() {
                let ports: Vec<u16> = (1..6).filter(|_| rng.bool()).collect();
                self.whole.insert(name.clone(), endpoints(&name, &ports).2);
                put(endpoints(&name, &ports));
                continue;
            }
            let (resources, whole) = endpoints::random(&name, rng);
            self.whole.insert(name, whole);
            resources.into_iter().for_each(&mut put);
        }
        if !versions.is_empty() {
            for gateway in ["edge", "internal"] {
                if rng.u8(0..4) == 0 {
                    continue;
                }
                put(listener(gateway, rng.u16(80..83)));
                let mut used: Vec<&str> =
                    versions.iter().map(String::as_str).filter(|_| rng.bool()).collect();
                used.push(&versions[0]);
                put(routes(gateway, &used));
            }
        }
    }

    /// What should be live once everything has arrived.
    fn assert_same(&self, world: &World, context: &str) {
        let of = |kind: ResourceType| self.resources.iter().filter(move |((k, _), _)| *k == kind);
        let routes = of(ResourceType::RouteConfiguration).map(|(_, v)| decode_route_config(v).unwrap());
        let routes: Vec<RouteConfig> = routes.collect();
        let routed: BTreeSet<&str> = routes.iter().flat_map(RouteConfig::clusters).collect();
        let clusters: BTreeSet<&str> = world.clusters.keys().map(String::as_str).collect();
        assert_eq!(clusters, routed, "{context}: what is routed and nothing else");
        for (name, value) in self.whole.iter().filter(|(name, _)| routed.contains(name.as_str())) {
            let sorted = |assignment: &Assignment| {
                let mut sorted = assignment.clone();
                sorted.endpoints.sort_by_key(|endpoint| endpoint.address);
                sorted
            };
            let live = world.clusters[name].as_deref().map(sorted);
            let whole = decode_assignment(value).ok().as_ref().map(sorted);
            assert_eq!(live, whole, "{context}");
            let table = world.live.load();
            let endpoints = table.clusters[name.as_str()].endpoints.iter().map(|e| AssignedEndpoint {
                id: Arc::clone(&e.load.id),
                address: e.load.address,
                weight: e.weight,
                zone: Arc::clone(&e.zone),
                health: e.health,
            });
            let mut endpoints: Vec<_> = endpoints.collect();
            endpoints.sort_by_key(|endpoint| endpoint.address);
            assert_eq!(Some(endpoints), whole.map(|whole| whole.endpoints), "{context}");
        }
        let live: Vec<_> = world.routes.values().map(|config| (**config).clone()).collect();
        assert_eq!(live, routes, "{context}");
        let want: Vec<_> = of(ResourceType::Listener).map(|(_, v)| decode_listener(v).unwrap()).collect();
        assert_eq!(world.listeners, want, "{context}");
        assert!(world.cache.settled(), "{context}");
        assert!(
            world.cache.withheld.iter().all(VecDeque::is_empty),
            "{context}: every response is acknowledged"
        );
    }
}

#[test]
fn any_interleaving_of_types_changes_and_reconnects_ends_in_the_same_live_state() {
    for seed in 0..300 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let now = Instant::now(); // time stands still: nothing may depend on a timeout
        let (mut world, mut server) = (World::default(), Server::default());
        server.reconnect(&mut world.cache);
        for step in 0..60 {
            match rng.u8(0..10) {
                0 | 1 => server.configure(&mut rng),
                2 => server.reconnect(&mut world.cache),
                _ => _ = server.send(rng.choice(ResourceType::ALL).unwrap(), &mut world, now),
            }
            world.assert_whole(&format!("seed {seed}, step {step}"));
        }
        // Let it settle, still in any order.
        let mut order = ResourceType::ALL;
        loop {
            rng.shuffle(&mut order);
            let sent: Vec<bool> = order.into_iter().map(|kind| server.send(kind, &mut world, now)).collect();
            world.assert_whole(&format!("seed {seed}, at the end"));
            if !sent.contains(&true) {
                break;
            }
        }
        server.assert_same(&world, &format!("seed {seed}"));
        assert_eq!(world.cache.warming_timeouts(), 0, "seed {seed}");
    }
}
