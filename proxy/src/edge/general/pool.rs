//! Connections of HTTP/2 to endpoints, a core: each is driven by one task, and shared by requests up to
//! what it takes. Those of an endpoint that left take no more, and close when their streams have ended.

use std::{
    cell::RefCell,
    collections::HashMap,
    future::poll_fn,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use h2::{
    Ping, PingPong,
    client::{self, SendRequest},
};
use tokio::sync::watch;

use super::{
    super::{lean::incoming::Incoming, upstream},
    wire::Wire,
};
use crate::{
    cluster::{Cluster, Peer},
    load::EndpointLoad,
    worker::timer::Timer,
};

/// Requests at once on one connection, if the endpoint takes as many.
const STREAMS: usize = 100;
/// Bytes of a response that wait in a stream for a slow client. Twice what is moved at once.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Bytes that wait in a connection: so many that slow clients never hold up the others on it.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// Bytes of a request that wait in a stream.
const SEND_BUFFER: usize = 32 * 1024;
/// Bytes of a response's head.
const HEAD: u32 = 64 * 1024;
/// After so long without a word a connection with streams is asked whether it is alive, and a ping has
/// so long to be answered.
const PING: Duration = Duration::from_secs(10);
/// Pings in a row with nothing but their answers between them. Servers of gRPC take more for an attack
/// (gRPC proposal A8); TCP's own keep-alive has to do then.
const PINGS: u32 = 2;
/// Bytes of the answer to a ping (RFC 9113 §6.7).
const PONG: u64 = 17;
/// Rounds of [`PING`] after which an idle connection is closed: 30 s.
const IDLE: u32 = 3;

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::default());
}

/// An endpoint that came back, or is protected in another way now, gets no connection of before.
type Pool = HashMap<Peer, Bucket, foldhash::fast::RandomState>;

struct Bucket {
    endpoint: Arc<EndpointLoad>,
    connections: Vec<Connection>,
    /// Whether somebody makes another connection; the others wait for it.
    connecting: bool,
    waiting: Vec<Waker>,
}

struct Connection {
    send: SendRequest<Bytes>,
    state: Arc<State>,
}

/// What a connection's task and its streams know of it.
#[derive(Debug, Default)]
struct State {
    streams: AtomicUsize,
    /// Whether a response came on it.
    used: AtomicBool,
    /// Whether it takes no more.
    closed: AtomicBool,
}

/// A place for one stream on a connection.
pub(super) struct Lease {
    send: SendRequest<Bytes>,
    state: Arc<State>,
    reused: bool,
}

impl Lease {
    fn new(connection: &Connection) -> Self {
        let Connection { send, state } = connection;
        state.streams.fetch_add(1, Ordering::Relaxed);
        let reused = state.used.load(Ordering::Relaxed);
        Self { send: send.clone(), state: Arc::clone(state), reused }
    }

    pub(super) fn connection(&mut self) -> &mut SendRequest<Bytes> {
        &mut self.send
    }

    /// It takes no more streams.
    pub(super) fn retire(&self) {
        self.state.closed.store(true, Ordering::Relaxed);
    }

    /// A response came.
    pub(super) fn note_answer(&self) {
        self.state.used.store(true, Ordering::Relaxed);
    }

    /// Whether a response had come on the connection before.
    pub(super) fn is_reused(&self) -> bool {
        self.reused
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.state.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    fn has_room(&self) -> bool {
        let most = self.send.current_max_send_streams().min(STREAMS);
        self.state.streams.load(Ordering::Relaxed) < most && !self.state.closed.load(Ordering::Relaxed)
    }
}

/// A place on a connection that there is.
pub(super) fn take(peer: Peer) -> Option<Lease> {
    POOL.with_borrow_mut(|pool| pool.get_mut(&peer)?.take())
}

impl Bucket {
    fn take(&mut self) -> Option<Lease> {
        self.connections.retain(|connection| !connection.state.closed.load(Ordering::Relaxed));
        self.connections.iter().find(|connection| connection.has_room()).map(Lease::new)
    }
}

/// A place on a connection to `endpoint`, which is made if there is none. One at a time: requests that
/// come together share it. The caller bounds the time.
///
/// # Errors
/// When it cannot be connected to.
pub(super) async fn lease(cluster: &Cluster, endpoint: &Arc<EndpointLoad>) -> io::Result<Lease> {
    let peer = cluster.peer(endpoint);
    let turn = poll_fn(|cx| {
        POOL.with_borrow_mut(|pool| {
            let bucket = pool.entry(peer).or_insert_with(|| Bucket {
                endpoint: Arc::clone(endpoint),
                connections: Vec::new(),
                connecting: false,
                waiting: Vec::new(),
            });
            if let Some(lease) = bucket.take() {
                return Poll::Ready(Ok(lease));
            }
            if bucket.connecting {
                if !bucket.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                    bucket.waiting.push(cx.waker().clone());
                }
                return Poll::Pending;
            }
            bucket.connecting = true;
            Poll::Ready(Err(Turn { peer }))
        })
    });
    let _turn = match turn.await {
        Ok(lease) => return Ok(lease),
        Err(turn) => turn,
    };
    let stream = upstream::connect(cluster, endpoint).await?;
    let wire = Wire::new(stream, Incoming::default());
    let handshake = builder().handshake::<_, Bytes>(wire.clone()).await;
    let (send, mut connection) = handshake.map_err(io::Error::other)?;
    let state = Arc::new(State::default());
    let pings = connection.ping_pong();
    let driver = Driver { connection, wire, pings, state: Arc::clone(&state), peer };
    tokio::spawn(driver.run());
    let connection = Connection { send, state };
    let lease = Lease::new(&connection);
    if !endpoint.gone.load(Ordering::Acquire) {
        POOL.with_borrow_mut(|pool| {
            if let Some(bucket) = pool.get_mut(&peer) {
                bucket.connections.push(connection);
            }
        });
    }
    Ok(lease)
}

/// The one who makes a connection.
struct Turn {
    peer: Peer,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The thread may be ending.
        let waiting = POOL.try_with(|pool| {
            let mut pool = pool.borrow_mut();
            let bucket = pool.get_mut(&self.peer)?;
            bucket.connecting = false;
            Some(std::mem::take(&mut bucket.waiting))
        });
        waiting.ok().flatten().unwrap_or_default().into_iter().for_each(Waker::wake);
        forget_empty(self.peer);
    }
}

/// Forgets an endpoint without connections.
fn forget_empty(peer: Peer) {
    _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let empty = |bucket: &Bucket| {
            bucket.connections.is_empty() && !bucket.connecting && bucket.waiting.is_empty()
        };
        if pool.get(&peer).is_some_and(empty) {
            pool.remove(&peer);
        }
    });
}

fn builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(STREAMS)
        .max_header_list_size(HEAD)
        .max_send_buffer_size(SEND_BUFFER);
    builder
}

/// The task of a connection.
struct Driver {
    connection: client::Connection<Wire, Bytes>,
    wire: Wire,
    pings: Option<PingPong>,
    state: Arc<State>,
    peer: Peer,
}

impl Driver {
    /// Moves frames until the connection is over.
    async fn run(self) {
        let Self { mut connection, wire, mut pings, state, peer } = self;
        let timer = Timer::new();
        timer.set(PING);
        let mut alive = Alive::default();
        poll_fn(|cx| {
            if std::future::Future::poll(std::pin::Pin::new(&mut connection), cx).is_ready() {
                return Poll::Ready(());
            }
            if matches!(wire.poll_send(cx), Poll::Ready(Err(_))) {
                return Poll::Ready(());
            }
            if let Some(pings) = &mut pings {
                if alive.asked && pings.poll_pong(cx).is_ready() {
                    alive.asked = false;
                }
                if timer.has_passed(cx) {
                    match alive.after_a_while(wire.received(), state.streams.load(Ordering::Relaxed)) {
                        Verdict::Fine => {}
                        // It is written when the connection is polled, which this asks for.
                        Verdict::Ask => alive.asked = pings.send_ping(Ping::opaque()).is_ok(),
                        // Closes when nobody can send on it any more.
                        Verdict::Idle => close(peer, &state),
                        Verdict::Dead => return Poll::Ready(()),
                    }
                    timer.set(PING);
                    _ = timer.has_passed(cx);
                }
            }
            Poll::Pending
        })
        .await;
        close(peer, &state);
    }
}

/// Takes a connection out of the pool.
fn close(peer: Peer, state: &Arc<State>) {
    state.closed.store(true, Ordering::Relaxed);
    // The thread may be ending.
    let closed = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        let bucket = pool.get_mut(&peer)?;
        let place = bucket.connections.iter().position(|c| Arc::ptr_eq(&c.state, state))?;
        Some(bucket.connections.swap_remove(place))
    });
    drop(closed); // wakes its task, while the pool is not borrowed
    forget_empty(peer);
}

/// Whether a connection lives.
#[derive(Debug, Default)]
struct Alive {
    /// Whether a ping was not answered yet.
    asked: bool,
    /// Pings in a row with nothing but their answers between them.
    pings: u32,
    /// Rounds in a row without a stream.
    idle: u32,
    received: u64,
}

/// What to do about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Fine,
    Ask,
    Idle,
    Dead,
}

impl Alive {
    /// After [`PING`], with the bytes that were received and the streams there are.
    fn after_a_while(&mut self, received: u64, streams: usize) -> Verdict {
        let came = received - std::mem::replace(&mut self.received, received);
        if came > PONG {
            self.pings = 0;
        }
        self.idle = if streams == 0 && came <= PONG { self.idle + 1 } else { 0 };
        if self.asked && came == 0 {
            return Verdict::Dead;
        }
        if self.idle >= IDLE {
            return Verdict::Idle;
        }
        if came > PONG || streams == 0 || self.asked || self.pings >= PINGS {
            return Verdict::Fine;
        }
        self.pings += 1;
        Verdict::Ask
    }
}

/// Closes connections when their endpoint leaves: idle ones at once, others after their streams.
pub(crate) async fn keep(mut departures: watch::Receiver<()>) {
    while departures.changed().await.is_ok() {
        let gone = POOL.with_borrow_mut(|pool| {
            let is_gone = |bucket: &Bucket| bucket.endpoint.gone.load(Ordering::Acquire);
            let mut gone = Vec::new();
            for bucket in pool.values_mut().filter(|bucket| is_gone(bucket)) {
                gone.append(&mut bucket.connections);
            }
            pool.retain(|_, bucket| bucket.connecting || !is_gone(bucket));
            gone
        });
        drop(gone); // wakes their tasks, while the pool is not borrowed
    }
    // The table is gone, and with it whoever would use a connection.
    std::future::pending::<()>().await;
}

/// Closes all of them.
pub(crate) fn clear() {
    drop(POOL.take());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_answers_nothing_is_dead_and_one_without_streams_idle() {
        let mut alive = Alive::default();
        assert_eq!(alive.after_a_while(500, 1), Verdict::Fine, "something came");
        assert_eq!(alive.after_a_while(500, 1), Verdict::Ask);
        alive.asked = true;
        assert_eq!(alive.after_a_while(500, 1), Verdict::Dead);

        let mut alive = Alive::default();
        assert_eq!(alive.after_a_while(0, 0), Verdict::Fine);
        assert_eq!(alive.after_a_while(0, 0), Verdict::Fine);
        assert_eq!(alive.after_a_while(0, 0), Verdict::Idle);
    }

    #[test]
    fn a_silent_stream_is_not_pinged_for_ever() {
        let (mut alive, mut received, mut pings) = (Alive::default(), 0, 0);
        for _ in 0..100 {
            match alive.after_a_while(received, 1) {
                Verdict::Ask => {
                    pings += 1;
                    received += PONG;
                }
                verdict => assert_eq!(verdict, Verdict::Fine),
            }
        }
        assert_eq!(pings, PINGS);
        assert_eq!(alive.after_a_while(received + 100, 1), Verdict::Fine);
        assert_eq!(alive.after_a_while(received + 100, 1), Verdict::Ask, "after data it is asked again");
    }
}
