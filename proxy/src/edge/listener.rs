//! Sockets and accept loops, added, changed and removed while running. A listener has a socket on
//! every core (`SO_REUSEPORT`), so that the kernel divides the connections and none changes cores.

use std::{
    collections::{BTreeMap, HashMap},
    future::{Future, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    task::Poll,
    time::{Duration, Instant},
};

use config::xds::listener::{ListenerConfig, ListenerTls};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::{connection, gateway::Gateway};
use crate::{
    shared::{ListenerView, Shared},
    tls::{Prepared, ServerTls},
    worker::{Workers, timer},
};

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4_096;
/// Pause after a failed accept (no file descriptors left, say): doubles from the first to the last.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// How long an accept loop that was told to stop may take to let go of its socket: microseconds,
/// unless the machine is overloaded. The xDS client waits for it, so it is bounded.
const RELEASE: Duration = Duration::from_millis(500);
/// How long a listener is left alone after it made room for an address that could not be bound even
/// so: what failed is tried again soon, and each attempt would end its idle connections.
const LEFT_ALONE: Duration = Duration::from_secs(30);

/// One socket a worker, all on one address.
type Sockets = Vec<Arc<TcpListener>>;

/// The listeners that run, on every worker.
pub(crate) struct Listeners {
    workers: Arc<Workers>,
    shared: Arc<Shared>,
    drain_timeout: Duration,
    running: BTreeMap<String, Running>,
    errors: Vec<(String, String)>,
    /// Addresses for which listeners made room in vain, and when.
    in_vain: BTreeMap<SocketAddr, Instant>,
}

struct Running {
    config: ListenerConfig,
    sockets: Sockets,
    bound: SocketAddr,
    gateway: Arc<Gateway>,
    /// `true` stops the accept loops and lets connections finish.
    stop: watch::Sender<bool>,
    /// Whether other accept loops go on with the sockets, and with what the kernel holds in them.
    handed_over: Arc<AtomicBool>,
    /// Disconnects when the accept loops have let go of the sockets.
    released: Mutex<mpsc::Receiver<()>>,
}

/// Listeners that lose their address. They run until what comes has been started, and it may take
/// their sockets or their place.
type Leaving = BTreeMap<String, Running>;

/// The certificates that were read for listeners, by their names.
pub(crate) type PreparedTls = HashMap<String, Result<Prepared, String>>;

impl Listeners {
    /// None yet; they will run on `workers`. When one stops, its connections have `drain_timeout` to
    /// finish.
    pub(crate) fn new(workers: Arc<Workers>, shared: Arc<Shared>, drain_timeout: Duration) -> Self {
        Self {
            workers,
            shared,
            drain_timeout,
            running: BTreeMap::new(),
            errors: Vec::new(),
            in_vain: BTreeMap::new(),
        }
    }

    /// Makes the listeners `wanted`: starts new ones, moves those whose address changed (the new
    /// socket is bound before the old one is closed), stops the others. Returns for each how it
    /// went; a listener that cannot be bound, or whose certificates cannot be used, goes on where and
    /// as it was, unless another one got its address. `prepared` has what
    /// [`Self::unprepared`] asked for.
    pub(crate) fn apply(
        &mut self,
        wanted: &[ListenerConfig],
        mut prepared: PreparedTls,
    ) -> Vec<(String, Result<(), String>)> {
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
                Some(running) => running.update(config, prepared.remove(&config.name)),
                None => self.come(config, prepared.remove(&config.name), &mut leaving),
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

    /// Those of `wanted` whose certificates are to be read before they are applied.
    pub(crate) fn unprepared(&self, wanted: &[ListenerConfig]) -> Vec<(String, ListenerTls)> {
        let changed = |config: &&ListenerConfig| {
            self.running.get(&config.name).is_none_or(|running| {
                (&running.config.tls, running.config.address) != (&config.tls, config.address)
            }) || self.errors.iter().any(|(name, _)| *name == config.name)
        };
        let changed = wanted.iter().filter(changed);
        changed.filter_map(|config| Some((config.name.clone(), config.tls.clone()?))).collect()
    }

    /// Starts a listener, on sockets that are left behind or new ones.
    fn come(
        &mut self,
        config: &ListenerConfig,
        prepared: Option<Result<Prepared, String>>,
        leaving: &mut Leaving,
    ) -> Result<(), String> {
        let tls = match (&config.tls, prepared) {
            (None, _) => None,
            (Some(_), Some(prepared)) => Some(server_tls(&self.shared, prepared?)?),
            (Some(_), None) => return Err("its certificates were not read".to_owned()),
        };
        let same = |running: &Running| config.address.port() != 0 && running.config.address == config.address;
        let former = leaving.iter().find(|(_, running)| same(running)).map(|(name, _)| name.clone());
        let (sockets, bound) = match former.and_then(|name| leaving.remove(&name)) {
            Some(former) => self.take_over(former),
            None => self
                .bind_in_place(config.address, leaving)
                .map_err(|error| format!("cannot listen on {}: {error}", config.address))?,
        };
        let started = self.start(config.clone(), tls, sockets, bound);
        self.running.insert(config.name.clone(), started);
        Ok(())
    }

    /// The sockets of `former`, which retires whatever becomes of its own move: two gateways never
    /// accept from one socket. No connection is lost, as the kernel holds them in between.
    fn take_over(&self, former: Running) -> (Sockets, SocketAddr) {
        let (sockets, bound) = (former.sockets.clone(), former.bound);
        former.handed_over.store(true, Ordering::Release);
        self.retire(former);
        (sockets, bound)
    }

    /// Binds `address`. Leaving listeners that stand in its way, as `0.0.0.0:80` does for
    /// `127.0.0.1:80`, close first; if that does not help they get their addresses back.
    fn bind_in_place(
        &mut self,
        address: SocketAddr,
        leaving: &mut Leaving,
    ) -> io::Result<(Sockets, SocketAddr)> {
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
    fn make_room(&self, address: SocketAddr, leaving: &mut Leaving) -> Vec<Was> {
        let (in_the_way, others): (Leaving, Leaving) =
            std::mem::take(leaving).into_iter().partition(|(_, running)| overlap(running.bound, address));
        *leaving = others;
        let close = |running: Running| {
            let was = (running.config.clone(), running.gateway.tls.load_full(), running.bound);
            self.retire(running);
            was
        };
        in_the_way.into_values().map(close).collect()
    }

    fn restore(&self, closed: Vec<Was>, leaving: &mut Leaving) {
        for (config, tls, bound) in closed {
            match self.bind(bound) {
                Ok((sockets, bound)) => {
                    let name = config.name.clone();
                    leaving.insert(name, self.start(config, tls, sockets, bound));
                }
                Err(error) => tracing::error!("listener `{}` lost {bound}: {error}", config.name),
            }
        }
    }

    /// Stops `running` and waits until its accept loops have let go of the sockets.
    fn retire(&self, running: Running) {
        self.stop(&running);
        let Running { sockets, released, bound, .. } = running;
        drop(sockets);
        let released = released.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Err(mpsc::RecvTimeoutError::Timeout) = released.recv_timeout(RELEASE) {
            tracing::warn!("an accept loop on {bound} still holds its socket after {RELEASE:?}");
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

    fn bind(&self, address: SocketAddr) -> io::Result<(Sockets, SocketAddr)> {
        let workers = self.workers.handles();
        if workers.len() > 1 && address.port() != 0 {
            // Another process of ours could share the address silently; alone, a socket cannot.
            bound_socket(address, false)?;
        }
        let (mut sockets, mut bound) = (Vec::with_capacity(workers.len()), address);
        for worker in workers {
            let socket = bound_socket(bound, workers.len() > 1)?;
            socket.listen(BACKLOG)?;
            let _runtime = worker.enter();
            let listener = TcpListener::from_std(socket.into())?;
            bound = listener.local_addr()?; // what port 0 became
            sockets.push(Arc::new(listener));
        }
        Ok((sockets, bound))
    }

    fn start(
        &self,
        config: ListenerConfig,
        tls: Option<Arc<ServerTls>>,
        sockets: Sockets,
        bound: SocketAddr,
    ) -> Running {
        let (stop, stopping) = watch::channel(false);
        let gateway = Gateway::new(&config.name, &config.route_config, tls, Arc::clone(&self.shared));
        let gateway = Arc::new(gateway);
        let handed_over = Arc::new(AtomicBool::new(false));
        let (holds, released) = mpsc::channel::<()>();
        for (worker, socket) in self.workers.handles().iter().zip(&sockets) {
            let accepting = Accepting {
                socket: Arc::clone(socket),
                gateway: Arc::clone(&gateway),
                stopping: stopping.clone(),
                connections: JoinSet::new(),
            };
            // Counted from here: a stop must not overlook a loop that has not run yet.
            let counted = self.shared.connections.accepting();
            let run = accepting.run(Arc::clone(&handed_over), self.drain_timeout, (holds.clone(), counted));
            worker.spawn(run);
        }
        tracing::info!("listener `{}` on {bound}", config.name);
        Running { config, sockets, bound, gateway, stop, handed_over, released: Mutex::new(released) }
    }

    fn stop(&self, running: &Running) {
        running.gateway.stop();
        running.stop.send_replace(true);
        for worker in self.workers.handles() {
            // Connections that wait for a next request look up.
            worker.spawn(async { timer::wake_all() });
        }
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
    /// Follows what may change while it runs: all of it, or nothing.
    fn update(
        &mut self,
        config: &ListenerConfig,
        prepared: Option<Result<Prepared, String>>,
    ) -> Result<(), String> {
        if self.config == *config {
            return Ok(());
        }
        let current = self.gateway.tls.load_full();
        match (&config.tls, prepared.transpose()?, current) {
            (None, _, Some(_)) => self.gateway.tls.store(None),
            (Some(_), Some(prepared), Some(current)) => current.publish(prepared),
            (Some(_), Some(prepared), None) => {
                let tls = server_tls(&self.gateway.shared, prepared)?;
                self.gateway.tls.store(Some(tls));
            }
            _ => {}
        }
        self.gateway.route_config.store(Arc::new(config.route_config.clone()));
        self.config = config.clone();
        Ok(())
    }
}

/// What a closed listener was.
type Was = (ListenerConfig, Option<Arc<ServerTls>>, SocketAddr);

fn server_tls(shared: &Shared, prepared: Prepared) -> Result<Arc<ServerTls>, String> {
    shared.live.tls.server(prepared).map_err(|error| error.to_string())
}

/// A socket on `address`. What it accepts inherits its options.
fn bound_socket(address: SocketAddr, shared_by_cores: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.set_tcp_keepalive(&keep_alive())?;
    socket.set_tcp_nodelay(true)?;
    #[cfg(unix)]
    if shared_by_cores {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
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
    gateway: Arc<Gateway>,
    stopping: watch::Receiver<bool>,
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
        let changes = stopping.clone();
        // Asked once, and again when something has changed: to ask costs a lock.
        let mut stopped = pin!(async move { _ = stopping.changed().await });
        let mut asked = false;
        let mut pause = ACCEPT_PAUSE.0;
        loop {
            let accepted = poll_fn(|cx| {
                // An error means that the listener was dropped, which is a stop too.
                let is_as_before = asked && matches!(changes.has_changed(), Ok(false));
                asked = true;
                if !is_as_before && stopped.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                self.socket.poll_accept(cx).map(Some)
            });
            match accepted.await {
                None => return,
                Some(Ok((stream, peer))) => {
                    pause = ACCEPT_PAUSE.0;
                    self.admit(stream, peer);
                }
                Some(Err(error)) => {
                    self.gateway.shared.connections.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!("accept failed: {error}");
                    // Not beyond a stop: others may wait for the socket.
                    if tokio::time::timeout(pause, stopped.as_mut()).await.is_ok() {
                        return;
                    }
                    pause = (pause * 2).min(ACCEPT_PAUSE.1);
                }
            }
        }
    }

    /// Takes what the kernel already holds, which would otherwise be reset when the socket closes.
    fn take_backlog(&mut self) {
        // The kernel is asked itself: what the runtime knows of the socket may be old.
        for _ in 0..BACKLOG {
            let Ok((socket, peer)) = SockRef::from(&*self.socket).accept() else { return };
            let stream = socket.set_nonblocking(true).and_then(|()| TcpStream::from_std(socket.into()));
            if let (Ok(stream), Some(peer)) = (stream, peer.as_socket()) {
                self.admit(stream, peer);
            }
        }
    }

    fn admit(&mut self, stream: TcpStream, peer: SocketAddr) {
        // What the set keeps of one that ended is little, and goes when others come: to be told of each
        // end would cost a turn.
        for _ in 0..2 {
            _ = self.connections.try_join_next();
        }
        if let Some(admitted) = self.gateway.shared.connections.admit() {
            // On the heap at once: it is large, and moved a few times on its way to the runtime.
            let served = Box::pin(connection::serve(stream, peer, Arc::clone(&self.gateway)));
            self.connections.spawn(async move {
                served.await;
                drop(admitted); // counted until here, whichever way it ended
            });
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
