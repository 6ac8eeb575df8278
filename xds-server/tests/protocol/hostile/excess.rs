//! Too much of what is allowed.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::{
    envoy::{config::core::v3::Node, service::discovery::v3::DiscoveryRequest},
    google::protobuf::{Struct, Value, value::Kind},
};
use prost::Message;
use tokio::{task::JoinHandle, time::timeout};
use tonic::Code;

use super::{
    super::support::{CDS, EDS, Mode, SOON, raw},
    request, world,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_types_in_bulk_are_forgotten() {
    let (world, bystander) = world().await;
    let mut client = world.client(Mode::STATE_OF_THE_WORLD).await;
    for i in 0..20_000 {
        let request = DiscoveryRequest {
            type_url: format!("type.googleapis.com/nobody.knows.Type{i}"),
            resource_names: vec!["a".repeat(100)],
            ..Default::default()
        };
        client.send_state_of_the_world(request, CDS).await;
    }
    // It is still served, or was told that this is too much; nothing in between.
    client.subscribe(EDS, &["cart/v1"]).await;
    assert_eq!(client.accept(EDS).await.shape(), "+cart/v1");
    // Labels are words of the server, never of a client.
    assert!(!world.metrics().await.contains("nobody.knows"));
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_with_thousands_of_streams_shares_its_own_places() {
    let (world, bystander) = world().await;
    let channel = world.channel().await;
    // Those beyond the bound wait on the client's side, or are refused.
    let streams: Vec<_> = (0..2_000)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move {
                let (requests, mut responses) = raw::open(channel, raw::INCREMENTAL).await?;
                let _ = requests.send(request(["shop/v2".to_owned()]).encode_to_vec()).await;
                while responses.message().await?.is_some() {}
                drop(requests);
                Ok::<(), tonic::Status>(())
            })
        })
        .collect();
    let open = || async {
        let proxies = world.get("/v1/proxies").await;
        proxies["proxies"].as_array().unwrap().len()
    };
    let deadline = Instant::now() + SOON;
    while open().await < 10 {
        assert!(Instant::now() < deadline, "no stream is served");
    }
    assert!(open().await <= 200, "{} streams of one connection", open().await);
    streams.iter().for_each(JoinHandle::abort);
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_connections_that_come_and_go_leave_nothing() {
    let (world, bystander) = world().await;
    for _ in 0..20 {
        let many: Vec<_> = (0..50)
            .map(|_| {
                let world = Arc::clone(&world);
                tokio::spawn(async move {
                    let (requests, responses) =
                        raw::open(world.channel().await, raw::INCREMENTAL).await.unwrap();
                    requests.send(request(["cart/v1".to_owned()]).encode_to_vec()).await.unwrap();
                    drop(responses);
                })
            })
            .collect();
        for one in many {
            one.await.unwrap();
        }
    }
    let deadline = Instant::now() + SOON;
    loop {
        let proxies = world.get("/v1/proxies").await;
        if proxies["proxies"].as_array().unwrap().len() == 1 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{} streams are left",
            proxies["proxies"].as_array().unwrap().len()
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_megabyte_of_metadata_is_served_and_shown_in_bounds() {
    let (world, bystander) = world().await;
    let text = Value { kind: Some(Kind::StringValue("m".repeat(1 << 20))) };
    let metadata = Struct { fields: [("all".to_owned(), text)].into() };
    for mode in [Mode::INCREMENTAL, Mode::STATE_OF_THE_WORLD] {
        let mut client = world.client(mode).await;
        client.node = Node {
            id: "n".repeat(100_000),
            cluster: "c".repeat(100_000),
            user_agent_name: "u".repeat(100_000),
            client_features: vec!["f".repeat(1_000); 100],
            metadata: Some(metadata.clone()),
            ..Default::default()
        };
        client.subscribe(EDS, &["cart/v1"]).await;
        assert_eq!(client.accept(EDS).await.shape(), "+cart/v1");
        let shown = world.get("/v1/proxies").await.to_string();
        assert!(shown.contains("nnn") && shown.len() < 20_000, "{} bytes", shown.len());
        assert!(world.get("/v1/events").await.to_string().len() < 100_000);
    }
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nonce_of_a_megabyte_answers_nothing() {
    let (world, bystander) = world().await;
    for mode in [Mode::INCREMENTAL, Mode::STATE_OF_THE_WORLD] {
        let mut client = world.client(mode).await;
        let mut first = client.follow(CDS, &["cart/v1"]).await;
        first.nonce = "9".repeat(1 << 20);
        client.ack(&first).await;
        client.nack(&first, "of nothing").await;
        client.subscribe(EDS, &["cart/v1"]).await;
        assert_eq!(client.accept(EDS).await.shape(), "+cart/v1");
    }
    let proxies = world.get("/v1/proxies").await;
    assert!(proxies["proxies"].as_array().unwrap().iter().all(|proxy| proxy["nacks"] == 0), "{proxies}");
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_without_end_ends_its_stream() {
    let (world, bystander) = world().await;
    for mode in [Mode::INCREMENTAL, Mode::STATE_OF_THE_WORLD] {
        let mut client = world.client(mode).await;
        client.subscribe(EDS, &[&"n".repeat(1 << 20)]).await;
        let status = client.ended(EDS).await;
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    }
    bystander.unharmed().await;
}

/// A client that refuses everything, at once and for ever, is no loop.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_refuses_everything_is_not_sent_more_than_there_is() {
    let (world, bystander) = world().await;
    for mode in [Mode::INCREMENTAL, Mode::STATE_OF_THE_WORLD] {
        let mut client = world.client(mode).await;
        client.subscribe(CDS, &[]).await;
        for _ in 0..10 {
            let refused = client.expect(CDS).await;
            client.nack(&refused, "never").await;
            world.change(CDS).await;
        }
        let last = client.expect(CDS).await;
        client.nack(&last, "never").await;
        client.silence(&world).await;
    }
    bystander.unharmed().await;
}

/// A flood of subscriptions and unsubscriptions, none of whose answers is waited for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_requests_is_worked_off_in_turn() {
    let (world, bystander) = world().await;
    let (requests, mut responses) = raw::open(world.channel().await, raw::INCREMENTAL).await.unwrap();
    let flood = tokio::spawn(async move {
        for i in 0..50_000 {
            let mut one = request([format!("nobody-{}/v1", i % 100)]);
            one.resource_names_unsubscribe = vec![format!("nobody-{}/v1", (i + 50) % 100)];
            if requests.send(one.encode_to_vec()).await.is_err() {
                return;
            }
        }
    });
    let reading = tokio::spawn(async move { while let Ok(Some(_)) = responses.message().await {} });
    timeout(Duration::from_mins(1), flood).await.unwrap().unwrap();
    reading.abort();
    bystander.unharmed().await;
}
