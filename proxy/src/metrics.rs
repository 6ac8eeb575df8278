//! What `/metrics` shows. Requests only add to atomics; everything else happens at a scrape.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering},
    },
};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::{Registry, Unit},
};

use crate::{
    load::{Aborted, BOUNDS, Counts, Series, VersionLoad, now_micros},
    shared::Shared,
};

/// The state of the xDS client, in numbers.
#[derive(Debug, Default)]
pub(crate) struct XdsStats {
    pub(crate) connected: AtomicBool,
    /// Streams opened since the start.
    pub(crate) streams: AtomicU64,
    /// Responses taken in.
    pub(crate) updates: AtomicU64,
    pub(crate) acks: AtomicU64,
    pub(crate) nacks: AtomicU64,
    /// When the last response was taken in, in µs of [`now_micros`]; 0 is never.
    pub(crate) last_update: AtomicU64,
    pub(crate) warming_timeouts: AtomicU64,
    pub(crate) last_good_writes: AtomicU64,
    pub(crate) last_good_errors: AtomicU64,
    /// Whether the configuration came from the last-good file and no server confirmed it yet.
    pub(crate) on_last_good: AtomicBool,
}

/// Client connections, in numbers.
#[derive(Debug, Default)]
pub(crate) struct ConnectionStats {
    pub(crate) open: AtomicI64,
    pub(crate) accepted: AtomicU64,
    /// Beyond the bound on open connections.
    pub(crate) refused: AtomicU64,
    pub(crate) accept_errors: AtomicU64,
    /// Request heads that were refused: not valid, too large or too slow.
    pub(crate) heads_refused: AtomicU64,
    /// TLS handshakes with clients that failed or took too long.
    pub(crate) handshakes_failed: AtomicU64,
}

/// Everything, in the Prometheus text format (`OpenMetrics` 1.0).
pub(crate) fn encode(shared: &Arc<Shared>) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("sluicegate_proxy");
    registry.register_collector(Box::new(Scrape(Arc::clone(shared))));
    let mut out = String::new();
    text::encode(&mut out, &registry)?;
    Ok(out)
}

struct Scrape(Arc<Shared>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let shared = &self.0;
        let versions: Vec<Arc<VersionLoad>> =
            shared.live.records.versions().into_iter().map(|(_, load)| load).collect();
        requests(&mut encoder, &versions, &shared.unrouted())?;
        concurrency(&mut encoder, &versions)?;
        singles(&mut encoder, shared)
    }
}

type Labels<'a> = [(&'static str, &'a str); 3];

fn labels<'a>(series: &'a Series, version: Option<&'a VersionLoad>) -> Labels<'a> {
    let (service, version) = version.map_or(("", ""), |v| (&*v.service, &*v.version));
    [("gateway", &*series.gateway), ("service", service), ("version", version)]
}

fn requests(
    encoder: &mut DescriptorEncoder<'_>,
    versions: &[Arc<VersionLoad>],
    unrouted: &[Arc<Series>],
) -> fmt::Result {
    let of_versions = versions.iter().flat_map(|v| {
        let gateways = v.gateways();
        (0..gateways.len()).map(move |i| (Arc::clone(&gateways[i]), Some(Arc::clone(v))))
    });
    // Requests without a route have no service and no version.
    let all: Vec<_> = of_versions.chain(unrouted.iter().map(|s| (Arc::clone(s), None))).collect();

    let mut family = encoder.encode_descriptor(
        "requests",
        "Finished requests by class of status (none: the client left before a response; aborted: the \
         response was cut, but not by the client)",
        None,
        MetricType::Counter,
    )?;
    for (series, version) in &all {
        let base = labels(series, version.as_deref());
        for (i, class) in ["none", "1xx", "2xx", "3xx", "4xx", "5xx", "aborted"].iter().enumerate() {
            let count = series.sum(|counts| &counts.classes[i]);
            if count > 0 {
                let labels = [base[0], base[1], base[2], ("class", class)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    aborted(encoder, &all)?;
    let mut family = encoder.encode_descriptor(
        "request_duration",
        "From the head of a request read to the last byte of its response sent",
        Some(&Unit::Seconds),
        MetricType::Histogram,
    )?;
    for (series, version) in &all {
        let (counts, sum) = series.durations();
        let bounds = BOUNDS.iter().map(|&micros| micros as f64 / 1e6).chain([f64::MAX]);
        let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
        let labels = labels(series, version.as_deref());
        let mut family = family.encode_family(&labels)?;
        family.encode_histogram::<NoLabelSet>(sum as f64 / 1e6, counts.iter().sum(), &buckets, None)?;
    }
    type Of = fn(&Counts) -> &AtomicU64;
    for (name, help, of) in [
        ("retries", "Attempts beyond the first", (|s| &s.retries) as Of),
        ("no_endpoint", "Requests refused because no endpoint was ready", |s| &s.no_endpoint),
        ("timeouts", "Requests that an endpoint did not answer in time", |s| &s.timeouts),
    ] {
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (series, version) in all.iter().filter(|(_, version)| version.is_some()) {
            let count = ConstCounter::new(series.sum(of));
            count.encode(family.encode_family(&labels(series, version.as_deref()))?)?;
        }
    }
    Ok(())
}

fn aborted(
    encoder: &mut DescriptorEncoder<'_>,
    all: &[(Arc<Series>, Option<Arc<VersionLoad>>)],
) -> fmt::Result {
    let help = "Requests whose client did not get a response to its end, by who or what cut it";
    let mut family = encoder.encode_descriptor("aborted", help, None, MetricType::Counter)?;
    for (series, version) in all {
        let base = labels(series, version.as_deref());
        for (reason, name) in Aborted::NAMES {
            let count = series.sum(|counts| &counts.aborted[reason as usize]);
            if count > 0 {
                let labels = [base[0], base[1], base[2], ("reason", name)];
                ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
            }
        }
    }
    Ok(())
}

fn concurrency(encoder: &mut DescriptorEncoder<'_>, versions: &[Arc<VersionLoad>]) -> fmt::Result {
    let labels =
        |v: &Arc<VersionLoad>| [("service", v.service.to_string()), ("version", v.version.to_string())];
    let mut family = encoder.encode_descriptor("in_flight", "Requests in flight", None, MetricType::Gauge)?;
    for version in versions {
        let in_flight = ConstGauge::new(i64::from(version.concurrency.in_flight()));
        in_flight.encode(family.encode_family(&labels(version))?)?;
    }
    let mut family = encoder.encode_descriptor(
        "concurrency",
        "Requests in flight integrated over time; its rate is the average concurrency",
        Some(&Unit::Seconds),
        MetricType::Counter,
    )?;
    let now = now_micros();
    for version in versions {
        let integral = ConstCounter::new(version.concurrency.integral(now) as f64 / 1e6);
        integral.encode(family.encode_family(&labels(version))?)?;
    }
    Ok(())
}

fn singles(encoder: &mut DescriptorEncoder<'_>, shared: &Shared) -> fmt::Result {
    let (xds, connections) = (&shared.xds, &shared.connections.stats);
    let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
    let dropped = shared.access_log.as_ref().map_or(0, crate::access_log::AccessLog::dropped);
    for (name, help, value) in [
        ("connections_accepted", "Client connections accepted", read(&connections.accepted)),
        (
            "connections_refused",
            "Client connections closed at the bound on open ones",
            read(&connections.refused),
        ),
        ("requests_refused", "Requests refused at the bound on those in flight", shared.requests.refused()),
        ("accept_errors", "Failed attempts to accept a connection", read(&connections.accept_errors)),
        ("heads_refused", "Request heads not valid, too large or too slow", read(&connections.heads_refused)),
        (
            "handshakes_failed",
            "TLS handshakes of clients that failed or took too long",
            read(&connections.handshakes_failed),
        ),
        ("certificate_swaps", "Certificates and authorities replaced", shared.live.tls.certificate_swaps()),
        (
            "certificate_errors",
            "Changed files of certificates that could not be used",
            shared.live.tls.certificate_errors(),
        ),
        ("xds_streams", "xDS streams opened", read(&xds.streams)),
        ("xds_updates", "xDS responses taken in", read(&xds.updates)),
        ("xds_acks", "xDS responses acknowledged", read(&xds.acks)),
        ("xds_nacks", "xDS responses refused, in whole or in part", read(&xds.nacks)),
        ("warming_timeouts", "Went live before what it needs was there", read(&xds.warming_timeouts)),
        ("last_good_writes", "Last-good files written", read(&xds.last_good_writes)),
        ("last_good_errors", "Last-good files that could not be written", read(&xds.last_good_errors)),
        ("table_publishes", "Routing tables published", read(&shared.live.publishes)),
        ("access_log_dropped", "Access log lines dropped because the writer fell behind", dropped),
    ] {
        let family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(family)?;
    }
    for (name, help, value) in [
        ("connections_open", "Client connections open", connections.open.load(Ordering::Relaxed)),
        ("xds_connected", "Whether a server is connected", xds.connected.load(Ordering::Relaxed).into()),
        (
            "on_last_good",
            "Whether the configuration is from the last-good file",
            xds.on_last_good.load(Ordering::Relaxed).into(),
        ),
    ] {
        let family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(family)?;
    }
    let certificates = shared.live.tls.certificates();
    if !certificates.is_empty() {
        let mut family = encoder.encode_descriptor(
            "certificate_not_after",
            "Until when a certificate is valid, since the epoch",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        for certificate in certificates {
            let origin = match (certificate.files, certificate.secret) {
                (Some(files), _) => ("cert", files.cert.display().to_string()),
                (None, secret) => ("secret", secret.unwrap_or_default()),
            };
            let labels = [origin, ("serial", certificate.serial)];
            ConstGauge::new(certificate.not_after).encode(family.encode_family(&labels)?)?;
        }
    }
    let last = read(&xds.last_update);
    if last > 0 {
        let age = now_micros().saturating_sub(last) as f64 / 1e6;
        let family = encoder.encode_descriptor(
            "last_update_age",
            "Time since the last xDS response",
            Some(&Unit::Seconds),
            MetricType::Gauge,
        )?;
        ConstGauge::new(age).encode(family)?;
    }
    Ok(())
}
