//! The `sluicegate` command: starts either side or both, and talks to the API of a running server.
//!
//! # Rooms
//! - [`serve`]: `serve`, `xds-server` and `proxy`: the only room that knows the two crates.
//! - One file a subcommand over the API: [`apply`], [`get`], [`delete`], [`shift`], [`proxies`], [`load`],
//!   [`events`].
//! - [`register`] and [`echo`]: run an instance; [`hold`] keeps its registration for both.
//! - [`demo`]: the whole product in ten seconds, as child processes of this executable.
//! - [`client`]: HTTP to the API; [`connection`]: where it is and who asks; [`manifests`]: reading files; [`flags`], [`output`], [`table`],
//!   [`exit`], [`process`]: what the subcommands share.
//!
//! Deliberately absent: logic of either side. What this package decides is only how to say it.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion"))]

mod apply;
mod client;
mod connection;
mod delete;
mod demo;
mod echo;
mod events;
mod exit;
mod flags;
mod get;
mod hold;
mod load;
mod manifests;
mod output;
mod process;
mod proxies;
mod register;
mod serve;
mod shift;
mod table;
#[cfg(test)]
mod testing;

use std::{
    io::{IsTerminal, stderr},
    process::ExitCode,
};

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Service discovery and traffic shifting for serverless platforms.
#[derive(Parser)]
#[command(name = "sluicegate", version, max_term_width = 110, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  sluicegate demo                               see all of it in ten seconds
  sluicegate serve -f shop.yaml                 server and proxy in one process
  sluicegate register checkout v2 --address 127.0.0.1:9001 -- ./my-app
  sluicegate shift checkout v2=10% --wait       a tenth of the traffic to v2

Exit codes: 0 ok, 1 failed, 2 usage or invalid input, 3 cannot reach the server.
SLUICEGATE_TOKEN is shown to a server that asks who you are.
RUST_LOG sets what is logged to stderr, for example RUST_LOG=debug.";

#[derive(Subcommand)]
enum Command {
    Serve(Box<serve::Serve>),
    XdsServer(serve::XdsServer),
    Proxy(serve::ProxyOnly),
    Apply(apply::Apply),
    Get(get::Get),
    Delete(delete::Delete),
    Shift(shift::Shift),
    Register(register::Register),
    Proxies(proxies::Proxies),
    Load(load::Load),
    Events(events::Events),
    Echo(echo::Echo),
    Demo(demo::Demo),
}

fn main() -> ExitCode {
    let command = Cli::parse().command;
    log_to_stderr(&command);
    match run(command) {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(exit::report(&error)),
    }
}

/// Runs a subcommand to its exit code.
fn run(command: Command) -> anyhow::Result<u8> {
    match command {
        // These build the runtimes they need.
        Command::Serve(command) => serve::serve(*command).map(|()| exit::OK),
        Command::XdsServer(command) => serve::xds_server(&command).map(|()| exit::OK),
        Command::Proxy(command) => serve::proxy(command).map(|()| exit::OK),
        // One thread is enough for the rest, and leaves the cores to what is measured with them.
        other => tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
            match other {
                Command::Apply(command) => command.run().await?,
                Command::Get(command) => command.run().await?,
                Command::Delete(command) => command.run().await?,
                Command::Shift(command) => command.run().await?,
                Command::Proxies(command) => command.run().await?,
                Command::Load(command) => command.run().await?,
                Command::Events(command) => command.run().await?,
                Command::Echo(command) => command.run().await?,
                Command::Register(command) => return command.run().await,
                Command::Demo(command) => return command.run().await,
                Command::Serve(_) | Command::XdsServer(_) | Command::Proxy(_) => {
                    unreachable!("matched above")
                }
            }
            Ok(exit::OK)
        }),
    }
}

fn log_to_stderr(command: &Command) {
    let level = match command {
        Command::Serve(_) | Command::XdsServer(_) | Command::Proxy(_) => "info",
        _ => "warn",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_subcommand_shows_an_example() {
        for subcommand in Cli::command().get_subcommands() {
            let help = subcommand.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Examples:\n  sluicegate "), "{}", subcommand.get_name());
            assert!(help.contains("Exit codes:"), "{}", subcommand.get_name());
        }
    }
}
