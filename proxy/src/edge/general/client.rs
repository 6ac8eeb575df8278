//! A client's side of an exchange. Here by HTTP/2; that of HTTP/1 is the lean engine's.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::Response;

use super::Frame;

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
    body: RecvStream,
    body_ended: bool,
    respond: SendResponse<Bytes>,
    send: Option<SendStream<Bytes>>,
}

impl Stream {
    pub(super) fn new(body: RecvStream, respond: SendResponse<Bytes>) -> Self {
        Self { body, body_ended: false, respond, send: None }
    }

    /// Ends a response that has begun.
    pub(super) fn end_with(&mut self, trailers: http::HeaderMap) -> Result<(), Gone> {
        let send = self.send.as_mut().ok_or(Gone)?;
        send.send_trailers(trailers).map_err(|_| Gone)
    }

    /// Reads what the client still sends, and forgets it; ready at its end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.body.is_end_stream() {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => self.passed_on(data.len()),
                Some(Err(_)) | None => break,
            }
        }
        Poll::Ready(())
    }

    /// Cuts it.
    pub(super) fn reset(&mut self, reason: h2::Reason) {
        self.respond.send_reset(reason);
    }
}

impl Client for Stream {
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, NoBody>> {
        if !self.body_ended {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => return Poll::Ready(Ok(Frame::Data(data, self.body.is_end_stream()))),
                Some(Err(error)) => return Poll::Ready(Err(no_body(&error))),
                None => self.body_ended = true,
            }
        }
        Poll::Ready(match ready!(self.body.poll_trailers(cx)) {
            Ok(Some(trailers)) => Ok(Frame::Trailers(trailers)),
            Ok(None) => Ok(Frame::End),
            Err(error) => Err(no_body(&error)),
        })
    }

    fn passed_on(&mut self, n: usize) {
        // Fails only for more than came.
        _ = self.body.flow_control().release_capacity(n);
    }

    fn send_interim(&mut self, response: Response<()>) {
        // One that cannot be sent is not needed.
        _ = self.respond.send_informational(response);
    }

    fn send_head(&mut self, response: Response<()>, ends: bool) -> Result<(), Gone> {
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
