//! What is asked of a server and a swarm.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyhow::Context;

use super::{
    crowd::Crowd,
    report::{Burst, Propagation, Report, Round, Rush, Size, Storm},
    world, writer,
};
use crate::{bench::usage, figures::Figures, sluicegate::Server};

/// How long anything may take that has to come to an end.
const PATIENCE: Duration = Duration::from_mins(2);
/// How long a server may rest before its memory is looked at.
const REST: Duration = Duration::from_millis(1_500);
/// How many changes a server has then had, in a second.
const AFTERWARDS: u32 = 10;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    pub services: usize,
    pub endpoints: usize,
    pub proxies: Vec<usize>,
    pub rates: Vec<u32>,
    pub seconds: u32,
    pub rounds: usize,
    /// Changes that are written as fast as they are answered.
    pub burst: usize,
    /// Proxies that connect at once.
    pub storm: usize,
    /// Sizes of versions of which one endpoint changes.
    pub sizes: Vec<usize>,
    pub connections: usize,
    pub leds: bool,
    pub seed: u64,
}

/// A server with its swarm.
struct Stand<'a> {
    settings: &'a Settings,
    server: Server,
    crowd: Crowd,
    /// Endpoints that were there from the start.
    endpoints: usize,
    /// Changes that were made, by service.
    made: Vec<u32>,
    random: fastrand::Rng,
}

/// Everything, one after the other, each on a server of its own; what it is about goes to stderr. What
/// broke off is in the report, and what was measured before it.
pub async fn run(settings: &Settings) -> Report {
    let mut report = Report::new(settings);
    eprintln!("seed {}", settings.seed);
    for proxies in &settings.proxies {
        eprintln!("{proxies} proxies …");
        let ended = propagation(settings, *proxies, &mut report).await;
        report.note(&format!("changes with {proxies} proxies"), ended);
    }
    if settings.storm > 0 {
        report.storms.push(Storm::new(settings.storm));
        for _ in 0..settings.rounds {
            let ended = storm(settings, &mut report).await;
            report.note(&format!("{} proxies at once", settings.storm), ended);
        }
    }
    if !settings.sizes.is_empty() {
        let ended = sizes(settings, &mut report).await;
        report.note("versions of different sizes", ended);
    }
    report
}

/// From changes to the last of these proxies.
async fn propagation(settings: &Settings, proxies: usize, report: &mut Report) -> anyhow::Result<()> {
    let mut stand = Stand::start(settings, &even(settings)).await;
    stand.grow(proxies).await?;
    let first = report.propagation.len();
    report.propagation.extend(settings.rates.iter().map(|rate| Propagation::new(proxies, *rate)));
    for _ in 0..settings.rounds {
        for cell in &mut report.propagation[first..] {
            let count = (cell.rate * settings.seconds).max(10) as usize;
            let services = stand.anywhere(count);
            let (round, _) = stand.changes(services, Some(cell.rate)).await?;
            eprintln!("  {} changes/s: p99 {:.2} ms", cell.rate, round.from_start.p99_ms);
            cell.rounds.push(round);
        }
    }
    if settings.burst > 0 {
        report.bursts.push(Burst::new(proxies));
        for _ in 0..settings.rounds {
            let round = stand.burst().await?;
            eprintln!("  as fast as it goes: {:.0} changes/s", round.rate);
            report.bursts.last_mut().expect("one was pushed").rounds.push(round);
        }
    }
    Ok(())
}

/// Proxies that connect at once, to a server that has none.
async fn storm(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    let mut stand = Stand::start(settings, &even(settings)).await;
    let rush = stand.storm().await?;
    eprintln!("{} proxies at once: {:.0} ms", settings.storm, rush.all_ms);
    report.storms.last_mut().expect("one was pushed").rounds.push(rush);
    Ok(())
}

/// The endpoints of each service, as even as may be.
fn even(settings: &Settings) -> Vec<usize> {
    let Settings { services, endpoints, .. } = settings;
    (0..*services).map(|i| endpoints * (i + 1) / services - endpoints * i / services).collect()
}

/// One change at a time in versions of each size, with few proxies: its bytes and its time.
async fn sizes(settings: &Settings, report: &mut Report) -> anyhow::Result<()> {
    const PROXIES: usize = 4;
    const CHANGES: usize = 20;
    let mut stand = Stand::start(settings, &settings.sizes).await;
    stand.grow(PROXIES).await?;
    let mut sizes: Vec<Size> = settings.sizes.iter().map(|size| Size::new(*size)).collect();
    for _ in 0..settings.rounds {
        for (service, size) in sizes.iter_mut().enumerate() {
            let mut all = Vec::new();
            let before = stand.moment();
            for _ in 0..CHANGES {
                let (_, from_start) = stand.changes(vec![u32::try_from(service)?], Some(1_000)).await?;
                all.extend(from_start);
            }
            let spent = stand.since(&before);
            size.rounds.push(spent.round(all, Vec::new(), Vec::new(), CHANGES, PROXIES));
        }
    }
    for size in &sizes {
        eprintln!("{} endpoints: {:.0} bytes a change", size.endpoints, size.rounds[0].bytes);
    }
    report.sizes = sizes;
    Ok(())
}

impl<'a> Stand<'a> {
    async fn start(settings: &'a Settings, sizes: &[usize]) -> Self {
        let server = world::start(sizes).await;
        let crowd = Crowd::new(server.xds, settings.leds, sizes.len());
        Self {
            settings,
            crowd,
            server,
            endpoints: sizes.iter().sum(),
            made: vec![0; sizes.len()],
            random: fastrand::Rng::with_seed(settings.seed),
        }
    }

    async fn grow(&mut self, proxies: usize) -> anyhow::Result<Vec<u64>> {
        // After the first change there is one probe more, after an even one there are two.
        let probes = |made: &u32| if *made == 0 { 0 } else { 2 - *made as usize % 2 };
        let endpoints = self.endpoints + self.made.iter().map(probes).sum::<usize>();
        self.crowd.grow(proxies, endpoints, PATIENCE).await
    }

    /// So many services at random.
    fn anywhere(&mut self, count: usize) -> Vec<u32> {
        let services = u32::try_from(self.made.len()).unwrap();
        (0..count).map(|_| self.random.u32(..services)).collect()
    }

    /// Makes changes and waits until the last proxy has the last; and how long each took, in ns.
    async fn changes(&mut self, services: Vec<u32>, rate: Option<u32>) -> anyhow::Result<(Round, Vec<u64>)> {
        let shared = &self.crowd.shared;
        let changes = shared.plan.begin(services, &mut self.made, self.crowd.len());
        let before = self.moment();
        let connections = self.settings.connections.min(changes.len());
        writer::write(self.server.api.address(), connections, rate, shared, &changes).await?;
        self.crowd.applied(PATIENCE).await?;
        let spent = self.since(&before);
        let time = |at: &std::sync::atomic::AtomicU64| at.load(Ordering::Relaxed);
        let from_start: Vec<u64> =
            changes.iter().map(|c| time(&c.applied).saturating_sub(time(&c.began))).collect();
        let from_answer =
            changes.iter().map(|c| time(&c.applied).saturating_sub(time(&c.answered))).collect();
        let answers = changes.iter().map(|c| time(&c.answered) - time(&c.began)).collect();
        let mut round =
            spent.round(from_start.clone(), from_answer, answers, changes.len(), self.crowd.len());
        let began = changes.iter().map(|c| time(&c.began)).min().unwrap_or_default();
        let answered = changes.iter().map(|c| time(&c.answered)).max().unwrap_or_default();
        let applied = changes.iter().map(|c| time(&c.applied)).max().unwrap_or_default();
        round.rate = changes.len() as f64 / ((answered - began).max(1) as f64 / 1e9);
        round.caught_up_ms = applied.saturating_sub(answered) as f64 / 1e6;
        Ok((round, from_start))
    }

    /// Changes as fast as they are answered.
    async fn burst(&mut self) -> anyhow::Result<Round> {
        let services = self.anywhere(self.settings.burst);
        reset_peak(self.pid())?;
        let (mut round, _) = self.changes(services, None).await?;
        round.peak_bytes = memory(self.pid(), "VmHWM:")?;
        Ok(round)
    }

    /// Proxies that connect at once, to a server that has none.
    async fn storm(&mut self) -> anyhow::Result<Rush> {
        tokio::time::sleep(REST).await;
        let resident = memory(self.pid(), "VmRSS:")?;
        reset_peak(self.pid())?;
        let before = self.moment();
        let took = self.grow(self.settings.storm).await?;
        let spent = self.since(&before);
        let peak_bytes = memory(self.pid(), "VmHWM:")?;
        // What was sent and acknowledged is let go: the allocator gives it back a while later, when it is
        // asked for something.
        tokio::time::sleep(REST).await;
        let services = self.anywhere(AFTERWARDS as usize);
        self.changes(services, Some(AFTERWARDS)).await?;
        tokio::time::sleep(REST).await;
        let after = memory(self.pid(), "VmRSS:")?;
        let proxies = self.settings.storm as f64;
        Ok(Rush {
            all_ms: took.iter().max().copied().unwrap_or_default() as f64 / 1e6,
            each: Figures::of(took),
            peak_bytes,
            resident_before: resident,
            resident_after: after,
            memory_per_stream: after.saturating_sub(resident) as f64 / proxies,
            bytes_per_proxy: spent.bytes as f64 / proxies,
            server_cpu_ms: spent.server_ns as f64 / 1e6,
        })
    }

    fn pid(&self) -> u32 {
        self.server.process.pid()
    }

    fn moment(&self) -> Moment {
        Moment {
            at: Instant::now(),
            server_ns: usage::cpu_ns(self.pid()),
            own_ns: usage::cpu_ns(std::process::id()),
            bytes: self.crowd.received(),
            responses: self.crowd.responses(),
        }
    }

    fn since(&self, before: &Moment) -> Spent {
        let now = self.moment();
        Spent {
            wall: now.at - before.at,
            // Threads that have ended take their time with them.
            server_ns: now.server_ns.saturating_sub(before.server_ns),
            own_ns: now.own_ns.saturating_sub(before.own_ns),
            bytes: now.bytes - before.bytes,
            responses: now.responses - before.responses,
        }
    }
}

struct Moment {
    at: Instant,
    server_ns: u64,
    own_ns: u64,
    bytes: u64,
    responses: u64,
}

struct Spent {
    wall: Duration,
    server_ns: u64,
    own_ns: u64,
    bytes: u64,
    responses: u64,
}

impl Spent {
    fn round(
        &self,
        from_start: Vec<u64>,
        from_answer: Vec<u64>,
        answers: Vec<u64>,
        changes: usize,
        proxies: usize,
    ) -> Round {
        let (changes, wall) = (changes as f64, self.wall.as_nanos() as f64);
        let each = changes * proxies as f64;
        let figures = |ns: Vec<u64>| (!ns.is_empty()).then(|| Figures::of(ns));
        Round {
            from_start: Figures::of(from_start),
            from_answer: figures(from_answer),
            answer: figures(answers),
            rate: 0.0,
            caught_up_ms: 0.0,
            peak_bytes: 0,
            cpu_us: self.server_ns as f64 / 1e3 / changes,
            server_cores: self.server_ns as f64 / wall,
            swarm_cores: self.own_ns as f64 / wall,
            bytes: self.bytes as f64 / each,
            responses: self.responses as f64 / each,
        }
    }
}

/// Begins the peak of a process anew (proc(5), `clear_refs`).
fn reset_peak(pid: u32) -> anyhow::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5").context("cannot reset the peak of memory")
}

/// A field of `/proc/<pid>/status`, in bytes.
fn memory(pid: u32, field: &str) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(value.trim().trim_end_matches(" kB").parse::<u64>()? * 1_024)
}
