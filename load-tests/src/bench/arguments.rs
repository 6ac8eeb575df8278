//! The command line, and the hidden subcommands by which the measurement starts its own programs.

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Parser, Subcommand, ValueEnum};

use super::subject::Kind;

/// Measure proxies side by side: requests/s, latencies, CPU time, system calls and memory.
///
/// Subjects take turns on core 0; load and upstream are on core 1. A turn that other work on the machine
/// has disturbed is discarded and repeated.
#[derive(Clone, Debug, Parser)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:
  cargo run --release -p load-tests --bin peers
  cargo run --release -p load-tests --bin peers -- --scenarios all --picture peers.svg --check
  cargo run --release -p load-tests --bin peers -- --scenarios 'c32,tls*' --rounds 7
  cargo run --release -p load-tests --bin peers -- --scenarios c32 --subjects sluicegate,haproxy -o json
  SLUICEGATE_BINARY=target/dist/sluicegate cargo run --release -p load-tests --bin peers"
)]
pub struct Arguments {
    #[command(subcommand)]
    pub program: Option<Program>,
    /// What to measure: names, the start of names and *, `quick` (about 3 minutes) or `all`
    #[arg(long, value_delimiter = ',', default_value = "quick")]
    pub scenarios: Vec<String>,
    /// Whom to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Kind::ALL)]
    pub subjects: Vec<Kind>,
    /// Turns that each subject gets in each scenario
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// Length of the window that is measured in each turn, after a warm-up
    #[arg(long, default_value_t = 1.2, value_parser = seconds)]
    pub seconds: f64,
    /// Measure each subject with 1 and with this many workers; needs 2 more cores than workers
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub workers: u32,
    /// The share of a core that work of others may take in a turn, in percent
    #[arg(long, default_value_t = 3.0)]
    pub disturbance: f64,
    /// Keep turns that were disturbed, and only count them
    #[arg(long)]
    pub allow_disturbed: bool,
    /// Write a picture (SVG) to this file
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// A table for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub output: Output,
    /// Exit with 1 unless Sluicegate meets its targets in what was measured
    #[arg(long)]
    pub check: bool,
    /// List the scenarios
    #[arg(long)]
    pub list: bool,
}

impl Arguments {
    pub fn window(&self) -> Duration {
        Duration::from_secs_f64(self.seconds)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Table,
    Json,
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if (0.1..=3_600.0).contains(&seconds) { Ok(seconds) } else { Err("allowed: 0.1 to 3600".to_owned()) }
}

/// What runs as a process of its own.
#[derive(Clone, Debug, Subcommand)]
pub enum Program {
    #[command(hide = true, disable_help_flag = true)]
    OnCores {
        #[arg(long, value_delimiter = ',', num_args = 1)]
        cores: Vec<usize>,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
    #[command(hide = true)]
    Upstream { ports: usize, ready_file: PathBuf },
    #[command(hide = true)]
    Relay { listen: SocketAddr, upstream: SocketAddr },
    #[command(hide = true)]
    Load { order: String },
    #[command(hide = true)]
    Idle { order: String },
    #[command(hide = true)]
    Handshakes { order: String },
}

impl Program {
    /// Is this program until it ends.
    pub fn run(self) -> anyhow::Result<()> {
        use super::{pinned, program};
        match self {
            Self::OnCores { cores, program } => pinned::become_program(&cores, &program),
            Self::Upstream { ports, ready_file } => program::upstream::run(ports, &ready_file),
            Self::Relay { listen, upstream } => program::relay::run(listen, upstream),
            Self::Load { order } => program::load::run(&order),
            Self::Idle { order } => program::idle::run(&order),
            Self::Handshakes { order } => program::handshakes::run(&order),
        }
    }
}
