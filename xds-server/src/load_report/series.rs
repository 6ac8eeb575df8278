//! The sums as Prometheus reads them. Labels are names of declared versions, so there are as many
//! series as there are versions with load. Names that clients choose (metrics, localities, nodes) are
//! no labels; `GET /v1/load` has them.

use std::{fmt, time::Instant};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::{Loads, count::Counts, view::Line};

impl Collector for Loads {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let accounts = self.lock();
        let (streams, elsewhere) = (accounts.streams.len(), accounts.elsewhere);
        let lines = accounts.lines(Instant::now());
        drop(accounts);

        type Of = fn(&Counts) -> u64;
        for (name, help, of) in [
            ("load_requests", "Requests given to endpoints, as reported by proxies", (|c| c.issued) as Of),
            ("load_requests_successful", "Requests that no error of an endpoint ended", |c| c.successful),
            ("load_requests_failed", "Requests that endpoints failed", |c| c.errors),
            ("load_requests_dropped", "Requests that proxies did not send on purpose", |c| c.dropped),
        ] {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for line in &lines {
                ConstCounter::new(of(&line.counts)).encode(family.encode_family(&labels(line))?)?;
            }
        }
        let help = "Requests in progress, as of the last reports";
        let mut family =
            encoder.encode_descriptor("load_requests_in_progress", help, None, MetricType::Gauge)?;
        for line in &lines {
            let in_progress = ConstGauge::new(i64::try_from(line.in_progress).unwrap_or(i64::MAX));
            in_progress.encode(family.encode_family(&labels(line))?)?;
        }
        let help = "Open streams of load reports";
        let single = encoder.encode_descriptor("load_streams", help, None, MetricType::Gauge)?;
        ConstGauge::new(i64::try_from(streams).unwrap_or(i64::MAX)).encode(single)?;
        let counters = &self.counters;
        for (name, help, value) in [
            ("load_reports", "Load reports taken, repeated ones included", counters.reports.get()),
            (
                "load_reports_repeated",
                "Load reports that were taken before, and not counted again",
                counters.repeated.get(),
            ),
            (
                "load_streams_refused",
                "Streams of load reports refused at a bound, or ended for breaking one",
                counters.streams_refused.get(),
            ),
            (
                "load_values_refused",
                "Reported values left out: not a number, or beyond a bound",
                counters.values_refused.get(),
            ),
            (
                "load_requests_unknown",
                "Requests reported of clusters that are not declared here",
                elsewhere.unknown.issued,
            ),
            (
                "load_requests_removed",
                "Requests reported of versions that were removed since",
                elsewhere.removed.issued,
            ),
        ] {
            ConstCounter::new(value).encode(encoder.encode_descriptor(
                name,
                help,
                None,
                MetricType::Counter,
            )?)?;
        }
        Ok(())
    }
}

fn labels(line: &Line) -> [(&'static str, String); 2] {
    [("service", line.cluster.service.to_string()), ("version", line.cluster.version.to_string())]
}
