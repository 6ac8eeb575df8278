//! A child process of the demo: this executable, as another subcommand.

use std::{
    env, fs,
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, ChildStdin, Command},
    sync::mpsc,
};

use crate::process;

/// How long a child may take to stop before it is killed.
const PATIENCE: Duration = Duration::from_secs(8);

/// A child that runs. It ends when this is dropped, and when this process ends in whatever way:
/// its standard input is a pipe from here, and it stops when that closes.
pub(super) struct Program {
    /// What the demo calls it.
    pub(super) name: String,
    child: Child,
    _leash: Option<ChildStdin>,
    lines: mpsc::Receiver<(Instant, String)>,
}

impl Program {
    /// Starts this executable with `arguments`; what it says on stderr goes to `log`.
    pub(super) fn start(name: &str, arguments: &[&str], log: fs::File) -> anyhow::Result<Self> {
        let executable = env::current_exe().context("cannot find this executable")?;
        let mut child = Command::new(executable)
            .args(arguments)
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for the demo, which then stops them in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let leash = child.stdin.take();
        let stdout = child.stdout.take().context("its output is a pipe")?;
        let (send, lines) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut reader = BufReader::new(stdout).lines();
            while let Ok(Some(line)) = reader.next_line().await {
                // Noted on arrival, so that a busy reader does not make it later. What nobody reads
                // is dropped.
                let _ = send.try_send((Instant::now(), line));
            }
        });
        Ok(Self { name: name.to_owned(), child, _leash: leash, lines })
    }

    /// Waits for a line that starts with `prefix`; when it came.
    pub(super) async fn says(&mut self, prefix: &str, limit: Duration) -> anyhow::Result<Instant> {
        let said = async {
            while let Some((at, line)) = self.lines.recv().await {
                if line.starts_with(prefix) {
                    return Ok(at);
                }
            }
            Err(anyhow!("{} has ended", self.name))
        };
        match tokio::time::timeout(limit, said).await {
            Ok(said) => said,
            Err(_) => bail!("{} did not say `{prefix}` within {} s", self.name, limit.as_secs()),
        }
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// SIGKILL; returns when it is dead.
    pub(super) async fn kill(mut self) -> anyhow::Result<()> {
        self.child.start_kill()?;
        self.child.wait().await?;
        Ok(())
    }

    /// SIGTERM, and SIGKILL if that does not help; whether it ended well.
    pub(super) async fn stop(mut self) -> anyhow::Result<bool> {
        Ok(process::stop(&mut self.child, PATIENCE).await?.success())
    }
}
