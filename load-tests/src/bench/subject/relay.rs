//! The raw relay of [`crate::bench::program::relay`].

use super::{Kind, Setup, Subject};
use crate::{
    bench::{pinned, scenario::Front},
    peers::haproxy::free_port,
    process::Process,
    temp::TempDir,
};

pub(super) async fn start(setup: &Setup) -> anyhow::Result<Subject> {
    anyhow::ensure!(setup.front == Front::Plain, "the relay has no TLS");
    anyhow::ensure!(setup.workers == 1, "the relay has one thread");
    let (directory, address) = (TempDir::new(), free_port().await);
    let mut command = pinned::own(&setup.cores, "relay");
    command.arg(address.to_string()).arg(setup.upstream[0].to_string());
    let log = directory.join("log");
    let process = Process::start(command, &log);
    let pid = process.pid();
    let log = move || std::fs::read_to_string(&log).unwrap_or_default();
    Subject::listening(Kind::Relay, address, pid, (process, directory), log).await
}
