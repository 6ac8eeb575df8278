//! The discovery services: gRPC around [`crate::subscription`].
//!
//! - `services`: their names and methods, the aggregated one and one a type.
//! - `wire`: responses to bytes; shares what the snapshot encoded once.
//! - `csds`: what became of what was sent. `stream`: the task of one stream. `node`: who a client says it is.
//! - here: the gRPC services and their server.
//!
//! They are written against tonic's codec rather than generated, so that what was encoded once
//! is copied into each stream's buffer, and never encoded or allocated again for it.

mod csds;
mod node;
mod services;
mod stream;
mod wire;

use std::{
    convert::Infallible,
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    body::Body,
    codegen::{Service, http},
    server::{Grpc, NamedService, StreamingService},
};

use crate::{
    access::{Access, Listener, Peer, Wire},
    fleet::Fleet,
    kind::Kind,
    limit::Limited,
    load_report::LoadReporting,
    metrics::Metrics,
    registry::State,
    subscription::Variant,
    timeline::Timeline,
};
use services::SERVICES;
use stream::{Requests, Stream};
use wire::{AdsCodec, Frame};

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

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<const N: usize> Service<http::Request<Body>> for Served<N> {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = &SERVICES[N];
        let method = Method { ads: self.0.clone(), kind: service.kind.clone() };
        match service.variant(request.uri().path()) {
            Some(Variant::Incremental) => Box::pin(async move {
                let codec = AdsCodec::<DeltaDiscoveryRequest>::new();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
                Ok(grpc.streaming(method, request).await)
            }),
            Some(Variant::StateOfTheWorld) => Box::pin(async move {
                let codec = AdsCodec::<DiscoveryRequest>::new();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
                Ok(grpc.streaming(method, request).await)
            }),
            None => Box::pin(async {
                let message = "is not served; the streaming methods of the discovery services are";
                Ok(Status::unimplemented(message).into_http())
            }),
        }
    }
}

/// One call of either method.
struct Method {
    ads: Ads,
    /// The type that the stream is of; `None` for all.
    kind: Option<Kind>,
}

impl<R> StreamingService<R> for Method
where
    R: Send + 'static,
    Requests: From<Streaming<R>>,
{
    type Response = Frame;
    type ResponseStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame, Status>> + Send>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<R>>) -> Self::Future {
        let (ads, kind) = (self.ads.clone(), self.kind.clone());
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().cloned();
            let requests = Requests::from(request.into_inner());
            let (frames, responses) = mpsc::channel(stream::BUFFERED);
            tokio::spawn(Stream::new(ads, kind, peer, requests, frames).run());
            let responses: Self::ResponseStream = Box::pin(ReceiverStream::new(responses));
            Ok(Response::new(responses))
        })
    }
}
