//! How every process is started: on given cores, with many file descriptors, and so that it ends with
//! the measurement, however that ends.
//!
//! The measurement starts itself as `on-cores`, which sets all this for itself and then becomes the
//! program that is wanted.

use std::{ffi::OsString, os::unix::process::CommandExt, path::Path, process::Command};

use anyhow::Context;
use rustix::{
    process::{Signal, set_parent_process_death_signal},
    thread::{CpuSet, sched_setaffinity},
};

/// File descriptors a process gets, where the machine allows it.
const WANTED: u64 = 100_000;

/// A command that runs `program` on `cores`.
pub fn command(cores: &[usize], program: impl AsRef<Path>) -> tokio::process::Command {
    let own = std::env::current_exe().expect("the system knows which program this is");
    let cores: Vec<String> = cores.iter().map(ToString::to_string).collect();
    let mut command = tokio::process::Command::new(own);
    command.args(["on-cores", "--cores", &cores.join(",")]).arg(program.as_ref());
    command
}

/// A command that runs a subcommand of this program on `cores`.
pub fn own(cores: &[usize], subcommand: &str) -> tokio::process::Command {
    let own = std::env::current_exe().expect("the system knows which program this is");
    let mut command = command(cores, own);
    command.arg(subcommand);
    command
}

/// Becomes `program`; returns only when that fails.
pub fn become_program(cores: &[usize], program: &[OsString]) -> anyhow::Result<()> {
    let (name, arguments) = program.split_first().context("on-cores needs a program")?;
    let mut set = CpuSet::new();
    for core in cores {
        set.set(*core);
    }
    sched_setaffinity(None, &set).with_context(|| format!("cannot run on cores {cores:?}"))?;
    // TERM, so that nginx's master takes its workers along.
    set_parent_process_death_signal(Some(Signal::TERM))?;
    raise_limit();
    Err(Command::new(name).args(arguments).exec()).with_context(|| format!("cannot start {}", name.display()))
}

/// As many file descriptors as there can be, up to what is wanted; says how many there are.
pub fn raise_limit() -> u64 {
    let (_, hard) = rlimit::getrlimit(rlimit::Resource::NOFILE).unwrap_or((1_024, 1_024));
    // Root may go above its hard limit; others keep to it.
    if rlimit::setrlimit(rlimit::Resource::NOFILE, WANTED, WANTED.max(hard)).is_ok() {
        return WANTED;
    }
    rlimit::increase_nofile_limit(WANTED).unwrap_or(hard)
}
