//! One client connection, as pingora wants to see it. Beyond passing bytes on, it
//! - knows from the first bytes whether the client speaks HTTP/2 with prior knowledge, however few
//!   bytes a first HTTP/1 request has;
//! - gathers small writes, so that a head and a short body leave in one segment, but never waits for
//!   the client while it owes the client bytes;
//! - ends a connection whose request head does not arrive in [`HEAD_TIMEOUT`].

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
};

use crate::load::now_micros;

/// How long the head of a request may take, from its first byte to its last.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a connection may be open before its first byte.
pub(super) const FIRST_BYTE_TIMEOUT: Duration = Duration::from_mins(1);
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
    /// When the head that is being read began: [`IDLE`] before its first byte, [`NO_HEAD`] when none
    /// is being read, else µs of [`now_micros`].
    head_since: AtomicU64,
}

const NO_HEAD: u64 = 0;
const IDLE: u64 = 1;

impl Downstream {
    /// Reads the first bytes of a connection; `None` when it ends or times out before its protocol
    /// is known.
    pub(super) async fn open(mut tcp: TcpStream, peer: SocketAddr) -> Option<Self> {
        let mut first = Vec::with_capacity(2 * 1024);
        let mut wait = FIRST_BYTE_TIMEOUT;
        while first.is_empty() || (first.len() < PREFACE.len() && PREFACE.starts_with(&first)) {
            match tokio::time::timeout(wait, tcp.read_buf(&mut first)).await {
                Ok(Ok(n)) if n > 0 => wait = HEAD_TIMEOUT,
                _ => return None,
            }
        }
        let socket = SocketDigest::from_raw_fd(tcp.as_raw_fd());
        // Kept from the accept, so that it is known even after the client has gone.
        _ = socket.peer_addr.set(Some(peer.into()));
        Some(Self {
            http2: first.starts_with(PREFACE),
            stream: BufWriter::with_capacity(WRITE_BUFFER, tcp),
            first,
            socket: Arc::new(socket),
            head_since: AtomicU64::new(IDLE),
        })
    }

    /// Whether it begins with the preface of HTTP/2.
    pub(super) fn is_http2(&self) -> bool {
        self.http2
    }

    /// The next bytes are the head of a request.
    pub(super) fn expect_head(&self) {
        self.head_since.store(IDLE, Ordering::Relaxed);
    }

    /// The head has been read.
    pub(super) fn head_complete(&self) {
        self.head_since.store(NO_HEAD, Ordering::Relaxed);
    }

    /// Notes bytes of a head; an error when it takes too long.
    fn on_bytes(&self) -> io::Result<()> {
        match self.head_since.load(Ordering::Relaxed) {
            NO_HEAD => Ok(()),
            _ if self.http2 => Ok(()), // streams have their own bounds
            IDLE => {
                self.head_since.store(now_micros().max(IDLE + 1), Ordering::Relaxed);
                Ok(())
            }
            since if now_micros() - since > HEAD_TIMEOUT.as_micros() as u64 => {
                Err(io::Error::new(io::ErrorKind::TimedOut, "the head of the request took too long"))
            }
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Downstream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let n = buf.remaining().min(self.first.len());
            buf.put_slice(&self.first[..n]);
            if n == self.first.len() {
                self.first = Vec::new();
            } else {
                self.first.drain(..n);
            }
            return Poll::Ready(self.on_bytes());
        }
        let before = buf.filled().len();
        let read = Pin::new(self.stream.get_mut()).poll_read(cx, buf);
        if read.is_pending() && !self.stream.buffer().is_empty() {
            // pingora leaves a head with a length unflushed until its body comes, which may be long.
            // An error shows again at the next write.
            let _ = Pin::new(&mut self.stream).poll_flush(cx);
        }
        ready!(read)?;
        Poll::Ready(if buf.filled().len() > before { self.on_bytes() } else { Ok(()) })
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
