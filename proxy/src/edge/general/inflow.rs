//! A body that comes by HTTP/2, on either side. Nothing of it is left in `h2` while the other side takes
//! nothing: `h2` counts small frames that wait in it over all streams of a connection, and when there are
//! too many it ends the connection, also for those who share it with one slow reader.
//!
//! What is held instead is bounded by the stream's window, as it is not given back before it went on.

use std::{
    collections::VecDeque,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use h2::RecvStream;

use super::Frame;

/// Frames below so many bytes are copied together when they are held: otherwise each would hold the
/// buffer that it was read into, with its neighbours of other streams.
const SMALL: usize = 4 * 1024;
/// Bytes of small frames that are copied together.
const TOGETHER: usize = 16 * 1024;

/// A body that comes.
#[derive(Debug)]
pub(super) struct Inflow {
    stream: RecvStream,
    /// Data that was taken before the other side had room, and behind it that of small frames.
    held: VecDeque<Bytes>,
    tail: BytesMut,
    /// How it ended, to be told after the data.
    end: Option<Result<Frame, h2::Error>>,
    data_ended: bool,
    /// Whether the end was told.
    over: bool,
}

impl Inflow {
    pub(super) fn new(stream: RecvStream) -> Self {
        let over = stream.is_end_stream();
        let (held, tail) = (VecDeque::new(), BytesMut::new());
        Self { stream, held, tail, end: None, data_ended: false, over }
    }

    /// What comes next; [`Frame::End`] again and again after the end.
    pub(super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, h2::Error>> {
        if self.over {
            return Poll::Ready(Ok(Frame::End));
        }
        let next = match (self.take_held(), self.end.take()) {
            (Some(data), Some(Ok(Frame::End))) if self.holds_nothing() => Ok(Frame::Data(data, true)),
            (Some(data), end) => {
                self.end = end;
                Ok(Frame::Data(data, false))
            }
            (None, Some(end)) => end,
            (None, None) => ready!(self.poll_stream(cx)),
        };
        self.over = next.as_ref().map_or(true, Frame::ends);
        Poll::Ready(next)
    }

    /// Takes all that came out of `h2`, for as long as the other side has no room. Whether that was
    /// anything.
    pub(super) fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while !self.over && self.end.is_none() {
            match self.poll_stream(cx) {
                Poll::Ready(Ok(Frame::Data(data, ends))) => {
                    self.hold(data);
                    self.end = ends.then_some(Ok(Frame::End));
                }
                Poll::Ready(end) => self.end = Some(end),
                Poll::Pending => break,
            }
            any = true;
        }
        any
    }

    /// `n` bytes went on: so many more may come.
    pub(super) fn passed_on(&mut self, n: usize) {
        // Fails only for more than came.
        _ = self.stream.flow_control().release_capacity(n);
    }

    /// Reads all that comes, and forgets it; ready at its end.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.over {
            if let Ok(frame) = ready!(self.poll_frame(cx)) {
                self.passed_on(frame.len());
            }
        }
        Poll::Ready(())
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Result<Frame, h2::Error>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(cx)) {
                Some(data) => {
                    return Poll::Ready(data.map(|data| Frame::Data(data, self.stream.is_end_stream())));
                }
                None => self.data_ended = true,
            }
        }
        let trailers = ready!(self.stream.poll_trailers(cx));
        Poll::Ready(trailers.map(|trailers| trailers.map_or(Frame::End, Frame::Trailers)))
    }

    fn hold(&mut self, data: Bytes) {
        let is_small = data.len() < SMALL;
        if !is_small || self.tail.len() + data.len() > TOGETHER {
            self.close_tail();
        }
        if is_small {
            self.tail.extend_from_slice(&data);
        } else {
            self.held.push_back(data);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            self.held.push_back(std::mem::take(&mut self.tail).freeze());
        }
    }

    fn take_held(&mut self) -> Option<Bytes> {
        self.held.pop_front().or_else(|| {
            // Whole, as what is sent of it may be kept for longer than the rest.
            (!self.tail.is_empty()).then(|| std::mem::take(&mut self.tail).freeze())
        })
    }

    fn holds_nothing(&self) -> bool {
        self.held.is_empty() && self.tail.is_empty()
    }
}
