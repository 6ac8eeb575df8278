//! HTTP and gRPC instances in this process, which count and time what reaches them.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    service::service_fn,
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, watch},
    task::JoinSet,
};

/// Every time here is since this, in ns.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// The content type of gRPC (gRPC over HTTP2, "Content-Type").
const GRPC: &str = "application/grpc";

/// Now, in ns since the first use.
pub fn now_ns() -> u64 {
    EPOCH.elapsed().as_nanos() as u64
}

/// What reached an instance.
#[derive(Debug, Default)]
pub struct Hits {
    pub count: AtomicU64,
    pub in_flight: AtomicUsize,
    /// When the first request since [`Hits::forget`] arrived; 0 before it.
    first_ns: AtomicU64,
    last_ns: AtomicU64,
    /// Told of the first.
    reached: Notify,
}

impl Hits {
    pub fn forget(&self) {
        self.first_ns.store(0, Ordering::SeqCst);
        self.last_ns.store(0, Ordering::SeqCst);
    }

    pub fn first_ns(&self) -> Option<u64> {
        Some(self.first_ns.load(Ordering::SeqCst)).filter(|ns| *ns > 0)
    }

    /// Waits for the first request since [`Hits::forget`], and says when it arrived.
    pub async fn reached(&self) -> u64 {
        loop {
            let reached = self.reached.notified();
            if let Some(first) = self.first_ns() {
                return first;
            }
            reached.await;
        }
    }

    pub fn last_ns(&self) -> Option<u64> {
        Some(self.last_ns.load(Ordering::SeqCst)).filter(|ns| *ns > 0)
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    fn arrived(&self) {
        let now = now_ns();
        self.count.fetch_add(1, Ordering::SeqCst);
        if self.first_ns.compare_exchange(0, now, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            self.reached.notify_one();
        }
        self.last_ns.store(now, Ordering::SeqCst);
    }
}

pub struct Backend {
    pub address: SocketAddr,
    pub hits: Arc<Hits>,
    stop: watch::Sender<bool>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Backend {
    /// An instance of `version` that answers at once: in HTTP/1.1 or HTTP/2, as the client speaks, and
    /// every gRPC call with `version` as the message.
    pub async fn start(version: &str) -> Self {
        Self::start_slow(version, Duration::ZERO).await
    }

    /// An instance of `version` that answers after `delay`.
    pub async fn start_slow(version: &str, delay: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(Hits::default());
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(listener, version.to_owned(), delay, Arc::clone(&hits), stopped));
        Self { address, hits, stop, accepting }
    }

    /// Stops accepting, finishes what is in flight, closes what is idle.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        self.accepting.await.unwrap();
    }

    /// Drops every connection at once, as the kernel does when a process is killed.
    pub fn kill(self) {
        self.accepting.abort();
    }
}

async fn accept(
    listener: TcpListener,
    version: String,
    delay: Duration,
    hits: Arc<Hits>,
    stopped: watch::Receiver<bool>,
) {
    let mut connections = JoinSet::new();
    let mut refused = stopped.clone();
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            () = asked(&mut refused) => break,
        };
        stream.set_nodelay(true).unwrap();
        let (version, hits, mut stopped) = (version.clone(), Arc::clone(&hits), stopped.clone());
        connections.spawn(async move {
            let service = service_fn(move |request: Request<Incoming>| {
                let (version, hits) = (version.clone(), Arc::clone(&hits));
                async move {
                    hits.arrived();
                    hits.in_flight.fetch_add(1, Ordering::SeqCst);
                    let grpc = request.headers().get(CONTENT_TYPE).is_some_and(|t| t == GRPC);
                    // A client that goes away has its answer, too, as far as anybody here cares.
                    let _ = request.into_body().collect().await;
                    if !delay.is_zero() {
                        tokio::time::sleep(delay).await;
                    }
                    hits.in_flight.fetch_sub(1, Ordering::SeqCst);
                    let response = Response::builder().header("x-version", version.as_str());
                    let response = if grpc {
                        response.header(CONTENT_TYPE, GRPC).body(message(&version))
                    } else {
                        response.body(Full::new(Bytes::from_static(b"ok\n")).boxed())
                    };
                    Ok::<_, Infallible>(response.unwrap())
                }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => {}
                () = asked(&mut stopped) => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
        });
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// The one message of a call that succeeds (gRPC over HTTP2, "Length-Prefixed-Message" and "Trailers").
fn message(text: &str) -> BoxBody<Bytes, Infallible> {
    let length = u32::try_from(text.len()).unwrap().to_be_bytes();
    let message = [&[0], &length[..], text.as_bytes()].concat();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
    Full::new(Bytes::from(message)).with_trailers(std::future::ready(Some(Ok(trailers)))).boxed()
}

async fn asked(stop: &mut watch::Receiver<bool>) {
    // An error means that the handle is gone, which asks for the same.
    let _ = stop.wait_for(|stop| *stop).await;
}
