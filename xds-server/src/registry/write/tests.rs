use config::{Health, Lease, manifest};

use super::*;
use crate::registry::fit::keep_splits;

fn apply(world: &World, text: &str) -> (World, Result<Effect, Refusal>) {
    let mut after = world.clone();
    let documents = manifest::parse("m", text).unwrap();
    let done = perform(&mut after, &Write::Apply(documents), 1);
    (after, done)
}

fn world(text: &str) -> World {
    let (world, done) = apply(&World::default(), text);
    done.unwrap();
    world
}

fn register(world: &mut World, cluster: &str, id: &str) {
    let endpoint = Endpoint {
        id: id.parse().unwrap(),
        address: "127.0.0.1:1".parse().unwrap(),
        weight: 1,
        zone: None,
        health: Health::Ready,
        lease: Lease::Permanent,
    };
    let write = Write::PutEndpoint { cluster: cluster.parse().unwrap(), endpoint };
    perform(world, &write, 2).unwrap();
}

fn faults(world: &World, text: &str) -> Vec<String> {
    match apply(world, text).1 {
        Err(Refusal::Invalid(errors)) => errors.iter().map(ToString::to_string).collect(),
        other => panic!("{other:?}"),
    }
}

const SHOP: &str =
    "kind: Service\nname: shop\nversions: {v1: {}, v2: {}, v3: {}}\nsplit: {weights: {v1: 1}}\n";
const WITHOUT_V2: &str = "kind: Service\nname: shop\nversions: {v1: {}}\n";

#[test]
fn a_version_with_running_instances_is_not_dropped_by_the_way() {
    let mut world = world(SHOP);
    register(&mut world, "shop/v2", "a");
    let one =
        "m:3: versions: version v2 still has 1 registered endpoint; remove it first, or keep the version";
    assert_eq!(faults(&world, WITHOUT_V2), [one]);
    register(&mut world, "shop/v2", "b");
    register(&mut world, "shop/v2", "c");
    let three =
        "m:3: versions: version v2 still has 3 registered endpoints; remove them first, or keep the version";
    assert_eq!(faults(&world, WITHOUT_V2), [three]);
    for id in ["a", "b", "c"] {
        world.take_endpoint(&"shop/v2".parse().unwrap(), &id.parse().unwrap());
    }
    assert!(apply(&world, WITHOUT_V2).1.unwrap().is_change());
}

#[test]
fn a_service_with_running_instances_is_not_deleted() {
    let mut world = world(SHOP);
    for (cluster, id) in [("shop/v1", "a"), ("shop/v1", "b"), ("shop/v2", "a")] {
        register(&mut world, cluster, id);
    }
    let delete = Write::Delete { object: DocumentRef::Service("shop".parse().unwrap()), if_match: None };
    let refused = perform(&mut world.clone(), &delete, 3).unwrap_err();
    let why = "Service shop still has 3 registered endpoints (v1: 2, v2: 1); remove them first";
    assert_eq!(refused, Refusal::InUse(why.to_owned()));
    for (cluster, id) in [("shop/v1", "a"), ("shop/v1", "b"), ("shop/v2", "a")] {
        world.take_endpoint(&cluster.parse().unwrap(), &id.parse().unwrap());
    }
    assert!(perform(&mut world, &delete, 3).unwrap().is_change());
}

#[test]
fn gateways_share_no_place_unless_the_proxy_chooses_it() {
    let gateway =
        |name: &str, port: u16| format!("kind: Gateway\nname: {name}\nlisten: 127.0.0.1:{port}\n---\n");
    let world = world(&(gateway("a", 80) + &gateway("b", 0) + &gateway("c", 0)));
    assert_eq!(faults(&world, &gateway("d", 80)), ["m:3: listen: 127.0.0.1:80 is taken by gateway a"]);
    assert_eq!(faults(&world, &(gateway("d", 81) + &gateway("e", 81))).len(), 2);
    // The same gateway again, one that leaves for another place, and one that takes what is free now.
    for fine in [gateway("a", 80), gateway("d", 0), gateway("a", 81) + &gateway("d", 80)] {
        assert!(apply(&world, &fine).1.is_ok(), "{fine}");
    }
}

#[test]
fn as_many_faults_are_reported_as_anybody_reads() {
    let route = |i: usize| format!("kind: Route\nname: r{i}\ngateway: g\nrules: [{{service: s}}]\n---\n");
    let text = (0..150).map(route).collect::<Vec<_>>().concat();
    assert_eq!(faults(&World::default(), &text).len(), manifest::MAX_ERRORS + 1);
}

#[test]
fn a_live_split_is_kept_while_its_versions_are_there() {
    let world = world(SHOP);
    let kept = |split: &str, text: &str| {
        let mut world = world.clone();
        let weights = serde_json::from_str(split).unwrap();
        let service = "shop".parse().unwrap();
        let write = Write::Split { service, split: Split::new(weights).unwrap(), if_match: None };
        perform(&mut world, &write, 2).unwrap();
        let mut documents = manifest::parse("m", text).unwrap();
        keep_splits(&world, &mut documents);
        match documents.remove(0).document {
            Document::Service(service) => serde_json::to_string(service.split.weights()).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(kept(r#"{"v1":1,"v2":3}"#, SHOP), r#"{"v1":1,"v2":3}"#);
    assert_eq!(kept(r#"{"v1":5,"v2":0}"#, WITHOUT_V2), r#"{"v1":5}"#);
    assert_eq!(kept(r#"{"v1":1,"v2":3}"#, WITHOUT_V2), r#"{"v1":1}"#);
    let other = WITHOUT_V2.replace("shop", "new");
    assert_eq!(kept(r#"{"v2":3}"#, &other), r#"{"v1":1}"#);
}

#[test]
fn another_tls_of_a_service_makes_other_clusters_and_nothing_else() {
    let clear = world(SHOP);
    let secured = format!("{SHOP}tls: {{ca: /ca.pem, sni: shop.internal}}\n");
    let (world, effect) = apply(&clear, &secured);
    let touched = effect.unwrap().touched;
    assert_eq!((touched.clusters.len(), touched.assignments.len(), touched.routes.len()), (3, 0, 0));
    assert!(!apply(&world, &secured).1.unwrap().is_change());
}
