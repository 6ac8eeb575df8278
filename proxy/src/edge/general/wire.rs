//! The bytes of a connection below `h2`. It flushes after each frame of data; here they gather until the
//! connection's task has done all that can be done now, and leave in one write. What comes goes through
//! a [`sieve`](super::sieve).

use std::{
    io,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{lean::incoming::Incoming, stream::Stream},
    sieve::Sieve,
};
use crate::worker::buffer::Output;

/// Bytes that wait at most before `h2` has to.
const MOST: usize = 64 * 1024;
/// Small frames of data that `h2` gets in a row before it has to let its streams take them; with those of
/// the read that exceeds it. They always take all, so that no more ever wait in `h2`.
const SMALL_FRAMES: u32 = 1_024;
/// What `h2` itself may count for small frames that wait, before it ends the connection: so much that it
/// never does. It also counts what comes for streams that were reset before, and never forgets it; what
/// is enough for a burst would be too little for the life of a connection. [`SMALL_FRAMES`] is the bound.
pub(super) const SMALL_FRAMES_BUDGET: usize = usize::MAX / 2;

/// A connection that `h2` and its task share. The lock is never contended: both are one task.
#[derive(Clone, Debug)]
pub(super) struct Wire(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    stream: Stream,
    /// What was read before `h2` took over.
    read: Incoming,
    sieve: Sieve,
    /// Not held while there is nothing.
    out: Option<Output>,
    /// Whether TLS may hold something back.
    unsent: bool,
    /// Whom to tell that there is room again: `h2` had more to say, and the socket's own waker may be
    /// replaced by the task's since.
    refused: Option<Waker>,
    /// Bytes that went out, ever.
    sent: u64,
    /// Bytes that came, ever.
    received: u64,
}

impl Wire {
    /// From a client. Some of what it sent may have been read.
    pub(super) fn new(stream: Stream, read: Incoming) -> Self {
        Self::over(stream, read, Sieve::of_client())
    }

    pub(super) fn to_endpoint(stream: Stream) -> Self {
        Self::over(stream, Incoming::default(), Sieve::of_endpoint())
    }

    fn over(stream: Stream, read: Incoming, sieve: Sieve) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            stream,
            read,
            sieve,
            out: None,
            unsent: false,
            refused: None,
            sent: 0,
            received: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends what has gathered.
    pub(super) fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_drain(cx)
    }

    /// Takes in what the other side still sends, and forgets it; ready when that is all, or more than
    /// `budget` bytes.
    pub(super) fn poll_discard(&self, cx: &mut Context<'_>, budget: &mut usize) -> Poll<()> {
        let mut inner = self.lock();
        loop {
            inner.read = Incoming::default();
            let Inner { stream, read, .. } = &mut *inner;
            match ready!(read.poll_more(cx, stream)) {
                Ok(n) if n > 0 && n < *budget => *budget -= n,
                _ => return Poll::Ready(()),
            }
        }
    }

    /// Bytes that came so far.
    pub(super) fn received(&self) -> u64 {
        self.lock().received
    }

    /// Bytes that went out so far.
    pub(super) fn sent(&self) -> u64 {
        self.lock().sent
    }
}

impl Inner {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(out) = &mut self.out {
            while !out.is_done() {
                self.unsent = true;
                let n = ready!(self.stream.poll_send(cx, out.rest()))?;
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                self.sent += n as u64;
                out.advance(n);
            }
            self.out = None;
        }
        if self.unsent {
            ready!(self.stream.poll_sent(cx))?;
            self.unsent = false;
        }
        if let Some(refused) = self.refused.take() {
            refused.wake();
        }
        Poll::Ready(Ok(()))
    }

    /// What came, as it came.
    fn poll_came(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.read.is_empty() {
            let before = buf.filled().len();
            let read = Pin::new(&mut self.stream).poll_read(cx, buf);
            self.received += (buf.filled().len() - before) as u64;
            return read;
        }
        let bytes = self.read.bytes();
        let n = bytes.len().min(buf.remaining());
        buf.put_slice(&bytes[..n]);
        self.read.consume(n);
        Poll::Ready(Ok(()))
    }

    /// What `h2` gets of it. Nothing only at the end.
    fn poll_sifted(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let passing = self.sieve.passing();
            if !passing.is_empty() {
                let n = passing.len().min(buf.remaining());
                buf.put_slice(&passing[..n]);
                self.sieve.passed(n);
                return Poll::Ready(Ok(()));
            }
            let missing = self.sieve.missing();
            if missing > 0 {
                let mut bytes = [0; 16];
                let mut rest = ReadBuf::new(&mut bytes[..missing]);
                ready!(self.poll_came(cx, &mut rest))?;
                self.sieve.give(rest.filled());
                continue;
            }
            let before = buf.filled().len();
            ready!(self.poll_came(cx, buf))?;
            let came = &mut buf.filled_mut()[before..];
            if came.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let kept = self.sieve.sift(came);
            buf.set_filled(before + kept);
            if kept > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }

    fn poll_gather(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.out.as_mut().is_some_and(|out| out.bytes().len() >= MOST) {
            let drained = self.poll_drain(cx)?;
            if drained.is_pending() {
                self.refused = Some(cx.waker().clone());
                return Poll::Pending;
            }
        }
        let out = self.out.get_or_insert_with(Output::new).bytes();
        let n = bytes.len().min(MOST - out.len());
        out.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.sieve.small() >= SMALL_FRAMES {
            inner.sieve.take_small();
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let read = inner.poll_sifted(cx, buf);
        if read.is_pending() {
            inner.sieve.take_small();
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().poll_gather(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        let mut gathered = 0;
        for bytes in all.iter().filter(|bytes| !bytes.is_empty()) {
            match inner.poll_gather(cx, bytes) {
                Poll::Ready(Ok(n)) => {
                    gathered += n;
                    if n < bytes.len() {
                        break;
                    }
                }
                _ if gathered > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(gathered))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing: see [`Wire::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.poll_drain(cx)?.is_pending() {
            inner.refused = Some(cx.waker().clone());
            return Poll::Pending;
        }
        inner.stream.poll_close(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    async fn pair() -> (Stream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (Stream::Tcp(stream), listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn what_was_read_comes_first_and_what_is_written_waits_for_the_turn_to_end() {
        let (stream, mut peer) = pair().await;
        let mut read = Incoming::default();
        read.append(b"PRI * HTTP/2.0");
        let mut wire = Wire::new(stream, read);
        peer.write_all(b"\r\n\r\nSM\r\n\r\n").await.unwrap();
        let mut bytes = [0; 24];
        wire.read_exact(&mut bytes).await.unwrap();
        assert_eq!((&bytes, wire.received()), (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 10));

        wire.write_all(b"one ").await.unwrap();
        wire.flush().await.unwrap();
        wire.write_all(b"two").await.unwrap();
        assert_eq!((wire.sent(), peer.try_read(&mut [0]).is_err()), (0, true));
        std::future::poll_fn(|cx| wire.poll_send(cx)).await.unwrap();
        assert_eq!((wire.sent(), wire.lock().out.is_none()), (7, true), "no buffer is held");
        let mut bytes = [0; 7];
        peer.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"one two");
    }

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_owed_a_bounded_lot() {
        let (stream, mut peer) = pair().await;
        let mut wire = Wire::new(stream, Incoming::default());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let mut taken = 0;
        let part = [7; 10_000];
        while let Poll::Ready(n) = Pin::new(&mut wire).poll_write(&mut cx, &part) {
            taken += n.unwrap();
        }
        assert!(taken as u64 - wire.sent() <= MOST as u64);
        let taker = tokio::spawn(async move {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            all.len()
        });
        wire.shutdown().await.unwrap();
        assert_eq!(taker.await.unwrap(), taken);
    }

    #[tokio::test]
    async fn what_is_all_dropped_is_not_the_end() {
        let (stream, mut peer) = pair().await;
        let empty = [0, 0, 0, 0, 0, 0, 0, 0, 1];
        let ping = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8];
        let mut read = Incoming::default();
        read.append(&[&[7; 24][..], &empty.repeat(3)].concat());
        let mut wire = Wire::new(stream, read);
        wire.read_exact(&mut [0; 24]).await.unwrap();
        let mut bytes = [0; 17];
        let mut cx = Context::from_waker(Waker::noop());
        let read = Pin::new(&mut wire).poll_read(&mut cx, &mut ReadBuf::new(&mut bytes));
        assert!(read.is_pending(), "nothing, and no end");
        peer.write_all(&[&empty[..], &ping, &empty[..4]].concat()).await.unwrap();
        wire.read_exact(&mut bytes).await.unwrap();
        assert_eq!(bytes, ping);
        drop(peer);
        let mut rest = Vec::new();
        wire.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, empty[..4], "what is cut off is told as it is");
    }

    #[tokio::test]
    async fn many_small_frames_come_in_parts() {
        let (stream, mut peer) = pair().await;
        let mut wire = Wire::to_endpoint(stream);
        peer.write_all(&[0, 0, 1, 0, 0, 0, 0, 0, 1, b'x'].repeat(3_000)).await.unwrap();
        drop(peer);
        let (mut taken, mut parts) = (0, Vec::new());
        std::future::poll_fn(|cx| {
            let mut bytes = [0; 64];
            loop {
                let mut buf = ReadBuf::new(&mut bytes);
                match Pin::new(&mut wire).poll_read(cx, &mut buf) {
                    Poll::Ready(read) => {
                        read.unwrap();
                        taken += buf.filled().len();
                        if buf.filled().is_empty() {
                            return Poll::Ready(());
                        }
                    }
                    Poll::Pending => {
                        parts.push(std::mem::take(&mut taken));
                        return Poll::Pending;
                    }
                }
            }
        })
        .await;
        parts.push(taken);
        assert_eq!(parts.iter().sum::<usize>(), 30_000);
        assert!(parts.iter().all(|part| *part < (SMALL_FRAMES as usize + 7) * 10), "{parts:?}");
    }

    #[tokio::test]
    async fn a_shutdown_that_had_to_wait_is_woken_when_the_task_has_sent_the_rest() {
        #[derive(Default)]
        struct Woken(std::sync::atomic::AtomicBool);

        impl std::task::Wake for Woken {
            fn wake(self: Arc<Self>) {
                self.0.store(true, std::sync::atomic::Ordering::Relaxed);
            }
        }

        let (stream, mut peer) = pair().await;
        let mut wire = Wire::new(stream, Incoming::default());
        let mut cx = Context::from_waker(Waker::noop());
        while Pin::new(&mut wire).poll_write(&mut cx, &[7; 10_000]).is_ready() {}
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(Arc::clone(&woken));
        assert!(Pin::new(&mut wire).poll_shutdown(&mut Context::from_waker(&waker)).is_pending());
        let taker = tokio::spawn(async move { peer.read_to_end(&mut Vec::new()).await.unwrap() });
        // The task's own waker takes the place of the one above.
        std::future::poll_fn(|cx| wire.poll_send(cx)).await.unwrap();
        assert!(woken.0.load(std::sync::atomic::Ordering::Relaxed));
        wire.shutdown().await.unwrap();
        taker.await.unwrap();
    }
}
