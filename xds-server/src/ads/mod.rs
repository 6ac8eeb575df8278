//! The discovery services: gRPC around [`crate::subscription`].
//!
//! - `services`: their names and methods, the aggregated one and one a type.
//! - `wire`: responses to bytes; shares what the snapshot encoded once.
//! - `csds`: what became of what was sent. `stream`: the task of one stream. `node`: who a client says it is.
//! - here: the gRPC services and their server.
//!
//! They are written by hand rather than generated, so that what was encoded once is shared by all
//! streams, and copied only where it is small.

mod csds;
mod node;
mod services;
mod stream;
mod wire;

use std::{
    convert::Infallible,
    future::Ready,
    io,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
    server::NamedService,
};

use crate::{
    access::{Access, Listener, Peer, Wire},
    fleet::Fleet,
    limit::Limited,
    load_report::LoadReporting,
    metrics::Metrics,
    registry::State,
    timeline::Timeline,
};
use services::SERVICES;
use stream::{Requests, Stream};
use wire::Frames;

/// How many xDS connections may be open; more are closed at once and counted.
const MAX_CONNECTIONS: usize = 16_384;
/// How many streams one connection may have open.
const MAX_STREAMS: u32 = 64;
/// How large one request may be, in bytes.
const MAX_REQUEST: usize = 4 << 20;

/// How long connections may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// What every stream shares.
#[derive(Clone)]
pub struct Ads {
    /// Follows the registry.
    pub state: watch::Receiver<Arc<State>>,
    /// The connected clients.
    pub fleet: Arc<Fleet>,
    /// The timeline.
    pub timeline: Arc<Timeline>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Takes reports of load.
    pub load_reports: LoadReporting,
    /// Who may be which node.
    pub access: Arc<Access>,
    /// Ends every stream.
    pub stop: CancellationToken,
}

/// Serves xDS on `listener` until `ads.stop`.
pub async fn serve(listener: TcpListener, ads: Ads) -> io::Result<()> {
    let stop = ads.stop.clone();
    let stopping = stop.clone();
    let (accepted, incoming) = mpsc::channel::<io::Result<Limited<Wire>>>(1);
    let refused = ads.metrics.streams_refused.clone();
    let bound = crate::limit::Bound {
        connections: MAX_CONNECTIONS,
        answer: b"",
        refused,
        tls: ads.access.listener(Listener::Xds),
    };
    let accepting = crate::limit::accept(listener, bound, accepted, stop.clone());
    let mut server = tonic::transport::Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(2 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)));
    let services = server
        .add_service(csds::service(Arc::clone(&ads.fleet), Arc::clone(&ads.access)))
        .add_service(ads.load_reports.clone().into_service())
        .add_service(Served::<0>(ads.clone()))
        .add_service(Served::<1>(ads.clone()))
        .add_service(Served::<2>(ads.clone()))
        .add_service(Served::<3>(ads.clone()))
        .add_service(Served::<4>(ads.clone()))
        .add_service(Served::<5>(ads.clone()))
        .add_service(Served::<6>(ads.clone()))
        .add_service(Served::<7>(ads.clone()))
        .add_service(Served::<8>(ads.clone()))
        .add_service(Served::<9>(ads.clone()))
        .add_service(Served::<10>(ads));
    let serving = services.serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
        stop.cancelled().await;
    });
    let bounded = async {
        tokio::select! {
            served = serving => served.map_err(io::Error::other),
            () = async { stopping.cancelled().await; tokio::time::sleep(STOP_TIMEOUT).await } => {
                // Cut: clients that do not read, or never got beyond a handshake.
                Ok(())
            }
        }
    };
    let (served, ()) = tokio::join!(bounded, accepting);
    served
}

/// One of [`SERVICES`].
#[derive(Clone)]
struct Served<const N: usize>(Ads);

impl<const N: usize> NamedService for Served<N> {
    const NAME: &'static str = SERVICES[N].name;
}

impl<const N: usize> Service<http::Request<Body>> for Served<N> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = &SERVICES[N];
        let Some(variant) = service.variant(request.uri().path()) else {
            let message = "is not served; the streaming methods of the discovery services are";
            return std::future::ready(Ok(Status::unimplemented(message).into_http()));
        };
        let peer = request.extensions().get::<Peer>().cloned();
        let requests = Requests::new(variant, request.into_body());
        let (frames, responses) = mpsc::channel(stream::BUFFERED);
        tokio::spawn(Stream::new(self.0.clone(), service.kind.clone(), peer, requests, frames).run());
        let mut response = http::Response::new(Body::new(Frames::new(responses)));
        let grpc = http::HeaderValue::from_static("application/grpc");
        response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
        std::future::ready(Ok(response))
    }
}
