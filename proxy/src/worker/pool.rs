//! Idle connections to endpoints, a core. Those of an endpoint that left close at once; none is probed
//! before it is used: what the kernel told about it since is known already.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{sync::watch, time::MissedTickBehavior};

use super::timer;
use crate::{cluster::Peer, edge::stream::Stream, load::EndpointLoad};

/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(30);
/// How often those that are over are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Idle connections that are kept, a core.
const MOST: usize = 8_192;

thread_local! {
    static POOL: RefCell<Pool> = RefCell::new(Pool::default());
}

/// An endpoint that came back, or is protected in another way now, gets no connection of before.
#[derive(Default)]
struct Pool {
    endpoints: HashMap<Peer, Bucket, foldhash::fast::RandomState>,
    idle: usize,
}

struct Bucket {
    endpoint: Arc<EndpointLoad>,
    /// The last one in is the first one out, so that those beyond need grow old.
    idle: Vec<Idle>,
}

struct Idle {
    stream: Stream,
    /// In ticks of this core.
    since: u64,
}

/// A connection to `peer` that was used before and is good, as far as is known.
pub(crate) fn take(peer: Peer) -> Option<Stream> {
    POOL.with_borrow_mut(|pool| {
        let bucket = pool.endpoints.get_mut(&peer)?;
        while let Some(mut idle) = bucket.idle.pop() {
            pool.idle -= 1;
            if idle.stream.is_quiet() {
                return Some(idle.stream);
            }
        }
        None
    })
}

/// Keeps `stream` to `peer`, unless its endpoint has left or there are too many.
pub(crate) fn put(peer: Peer, endpoint: &Arc<EndpointLoad>, stream: Stream) {
    if endpoint.gone.load(Ordering::Acquire) {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        if pool.idle >= MOST {
            return;
        }
        pool.idle += 1;
        let bucket = pool.endpoints.entry(peer);
        let bucket = bucket.or_insert_with(|| Bucket { endpoint: Arc::clone(endpoint), idle: Vec::new() });
        bucket.idle.push(Idle { stream, since: timer::now() });
    });
}

impl Pool {
    /// Closes what is over.
    fn sweep(&mut self) {
        let since = timer::now().saturating_sub(timer::ticks(IDLE));
        self.endpoints.retain(|_, bucket| {
            let gone = bucket.endpoint.gone.load(Ordering::Acquire);
            bucket.idle.retain_mut(|idle| !gone && idle.since >= since && idle.stream.is_quiet());
            !bucket.idle.is_empty()
        });
        self.idle = self.endpoints.values().map(|bucket| bucket.idle.len()).sum();
    }

    fn close_departed(&mut self) {
        self.endpoints.retain(|_, bucket| !bucket.endpoint.gone.load(Ordering::Acquire));
        self.idle = self.endpoints.values().map(|bucket| bucket.idle.len()).sum();
    }
}

/// Closes idle connections when their endpoint leaves, and when they are old.
pub(super) async fn keep(mut departures: watch::Receiver<()>) {
    let mut sweeps = tokio::time::interval(SWEEP);
    sweeps.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            changed = departures.changed() => {
                if changed.is_err() {
                    return; // the table is gone, and with it whoever would use a connection
                }
                POOL.with_borrow_mut(Pool::close_departed);
            }
            _ = sweeps.tick() => POOL.with_borrow_mut(Pool::sweep),
        }
    }
}

/// Closes all of them.
pub(super) fn clear() {
    POOL.with_borrow_mut(|pool| *pool = Pool::default());
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::Tcp(stream), listener.accept().await.unwrap().0)
    }

    fn endpoint() -> Arc<EndpointLoad> {
        Arc::new(EndpointLoad::new("a".into(), ([127, 0, 0, 1], 1).into()))
    }

    fn peer(endpoint: &EndpointLoad) -> Peer {
        Peer::in_clear(endpoint.generation)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_connection_is_used_again_unless_the_endpoint_closed_it() {
        let endpoint = endpoint();
        let ((one, _kept), (two, closed)) = (pair().await, pair().await);
        put(peer(&endpoint), &endpoint, one);
        put(peer(&endpoint), &endpoint, two);
        let port = |stream: &Stream| stream.tcp().peer_addr().unwrap().port();
        drop(closed);
        // What the kernel knows reaches the runtime when the task lets it look.
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while POOL.with_borrow_mut(|pool| {
            pool.endpoints.get_mut(&peer(&endpoint)).unwrap().idle[1].stream.is_quiet()
        }) {
            assert!(std::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let taken = take(peer(&endpoint)).unwrap();
        assert!(port(&taken) > 0 && take(peer(&endpoint)).is_none());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn connections_close_when_their_endpoint_leaves() {
        let (departures, told) = watch::channel(());
        let keeping = tokio::spawn(keep(told));
        let (staying, leaving) = (endpoint(), endpoint());
        let ((one, _one), (two, two_end)) = (pair().await, pair().await);
        put(peer(&staying), &staying, one);
        put(peer(&leaving), &leaving, two);
        leaving.gone.store(true, Ordering::Release);
        departures.send_replace(());
        assert_eq!(tokio::io::AsyncReadExt::read(&mut { two_end }, &mut [0]).await.unwrap(), 0);
        assert!(take(peer(&leaving)).is_none() && take(peer(&staying)).is_some());
        let (three, mut three_end) = pair().await;
        put(peer(&leaving), &leaving, three);
        assert_eq!(tokio::io::AsyncReadExt::read(&mut three_end, &mut [0]).await.unwrap(), 0);
        drop(departures);
        keeping.await.unwrap();
    }
}
