//! Clients that break the protocol or a bound: they pay, and nobody else notices. Beside each, another
//! client on the same server follows changes all the while.
//!
//! - `excess`: too much of what is allowed.
//! - here: the other client, what is no message, and what is beyond a bound.

mod excess;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tonic::Code;

use super::support::{CDS, EDS, Mode, SOON, World, raw};

/// A change has to reach the other client within this, on a busy machine that builds meanwhile: what
/// is shown is that nobody waits for an attacker (a wait for its answers is 3 s), not how fast the server is.
const UNNOTICED: Duration = Duration::from_millis(2_500);

/// Somebody who follows `shop/v2` while others misbehave.
struct Bystander {
    stop: oneshot::Sender<()>,
    following: JoinHandle<Duration>,
    world: Arc<World>,
}

impl Bystander {
    async fn start(world: &Arc<World>) -> Self {
        let mut client = world.client(Mode::INCREMENTAL).await;
        client.follow(CDS, &["shop/v2"]).await;
        client.follow(EDS, &["shop/v2"]).await;
        let (stop, mut stopped) = oneshot::channel();
        let world = Arc::clone(world);
        let following = tokio::spawn({
            let world = Arc::clone(&world);
            async move {
                let mut slowest = Duration::ZERO;
                let mut changes = 0;
                // At least a few, so that each attack has one after it.
                while changes < 10 || stopped.try_recv().is_err() {
                    let began = Instant::now();
                    world.register("shop/v2", "one").await;
                    let received = client.accept(EDS).await;
                    assert_eq!(received.shape(), "+shop/v2");
                    slowest = slowest.max(began.elapsed());
                    changes += 1;
                }
                slowest
            }
        });
        Self { stop, following, world }
    }

    /// What it has noticed.
    async fn unharmed(self) {
        let _ = self.stop.send(());
        let slowest = self.following.await.expect("the other client goes on");
        assert!(slowest < UNNOTICED, "a change took {slowest:?} to reach another client");
        let health = self.world.get("/v1/proxies").await;
        assert!(health.to_string().len() < 1_000_000);
    }
}

async fn world() -> (Arc<World>, Bystander) {
    let world = Arc::new(World::start().await);
    let bystander = Bystander::start(&world).await;
    (world, bystander)
}

fn request(names: impl IntoIterator<Item = String>) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: EDS.to_owned(),
        resource_names_subscribe: names.into_iter().collect(),
        ..Default::default()
    }
}

/// How a raw stream ends, which it has to, soon.
async fn ended(mut responses: tonic::Streaming<Vec<u8>>) -> tonic::Status {
    let end = async {
        loop {
            match responses.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return tonic::Status::ok(""),
                Err(status) => return status,
            }
        }
    };
    timeout(SOON, end).await.expect("the stream ends")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_message_end_that_stream_only() {
    let (world, bystander) = world().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let channel = world.channel().await;
    // Another stream on the same connection.
    let (healthy, mut answers) = raw::open(channel.clone(), raw::INCREMENTAL).await.unwrap();
    healthy.send(request(["cart/v1".to_owned()]).encode_to_vec()).await.unwrap();
    assert!(timeout(SOON, answers.message()).await.unwrap().unwrap().is_some());
    for path in [raw::INCREMENTAL, raw::STATE_OF_THE_WORLD] {
        for _ in 0..100 {
            let (requests, responses) = raw::open(channel.clone(), path).await.unwrap();
            // Field 31, wire type 7, which there is not: never a message.
            let mut garbage = vec![0xff, 0xff, 0xff, 0x01];
            garbage.extend((0..random.usize(..1_000)).map(|_| random.u8(..)));
            requests.send(garbage).await.unwrap();
            let status = ended(responses).await;
            assert_ne!(status.code(), Code::Ok, "it is told that something was wrong");
        }
    }
    healthy.send(request(["shop/v1".to_owned()]).encode_to_vec()).await.unwrap();
    assert!(timeout(SOON, answers.message()).await.unwrap().unwrap().is_some());
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_between_good_requests_ends_the_stream_and_the_connection_goes_on() {
    let (world, bystander) = world().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let channel = world.channel().await;
    for _ in 0..100 {
        let (requests, responses) = raw::open(channel.clone(), raw::INCREMENTAL).await.unwrap();
        for _ in 0..random.usize(1..20) {
            let mut message = request([format!("cart/v{}", random.u8(..4))]).encode_to_vec();
            // One byte in some of them is another.
            if random.bool() {
                let at = random.usize(..message.len());
                message[at] = random.u8(..);
            }
            if requests.send(message).await.is_err() {
                break;
            }
        }
        drop(requests);
        ended(responses).await;
    }
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_does_not_speak_http_is_closed_or_ignored() {
    let (world, bystander) = world().await;
    for bytes in [
        &b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"[..],
        &[0; 4_096],
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff",
    ] {
        let mut stream = TcpStream::connect(world.xds).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        // Closed, with a word of HTTP/2 or without; a reset is as good.
        let closed = timeout(SOON, stream.read_to_end(&mut answer)).await;
        assert!(closed.is_ok(), "{bytes:?} is left open");
    }
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_never_read_cost_nobody_else_anything() {
    let (world, bystander) = world().await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        let (requests, responses) = raw::open(world.channel().await, raw::INCREMENTAL).await.unwrap();
        let everything = DeltaDiscoveryRequest { type_url: CDS.to_owned(), ..Default::default() };
        requests.send(everything.encode_to_vec()).await.unwrap();
        requests.send(request(["shop/v2".to_owned()]).encode_to_vec()).await.unwrap();
        idle.push((requests, responses));
    }
    for i in 0..200 {
        world.register("shop/v2", &format!("e{i}")).await;
        if i % 10 == 0 {
            world.change(CDS).await;
        }
    }
    bystander.unharmed().await;
    drop(idle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_names_in_one_request_are_served_and_held_up_by_nobody() {
    let (world, bystander) = world().await;
    let channel = world.channel().await;
    for path in [raw::INCREMENTAL, raw::STATE_OF_THE_WORLD] {
        let (requests, mut responses) = raw::open(channel.clone(), path).await.unwrap();
        let names: Vec<String> =
            (0..10_000).map(|i| format!("nobody-{i}/v1")).chain(["cart/v1".to_owned()]).collect();
        // The names are field 3 in both forms of a request, and the type field 4 in one, 2 in the other.
        let message = if path == raw::INCREMENTAL {
            request(names).encode_to_vec()
        } else {
            DiscoveryRequest { type_url: EDS.to_owned(), resource_names: names, ..Default::default() }
                .encode_to_vec()
        };
        requests.send(message).await.unwrap();
        let answer = timeout(SOON, responses.message()).await.unwrap().unwrap().unwrap();
        let holds = |name: &[u8]| answer.windows(name.len()).any(|part| part == name);
        assert!(holds(b"cart/v1"));
        assert_eq!(holds(b"nobody-9999/v1"), path == raw::INCREMENTAL);
    }
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_names_than_a_client_may_have_end_its_stream() {
    let (world, bystander) = world().await;
    let (requests, responses) = raw::open(world.channel().await, raw::INCREMENTAL).await.unwrap();
    let sending = tokio::spawn(async move {
        for part in 0..100 {
            let names = (0..1_000).map(|i| format!("nobody-{part}-{i}/v1"));
            if requests.send(request(names).encode_to_vec()).await.is_err() {
                return;
            }
        }
    });
    let status = ended(responses).await;
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    sending.await.unwrap();
    bystander.unharmed().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_beyond_four_mebibytes_ends_that_stream_only() {
    let (world, bystander) = world().await;
    let channel = world.channel().await;
    let (healthy, mut answers) = raw::open(channel.clone(), raw::INCREMENTAL).await.unwrap();
    healthy.send(request(["cart/v1".to_owned()]).encode_to_vec()).await.unwrap();
    assert!(timeout(SOON, answers.message()).await.unwrap().unwrap().is_some());
    for _ in 0..5 {
        let (requests, responses) = raw::open(channel.clone(), raw::INCREMENTAL).await.unwrap();
        requests.send(request(["x".repeat(5 << 20)]).encode_to_vec()).await.unwrap();
        let status = ended(responses).await;
        let expected = [Code::OutOfRange, Code::ResourceExhausted];
        assert!(expected.contains(&status.code()), "{status:?}");
    }
    healthy.send(request(["shop/v1".to_owned()]).encode_to_vec()).await.unwrap();
    assert!(timeout(SOON, answers.message()).await.unwrap().unwrap().is_some());
    bystander.unharmed().await;
}
