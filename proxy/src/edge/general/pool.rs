//! Connections of HTTP/2 to endpoints, a core: each is driven by one task, and shared by requests up to
//! what it takes. Those of an endpoint that left take no more, and close when their streams have ended.
//!
//! - [`lease`]: connections, and places on them. [`queue`]: who waits for a place.
//! - [`driver`]: a connection's task; [`alive`]: whether the connection lives.

mod alive;
mod driver;
mod lease;
mod queue;
#[cfg(test)]
mod tests;

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;
use h2::client;
use tokio::sync::{oneshot, watch};

pub(super) use self::lease::Lease;
use self::{
    driver::Driver,
    lease::{Connection, STREAMS, State, UNKNOWN},
    queue::{Bucket, Grant, PAUSE, Turn},
};
use super::{
    super::upstream,
    wire::{SMALL_FRAMES_BUDGET, Wire},
};
use crate::{
    cluster::{Cluster, Peer},
    load::{EndpointLoad, now_micros, shard::Held},
};

/// Bytes of a response that wait in a stream for a slow client. Twice what is moved at once.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Bytes that wait in a connection: so many that slow clients never hold up the others on it.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * STREAMS as u32;
/// Bytes of a request that wait in a stream.
const SEND_BUFFER: usize = 32 * 1024;
/// Bytes of a response's head.
const HEAD: u32 = 64 * 1024;

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::default());
}

/// An endpoint that came back, or is protected in another way now, gets no connection of before.
type Pool = HashMap<Peer, Bucket, foldhash::fast::RandomState>;

/// Looks at what there is of an endpoint. Nothing is dropped within that would look itself.
fn with<T>(peer: Peer, look: impl FnOnce(&mut Bucket) -> T) -> Option<T> {
    // The thread may be ending.
    POOL.try_with(|pool| pool.borrow_mut().get_mut(&peer).map(look)).ok().flatten()
}

/// A place on a connection that there is.
pub(super) fn take(peer: Peer) -> Option<Lease> {
    with(peer, Bucket::take).flatten()
}

/// A place on a connection to `endpoint`, as soon as there is one; a further connection is made if none
/// has room. The caller bounds the time.
///
/// # Errors
/// When it cannot be connected to.
pub(super) async fn lease(cluster: &Held<Cluster>, endpoint: &Arc<EndpointLoad>) -> io::Result<Lease> {
    let ended = || io::Error::from(io::ErrorKind::ConnectionAborted);
    let mut making: Option<oneshot::Receiver<Made>> = None;
    loop {
        // Whoever makes a connection takes a place that becomes free meanwhile, as the others do.
        let grant = match &mut making {
            None => wait(cluster.peer(endpoint), endpoint).await,
            Some(made) => tokio::select! {
                biased;
                made = made => {
                    making = None;
                    match made.map_err(|_| ended())? {
                        Ok(lease) => return Ok(lease),
                        // A full endpoint that takes no further connection is none that cannot be reached.
                        Err(NotMade::Full) => continue,
                        Err(NotMade::Unreachable(error)) => return Err(error),
                    }
                }
                grant = wait(cluster.peer(endpoint), endpoint) => grant,
            },
        };
        match grant.ok_or_else(ended)? {
            Grant::Place(lease) => return Ok(lease),
            Grant::Turn(turn) => {
                let (tell, told) = oneshot::channel();
                // By itself: whoever has its turn may have little time left, and others wait for the same.
                tokio::spawn(make(cluster.clone(), Arc::clone(endpoint), turn, tell));
                making = Some(told);
            }
        }
    }
}

/// What became of a further connection.
type Made = Result<Lease, NotMade>;

/// Why there is no further connection.
enum NotMade {
    /// There are others.
    Full,
    Unreachable(io::Error),
}

/// Makes a further connection, whoever may still want it.
async fn make(cluster: Held<Cluster>, endpoint: Arc<EndpointLoad>, turn: Turn, tell: oneshot::Sender<Made>) {
    let peer = cluster.peer(&endpoint);
    let connecting = connect(&cluster, &endpoint, peer);
    let made = tokio::time::timeout(cluster.config.connect_timeout, connecting).await;
    let error = match made.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        // Dropped when nobody is told, and with it the place is free for whoever waits.
        Ok(connection) => return drop(tell.send(Ok(admit(turn, connection, &endpoint)))),
        Err(error) => error,
    };
    let others = turn.failed();
    _ = tell.send(Err(if others { NotMade::Full } else { NotMade::Unreachable(error) }));
    drop((cluster, endpoint));
    if others {
        tokio::time::sleep(PAUSE).await;
        settle(peer); // another try may be made
    }
}

/// Waits until there is room, or it is one's turn to make some.
async fn wait(peer: Peer, endpoint: &Arc<EndpointLoad>) -> Option<Grant> {
    let waiting = POOL.with_borrow_mut(|pool| {
        pool.entry(peer).or_insert_with(|| Bucket::new(peer, Arc::clone(endpoint))).join()
    });
    settle(peer);
    waiting.granted().await
}

async fn connect(cluster: &Cluster, endpoint: &EndpointLoad, peer: Peer) -> io::Result<Connection> {
    let stream = upstream::connect(cluster, endpoint).await?;
    let wire = Wire::to_endpoint(stream);
    let handshake = builder().handshake::<_, Bytes>(wire.clone()).await;
    let (send, connection) = handshake.map_err(io::Error::other)?;
    let state = State::new(peer);
    tokio::spawn(Driver::new(connection, wire, Arc::clone(&state)).run());
    Ok(Connection { send, state })
}

/// Puts a connection where all find it, unless its endpoint has left. The first place is of whoever made
/// it.
fn admit(turn: Turn, connection: Connection, endpoint: &EndpointLoad) -> Lease {
    let lease = Lease::new(&connection);
    if !endpoint.gone.load(Ordering::Acquire) {
        turn.made(connection);
    }
    lease
}

/// Something has changed at an endpoint: gives those who wait what they can have.
fn settle(peer: Peer) {
    while let Some(Some((given, grant))) = with(peer, |bucket| bucket.next(now_micros())) {
        // Whoever went has left the queue, so nothing comes back.
        _ = given.send(grant);
    }
    // The thread may be ending.
    _ = POOL.try_with(|pool| {
        let mut pool = pool.borrow_mut();
        if pool.get(&peer).is_some_and(Bucket::is_empty) {
            pool.remove(&peer);
        }
    });
}

/// Takes a connection out of the pool.
fn close(state: &Arc<State>) {
    state.close();
    let closed = with(state.peer, |bucket| {
        let place = bucket.connections.iter().position(|c| Arc::ptr_eq(&c.state, state))?;
        Some(bucket.connections.swap_remove(place))
    });
    drop(closed); // wakes its task, while the pool is not borrowed
    settle(state.peer);
}

fn builder() -> client::Builder {
    let mut builder = client::Builder::new();
    builder
        .enable_push(false)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(UNKNOWN)
        .max_header_list_size(HEAD)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES_BUDGET);
    builder
}

/// Closes connections when their endpoint leaves: idle ones at once, others after their streams.
pub(crate) async fn keep(mut departures: watch::Receiver<()>) {
    while departures.changed().await.is_ok() {
        let (mut gone, mut wanted) = (Vec::new(), Vec::new());
        POOL.with_borrow_mut(|pool| {
            let is_gone = |bucket: &Bucket| bucket.endpoint.gone.load(Ordering::Acquire);
            for (peer, bucket) in pool.iter_mut().filter(|(_, bucket)| is_gone(bucket)) {
                gone.append(&mut bucket.connections);
                wanted.push(*peer);
            }
            pool.retain(|_, bucket| bucket.is_wanted() || !is_gone(bucket));
        });
        drop(gone); // wakes their tasks, while the pool is not borrowed
        // Whoever waited for their streams to end makes a connection for itself.
        wanted.into_iter().for_each(settle);
    }
    // The table is gone, and with it whoever would use a connection.
    std::future::pending::<()>().await;
}

/// Closes all of them.
pub(crate) fn clear() {
    drop(POOL.take());
}
