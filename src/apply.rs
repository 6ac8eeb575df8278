//! `sluicegate apply`: manifests to the server, all or nothing.

use std::path::PathBuf;

use clap::Args;
use hyper::Method;
use xds_server::api::types::Files;

use crate::{exit, flags, manifests, output};

/// The media type of several named files.
const FILES: &str = "application/vnd.sluicegate.files+json";

/// Apply manifests: all of them, or none if one is wrong
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate apply -f shop.yaml
  sluicegate apply -f manifests/ --dry-run      says what would change
  sluicegate apply -f a.yaml -f b.yaml --wait   returns when every proxy has it
  kustomize build . | sluicegate apply -f -"))]
pub(crate) struct Apply {
    /// A file, a directory of *.yaml, *.yml and *.json, or - for standard input; may be repeated
    #[arg(short, long = "file", required = true, value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    /// Check and say what would change; write nothing
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    wait: flags::Wait,
    #[command(flatten)]
    api: flags::Api,
}

impl Apply {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let files = manifests::load(&self.files)?;
        // What is wrong in a file needs no server to be found.
        manifests::check(&files)?;
        let files = Files { files };
        let client = self.api.client()?;
        let mut call = client.call(Method::POST, "/v1/apply").body(FILES, &files).wait(self.wait.limit());
        if self.dry_run {
            call = call.query("dry_run", true);
        }
        output::show_write(&call.send().await?.json()?, self.api.output)
    }
}
