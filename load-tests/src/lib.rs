//! The harness: real servers, real proxies and real peers as processes, on ports the kernel chooses.
//!
//! # Rooms
//! - [`process`]: a child process that ends with its handle. [`temp`]: a directory likewise.
//! - [`sluicegate`]: the binary under test, its server and its proxies.
//! - [`backend`]: HTTP and gRPC instances in this process, which count and time what reaches them.
//! - [`api`]: the API as a client sees it. [`traffic`]: steady requests and what became of them.
//! - [`mod@bench`]: proxies side by side. [`peers`]: Envoy, HAProxy, nginx, etcd, gRPC. [`figures`]: min, p50, p99, max.
//! - [`swarm`]: many xDS clients of one server.
//! - [`until`]: waiting for a condition with a deadline; the only way anything here waits.
//!
//! Tests are in `tests/`, measurements in `src/bin/`. Traffic goes to loopback only.

#![allow(
    missing_docs,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "a harness: a panic is a failed test, and names say what things are"
)]

pub mod api;
pub mod backend;
pub mod bench;
pub mod figures;
pub mod peers;
pub mod process;
pub mod sluicegate;
pub mod swarm;
pub mod temp;
pub mod traffic;

use std::time::{Duration, Instant};

/// Polls `condition` until it holds.
///
/// # Panics
/// When it does not within `timeout`, saying `what` was waited for.
pub async fn until<T>(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "waited {timeout:?} for {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
