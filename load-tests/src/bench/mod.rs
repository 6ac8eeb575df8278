//! Proxies side by side: what a request costs in each of them.
//!
//! # Rooms
//! - [`arguments`] and [`scenario`]: what can be asked for. [`run`]: rounds, interleaved; [`measure`]: one turn.
//! - [`subject`]: the proxies and how each is configured. [`pinned`]: how every process is started.
//! - [`program`]: what runs as a process of its own beside the subjects: upstream, load, relay, and others.
//! - [`usage`], [`machine`], [`syscalls`]: what /proc and perf know of a subject, and of foreign work.
//! - [`histogram`], [`http1`], [`poll`]: pieces of the programs.
//! - [`report`]: a table, JSON, a picture, and whether the targets are met.
//!
//! Subjects are on the first core, load and upstream on the second, in every turn. Traffic goes to
//! loopback only.

pub mod arguments;
pub mod h2load;
pub mod histogram;
pub mod http1;
pub mod machine;
pub mod measure;
pub mod pinned;
pub mod poll;
pub mod program;
pub mod report;
pub mod run;
pub mod scenario;
pub mod subject;
pub mod syscalls;
pub mod usage;
