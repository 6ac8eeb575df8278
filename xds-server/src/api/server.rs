//! Connections of the API, in bounds.

use std::time::Duration;

use axum::body::Body;
use hyper::{Request, server::conn::http1};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::{Api, router};
use crate::{
    access::{Listener, Wire},
    limit::{self, Bound, Limited},
    metrics::{Class, StatusClass},
};

/// How many connections may be open, held registrations included; more are refused as busy.
pub(super) const MAX_CONNECTIONS: usize = 16_384;
/// What a connection beyond them is answered.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
/// How long a request's head may take to arrive, which is also how long an idle connection lives.
const HEADER_TIMEOUT: Duration = Duration::from_mins(1);
/// How long connections may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// Serves the API on `listener` until `api.stop`.
pub async fn serve(listener: TcpListener, api: Api) {
    let refused = api.metrics.api_connections_refused.clone();
    let tls = api.access.listener(Listener::Api);
    // Over TLS there is nobody to say it to before the handshake that is saved.
    let answer = if tls.is_some() { b"" } else { BUSY };
    let bound = Bound { connections: MAX_CONNECTIONS, answer, refused, tls };
    let (connections, router) = (TaskTracker::new(), router(api.clone()));
    let serve = |accepted: limit::Accepted| {
        let (router, api) = (router.clone(), api.clone());
        connections.spawn(async move {
            if let Some(stream) = accepted.open().await {
                connection(stream, router, api).await;
            }
        });
    };
    limit::accept(listener, bound, api.stop.clone(), serve).await;
    connections.close();
    // Those that do not end in time are cut: they have had their answer, or never asked.
    let _ = tokio::time::timeout(STOP_TIMEOUT, connections.wait()).await;
}

async fn connection(stream: Limited<Wire>, router: axum::Router, api: Api) {
    let peer = stream.stream().peer().clone();
    let address = peer.address;
    let metrics = &api.metrics;
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| {
        let (router, peer) = (router.clone(), peer.clone());
        async move {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer);
            let response = router.oneshot(request).await?;
            let class = match response.status().as_u16() {
                ..400 => StatusClass::Success,
                400..500 => StatusClass::ClientError,
                500.. => StatusClass::ServerError,
            };
            metrics.api_requests.get_or_create(&Class { class }).inc();
            Ok::<_, std::convert::Infallible>(response)
        }
    });
    metrics.api_connections.inc();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_headers(64).max_buf_size(64 << 10);
    let connection = http.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => if let Err(error) = ended {
            tracing::debug!(peer = %address, %error, "an API connection broke");
        },
        () = api.stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
    metrics.api_connections.dec();
}
