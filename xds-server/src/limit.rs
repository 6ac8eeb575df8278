//! Accepting no more connections than can be served.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long the other side may leave data unacknowledged before the connection is given up. Bounds
/// how long an instance whose host vanished stays registered by its connection.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection that counts against a limit for as long as it lives.
pub struct Limited<T> {
    stream: T,
    _permit: OwnedSemaphorePermit,
}

/// Accepts connections, at most `limit` at once, and hands them on until `stop`. Connections beyond
/// the limit wait in the kernel's backlog.
pub async fn accept(
    listener: TcpListener,
    limit: usize,
    accepted: mpsc::Sender<io::Result<Limited<TcpStream>>>,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(limit));
    let accepting = async {
        // The semaphore is never closed, so an error cannot come.
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let stream = next(&listener).await;
            if accepted.send(Ok(Limited { stream, _permit: permit })).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
}

/// The next connection. An error is of one connection, or of a lack of descriptors that passes.
async fn next(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                prepare(&stream);
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Small messages go at once, and a peer that vanished is noticed.
fn prepare(stream: &TcpStream) {
    let socket = SockRef::from(stream);
    let keepalive =
        TcpKeepalive::new().with_time(PEER_TIMEOUT).with_interval(Duration::from_secs(1)).with_retries(3);
    let prepared = stream
        .set_nodelay(true)
        .and_then(|()| socket.set_tcp_keepalive(&keepalive))
        .and_then(|()| socket.set_tcp_user_timeout(Some(PEER_TIMEOUT)));
    if let Err(error) = prepared {
        // The connection may have gone already; it is served as it is.
        tracing::debug!(%error, "cannot set options of a connection");
    }
}

impl<T> Limited<T> {
    /// The connection itself.
    pub fn stream(&self) -> &T {
        &self.stream
    }
}

impl Connected for Limited<TcpStream> {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Limited<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Limited<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
}
