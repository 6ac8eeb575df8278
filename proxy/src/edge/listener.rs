//! Sockets and accept loops: one task a listener, added, changed and removed while running.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
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
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    runtime::Handle,
    sync::watch,
};

use super::{downstream::Downstream, http::Engine};
use crate::shared::{Admitted, ListenerView, Shared};

/// Connections the kernel holds for us until they are accepted.
const BACKLOG: i32 = 4_096;
/// How long an idle HTTP/1 client connection is kept, in seconds.
const KEEP_ALIVE: u64 = 60;
/// Pause after a failed accept (no file descriptors left, say): doubles from the first to the last.
const ACCEPT_PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(100));
/// How long a connection without a request yet is kept open after its listener was told to stop.
const LAST_CALL: Duration = Duration::from_millis(200);

/// The listeners that run, on the data plane's runtime.
pub(crate) struct Listeners {
    runtime: Handle,
    shared: Arc<Shared>,
    running: BTreeMap<String, Running>,
    errors: Vec<(String, String)>,
}

struct Running {
    config: ListenerConfig,
    socket: Arc<TcpListener>,
    bound: SocketAddr,
    route_config: Arc<ArcSwap<String>>,
    app: Arc<HttpProxy<Engine>>,
    /// `true` stops the accept loop and lets connections finish.
    stop: watch::Sender<bool>,
}

impl Listeners {
    /// None yet; their tasks will run on `runtime`.
    pub(crate) fn new(runtime: Handle, shared: Arc<Shared>) -> Self {
        Self { runtime, shared, running: BTreeMap::new(), errors: Vec::new() }
    }

    /// Makes the listeners `wanted`: starts new ones, moves those whose address changed (the new
    /// socket is bound before the old one is closed), stops the others. Returns for each how it
    /// went; a listener that cannot be bound leaves what ran under its name as it was.
    pub(crate) fn apply(&mut self, wanted: &[ListenerConfig]) -> Vec<(String, Result<(), String>)> {
        let mut outcomes = Vec::with_capacity(wanted.len());
        let mut to_bind = Vec::new();
        for config in wanted {
            match self.running.get_mut(&config.name) {
                Some(running) if running.config.address == config.address => {
                    if running.config != *config {
                        running.route_config.store(Arc::new(config.route_config.clone()));
                        running.config = config.clone();
                    }
                    outcomes.push((config.name.clone(), Ok(())));
                }
                _ => to_bind.push(config),
            }
        }
        let stays: Vec<&str> = outcomes.iter().map(|(name, _)| name.as_str()).collect();
        // A socket whose listener leaves can be taken over: no connection is lost in between.
        let leaving: BTreeMap<SocketAddr, (Arc<TcpListener>, SocketAddr)> = self
            .running
            .iter()
            .filter(|(name, _)| !stays.contains(&name.as_str()))
            .map(|(_, r)| (r.config.address, (Arc::clone(&r.socket), r.bound)))
            .filter(|(address, _)| address.port() != 0)
            .collect();
        let mut retired = Vec::new();
        for config in to_bind {
            let socket = match leaving.get(&config.address) {
                Some(taken) => Ok(taken.clone()),
                None => self.bind(config.address),
            };
            let outcome = match socket {
                Ok((socket, bound)) => {
                    let started = self.start(config.clone(), socket, bound);
                    retired.extend(self.running.insert(config.name.clone(), started));
                    Ok(())
                }
                Err(error) => {
                    // `0.0.0.0:80` → `127.0.0.1:80`: it stands in its own way, so that it has to
                    // leave before it can come. The next attempt will find the port free.
                    let own = self.running.get(&config.name).map(|running| running.bound.port());
                    if error.kind() == io::ErrorKind::AddrInUse && own == Some(config.address.port()) {
                        retired.extend(self.running.remove(&config.name));
                    }
                    Err(format!("cannot listen on {}: {error}", config.address))
                }
            };
            outcomes.push((config.name.clone(), outcome));
        }
        let is_wanted = |name: &String| wanted.iter().any(|config| config.name == *name);
        let (kept, unwanted) =
            std::mem::take(&mut self.running).into_iter().partition(|(name, _)| is_wanted(name));
        self.running = kept;
        retired.extend(unwanted.into_values());
        for running in retired {
            self.stop(&running);
        }
        self.errors =
            outcomes.iter().filter_map(|(name, o)| Some((name.clone(), o.clone().err()?))).collect();
        self.show();
        outcomes
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
        let accepting = accept(Arc::clone(&socket), Arc::clone(&app), Arc::clone(&self.shared), stopping);
        self.runtime.spawn(accepting);
        tracing::info!("listener `{}` on {bound}", config.name);
        Running { config, socket, bound, route_config, app, stop }
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

/// Accepts until told to stop; then takes what the kernel already holds, which would otherwise be
/// reset when the socket closes.
async fn accept(
    socket: Arc<TcpListener>,
    app: Arc<HttpProxy<Engine>>,
    shared: Arc<Shared>,
    mut stopping: ShutdownWatch,
) {
    let watch = stopping.clone();
    let admit = |stream: TcpStream, peer: SocketAddr| {
        if let Some(admitted) = shared.connections.admit() {
            tokio::spawn(serve(stream, peer, Arc::clone(&app), watch.clone(), admitted));
        }
    };
    let mut pause = ACCEPT_PAUSE.0;
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stopping.changed() => break,
            accepted = socket.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                pause = ACCEPT_PAUSE.0;
                admit(stream, peer);
            }
            Err(error) => {
                shared.connections.stats.accept_errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("accept failed: {error}");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_PAUSE.1);
            }
        }
    }
    for _ in 0..BACKLOG {
        match socket.accept().now_or_never() {
            Some(Ok((stream, peer))) => admit(stream, peer),
            _ => break,
        }
    }
}

/// One client connection, from its first byte to its end.
async fn serve(
    stream: TcpStream,
    peer: SocketAddr,
    app: Arc<HttpProxy<Engine>>,
    stopping: ShutdownWatch,
    admitted: Admitted,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!("{peer} left at once: {error}");
        return;
    }
    // A watch of its own: the engine has still to see the change that this one sees.
    let mut told = stopping.clone();
    let last_call = async {
        // An error means that the listener is gone, which is a stop too.
        let _ = told.wait_for(|stop| *stop).await;
        tokio::time::sleep(LAST_CALL).await;
    };
    let downstream = tokio::select! {
        biased;
        opened = Downstream::open(stream, peer) => opened,
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
