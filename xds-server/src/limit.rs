//! Accepting no more connections than can be served.

use std::{
    io::{self, Read, Write},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use prometheus_client::metrics::counter::Counter;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;

use crate::access::{ListenerTls, Wire};

/// How long the other side may leave data unacknowledged before the connection is given up. Bounds
/// how long an instance whose host vanished stays registered by its connection.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a connection may take to send its first byte.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection that counts against a limit for as long as it lives.
pub struct Limited<T> {
    stream: T,
    permit: OwnedSemaphorePermit,
}

/// How many connections there may be, and what becomes of one too many.
pub struct Bound {
    /// How many may be open at once.
    pub connections: usize,
    /// What one too many is told before it is closed; nothing when empty.
    pub answer: &'static [u8],
    /// Counts those.
    pub refused: Counter,
    /// What connections begin with; `None` in the clear.
    pub tls: Option<ListenerTls>,
}

/// A connection that was accepted, and has said nothing yet.
pub struct Accepted {
    limited: Limited<TcpStream>,
    tls: Option<ListenerTls>,
    stop: CancellationToken,
}

/// Accepts connections within `bound` and hands them to `serve` until `stop`. Connections beyond the bound are
/// told so and closed, rather than left to wait for nobody knows what.
pub async fn accept(
    listener: TcpListener,
    bound: Bound,
    stop: CancellationToken,
    mut serve: impl FnMut(Accepted),
) {
    let permits = Arc::new(Semaphore::new(bound.connections));
    let accepting = async {
        loop {
            let stream = next(&listener).await;
            let Ok(permit) = Arc::clone(&permits).try_acquire_owned() else {
                bound.refused.inc();
                refuse(stream, bound.answer);
                continue;
            };
            prepare(&stream);
            let limited = Limited { stream, permit };
            serve(Accepted { limited, tls: bound.tls.clone(), stop: stop.clone() });
        }
    };
    tokio::select! {
        () = accepting => {}
        () = stop.cancelled() => {}
    }
}

impl Accepted {
    /// The connection, when it has sent its first byte, after its TLS handshake if there is to be one;
    /// nothing if it stays silent. It belongs to the runtime that this is called in, which may be another
    /// than the one that accepted it.
    pub async fn open(self) -> Option<Limited<Wire>> {
        let Self { limited, tls, stop } = self;
        let opening = async {
            let Limited { stream, permit } = limited;
            let stream = TcpStream::from_std(stream.into_std().ok()?).ok()?;
            let mut first = [0];
            let speaks = tokio::time::timeout(FIRST_BYTE_TIMEOUT, stream.peek(&mut first)).await;
            let Ok(Ok(1..)) = speaks else { return None };
            let stream = match tls {
                Some(tls) => tls.accept(stream).await?,
                None => Wire::clear(stream).ok()?,
            };
            Some(Limited { stream, permit })
        };
        tokio::select! {
            opened = opening => opened,
            () = stop.cancelled() => None,
        }
    }
}

/// Says why, if that can be done without waiting, and closes.
fn refuse(stream: TcpStream, answer: &[u8]) {
    let Ok(mut stream) = stream.into_std() else { return };
    // A socket that is closed over unread bytes is reset, and its answer is lost; what has come
    // already is read. The rest is the client's luck.
    let _ = stream.write(answer).and_then(|_| stream.read(&mut [0; 4_096]));
}

/// The next connection. An error is of one connection, or of a lack of descriptors that passes.
async fn next(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
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

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        sync::mpsc,
    };

    use super::*;

    type Opened = mpsc::Receiver<Limited<Wire>>;

    async fn listening(connections: usize) -> (std::net::SocketAddr, Opened, Counter, CancellationToken) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (opened, incoming) = mpsc::channel(1);
        let (refused, stop) = (Counter::default(), CancellationToken::new());
        let bound = Bound { connections, answer: b"no", refused: refused.clone(), tls: None };
        let serve = move |accepted: Accepted| {
            let opened = opened.clone();
            tokio::spawn(async move {
                if let Some(stream) = accepted.open().await {
                    opened.send(stream).await.unwrap();
                }
            });
        };
        tokio::spawn(accept(listener, bound, stop.clone(), serve));
        (address, incoming, refused, stop)
    }

    async fn connect(to: std::net::SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(to).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        stream
    }

    #[tokio::test]
    async fn one_too_many_is_told_so_and_counted() {
        let (address, mut incoming, refused, _stop) = listening(1).await;
        let _first = connect(address).await;
        let held = incoming.recv().await.unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let mut answer = Vec::new();
        second.read_to_end(&mut answer).await.unwrap();
        assert_eq!((answer.as_slice(), refused.get()), (b"no".as_slice(), 1));
        drop(held);
        let _third = connect(address).await;
        assert!(incoming.recv().await.is_some());
        assert_eq!(refused.get(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_says_nothing_is_closed_and_makes_room() {
        let (address, mut incoming, _, _stop) = listening(1).await;
        let began = tokio::time::Instant::now();
        let mut silent = TcpStream::connect(address).await.unwrap();
        assert_eq!(silent.read(&mut [0]).await.unwrap(), 0);
        assert!(began.elapsed() >= FIRST_BYTE_TIMEOUT);
        assert!(incoming.try_recv().is_err());
        tokio::time::resume();
        let _speaking = connect(address).await;
        assert!(incoming.recv().await.is_some());
    }

    #[tokio::test]
    async fn a_stop_does_not_wait_for_the_silent() {
        let (address, mut incoming, _, stop) = listening(2).await;
        let _silent = TcpStream::connect(address).await.unwrap();
        let _speaking = connect(address).await;
        assert!(incoming.recv().await.is_some());
        stop.cancel();
        assert!(incoming.recv().await.is_none());
    }
}
