//! All proxies of the swarm, on a thread of their own.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, atomic,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use anyhow::ensure;
use tokio::{runtime::Handle, task::JoinHandle};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    plan::Plan,
    proxy::{self, Shared},
};

/// Proxies that follow one server, for as long as this lives.
pub struct Crowd {
    pub(super) shared: Arc<Shared>,
    runtime: Handle,
    proxies: Vec<JoinHandle<()>>,
    _stop: DropGuard,
}

impl Crowd {
    /// Nobody yet. Proxies will follow `server`, which has `services`.
    pub fn new(server: SocketAddr, leds: bool, services: usize) -> Self {
        let shared = Arc::new(Shared {
            server,
            leds,
            services,
            endpoints: AtomicUsize::new(0),
            plan: Plan::new(),
            synced: Mutex::default(),
            received: AtomicU64::new(0),
            responses: AtomicU64::new(0),
            failures: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let (ready, runtime) = std::sync::mpsc::channel();
        let stopped = stop.clone();
        // One thread: a proxy is little work, and the server needs what is left of the machine.
        std::thread::Builder::new()
            .name("swarm".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                ready.send(runtime.handle().clone()).unwrap();
                runtime.block_on(stopped.cancelled());
            })
            .unwrap();
        Self { shared, runtime: runtime.recv().unwrap(), proxies: Vec::new(), _stop: stop.drop_guard() }
    }

    pub fn len(&self) -> usize {
        self.proxies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.proxies.is_empty()
    }

    /// Bytes that have arrived at all of them.
    pub fn received(&self) -> u64 {
        self.shared.received.load(atomic::Ordering::Relaxed)
    }

    /// Responses that all of them have acknowledged.
    pub fn responses(&self) -> u64 {
        self.shared.responses.load(atomic::Ordering::Relaxed)
    }

    /// Connects as many at once as are missing to `count`, and waits until each has everything: all
    /// clusters, `endpoints` endpoints and the routes. How long each of them took, in ns.
    pub async fn grow(
        &mut self,
        count: usize,
        endpoints: usize,
        timeout: Duration,
    ) -> anyhow::Result<Vec<u64>> {
        let from = self.proxies.len();
        self.shared.endpoints.store(endpoints, atomic::Ordering::Relaxed);
        self.shared.synced.lock().unwrap().clear();
        let began = self.shared.plan.now_ns();
        for number in from..count {
            self.proxies.push(self.runtime.spawn(proxy::run(Arc::clone(&self.shared), number)));
        }
        self.wait("every proxy to have everything", timeout, |shared| {
            shared.synced.lock().unwrap().len() >= count.saturating_sub(from)
        })
        .await?;
        Ok(self.shared.synced.lock().unwrap().iter().map(|at| at - began).collect())
    }

    /// Waits until every change of the run is applied everywhere.
    pub async fn applied(&self, timeout: Duration) -> anyhow::Result<()> {
        self.wait("every proxy to have every change", timeout, |shared| shared.plan.open() == 0).await
    }

    async fn wait(
        &self,
        what: &str,
        timeout: Duration,
        reached: impl Fn(&Shared) -> bool,
    ) -> anyhow::Result<()> {
        let deadline = std::time::Instant::now() + timeout;
        while !reached(&self.shared) {
            self.healthy()?;
            let (synced, open) = (self.shared.synced.lock().unwrap().len(), self.shared.plan.open());
            ensure!(
                std::time::Instant::now() < deadline,
                "waited {timeout:?} for {what}: {synced} have connected and have everything, {open} changes are open"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.healthy()
    }

    /// Whether all of them are still there.
    fn healthy(&self) -> anyhow::Result<()> {
        let failures = self.shared.failures.lock().unwrap();
        ensure!(failures.is_empty(), "{} proxies failed; the first: {}", failures.len(), failures[0]);
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.proxies.iter().for_each(JoinHandle::abort);
    }
}
