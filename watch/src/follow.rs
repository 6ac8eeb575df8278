//! Keeps what is in use like its files: one task for all of it.
//!
//! The kernel tells when an entry that leads to a file changes; a moment later, when whoever replaces
//! both files of a pair is done, all files are compared. They are compared now and then without news
//! as well, because there are none of files that another machine changes (`inotify(7)`, limitations).

use std::{
    collections::BTreeSet,
    future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Notify,
    task::{AbortHandle, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use crate::{
    inotify::{self, News, Watches},
    places::places,
};

/// What came from files, and is to stay like them.
pub trait Followed: Send + Sync + 'static {
    /// Every file that something in use came from.
    fn files(&self) -> Vec<PathBuf>;

    /// Compares everything in use with its files, and takes what changed. Returns whether something
    /// could not be taken, so that it is tried again soon. Called where it may block.
    fn compare(&self) -> bool;

    /// Told when something came or went that has files.
    fn changed(&self) -> &Notify;
}

/// When files are compared.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long it must be quiet after news.
    pub quiet: Duration,
    /// How long news are waited out at most.
    pub patience: Duration,
    /// How often without news.
    pub slow: Duration,
    /// How often while something in use is not like its files.
    pub failing: Duration,
    /// How often where the kernel gives no news.
    pub blind: Duration,
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
pub struct Watcher(AbortHandle);

impl Drop for Watcher {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Follows the files of `followed`, on the runtime it is called in and its blocking threads.
pub fn follow<F: Followed>(followed: Arc<F>, pace: Pace) -> Watcher {
    Watcher(tokio::spawn(run(followed, pace, inotify::start().ok())).abort_handle())
}

/// The same without news from the kernel, as on systems that give none.
pub fn follow_blind<F: Followed>(followed: Arc<F>, pace: Pace) -> Watcher {
    Watcher(tokio::spawn(run(followed, pace, None)).abort_handle())
}

async fn run(followed: Arc<impl Followed>, pace: Pace, sight: Option<(News, Watches)>) {
    if sight.is_none() {
        tracing::info!("no news of files from the kernel; certificates are compared every {:?}", pace.blind);
    }
    let (news, mut watches) = sight.unzip();
    let mut warned = false;
    loop {
        let looked = {
            let followed = Arc::clone(&followed);
            // Watched first and compared then, so that no change falls in between.
            spawn_blocking(move || {
                let watching =
                    watches.as_mut().map_or(Err(String::new()), |watches| watch_all(&*followed, watches));
                (watches, watching, followed.compare())
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
            () = followed.changed().notified() => {}
            () = sleep(pause) => {}
        }
    }
}

fn watch_all(followed: &impl Followed, watches: &mut Watches) -> Result<(), String> {
    let places: BTreeSet<_> = followed.files().iter().flat_map(|file| places(Path::new(file))).collect();
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
