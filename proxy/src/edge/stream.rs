//! A connection's bytes, in clear or through TLS, from a client or to an endpoint.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::client;

use crate::tls::ServerStream;

/// A connection.
#[derive(Debug)]
pub(crate) enum Stream {
    Tcp(TcpStream),
    /// A client's.
    ServerTls(Box<ServerStream>),
    /// To an endpoint.
    ClientTls(Box<client::TlsStream<TcpStream>>),
}

impl Stream {
    /// The connection below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::ServerTls(tls) => tls.tcp(),
            Self::ClientTls(tls) => tls.get_ref().0,
        }
    }

    pub(crate) fn is_tls(&self) -> bool {
        !matches!(self, Self::Tcp(_))
    }

    /// Whether nothing has come, not even the end. It is known without asking the kernel, and
    /// whatever the task has left of its turn. On TLS tickets may come at any time; they are taken in.
    pub(crate) fn is_quiet(&mut self) -> bool {
        if !has_come(self.tcp()) {
            return true;
        }
        if !self.is_tls() {
            return false;
        }
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        let read = Pin::new(&mut *self).poll_read(&mut Context::from_waker(Waker::noop()), &mut byte);
        read.is_pending() && !has_come(self.tcp())
    }

    /// Reads into `room`; 0 is the end.
    pub(crate) fn poll_read_into(
        &mut self,
        cx: &mut Context<'_>,
        room: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(room);
        let read = Pin::new(self).poll_read(cx, &mut buf);
        read.map_ok(|()| buf.filled().len())
    }

    /// Writes `bytes`; on TLS it is also sent, as far as the socket takes it.
    pub(crate) fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(self).poll_write(cx, bytes)
    }

    /// Writes both, in one call where it is in clear.
    pub(crate) fn poll_send_two(
        &mut self,
        cx: &mut Context<'_>,
        first: &[u8],
        second: &[u8],
    ) -> Poll<io::Result<usize>> {
        let both = [io::IoSlice::new(first), io::IoSlice::new(second)];
        Pin::new(self).poll_write_vectored(cx, &both)
    }

    /// Sends what TLS still holds back; nothing in clear.
    pub(crate) fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(_) => Poll::Ready(Ok(())),
            tls => Pin::new(tls).poll_flush(cx),
        }
    }

    /// Tells the other side that no more comes.
    pub(crate) fn poll_close(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(self).poll_shutdown(cx)
    }
}

/// Whether the kernel told of something to read.
fn has_come(tcp: &TcpStream) -> bool {
    // Succeeds without trying, so that what is known stays known.
    tcp.try_io(Interest::READABLE, || Ok(())).is_ok()
}

macro_rules! of_each {
    ($self:ident, $stream:ident => $what:expr) => {
        match $self.get_mut() {
            Stream::Tcp(tcp) => {
                let $stream = Pin::new(tcp);
                $what
            }
            Stream::ServerTls(tls) => {
                let $stream = Pin::new(&mut **tls);
                $what
            }
            Stream::ClientTls(tls) => {
                let $stream = Pin::new(&mut **tls);
                $what
            }
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        of_each!(self, stream => stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        of_each!(self, stream => stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        of_each!(self, stream => stream.poll_write_vectored(cx, bytes))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_each!(self, stream => stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        of_each!(self, stream => stream.poll_shutdown(cx))
    }
}
