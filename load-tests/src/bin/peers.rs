//! Sluicegate, nginx, `HAProxy`, Envoy and a raw relay side by side: what a request costs in each.
//!
//! The pieces are in [`load_tests::bench`].

use std::{process::ExitCode, time::Instant};

use anyhow::Context;
use clap::Parser;
use load_tests::bench::{
    arguments::{Arguments, Output},
    machine, report, run, scenario,
};
use tokio::signal::unix::{SignalKind, signal};

fn main() -> anyhow::Result<ExitCode> {
    let mut arguments = Arguments::parse();
    if let Some(program) = arguments.program.take() {
        return program.run().map(|()| ExitCode::SUCCESS);
    }
    if arguments.list {
        for scenario in scenario::ALL {
            println!("{:<18} {}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    let scenarios = match scenario::select(&arguments.scenarios) {
        Ok(scenarios) => scenarios,
        Err(why) => {
            eprintln!("{why}");
            return Ok(ExitCode::from(2));
        }
    };
    let cores = machine::cores().len();
    if arguments.workers > 1 && cores < arguments.workers as usize + 2 {
        println!("{} workers: not measured: this machine has {cores} cores", arguments.workers);
        return Ok(ExitCode::SUCCESS);
    }
    // One thread: children are told when the thread that started them ends.
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
        let mut terminated = signal(SignalKind::terminate())?;
        tokio::select! {
            result = measure(&arguments, &scenarios) => result,
            // Dropping the rest ends all children.
            _ = tokio::signal::ctrl_c() => Ok(ExitCode::from(130)),
            _ = terminated.recv() => Ok(ExitCode::from(143)),
        }
    })
}

async fn measure(arguments: &Arguments, scenarios: &[scenario::Scenario]) -> anyhow::Result<ExitCode> {
    let start = Instant::now();
    let measured = run::run(arguments, scenarios).await?;
    let reports: Vec<_> = measured.iter().map(report::Report::of).collect();
    match arguments.output {
        Output::Table => print!("{}", report::table(&reports)),
        Output::Json => {
            let all = serde_json::json!({"reports": reports, "turns": measured});
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
    }
    if let Some(path) = &arguments.picture {
        let written = std::fs::write(path, report::picture(&reports));
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    eprintln!("{:.0} s on {} cores", start.elapsed().as_secs_f64(), machine::cores().len());
    if !arguments.check {
        return Ok(ExitCode::SUCCESS);
    }
    let verdicts = report::verdicts(&reports);
    for verdict in &verdicts {
        eprintln!("{} {}", if verdict.met { "met   " } else { "MISSED" }, verdict.sentence);
    }
    let met = !verdicts.is_empty() && verdicts.iter().all(|verdict| verdict.met);
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
