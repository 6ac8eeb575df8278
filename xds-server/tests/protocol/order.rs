//! What has to come before what ("Eventual consistency considerations", make before break), and what
//! warming needs ("Resource warming").

use std::time::{Duration, Instant};

use super::support::{CDS, Client, EDS, LDS, Mode, RDS, World};

in_both_aggregated!(
    everything_asked_for_at_once_comes_in_order,
    routes_to_a_new_cluster_wait_until_the_cluster_is_acknowledged,
    a_listener_to_a_new_cluster_waits_until_the_cluster_is_acknowledged,
    what_is_no_longer_needed_goes_last,
    routes_wait_three_seconds_for_a_client_that_never_acknowledges,
    clusters_that_keep_changing_do_not_hold_routes_back_for_ever,
    a_cluster_that_changes_gets_its_assignment_again,
    a_cluster_without_endpoints_gets_an_empty_assignment,
    a_shift_between_known_clusters_waits_for_nothing,
    one_transaction_is_one_response_a_type,
);

/// `shop` with these versions, all traffic to the last.
fn shop(versions: &[&str]) -> String {
    let each: Vec<String> =
        versions.iter().map(|v| format!("{v}: {{endpoints: [\"10.9.9.9:80\"]}}")).collect();
    let last = versions.last().unwrap();
    format!(
        "kind: Service\nname: shop\nversions: {{{}}}\nsplit: {{weights: {{{last}: 1}}}}\n",
        each.join(", ")
    )
}

/// A client that follows all of it, as a proxy does.
async fn proxy(world: &World, mode: Mode) -> Client {
    let mut client = world.client(mode).await;
    client.follow(CDS, &[]).await;
    client.follow(EDS, &["shop/v1", "shop/v2"]).await;
    client.follow(LDS, &[]).await;
    client.follow(RDS, &["edge"]).await;
    client
}

/// "CDS updates (if any) must always be pushed first. EDS updates … after CDS … LDS … after
/// corresponding CDS/EDS updates. RDS … after CDS/EDS/LDS".
async fn everything_asked_for_at_once_comes_in_order(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    // Asked for in the wrong order, while the first answer is not acknowledged.
    client.subscribe(CDS, &[]).await;
    let clusters = client.expect(CDS).await;
    client.subscribe(RDS, &["edge"]).await;
    client.subscribe(LDS, &[]).await;
    client.subscribe(EDS, &["shop/v1"]).await;
    assert_eq!(client.accept(EDS).await.shape(), "+shop/v1");
    client.silence(&world).await;
    client.ack(&clusters).await;
    assert_eq!(client.accept(LDS).await.shape(), "+edge");
    assert_eq!(client.accept(RDS).await.shape(), "+edge");
    client.silence(&world).await;
}

/// "the management plane must ensure that clusters referenced by a route are in place, before pushing
/// the updates for a route": in place is when the client says so.
async fn routes_to_a_new_cluster_wait_until_the_cluster_is_acknowledged(mode: Mode) {
    let world = World::start().await;
    let mut client = proxy(&world, mode).await;
    world.apply(&shop(&["v1", "v2", "v3"])).await;
    let clusters = client.expect(CDS).await;
    assert!(clusters.shape().contains("+shop/v3"), "{}", clusters.shape());
    let assignments = client.accept(EDS).await;
    assert_eq!(assignments.shape(), "+shop/v1 +shop/v2");
    // As Envoy does: it asks for the assignment while the cluster warms, and acknowledges then.
    assert_eq!(client.follow(EDS, &["shop/v3"]).await.shape(), "+shop/v3");
    client.silence(&world).await;
    client.ack(&clusters).await;
    assert_eq!(client.accept(RDS).await.shape(), "+edge");
    client.silence(&world).await;
}

/// "LDS updates must arrive after corresponding CDS/EDS updates."
async fn a_listener_to_a_new_cluster_waits_until_the_cluster_is_acknowledged(mode: Mode) {
    let world = World::start().await;
    let mut client = proxy(&world, mode).await;
    let service = "kind: Service\nname: fresh\nversions: {v1: {}}\n";
    let gateway = "kind: Gateway\nname: second\nlisten: 127.0.0.1:8081\n";
    let route = "kind: Route\nname: fresh\ngateway: second\nrules: [{service: fresh}]\n";
    world.apply(&format!("{service}---\n{gateway}---\n{route}")).await;
    let clusters = client.expect(CDS).await;
    assert!(clusters.shape().contains("+fresh/v1"), "{}", clusters.shape());
    client.silence(&world).await;
    client.ack(&clusters).await;
    let listeners = client.accept(LDS).await;
    assert!(listeners.shape().contains("+second"), "{}", listeners.shape());
    assert_eq!(client.follow(RDS, &["second"]).await.shape(), "+second");
}

/// "Stale CDS clusters and related EDS endpoints (ones no longer being referenced) can then be removed."
async fn what_is_no_longer_needed_goes_last(mode: Mode) {
    let world = World::start().await;
    let mut client = proxy(&world, mode).await;
    // In one transaction a version comes, takes everything, and the others go.
    world.apply(&shop(&["v3"])).await;
    let clusters = client.accept(CDS).await;
    assert!(clusters.shape().contains("+shop/v3"), "{}", clusters.shape());
    assert!(!clusters.shape().contains('-'), "{}: nothing goes yet", clusters.shape());
    if !mode.is_incremental() {
        assert!(clusters.shape().contains("+shop/v1 +shop/v2"), "{}: nothing goes yet", clusters.shape());
    }
    let routes = client.expect(RDS).await;
    client.silence(&world).await;
    client.ack(&routes).await;
    let gone = client.accept(CDS).await;
    if mode.is_incremental() {
        assert_eq!(gone.shape(), "-shop/v1 -shop/v2");
        assert_eq!(client.accept(EDS).await.shape(), "-shop/v1 -shop/v2");
    } else {
        assert_eq!(gone.shape(), "+cart/v1 +sentinel/v1 +shop/v3");
    }
    client.silence(&world).await;
}

/// The wait is bounded: a client that never answers is served all the same.
async fn routes_wait_three_seconds_for_a_client_that_never_acknowledges(mode: Mode) {
    let world = World::start().await;
    let mut client = proxy(&world, mode).await;
    let began = Instant::now();
    world.apply(&shop(&["v1", "v2", "v3"])).await;
    client.expect(CDS).await;
    client.expect(EDS).await;
    client.expect(RDS).await;
    let waited = began.elapsed();
    assert!(waited >= Duration::from_millis(2_900), "{waited:?}");
    assert!(waited < Duration::from_secs(6), "{waited:?}");
}

/// Changes of clusters that never end are no reason for routes to wait without end.
async fn clusters_that_keep_changing_do_not_hold_routes_back_for_ever(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["cart/v1"]).await;
    client.follow(RDS, &["edge"]).await;
    world.change(CDS).await;
    let mut open = client.expect(CDS).await;
    world.split(1, 1).await;
    let began = Instant::now();
    // There is always a response for clusters on its way.
    loop {
        world.change(CDS).await;
        client.ack(&open).await;
        let next = client.either(CDS, RDS).await;
        if next.kind == RDS {
            break;
        }
        open = next;
        assert!(began.elapsed() < Duration::from_secs(6), "routes never came");
    }
}

/// "Warming of `Cluster` is completed only when a new `ClusterLoadAssignment` response is supplied by
/// management server even though there is no change in endpoints."
async fn a_cluster_that_changes_gets_its_assignment_again(mode: Mode) {
    let world = World::start().await;
    world.register("cart/v1", "a").await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &[]).await;
    client.follow(EDS, &["cart/v1", "shop/v1"]).await;
    world.protocol("cart", "grpc").await;
    let clusters = client.expect(CDS).await;
    let assignments = client.accept(EDS).await;
    assert_eq!((assignments.shape().as_str(), assignments.endpoints("cart/v1")), ("+cart/v1", 1));
    client.ack(&clusters).await;
    client.silence(&world).await;
}

/// "Warming of `Cluster` is completed only when a `ClusterLoadAssignment` response is supplied".
async fn a_cluster_without_endpoints_gets_an_empty_assignment(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &[]).await;
    let first = client.follow(EDS, &["cart/v1"]).await;
    assert_eq!((first.shape().as_str(), first.endpoints("cart/v1")), ("+cart/v1", 0));
    world.register("cart/v1", "a").await;
    assert_eq!(client.accept(EDS).await.endpoints("cart/v1"), 1);
    world.remove("cart/v1", "a").await;
    let last = client.accept(EDS).await;
    assert_eq!((last.shape().as_str(), last.endpoints("cart/v1")), ("+cart/v1", 0));
}

/// "xDS updates can be pushed independently if no new clusters/routes/listeners are added".
async fn a_shift_between_known_clusters_waits_for_nothing(mode: Mode) {
    let world = World::start().await;
    let mut client = proxy(&world, mode).await;
    world.register("shop/v1", "a").await;
    let assignments = client.expect(EDS).await;
    // An assignment that is not acknowledged is no cluster that warms.
    let began = Instant::now();
    world.split(1, 1).await;
    client.accept(RDS).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    client.ack(&assignments).await;
    client.silence(&world).await;
}

/// "When to send an update": what is written together is sent together.
async fn one_transaction_is_one_response_a_type(mode: Mode) {
    let world = World::start().await;
    let mut client = proxy(&world, mode).await;
    let services: Vec<String> =
        (0..20).map(|i| format!("kind: Service\nname: many-{i}\nversions: {{v1: {{}}}}\n")).collect();
    world.apply(&services.join("---\n")).await;
    let clusters = client.accept(CDS).await;
    assert_eq!(clusters.shape().matches("+many-").count(), 20);
    client.silence(&world).await;
}
