//! A client's connection from its acceptance to the engine that its protocol belongs to: TLS and what
//! it agreed on, or else the first bytes, tell which.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::net::TcpStream;

use super::{
    gateway::Gateway,
    general,
    lean::{self, incoming::Incoming},
    stream::Stream,
};
use crate::{
    tls::{ServerStream, ServerTls},
    worker::timer::Timer,
};

/// How long a client may take to shake hands, and to send the preface of HTTP/2.
const HANDSHAKE: Duration = Duration::from_secs(15);
/// How long a connection may be open before its first byte.
const FIRST_BYTE: Duration = Duration::from_mins(1);
/// How long one is left open for it after its gateway was told to stop.
const LAST_CALL: Duration = Duration::from_millis(200);
/// The client preface of HTTP/2 (RFC 9113 §3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Serves a connection to its end.
pub(super) async fn serve(tcp: TcpStream, peer: SocketAddr, gateway: Arc<Gateway>) {
    match gateway.tls.load_full() {
        Some(tls) => serve_tls(tcp, peer, &gateway, &tls).await,
        None => serve_clear(Stream::Tcp(tcp), peer, &gateway).await,
    }
}

async fn serve_tls(tcp: TcpStream, peer: SocketAddr, gateway: &Arc<Gateway>, tls: &ServerTls) {
    // On the heap: it is large, and over before the first request.
    let shaken = Box::pin(ServerStream::accept(tcp, tls.config()));
    let Some(Ok(stream)) = in_time(HANDSHAKE, shaken).await else {
        gateway.shared.connections.stats.handshakes_failed.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let http2 = stream.state().alpn_protocol() == Some(b"h2");
    let stream = Stream::ServerTls(Box::new(stream));
    if http2 {
        Box::pin(general::serve(stream, peer, Incoming::default(), gateway)).await;
    } else {
        lean::serve(stream, peer, Incoming::default(), gateway).await;
    }
}

/// `None` when it takes too long.
async fn in_time<F: Future>(patience: Duration, future: F) -> Option<F::Output> {
    let timer = Timer::new();
    timer.set(patience);
    let mut future = pin!(future);
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if timer.has_passed(cx) => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

/// Clients that know that HTTP/2 is spoken begin with its preface (RFC 9113 §3.3).
async fn serve_clear(mut stream: Stream, peer: SocketAddr, gateway: &Arc<Gateway>) {
    let mut incoming = Incoming::default();
    if !first_bytes(&mut stream, &mut incoming, gateway).await {
        return;
    }
    if incoming.bytes().starts_with(PREFACE) {
        // On the heap, so that connections of HTTP/1 do not carry its size.
        Box::pin(general::serve(stream, peer, incoming, gateway)).await;
    } else {
        lean::serve(stream, peer, incoming, gateway).await;
    }
}

/// Reads until it is known whether it is the preface; `false` when the connection is over before. A
/// first request of HTTP/1 may be shorter than the preface.
async fn first_bytes(stream: &mut Stream, incoming: &mut Incoming, gateway: &Gateway) -> bool {
    let timer = Timer::new();
    timer.set(FIRST_BYTE);
    let mut last_call = false;
    poll_fn(|cx| {
        loop {
            match incoming.poll_more(cx, stream) {
                Poll::Ready(Ok(n)) if n > 0 => {
                    let bytes = incoming.bytes();
                    if bytes.len() >= PREFACE.len() || !PREFACE.starts_with(bytes) {
                        return Poll::Ready(true);
                    }
                    timer.set(HANDSHAKE);
                }
                Poll::Ready(_) => return Poll::Ready(false),
                Poll::Pending => break,
            }
        }
        if gateway.is_stopping() && !last_call {
            // A request that is on its way may still come.
            last_call = true;
            timer.set(LAST_CALL);
        }
        if !timer.has_passed(cx) {
            return Poll::Pending;
        }
        if !incoming.is_empty() {
            gateway.shared.connections.stats.heads_refused.fetch_add(1, Ordering::Relaxed);
        }
        Poll::Ready(false)
    })
    .await
}
