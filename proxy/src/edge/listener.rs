//! Sockets and accept loops: one task a listener, added, changed and removed while running.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use config::xds::listener::ListenerConfig;
use futures_util::FutureExt;
use pingora_core::{
    apps::{HttpServerApp, ServerApp},
    protocols::{Stream, http::ServerSession},
    server::ShutdownWatch,
};
use pingora_proxy::HttpProxy;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
    task::JoinSet,
};

use super::{
    downstream::{Downstream, HEAD_TIMEOUT},
    http::Engine,
};
use crate::shared::{Admitted, ListenerView, Shared};

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4_096;
/// How long an idle HTTP/1 client connection is kept, in seconds.
const KEEP_ALIVE: u64 = 60;
/// Pause after a failed accept (no file descriptors left, say): doubles from the first to the last.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// How long a connection without a request yet is kept open after its listener was told to stop.
const LAST_CALL: Duration = Duration::from_millis(200);

/// How long an accept loop that was told to stop may take to let go of its socket: microseconds,
/// unless the machine is overloaded. The xDS client waits for it, so it is bounded.
const RELEASE: Duration = Duration::from_millis(500);
/// How long a listener is left alone after it made room for an address that could not be bound even
/// so: what failed is tried again soon, and each attempt would end its idle connections.
const LEFT_ALONE: Duration = Duration::from_secs(30);
/// A client that acknowledges nothing for so long is gone, however much it is still owed.
#[cfg(target_os = "linux")]
const CLIENT_SILENCE: Duration = Duration::from_secs(30);

/// The listeners that run, on the data plane's runtime.
pub(crate) struct Listeners {
    runtime: Handle,
    shared: Arc<Shared>,
    drain_timeout: Duration,
    running: BTreeMap<String, Running>,
    errors: Vec<(String, String)>,
    /// Addresses for which listeners made room in vain, and when.
    in_vain: BTreeMap<SocketAddr, Instant>,
}

struct Running {
    config: ListenerConfig,
    socket: Arc<TcpListener>,
    bound: SocketAddr,
    route_config: Arc<ArcSwap<String>>,
    app: Arc<HttpProxy<Engine>>,
    /// `true` stops the accept loop and lets connections finish.
    stop: watch::Sender<bool>,
    /// Whether another accept loop goes on with the socket, and with what the kernel holds in it.
    handed_over: Arc<AtomicBool>,
    /// Disconnects when the accept loop has let go of the socket.
    released: Mutex<mpsc::Receiver<()>>,
}

/// Listeners that lose their address. They run until what comes has been started, and it may take
/// their socket or their place.
type Leaving = BTreeMap<String, Running>;

impl Listeners {
    /// None yet; their tasks will run on `runtime`. When one stops, its connections have
    /// `drain_timeout` to finish.
    pub(crate) fn new(runtime: Handle, shared: Arc<Shared>, drain_timeout: Duration) -> Self {
        Self {
            runtime,
            shared,
            drain_timeout,
            running: BTreeMap::new(),
            errors: Vec::new(),
            in_vain: BTreeMap::new(),
        }
    }

    /// Makes the listeners `wanted`: starts new ones, moves those whose address changed (the new
    /// socket is bound before the old one is closed), stops the others. Returns for each how it
    /// went; a listener that cannot be bound goes on where it was, unless another one got its address.
    pub(crate) fn apply(&mut self, wanted: &[ListenerConfig]) -> Vec<(String, Result<(), String>)> {
        let by_name: BTreeMap<&str, &ListenerConfig> = wanted.iter().map(|c| (c.name.as_str(), c)).collect();
        let stays = |name: &str, running: &Running| {
            by_name.get(name).is_some_and(|config| config.address == running.config.address)
        };
        let (running, mut leaving): (_, Leaving) =
            std::mem::take(&mut self.running).into_iter().partition(|(name, running)| stays(name, running));
        self.running = running;
        let mut outcomes = Vec::with_capacity(wanted.len());
        for config in wanted {
            let outcome = match self.running.get_mut(&config.name) {
                Some(running) => {
                    running.update(config);
                    Ok(())
                }
                None => self.come(config, &mut leaving),
            };
            outcomes.push((config.name.clone(), outcome));
        }
        for (name, running) in leaving {
            if by_name.contains_key(name.as_str()) && !self.running.contains_key(&name) {
                self.running.insert(name, running); // it could not move, so it stays
            } else {
                self.stop(&running);
            }
        }
        self.errors =
            outcomes.iter().filter_map(|(name, o)| Some((name.clone(), o.clone().err()?))).collect();
        self.show();
        outcomes
    }

    /// Starts a listener, on a socket that is left behind or a new one.
    fn come(&mut self, config: &ListenerConfig, leaving: &mut Leaving) -> Result<(), String> {
        let same = |running: &Running| config.address.port() != 0 && running.config.address == config.address;
        let former = leaving.iter().find(|(_, running)| same(running)).map(|(name, _)| name.clone());
        let (socket, bound) = match former.and_then(|name| leaving.remove(&name)) {
            Some(former) => self.take_over(former),
            None => self
                .bind_in_place(config.address, leaving)
                .map_err(|error| format!("cannot listen on {}: {error}", config.address))?,
        };
        let started = self.start(config.clone(), socket, bound);
        self.running.insert(config.name.clone(), started);
        Ok(())
    }

    /// The socket of `former`, which retires whatever becomes of its own move: two gateways never
    /// accept from one socket. No connection is lost, as the kernel holds them in between.
    fn take_over(&self, former: Running) -> (Arc<TcpListener>, SocketAddr) {
        let (socket, bound) = (Arc::clone(&former.socket), former.bound);
        former.handed_over.store(true, Ordering::Release);
        self.retire(former);
        (socket, bound)
    }

    /// Binds `address`. Leaving listeners that stand in its way, as `0.0.0.0:80` does for
    /// `127.0.0.1:80`, close first; if that does not help they get their addresses back.
    fn bind_in_place(
        &mut self,
        address: SocketAddr,
        leaving: &mut Leaving,
    ) -> io::Result<(Arc<TcpListener>, SocketAddr)> {
        let error = match self.bind(address) {
            Ok(bound) => return Ok(bound),
            Err(error) => error,
        };
        self.in_vain.retain(|_, at| at.elapsed() < LEFT_ALONE);
        if error.kind() != io::ErrorKind::AddrInUse || self.in_vain.contains_key(&address) {
            return Err(error);
        }
        let closed = self.make_room(address, leaving);
        if closed.is_empty() {
            return Err(error);
        }
        let again = self.bind(address);
        if again.is_err() {
            self.in_vain.insert(address, Instant::now());
            self.restore(closed, leaving);
        }
        again
    }

    /// Closes leaving listeners that stand in the way of `address`; returns what they were.
    fn make_room(&self, address: SocketAddr, leaving: &mut Leaving) -> Vec<(ListenerConfig, SocketAddr)> {
        let (in_the_way, others): (Leaving, Leaving) =
            std::mem::take(leaving).into_iter().partition(|(_, running)| overlap(running.bound, address));
        *leaving = others;
        let close = |running: Running| {
            let was = (running.config.clone(), running.bound);
            self.retire(running);
            was
        };
        in_the_way.into_values().map(close).collect()
    }

    fn restore(&self, closed: Vec<(ListenerConfig, SocketAddr)>, leaving: &mut Leaving) {
        for (config, bound) in closed {
            match self.bind(bound) {
                Ok((socket, bound)) => {
                    let name = config.name.clone();
                    leaving.insert(name, self.start(config, socket, bound));
                }
                Err(error) => tracing::error!("listener `{}` lost {bound}: {error}", config.name),
            }
        }
    }

    /// Stops `running` and waits until its accept loop has let go of the socket.
    fn retire(&self, running: Running) {
        self.stop(&running);
        let Running { socket, released, bound, .. } = running;
        drop(socket);
        let released = released.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::RecvTimeoutError::Timeout) = released.recv_timeout(RELEASE) {
            tracing::warn!("the accept loop on {bound} still holds its socket after {RELEASE:?}");
        }
    }

    /// Those that could not be bound, and why.
    pub(crate) fn errors(&self) -> &[(String, String)] {
        &self.errors
    }

    /// Stops all of them: nothing new is accepted, idle connections close, requests finish.
    pub(crate) fn stop_all(&mut self) {
        for running in std::mem::take(&mut self.running).into_values() {
            self.stop(&running);
        }
        self.show();
    }

    fn bind(&self, address: SocketAddr) -> io::Result<(Arc<TcpListener>, SocketAddr)> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        // What is accepted inherits these.
        socket.set_tcp_keepalive(&keep_alive())?;
        #[cfg(target_os = "linux")]
        socket.set_tcp_user_timeout(Some(CLIENT_SILENCE))?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let _runtime = self.runtime.enter();
        let listener = TcpListener::from_std(socket.into())?;
        let bound = listener.local_addr()?;
        Ok((Arc::new(listener), bound))
    }

    fn start(&self, config: ListenerConfig, socket: Arc<TcpListener>, bound: SocketAddr) -> Running {
        let (stop, stopping) = watch::channel(false);
        let route_config = Arc::new(ArcSwap::from_pointee(config.route_config.clone()));
        let gateway: Arc<str> = config.name.as_str().into();
        let app =
            Engine::build(Arc::clone(&self.shared), gateway, Arc::clone(&route_config), stopping.clone());
        let handed_over = Arc::new(AtomicBool::new(false));
        let (holds, released) = mpsc::channel();
        let accepting = Accepting {
            socket: Arc::clone(&socket),
            app: Arc::clone(&app),
            shared: Arc::clone(&self.shared),
            stopping,
            connections: JoinSet::new(),
        };
        // Counted from here: a stop must not overlook a loop that has not run yet.
        let counted = self.shared.connections.accepting();
        self.runtime.spawn(accepting.run(Arc::clone(&handed_over), self.drain_timeout, (holds, counted)));
        tracing::info!("listener `{}` on {bound}", config.name);
        Running {
            config,
            socket,
            bound,
            route_config,
            app,
            stop,
            handed_over,
            released: Mutex::new(released),
        }
    }

    fn stop(&self, running: &Running) {
        running.stop.send_replace(true);
        let app = Arc::clone(&running.app);
        // Wakes connections that wait for a next request.
        self.runtime.spawn(async move { app.cleanup().await });
        tracing::info!("listener `{}` on {} stops", running.config.name, running.bound);
    }

    fn show(&self) {
        let views = self.running.values().map(|running| ListenerView {
            name: running.config.name.clone(),
            address: running.bound,
            route_config: running.config.route_config.clone(),
        });
        self.shared.listeners.store(Arc::new(views.collect()));
    }
}

impl Running {
    /// Follows what may change while it runs.
    fn update(&mut self, config: &ListenerConfig) {
        if self.config != *config {
            self.route_config.store(Arc::new(config.route_config.clone()));
            self.config = config.clone();
        }
    }
}

/// Whether a socket on one of two addresses keeps another one from the other.
fn overlap(one: SocketAddr, two: SocketAddr) -> bool {
    // `::` takes the IPv4 addresses too.
    let covers = |all: IpAddr, ip: IpAddr| all.is_unspecified() && (all.is_ipv6() || ip.is_ipv4());
    let (a, b) = (one.ip().to_canonical(), two.ip().to_canonical());
    one.port() == two.port() && (a == b || covers(a, b) || covers(b, a))
}

/// Finds out within two minutes that an idle client has vanished.
fn keep_alive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_mins(1))
        .with_interval(Duration::from_secs(10))
        .with_retries(5)
}

/// An accept loop and the connections it accepted.
struct Accepting {
    socket: Arc<TcpListener>,
    app: Arc<HttpProxy<Engine>>,
    shared: Arc<Shared>,
    stopping: ShutdownWatch,
    /// They end with the loop, so that none of a listener that is gone stays for ever.
    connections: JoinSet<()>,
}

impl Accepting {
    /// Accepts until told to stop; lets go of the socket, and of `holds`; then connections have
    /// `drain_timeout` to finish.
    async fn run(mut self, handed_over: Arc<AtomicBool>, drain_timeout: Duration, holds: impl Send) {
        self.accept().await;
        if !handed_over.load(Ordering::Acquire) {
            self.take_backlog();
        }
        let Self { socket, mut connections, .. } = self;
        drop(socket);
        drop(holds);
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(drain_timeout, finished).await.is_err() {
            tracing::warn!("{} connections are cut off after {drain_timeout:?}", connections.len());
        }
    }

    async fn accept(&mut self) {
        let mut stopping = self.stopping.clone();
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            let accepted = tokio::select! {
                biased;
                // An error means that the listener was dropped, which is a stop too.
                _ = stopping.changed() => return,
                // Frees what a connection that ended has left.
                Some(_) = self.connections.join_next() => continue,
                accepted = self.socket.accept() => accepted,
            };
            match accepted {
                Ok((stream, peer)) => {
                    pause = ACCEPT_PAUSE.0;
                    self.admit(stream, peer);
                }
                Err(error) => {
                    self.shared.connections.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("accept failed: {error}");
                    // Not beyond a stop: others may wait for the socket.
                    if tokio::time::timeout(pause, stopping.changed()).await.is_ok() {
                        return;
                    }
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            }
        }
    }

    /// Takes what the kernel already holds, which would otherwise be reset when the socket closes.
    fn take_backlog(&mut self) {
        for _ in 0..BACKLOG {
            match self.socket.accept().now_or_never() {
                Some(Ok((stream, peer))) => self.admit(stream, peer),
                _ => break,
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("{peer} left at once: {error}");
            return;
        }
        if let Some(admitted) = self.shared.connections.admit() {
            let connections = Arc::clone(&self.shared.connections);
            let opening = Downstream::open(stream, peer, connections, HEAD_TIMEOUT);
            let served = serve(opening, Arc::clone(&self.app), self.stopping.clone(), admitted);
            self.connections.spawn(served);
        }
    }
}

/// One client connection, from its first byte to its end.
async fn serve(
    opening: impl Future<Output = Option<Downstream>>,
    app: Arc<HttpProxy<Engine>>,
    stopping: ShutdownWatch,
    admitted: Admitted,
) {
    // A watch of its own: the engine has still to see the change that this one sees.
    let mut told = stopping.clone();
    let last_call = async {
        // An error means that the listener is gone, which is a stop too.
        let _ = told.wait_for(|stop| *stop).await;
        tokio::time::sleep(LAST_CALL).await;
    };
    let downstream = tokio::select! {
        biased;
        opened = opening => opened,
        // Without a request there is nothing to finish; one that is on its way may still come.
        () = last_call => None,
    };
    let Some(downstream) = downstream else { return };
    if downstream.is_http2() {
        app.process_new(Box::new(downstream), &stopping).await;
    } else {
        serve_http1(Box::new(downstream), &app, &stopping).await;
    }
    drop(admitted); // counted until here, whichever way it ended
}

/// The requests of an HTTP/1 connection, one after the other.
async fn serve_http1(stream: Stream, app: &Arc<HttpProxy<Engine>>, stopping: &ShutdownWatch) {
    let mut session = ServerSession::new_http1(stream);
    session.set_keepalive(Some(KEEP_ALIVE));
    loop {
        let Some(reused) = app.process_new_http(session, stopping).await else { return };
        let (stream, settings) = reused.consume();
        if *stopping.borrow() {
            return;
        }
        if let Some(downstream) = (*stream).as_any().downcast_ref::<Downstream>() {
            downstream.expect_head();
        }
        session = ServerSession::new_http1(stream);
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_overlap_when_one_takes_the_other() {
        for (one, two, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("127.0.0.1:80", "127.0.0.2:80", false),
            ("127.0.0.1:80", "127.0.0.1:81", false),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::]:80", "0.0.0.0:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
        ] {
            let (one, two): (SocketAddr, SocketAddr) = (one.parse().unwrap(), two.parse().unwrap());
            assert_eq!((overlap(one, two), overlap(two, one)), (expected, expected), "{one} {two}");
        }
    }
}
