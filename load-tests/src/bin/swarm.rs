//! A swarm of subscribed proxies against the real server: how fast a change reaches the last of them,
//! how many changes a second the server sustains, what a proxy costs it.
//!
//! The pieces are in [`load_tests::swarm`].

use std::process::ExitCode;

use clap::{Parser, ValueEnum};
use load_tests::swarm::measure::{Settings, run};

/// The goals: at 1,000 proxies and 100 changes/s, and as fast as it goes.
const GOAL_P99_MS: f64 = 25.0;
const GOAL_RATE: f64 = 10_000.0;
const GOAL_STREAM: f64 = 50.0 * 1_024.0;
const GOAL_BYTES: f64 = 300.0;

/// Measure how far one server goes, with many proxies in this process.
#[derive(Parser)]
#[command(after_help = "Examples:
  cargo run --release -p load-tests --bin swarm
  cargo run --release -p load-tests --bin swarm -- --leds --output json
  cargo run --release -p load-tests --bin swarm -- --proxies 100 --rates 100 --storm 0 --burst 0 --sizes 10
  cargo run -p load-tests --bin swarm -- --quick")]
struct Arguments {
    /// Services, each with one version and a route
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Endpoints, spread evenly over the services
    #[arg(long, default_value_t = 10_000)]
    endpoints: usize,
    /// Numbers of proxies, in rising order
    #[arg(long, value_delimiter = ',', default_values_t = [1, 100, 1_000])]
    proxies: Vec<usize>,
    /// Changes a second
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000])]
    rates: Vec<u32>,
    /// How long changes come at each rate, in s
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// How often each is measured
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Changes that are written as fast as they are answered; 0 leaves that out
    #[arg(long, default_value_t = 30_000)]
    burst: usize,
    /// Proxies that connect at once; 0 leaves that out
    #[arg(long, default_value_t = 1_000)]
    storm: usize,
    /// Endpoints of the versions of which one endpoint changes; 0 leaves that out
    #[arg(long, value_delimiter = ',', default_values_t = [10, 100, 1_000, 10_000])]
    sizes: Vec<usize>,
    /// Connections to the API that changes are written over
    #[arg(long, default_value_t = 64)]
    connections: usize,
    /// Proxies ask for endpoints one by one (LEDS)
    #[arg(long)]
    leds: bool,
    /// Seed of which service each change is about
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A few seconds of little load, to see that it works; other sizes that are given do not count
    #[arg(long)]
    quick: bool,
    /// A table for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 unless the goals are reached, of what was measured
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

impl Arguments {
    fn settings(self) -> Settings {
        let Self { leds, seed, .. } = self;
        if self.quick {
            return Settings {
                services: 20,
                endpoints: 200,
                proxies: vec![1, 20],
                rates: vec![50],
                seconds: 1,
                rounds: 1,
                burst: 500,
                storm: 50,
                sizes: vec![10, 1_000],
                connections: 8,
                leds,
                seed,
            };
        }
        Settings {
            services: self.services.max(1),
            endpoints: self.endpoints,
            proxies: self.proxies.into_iter().filter(|proxies| *proxies > 0).collect(),
            rates: self.rates.into_iter().filter(|rate| *rate > 0).collect(),
            seconds: self.seconds.max(1),
            rounds: self.rounds.max(1),
            burst: self.burst,
            storm: self.storm,
            sizes: self.sizes.into_iter().filter(|size| *size > 0).collect(),
            connections: self.connections.max(1),
            leds,
            seed,
        }
    }
}

// One thread writes changes; the swarm has another, and the server what is left.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    // A connection a proxy.
    rlimit::increase_nofile_limit(u64::MAX)?;
    let (output, check) = (arguments.output, arguments.check);
    let report = run(&arguments.settings()).await;
    match output {
        Output::Table => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    let mut missed = !report.broken.is_empty();
    if missed || !check {
        return Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let mut goal = |what: &str, reached: bool| {
        eprintln!("{} {what}", if reached { "met   " } else { "MISSED" });
        missed |= !reached;
    };
    for cell in report.propagation.iter().filter(|cell| (cell.proxies, cell.rate) == (1_000, 100)) {
        let best = cell.rounds.iter().map(|round| round.from_start.p99_ms).fold(f64::MAX, f64::min);
        goal(
            &format!("p99 with 1,000 proxies at 100 changes/s: {best:.1} ms, at most {GOAL_P99_MS}"),
            best <= GOAL_P99_MS,
        );
    }
    for burst in &report.bursts {
        let best = burst.rounds.iter().map(|round| round.rate).fold(0.0, f64::max);
        goal(
            &format!("changes/s with {} proxies: {best:.0}, at least {GOAL_RATE}", burst.proxies),
            best >= GOAL_RATE,
        );
    }
    for storm in &report.storms {
        let least = storm.rounds.iter().map(|rush| rush.memory_per_stream).fold(f64::MAX, f64::min);
        goal(&format!("memory a stream: {least:.0} bytes, at most {GOAL_STREAM}"), least <= GOAL_STREAM);
    }
    for size in &report.sizes {
        let least = size.rounds.iter().map(|round| round.bytes).fold(f64::MAX, f64::min);
        let most =
            format!("bytes a change of {} endpoints: {least:.0}, at most {GOAL_BYTES}", size.endpoints);
        goal(&most, least <= GOAL_BYTES);
    }
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
