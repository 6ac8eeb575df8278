//! What only the state of the world has: full and partial responses, one version for all of a type,
//! and nonces that decide what a request is about ("Grouping Resources into Responses", "Deleting
//! Resources", "Resource updates").

use envoy_types::pb::envoy::service::discovery::v3::DiscoveryRequest;

use super::support::{CDS, EDS, LDS, Mode, RDS, World};

aggregated_and_a_stream_a_type!(
    STATE_OF_THE_WORLD: listeners_and_clusters_are_always_sent_whole,
    routes_and_assignments_are_sent_as_far_as_they_changed,
    a_cluster_that_goes_is_missing_from_the_next_state,
    a_state_without_resources_removes_the_last,
    the_version_changes_with_the_content_and_only_with_it,
    a_stale_nonce_gets_no_answer_and_acknowledges_nothing,
    a_stale_nonce_does_not_lose_a_change_of_subscription,
    names_may_change_before_the_first_response_is_answered,
    names_may_change_in_the_acknowledgement,
);

/// "the server must include the complete state of the world … even if they did not change".
async fn listeners_and_clusters_are_always_sent_whole(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["cart/v1", "shop/v1"]).await;
    client.follow(LDS, &[]).await;
    world.protocol("cart", "grpc").await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1 +shop/v1");
    world.gateway("second").await;
    assert_eq!(client.accept(LDS).await.shape(), "+edge +second");
    client.silence(&world).await;
}

/// "all resource types except for Listener and Cluster are grouped into responses in the same way as
/// in the incremental protocol variants".
async fn routes_and_assignments_are_sent_as_far_as_they_changed(mode: Mode) {
    let world = World::start().await;
    world.gateway("second").await;
    let mut client = world.client(mode).await;
    client.follow(EDS, &["cart/v1", "shop/v1", "shop/v2"]).await;
    client.follow(RDS, &["edge", "second"]).await;
    world.register("shop/v2", "a").await;
    assert_eq!(client.accept(EDS).await.shape(), "+shop/v2");
    world.split(1, 1).await;
    assert_eq!(client.accept(RDS).await.shape(), "+edge");
    client.silence(&world).await;
}

/// "if a previously seen resource is not present in a new response, that indicates that the resource
/// has been removed".
async fn a_cluster_that_goes_is_missing_from_the_next_state(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &[]).await;
    client.follow(EDS, &["cart/v1"]).await;
    world.delete("services", "cart").await;
    assert_eq!(client.accept(CDS).await.shape(), "+sentinel/v1 +shop/v1 +shop/v2");
    // "the API provides no mechanism for the server to tell the client" of the assignment.
    client.silence(&world).await;
}

/// "a response containing no resources means to delete all resources of that type".
async fn a_state_without_resources_removes_the_last(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(LDS, &[]).await;
    world.delete("routes", "all").await;
    world.delete("gateways", "edge").await;
    assert_eq!(client.accept(LDS).await.shape(), "");
    client.silence(&world).await;
}

/// "Whenever one resource of that type changes, the version is changed"; "not a property of an
/// individual xDS stream but rather a property of the resources themselves".
async fn the_version_changes_with_the_content_and_only_with_it(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(CDS, &[]).await;
    let mut other = world.client(mode).await;
    assert_eq!(other.follow(CDS, &[]).await.version, first.version);
    world.protocol("cart", "grpc").await;
    let second = client.accept(CDS).await;
    assert_ne!(second.version, first.version);
    assert_eq!(other.accept(CDS).await.version, second.version);
    world.protocol("cart", "http").await;
    assert_eq!(client.accept(CDS).await.version, first.version);
    // Another type has a version of its own.
    assert_ne!(client.follow(LDS, &[]).await.version, first.version);
}

/// "The management server should not send a DiscoveryResponse for any DiscoveryRequest that has a
/// stale nonce."
async fn a_stale_nonce_gets_no_answer_and_acknowledges_nothing(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(RDS, &["edge"]).await;
    client.follow(CDS, &["cart/v1"]).await;
    world.split(1, 1).await;
    let second = client.expect(RDS).await;
    // As if the second had not come yet.
    let stale = DiscoveryRequest { response_nonce: first.nonce.clone(), ..client.request(RDS) };
    client.send_state_of_the_world(stale, RDS).await;
    if mode.aggregated {
        client.silence(&world).await;
        let proxy = world.proxy().await;
        assert_eq!(proxy["synced"], false, "{proxy}");
    }
    client.ack(&second).await;
    client.silence(&world).await;
}

/// "Resource updates", figure "EDS update race motivates nonces": the hint was sent before the newer
/// response came; the client answers that one with all it wants.
async fn a_stale_nonce_does_not_lose_a_change_of_subscription(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(EDS, &["cart/v1"]).await;
    world.register("cart/v1", "a").await;
    let second = client.expect(EDS).await;
    let both = vec!["cart/v1".to_owned(), "shop/v1".to_owned()];
    let hint = DiscoveryRequest {
        resource_names: both.clone(),
        response_nonce: first.nonce.clone(),
        ..client.request(EDS)
    };
    client.send_state_of_the_world(hint, EDS).await;
    let answer = DiscoveryRequest {
        resource_names: both,
        version_info: second.version.clone(),
        response_nonce: second.nonce.clone(),
        ..client.request(EDS)
    };
    client.send_state_of_the_world(answer, EDS).await;
    assert_eq!(client.expect(EDS).await.shape(), "+shop/v1");
}

/// "new DiscoveryRequests supersede any prior DiscoveryRequests having the same resource type".
async fn names_may_change_before_the_first_response_is_answered(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(EDS, &["cart/v1"]).await;
    // No nonce is known yet.
    client.subscribe(EDS, &["shop/v1"]).await;
    let mut seen = client.accept(EDS).await.shape();
    if !seen.contains("shop/v1") {
        seen = format!("{seen} {}", client.accept(EDS).await.shape());
    }
    assert_eq!(seen, "+cart/v1 +shop/v1");
    client.silence(&world).await;
}

/// "Envoy may update the list of `resource_names` … in each DiscoveryRequest that ACK/NACKs".
async fn names_may_change_in_the_acknowledgement(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(EDS, &["cart/v1"]).await;
    let first = client.expect(EDS).await;
    let request = DiscoveryRequest {
        resource_names: vec!["cart/v1".to_owned(), "shop/v1".to_owned()],
        version_info: first.version.clone(),
        ..client.request(EDS)
    };
    client.send_state_of_the_world(request, EDS).await;
    assert_eq!(client.accept(EDS).await.shape(), "+shop/v1");
}
