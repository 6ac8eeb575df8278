//! Instructions a call, counted by callgrind: unlike time they do not depend on what else the machine
//! does, so that a change which costs shows at once. The list is in `cases`; its wall time, from a quick
//! measurement, stands beside.
//!
//! `cargo bench --bench instructions`; with `-- --output json` for machines, with
//! `-- --check benches/instructions.json` as a guard, with `-- --test` each runs once.
//!
//! A case runs in a process of its own under valgrind, once with as many calls as again: what both
//! have, the start and the preparation, drops out. Hash seeds and draws differ from process to process,
//! and with them a count by a few in a hundred. The clock is read through a system call under valgrind,
//! which costs fewer instructions than without. Counts depend on the compiler and on the number of cores,
//! as each has its part of some records: the file that is compared with is of one kind of machine.

mod cases;

use std::{
    collections::BTreeMap,
    env, fs, io,
    path::PathBuf,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use cases::Case;
use clap::{Parser, ValueEnum};
use serde::{Deserialize, Serialize};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Most calls of the shorter of the two runs that are compared; the other makes twice as many. Fewer of
/// what takes long, down to [`FEW`].
const CALLS: u64 = 1_000;
const FEW: u64 = 20;
/// How long the shorter run may be, were it not under valgrind.
const RUN: Duration = Duration::from_millis(2);
/// How long one round of the wall measurement takes; the fastest of [`ROUNDS`] counts.
const ROUND: Duration = Duration::from_millis(10);
const ROUNDS: usize = 7;
/// How much a count may be above the one it is compared with.
const GROWTH: f64 = 0.10;

/// Counts the instructions of each case.
#[derive(Parser)]
struct Args {
    /// Only cases with this in their names
    filter: Option<String>,
    /// How to show the counts
    #[arg(long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Fail when a case takes over a tenth more instructions than in this file, made with --output json
    #[arg(long)]
    check: Option<PathBuf>,
    /// Run each case once, to see that it runs
    #[arg(long)]
    test: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
    /// Make so many calls of the case that has exactly the name of the filter: what runs under valgrind
    #[arg(long, hide = true)]
    calls: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// What a call costs.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Cost {
    /// `None` where there is no valgrind.
    instructions: Option<u64>,
    nanoseconds: f64,
}

type Costs = BTreeMap<String, Cost>;

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    let filter = args.filter.as_deref().unwrap_or_default();
    if let Some(calls) = args.calls {
        let case = cases::all().into_iter().find(|case| case.name() == filter);
        let mut call = case.context("there is no such case")?.make();
        for _ in 0..calls {
            call();
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| case.name().contains(filter)).collect();
    if args.test {
        for case in &cases {
            case.make()();
            println!("{}: ran once", case.name());
        }
        return Ok(ExitCode::SUCCESS);
    }
    let counts = has_valgrind()?;
    if !counts {
        eprintln!(
            "instructions are not counted: valgrind is not installed (Debian's package valgrind has it)"
        );
    }
    let table = args.output == Output::Table;
    if table {
        println!("{:48} {:>12} {:>11}", "a call of", "instructions", "ns");
    }
    let mut costs = Costs::new();
    for case in &cases {
        let name = case.name();
        let nanoseconds = nanoseconds(case);
        let calls = ((RUN.as_nanos() as f64 / nanoseconds) as u64).clamp(FEW, CALLS);
        let instructions = if counts { Some(instructions(&name, calls)?) } else { None };
        let cost = Cost { instructions, nanoseconds };
        if table {
            let instructions = instructions.map_or("-".to_owned(), |n| n.to_string());
            println!("{name:48} {instructions:>12} {nanoseconds:>11.1}");
        }
        costs.insert(name, cost);
    }
    if !table {
        println!("{}", serde_json::to_string_pretty(&costs)?);
    }
    match args.check {
        Some(file) if counts => check(&costs, &file),
        Some(_) => {
            eprintln!("nothing is compared");
            Ok(ExitCode::SUCCESS)
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

fn has_valgrind() -> anyhow::Result<bool> {
    match Command::new("valgrind").arg("--version").stdout(Stdio::null()).status() {
        Ok(status) => Ok(status.success()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).context("valgrind cannot be started"),
    }
}

/// Instructions a call.
fn instructions(name: &str, calls: u64) -> anyhow::Result<u64> {
    // At once: counts do not mind.
    let (short, long) = (callgrind(name, calls)?, callgrind(name, 2 * calls)?);
    let (short, long) = (collected(short)?, collected(long)?);
    Ok(long.saturating_sub(short) / calls)
}

fn callgrind(name: &str, calls: u64) -> anyhow::Result<Child> {
    Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe()?)
        .args(["--calls", &calls.to_string(), name])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("valgrind cannot be started")
}

/// All instructions of a run, as callgrind says at its end.
fn collected(run: Child) -> anyhow::Result<u64> {
    let output = run.wait_with_output()?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("a case failed under valgrind:\n{said}");
    }
    let count = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    count.with_context(|| format!("valgrind says no count:\n{said}"))
}

/// Of the fastest round.
fn nanoseconds(case: &Case) -> f64 {
    let mut call = case.make();
    let mut round = |calls: u32| {
        let since = Instant::now();
        for _ in 0..calls {
            call();
        }
        since.elapsed()
    };
    let mut calls = 1;
    while round(calls) < ROUND && calls < 1 << 24 {
        calls *= 2;
    }
    let fastest = (0..ROUNDS).map(|_| round(calls)).min().unwrap_or_default();
    let each = fastest.as_nanos() as f64 / f64::from(calls);
    (each * 10.0).round() / 10.0 // more is not known
}

/// Compares with a file that was made before.
fn check(costs: &Costs, file: &PathBuf) -> anyhow::Result<ExitCode> {
    let text = fs::read(file).with_context(|| format!("{} cannot be read", file.display()))?;
    let before: Costs = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what --output json writes", file.display()))?;
    let mut grown = 0;
    for (name, cost) in costs {
        let known = before.get(name).and_then(|cost| cost.instructions);
        let (Some(was), Some(is)) = (known, cost.instructions) else {
            eprintln!("{name} is not in {}", file.display());
            continue;
        };
        let growth = is as f64 / was.max(1) as f64 - 1.0;
        if growth > GROWTH {
            eprintln!("{name} takes {is} instructions, {:.0} % more than {was}", growth * 100.0);
            grown += 1;
        }
    }
    if grown == 0 {
        eprintln!("no case takes over {:.0} % more instructions than before", GROWTH * 100.0);
    }
    Ok(if grown == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
