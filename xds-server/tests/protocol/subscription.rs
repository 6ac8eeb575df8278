//! "How the client specifies what resources to return", "Subscribing to" and "Unsubscribing from
//! Resources", "Knowing When a Requested Resource Does Not Exist".

use super::support::{CDS, EDS, LDS, Mode, RDS, World, world::named};

const EVERYTHING: &str = "+cart/v1 +sentinel/v1 +shop/v1 +shop/v2";

in_every_variant!(
    who_never_names_a_listener_or_a_cluster_gets_all_of_them,
    a_star_means_everything,
    a_name_beside_a_star_adds_what_the_star_does_not_cover,
    who_goes_from_a_star_to_names_gets_the_names_only,
    who_unsubscribes_from_everything_gets_nothing_more,
    routes_and_assignments_have_no_wildcard,
    a_grpc_client_never_means_everything,
    only_what_is_subscribed_to_is_sent,
    what_is_missing_is_sent_when_it_appears,
    a_name_that_is_dropped_and_taken_again_is_sent_again,
);
aggregated_and_a_stream_a_type!(
    INCREMENTAL: the_incremental_example_of_the_specification,
    a_name_that_is_subscribed_to_again_is_sent_again,
    a_name_that_a_star_has_sent_already_is_sent_again_when_it_is_named,
    an_unsubscription_from_what_was_never_subscribed_to_is_ignored,
    an_unsubscription_alone_is_not_answered,
    a_name_dropped_under_a_star_is_answered_with_the_resource_or_its_removal,
    a_missing_name_is_told_at_once_and_once,
    a_removal_is_told_once,
    a_name_twice_in_a_request_is_sent_once,
);
aggregated_and_a_stream_a_type!(
    STATE_OF_THE_WORLD: the_example_of_the_specification_in_state_of_the_world,
);

/// "For historical reasons, if the client … has never explicitly subscribed to any resource names …
/// the server should treat that identically to … "*"".
async fn who_never_names_a_listener_or_a_cluster_gets_all_of_them(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    assert_eq!(client.follow(CDS, &[]).await.shape(), EVERYTHING);
    assert_eq!(client.follow(LDS, &[]).await.shape(), "+edge");
    world.service("news").await;
    assert!(client.accept(CDS).await.shape().contains("+news/v1"));
    world.gateway("second").await;
    assert!(client.accept(LDS).await.shape().contains("+second"));
    client.silence(&world).await;
}

/// "a "wildcard" subscription, which is triggered when subscribing to the special name "*"".
async fn a_star_means_everything(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    assert_eq!(client.follow(CDS, &["*"]).await.shape(), EVERYTHING);
    assert_eq!(client.follow(LDS, &["*"]).await.shape(), "+edge");
    world.service("news").await;
    assert!(client.accept(CDS).await.shape().contains("+news/v1"));
    client.silence(&world).await;
}

async fn a_name_beside_a_star_adds_what_the_star_does_not_cover(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(CDS, &["*", "cart/v1", "later/v1"]).await;
    let missing = if mode.is_incremental() { " -later/v1" } else { "" };
    assert_eq!(first.shape(), format!("{EVERYTHING}{missing}"));
    client.silence(&world).await;
    world.service("later").await;
    let appeared = client.accept(CDS).await.shape();
    assert!(appeared.contains("+later/v1"), "{appeared}");
    client.silence(&world).await;
}

/// "Server interprets this as unsubscribing to "*" and continuing the existing subscription to "A"".
async fn who_goes_from_a_star_to_names_gets_the_names_only(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["*", "shop/v1"]).await;
    client.unsubscribe(CDS, &["*"]).await;
    if !mode.is_incremental() {
        // Whether the smaller state is said is the server's choice; what it has is not.
        world.register("sentinel/v1", "a").await;
    }
    world.protocol("cart", "grpc").await;
    world.service("news").await;
    let change =
        "kind: Service\nname: shop\nprotocol: h2c\nversions: {v1: {}, v2: {}}\nsplit: {weights: {v1: 1}}";
    world.apply(change).await;
    let mut received = client.accept(CDS).await;
    if !mode.is_incremental() && received.resource("shop/v1").value.is_empty() {
        received = client.accept(CDS).await;
    }
    assert_eq!(received.shape(), "+shop/v1");
    world.protocol("cart", "http").await;
    if mode.is_incremental() {
        client.silence(&world).await;
    }
}

/// "If the list of resource names becomes empty, that means that the client is no longer interested in
/// any resources of the specified type."
async fn who_unsubscribes_from_everything_gets_nothing_more(mode: Mode) {
    for kind in [CDS, LDS] {
        let world = World::start().await;
        let mut client = world.client(mode).await;
        let first = client.follow(kind, &[named(kind)]).await;
        assert_eq!(first.shape(), format!("+{}", named(kind)));
        client.unsubscribe(kind, &[named(kind)]).await;
        world.change(kind).await;
        client.silence(&world).await;
        // And it may come back.
        let again = client.follow(kind, &[named(kind)]).await;
        assert!(again.shape().contains(&format!("+{}", named(kind))), "{}", again.shape());
    }
}

/// "For Listener and Cluster resource types, there is also a "wildcard" subscription": not for others.
async fn routes_and_assignments_have_no_wildcard(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    for kind in [EDS, RDS] {
        client.subscribe(kind, &[]).await;
        client.subscribe(kind, &[named(kind)]).await;
        let mut received = client.accept(kind).await;
        if received.shape().is_empty() {
            // An incremental client may be told that there is nothing for it.
            received = client.accept(kind).await;
        }
        assert_eq!(received.shape(), format!("+{}", named(kind)));
    }
    client.silence(&world).await;
}

/// gRPC names what it wants from the start (gRFC A27): a list without names means nothing at all.
async fn a_grpc_client_never_means_everything(mode: Mode) {
    let world = World::start().await;
    for agent in ["gRPC Go", "gRPC C-core linux", "gRPC Java", "gRPC Node Pure JS"] {
        let mut client = world.client(mode).await;
        client.node.user_agent_name = agent.to_owned();
        client.subscribe(LDS, &[]).await;
        client.subscribe(LDS, &["second"]).await;
        // Its listeners are services, and of those the ones that speak HTTP/2.
        world.protocol("second", "grpc").await;
        let mut received = client.accept(LDS).await.shape();
        while !received.contains("+second") {
            assert!(!received.contains("+edge"), "{agent}: {received}");
            received = client.accept(LDS).await.shape();
        }
        assert_eq!(received, "+second", "{agent}");
        world.delete("services", "second").await;
    }
}

async fn only_what_is_subscribed_to_is_sent(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    assert_eq!(client.follow(CDS, &["cart/v1"]).await.shape(), "+cart/v1");
    assert_eq!(client.follow(EDS, &["cart/v1", "shop/v1"]).await.shape(), "+cart/v1 +shop/v1");
    world.register("shop/v2", "a").await;
    world.service("news").await;
    world.gateway("second").await;
    client.silence(&world).await;
    // "Requesting Multiple Resources on a Single Stream".
    let more = client.follow(EDS, &["shop/v2"]).await;
    assert_eq!((more.shape(), more.endpoints("shop/v2")), ("+shop/v2".to_owned(), 1));
    client.unsubscribe(EDS, &["shop/v1"]).await;
    world.register("shop/v1", "a").await;
    client.silence(&world).await;
}

/// "Management servers must remember the set of resources being requested by the client, and if one of
/// those resources springs into existence later, the server must send an update".
async fn what_is_missing_is_sent_when_it_appears(mode: Mode) {
    for kind in [CDS, EDS, LDS, RDS] {
        let name = if kind == CDS || kind == EDS { "later/v1" } else { "later" };
        let world = World::start().await;
        let mut client = world.client(mode).await;
        client.subscribe(kind, &[named(kind), name]).await;
        let missing = if mode.is_incremental() { format!(" -{name}") } else { String::new() };
        assert_eq!(client.accept(kind).await.shape(), format!("+{}{missing}", named(kind)));
        client.silence(&world).await;
        if kind == CDS || kind == EDS {
            world.service("later").await;
        } else {
            world.gateway("later").await;
        }
        let appeared = client.accept(kind).await.shape();
        assert!(appeared.contains(&format!("+{name}")), "{kind}: {appeared}");
        client.silence(&world).await;
    }
}

/// "the server must resend any newly requested resources, even if it previously sent those resources …
/// and the resources have not changed since that time".
async fn a_name_that_is_dropped_and_taken_again_is_sent_again(mode: Mode) {
    for kind in [CDS, EDS, LDS, RDS] {
        let world = World::start().await;
        world.gateway("second").await;
        let other = if kind == CDS || kind == EDS { "shop/v1" } else { "second" };
        let mut client = world.client(mode).await;
        client.follow(kind, &[named(kind), other]).await;
        client.unsubscribe(kind, &[other]).await;
        client.subscribe(kind, &[other]).await;
        let mut again = client.accept(kind).await.shape();
        if !again.contains(other) {
            // The smaller state of the world, in between.
            again = client.accept(kind).await.shape();
        }
        assert!(again.contains(&format!("+{other}")), "{kind}: {again}");
    }
}

/// The example of "How the client specifies what resources to return", "And in incremental".
async fn the_incremental_example_of_the_specification(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    // "`resource_names_subscribe` unset. Server interprets this as a subscription to "*"."
    assert_eq!(client.follow(CDS, &[]).await.shape(), EVERYTHING);
    // "set to "A". … continuing the existing subscription to "*" and adding … "A"."
    assert_eq!(client.follow(CDS, &["cart/v1"]).await.shape(), "+cart/v1");
    world.service("one").await;
    assert_eq!(client.accept(CDS).await.shape(), "+one/v1");
    // "`resource_names_unsubscribe` set to "*". … continuing the existing subscription to "A"."
    client.unsubscribe(CDS, &["*"]).await;
    world.service("two").await;
    world.protocol("cart", "grpc").await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1");
    // "set to "A". … (i.e., the client has now unsubscribed to all resources)."
    client.unsubscribe(CDS, &["cart/v1"]).await;
    world.protocol("cart", "http").await;
    world.service("three").await;
    client.silence(&world).await;
}

/// The same example, "For example, in SotW".
async fn the_example_of_the_specification_in_state_of_the_world(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    // "`resource_names` unset. Server interprets this as a subscription to "*"."
    assert_eq!(client.follow(CDS, &[]).await.shape(), EVERYTHING);
    // "set to "*" and "A". … continuing the existing subscription to "*" and adding … "A"."
    client.subscribe(CDS, &["*", "cart/v1"]).await;
    world.service("one").await;
    let mut both = client.accept(CDS).await.shape();
    if !both.contains("one/v1") {
        both = client.accept(CDS).await.shape();
    }
    assert_eq!(both, "+cart/v1 +one/v1 +sentinel/v1 +shop/v1 +shop/v2");
    // "set to "A". … unsubscribing to "*" and continuing the existing subscription to "A"."
    client.unsubscribe(CDS, &["*"]).await;
    world.protocol("cart", "grpc").await;
    let named = client.accept(CDS).await.shape();
    assert_eq!(named, "+cart/v1");
    client.unsubscribe(CDS, &["cart/v1"]).await;
    // "unset. … it is not interpreted as a wildcard subscription".
    world.service("two").await;
    world.protocol("cart", "http").await;
    client.silence(&world).await;
}

/// "the server *must* still provide those resources in the response; … the client may have
/// "forgotten" those resources".
async fn a_name_that_is_subscribed_to_again_is_sent_again(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    for kind in [CDS, EDS, LDS, RDS] {
        client.follow(kind, &[named(kind)]).await;
        assert_eq!(client.follow(kind, &[named(kind)]).await.shape(), format!("+{}", named(kind)));
    }
    client.silence(&world).await;
}

async fn a_name_that_a_star_has_sent_already_is_sent_again_when_it_is_named(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["*"]).await;
    assert_eq!(client.follow(CDS, &["cart/v1"]).await.shape(), "+cart/v1");
    client.silence(&world).await;
}

/// "it can simply ignore these phantom unsubscriptions".
async fn an_unsubscription_from_what_was_never_subscribed_to_is_ignored(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["cart/v1"]).await;
    client.unsubscribe(CDS, &["shop/v1", "never-was", "*"]).await;
    client.silence(&world).await;
    world.protocol("cart", "grpc").await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1");
}

/// "a server does not need to send any response if a request does nothing except unsubscribe".
async fn an_unsubscription_alone_is_not_answered(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(RDS, &["edge"]).await;
    client.unsubscribe(RDS, &["edge"]).await;
    world.split(1, 1).await;
    client.silence(&world).await;
}

/// "the server must send a response that includes the specific resource in either the
/// `removed_resources` field … or in the `resources` field".
async fn a_name_dropped_under_a_star_is_answered_with_the_resource_or_its_removal(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["*", "cart/v1", "later/v1"]).await;
    client.unsubscribe(CDS, &["cart/v1"]).await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1");
    client.unsubscribe(CDS, &["later/v1"]).await;
    assert_eq!(client.accept(CDS).await.shape(), "-later/v1");
    client.silence(&world).await;
    // The star still covers it.
    world.protocol("cart", "grpc").await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1");
}

/// "When a resource subscribed to by a client does not exist, the server will send a
/// `DeltaDiscoveryResponse` message that contains that resource's name in … `removed_resources`".
async fn a_missing_name_is_told_at_once_and_once(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    for (kind, name) in [(CDS, "a/v1"), (EDS, "b/v1"), (LDS, "c"), (RDS, "d")] {
        assert_eq!(client.follow(kind, &[name]).await.shape(), format!("-{name}"));
    }
    world.service("other").await;
    world.gateway("other").await;
    client.silence(&world).await;
    // It is asked for again: it is answered again.
    assert_eq!(client.follow(EDS, &["b/v1"]).await.shape(), "-b/v1");
}

/// "Deleting Resources".
async fn a_removal_is_told_once(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &[]).await;
    client.follow(EDS, &["cart/v1"]).await;
    world.delete("services", "cart").await;
    assert_eq!(client.accept(CDS).await.shape(), "-cart/v1");
    assert_eq!(client.accept(EDS).await.shape(), "-cart/v1");
    world.protocol("sentinel", "grpc").await;
    assert_eq!(client.accept(CDS).await.shape(), "+sentinel/v1");
    client.silence(&world).await;
    // It comes back, and goes again.
    world.service("cart").await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1");
    assert_eq!(client.accept(EDS).await.shape(), "+cart/v1");
    world.delete("services", "cart").await;
    assert_eq!(client.accept(CDS).await.shape(), "-cart/v1");
    assert_eq!(client.accept(EDS).await.shape(), "-cart/v1");
    client.silence(&world).await;
}

/// "Duplicate Resource Names": "It is an error for a server to send a single response that contains
/// the same resource name twice."
async fn a_name_twice_in_a_request_is_sent_once(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let twice = client.follow(EDS, &["cart/v1", "cart/v1", "none/v1", "none/v1"]).await;
    assert_eq!(twice.shape(), "+cart/v1 -none/v1");
    client.silence(&world).await;
}
