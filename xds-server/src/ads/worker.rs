//! The threads that streams are served on: one a core, each with its own connections.
//!
//! They are apart from the rest of the server, so that a thousand streams that are told of a change do
//! not delay the answer to whoever made it.

use std::{io, sync::Arc, thread, time::Duration};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
};
use tokio_util::task::TaskTracker;

use super::{Ads, connection, elsewhere::Elsewhere, feed::Feed};
use crate::limit::Accepted;

/// More are of no use to one server.
const MAX_WORKERS: usize = 16;
/// How long connections may take to end when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// One thread, and what it serves.
pub(super) struct Worker {
    handle: Handle,
    feed: Arc<Feed>,
    connections: TaskTracker,
    ended: oneshot::Receiver<()>,
}

impl Worker {
    /// Starts one a core.
    pub(super) fn start_all(ads: &Ads) -> io::Result<Vec<Self>> {
        let cores = thread::available_parallelism().map_or(1, usize::from).min(MAX_WORKERS);
        (0..cores).map(|_| Self::start(ads)).collect()
    }

    fn start(ads: &Ads) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let state = ads.state.clone();
        let feed = Arc::new(Feed::new(Arc::clone(&state.borrow())));
        let connections = TaskTracker::new();
        let (tell, ended) = oneshot::channel();
        let work = {
            let (feed, stop, connections) = (Arc::clone(&feed), ads.stop.clone(), connections.clone());
            async move {
                tokio::select! {
                    // It ends when the registry has, and with it the server.
                    () = feed.follow(state) => {}
                    () = stop.cancelled() => {}
                }
                feed.stop();
                connections.close();
                // Those that do not end in time are cut: clients that do not read.
                let _ = tokio::time::timeout(STOP_TIMEOUT, connections.wait()).await;
            }
        };
        thread::Builder::new().name("xds".to_owned()).spawn(move || {
            runtime.block_on(work);
            drop(runtime);
            // Nobody waits if the server was dropped.
            let _ = tell.send(());
        })?;
        Ok(Self { handle, feed, connections, ended })
    }

    /// How many connections it has.
    pub(super) fn load(&self) -> usize {
        self.connections.len()
    }

    /// Serves a connection.
    pub(super) fn serve(&self, accepted: Accepted, ads: &Ads, elsewhere: &Elsewhere) {
        let (ads, feed, elsewhere) = (ads.clone(), Arc::clone(&self.feed), elsewhere.clone());
        let serving = async move {
            if let Some(stream) = accepted.open().await {
                connection::serve(stream, ads, feed, elsewhere).await;
            }
        };
        self.connections.spawn_on(serving, &self.handle);
    }

    /// Waits until it has ended.
    pub(super) async fn ended(self) {
        // An error means that it has.
        let _ = self.ended.await;
    }
}
