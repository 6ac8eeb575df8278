//! A client's side of an exchange. Here by HTTP/2; that of HTTP/1 is the lean engine's.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{Response, StatusCode};

use super::{Frame, inflow::Inflow};

/// Nobody is left to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gone;

/// Why no more of a request comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoBody {
    Gone,
    /// It is not valid.
    Bad,
}

/// Whoever asked.
pub(crate) trait Client {
    /// More of the body of the request. Not called after its end.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, NoBody>>;
    /// `n` bytes of the body of the request went on.
    fn passed_on(&mut self, n: usize);
    /// Called when what came of the body cannot go on: takes it out of where it waits, if that is in the
    /// way of others. Whether there was anything.
    fn gather(&mut self, _: &mut Context<'_>) -> bool {
        false
    }
    fn send_interim(&mut self, response: Response<()>);
    /// Sends the head of the response; `ends` says that it is all.
    fn send_head(&mut self, response: Response<()>, ends: bool) -> Result<(), Gone>;
    /// Sends as much of a frame as it takes; ready when that is all of it.
    fn poll_send(&mut self, cx: &mut Context<'_>, frame: &mut Frame) -> Poll<Result<(), Gone>>;
    /// Ready when what was sent has left, or is bounded elsewhere.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>>;
    /// Ready when it has gone.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// A stream of a client's connection.
pub(super) struct Stream {
    body: Inflow,
    /// Whether the client may wait for `100 (Continue)` before it sends the body.
    expects: bool,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
}

impl Stream {
    /// `expects` says that the client does not send its body before it is asked to (RFC 9110 §10.1.1).
    pub(super) fn new(body: RecvStream, expects: bool, respond: SendResponse<Bytes>) -> Self {
        Self { body: Inflow::new(body), expects, respond, send: None }
    }

    /// Ends a response that has begun.
    pub(super) fn end_with(&mut self, trailers: http::HeaderMap) -> Result<(), Gone> {
        let send = self.send.as_mut().ok_or(Gone)?;
        send.send_trailers(trailers).map_err(|_| Gone)
    }

    /// Reads what the client still sends, and forgets it; ready at its end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.body.poll_discard(cx)
    }

    /// Cuts it.
    pub(super) fn reset(&mut self, reason: h2::Reason) {
        self.respond.send_reset(reason);
    }
}

impl Client for Stream {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, NoBody>> {
        let frame = self.body.poll_frame(cx);
        // Only now: there is somebody to take the body, and none of it came yet.
        if std::mem::take(&mut self.expects) && frame.is_pending() {
            let mut response = Response::new(());
            *response.status_mut() = StatusCode::CONTINUE;
            self.send_interim(response);
        }
        frame.map_err(|error| no_body(&error))
    }

    fn passed_on(&mut self, n: usize) {
        self.body.passed_on(n);
    }

    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        self.body.gather(cx)
    }

    fn send_interim(&mut self, response: Response<()>) {
        // One that cannot be sent is not needed.
        _ = self.respond.send_informational(response);
    }

    fn send_head(&mut self, response: Response<()>, ends: bool) -> Result<(), Gone> {
        self.expects = false;
        self.send = Some(self.respond.send_response(response, ends).map_err(|_| Gone)?);
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, frame: &mut Frame) -> Poll<Result<(), Gone>> {
        let Some(send) = &mut self.send else { return Poll::Ready(Err(Gone)) };
        poll_send(send, cx, frame).map_err(|()| Gone)
    }

    /// What `h2` and the connection hold is bounded, and has a deadline there.
    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        Poll::Ready(Ok(()))
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.send {
            Some(send) => send.poll_reset(cx).map(drop),
            None => self.respond.poll_reset(cx).map(drop),
        }
    }
}

fn no_body(error: &h2::Error) -> NoBody {
    // What the other side reset is gone; what we had to reset was not valid.
    if error.is_library() { NoBody::Bad } else { NoBody::Gone }
}

/// Sends as much of a frame as the other side's windows and the buffer have room for.
pub(super) fn poll_send(
    send: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
    frame: &mut Frame,
) -> Poll<Result<(), ()>> {
    let (data, ends) = match frame {
        Frame::Data(data, ends) => (data, *ends),
        Frame::Trailers(trailers) => {
            return Poll::Ready(send.send_trailers(std::mem::take(trailers)).map_err(|_| ()));
        }
        Frame::End => return Poll::Ready(send.send_data(Bytes::new(), true).map_err(|_| ())),
    };
    if data.is_empty() {
        return Poll::Ready(if ends { send.send_data(Bytes::new(), true).map_err(|_| ()) } else { Ok(()) });
    }
    send.reserve_capacity(data.remaining());
    loop {
        let room = match send.capacity() {
            0 => match ready!(send.poll_capacity(cx)) {
                Some(Ok(room)) => room,
                _ => return Poll::Ready(Err(())),
            },
            room => room,
        };
        let now = data.split_to(room.min(data.len()));
        let last = data.is_empty();
        if send.send_data(now, ends && last).is_err() {
            return Poll::Ready(Err(()));
        }
        if last {
            return Poll::Ready(Ok(()));
        }
    }
}
