//! "ACK/NACK and resource type instance version", and what is said of every request: node and type.

use envoy_types::pb::{
    envoy::{
        config::core::v3::Node,
        service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    },
    google::rpc,
};
use tonic::Code;

use super::support::{CDS, EDS, LDS, Mode, RDS, World, world::named};

in_every_variant!(
    an_acknowledgement_is_not_answered,
    a_refused_version_is_not_sent_again_and_a_newer_one_is,
    a_refusal_is_told_with_its_reason_until_a_newer_version_is_accepted,
    the_reason_of_a_refusal_is_kept_in_bounds,
    names_asked_for_together_with_a_refusal_are_answered,
    the_node_is_needed_in_the_first_message_only,
);
in_both_aggregated!(
    a_refusal_of_one_type_holds_back_no_other,
    a_refused_resource_holds_back_no_other_of_its_type,
    a_request_without_a_type_ends_the_stream,
    an_unknown_type_is_answered_and_the_others_go_on,
);

/// "When to send an update": "should only send updates … when the resources … have changed".
async fn an_acknowledgement_is_not_answered(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    for kind in [CDS, EDS, LDS, RDS] {
        let first = client.follow(kind, &[named(kind)]).await;
        assert_eq!(first.shape(), format!("+{}", named(kind)));
    }
    client.silence(&world).await;
    assert_eq!(world.proxy().await["nacks"], 0);
}

/// "NACK", figure "ACK after NACK": what was refused is not offered again, and version Y is.
async fn a_refused_version_is_not_sent_again_and_a_newer_one_is(mode: Mode) {
    for kind in [CDS, EDS, LDS, RDS] {
        let world = World::start().await;
        let mut client = world.client(mode).await;
        client.follow(kind, &[named(kind)]).await;
        world.change(kind).await;
        let refused = client.expect(kind).await;
        client.nack(&refused, "not this one").await;
        client.silence(&world).await;

        world.change(kind).await;
        let newer = client.accept(kind).await;
        assert_eq!(newer.shape(), format!("+{}", named(kind)));
        assert_ne!(newer.resource(named(kind)).value, refused.resource(named(kind)).value);
        client.silence(&world).await;
    }
}

/// "ACK and NACK semantics summary": the reason is for people.
async fn a_refusal_is_told_with_its_reason_until_a_newer_version_is_accepted(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(CDS, &["cart/v1"]).await;
    let first = client.expect(CDS).await;
    client.nack(&first, "cart/v1: no such thing").await;
    client.silence_after_refusal(&world).await;

    let proxy = world.proxy().await;
    assert_eq!((&proxy["nacks"], &proxy["refused"][0]["type"]), (&1.into(), &"CDS".into()), "{proxy}");
    assert_eq!(proxy["refused"][0]["reason"], "cart/v1: no such thing");
    let events = world.get("/v1/events").await;
    let told = events["events"].as_array().unwrap().iter().find(|event| event["event"] == "nack").unwrap();
    assert_eq!(told["actor"], "client", "{told}");
    assert!(told["detail"].as_str().unwrap().contains("no such thing"), "{told}");
    let metrics = world.metrics().await;
    let counted = metrics
        .lines()
        .any(|line| line.contains("nacks") && line.contains(r#"type="CDS""#) && line.ends_with(" 1"));
    assert!(counted, "{metrics}");

    world.protocol("cart", "grpc").await;
    client.accept(CDS).await;
    client.silence(&world).await;
    let proxy = world.proxy().await;
    assert_eq!((&proxy["nacks"], proxy.get("refused")), (&1.into(), None), "{proxy}");
}

async fn the_reason_of_a_refusal_is_kept_in_bounds(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(CDS, &["cart/v1"]).await;
    let first = client.expect(CDS).await;
    client.nack(&first, &"é".repeat(500_000)).await;
    client.silence_after_refusal(&world).await;
    let proxy = world.proxy().await;
    let reason = proxy["refused"][0]["reason"].as_str().unwrap();
    assert!((100..=4_096).contains(&reason.len()), "{} bytes", reason.len());
    assert!(world.get("/v1/events").await.to_string().len() < 50_000);
}

/// "NACK", figure "detecting NACK from `error_detail`": a refusal and a change of subscription may be
/// in one request.
async fn names_asked_for_together_with_a_refusal_are_answered(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(RDS, &["edge"]).await;
    let first = client.expect(RDS).await;
    world.gateway("second").await;
    let error_detail = Some(rpc::Status { message: "bad".to_owned(), ..Default::default() });
    let (type_url, response_nonce) = (RDS.to_owned(), first.nonce.clone());
    if mode.is_incremental() {
        let resource_names_subscribe = vec!["second".to_owned()];
        let request = DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            error_detail,
            resource_names_subscribe,
            ..Default::default()
        };
        client.send_incremental(request, RDS).await;
    } else {
        let resource_names = vec!["edge".to_owned(), "second".to_owned()];
        let request =
            DiscoveryRequest { type_url, response_nonce, error_detail, resource_names, ..Default::default() };
        client.send_state_of_the_world(request, RDS).await;
    }
    let second = client.expect(RDS).await;
    assert_eq!(second.shape(), "+second", "the refused one is not sent again");
    assert_eq!(world.proxy().await["nacks"], 1);
}

/// "Basic Protocol Overview": "Only the first request on a stream is guaranteed to carry the node
/// identifier", and "it is sufficient to only check the first message".
async fn the_node_is_needed_in_the_first_message_only(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(CDS, &["cart/v1"]).await;
    assert_eq!(first.shape(), "+cart/v1");
    // Another node on the same stream is of no effect.
    let node = Some(Node { id: "impostor".to_owned(), ..Default::default() });
    let type_url = CDS.to_owned();
    if mode.is_incremental() {
        let resource_names_subscribe = vec!["shop/v1".to_owned()];
        let request =
            DeltaDiscoveryRequest { node, type_url, resource_names_subscribe, ..Default::default() };
        client.send_incremental(request, CDS).await;
    } else {
        let resource_names = vec!["cart/v1".to_owned(), "shop/v1".to_owned()];
        let request = DiscoveryRequest { node, resource_names, ..client.request(CDS) };
        client.send_state_of_the_world(request, CDS).await;
    }
    assert!(client.accept(CDS).await.shape().contains("+shop/v1"));
    let proxies = world.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["node"], "client", "{proxies}");
    assert!(!proxies.to_string().contains("impostor"), "{proxies}");
}

/// "NACK": "the presence of `error_detail`", not a version that differs.
async fn an_older_version_without_an_error_is_no_refusal(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let first = client.follow(EDS, &["cart/v1"]).await;
    world.register("cart/v1", "a").await;
    let second = client.expect(EDS).await;
    let request = DiscoveryRequest { version_info: first.version.clone(), ..client.request(EDS) };
    assert_eq!(request.response_nonce, second.nonce);
    client.send_state_of_the_world(request, EDS).await;
    client.silence(&world).await;
    assert_eq!(world.proxy().await["nacks"], 0);
}

/// The same from the other side: with `error_detail` it is a refusal, whatever the version.
async fn an_error_with_the_new_version_is_a_refusal(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(CDS, &["cart/v1"]).await;
    let first = client.expect(CDS).await;
    let error_detail = Some(rpc::Status::default());
    let request =
        DiscoveryRequest { version_info: first.version.clone(), error_detail, ..client.request(CDS) };
    client.send_state_of_the_world(request, CDS).await;
    client.silence(&world).await;
    assert_eq!(world.proxy().await["nacks"], 1);
}

aggregated_and_a_stream_a_type!(
    STATE_OF_THE_WORLD: an_older_version_without_an_error_is_no_refusal,
    an_error_with_the_new_version_is_a_refusal,
);

/// "Aggregated Discovery Service": "multiple independent … sequences multiplexed via the type URL".
async fn a_refusal_of_one_type_holds_back_no_other(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(LDS, &["edge"]).await;
    let first = client.expect(LDS).await;
    client.nack(&first, "edge: in use").await;
    assert_eq!(client.follow(CDS, &["cart/v1"]).await.shape(), "+cart/v1");
    assert_eq!(client.follow(EDS, &["cart/v1"]).await.shape(), "+cart/v1");
    world.register("cart/v1", "a").await;
    assert_eq!(client.accept(EDS).await.endpoints("cart/v1"), 1);
    world.protocol("cart", "grpc").await;
    assert_eq!(client.accept(CDS).await.shape(), "+cart/v1");
}

async fn a_refused_resource_holds_back_no_other_of_its_type(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(EDS, &["cart/v1", "shop/v1"]).await;
    world.register("cart/v1", "a").await;
    let refused = client.expect(EDS).await;
    client.nack(&refused, "cart/v1: bad").await;
    world.register("shop/v1", "a").await;
    let other = client.accept(EDS).await;
    assert_eq!(other.endpoints("shop/v1"), 1);
    assert!(!other.shape().contains("cart/v1"), "{}: the refused one is not sent again", other.shape());
}

/// `type_url` is "required" on aggregated streams (discovery.proto, `DiscoveryRequest.type_url`).
async fn a_request_without_a_type_ends_the_stream(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["cart/v1"]).await;
    if mode.is_incremental() {
        client.send_incremental(DeltaDiscoveryRequest::default(), CDS).await;
    } else {
        client.send_state_of_the_world(DiscoveryRequest::default(), CDS).await;
    }
    let status = client.ended(CDS).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("type_url"), "{status}");
}

/// A client may know types that this server does not. Incremental: nothing of it exists, which is
/// said at once ("Knowing When a Requested Resource Does Not Exist").
async fn an_unknown_type_is_answered_and_the_others_go_on(mode: Mode) {
    const UNKNOWN: &str = "type.googleapis.com/envoy.service.runtime.v3.Runtime";
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(UNKNOWN, &["rtds"]).await;
    if mode.is_incremental() {
        assert_eq!(client.accept(UNKNOWN).await.shape(), "-rtds");
    }
    assert_eq!(client.follow(CDS, &["cart/v1"]).await.shape(), "+cart/v1");
    client.silence(&world).await;
}
