//! Turns as figures: min, median and max of each.

use serde::Serialize;

use crate::bench::{
    measure::Turn,
    run::{Cell, Measured},
    subject::Kind,
};

/// Of one figure, over the turns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    pub min: f64,
    pub median: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of nothing.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let (low, high) = (values[(values.len() - 1) / 2], values[values.len() / 2]);
        Some(Self { min, median: f64::midpoint(low, high), max })
    }
}

/// A subject in a scenario.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    pub subject: Kind,
    pub workers: u32,
    pub requests_per_second: Spread,
    /// CPU time of the subject a request, in µs; and its parts in user mode and in the kernel.
    pub cpu_us: Option<Spread>,
    pub user_us: Option<Spread>,
    pub system_us: Option<Spread>,
    pub p50_ms: Option<Spread>,
    pub p99_ms: Option<Spread>,
    pub p999_ms: Option<Spread>,
    pub rss_mb: Spread,
    pub idle_bytes: Option<Spread>,
    /// Connections that were idle: fewer than wanted where file descriptors are few.
    pub idle_connections: Option<u64>,
    pub syscalls_per_request: Option<f64>,
    /// Ratios of the medians of CPU time: this to `HAProxy`, and Sluicegate to this.
    pub to_haproxy: Option<f64>,
    pub sluicegate_to_it: Option<f64>,
    pub rounds: usize,
    pub discarded: u32,
    pub failures: u64,
    pub first_failure: Option<String>,
}

impl Row {
    fn of(cell: &Cell) -> Option<Self> {
        let turns = &cell.turns;
        let idle = turns.iter().any(|turn| turn.outcome.idle_bytes.is_some());
        let spread = |value: &dyn Fn(&Turn) -> f64| Spread::of(turns.iter().map(value));
        let busy = |value: &dyn Fn(&Turn) -> f64| spread(value).filter(|_| !idle);
        Some(Self {
            subject: cell.subject,
            workers: cell.workers,
            requests_per_second: spread(&|turn| turn.outcome.requests_per_second())?,
            cpu_us: busy(&|turn| cpu_us(turn)),
            user_us: busy(&|turn| cpu_us(turn) * user_share(turn)),
            system_us: busy(&|turn| cpu_us(turn) * (1.0 - user_share(turn))),
            p50_ms: busy(&|turn| turn.outcome.p50_ns as f64 / 1e6),
            p99_ms: busy(&|turn| turn.outcome.p99_ns as f64 / 1e6),
            p999_ms: busy(&|turn| turn.outcome.p999_ns as f64 / 1e6),
            rss_mb: spread(&|turn| turn.outcome.rss_bytes as f64 / 1e6)?,
            idle_bytes: Spread::of(turns.iter().filter_map(|turn| turn.outcome.idle_bytes)),
            idle_connections: turns.iter().map(|turn| turn.outcome.requests).min().filter(|_| idle),
            syscalls_per_request: cell.syscalls_per_request,
            to_haproxy: None,
            sluicegate_to_it: None,
            rounds: turns.len(),
            discarded: cell.discarded,
            failures: turns.iter().map(|turn| turn.outcome.failures).sum(),
            first_failure: turns.iter().find_map(|turn| turn.outcome.first_failure.clone()),
        })
    }

    /// What subjects are compared by: CPU time, or memory where nothing is asked.
    pub fn cost(&self) -> Option<f64> {
        self.cpu_us.or(self.idle_bytes).map(|spread| spread.median)
    }
}

fn cpu_us(turn: &Turn) -> f64 {
    turn.outcome.cpu_ns as f64 / 1e3 / turn.outcome.requests.max(1) as f64
}

fn user_share(turn: &Turn) -> f64 {
    let (user, system) = (turn.outcome.user_ticks as f64, turn.outcome.system_ticks as f64);
    user / (user + system).max(1.0)
}

/// A scenario's rows, and who is missing and why.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub scenario: &'static str,
    pub about: &'static str,
    pub rows: Vec<Row>,
    pub not_measured: Vec<(Kind, String)>,
}

impl Report {
    pub fn of(measured: &Measured) -> Self {
        let mut rows: Vec<Row> = measured.cells.iter().filter_map(Row::of).collect();
        let cost = |rows: &[Row], kind| rows.iter().find(|r| r.subject == kind && r.workers == 1)?.cost();
        let (haproxy, sluicegate) = (cost(&rows, Kind::HaProxy), cost(&rows, Kind::Sluicegate));
        for row in &mut rows {
            let own = row.cost().filter(|cost| *cost > 0.0);
            row.to_haproxy = own.zip(haproxy.filter(|cost| *cost > 0.0)).map(|(own, other)| own / other);
            row.sluicegate_to_it = sluicegate.zip(own).map(|(sluicegate, own)| sluicegate / own);
        }
        let missing = measured.cells.iter().filter(|cell| cell.turns.is_empty());
        let not_measured = missing.map(|cell| (cell.subject, cell.not_measured.clone().unwrap_or_default()));
        let not_measured = not_measured.collect();
        Self { scenario: measured.scenario, about: measured.about, rows, not_measured }
    }

    /// A subject with one worker.
    pub fn row(&self, kind: Kind) -> Option<&Row> {
        self.rows.iter().find(|row| row.subject == kind && row.workers == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_of_an_even_number_is_between_the_two_in_the_middle() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.min, spread.median, spread.max), (1.0, 2.5, 4.0));
        assert_eq!(Spread::of([]), None);
    }
}
