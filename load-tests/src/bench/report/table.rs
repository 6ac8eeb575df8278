//! For people.

use std::fmt::Write as _;

use super::{Report, Row, Spread};

pub fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    for report in reports {
        let _ = writeln!(text, "\n{}: {}", report.scenario, report.about);
        let idle = report.rows.iter().any(|row| row.idle_bytes.is_some());
        text.push_str(if idle { IDLE } else { BUSY });
        for row in &report.rows {
            line(&mut text, row);
        }
        for (kind, why) in &report.not_measured {
            let _ = writeln!(text, "  {:<14} not measured: {why}", kind.label());
        }
    }
    let discarded: u32 = reports.iter().flat_map(|r| &r.rows).map(|row| row.discarded).sum();
    let turns: usize = reports.iter().flat_map(|r| &r.rows).map(|row| row.rounds).sum();
    let _ = writeln!(
        text,
        "\nMedians over the rounds. CPU: µs a request, user + system of all the subject's processes. \
         `× HAProxy`: this\nsubject's median CPU to HAProxy's; `Sl. / it`: Sluicegate's to this one's. \
         {turns} turns kept; disturbed by other work: {discarded}."
    );
    text
}

const BUSY: &str = "  subject          req/s     CPU (min … max)     user    sys   p50 ms   p99 ms  p99.9 ms  syscalls  RSS MB  × HAProxy  Sl. / it  failed\n";
const IDLE: &str =
    "  subject        connections  bytes each (min … max)   RSS MB  × HAProxy  Sl. / it  failed\n";

fn line(text: &mut String, row: &Row) {
    let mut name = row.subject.label().to_owned();
    if row.workers > 1 {
        let _ = write!(name, " × {}", row.workers);
    }
    let ratio = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |r| format!("{r:.2}"));
    let (to_haproxy, to_it) = (ratio(row.to_haproxy), ratio(row.sluicegate_to_it));
    let failed = match &row.first_failure {
        Some(why) => format!("{} ({why})", row.failures),
        None => row.failures.to_string(),
    };
    if let Some(Spread { min, median, max }) = row.idle_bytes {
        let (rss, connections) = (row.rss_mb.median, row.idle_connections.unwrap_or(0));
        let _ = writeln!(
            text,
            "  {name:<14} {connections:>11} {median:>6.0} ({min:>6.0} … {max:>6.0}) {rss:>7.1} {to_haproxy:>10} {to_it:>9}  {failed}"
        );
        return;
    }
    let median = |spread: Option<Spread>| spread.map_or(0.0, |spread| spread.median);
    let cpu = row.cpu_us.unwrap_or(Spread { min: 0.0, median: 0.0, max: 0.0 });
    let syscalls = row.syscalls_per_request.map_or_else(|| "n/a".to_owned(), |calls| format!("{calls:.2}"));
    let _ = writeln!(
        text,
        "  {name:<14} {:>8.0} {:>7.2} ({:>7.2} … {:>7.2}) {:>7.2} {:>6.2} {:>8.3} {:>8.3} {:>9.3} {syscalls:>9} {:>7.1} {to_haproxy:>10} {to_it:>9}  {failed}",
        row.requests_per_second.median,
        cpu.median,
        cpu.min,
        cpu.max,
        median(row.user_us),
        median(row.system_us),
        median(row.p50_ms),
        median(row.p99_ms),
        median(row.p999_ms),
        row.rss_mb.median,
    );
}
