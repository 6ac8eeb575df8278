//! A child process that ends with its handle.

use std::{path::Path, process::Stdio, time::Duration};

use serde::de::DeserializeOwned;
use tokio::process::{Child, Command};

pub struct Process {
    child: Child,
    name: String,
}

impl Process {
    /// Starts `command`; its stderr goes to `log` and nowhere else.
    pub fn start(mut command: Command, log: &Path) -> Self {
        let name = format!("{command:?}");
        let output = std::fs::File::options().create(true).append(true).open(log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output).kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Self { child, name }
    }

    pub fn pid(&self) -> u32 {
        self.child.id().expect("the process was not waited for yet")
    }

    /// `kill -9`.
    pub fn start_kill(&mut self) {
        self.child.start_kill().unwrap();
    }

    /// `kill -9`, and waits until it is gone.
    pub async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends a signal by name, for example `TERM`.
    pub async fn signal(&self, signal: &str) {
        let status =
            Command::new("kill").arg(format!("-{signal}")).arg(self.pid().to_string()).status().await;
        assert!(status.unwrap().success());
    }

    /// Waits until it ends by itself.
    pub async fn ended(&mut self, timeout: Duration) -> std::process::ExitStatus {
        match tokio::time::timeout(timeout, self.child.wait()).await {
            Ok(status) => status.unwrap(),
            Err(late) => panic!("{} did not end within {timeout:?}: {late}", self.name),
        }
    }

    /// Waits until `ready_file` is written, and reads it.
    pub async fn ready<T: DeserializeOwned>(&mut self, ready_file: &Path, log: &Path) -> T {
        crate::until("a process to be ready", Duration::from_secs(30), async || {
            if let Some(status) = self.child.try_wait().unwrap() {
                let log = std::fs::read_to_string(log).unwrap_or_default();
                panic!("{} ended with {status}:\n{log}", self.name);
            }
            serde_json::from_str(&std::fs::read_to_string(ready_file).ok()?).ok()
        })
        .await
    }

    /// CPU time it has used, user and system, in clock ticks (proc(5), fields 14 and 15 of `stat`).
    pub fn cpu_ticks(&self) -> (u64, u64) {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let after_name = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        (fields[11].parse().unwrap(), fields[12].parse().unwrap())
    }
}
