//! Signals to this process, and to its children.

use std::{io, thread, time::Duration};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::{
    process::Child,
    signal::unix::{self, SignalKind},
    sync::oneshot,
};

/// Requests to stop, from a terminal or a supervisor.
pub(crate) struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    /// From now on SIGTERM and SIGINT no longer end the process by themselves.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// The next request to stop.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The name of this machine; `localhost` where it has none.
pub(crate) fn hostname() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// Asks a child to stop. Does nothing when it has ended already.
pub(crate) fn terminate(child: &Child) {
    signal(child, |pid| kill_process(pid, Signal::TERM));
}

/// Ends a child that leads its own process group, and all that it has started.
pub(crate) fn kill_group(child: &Child) {
    signal(child, |pid| kill_process_group(pid, Signal::KILL));
}

fn signal(child: &Child, send: impl Fn(Pid) -> rustix::io::Result<()>) {
    // tokio forgets the id when it has reaped the child, so this cannot hit a stranger.
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid
        && let Err(error) = send(pid)
    {
        tracing::debug!(%error, "the child has ended meanwhile");
    }
}

/// Asks a child to stop, and after `patience` makes it.
pub(crate) async fn stop(child: &mut Child, patience: Duration) -> io::Result<std::process::ExitStatus> {
    terminate(child);
    match tokio::time::timeout(patience, child.wait()).await {
        Ok(status) => status,
        Err(_) => {
            child.start_kill()?;
            child.wait().await
        }
    }
}

/// Resolves when standard input ends; never, unless `asked`. A parent that holds the other end takes
/// this process with it, however it dies.
pub(crate) async fn stdin_closed(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (closed, wait) = oneshot::channel();
    // A thread of its own: a blocked read of a runtime would keep that runtime from ending.
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = closed.send(());
    });
    let _ = wait.await;
}
