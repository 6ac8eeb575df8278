//! The aggregated discovery service: gRPC around [`crate::subscription`].
//!
//! - `wire`: responses to bytes; shares what the snapshot encoded once.
//! - `stream`: the task of one stream.
//! - here: the gRPC service and its server.
//!
//! The service is written against tonic's codec rather than generated, so that what was encoded once
//! is copied into each stream's buffer, and never encoded or allocated again for it.

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
    limit::Limited,
    metrics::Metrics,
    registry::State,
    timeline::Timeline,
};
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
    let serving =
        server.add_service(ads).serve_with_incoming_shutdown(ReceiverStream::new(incoming), async move {
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

impl NamedService for Ads {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Service<http::Request<Body>> for Ads {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let ads = self.clone();
        let method = request.uri().path().strip_prefix("/").and_then(|path| path.strip_prefix(Self::NAME));
        match method {
            Some("/DeltaAggregatedResources") => Box::pin(async move {
                let codec = AdsCodec::<DeltaDiscoveryRequest>::new();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
                Ok(grpc.streaming(Method(ads), request).await)
            }),
            Some("/StreamAggregatedResources") => Box::pin(async move {
                let codec = AdsCodec::<DiscoveryRequest>::new();
                let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_REQUEST);
                Ok(grpc.streaming(Method(ads), request).await)
            }),
            _ => Box::pin(async {
                Ok(Status::unimplemented("only aggregated discovery is served").into_http())
            }),
        }
    }
}

/// One call of either method.
struct Method(Ads);

impl<R> StreamingService<R> for Method
where
    R: Send + 'static,
    Requests: From<Streaming<R>>,
{
    type Response = Frame;
    type ResponseStream = Pin<Box<dyn tokio_stream::Stream<Item = Result<Frame, Status>> + Send>>;
    type Future = BoxFuture<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<R>>) -> Self::Future {
        let ads = self.0.clone();
        Box::pin(async move {
            let peer = request.extensions().get::<Peer>().cloned();
            let requests = Requests::from(request.into_inner());
            let (frames, responses) = mpsc::channel(stream::BUFFERED);
            tokio::spawn(Stream::new(ads, peer, requests, frames).run());
            let responses: Self::ResponseStream = Box::pin(ReceiverStream::new(responses));
            Ok(Response::new(responses))
        })
    }
}
