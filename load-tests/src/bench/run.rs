//! Rounds: every subject has a turn in each, in an order that rotates.

use std::{net::SocketAddr, path::Path, time::Duration};

use serde::Serialize;

use super::{
    arguments::Arguments,
    h2load::GrpcUpstream,
    machine::{self, Moment},
    measure::{self, Place, Turn},
    pinned,
    scenario::{self, Front, Pace, Scenario, Work},
    subject::{Certificate, Kind, Setup, Subject},
};
use crate::{process::Process, temp::TempDir};

/// Hosts that are routed by Sluicegate and asked for by the load.
const HOSTS: usize = 1_000;
/// Ports of the upstream: two versions of two endpoints.
const PORTS: usize = 4;
/// Turns that a subject may repeat in a scenario, for each round.
const REPEATS: u32 = 1;
/// How long a run waits, in all, for the end of what disturbs it; and between two looks.
const PATIENCE: Duration = Duration::from_mins(1);
const LOOK: Duration = Duration::from_millis(200);
/// Letters of a reason that are shown.
const REASON: usize = 160;

/// A subject in a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub subject: Kind,
    pub workers: u32,
    pub turns: Vec<Turn>,
    /// Turns that were thrown away.
    pub discarded: u32,
    pub syscalls_per_request: Option<f64>,
    /// Why there is nothing, if there is nothing.
    pub not_measured: Option<String>,
}

impl Cell {
    fn give_up(&mut self, why: &anyhow::Error) {
        let why: String =
            format!("{why:#}").lines().next().unwrap_or_default().chars().take(REASON).collect();
        eprintln!("  {} is not measured: {why}", self.subject);
        self.not_measured = Some(why);
    }
}

#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    pub scenario: &'static str,
    pub about: &'static str,
    pub cells: Vec<Cell>,
}

/// Everything that runs beside the subjects.
struct Bench {
    arguments: Arguments,
    place: Place,
    setup: Setup,
    plain_upstream: Vec<SocketAddr>,
    grpc: Result<GrpcUpstream, String>,
    /// How long the run may still wait for others.
    patience: Duration,
    _upstream: Process,
    _directory: TempDir,
}

/// Measures what is asked for; says on stderr how far it is.
pub async fn run(arguments: &Arguments, scenarios: &[Scenario]) -> anyhow::Result<Vec<Measured>> {
    let mut bench = Bench::start(arguments, scenarios).await?;
    let mut all = Vec::new();
    for scenario in scenarios {
        eprintln!("{}: {}", scenario.name, scenario.about);
        all.push(bench.scenario(scenario).await?);
    }
    Ok(all)
}

impl Bench {
    async fn start(arguments: &Arguments, scenarios: &[Scenario]) -> anyhow::Result<Self> {
        let descriptors = pinned::raise_limit();
        let directory = TempDir::new();
        let cores = machine::cores();
        let workers = arguments.workers as usize;
        // The load is where it would be with the most workers, so that all have the same.
        let core = |at: usize| cores[at.min(cores.len() - 1)];
        let load = core(workers);
        let upstream_core = if workers > 1 { core(workers + 1) } else { load };
        let (upstream, addresses) = start_upstream(&directory, &[upstream_core]).await;
        let mut ours = vec![std::process::id(), upstream.pid()];
        let grpc = if scenarios.iter().any(|scenario| scenario.work.front() == Front::Grpc) {
            GrpcUpstream::start(PORTS, &[upstream_core]).await.map_err(|e| format!("{e:#}"))
        } else {
            Err("not started".to_owned())
        };
        if let Ok(grpc) = &grpc {
            ours.extend(grpc.processes.iter().map(Process::pid));
        }
        let hosts: Vec<String> = (0..HOSTS).map(|i| format!("h{i:03}.bench.test")).collect();
        let setup = Setup {
            front: Front::Plain,
            upstream: addresses.clone(),
            hosts: hosts.clone(),
            workers: 1,
            cores: cores.clone(),
            other_cores: vec![load],
            certificate: make_certificate(directory.path())?,
            descriptors,
        };
        let place = Place { cores: vec![load], hosts, ours, descriptors, peak: None };
        Ok(Self {
            arguments: arguments.clone(),
            place,
            setup,
            plain_upstream: addresses,
            grpc,
            patience: PATIENCE,
            _upstream: upstream,
            _directory: directory,
        })
    }

    async fn scenario(&mut self, scenario: &Scenario) -> anyhow::Result<Measured> {
        if let Work::Http(shape) = scenario.work
            && matches!(shape.pace, Pace::OfPeak(_))
            && self.place.peak.is_none()
        {
            self.probe_peak().await;
        }
        let (mut cells, mut subjects) = (Vec::new(), Vec::new());
        for (kind, workers) in self.entries() {
            let mut cell = Cell {
                subject: kind,
                workers,
                turns: Vec::new(),
                discarded: 0,
                syscalls_per_request: None,
                not_measured: None,
            };
            match self.start_subject(kind, workers, scenario.work.front()).await {
                Ok(subject) => subjects.push(Some(subject)),
                Err(e) => {
                    cell.give_up(&e);
                    subjects.push(None);
                }
            }
            cells.push(cell);
        }
        for round in 0..self.arguments.rounds as usize {
            for at in 0..cells.len() {
                // Nobody always follows the same neighbour, or is always first.
                let at = (at + round) % cells.len();
                self.turn_in_round(scenario, &mut cells[at], &mut subjects[at]).await;
            }
        }
        for (cell, subject) in cells.iter_mut().zip(&subjects) {
            if let Some(subject) = subject.as_ref().filter(|_| cell.not_measured.is_none()) {
                cell.syscalls_per_request = measure::syscalls(scenario.work, subject, &self.place).await;
            }
        }
        if scenario.name == "c32" {
            let haproxy = cells.iter().find(|cell| cell.subject == Kind::HaProxy && cell.workers == 1);
            let rates = haproxy.iter().flat_map(|cell| &cell.turns).map(|t| t.outcome.requests_per_second());
            self.place.peak = rates.reduce(f64::max);
        }
        Ok(Measured { scenario: scenario.name, about: scenario.about, cells })
    }

    /// A turn, repeated while it is disturbed and may be.
    async fn turn_in_round(&mut self, scenario: &Scenario, cell: &mut Cell, subject: &mut Option<Subject>) {
        let most = self.arguments.rounds * REPEATS;
        loop {
            // What idle connections cost is seen only in a process that never had any.
            if matches!(scenario.work, Work::Idle(_)) && !cell.turns.is_empty() && subject.is_some() {
                *subject = None;
                match self.start_subject(cell.subject, cell.workers, scenario.work.front()).await {
                    Ok(fresh) => *subject = Some(fresh),
                    Err(e) => cell.give_up(&e),
                }
            }
            let Some(running) = subject.as_ref().filter(|_| cell.not_measured.is_none()) else { return };
            let turn = measure::turn(scenario.work, running, &self.place, self.arguments.window()).await;
            let turn = match turn.and_then(Turn::with_requests) {
                Ok(turn) => turn,
                Err(e) => return cell.give_up(&e),
            };
            // Memory does not depend on who else has the core.
            let bears_it = matches!(scenario.work, Work::Idle(_));
            let disturbed = turn.disturbance * 100.0 > self.arguments.disturbance && !bears_it;
            cell.discarded += u32::from(disturbed);
            if !disturbed || self.arguments.allow_disturbed {
                cell.turns.push(turn);
                return;
            }
            if cell.discarded >= most {
                if cell.turns.is_empty() {
                    cell.not_measured = Some("other work on the machine disturbed every turn".to_owned());
                }
                return;
            }
            self.wait_for_calm().await;
        }
    }

    /// Until others have finished what they do, or patience has run out.
    async fn wait_for_calm(&mut self) {
        while !self.patience.is_zero() {
            let before = Moment::now(&self.place.ours);
            tokio::time::sleep(LOOK).await;
            self.patience = self.patience.saturating_sub(LOOK);
            if before.disturbance(&self.place.ours) * 100.0 <= self.arguments.disturbance {
                return;
            }
        }
    }

    /// Subjects, with one worker and, where that is asked for and possible, with several.
    fn entries(&self) -> Vec<(Kind, u32)> {
        let mut entries = Vec::new();
        for kind in &self.arguments.subjects {
            entries.push((*kind, 1));
            if self.arguments.workers > 1 && *kind != Kind::Relay {
                entries.push((*kind, self.arguments.workers));
            }
        }
        entries
    }

    async fn start_subject(&self, kind: Kind, workers: u32, front: Front) -> anyhow::Result<Subject> {
        let mut setup = Setup { front, workers, ..self.setup.clone() };
        setup.cores.truncate(workers as usize);
        setup.upstream = match (front, &self.grpc) {
            (Front::Grpc, Ok(grpc)) => grpc.addresses.clone(),
            (Front::Grpc, Err(why)) => anyhow::bail!("{why}"),
            (Front::Plain | Front::Tls, _) => self.plain_upstream.clone(),
        };
        Subject::start(kind, &setup).await
    }

    async fn probe_peak(&mut self) {
        let c32 = scenario::ALL.iter().find(|scenario| scenario.name == "c32");
        let subject = self.start_subject(Kind::HaProxy, 1, Front::Plain).await;
        if let (Some(c32), Ok(subject)) = (c32, subject) {
            let turn = measure::turn(c32.work, &subject, &self.place, Duration::from_secs(1)).await;
            self.place.peak = turn.ok().map(|turn| turn.outcome.requests_per_second());
        }
    }
}

async fn start_upstream(directory: &TempDir, cores: &[usize]) -> (Process, Vec<SocketAddr>) {
    let (ready_file, log) = (directory.join("upstream.ready"), directory.join("upstream.log"));
    let mut command = pinned::own(cores, "upstream");
    command.arg(PORTS.to_string()).arg(&ready_file);
    let mut process = Process::start(command, &log);
    let addresses = process.ready(&ready_file, &log).await;
    (process, addresses)
}

/// Signed by itself, with a P-256 key, for all the hosts.
fn make_certificate(directory: &Path) -> anyhow::Result<Certificate> {
    let made = rcgen::generate_simple_self_signed(vec!["*.bench.test".to_owned()])?;
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let path = |name: &str| directory.join(name);
    let files = Certificate { cert: path("cert.pem"), key: path("key.pem"), both: path("both.pem") };
    std::fs::write(&files.cert, &cert)?;
    std::fs::write(&files.key, &key)?;
    std::fs::write(&files.both, format!("{cert}{key}"))?;
    Ok(files)
}
