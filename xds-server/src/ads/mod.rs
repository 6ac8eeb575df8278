//! The discovery services: gRPC around [`crate::subscription`].
//!
//! - `worker`: the threads they run on. `connection`: all of one connection, as one task. `bell`: its waker.
//! - `stream`: one stream of one client. `requests`, `outgoing`: its two directions. `node`: who a client
//!   says it is. `feed`: how it learns of a new state.
//! - `services`: their names and methods, the aggregated one and one a type.
//! - `wire`: responses to bytes; shares what the snapshot encoded once.
//! - `elsewhere`: other services on the same port. `csds`: what became of what was sent.
//! - here: the server.
//!
//! They are written on HTTP/2 rather than generated: what was encoded once is shared by all streams, and a
//! change costs one task a connection, one write and one read.

mod bell;
mod connection;
mod csds;
mod elsewhere;
mod feed;
mod node;
mod outgoing;
mod requests;
mod services;
mod stream;
mod wire;
mod worker;

use std::{io, sync::Arc};

use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, Listener},
    fleet::Fleet,
    limit::{self, Bound},
    load_report::LoadReporting,
    metrics::Metrics,
    registry::State,
    timeline::Timeline,
};
use elsewhere::Elsewhere;
use worker::Worker;

/// How many xDS connections may be open; more are closed at once and counted.
const MAX_CONNECTIONS: usize = 16_384;

/// What every stream shares.
#[derive(Clone)]
pub struct Ads {
    /// Follows the registry.
    pub state: watch::Receiver<Arc<State>>,
    /// The connected clients.
    pub fleet: Arc<Fleet>,
    /// The timeline.
    pub timeline: Arc<Timeline>,
    /// The counters.
    pub metrics: Arc<Metrics>,
    /// Takes reports of load.
    pub load_reports: LoadReporting,
    /// Who may be which node.
    pub access: Arc<Access>,
    /// Ends every stream.
    pub stop: CancellationToken,
}

/// Serves xDS on `listener` until `ads.stop`.
pub async fn serve(listener: TcpListener, ads: Ads) -> io::Result<()> {
    let workers = Worker::start_all(&ads)?;
    let elsewhere = Elsewhere::new(&ads);
    let bound = Bound {
        connections: MAX_CONNECTIONS,
        answer: b"",
        refused: ads.metrics.streams_refused.clone(),
        tls: ads.access.listener(Listener::Xds),
    };
    limit::accept(listener, bound, ads.stop.clone(), |accepted| {
        // There is at least one.
        if let Some(worker) = workers.iter().min_by_key(|worker| worker.load()) {
            worker.serve(accepted, &ads, &elsewhere);
        }
    })
    .await;
    for worker in workers {
        worker.ended().await;
    }
    Ok(())
}
