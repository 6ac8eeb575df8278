//! An endpoint that speaks HTTP/2: a stream on a connection that others share.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream, client::ResponseFuture};
use http::Request;

use super::{
    super::{Frame, client, inflow::Inflow, pool::Lease},
    Event, Failed,
};

pub(in super::super) struct Http2 {
    lease: Lease,
    send: SendStream<Bytes>,
    /// Until the head of the response came.
    response: ResponseFuture,
    body: Option<Inflow>,
}

impl Http2 {
    /// Sends a head; `ends` says that it is all.
    ///
    /// `None` when the connection is over; nothing was sent.
    pub(in super::super) fn new(mut lease: Lease, request: Request<()>, ends: bool) -> Option<Self> {
        let sent = lease.connection().send_request(request, ends);
        let Ok((response, send)) = sent else {
            lease.retire();
            return None;
        };
        Some(Self { lease, send, response, body: None })
    }

    pub(super) fn is_reused(&self) -> bool {
        self.lease.is_reused()
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, frame: &mut Frame) -> Poll<Result<(), ()>> {
        client::poll_send(&mut self.send, cx, frame)
    }

    pub(super) fn passed_on(&mut self, n: usize) {
        if let Some(body) = &mut self.body {
            body.passed_on(n);
        }
    }

    pub(super) fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        self.body.as_mut().is_some_and(|body| body.gather(cx))
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failed>> {
        let Some(body) = &mut self.body else { return self.poll_head(cx) };
        body.poll_frame(cx).map(|frame| frame.map(Event::Body).map_err(|_| Failed::Broken))
    }

    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failed>> {
        use std::future::Future;
        while let Poll::Ready(Some(Ok(interim))) = self.response.poll_informational(cx) {
            match interim.status() {
                http::StatusCode::CONTINUE => {}
                // HTTP/2 has no such thing (RFC 9113 §8.6); to HTTP/1 it would begin a tunnel.
                http::StatusCode::SWITCHING_PROTOCOLS => return Poll::Ready(Err(Failed::Broken)),
                _ => return Poll::Ready(Ok(Event::Interim(interim))),
            }
        }
        match ready!(std::pin::Pin::new(&mut self.response).poll(cx)) {
            Ok(response) => {
                self.lease.note_answer();
                let (parts, body) = response.into_parts();
                let ends = body.is_end_stream();
                self.body = Some(Inflow::new(body));
                let response = http::Response::from_parts(parts, ());
                Poll::Ready(Ok(Event::Head(Box::new(response), ends)))
            }
            Err(error) => Poll::Ready(Err(failed(&error))),
        }
    }
}

/// What an error before a response means.
fn failed(error: &h2::Error) -> Failed {
    // RFC 9113 §8.7: what it refused, and what is above the last stream of its GOAWAY.
    let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
    if error.is_remote() && (refused || error.is_go_away()) {
        return Failed::Unprocessed;
    }
    if error.is_reset() { Failed::Broken } else { Failed::Lost }
}
