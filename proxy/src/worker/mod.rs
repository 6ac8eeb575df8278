//! The threads that serve requests: one a core, each with a runtime of its own. What is accepted on
//! one stays there, so that what belongs to a core needs no lock: timers, buffers, idle connections.
//!
//! - [`wheel`] (pure) and [`timer`]: one coarse timer a core in place of one an operation.
//! - [`buffer`]: bytes that are borrowed only while there are any.
//! - [`pool`]: idle connections to endpoints.

pub(crate) mod buffer;
pub(crate) mod pool;
pub(crate) mod timer;
mod wheel;

use std::{io, num::NonZero, sync::Arc, sync::mpsc, thread};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};

use crate::{edge::general, load::shard, shared::Shared};

/// The threads. When dropped they end, and what still runs on them is cut off.
#[derive(Debug)]
pub(crate) struct Workers {
    handles: Vec<Handle>,
    /// Dropping them stops the threads.
    _running: Vec<oneshot::Sender<()>>,
}

impl Workers {
    /// Starts `threads` of them; 0 is one a core.
    ///
    /// # Errors
    /// When a thread or its runtime cannot be started.
    pub(crate) fn start(threads: usize, shared: &Arc<Shared>) -> io::Result<Self> {
        let threads = match threads {
            0 => thread::available_parallelism().map_or(1, NonZero::get),
            threads => threads,
        };
        shared.requests.share_among(threads);
        let (mut handles, mut running) = (Vec::with_capacity(threads), Vec::with_capacity(threads));
        for number in 0..threads {
            let (stop, stopped) = oneshot::channel();
            handles.push(start(number, Arc::clone(shared), stopped)?);
            running.push(stop);
        }
        Ok(Self { handles, _running: running })
    }

    /// Their runtimes; at least one.
    pub(crate) fn handles(&self) -> &[Handle] {
        &self.handles
    }
}

fn start(number: usize, shared: Arc<Shared>, stopped: oneshot::Receiver<()>) -> io::Result<Handle> {
    let (ready, started) = mpsc::channel();
    thread::Builder::new().name(format!("edge-{number}")).spawn(move || {
        shard::claim(number);
        let runtime = match Builder::new_current_thread().event_interval(1_024).enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => return drop(ready.send(Err(error))),
        };
        _ = ready.send(Ok(runtime.handle().clone()));
        runtime.block_on(async {
            tokio::select! {
                _ = stopped => {}
                () = timer::run() => {}
                () = pool::keep(shared.live.departures.subscribe()) => {}
                () = general::pool::keep(shared.live.departures.subscribe()) => {}
            }
        });
        // Idle connections belong to this runtime and end before it.
        pool::clear();
        general::pool::clear();
    })?;
    let failed = |_| io::Error::other("a thread ended before it began");
    started.recv().map_err(failed)?
}
