//! A stream ends and the client comes back: to the same server, to one that was restarted, to another
//! ("Incremental xDS", on reconnect; "ACK/NACK and resource type instance version", on new streams).

use std::collections::BTreeMap;

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::support::{CDS, Client, EDS, LDS, Mode, RDS, World, world::named};

aggregated_and_a_stream_a_type!(
    INCREMENTAL: a_client_that_comes_back_gets_only_the_difference,
    a_client_that_holds_everything_gets_no_resource,
    what_was_removed_meanwhile_is_told,
    a_restarted_server_sends_only_the_difference,
    another_server_with_the_same_content_sends_only_the_difference,
    what_a_client_holds_and_does_not_ask_for_is_not_spoken_of,
    a_version_is_a_hash_of_the_content,
    versions_of_a_later_request_are_not_taken_for_the_first,
);
aggregated_and_a_stream_a_type!(
    STATE_OF_THE_WORLD: a_new_stream_is_served_whatever_version_the_client_had,
);
in_every_variant!(
    a_nonce_of_another_stream_is_tolerated,
    a_nonce_that_was_never_given_acknowledges_nothing,
    nonces_belong_to_a_stream,
);
aggregated_and_a_stream_a_type!(
    INCREMENTAL: a_stale_nonce_does_not_lose_a_change_of_subscription,
);

/// Whatever comes until `last` is named, as one shape; a response without resources is allowed.
async fn until_named(client: &mut Client, kind: &'static str, last: &str) -> String {
    let mut seen = Vec::new();
    loop {
        let shape = client.accept(kind).await.shape();
        let done = shape.contains(last);
        seen.extend((!shape.is_empty()).then_some(shape));
        if done {
            return seen.join(" ");
        }
    }
}

/// "On reconnect the Incremental xDS client may tell the server of its known resources to avoid
/// resending them over the network".
async fn a_client_that_comes_back_gets_only_the_difference(mode: Mode) {
    let world = World::start().await;
    let mut before = world.client(mode).await;
    let clusters = before.follow(CDS, &[]).await.versions();
    let assignments = before.follow(EDS, &["cart/v1", "shop/v1"]).await.versions();
    drop(before);
    world.protocol("cart", "grpc").await;
    world.register("shop/v1", "a").await;

    let mut after = world.client(mode).await;
    after.resume(CDS, &[], &clusters).await;
    assert_eq!(after.accept(CDS).await.shape(), "+cart/v1");
    // "the reconnecting client must provide the server with all resource names it is interested in".
    after.resume(EDS, &["cart/v1", "shop/v1", "shop/v2"], &assignments).await;
    let different = after.accept(EDS).await;
    // Over one stream the assignment of the cluster that was sent again is too: it warms anew.
    let cart = if mode.aggregated { "+cart/v1 " } else { "" };
    assert_eq!(different.shape(), format!("{cart}+shop/v1 +shop/v2"));
    after.silence(&world).await;
}

async fn a_client_that_holds_everything_gets_no_resource(mode: Mode) {
    let world = World::start().await;
    world.gateway("second").await;
    for kind in [CDS, EDS, LDS, RDS] {
        let mut before = world.client(mode).await;
        let versions = before.follow(kind, &[named(kind)]).await.versions();
        drop(before);
        let mut after = world.client(mode).await;
        after.resume(kind, &[named(kind)], &versions).await;
        let other = if kind == CDS || kind == EDS { "shop/v1" } else { "second" };
        after.subscribe(kind, &[other]).await;
        assert_eq!(until_named(&mut after, kind, other).await, format!("+{other}"), "{kind}");
    }
}

async fn what_was_removed_meanwhile_is_told(mode: Mode) {
    let world = World::start().await;
    let mut before = world.client(mode).await;
    let clusters = before.follow(CDS, &[]).await.versions();
    let assignments = before.follow(EDS, &["cart/v1"]).await.versions();
    drop(before);
    world.delete("services", "cart").await;
    let mut after = world.client(mode).await;
    after.resume(CDS, &[], &clusters).await;
    assert_eq!(after.accept(CDS).await.shape(), "-cart/v1");
    after.resume(EDS, &["cart/v1"], &assignments).await;
    assert_eq!(after.accept(EDS).await.shape(), "-cart/v1");
    after.silence(&world).await;
}

async fn a_restarted_server_sends_only_the_difference(mode: Mode) {
    let mut world = World::start().await;
    world.register("shop/v1", "a").await;
    let mut before = world.client(mode).await;
    let clusters = before.follow(CDS, &[]).await.versions();
    let assignments = before.follow(EDS, &["shop/v1", "shop/v2"]).await.versions();
    world.restart().await;
    drop(before);

    let mut after = world.client(mode).await;
    after.resume(CDS, &[], &clusters).await;
    world.service("news").await;
    assert_eq!(until_named(&mut after, CDS, "news/v1").await, "+news/v1");
    after.resume(EDS, &["shop/v1", "shop/v2"], &assignments).await;
    world.register("shop/v2", "b").await;
    assert_eq!(until_named(&mut after, EDS, "shop/v2").await, "+shop/v2");
    after.silence(&world).await;
}

async fn another_server_with_the_same_content_sends_only_the_difference(mode: Mode) {
    let (one, other) = (World::start().await, World::start().await);
    // It has come there another way, at another revision.
    other.service("passing").await;
    other.delete("services", "passing").await;
    other.service("news").await;
    let mut before = one.client(mode).await;
    let clusters = before.follow(CDS, &[]).await.versions();
    let mut after = other.client(mode).await;
    after.resume(CDS, &[], &clusters).await;
    assert_eq!(after.accept(CDS).await.shape(), "+news/v1");
    after.silence(&other).await;
}

async fn what_a_client_holds_and_does_not_ask_for_is_not_spoken_of(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let old = "0".repeat(16);
    let held = ["shop/v1", "gone/v1"].map(|name| (name.to_owned(), old.clone()));
    client.resume(EDS, &["cart/v1"], &BTreeMap::from(held)).await;
    assert_eq!(client.accept(EDS).await.shape(), "+cart/v1");
    client.silence(&world).await;
}

/// Equal content has an equal version, wherever and whenever; a version is never used for other content.
async fn a_version_is_a_hash_of_the_content(mode: Mode) {
    let mut world = World::start().await;
    let version = async |world: &World| {
        let mut client = world.client(mode).await;
        client.follow(CDS, &["cart/v1"]).await.resource("cart/v1").version.clone()
    };
    let http = version(&world).await;
    world.protocol("cart", "grpc").await;
    let grpc = version(&world).await;
    assert_ne!(http, grpc);
    world.restart().await;
    assert_eq!(version(&world).await, grpc);
    world.protocol("cart", "http").await;
    assert_eq!(version(&world).await, http);
    let other = World::start().await;
    assert_eq!(version(&other).await, http);
}

/// `initial_resource_versions` is for "the first … request" of a type (discovery.proto): later a client
/// has no need to say what it holds, and what is subscribed to is sent.
async fn versions_of_a_later_request_are_not_taken_for_the_first(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let versions = client.follow(EDS, &["cart/v1"]).await.versions();
    client.resume(EDS, &["cart/v1"], &versions).await;
    assert_eq!(client.accept(EDS).await.shape(), "+cart/v1");
}

/// "the client's initial request on the new stream should indicate the most recent version seen";
/// sending all of it again is allowed, sending less than what is new is not.
async fn a_new_stream_is_served_whatever_version_the_client_had(mode: Mode) {
    let world = World::start().await;
    let mut before = world.client(mode).await;
    let first = before.follow(EDS, &["cart/v1"]).await;
    drop(before);
    for version_info in [first.version, "of another server".to_owned()] {
        let mut after = world.client(mode).await;
        let request = DiscoveryRequest {
            type_url: EDS.to_owned(),
            version_info,
            resource_names: vec!["cart/v1".to_owned(), "shop/v1".to_owned()],
            ..Default::default()
        };
        after.send_state_of_the_world(request, EDS).await;
        assert!(after.expect(EDS).await.shape().contains("+shop/v1"));
    }
}

/// "the nonce is valid only in the context of an individual xDS stream": old clients send it anyway.
async fn a_nonce_of_another_stream_is_tolerated(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let (type_url, response_nonce) = (CDS.to_owned(), "7 of another stream".to_owned());
    if mode.is_incremental() {
        let request = DeltaDiscoveryRequest { type_url, response_nonce, ..Default::default() };
        client.send_incremental(request, CDS).await;
    } else {
        let version_info = "7".to_owned();
        let request = DiscoveryRequest { type_url, response_nonce, version_info, ..Default::default() };
        client.send_state_of_the_world(request, CDS).await;
    }
    assert!(client.accept(CDS).await.shape().contains("+cart/v1"));
    client.silence(&world).await;
}

async fn a_nonce_that_was_never_given_acknowledges_nothing(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(LDS, &[]).await;
    client.follow(RDS, &["edge"]).await;
    world.split(1, 1).await;
    let mut open = client.expect(RDS).await;
    let nonce = std::mem::replace(&mut open.nonce, "never given".to_owned());
    client.ack(&open).await;
    // Asked and answered on the same stream, so the request above has been seen.
    client.subscribe(RDS, &["edge"]).await;
    if mode.aggregated && mode.is_incremental() {
        client.follow(EDS, &["cart/v1"]).await;
        assert_eq!(world.proxy().await["synced"], false, "what was never answered is not applied");
    }
    open.nonce = nonce;
    client.ack(&open).await;
}

async fn nonces_belong_to_a_stream(mode: Mode) {
    let world = World::start().await;
    let (mut one, mut other) = (world.client(mode).await, world.client(mode).await);
    one.follow(CDS, &[]).await;
    other.follow(CDS, &[]).await;
    world.service("news").await;
    let (of_one, of_other) = (one.expect(CDS).await, other.expect(CDS).await);
    // An acknowledgement on one stream says nothing about the other.
    one.nack(&of_one, "not mine").await;
    other.ack(&of_other).await;
    one.silence(&world).await;
    other.silence(&world).await;
    let proxies = world.get("/v1/proxies").await;
    let proxies = proxies["proxies"].as_array().unwrap();
    assert_eq!(proxies.iter().filter(|proxy| proxy["nacks"] == 1).count(), 1, "{proxies:?}");
}

/// "the server must honor changes to the subscription state even if the nonce is stale".
async fn a_stale_nonce_does_not_lose_a_change_of_subscription(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(EDS, &["cart/v1"]).await;
    world.register("cart/v1", "a").await;
    let second = client.accept(EDS).await;
    assert_ne!(first.nonce, second.nonce);
    for nonce in [first.nonce, "unknown".to_owned()] {
        let request = DeltaDiscoveryRequest {
            type_url: EDS.to_owned(),
            response_nonce: nonce,
            resource_names_subscribe: vec!["shop/v1".to_owned()],
            ..Default::default()
        };
        client.send_incremental(request, EDS).await;
        assert_eq!(client.accept(EDS).await.shape(), "+shop/v1");
        client.unsubscribe(EDS, &["shop/v1"]).await;
    }
    client.silence(&world).await;
}
