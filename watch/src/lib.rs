//! News of files that change, for both sides: certificates and keys, mostly.
//!
//! # Rooms
//! - `follow`: when to compare what is in use with its files; one task for all of them.
//! - `places`: which directory entries lead to a file. Reads links, nothing else.
//! - `inotify`: news of entries from the kernel (`elsewhere` on systems without).
//!
//! What the files mean, and whether they have changed, is for whoever follows them to say: see
//! [`Followed`].

mod follow;
#[cfg_attr(not(target_os = "linux"), path = "elsewhere.rs")]
mod inotify;
mod places;
#[cfg(test)]
mod testing;

pub use follow::{Followed, Pace, Watcher, follow, follow_blind};
