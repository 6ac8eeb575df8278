//! What the tests with foreign clients and servers share.
//!
//! - [`peer`]: programs that are not ours: found, run with a deadline, started as servers.
//! - [`stand`]: a server, a proxy that follows it, and one service behind one gateway.
//! - [`nginx`]: nginx with a configuration of the test's own.
//! - [`h2load`]: one run of h2load, and what became of its requests.
//! - [`certificates`]: an authority of the test's own, made with the openssl command.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub(crate) mod certificates;
pub(crate) mod h2load;
pub(crate) mod nginx;
pub(crate) mod peer;
pub(crate) mod stand;

use std::time::Duration;

/// How long anything here may take before the test fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);
