//! An endpoint's side of an exchange, in the HTTP version that it speaks. One enum, so that the exchange
//! is compiled once for each kind of client and no call goes through a pointer.

mod h1;
mod h2;

use std::task::{Context, Poll};

use http::Response;

pub(super) use self::{
    h1::{Http1, RequestHead as Http1Head},
    h2::Http2,
};
use super::Frame;

/// What comes from an endpoint.
#[derive(Debug)]
pub(super) enum Event {
    /// An interim response (RFC 9110 §15.2), but for 100 and 101.
    Interim(Response<()>),
    /// The head of the response, and whether that is all.
    Head(Box<Response<()>>, bool),
    Body(Frame),
}

/// Why an endpoint says no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failed {
    /// It did not process the request, as it says itself or as nothing of it was sent.
    Unprocessed,
    /// The connection was lost before any byte of a response came.
    Lost,
    /// What came is no valid response, or not all of one.
    Broken,
}

/// An endpoint with a request.
pub(super) enum Up {
    Http1(Http1),
    Http2(Http2),
}

impl Up {
    /// Ready when one more frame of the request may be sent.
    ///
    /// # Errors
    /// It takes no more; it may answer even so.
    pub(super) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        match self {
            Self::Http1(up) => up.poll_room(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// Sends as much of a frame as it takes; ready when that is all of it, and then how many bytes.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>, frame: &mut Frame) -> Poll<Result<(), ()>> {
        match self {
            Self::Http1(up) => {
                up.send(frame);
                Poll::Ready(Ok(()))
            }
            Self::Http2(up) => up.poll_send(cx, frame),
        }
    }

    /// Ready when all that was sent has left.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ()>> {
        match self {
            Self::Http1(up) => up.poll_flush(cx),
            Self::Http2(_) => Poll::Ready(Ok(())),
        }
    }

    /// What comes next.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Event, Failed>> {
        match self {
            Self::Http1(up) => up.poll_next(cx),
            Self::Http2(up) => up.poll_next(cx),
        }
    }

    /// `n` bytes of the body went on to the client.
    pub(super) fn passed_on(&mut self, n: usize) {
        if let Self::Http2(up) = self {
            up.passed_on(n);
        }
    }

    /// Takes what came of the body out of where it is in the way of others. Whether there was anything.
    pub(super) fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        match self {
            // Nobody shares the connection.
            Self::Http1(_) => false,
            Self::Http2(up) => up.gather(cx),
        }
    }

    /// Whether others were answered on its connection.
    pub(super) fn is_reused(&self) -> bool {
        match self {
            Self::Http1(up) => up.is_reused(),
            Self::Http2(up) => up.is_reused(),
        }
    }
}
