//! One request and its response, both directions at once: a response may begin before the request has
//! ended, and be preceded by interim ones (RFC 9110 §15.2). Whatever is spoken on either side.

use std::{
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;

use super::{
    super::{fault::Fault, upstream},
    Frame,
    client::{Client, NoBody},
    up::{Event, Failed, Up},
};
use crate::{load::Aborted, worker::timer::Timer};

/// How long a client may take nothing of what waits for it, or leave its request body waiting.
pub(super) const SLOWNESS: Duration = Duration::from_mins(1);
/// Bytes of a request's body that are kept until its response begins, to send them once more.
const KEPT: usize = 16 * 1024;
/// Frames below so many bytes are kept as copies: each would hold all of the buffer that it came in.
const COPIED: usize = 4 * 1024;

/// Interim responses to one request: nothing else bounds what they take before the client reads.
const MAX_INTERIMS: u32 = 16;

/// How an attempt to exchange a request for a response ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The response was sent to its end.
    Complete,
    /// The endpoint failed before any byte of a response.
    Died(Failed),
    /// Nothing was sent to the client yet, and it is to be told this.
    Refused(Fault),
    /// The response had begun and was cut, or nobody is left to tell.
    Cut(Aborted),
}

/// The body of a request over all attempts to send it.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// The frames so far, as long as they are few.
    kept: Vec<Frame>,
    bytes: usize,
    /// Whether any was not kept.
    forgotten: bool,
}

impl Sent {
    /// Whether all of the body that was taken from the client is still here.
    pub(super) fn is_replayable(&self) -> bool {
        !self.forgotten
    }

    fn keep(&mut self, frame: &Frame) {
        if self.forgotten {
            return;
        }
        self.bytes += frame.len();
        if self.bytes > KEPT || self.kept.len() > 100 {
            self.forget();
        } else {
            self.kept.push(match frame {
                Frame::Data(data, ends) if data.len() < COPIED => {
                    Frame::Data(Bytes::copy_from_slice(data), *ends)
                }
                frame => frame.clone(),
            });
        }
    }

    fn forget(&mut self) {
        self.forgotten = true;
        self.kept = Vec::new();
    }
}

/// Everything an attempt works with.
pub(super) struct Exchange<'a, C> {
    pub(super) client: &'a mut C,
    pub(super) up: Up,
    timer: &'a Timer,
    sent: &'a mut Sent,
    /// Frames of `sent` that were sent again.
    replayed: usize,
    /// On its way to the endpoint, and how many of its bytes the client is still owed.
    rising: Option<(Frame, usize)>,
    rises: Rises,
    /// On its way to the client.
    falling: Option<Frame>,
    /// Whether something waits for the client in a buffer of its own.
    flushing: bool,
    /// Whether the endpoint's response came to its end.
    ended: bool,
    /// How long the client may leave its body waiting before the response has begun.
    body_patience: Duration,
    /// Whether anything moved in this turn from one side towards the other.
    moved: bool,
    /// Whether an interim response went on.
    interim: bool,
    interims: u32,
    /// Of the response, once its head was read.
    pub(super) status: u16,
    /// Of the body of the response.
    pub(super) bytes_sent: u64,
}

/// What the request waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rises {
    Client,
    Endpoint,
    /// All of it was sent.
    Over,
    /// The endpoint takes no more of it; it may answer even so.
    Broken,
}

impl<'a, C: Client> Exchange<'a, C> {
    /// `has_body` says that more than the head is to come.
    pub(super) fn new(
        client: &'a mut C,
        up: Up,
        timer: &'a Timer,
        sent: &'a mut Sent,
        has_body: bool,
        body_patience: Duration,
    ) -> Self {
        timer.set(upstream::SILENCE);
        Self {
            client,
            up,
            timer,
            sent,
            replayed: 0,
            rising: None,
            rises: if has_body { Rises::Client } else { Rises::Over },
            falling: None,
            flushing: false,
            ended: false,
            body_patience,
            moved: false,
            interim: false,
            interims: 0,
            status: 0,
            bytes_sent: 0,
        }
    }

    /// The attempt is over: what its endpoint did not take counts as gone on, so that the client's window
    /// does not shrink by it.
    pub(super) fn give_back(&mut self) {
        if let Some((_, owed)) = self.rising.take().filter(|(_, owed)| *owed > 0) {
            self.client.passed_on(owed);
        }
    }

    /// Whether the endpoint has the whole request.
    pub(super) fn is_sent(&self) -> bool {
        self.rises == Rises::Over
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        self.moved = false;
        if let Poll::Ready(Err(end)) = self.poll_up(cx) {
            return Poll::Ready(end);
        }
        if let Poll::Ready(end) = self.poll_down(cx) {
            return Poll::Ready(end);
        }
        if self.client.poll_gone(cx).is_ready() {
            return Poll::Ready(End::Cut(Aborted::Client));
        }
        let gathered = self.gather(cx);
        // What is only put aside gives nobody more time.
        self.poll_time(cx, self.moved || !gathered)
    }

    /// Puts aside what came from one side while the other takes nothing. Whether that was anything.
    fn gather(&mut self, cx: &mut Context<'_>) -> bool {
        let of_request = matches!(self.rises, Rises::Endpoint | Rises::Broken) && self.client.gather(cx);
        let of_response = self.falling.is_some() && self.up.gather(cx);
        of_request || of_response
    }

    /// The request. Ready when there is nothing more to send.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        while matches!(self.rises, Rises::Client | Rises::Endpoint) {
            if let Some((frame, owed)) = &mut self.rising {
                let before = frame.len();
                let sent = self.up.poll_send(cx, frame);
                let passed = (before - frame.len()).min(*owed);
                *owed -= passed;
                if passed > 0 {
                    self.moved = true;
                    self.client.passed_on(passed);
                }
                self.rises = Rises::Endpoint;
                let ended = frame.ends();
                match ready!(sent) {
                    Ok(()) => self.rising = None,
                    Err(()) => self.rises = Rises::Broken,
                }
                if ended && self.rising.is_none() {
                    self.rises = Rises::Over;
                }
                continue;
            }
            self.rises = Rises::Endpoint;
            if ready!(self.up.poll_room(cx)).is_err() {
                self.rises = Rises::Broken;
                break;
            }
            match self.poll_frame(cx) {
                Poll::Ready(Ok(frame)) => {
                    self.moved = true;
                    self.rising = Some(frame);
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(self.no_body(error))),
                Poll::Pending => {
                    if ready!(self.up.poll_flush(cx)).is_err() {
                        self.rises = Rises::Broken;
                        break;
                    }
                    self.rises = Rises::Client;
                    return Poll::Pending;
                }
            }
        }
        if self.rises == Rises::Over && ready!(self.up.poll_flush(cx)).is_err() {
            self.rises = Rises::Broken;
        }
        Poll::Ready(Ok(()))
    }

    /// The next frame of the request, and how many bytes of it are new.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Frame, usize), NoBody>> {
        if let Some(frame) = self.sent.kept.get(self.replayed) {
            self.replayed += 1;
            return Poll::Ready(Ok((frame.clone(), 0)));
        }
        let frame = ready!(self.client.poll_body(cx))?;
        self.sent.keep(&frame);
        self.replayed += 1;
        let len = frame.len();
        Poll::Ready(Ok((frame, len)))
    }

    fn no_body(&self, error: NoBody) -> End {
        match error {
            NoBody::Bad if self.status == 0 => End::Refused(Fault::BadBody),
            NoBody::Bad | NoBody::Gone => End::Cut(Aborted::Client),
        }
    }

    /// The response.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<End> {
        const GONE: Poll<End> = Poll::Ready(End::Cut(Aborted::Client));
        loop {
            if let Some(frame) = &mut self.falling {
                let before = frame.len();
                let sent = self.client.poll_send(cx, frame);
                let passed = before - frame.len();
                if passed > 0 {
                    self.moved = true;
                    self.bytes_sent += passed as u64;
                    self.up.passed_on(passed);
                }
                if ready!(sent).is_err() {
                    return GONE;
                }
                self.ended |= frame.ends();
                self.falling = None;
            }
            let next = if self.ended { Poll::Pending } else { self.up.poll_next(cx) };
            self.moved |= next.is_ready();
            match next {
                Poll::Ready(Ok(Event::Body(frame))) => self.falling = Some(frame),
                Poll::Ready(Ok(Event::Head(response, ends))) => {
                    self.status = response.status().as_u16();
                    self.sent.forget();
                    self.ended = ends;
                    if self.client.send_head(*response, ends).is_err() {
                        return GONE;
                    }
                }
                Poll::Ready(Ok(Event::Interim(response))) => {
                    self.interim = true;
                    self.interims += 1;
                    if self.interims > MAX_INTERIMS {
                        return Poll::Ready(self.failed(Failed::Broken));
                    }
                    self.client.send_interim(response);
                }
                Poll::Ready(Err(failed)) => return Poll::Ready(self.failed(failed)),
                Poll::Pending => {
                    let flushed = self.client.poll_flush(cx);
                    self.flushing = flushed.is_pending();
                    if ready!(flushed).is_err() {
                        return GONE;
                    }
                    return if self.ended { Poll::Ready(End::Complete) } else { Poll::Pending };
                }
            }
        }
    }

    fn failed(&self, failed: Failed) -> End {
        match failed {
            _ if self.status > 0 => End::Cut(Aborted::Upstream),
            Failed::Broken => End::Refused(Fault::Broken),
            _ if self.interim => End::Refused(Fault::Broken),
            failed => End::Died(failed),
        }
    }

    /// `moved` says that whoever is waited for is not waited for since the last time.
    fn poll_time(&mut self, cx: &mut Context<'_>, moved: bool) -> Poll<End> {
        let waits = if self.falling.is_some() || self.flushing {
            Waits::Client(SLOWNESS)
        } else if self.rises == Rises::Client && self.status == 0 {
            Waits::Body(self.body_patience)
        } else {
            Waits::Endpoint
        };
        if !self.timer.has_passed(cx) {
            if moved {
                self.timer.set(match waits {
                    Waits::Client(patience) | Waits::Body(patience) => patience,
                    Waits::Endpoint => upstream::SILENCE,
                });
            }
            return Poll::Pending;
        }
        Poll::Ready(match (self.status, waits) {
            (1.., _) | (_, Waits::Client(_)) => End::Cut(Aborted::Timeout),
            (0, Waits::Body(_)) => End::Refused(Fault::SlowBody),
            (0, Waits::Endpoint) => End::Refused(Fault::TimedOut),
        })
    }
}

/// What an exchange waits for, and how long.
enum Waits {
    /// That it takes the response.
    Client(Duration),
    /// The body of the request.
    Body(Duration),
    Endpoint,
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    /// A buffer that is counted while it is held.
    struct Buffer(Vec<u8>, Arc<AtomicUsize>);

    impl AsRef<[u8]> for Buffer {
        fn as_ref(&self) -> &[u8] {
            &self.0
        }
    }

    impl Drop for Buffer {
        fn drop(&mut self) {
            self.1.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn what_is_kept_to_be_sent_again_holds_few_buffers() {
        let held = Arc::<AtomicUsize>::default();
        for (len, frames, most) in [(1, 100, 0), (COPIED - 1, 4, 0), (COPIED, 4, 4)] {
            let mut sent = Sent::default();
            for i in 0..frames {
                held.fetch_add(1, Ordering::Relaxed);
                let buffer = Bytes::from_owner(Buffer(vec![i; 32 * 1024], Arc::clone(&held)));
                sent.keep(&Frame::Data(buffer.slice(7..7 + len), false));
            }
            assert!(sent.is_replayable());
            assert_eq!(held.load(Ordering::Relaxed), most, "of {frames} of {len} bytes");
            for (i, frame) in sent.kept.iter().enumerate() {
                assert!(matches!(frame, Frame::Data(data, false) if *data == vec![i as u8; len]));
            }
        }
    }
}
