//! The gRPC services that are not about discovery: load reports and client status, as tonic serves them.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as _, Frame};
use tokio::runtime::Handle;
use tonic::{body::Body, codegen::Service, service::Routes};

use super::{Ads, csds};
use crate::access::Peer;

/// The other services.
#[derive(Clone)]
pub(super) struct Elsewhere {
    routes: Routes,
    /// Where they run: what they do may take a while, and streams wait for nobody.
    runtime: Handle,
}

impl Elsewhere {
    /// Runs them on the runtime this is called in.
    pub(super) fn new(ads: &Ads) -> Self {
        let routes = Routes::new(csds::service(Arc::clone(&ads.fleet), Arc::clone(&ads.access)))
            .add_service(ads.load_reports.clone().into_service())
            .prepare();
        Self { routes, runtime: Handle::current() }
    }

    /// Answers a request, in a task of its own.
    pub(super) fn answer(&self, request: Request<RecvStream>, peer: Peer, respond: SendResponse<Bytes>) {
        let mut request = request.map(|body| Body::new(Incoming(body)));
        request.extensions_mut().insert(peer);
        let mut routes = self.routes.clone();
        self.runtime.spawn(async move {
            let ready = poll_fn(|context| Service::<Request<Body>>::poll_ready(&mut routes, context)).await;
            if ready.is_ok()
                && let Ok(response) = routes.call(request).await
            {
                // Nothing means that the client has gone.
                let _ = send(response, respond).await;
            }
        });
    }
}

async fn send(response: Response<Body>, mut respond: SendResponse<Bytes>) -> Option<()> {
    let (head, mut body) = response.into_parts();
    let empty = body.is_end_stream();
    let mut out = respond.send_response(Response::from_parts(head, ()), empty).ok()?;
    if empty {
        return Some(());
    }
    while let Some(frame) = next(&mut body, &mut out).await {
        match frame.ok()?.into_data() {
            Ok(data) => send_data(data, &mut out).await?,
            Err(frame) => return out.send_trailers(frame.into_trailers().unwrap_or_default()).ok(),
        }
    }
    out.send_data(Bytes::new(), true).ok()
}

/// The next frame of the response; an error when the client gave the stream up.
async fn next(body: &mut Body, out: &mut SendStream<Bytes>) -> Option<Result<Frame<Bytes>, ()>> {
    poll_fn(|context| {
        if out.poll_reset(context).is_ready() {
            return Poll::Ready(Some(Err(())));
        }
        Pin::new(&mut *body).poll_frame(context).map(|frame| frame.map(|frame| frame.map_err(|_| ())))
    })
    .await
}

async fn send_data(mut data: Bytes, out: &mut SendStream<Bytes>) -> Option<()> {
    while !data.is_empty() {
        out.reserve_capacity(data.len());
        if out.capacity() == 0 {
            poll_fn(|context| out.poll_capacity(context)).await?.ok()?;
        }
        let room = out.capacity().min(data.len());
        out.send_data(data.split_to(room), false).ok()?;
    }
    Some(())
}

/// The body of a request.
struct Incoming(RecvStream);

impl hyper::body::Body for Incoming {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if let Some(data) = ready!(self.0.poll_data(context)) {
            let data = data?;
            // An error means that the stream is over, as the next look will show.
            let _ = self.0.flow_control().release_capacity(data.len());
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        let trailers: Option<HeaderMap> = ready!(self.0.poll_trailers(context))?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }
}
