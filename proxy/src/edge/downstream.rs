//! One client connection, as pingora wants to see it. Beyond passing bytes on, it
//! - knows from the first bytes whether the client speaks HTTP/2 with prior knowledge, however few
//!   bytes a first HTTP/1 request has;
//! - gathers small writes, so that a head and a short body leave in one segment, but never waits for
//!   the client while it owes the client bytes;
//! - bounds the head of a request: its time, its size, and the reads it comes in.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsRawFd,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use async_trait::async_trait;
use pingora_core::protocols::{
    GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl, TimingDigest,
    UniqueID, UniqueIDType, raw_connect::ProxyDigest,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufWriter, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep},
};

use crate::shared::Connections;

/// How long the head of a request may take, from its first byte to its last.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may be open before its first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_mins(1);
/// After so many bytes of a head no more are read; what one read brings may be beyond it.
const HEAD_BYTES: usize = 64 * 1024;
/// Reads that a head may take: pingora parses it anew after each, so a client that sends it byte by
/// byte would make it quadratic.
const HEAD_READS: usize = 1_024;
const TOO_LARGE: &[u8] =
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
const TOO_SLOW: &[u8] = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
/// Small writes are gathered up to this many bytes.
const WRITE_BUFFER: usize = 4 * 1024;
/// The client preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A client connection.
#[derive(Debug)]
pub(super) struct Downstream {
    stream: BufWriter<TcpStream>,
    /// Read before the protocol was known, and not handed on yet.
    first: Vec<u8>,
    http2: bool,
    socket: Arc<SocketDigest>,
    connections: Arc<Connections>,
    head_timeout: Duration,
    /// Odd while the head of a request is expected. Rises, so that the reading side, which is
    /// borrowed elsewhere when it changes, sees every head as a new one.
    phase: AtomicU64,
    /// The phase that `head` belongs to.
    seen: u64,
    /// The head that is being read, from its first byte on.
    head: Option<HeadRead>,
}

#[derive(Debug)]
struct HeadRead {
    until: Instant,
    bytes: usize,
    reads: usize,
    /// Made when the client lets us wait in the middle of a head, which is rare.
    timer: Option<Pin<Box<Sleep>>>,
}

impl HeadRead {
    fn begin(timeout: Duration) -> Self {
        Self { until: Instant::now() + timeout, bytes: 0, reads: 0, timer: None }
    }
}

impl Downstream {
    /// Reads the first bytes of a connection; `None` when it ends or times out before its protocol
    /// is known.
    pub(super) async fn open(
        mut tcp: TcpStream,
        peer: SocketAddr,
        connections: Arc<Connections>,
        head_timeout: Duration,
    ) -> Option<Self> {
        let mut first = Vec::with_capacity(2 * 1024);
        let read = tokio::time::timeout(FIRST_BYTE_TIMEOUT, tcp.read_buf(&mut first)).await;
        read.ok()?.ok().filter(|&n| n > 0)?;
        let head = HeadRead::begin(head_timeout);
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            match tokio::time::timeout_at(head.until, tcp.read_buf(&mut first)).await {
                Ok(Ok(n)) if n > 0 => {}
                Ok(_) => return None,
                Err(_) => {
                    connections.stats.heads_refused.fetch_add(1, Ordering::Relaxed);
                    return None;
                }
            }
        }
        let http2 = first.starts_with(PREFACE);
        let socket = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // Kept from the accept, so that it is known even after the client has gone.
        _ = socket.peer_addr.set(Some(peer.into()));
        // HTTP/2 has bounds of its own on the heads of its streams.
        let phase = u64::from(!http2);
        Some(Self {
            http2,
            stream: BufWriter::with_capacity(WRITE_BUFFER, tcp),
            first,
            socket: Arc::new(socket),
            connections,
            head_timeout,
            phase: AtomicU64::new(phase),
            seen: phase,
            head: (!http2).then_some(head),
        })
    }

    /// Whether it begins with the preface of HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// The next bytes are the head of a request.
    pub(super) fn expect_head(&self) {
        self.phase.fetch_or(1, Ordering::Relaxed);
    }

    /// The head has been read.
    pub(super) fn head_complete(&self) {
        let phase = self.phase.load(Ordering::Relaxed);
        self.phase.store(phase + phase % 2, Ordering::Relaxed);
    }

    fn expects_head(&mut self) -> bool {
        let phase = *self.phase.get_mut();
        if phase != self.seen {
            (self.seen, self.head) = (phase, None);
        }
        phase % 2 == 1
    }

    /// Notes bytes of a head.
    fn on_head_bytes(&mut self, bytes: usize) -> io::Result<()> {
        let timeout = self.head_timeout;
        let head = self.head.get_or_insert_with(|| HeadRead::begin(timeout));
        head.bytes += bytes;
        head.reads += 1;
        if head.reads > 1 && Instant::now() >= head.until {
            return Err(self.refuse(io::ErrorKind::TimedOut, TOO_SLOW));
        }
        Ok(())
    }

    /// Another read of a head is asked for, so it is not complete: whether there may be one.
    fn check_head(&mut self) -> io::Result<()> {
        match &self.head {
            Some(head) if head.bytes >= HEAD_BYTES || head.reads >= HEAD_READS => {
                Err(self.refuse(io::ErrorKind::InvalidData, TOO_LARGE))
            }
            _ => Ok(()),
        }
    }

    /// The client lets us wait for the rest of a head.
    fn wait_for_head(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let Some(head) = &mut self.head else { return Ok(()) };
        let until = head.until;
        let timer = head.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        match timer.as_mut().poll(cx) {
            Poll::Ready(()) => Err(self.refuse(io::ErrorKind::TimedOut, TOO_SLOW)),
            Poll::Pending => Ok(()),
        }
    }

    /// Answers before pingora has a request it could answer; what it takes is sent when it closes.
    fn refuse(&mut self, kind: io::ErrorKind, answer: &[u8]) -> io::Error {
        self.connections.stats.heads_refused.fetch_add(1, Ordering::Relaxed);
        let _ = Pin::new(&mut self.stream).poll_write(&mut Context::from_waker(Waker::noop()), answer);
        io::Error::new(kind, "the head of the request is too large or too slow")
    }
}

impl AsyncRead for Downstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let in_head = self.expects_head();
        if in_head {
            self.check_head()?;
        }
        if !self.first.is_empty() {
            let n = buf.remaining().min(self.first.len());
            buf.put_slice(&self.first[..n]);
            if n == self.first.len() {
                self.first = Vec::new();
            } else {
                self.first.drain(..n);
            }
            return Poll::Ready(if in_head { self.on_head_bytes(n) } else { Ok(()) });
        }
        let before = buf.filled().len();
        let read = Pin::new(self.stream.get_mut()).poll_read(cx, buf);
        if read.is_pending() && !self.stream.buffer().is_empty() {
            // pingora leaves a head with a length unflushed until its body comes, which may be long.
            // An error shows again at the next write.
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        if read.is_pending() && in_head {
            self.wait_for_head(cx)?;
        }
        ready!(read)?;
        let n = buf.filled().len() - before;
        Poll::Ready(if in_head && n > 0 { self.on_head_bytes(n) } else { Ok(()) })
    }
}

impl AsyncWrite for Downstream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Drop for Downstream {
    /// What is still gathered leaves now, as far as the socket takes it without waiting.
    fn drop(&mut self) {
        if !self.stream.buffer().is_empty() {
            let _ = pin!(self.stream.flush()).poll(&mut Context::from_waker(Waker::noop()));
        }
    }
}

#[async_trait]
impl Shutdown for Downstream {
    async fn shutdown(&mut self) {
        // The client may have gone already; then there is nothing to shut down.
        let _ = self.stream.shutdown().await;
    }
}

impl UniqueID for Downstream {
    fn id(&self) -> UniqueIDType {
        self.stream.get_ref().as_raw_fd()
    }
}

impl Ssl for Downstream {}

impl GetTimingDigest for Downstream {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Downstream {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        None
    }
}

impl GetSocketDigest for Downstream {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(Arc::clone(&self.socket))
    }
}

#[async_trait]
impl Peek for Downstream {
    /// pingora asks for the first 24 bytes to tell HTTP/2 from HTTP/1; that is known already, and a
    /// first request may be shorter.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        if self.http2 && buf.len() == PREFACE.len() {
            buf.copy_from_slice(PREFACE);
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    async fn pair() -> (TcpStream, TcpStream, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (server, peer) = listener.accept().await.unwrap();
        (client, server, peer)
    }

    async fn opened(first: &[u8]) -> (TcpStream, Downstream, Arc<Connections>) {
        let connections = Arc::new(Connections::new(1));
        let (mut client, server, peer) = pair().await;
        client.write_all(first).await.unwrap();
        let opened = Downstream::open(server, peer, Arc::clone(&connections), TIMEOUT).await.unwrap();
        (client, opened, connections)
    }

    /// Reads until an error, as pingora does while a head is not complete.
    async fn error(downstream: &mut Downstream) -> io::Error {
        let mut buffer = [0; 4_096];
        loop {
            match downstream.read(&mut buffer).await {
                Ok(n) => assert!(n > 0, "closed"),
                Err(error) => return error,
            }
        }
    }

    async fn answer(mut client: TcpStream) -> String {
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn a_head_that_does_not_come_to_its_end_is_ended_though_nothing_arrives() {
        let (client, mut downstream, connections) = opened(b"GET / HT").await;
        assert_eq!(error(&mut downstream).await.kind(), io::ErrorKind::TimedOut);
        drop(downstream);
        assert!(answer(client).await.starts_with("HTTP/1.1 408"));
        assert_eq!(connections.stats.heads_refused.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn the_preface_of_http2_has_the_same_deadline() {
        let connections = Arc::new(Connections::new(1));
        let (mut client, server, peer) = pair().await;
        client.write_all(b"PRI * HT").await.unwrap();
        assert!(Downstream::open(server, peer, Arc::clone(&connections), TIMEOUT).await.is_none());
        assert_eq!(connections.stats.heads_refused.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_large_head_is_not_read_to_its_end() {
        let (mut client, mut downstream, _) = opened(b"GET / HTTP/1.1\r\nx: ").await;
        downstream.head_timeout = Duration::from_mins(1);
        downstream.head = None;
        let writing = tokio::spawn(async move {
            client.write_all(&vec![b'y'; HEAD_BYTES]).await.unwrap();
            client
        });
        assert_eq!(error(&mut downstream).await.kind(), io::ErrorKind::InvalidData);
        drop(downstream);
        // The last bytes may be unread when it closes, so that the answer may be lost.
        _ = writing.await.unwrap();
    }

    #[tokio::test]
    async fn a_head_in_crumbs_is_refused() {
        let (client, mut downstream, _) = opened(&[b'y'; HEAD_READS + 1]).await;
        downstream.head = None;
        downstream.head_timeout = Duration::from_mins(1);
        for _ in 0..HEAD_READS {
            downstream.read_u8().await.unwrap();
        }
        assert_eq!(downstream.read_u8().await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        drop(downstream);
        assert!(answer(client).await.starts_with("HTTP/1.1 431"));
    }

    #[tokio::test]
    async fn a_body_has_no_bound_and_the_next_head_its_own() {
        let (mut client, mut downstream, _) = opened(b"POST / HTTP/1.1\r\n\r\n").await;
        let mut buffer = vec![0; HEAD_BYTES];
        assert_eq!(downstream.read(&mut buffer).await.unwrap(), 19);
        downstream.head_complete();
        tokio::time::sleep(TIMEOUT * 2).await; // what is tested: time passes and nothing happens
        client.write_all(&buffer).await.unwrap();
        downstream.read_exact(&mut buffer).await.unwrap();
        downstream.expect_head();
        client.write_all(b"GET /").await.unwrap();
        assert_eq!(downstream.read(&mut buffer).await.unwrap(), 5);
        assert_eq!(downstream.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
