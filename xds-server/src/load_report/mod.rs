//! What proxies report of their load (LRS), summed up by version, locality, endpoint and proxy.
//!
//! - `service`: the gRPC streams.
//! - `read`: a request as what it says, in bounds.
//! - `count`, `version`, `accounts`: the sums. Pure; all rules of the accounting live there.
//! - `view`: the sums as the API shows them. `series`: as Prometheus reads them.
//! - here: the accounts behind their lock, and the world they refer to.
//!
//! # What the sums promise
//! What a client reports is added once, when its report is taken, and stays when the client goes. A
//! client that numbers its reports ([`config::xds::load`]) may repeat the last one after a lost stream,
//! and it is still added once. Clients that do not number them (Envoy, gRPC) lose what was on its way.
//! The sums are of this server and begin when it starts.

mod accounts;
mod count;
mod read;
mod series;
mod service;
#[cfg(test)]
mod tests;
mod version;
mod view;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use config::{ClusterName, ServiceName, VersionName};
use prometheus_client::metrics::counter::Counter;
use tokio::sync::watch;

use crate::{
    api::load::Load,
    registry::{State, world::World},
};
use accounts::{Accounts, TooMany};
use read::Report;
pub use service::LoadReporting;
use version::Members;

/// Everything that was reported.
pub struct Loads {
    accounts: Mutex<Accounts>,
    state: watch::Receiver<Arc<State>>,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    reports: Counter,
    repeated: Counter,
    streams_refused: Counter,
    values_refused: Counter,
}

impl fmt::Debug for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Loads")
    }
}

impl Loads {
    /// Nothing yet; what is declared is looked up in `state`.
    pub fn new(state: watch::Receiver<Arc<State>>) -> Self {
        Self { accounts: Mutex::default(), state, counters: Counters::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Accounts> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// What was reported of versions that are `wanted`.
    pub fn view(
        &self,
        world: &World,
        wanted: impl Fn(&ServiceName, &VersionName) -> bool,
        now: Instant,
    ) -> Load {
        let mut accounts = self.lock();
        accounts.prune(&|cluster| members(world, cluster), now);
        accounts.view(wanted, now)
    }

    /// A stream of `node` begins, and counts until it is dropped.
    fn open(self: &Arc<Self>, node: &str, boot: Option<String>) -> Result<OpenStream, TooMany> {
        let id = self.lock().open(node, boot, Instant::now()).inspect_err(|_| {
            self.counters.streams_refused.inc();
        })?;
        Ok(OpenStream { loads: Arc::clone(self), id })
    }
}

/// A stream of reports.
struct OpenStream {
    loads: Arc<Loads>,
    id: u64,
}

impl OpenStream {
    fn take(&self, report: &Report) {
        let state = self.loads.state();
        let look = |cluster: &ClusterName| members(&state.world, cluster);
        let taken = self.loads.lock().take(self.id, report, &look, Instant::now());
        let counters = &self.loads.counters;
        counters.reports.inc();
        counters.repeated.inc_by(u64::from(taken.repeated));
        counters.values_refused.inc_by(report.refused.saturating_add(taken.refused));
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.loads.lock().close(self.id, Instant::now());
    }
}

/// The endpoints of a version, if it is declared.
fn members(world: &World, cluster: &ClusterName) -> Option<Members> {
    let declared = &world.service(&cluster.service)?.value;
    declared
        .versions
        .contains_key(&cluster.version)
        .then(|| Members { declared: Arc::clone(declared), registered: world.registered_with(cluster) })
}
