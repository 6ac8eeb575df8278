//! The accounts as the API shows them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use config::{ClusterName, ServiceName, VersionName};

use super::{
    accounts::Accounts,
    count::{Counts, Metrics},
    version::Version,
};
use crate::api::load::{
    EndpointLoad, Load, LoadCounts, LocalityLoad, MetricLoad, ProxyLoad, Reporter, VersionLoad,
};

/// What the streams of all nodes last said of one version.
#[derive(Debug, Default)]
struct Now<'a> {
    /// In progress and requests a second, by node.
    nodes: BTreeMap<&'a Arc<str>, (u64, f64)>,
    endpoints: HashMap<SocketAddr, u64>,
}

impl Now<'_> {
    fn in_progress(&self) -> u64 {
        self.nodes.values().fold(0, |sum, (in_progress, _)| sum.saturating_add(*in_progress))
    }

    fn rps(&self) -> f64 {
        self.nodes.values().map(|(_, rps)| rps).sum()
    }
}

/// The totals of a version in one line: what metrics show.
pub(super) struct Line<'a> {
    pub(super) cluster: &'a ClusterName,
    pub(super) counts: Counts,
    pub(super) in_progress: u64,
}

impl Accounts {
    /// Everything of the versions that are `wanted`.
    pub(super) fn view(&self, wanted: impl Fn(&ServiceName, &VersionName) -> bool, at: Instant) -> Load {
        let mut now = self.now(at);
        let shown = self.versions.iter().filter(|(name, _)| wanted(&name.service, &name.version));
        let mut versions: Vec<VersionLoad> = shown
            .map(|(name, version)| self.version_load(name, version, now.remove(name).unwrap_or_default()))
            .collect();
        versions.sort_by(|a, b| (&a.service, &a.version).cmp(&(&b.service, &b.version)));
        Load {
            versions,
            reporters: self.reporters(at),
            unknown: counts(self.elsewhere.unknown),
            removed: counts(self.elsewhere.removed),
        }
    }

    /// One line a version, by name.
    pub(super) fn lines(&self, at: Instant) -> Vec<Line<'_>> {
        let now = self.now(at);
        let line = |(cluster, version): (_, &Version)| Line {
            cluster,
            counts: version.counts,
            in_progress: now.get(cluster).map_or(0, Now::in_progress),
        };
        let mut lines: Vec<Line<'_>> = self.versions.iter().map(line).collect();
        lines.sort_by_key(|line| line.cluster);
        lines
    }

    fn now(&self, at: Instant) -> HashMap<&ClusterName, Now<'_>> {
        let mut now: HashMap<&ClusterName, Now<'_>> = HashMap::new();
        for stream in self.streams.values() {
            let age = at.saturating_duration_since(stream.heard);
            for (cluster, share) in &stream.shares {
                let now = now.entry(cluster).or_default();
                let node = now.nodes.entry(&stream.node).or_default();
                node.0 = node.0.saturating_add(share.in_progress);
                node.1 += share.rate(age);
                for (address, in_progress) in &share.endpoints {
                    let sum = now.endpoints.entry(*address).or_default();
                    *sum = sum.saturating_add(*in_progress);
                }
            }
        }
        now
    }

    fn version_load(&self, name: &ClusterName, version: &Version, now: Now<'_>) -> VersionLoad {
        let (in_progress, rps) = (now.in_progress(), now.rps());
        let mut all = Metrics::default();
        for (name, metric) in version.localities.values().flat_map(|locality| locality.metrics.iter()) {
            // Beyond the bound they are shown by locality only.
            all.add(name, metric);
        }
        let localities = version.localities.iter().map(|(name, locality)| LocalityLoad {
            locality: name.to_string(),
            counts: counts(locality.counts),
            metrics: metrics(&locality.metrics),
        });
        let mut endpoints: Vec<EndpointLoad> = version
            .endpoints
            .iter()
            .map(|(address, row)| EndpointLoad {
                id: row.id.clone(),
                address: address.to_string(),
                counts: counts(row.counts),
                in_progress: now.endpoints.get(address).copied().unwrap_or(0),
                metrics: metrics(&row.metrics),
            })
            .collect();
        endpoints.sort_by(|a, b| a.id.cmp(&b.id));
        let reported = self.nodes.iter().filter_map(|(node, of_node)| {
            let share = now.nodes.get(node).copied();
            let row = of_node.rows.get(name);
            let (in_progress, rps) = share.unwrap_or_default();
            (row.is_some() || share.is_some()).then(|| ProxyLoad {
                node: node.to_string(),
                counts: counts(row.copied().unwrap_or_default()),
                in_progress,
                rps,
            })
        });
        let mut proxies: Vec<ProxyLoad> = reported.collect();
        proxies.sort_by(|a, b| a.node.cmp(&b.node));
        VersionLoad {
            service: name.service.clone(),
            version: name.version.clone(),
            counts: counts(version.counts),
            in_progress,
            rps,
            dropped_for: version.categories.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
            metrics: metrics(&all),
            localities: localities.collect(),
            endpoints,
            proxies,
        }
    }

    fn reporters(&self, at: Instant) -> Vec<Reporter> {
        let mut heard: HashMap<&Arc<str>, Instant> = HashMap::new();
        for stream in self.streams.values() {
            let newest = heard.entry(&stream.node).or_insert(stream.heard);
            *newest = stream.heard.max(*newest);
        }
        let reporter = |(name, node): (&Arc<str>, &super::accounts::Node)| Reporter {
            node: name.to_string(),
            streams: node.streams,
            reports: node.reports,
            age_ms: heard.get(name).map(|heard| at.saturating_duration_since(*heard).as_millis() as u64),
        };
        let mut reporters: Vec<Reporter> = self.nodes.iter().map(reporter).collect();
        reporters.sort_by(|a, b| a.node.cmp(&b.node));
        reporters
    }
}

fn counts(counts: Counts) -> LoadCounts {
    let Counts { issued, successful, errors, dropped } = counts;
    LoadCounts { requests: issued, successful, errors, dropped }
}

fn metrics(metrics: &Metrics) -> BTreeMap<String, MetricLoad> {
    let metric = |(name, metric): (&str, super::count::Metric)| {
        (name.to_owned(), MetricLoad { average: metric.average(), requests: metric.finished })
    };
    metrics.iter().map(metric).collect()
}
