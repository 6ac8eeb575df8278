//! A gRPC stream for each type ("RPC Services and Methods for Each Variant"): what is particular to it.
//! What holds in every variant is in the other files.

use envoy_types::pb::envoy::service::{
    cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient,
    discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient,
    secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
};
use tonic::Code;

use super::support::{CDS, EDS, LDS, Mode, RDS, Received, World, world::named};

/// Runs a test over a stream a type, incremental and state of the world.
macro_rules! in_both {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use super::super::support::Mode;

            #[tokio::test]
            async fn incremental() {
                super::$test(Mode::INCREMENTAL.a_stream_a_type()).await;
            }

            #[tokio::test]
            async fn state_of_the_world() {
                super::$test(Mode::STATE_OF_THE_WORLD.a_stream_a_type()).await;
            }
        }
    )+};
}

in_both!(
    each_service_serves_its_type,
    the_type_may_be_left_out,
    another_type_is_refused,
    streams_of_one_type_do_not_wait_for_each_other,
    one_client_may_have_several_streams_of_a_type,
);

async fn each_service_serves_its_type(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    for kind in [CDS, EDS, LDS, RDS] {
        assert_eq!(client.follow(kind, &[named(kind)]).await.shape(), format!("+{}", named(kind)));
    }
    for kind in [CDS, EDS, LDS, RDS] {
        world.change(kind).await;
        assert_eq!(client.accept(kind).await.shape(), format!("+{}", named(kind)));
    }
}

/// "If type_url is empty … on singleton xDS APIs … it is implicit" (discovery.proto).
async fn the_type_may_be_left_out(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    if mode.is_incremental() {
        client.send_incremental(DeltaDiscoveryRequest::default(), CDS).await;
    } else {
        client.send_state_of_the_world(DiscoveryRequest::default(), CDS).await;
    }
    let first = client.expect(CDS).await;
    assert!(first.shape().contains("+cart/v1"), "{}", first.shape());
    let response_nonce = first.nonce;
    if mode.is_incremental() {
        let answer = DeltaDiscoveryRequest { response_nonce, ..Default::default() };
        client.send_incremental(answer, CDS).await;
    } else {
        let answer = DiscoveryRequest { response_nonce, version_info: first.version, ..Default::default() };
        client.send_state_of_the_world(answer, CDS).await;
    }
    world.service("news").await;
    assert!(client.expect(CDS).await.shape().contains("+news/v1"));
}

async fn another_type_is_refused(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let type_url = LDS.to_owned();
    if mode.is_incremental() {
        client.send_incremental(DeltaDiscoveryRequest { type_url, ..Default::default() }, CDS).await;
    } else {
        client.send_state_of_the_world(DiscoveryRequest { type_url, ..Default::default() }, CDS).await;
    }
    let status = client.ended(CDS).await;
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
}

/// "the former approach … offers an eventual consistency model": a stream that does not answer holds
/// back nothing of another.
async fn streams_of_one_type_do_not_wait_for_each_other(mode: Mode) {
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.subscribe(CDS, &[]).await;
    let unanswered = client.expect(CDS).await;
    assert_eq!(client.follow(LDS, &[]).await.shape(), "+edge");
    assert_eq!(client.follow(RDS, &["edge"]).await.shape(), "+edge");
    world.split(1, 1).await;
    assert_eq!(client.accept(RDS).await.shape(), "+edge");
    client.ack(&unanswered).await;
}

/// "Requesting Multiple Resources on a Single Stream": "Envoy may … generate a distinct stream for each
/// resource of a given type".
async fn one_client_may_have_several_streams_of_a_type(mode: Mode) {
    let world = World::start().await;
    let (mut one, mut other) = (world.client(mode).await, world.client(mode).await);
    assert_eq!(one.follow(EDS, &["cart/v1"]).await.shape(), "+cart/v1");
    assert_eq!(other.follow(EDS, &["shop/v1"]).await.shape(), "+shop/v1");
    world.register("cart/v1", "a").await;
    assert_eq!(one.accept(EDS).await.shape(), "+cart/v1");
    other.silence(&world).await;
}

/// "Secret Discovery Service": it is there, and says what it does not have.
#[tokio::test]
async fn secrets_have_a_service_of_their_own() {
    let world = World::start().await;
    let request =
        DeltaDiscoveryRequest { resource_names_subscribe: vec!["none".to_owned()], ..Default::default() };
    let mut client = SecretDiscoveryServiceClient::new(world.channel().await);
    let requests = tokio_stream::StreamExt::chain(tokio_stream::once(request), tokio_stream::pending());
    let mut responses = client.delta_secrets(requests).await.unwrap().into_inner();
    let response = Received::from(responses.message().await.unwrap().unwrap());
    assert_eq!(response.shape(), "-none");
}

/// REST polling is not served; a client that tries gets an answer and not a hanging call.
#[tokio::test]
async fn a_unary_fetch_is_refused_in_words() {
    let world = World::start().await;
    let channel = world.channel().await;
    let mut clusters = ClusterDiscoveryServiceClient::new(channel.clone());
    let refused = clusters.fetch_clusters(DiscoveryRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let mut listeners = ListenerDiscoveryServiceClient::new(channel);
    let refused = listeners.fetch_listeners(DiscoveryRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
}
