//! One HTTP/2 connection, and all its streams, as one task.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    Ping, PingPong, RecvStream,
    server::{self, SendResponse},
};
use http::{HeaderValue, Request, Response, header::CONTENT_TYPE};
use tokio::time::{Sleep, sleep_until, timeout};
use tokio_util::io::InspectReader;
use tonic::Status;

use super::{
    Ads,
    bell::Bell,
    elsewhere::Elsewhere,
    feed::{Feed, Seat},
    outgoing::Outgoing,
    requests::Requests,
    services::{self, Method},
    stream::Stream,
};
use crate::{
    access::{Peer, Wire},
    limit::Limited,
};

/// How many streams one connection may have open.
const MAX_STREAMS: u32 = 64;
/// How much a stream may send ahead of what was read of it, in bytes, and all of a connection together.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// How much of what a stream is sent may wait for its connection, in bytes: while a thousand clients that
/// connect at once are sent everything, this is held for each of them.
const SEND_BUFFER: usize = 64 << 10;
/// How long the heads of a request may be, in bytes.
const MAX_HEADERS: u32 = 16 << 10;
/// How long a connection may take to begin.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that was silent for so long is asked whether it is there.
const SILENCE: Duration = Duration::from_secs(10);
/// How long it may take to say so.
const PONG_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one connection until it ends.
pub(super) async fn serve(stream: Limited<Wire>, ads: Ads, feed: Arc<Feed>, elsewhere: Elsewhere) {
    let peer = stream.stream().peer().clone();
    let heard = Arc::new(AtomicBool::new(false));
    let mut http = server::Builder::new();
    http.max_concurrent_streams(MAX_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .max_header_list_size(MAX_HEADERS);
    let hears = Arc::clone(&heard);
    let stream: Heard = InspectReader::new(stream, Box::new(move |_| hears.store(true, Ordering::Relaxed)));
    let Ok(Ok(mut http)) = timeout(HANDSHAKE_TIMEOUT, http.handshake(stream)).await else {
        return;
    };
    let bell = Bell::new();
    let waker = bell.waker();
    let now = Instant::now();
    let alive = Alive { ping: http.ping_pong(), heard, look: now + SILENCE, asked: false };
    let mut connection = Connection {
        http,
        seat: feed.sit(waker.clone()),
        // Mostly there is one.
        streams: Vec::with_capacity(1),
        ads,
        peer,
        elsewhere,
        alive,
        stopping: false,
        timer: Timer { sleep: Box::pin(sleep_until((now + SILENCE).into())), at: now + SILENCE },
        waker,
    };
    std::future::poll_fn(|context| bell.turns(context, || connection.turn())).await;
}

/// A connection that notes when something was read.
type Heard = InspectReader<Limited<Wire>, Box<dyn FnMut(&[u8]) + Send>>;

struct Connection {
    http: server::Connection<Heard, Bytes>,
    streams: Vec<Stream>,
    seat: Seat,
    ads: Ads,
    peer: Peer,
    elsewhere: Elsewhere,
    alive: Alive,
    stopping: bool,
    timer: Timer,
    waker: Waker,
}

impl Connection {
    /// Reads, lets every stream do what it can, writes. Ready when the connection is over.
    fn turn(&mut self) -> Poll<()> {
        let waker = self.waker.clone();
        let context = &mut Context::from_waker(&waker);
        loop {
            match self.http.poll_accept(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok((request, respond)))) => self.open(request, respond),
                Poll::Ready(None | Some(Err(_))) => return Poll::Ready(()),
            }
        }
        let now = Instant::now();
        self.streams.retain_mut(|stream| stream.poll(context, now).is_pending());
        if self.seat.feed().is_stopping() && !std::mem::replace(&mut self.stopping, true) {
            self.http.graceful_shutdown();
            context.waker().wake_by_ref();
        }
        if self.alive.is_dead(context, now) {
            return Poll::Ready(());
        }
        let deadlines = self.streams.iter().filter_map(|stream| stream.deadline(now));
        self.timer.poll(deadlines.chain([self.alive.look]), context, now);
        Poll::Pending
    }

    fn open(&mut self, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
        let (service, variant) = match services::find(request.uri().path()) {
            Method::Elsewhere => return self.elsewhere.answer(request, self.peer.clone(), respond),
            Method::Unknown => {
                let message = "is not served; the streaming methods of the discovery services are";
                let refusal = Status::unimplemented(message).into_http::<()>();
                // An error means that the client has gone.
                let _ = respond.send_response(refusal, true);
                return;
            }
            Method::Discovery(service, variant) => (service, variant),
        };
        let mut response = Response::new(());
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        // An error means that the client has gone.
        let Ok(outgoing) = respond.send_response(response, false) else { return };
        let requests = Requests::new(variant, request.into_body());
        let (ads, feed, only) = (self.ads.clone(), Arc::clone(self.seat.feed()), service.kind.clone());
        let outgoing = Outgoing::new(outgoing);
        self.streams.push(Stream::new(ads, feed, only, self.peer.clone(), requests, outgoing));
    }
}

/// Whether the other side is there: when it was not heard for a while, it is asked ("PING", RFC 9113
/// section 6.7).
struct Alive {
    ping: Option<PingPong>,
    /// Whether anything came since the last look.
    heard: Arc<AtomicBool>,
    look: Instant,
    asked: bool,
}

impl Alive {
    fn is_dead(&mut self, context: &mut Context<'_>, now: Instant) -> bool {
        if now < self.look {
            return false;
        }
        if self.heard.swap(false, Ordering::Relaxed) {
            (self.asked, self.look) = (false, now + SILENCE);
            return false;
        }
        if std::mem::replace(&mut self.asked, true) {
            return true;
        }
        self.look = now + PONG_TIMEOUT;
        if let Some(ping) = &mut self.ping {
            // The answer to the last, without which there cannot be another.
            let _ = ping.poll_pong(context);
            // An error means that it is over, which the connection knows.
            let _ = ping.send_ping(Ping::opaque());
            // To be written.
            context.waker().wake_by_ref();
        }
        false
    }
}

/// Wakes the connection in time. Often it is set for earlier than is needed, so that a deadline that moves
/// with every response costs nothing.
struct Timer {
    sleep: Pin<Box<Sleep>>,
    at: Instant,
}

impl Timer {
    fn poll(&mut self, deadlines: impl Iterator<Item = Instant>, context: &mut Context<'_>, now: Instant) {
        let Some(next) = deadlines.min() else { return };
        if next < self.at || self.at <= now {
            self.at = next;
            self.sleep.as_mut().reset(next.into());
            // The waker is the same for as long as the connection lives.
            if self.sleep.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
    }
}
