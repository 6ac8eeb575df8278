//! Keeps values like the files they were read from.
//!
//! By looking once a second: a few small files, whose content decides. News from the kernel would say
//! nothing of files that another machine changes, nor of links that are turned to others.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use config::tls::Fingerprint;

/// How often files are looked at.
const EVERY: Duration = Duration::from_secs(1);
/// How often it is read in a row while it names other files than it did.
const ATTEMPTS: usize = 4;

/// A value and the files it came from, or why there is none.
type Read<T> = Result<(T, Vec<PathBuf>), String>;

/// A value that follows its files. What they hold now and cannot be used leaves it as it was.
pub(super) struct Followed<T> {
    /// For people.
    what: &'static str,
    value: ArcSwap<T>,
    read: Box<dyn Fn() -> Read<T> + Send + Sync>,
    /// Only the one who compares holds it.
    seen: Mutex<Seen>,
}

struct Seen {
    files: Vec<PathBuf>,
    fingerprint: Fingerprint,
    /// Why the files as they are now cannot be used, as it was logged.
    trouble: Option<String>,
}

impl<T> Followed<T> {
    /// Reads it for the first time.
    pub(super) fn new(
        what: &'static str,
        read: impl Fn() -> Read<T> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let (value, files, fingerprint) = settled(&read, Vec::new())?;
        let seen = Mutex::new(Seen { files, fingerprint, trouble: None });
        Ok(Self { what, value: ArcSwap::from_pointee(value), read: Box::new(read), seen })
    }

    /// Whether the files as they are now cannot be used.
    pub(super) fn is_failing(&self) -> bool {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).trouble.is_some()
    }

    pub(super) fn current(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Reads the files again if they have changed; whether there is another value. Blocking.
    pub(super) fn compare(&self) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        // In trouble, what is missing may be a file that is not among them.
        if Fingerprint::of(&seen.files) == seen.fingerprint && seen.trouble.is_none() {
            return false;
        }
        let what = self.what;
        match settled(&self.read, seen.files.clone()) {
            Ok((value, files, fingerprint)) => {
                self.value.store(Arc::new(value));
                *seen = Seen { files, fingerprint, trouble: None };
                tracing::info!("{what} has changed, and is in force as it is now");
                true
            }
            Err(error) => {
                if seen.trouble.as_ref() != Some(&error) {
                    tracing::warn!("{what} has changed and cannot be used, what was in force stays: {error}");
                }
                seen.trouble = Some(error);
                false
            }
        }
    }
}

/// What `read` gives, its files, and what they were before it read them: what changes meanwhile is
/// different at the next look. `files` are those it is expected to read.
fn settled<T>(
    read: &dyn Fn() -> Read<T>,
    mut files: Vec<PathBuf>,
) -> Result<(T, Vec<PathBuf>, Fingerprint), String> {
    for _ in 0..ATTEMPTS {
        let fingerprint = Fingerprint::of(&files);
        let (value, came_from) = read()?;
        if came_from == files {
            return Ok((value, files, fingerprint));
        }
        files = came_from;
    }
    Err("it names other files each time it is read; replace it by renaming a whole one over it".to_owned())
}

/// Has `compare` look now and then, for ever.
pub(super) async fn run(compare: impl Fn() + Clone + Send + 'static) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // An error means that the runtime is ending, or that one look panicked; the next may not.
        let _ = tokio::task::spawn_blocking(compare.clone()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_follows_its_files_and_what_cannot_be_used_changes_nothing() {
        let path = std::env::temp_dir().join(format!("sluicegate-follow-{}", std::process::id()));
        std::fs::write(&path, "1").unwrap();
        let read = {
            let path = path.clone();
            move || {
                let text = std::fs::read_to_string(&path).map_err(|e| e.to_string())?;
                let value: u32 = text.parse().map_err(|_| "no number".to_owned())?;
                Ok((value, vec![path.clone()]))
            }
        };
        let followed = Followed::new("a number", read).unwrap();
        assert!(!followed.compare());
        assert_eq!(*followed.current(), 1);
        for (content, expected) in [("2", 2), ("x", 2), ("", 2), ("3", 3)] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(
                followed.compare(),
                *followed.current() == expected && content.parse() == Ok(expected)
            );
            assert_eq!(*followed.current(), expected, "{content}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(!followed.compare());
        assert_eq!(*followed.current(), 3);
        // Back as it was before it was gone.
        std::fs::write(&path, "4").unwrap();
        assert!(followed.compare());
        assert_eq!(*followed.current(), 4);
    }
}
