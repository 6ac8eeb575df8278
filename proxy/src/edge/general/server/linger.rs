//! The end of a client's connection: its last words go out, and what the client still sends is taken in,
//! as a close with unread bytes would reset the connection, and the last words be lost.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::Poll,
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};
use tokio::io::AsyncWrite;

use super::super::wire::Wire;
use crate::worker::timer::Timer;

/// How long that may take.
const LINGER: Duration = Duration::from_secs(2);
/// Bytes that are read of what the client still sends.
const MOST: usize = 4 << 20;

/// Ready when both sides have said all, the streams that were left have ended, or time is up.
pub(super) async fn linger<F: Future>(mut wire: Wire, mut streams: FuturesUnordered<F>, timer: &Timer) {
    timer.set(LINGER);
    let (mut budget, mut said, mut silent) = (MOST, false, false);
    poll_fn(|cx| {
        let ended = loop {
            match streams.poll_next_unpin(cx) {
                Poll::Ready(Some(_)) => {}
                ended => break ended.is_ready(),
            }
        };
        // All that waits, and then the end, so that the client need not wait for us. A failure leaves
        // nobody to tell.
        said = said || Pin::new(&mut wire).poll_shutdown(cx).is_ready();
        silent = silent || wire.poll_discard(cx, &mut budget).is_ready();
        if (ended && said && silent) || timer.has_passed(cx) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::AsyncReadExt,
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::edge::{lean::incoming::Incoming, stream::Stream};

    #[tokio::test]
    async fn last_words_that_did_not_fit_go_out() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut peer = listener.accept().await.unwrap().0;
        let mut wire = Wire::new(Stream::Tcp(stream), Incoming::default());
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        let (mut taken, part) = (0, [7; 10_000]);
        while let Poll::Ready(n) = Pin::new(&mut wire).poll_write(&mut cx, &part) {
            taken += n.unwrap();
        }
        assert!((wire.sent() as usize) < taken, "the socket is full");
        let lingering = async {
            let streams = FuturesUnordered::<std::future::Ready<()>>::new();
            linger(wire, streams, &Timer::new()).await;
        };
        let reading = async move {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).await.unwrap();
            all.len()
        };
        let both = async { tokio::join!(lingering, reading).1 };
        let read = tokio::time::timeout(Duration::from_secs(10), both).await;
        assert_eq!(read.unwrap(), taken);
    }
}
