//! Keeps what is in use like its files: one task for all listeners and clusters of the process.
//!
//! The kernel tells when an entry that leads to a file changes; a moment later, when whoever replaces
//! both files of a pair is done, all files are compared. They are compared now and then without news
//! as well, because there are none of files that another machine changes (`inotify(7)`, limitations).

use std::{collections::BTreeSet, future, path::Path, sync::Arc, time::Duration};

use tokio::{
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{
    inotify::{self, News, Watches},
    places::places,
    registry::{Registry, Tls},
};

/// When files are compared.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long it must be quiet after news.
    pub(super) quiet: Duration,
    /// How long news are waited out at most.
    pub(super) patience: Duration,
    /// How often without news.
    pub(super) slow: Duration,
    /// How often while something in use is not like its files.
    pub(super) failing: Duration,
    /// How often where the kernel gives no news.
    pub(super) blind: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            quiet: Duration::from_millis(50),
            patience: Duration::from_millis(500),
            slow: Duration::from_mins(1),
            failing: Duration::from_secs(5),
            blind: Duration::from_secs(2),
        }
    }
}

/// The task that watches. It ends with its handle.
#[derive(Debug)]
#[must_use = "files are watched until it is dropped"]
pub(crate) struct Watcher(AbortHandle);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Tls {
    /// Watches the files of everything in use, on the runtime it is called in and its blocking
    /// threads. Once a process.
    pub(crate) fn watch(&self) -> Watcher {
        self.watch_at(Pace::default(), inotify::start().ok())
    }

    pub(super) fn watch_at(&self, pace: Pace, sight: Option<(News, Watches)>) -> Watcher {
        if sight.is_none() {
            tracing::info!(
                "no news of files from the kernel; certificates are compared every {:?}",
                pace.blind
            );
        }
        Watcher(tokio::spawn(run(Arc::clone(&self.0), pace, sight)).abort_handle())
    }
}

async fn run(registry: Arc<Registry>, pace: Pace, sight: Option<(News, Watches)>) {
    let (news, mut watches) = sight.unzip();
    let mut warned = false;
    loop {
        let looked = {
            let registry = Arc::clone(&registry);
            // Watched first and compared then, so that no change falls in between.
            spawn_blocking(move || {
                let watching =
                    watches.as_mut().map_or(Err(String::new()), |watches| watch_all(&registry, watches));
                (watches, watching, registry.compare())
            })
        };
        let (kept, watching, failing) = match looked.await {
            Ok(looked) => looked,
            Err(error) => {
                if error.is_panic() {
                    tracing::error!("files of certificates are no longer watched: {error}");
                }
                return; // or the runtime is going down
            }
        };
        watches = kept;
        let pause = match &watching {
            _ if news.is_none() => pace.blind,
            Err(_) => pace.blind,
            Ok(()) if failing => pace.failing,
            Ok(()) => pace.slow,
        };
        if let (Some(_), Err(error), false) = (&news, &watching, warned) {
            tracing::warn!(
                "a directory cannot be watched, so its certificates are compared every {pause:?}: {error}"
            );
        }
        warned = watching.is_err();
        tokio::select! {
            () = changed(news.as_ref(), watches.as_ref()) => settled(news.as_ref(), watches.as_ref(), pace).await,
            () = registry.changed.notified() => {}
            () = sleep(pause) => {}
        }
    }
}

fn watch_all(registry: &Registry, watches: &mut Watches) -> Result<(), String> {
    let places: BTreeSet<_> = registry.files().iter().flat_map(|file| places(Path::new(file))).collect();
    watches.set(places)
}

async fn changed(news: Option<&News>, watches: Option<&Watches>) {
    if let (Some(news), Some(watches)) = (news, watches)
        && news.changed(watches).await.is_ok()
    {
        return;
    }
    // What is left is looking now and then.
    future::pending::<()>().await;
}

/// Waits until nothing happened for a while: the second file of a pair follows the first.
async fn settled(news: Option<&News>, watches: Option<&Watches>, pace: Pace) {
    let until = Instant::now() + pace.patience;
    while Instant::now() < until && timeout(pace.quiet, changed(news, watches)).await.is_ok() {}
}
