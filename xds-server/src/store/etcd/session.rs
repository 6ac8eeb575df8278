//! Leases of etcd: one for all that connections to this server hold, one for each endpoint with a term.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Mutex;

use super::{Etcd, Failure};
use crate::store::Table;

/// How soon a renewal that got no answer is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// The lease of what connections to this server hold. It ends `grace` after the server has, so that
/// instances can come back to another one.
pub(super) struct Session {
    grace: Duration,
    /// Its id; 0 while there is none.
    lease: AtomicI64,
    /// Held while a new one is taken.
    taking: Mutex<()>,
}

impl Session {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, lease: AtomicI64::new(0), taking: Mutex::new(()) }
    }
}

/// A term in etcd's whole seconds: no shorter than asked for.
fn seconds(term: Duration) -> i64 {
    i64::try_from(term.as_millis().div_ceil(1_000)).unwrap_or(i64::MAX).max(1)
}

impl Etcd {
    /// A new lease of at least `term`; etcd has none below two seconds.
    pub(crate) async fn grant(&self, term: Duration) -> Result<i64, Failure> {
        Ok(self.client.grant(seconds(term)).await?.id)
    }

    /// The lease of what connections to this server hold, which is kept alive from then on.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<i64, Failure> {
        let _taking = self.session.taking.lock().await;
        let current = self.session.lease.load(Ordering::SeqCst);
        if current != 0 {
            return Ok(current);
        }
        let id = self.grant(self.session.grace).await?;
        self.session.lease.store(id, Ordering::SeqCst);
        tokio::spawn(keep(Arc::downgrade(self), id, self.session.grace));
        Ok(id)
    }

    /// Whether `lease` is that of what connections to this server hold.
    pub(crate) fn is_session(&self, lease: i64) -> bool {
        lease != 0 && self.session.lease.load(Ordering::SeqCst) == lease
    }

    /// The lease called `id` has ended: the next who needs one takes a new one.
    pub(crate) fn end_session(&self, id: i64) {
        let ended = self.session.lease.compare_exchange(id, 0, Ordering::SeqCst, Ordering::SeqCst);
        if ended.is_ok() {
            tracing::warn!("the lease of what connections to this server hold has ended; taking a new one");
        }
    }

    /// Gives the endpoint called `key` its full term again; `false` when its lease has ended or it has none.
    pub(crate) async fn renew(&self, key: &str) -> Result<bool, Failure> {
        match self.mark(Table::Endpoints, key) {
            Some(mark) if mark.lease != 0 => self.client.keep_alive(mark.lease).await,
            _ => Ok(false),
        }
    }
}

/// Keeps the session's lease for as long as it and the server live.
async fn keep(etcd: Weak<Etcd>, id: i64, grace: Duration) {
    let mut pause = grace / 3;
    loop {
        tokio::time::sleep(pause).await;
        let Some(etcd) = etcd.upgrade().filter(|etcd| etcd.is_session(id)) else { return };
        pause = match etcd.client.keep_alive(id).await {
            Ok(true) => grace / 3,
            Ok(false) => {
                etcd.end_session(id);
                return;
            }
            Err(error) => {
                tracing::debug!(%error, "the lease of held endpoints was not renewed");
                AGAIN.min(grace / 3)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_term_is_rounded_up() {
        let asked = [100, 1_000, 1_001, 86_400_000].map(|ms| seconds(Duration::from_millis(ms)));
        assert_eq!(asked, [1, 1, 2, 86_400]);
    }
}
