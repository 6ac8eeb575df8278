//! An endpoint that speaks HTTP/2: a stream on a connection that others share.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::Request;

use super::{
    super::{Frame, client, pool::Lease},
    Event, Failed,
};

pub(in super::super) struct Http2 {
    lease: Lease,
    send: SendStream<Bytes>,
    /// Until the head of the response came.
    response: ResponseFuture,
    body: Option<RecvStream>,
    data_ended: bool,
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
        Some(Self { lease, send, response, body: None, data_ended: false })
    }

    pub(super) fn is_reused(&self) -> bool {
        self.lease.is_reused()
    }

    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, frame: &mut Frame) -> Poll<Result<(), ()>> {
        client::poll_send(&mut self.send, cx, frame)
    }

    pub(super) fn passed_on(&mut self, n: usize) {
        if let Some(body) = &mut self.body {
            // Fails only for more than came.
            _ = body.flow_control().release_capacity(n);
        }
    }

    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failed>> {
        let Some(body) = &mut self.body else { return self.poll_head(cx) };
        if !self.data_ended {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => {
                    let ends = body.is_end_stream();
                    return Poll::Ready(Ok(Event::Body(Frame::Data(data, ends))));
                }
                Some(Err(_)) => return Poll::Ready(Err(Failed::Broken)),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(body.poll_trailers(cx)) {
            Ok(Some(trailers)) => Ok(Event::Body(Frame::Trailers(trailers))),
            Ok(None) => Ok(Event::Body(Frame::End)),
            Err(_) => Err(Failed::Broken),
        })
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
                self.body = Some(body);
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
