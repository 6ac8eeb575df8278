//! What the server says of its clients: CSDS (envoy/service/status/v3/csds.proto) and the admin view.

use envoy_types::pb::envoy::service::status::v3::{
    ClientStatusRequest, ConfigStatus,
    client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
};

use super::support::{CDS, Client, EDS, Mode, World};

in_every_variant!(every_resource_is_shown_as_it_stands);

/// Status and acknowledged version of a resource, in both views, which have to agree.
async fn standing(world: &World, kind: &str, name: &str) -> (String, Option<String>) {
    let shown = world.get("/v1/proxies/client/resources").await;
    let short = if kind == CDS { "CDS" } else { "EDS" };
    let streams = shown["streams"].as_array().unwrap().iter();
    let resources = streams.flat_map(|stream| stream["resources"].as_array().unwrap());
    let found = resources.clone().find(|r| r["type"] == short && r["name"] == name);
    let found = found.unwrap_or_else(|| panic!("no {name}: {shown}"));

    let mut csds = ClientStatusDiscoveryServiceClient::new(world.channel().await);
    let answer = csds.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let mut configs = answer.config.iter().flat_map(|client| &client.generic_xds_configs);
    let config = configs.find(|config| config.type_url == kind && config.name == name).unwrap();
    let status = ConfigStatus::try_from(config.config_status).unwrap();
    assert_eq!(status.as_str_name(), found["status"], "{found}");
    assert_eq!(config.error_state.as_ref().map(|state| state.details.as_str()), found["reason"].as_str());
    (found["status"].as_str().unwrap().to_owned(), found["acknowledged"].as_str().map(str::to_owned))
}

async fn every_resource_is_shown_as_it_stands(mode: Mode) {
    let world = World::start().await;
    let mut client: Client = world.client(mode).await;
    client.subscribe(CDS, &["cart/v1", "none/v1"]).await;
    let first = client.expect(CDS).await;
    let status = async |name| standing(&world, CDS, name).await.0;
    assert_eq!(status("cart/v1").await, "STALE", "it is not acknowledged yet");
    client.ack(&first).await;
    // Answered in order: the acknowledgement has been seen.
    client.follow(EDS, &["cart/v1"]).await;
    client.silence(&world).await;
    let (synced, acknowledged) = standing(&world, CDS, "cart/v1").await;
    assert_eq!(synced, "SYNCED");
    assert_eq!(status("none/v1").await, "NOT_SENT");
    assert_eq!(standing(&world, EDS, "cart/v1").await.0, "SYNCED");

    world.change(CDS).await;
    let refused = client.expect(CDS).await;
    if mode.aggregated {
        client.accept(EDS).await;
    }
    client.nack(&refused, "cart/v1: not this one").await;
    client.silence_after_refusal(&world).await;
    // What it goes on with is what it acknowledged before.
    let (error, before) = standing(&world, CDS, "cart/v1").await;
    assert_eq!((error.as_str(), before), ("ERROR", acknowledged));
}
