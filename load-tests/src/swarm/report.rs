//! What was measured, for programs and for people.

use std::fmt::Write;

use serde::Serialize;

use super::measure::Settings;
use crate::{bench::machine, figures::Figures};

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub struct Report {
    pub cores: usize,
    pub services: usize,
    pub endpoints: usize,
    /// Whether endpoints came one by one.
    pub leds: bool,
    pub propagation: Vec<Propagation>,
    pub bursts: Vec<Burst>,
    pub storms: Vec<Storm>,
    pub sizes: Vec<Size>,
    /// What broke off, and why.
    pub broken: Vec<String>,
}

/// From a change to the last of these proxies having it, at so many changes a second.
#[derive(Debug, Serialize)]
pub struct Propagation {
    pub proxies: usize,
    pub rate: u32,
    pub rounds: Vec<Round>,
}

/// Changes as fast as they are answered.
#[derive(Debug, Serialize)]
pub struct Burst {
    pub proxies: usize,
    pub rounds: Vec<Round>,
}

/// One change at a time in a version of this size.
#[derive(Debug, Serialize)]
pub struct Size {
    pub endpoints: usize,
    pub rounds: Vec<Round>,
}

/// Many changes.
#[derive(Debug, Serialize)]
pub struct Round {
    /// From the start of a write to the last proxy that acknowledged it.
    pub from_start: Figures,
    /// From the answer to the write; 0 when the last proxy was earlier.
    pub from_answer: Option<Figures>,
    /// From the start of a write to its answer.
    pub answer: Option<Figures>,
    /// Writes that were answered a second.
    pub rate: f64,
    /// From the last answer to the last proxy that had everything.
    pub caught_up_ms: f64,
    /// The most memory that the server had meanwhile, where it was looked at.
    pub peak_bytes: u64,
    /// CPU time of the server a change, for all proxies together.
    pub cpu_us: f64,
    /// Cores that the server and this process kept busy.
    pub server_cores: f64,
    pub swarm_cores: f64,
    /// Bytes that arrived at a proxy's socket a change.
    pub bytes: f64,
    /// Responses a change and proxy: below 1 when changes were sent together.
    pub responses: f64,
}

/// Proxies that connect at once.
#[derive(Debug, Serialize)]
pub struct Storm {
    pub proxies: usize,
    pub rounds: Vec<Rush>,
}

/// One time that they did.
#[derive(Debug, Serialize)]
pub struct Rush {
    /// Until the last had everything.
    pub all_ms: f64,
    pub each: Figures,
    pub peak_bytes: u64,
    pub resident_before: u64,
    pub resident_after: u64,
    pub memory_per_stream: f64,
    pub bytes_per_proxy: f64,
    pub server_cpu_ms: f64,
}

impl Propagation {
    pub(super) fn new(proxies: usize, rate: u32) -> Self {
        Self { proxies, rate, rounds: Vec::new() }
    }
}

impl Burst {
    pub(super) fn new(proxies: usize) -> Self {
        Self { proxies, rounds: Vec::new() }
    }
}

impl Size {
    pub(super) fn new(endpoints: usize) -> Self {
        Self { endpoints, rounds: Vec::new() }
    }
}

impl Storm {
    pub(super) fn new(proxies: usize) -> Self {
        Self { proxies, rounds: Vec::new() }
    }
}

/// `min / median / max` over rounds.
fn spread<T>(rounds: &[T], figure: impl Fn(&T) -> f64, digits: usize) -> String {
    let mut values: Vec<f64> = rounds.iter().map(figure).collect();
    values.sort_unstable_by(f64::total_cmp);
    let (Some(least), Some(most)) = (values.first(), values.last()) else { return "–".to_owned() };
    let median = values[values.len() / 2];
    if values.len() == 1 {
        return format!("{median:.digits$}");
    }
    format!("{least:.digits$} / {median:.digits$} / {most:.digits$}")
}

const MIB: f64 = (1 << 20) as f64;

impl Report {
    pub(super) fn new(settings: &Settings) -> Self {
        Self {
            cores: machine::cores().len(),
            services: settings.services,
            endpoints: settings.endpoints,
            leds: settings.leds,
            propagation: Vec::new(),
            bursts: Vec::new(),
            storms: Vec::new(),
            sizes: Vec::new(),
            broken: Vec::new(),
        }
    }

    /// Keeps why something broke off.
    pub(super) fn note(&mut self, what: &str, ended: anyhow::Result<()>) {
        if let Err(error) = ended {
            eprintln!("  {what} broke off: {error:#}");
            self.broken.push(format!("{what} broke off: {error:#}"));
        }
    }

    /// As tables, `min / median / max` over rounds.
    pub fn table(&self) -> String {
        let Self { cores, services, endpoints, .. } = self;
        let leds = if self.leds { ", endpoints one by one" } else { "" };
        let mut text = format!(
            "{services} services, {endpoints} endpoints, {cores} cores for all{leds}; min / median / max over rounds\n"
        );
        self.write(&mut text).expect("a string takes what is written");
        text
    }

    fn write(&self, text: &mut String) -> std::fmt::Result {
        if !self.propagation.is_empty() {
            writeln!(
                text,
                "\n{:>7} {:>9} {:>9}  {:<26} {:<26} {:<26} {:<23} {:<20} {:<20} {:>9}",
                "proxies",
                "changes/s",
                "reached",
                "p50 ms",
                "p99 ms",
                "max ms",
                "after the answer: p99",
                "CPU µs a change",
                "bytes a change, proxy",
                "merged"
            )?;
        }
        for Propagation { proxies, rate, rounds } in &self.propagation {
            writeln!(
                text,
                "{proxies:>7} {rate:>9} {:>9}  {:<26} {:<26} {:<26} {:<23} {:<20} {:<20} {:>9}",
                spread(&rounds[..1.min(rounds.len())], |r| r.rate, 0),
                spread(rounds, |r| r.from_start.p50_ms, 2),
                spread(rounds, |r| r.from_start.p99_ms, 2),
                spread(rounds, |r| r.from_start.max_ms, 2),
                spread(rounds, |r| r.from_answer.map_or(0.0, |figures| figures.p99_ms), 2),
                spread(rounds, |r| r.cpu_us, 0),
                spread(rounds, |r| r.bytes, 0),
                spread(&rounds[..1.min(rounds.len())], |r| 1.0 / r.responses.max(1e-9), 1),
            )?;
        }
        if !self.bursts.is_empty() {
            writeln!(
                text,
                "\nAs fast as answers come\n{:>7}  {:<26} {:<24} {:<20} {:<22} {:<22} {:<18}",
                "proxies",
                "changes/s",
                "all caught up, ms",
                "peak MiB",
                "server, cores",
                "swarm, cores",
                "CPU µs a change"
            )?;
        }
        for Burst { proxies, rounds } in &self.bursts {
            writeln!(
                text,
                "{proxies:>7}  {:<26} {:<24} {:<20} {:<22} {:<22} {:<18}",
                spread(rounds, |r| r.rate, 0),
                spread(rounds, |r| r.caught_up_ms, 1),
                spread(rounds, |r| r.peak_bytes as f64 / MIB, 0),
                spread(rounds, |r| r.server_cores, 2),
                spread(rounds, |r| r.swarm_cores, 2),
                spread(rounds, |r| r.cpu_us, 0),
            )?;
        }
        for Storm { proxies, rounds } in &self.storms {
            writeln!(text, "\n{proxies} proxies connect at once")?;
            writeln!(text, "  all synchronised after ms   {}", spread(rounds, |r| r.all_ms, 0))?;
            writeln!(text, "  half of them after ms       {}", spread(rounds, |r| r.each.p50_ms, 0))?;
            writeln!(
                text,
                "  peak memory, MiB            {}",
                spread(rounds, |r| r.peak_bytes as f64 / MIB, 1)
            )?;
            writeln!(
                text,
                "  memory before, after, MiB   {}, {}",
                spread(rounds, |r| r.resident_before as f64 / MIB, 1),
                spread(rounds, |r| r.resident_after as f64 / MIB, 1)
            )?;
            writeln!(
                text,
                "  memory a stream, KiB        {}",
                spread(rounds, |r| r.memory_per_stream / 1_024.0, 1)
            )?;
            writeln!(
                text,
                "  bytes a proxy, KiB          {}",
                spread(rounds, |r| r.bytes_per_proxy / 1_024.0, 1)
            )?;
            writeln!(text, "  CPU of the server, ms       {}", spread(rounds, |r| r.server_cpu_ms, 0))?;
        }
        if !self.sizes.is_empty() {
            writeln!(
                text,
                "\n{:>9}  {:<28} {:<26} {:<26} {:<20}",
                "endpoints", "bytes a change and proxy", "p50 ms", "max ms", "CPU µs a change"
            )?;
        }
        for Size { endpoints, rounds } in &self.sizes {
            writeln!(
                text,
                "{endpoints:>9}  {:<28} {:<26} {:<26} {:<20}",
                spread(rounds, |r| r.bytes, 0),
                spread(rounds, |r| r.from_start.p50_ms, 2),
                spread(rounds, |r| r.from_start.max_ms, 2),
                spread(rounds, |r| r.cpu_us, 0),
            )?;
        }
        self.broken.iter().try_for_each(|why| writeln!(text, "\n{why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::spread;

    #[test]
    fn a_spread_is_the_least_the_middle_and_the_most() {
        assert_eq!(spread(&[3.0, 1.0, 2.0], |r| *r, 1), "1.0 / 2.0 / 3.0");
        assert_eq!(spread(&[3.0], |r| *r, 0), "3");
        assert_eq!(spread::<f64>(&[], |r| *r, 0), "–");
    }
}
