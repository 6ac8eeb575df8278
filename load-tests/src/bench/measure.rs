//! One turn of one subject: its load as a process, and what the rest of the machine did meanwhile.

use std::{process::Stdio, time::Duration};

use anyhow::Context;
use serde::Serialize;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout},
};

use super::{
    h2load,
    machine::Moment,
    pinned,
    program::{
        handshakes, idle,
        load::{self, Outcome},
    },
    scenario::{Pace, Work},
    subject::Subject,
    syscalls,
};

/// Before the window opens, for pools to fill and caches to warm.
const WARM_UP: Duration = Duration::from_millis(400);
/// How long system calls are counted, while the load goes on: its window is longer at both ends, by what
/// it may take to attach.
const COUNTED: Duration = Duration::from_secs(1);
const ATTACHING: Duration = Duration::from_millis(100);
/// Threads of the handshakes' client: connections at a time.
const HANDSHAKING: usize = 16;
/// For many connections to be closed before the next subject has its turn.
const AFTERMATH: Duration = Duration::from_millis(60);

/// Where and with what a turn happens, the same for all subjects.
#[derive(Clone, Debug)]
pub struct Place {
    pub cores: Vec<usize>,
    pub hosts: Vec<String>,
    /// This process and the upstream's.
    pub ours: Vec<u32>,
    /// File descriptors that a process can have.
    pub descriptors: u64,
    /// What `HAProxy` reaches with 32 connections, in requests/s.
    pub peak: Option<f64>,
}

#[derive(Clone, Debug, Serialize)]
pub struct Turn {
    #[serde(flatten)]
    pub outcome: Outcome,
    /// The share of one core that others took.
    pub disturbance: f64,
}

impl Turn {
    /// Nothing can be said of a turn without one good request.
    pub fn with_requests(self) -> anyhow::Result<Self> {
        let why = self.outcome.first_failure.as_deref().unwrap_or("none was answered in time");
        anyhow::ensure!(self.outcome.requests > 0, "no request succeeded: {why}");
        Ok(self)
    }
}

pub async fn turn(work: Work, subject: &Subject, place: &Place, window: Duration) -> anyhow::Result<Turn> {
    let warm_up = warm_up(work);
    let mut started = Load::start(work, subject, place, warm_up, window)?;
    let mut ours = place.ours.clone();
    ours.extend(&subject.pids);
    ours.extend(started.pid());
    started.ready().await?;
    // Reading /proc costs a few ms, so it is over before the window opens.
    let before = Moment::now(&ours);
    let outcome = started.outcome().await?;
    let disturbance = before.disturbance(&ours);
    tokio::time::sleep(AFTERMATH).await;
    Ok(Turn { outcome, disturbance })
}

/// System calls a request, from a run of its own: counting slows the subject.
pub async fn syscalls(work: Work, subject: &Subject, place: &Place) -> Option<f64> {
    if matches!(work, Work::Idle(_)) {
        return None;
    }
    let window = COUNTED + ATTACHING * 3;
    let mut load = Load::start(work, subject, place, warm_up(work), window).ok()?;
    load.ready().await.ok()?;
    let count = async {
        tokio::time::sleep(warm_up(work)).await;
        syscalls::per_second(&subject.pids, COUNTED).await
    };
    let (rate, outcome) = tokio::join!(count, load.outcome());
    let requests = outcome.ok()?.requests_per_second();
    rate.filter(|_| requests > 0.0).map(|rate| rate / requests)
}

/// Thousands of connections take a moment to be in step.
fn warm_up(work: Work) -> Duration {
    match work {
        Work::Http(shape) if shape.connections > 1_000 => WARM_UP * 2,
        Work::Idle(_) => Duration::ZERO,
        Work::Tls(_) => WARM_UP * 3 / 2,
        Work::Http(_) | Work::Handshakes { .. } => WARM_UP,
    }
}

enum Load {
    Own(Child, BufReader<ChildStdout>),
    H2load(h2load::Order),
}

impl Load {
    fn start(
        work: Work,
        subject: &Subject,
        place: &Place,
        warm_up: Duration,
        window: Duration,
    ) -> anyhow::Result<Self> {
        let (target, watched) = (subject.address, subject.pids.clone());
        let host = place.hosts[place.hosts.len() / 2].clone();
        let (program, order) = match work {
            Work::Http(shape) => {
                let rate = match shape.pace {
                    Pace::Closed => None,
                    Pace::Open(rate) => Some(rate),
                    Pace::OfPeak(share) => Some(share * place.peak.context("HAProxy's peak is not known")?),
                };
                let order = load::Order {
                    target,
                    path: shape.path.to_owned(),
                    expected: shape.expected,
                    upload: shape.upload,
                    connections: shape.connections,
                    rate,
                    close: shape.close,
                    hosts: place.hosts.clone(),
                    warm_up,
                    window,
                    watched,
                };
                ("load", serde_json::to_string(&order)?)
            }
            Work::Idle(connections) => {
                // A subject may need two descriptors for each, and has others.
                let most = usize::try_from(place.descriptors.saturating_sub(2_000) / 2)?;
                let order = idle::Order { target, host, connections: connections.min(most), watched };
                ("idle", serde_json::to_string(&order)?)
            }
            Work::Handshakes { resumed } => {
                let order = handshakes::Order {
                    target,
                    host,
                    resumed,
                    threads: HANDSHAKING,
                    warm_up,
                    window,
                    watched,
                };
                ("handshakes", serde_json::to_string(&order)?)
            }
            Work::Tls(tls) => {
                let cores = place.cores.clone();
                return Ok(Self::H2load(h2load::Order {
                    target,
                    host,
                    tls,
                    warm_up,
                    window,
                    watched,
                    cores,
                }));
            }
        };
        let mut command = pinned::own(&place.cores, program);
        command.arg(order).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.kill_on_drop(true).spawn()?;
        let out = child.stdout.take().context("the load's output is piped")?;
        Ok(Self::Own(child, BufReader::new(out)))
    }

    fn pid(&self) -> Option<u32> {
        match self {
            Self::Own(child, _) => child.id(),
            Self::H2load(_) => None,
        }
    }

    /// Returns when its warm-up begins.
    async fn ready(&mut self) -> anyhow::Result<()> {
        if let Self::Own(_, out) = self {
            let mut line = String::new();
            // The end of its output, if it has failed: its outcome will say so.
            out.read_line(&mut line).await?;
        }
        Ok(())
    }

    async fn outcome(self) -> anyhow::Result<Outcome> {
        match self {
            Self::Own(child, mut out) => {
                let mut text = String::new();
                let (read, output) = tokio::join!(out.read_to_string(&mut text), child.wait_with_output());
                let output = output?;
                let errors = String::from_utf8_lossy(&output.stderr);
                anyhow::ensure!(output.status.success(), "the load failed: {}", errors.trim());
                read?;
                Ok(serde_json::from_str(&text)?)
            }
            Self::H2load(order) => h2load::run(&order).await,
        }
    }
}
