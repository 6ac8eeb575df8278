//! News of directories from the kernel: `inotify(7)`.
//!
//! By rustix, which is here already, rather than by a crate for watching: a directory and a name are
//! all that is asked for, and `places` has to follow the links anyway.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    ffi::{OsStr, OsString},
    io,
    mem::MaybeUninit,
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::inotify::{self, CreateFlags, Event, ReadFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

use crate::places::Place;

/// Room for events, in bytes: each has 16 and its name.
const BUFFER: usize = 4_096;
/// Most events read in one go.
const AT_ONCE: usize = 1_024;
/// Pause between news that do not concern us, so that a busy directory costs little. The kernel
/// holds 16,384 events meanwhile, and says so when it had to drop one.
const PAUSE: Duration = Duration::from_millis(10);

/// Anything that can make an entry another file or other content. `CLOSE_WRITE` in place of
/// `MODIFY`: a file that is being written is half of one.
const EVENTS: WatchFlags = WatchFlags::CLOSE_WRITE
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::DELETE_SELF)
    .union(WatchFlags::MOVE_SELF)
    .union(WatchFlags::ONLYDIR);
/// What concerns whoever watches the directory, whichever entry.
const OF_ITSELF: ReadFlags =
    ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::UNMOUNT).union(ReadFlags::IGNORED);

/// Where news arrive.
#[derive(Debug)]
pub(super) struct News {
    fd: AsyncFd<Arc<OwnedFd>>,
}

/// What is watched for.
#[derive(Debug)]
pub(super) struct Watches {
    fd: Arc<OwnedFd>,
    /// By the kernel's number of a directory: the names that count there.
    names: HashMap<i32, HashSet<OsString>>,
}

/// Nothing is watched yet. Within a runtime.
// The name that replaces the deprecated one is `unsafe`, for descriptors that are closed while they are
// waited for. An `Arc<OwnedFd>` never is.
#[allow(deprecated)]
pub(super) fn start() -> io::Result<(News, Watches)> {
    let fd = Arc::new(inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?);
    let news = News { fd: AsyncFd::with_interest(Arc::clone(&fd), Interest::READABLE)? };
    Ok((news, Watches { fd, names: HashMap::new() }))
}

impl Watches {
    /// Watches for `places` and nothing else. Blocking, where a directory is on a network.
    ///
    /// # Errors
    /// The first directory that cannot be watched; the others are.
    pub(super) fn set(&mut self, places: BTreeSet<Place>) -> Result<(), String> {
        let mut failed = Ok(());
        let mut watched: HashMap<i32, HashSet<OsString>> = HashMap::new();
        let mut last: Option<(_, i32)> = None; // places of one directory are neighbours
        for Place { directory, name } in places {
            let number = match &last {
                Some((known, number)) if *known == directory => *number,
                // Asked for again even when it is watched: another directory may be called so by now.
                _ => match self.add(&directory) {
                    Ok(number) => number,
                    Err(error) => {
                        failed = failed.and(Err(format!("{}: {error}", directory.display())));
                        continue;
                    }
                },
            };
            last = Some((directory, number));
            watched.entry(number).or_default().insert(name);
        }
        for number in self.names.keys().filter(|number| !watched.contains_key(number)) {
            // Fails when the directory is gone, and its watch with it.
            let _ = inotify::remove_watch(&self.fd, *number);
        }
        self.names = watched;
        failed
    }

    fn add(&self, directory: &Path) -> Result<i32, Errno> {
        inotify::add_watch(&self.fd, directory, EVENTS)
    }

    fn concern(&self, event: &Event<'_>) -> bool {
        if event.events().contains(ReadFlags::QUEUE_OVERFLOW) {
            return true; // some were lost: any of them may have concerned us
        }
        let Some(names) = self.names.get(&event.wd()) else { return false };
        let name = event.file_name().map(|name| OsStr::from_bytes(name.to_bytes()));
        event.events().intersects(OF_ITSELF) || name.is_some_and(|name| names.contains(name))
    }
}

impl News {
    /// Returns when something happened to what `watches` is set to.
    pub(super) async fn changed(&self, watches: &Watches) -> io::Result<()> {
        loop {
            let mut ready = self.fd.readable().await?;
            if self.read(watches)? {
                return Ok(());
            }
            ready.clear_ready();
            drop(ready);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Reads what is there; returns whether any of it concerns us.
    fn read(&self, watches: &Watches) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); BUFFER];
        let mut reader = Reader::new(self.fd.get_ref(), &mut buffer);
        let mut concerns = false;
        for _ in 0..AT_ONCE {
            match reader.next() {
                Ok(event) => concerns |= watches.concern(&event),
                Err(Errno::AGAIN) => return Ok(concerns),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        // What is left in the buffer goes unread, so we look ourselves.
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{places::places, testing::Scratch};

    #[tokio::test]
    async fn news_of_a_file_concern_us_and_those_of_its_neighbours_do_not() {
        let scratch = Scratch::new("news");
        fs::write(scratch.path("mine"), "x").unwrap();
        let (news, mut watches) = start().unwrap();
        watches.set(places(&scratch.path("mine"))).unwrap();
        // The kernel has queued an event when the call that caused it returns.
        fs::write(scratch.path("neighbour"), "x").unwrap();
        assert!(!news.read(&watches).unwrap());
        fs::write(scratch.path("mine"), "y").unwrap();
        assert!(news.read(&watches).unwrap());
        fs::rename(scratch.path("neighbour"), scratch.path("mine")).unwrap();
        assert!(news.read(&watches).unwrap());
        watches.set(BTreeSet::new()).unwrap();
        fs::write(scratch.path("mine"), "z").unwrap();
        assert!(!news.read(&watches).unwrap());
    }
}
