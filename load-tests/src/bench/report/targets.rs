//! What Sluicegate is to reach, beside its peers.

use super::{Report, Row};
use crate::bench::subject::Kind;

/// A target that could be judged.
#[derive(Clone, Debug)]
pub struct Verdict {
    pub met: bool,
    pub sentence: String,
}

/// The most that Sluicegate's cost may be of that of each peer, by scenario. Scenarios that are not
/// here are judged against `HAProxy` alone, at 1.
const RATIOS: &[(&str, &[(Kind, f64)])] = &[
    ("c32", &[(Kind::HaProxy, 0.80), (Kind::Nginx, 0.85), (Kind::Envoy, 0.40), (Kind::Relay, 1.10)]),
    ("open-5000", &[]),
    ("open-70", &[]),
    ("idle", &[]),
    ("handshake-full", &[]),
    ("handshake-resumed", &[]),
    ("tls-h2-1", &[]),
    ("tls-h2-10", &[]),
    ("grpc", &[]),
];
/// To the best of nginx, `HAProxy` and Envoy.
const OF_BEST: &[(&str, f64)] = &[("tls-h2-1", 1.2), ("tls-h2-10", 1.2), ("grpc", 1.2)];
/// Throughput is compared too.
const THROUGHPUT: &[&str] = &["body-1m", "chunked-1m", "up-1m", "up-chunked-1m"];
const SYSCALLS: f64 = 4.3;
const IDLE_BYTES: f64 = 10_240.0;
/// Of what one worker does, for each worker of several: two do at least 1.9 times as much.
const SCALING: f64 = 0.95;

/// All that the reports allow to judge.
pub fn verdicts(reports: &[Report]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for report in reports {
        if let Some(own) = report.row(Kind::Sluicegate) {
            judge(report, own, &mut verdicts);
        }
    }
    verdicts
}

fn judge(report: &Report, own: &Row, verdicts: &mut Vec<Verdict>) {
    let name = report.scenario;
    let mut at_most = |what: &str, value: f64, limit: f64| {
        let sentence = format!("{name}: {what} {value:.3}, at most {limit:.3}");
        verdicts.push(Verdict { met: value <= limit, sentence });
    };
    at_most("failed requests", own.failures as f64, 0.0);
    let against = RATIOS.iter().find(|(scenario, _)| *scenario == name);
    for (kind, limit) in against.map_or(&[(Kind::HaProxy, 1.0)][..], |(_, ratios)| ratios) {
        if let Some(ratio) = report.row(*kind).and_then(|peer| peer.sluicegate_to_it) {
            at_most(&format!("CPU a request to {}'s", kind.label()), ratio, *limit);
        }
    }
    if let Some((_, limit)) = OF_BEST.iter().find(|(scenario, _)| *scenario == name) {
        let peers = [Kind::Nginx, Kind::HaProxy, Kind::Envoy];
        let costs = peers.iter().filter_map(|kind| report.row(*kind)?.cost());
        if let Some((best, own)) = costs.reduce(f64::min).zip(own.cost()) {
            at_most("CPU a request to the best peer's", own / best, *limit);
        }
    }
    if name == "c32"
        && let Some(syscalls) = own.syscalls_per_request
    {
        at_most("system calls a request", syscalls, SYSCALLS);
    }
    if let Some(idle) = own.idle_bytes {
        at_most("bytes an idle connection", idle.median, IDLE_BYTES);
    }
    if let Some(haproxy) = report.row(Kind::HaProxy) {
        if THROUGHPUT.contains(&name) {
            let slower = haproxy.requests_per_second.median / own.requests_per_second.median;
            at_most("HAProxy's requests/s to its own", slower, 1.0);
        }
        if name.starts_with("open-") {
            for (what, own, its) in
                [("p99", own.p99_ms, haproxy.p99_ms), ("p99.9", own.p999_ms, haproxy.p999_ms)]
            {
                if let Some((own, its)) = own.zip(its) {
                    at_most(&format!("{what} in ms, beside HAProxy's"), own.median, its.median);
                }
            }
        }
    }
    let several = report.rows.iter().filter(|row| row.subject == Kind::Sluicegate && row.workers > 1);
    for row in several {
        let times = row.requests_per_second.median / own.requests_per_second.median;
        let wanted = SCALING * f64::from(row.workers);
        let sentence =
            format!("{name}: {} workers do {times:.2} times as much, at least {wanted:.2}", row.workers);
        verdicts.push(Verdict { met: times >= wanted, sentence });
    }
}
