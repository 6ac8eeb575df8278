//! `sluicegate demo`: the whole product in ten seconds, with real processes and real traffic.
//!
//! - [`program`]: a child process, which never outlives the demo.
//! - [`stage`]: server, proxy and instances, all on free ports, and a directory that goes away.
//! - [`traffic`]: steady requests, each noted with who answered and when.
//! - [`script`]: what happens on the stage, and what is promised of it.

mod program;
mod script;
mod stage;
mod traffic;

use std::time::{Duration, Instant};

use anyhow::anyhow;
use clap::Args;

use crate::{exit, process::Signals};
use script::Script;
use stage::Stage;

/// Longer than this and something hangs.
const LIMIT: Duration = Duration::from_mins(2);

/// See all of it in ten seconds: instances, shifts of traffic, a kill -9, and what each costs
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate demo

It starts a server, a proxy and instances as child processes on free ports of 127.0.0.1, with their
state in a temporary directory, sends steady traffic, and takes all of it away at the end. It says
what it promises, and fails if it does not see it."))]
pub(crate) struct Demo {}

impl Demo {
    pub(crate) async fn run(self) -> anyhow::Result<u8> {
        let began = Instant::now();
        let mut signals = Signals::new()?;
        let mut stage = Stage::new()?;
        let mut script = Script::new();
        let played = tokio::select! {
            played = tokio::time::timeout(LIMIT, script.play(&mut stage)) => match played {
                Ok(played) => played,
                Err(_) => Err(anyhow!("it was not over after {} s", LIMIT.as_secs())),
            },
            () = signals.next() => Err(Interrupted.into()),
        };
        let log = stage.server_log();
        // Also stoppable: children end with the demo's end of their standard input, whatever happens.
        tokio::select! {
            () = stage.close() => {}
            () = signals.next() => {}
        }
        if let Err(error) = played {
            if !error.is::<Interrupted>() && !exit::is_broken_pipe(&error) {
                eprintln!("the last words of the server:\n{log}");
            }
            return Err(error);
        }
        Ok(if script.verdict(began.elapsed())? { exit::OK } else { exit::FAILED })
    }
}

/// Someone did not want to see the end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
struct Interrupted;
