//! Backends that speak HTTP/1.1 (or HTTP/2 with prior knowledge) and say who they are.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::{
    net::{TcpListener, TcpSocket},
    sync::watch,
    task::JoinHandle,
};

/// A backend that runs until it is dropped; then its connections break, as on `kill -9`.
pub struct Backend {
    pub address: SocketAddr,
    /// Requests it has received.
    pub requests: Arc<AtomicUsize>,
    /// Requests to `/wait` wait for this.
    pub release: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    pub async fn start(name: &str) -> Self {
        Self::start_as(name, false).await
    }

    pub async fn start_as(name: &str, http2: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let (release, released) = watch::channel(false);
        let (name, counter) = (name.to_owned(), Arc::clone(&requests));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (name, counter, released) = (name.clone(), Arc::clone(&counter), released.clone());
                let service = service_fn(move |request| {
                    counter.fetch_add(1, Ordering::SeqCst);
                    answer(name.clone(), released.clone(), request)
                });
                connections.spawn(async move {
                    let io = TokioIo::new(stream);
                    if http2 {
                        let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        _ = builder.serve_connection(io, service).await;
                    } else {
                        _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
                    }
                });
            }
        });
        Self { address, requests, release, task }
    }

    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn answer(
    name: String,
    mut released: watch::Receiver<bool>,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, hyper::Error> {
    let path = request.uri().path().to_owned();
    if path == "/wait" {
        _ = released.wait_for(|released| *released).await;
    }
    let mut response = Response::builder().header("server", "backend/1").header("x-name", &name);
    for header in ["host", "x-forwarded-for", "x-forwarded-proto", "te"] {
        if let Some(value) = request.headers().get(header) {
            response = response.header(format!("seen-{header}"), value);
        }
    }
    let body = match path.as_str() {
        "/echo" => request.collect().await?.to_bytes(),
        "/endless" => return Ok(response.body(Endless.boxed()).unwrap()),
        _ => Bytes::from(name),
    };
    Ok(response.body(Full::new(body).boxed()).unwrap())
}

/// A body that sends one frame and then nothing, for ever.
struct Endless;

impl hyper::body::Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Pending
    }
}

/// An address that refuses connections, and that nothing else gets while this lives.
pub struct Dead {
    pub address: SocketAddr,
    _socket: TcpSocket,
}

impl Dead {
    pub fn new() -> Self {
        // Bound, so that it is taken; not listening, so that connecting is refused.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(super::ANY).unwrap();
        Self { address: socket.local_addr().unwrap(), _socket: socket }
    }
}

/// An address nothing listens on; outside the range from which port 0 is served, so that no other
/// test gets it by chance.
pub fn free_address() -> SocketAddr {
    loop {
        let address = SocketAddr::from(([127, 0, 0, 1], fastrand::u16(20_000..30_000)));
        if std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}
