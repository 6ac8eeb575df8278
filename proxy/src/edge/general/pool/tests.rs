#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    future::Future,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use super::*;
use crate::{
    cluster,
    load::{VersionLoad, shard::PerCore},
};

/// An endpoint without a network: its connections are put into the pool by hand.
struct World {
    peer: Peer,
    endpoint: Arc<EndpointLoad>,
    /// The connections behind the pool's, which have to live.
    kept: Vec<client::Connection<tokio::io::DuplexStream, Bytes>>,
}

type Asked = Pin<Box<dyn Future<Output = Option<Grant>>>>;

impl World {
    fn new() -> Self {
        let endpoint = Arc::new(EndpointLoad::new("a".into(), ([127, 0, 0, 1], 1).into()));
        Self { peer: Peer::in_clear(endpoint.generation), endpoint, kept: Vec::new() }
    }

    async fn connection(&mut self) -> Connection {
        let (ours, _theirs) = tokio::io::duplex(1_000_000);
        let (send, connection) = builder().handshake(ours).await.unwrap();
        self.kept.push(connection);
        Connection { send, state: State::new(self.peer) }
    }

    fn ask(&self) -> Asked {
        let (peer, endpoint) = (self.peer, Arc::clone(&self.endpoint));
        Box::pin(async move { wait(peer, &endpoint).await })
    }
}

fn poll(asked: &mut Asked) -> Poll<Option<Grant>> {
    asked.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

#[track_caller]
fn turn(asked: &mut Asked) -> Turn {
    let Poll::Ready(Some(Grant::Turn(turn))) = poll(asked) else { panic!("no turn") };
    turn
}

#[track_caller]
fn place(asked: &mut Asked) -> Lease {
    let Poll::Ready(Some(Grant::Place(lease))) = poll(asked) else { panic!("no place") };
    lease
}

#[tokio::test(flavor = "current_thread")]
async fn nobody_goes_on_before_the_endpoint_has_said_how_many_it_takes() {
    let mut world = World::new();
    let mut asked: Vec<Asked> = (0..5).map(|_| world.ask()).collect();
    let turn = turn(&mut asked[0]);
    assert!(asked[1..].iter_mut().all(|asked| poll(asked).is_pending()));
    let connection = world.connection().await;
    let state = Arc::clone(&connection.state);
    let first = admit(turn, connection, &world.endpoint);
    assert!(asked[1..].iter_mut().all(|asked| poll(asked).is_pending()), "its limit is not known");
    assert!(take(world.peer).is_none());

    assert!(state.learn(3));
    settle(world.peer);
    let second = place(&mut asked[1]);
    let third = place(&mut asked[2]);
    // It is full: whoever is in front makes another one, and a stream that ends helps the one behind.
    let _turn = super::tests::turn(&mut asked[3]);
    assert!(poll(&mut asked[4]).is_pending());
    drop(second);
    drop(place(&mut asked[4]));
    assert!(take(world.peer).is_some());
    drop((first, third));
    assert!(take(world.peer).is_some());
}

#[tokio::test(flavor = "current_thread")]
async fn who_waits_gets_places_in_order_and_who_goes_passes_its_own_on() {
    let mut world = World::new();
    let connection = world.connection().await;
    connection.state.learn(1);
    let mut first = world.ask();
    let lease = admit(turn(&mut first), connection, &world.endpoint);
    let mut makes = world.ask();
    let _turn = turn(&mut makes);
    let mut asked: Vec<Asked> = (0..5).map(|_| world.ask()).collect();
    assert!(asked.iter_mut().all(|asked| poll(asked).is_pending()));
    drop(asked.remove(1));
    drop(lease);
    assert!(take(world.peer).is_none(), "nobody passes those who wait");
    // The first one has been given the place and goes without having looked; the second has gone.
    drop(asked.remove(0));
    for asked in &mut asked {
        drop(place(asked));
    }
    assert!(take(world.peer).is_some());
}

#[tokio::test(flavor = "current_thread")]
async fn a_turn_that_comes_to_nothing_is_passed_on_and_a_full_endpoint_is_let_be() {
    let mut world = World::new();
    let (mut one, mut two, mut three) = (world.ask(), world.ask(), world.ask());
    let failed = turn(&mut one);
    assert!(poll(&mut two).is_pending() && poll(&mut three).is_pending());
    assert!(!failed.failed(), "there is no other connection");
    let connection = world.connection().await;
    connection.state.learn(1);
    let lease = admit(turn(&mut two), connection, &world.endpoint);
    assert!(turn(&mut three).failed(), "there is one");
    let mut four = world.ask();
    assert!(poll(&mut four).is_pending(), "no other is tried for a while");
    drop(lease);
    place(&mut four);
}

fn cluster(port: u16) -> (Held<Cluster>, Arc<EndpointLoad>) {
    let assignment = cluster::tests::assignment("a/v1", &[(port, config::Health::Ready)]);
    let load = Arc::new(VersionLoad::new("a/v1"));
    let cluster = Cluster::new(
        cluster::tests::config("a/v1"),
        load,
        Some(&assignment),
        None,
        &mut cluster::Left::new(),
    );
    let cluster = PerCore::new(cluster).hold();
    let endpoint = cluster::tests::record(&cluster, port);
    (cluster, endpoint)
}

#[tokio::test(flavor = "current_thread")]
async fn who_makes_a_connection_takes_a_place_that_becomes_free_meanwhile() {
    let (cluster, endpoint) = cluster(1);
    let mut world =
        World { peer: cluster.peer(&endpoint), endpoint: Arc::clone(&endpoint), kept: Vec::new() };
    let connection = world.connection().await;
    connection.state.learn(1);
    let held = admit(turn(&mut world.ask()), connection, &endpoint);
    let mut cx = Context::from_waker(Waker::noop());
    let mut asked = pin!(lease(&cluster, &endpoint));
    assert!(asked.as_mut().poll(&mut cx).is_pending());
    drop(held);
    // Nothing else had a turn, so the further connection was not even begun.
    assert!(matches!(asked.as_mut().poll(&mut cx), Poll::Ready(Ok(_))));
    clear();
}

#[tokio::test(flavor = "current_thread")]
async fn a_connection_is_made_for_those_who_wait_though_who_began_it_has_gone() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (cluster, endpoint) = cluster(listener.local_addr().unwrap().port());
    let mut cx = Context::from_waker(Waker::noop());
    let (mut one, mut two) = (Box::pin(lease(&cluster, &endpoint)), Box::pin(lease(&cluster, &endpoint)));
    assert!(one.as_mut().poll(&mut cx).is_pending() && two.as_mut().poll(&mut cx).is_pending());
    drop(one);
    tokio::time::timeout(std::time::Duration::from_secs(10), two).await.unwrap().unwrap();
    listener.accept().await.unwrap();
    assert!(pin!(listener.accept()).poll(&mut cx).is_pending(), "it is the only one");
    clear();
}

#[tokio::test(flavor = "current_thread")]
async fn connections_to_an_endpoint_are_bounded() {
    let mut world = World::new();
    let mut leases = Vec::new();
    let mut refused = loop {
        let mut asked = world.ask();
        let Poll::Ready(granted) = poll(&mut asked) else { break asked };
        let Some(Grant::Turn(turn)) = granted else { panic!("it is full") };
        let connection = world.connection().await;
        connection.state.learn(1);
        leases.push(admit(turn, connection, &world.endpoint));
        tokio::task::yield_now().await; // or the runtime has this test wait for its own sake
    };
    assert_eq!(leases.len(), 128);
    // One that is over makes room for another.
    let over = leases.swap_remove(50);
    over.retire();
    drop(over);
    drop(turn(&mut refused));
}

#[tokio::test(flavor = "current_thread")]
async fn who_waits_when_its_endpoint_leaves_makes_a_connection_for_itself() {
    let mut world = World::new();
    let (departures, told) = watch::channel(());
    let mut keeping = pin!(keep(told));
    let mut look = || assert!(keeping.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    look();
    let mut first = world.ask();
    let turned = turn(&mut first);
    let connection = world.connection().await;
    let lease = admit(turned, connection, &world.endpoint);
    let (mut one, mut two) = (world.ask(), world.ask());
    assert!(poll(&mut one).is_pending() && poll(&mut two).is_pending());
    world.endpoint.gone.store(true, Ordering::Release);
    departures.send_replace(());
    look();
    for asked in [&mut one, &mut two] {
        let connection = world.connection().await;
        drop(admit(turn(asked), connection, &world.endpoint));
    }
    drop(lease);
    assert!(POOL.with_borrow(|pool| !pool.contains_key(&world.peer)), "it is forgotten");
}
