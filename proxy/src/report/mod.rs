//! What was sent where, reported to the server that the proxy follows (LRS).
//!
//! - `ledger`: what of the counters was not reported yet. Pure, but for reading them.
//! - `message`: that as requests of the protocol.
//! - `stream`: the client.
//! - here: what the rest of the proxy sees of it.
//!
//! Requests only count, as they do for balancing and metrics; differences are taken when a report is
//! due, off their path. An endpoint counts as *issued* each time it is given a request, retries
//! included. A request is an *error* of its endpoint if that answered 5xx, could not be connected to, or
//! gave no whole answer; else it is *successful*, also when its client left.

mod ledger;
mod message;
mod stream;

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tonic::transport::Channel;

use crate::table::Live;
use ledger::Ledger;
pub(crate) use stream::{LAST_REPORT, Reporter};

/// What is to be reported, and to whom.
#[derive(Debug, Default)]
pub(crate) struct Reports {
    ledger: Mutex<Ledger>,
    /// The connection to the server that is followed now.
    pub(crate) server: watch::Sender<Option<Channel>>,
}

impl Reports {
    /// Notes which endpoints came and went. Once a second or more often, so that nothing piles up while
    /// there is nobody to report to.
    pub(crate) fn follow(&self, live: &Live) {
        let departed = live.records.departed();
        let table = live.load_full();
        self.ledger().follow(&table, departed);
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
