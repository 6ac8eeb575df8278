//! The accounts as the API shows them.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use config::{ClusterName, ServiceName, VersionName};

use super::{
    accounts::{Accounts, Node},
    count::{Counts, Metric, Metrics},
    version::Version,
};
use crate::api::load::{
    EndpointLoad, Load, LoadCounts, LocalityLoad, MetricLoad, ProxyLoad, Reporter, VersionLoad,
};

/// What nodes sent to one version, and last said of it.
#[derive(Debug, Default)]
struct ByNode<'a> {
    nodes: BTreeMap<&'a str, OfNode>,
    /// In progress.
    endpoints: HashMap<SocketAddr, u64>,
}

#[derive(Debug, Default)]
struct OfNode {
    counts: Counts,
    in_progress: u64,
    rps: f64,
}

impl ByNode<'_> {
    fn in_progress(&self) -> u64 {
        self.nodes.values().fold(0, |sum, node| sum.saturating_add(node.in_progress))
    }
}

/// The totals of a version in one line: what metrics show.
pub(super) struct Line {
    pub(super) cluster: ClusterName,
    pub(super) counts: Counts,
    pub(super) in_progress: u64,
}

impl Accounts {
    /// Everything of the versions that are `wanted`.
    pub(super) fn view(&self, wanted: impl Fn(&ServiceName, &VersionName) -> bool, at: Instant) -> Load {
        let wanted = |name: &ClusterName| wanted(&name.service, &name.version);
        let mut by_node = self.last_said(&wanted, at);
        for (node, of_node) in &self.nodes {
            for (name, counts) in of_node.rows.iter().filter(|(name, _)| wanted(name)) {
                by_node.entry(name).or_default().nodes.entry(node).or_default().counts = *counts;
            }
        }
        let shown = self.versions.iter().filter(|(name, _)| wanted(name));
        let mut versions: Vec<VersionLoad> = shown
            .map(|(name, version)| version_load(name, version, &by_node.remove(name).unwrap_or_default()))
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
    pub(super) fn lines(&self, at: Instant) -> Vec<Line> {
        let said = self.last_said(&|_| true, at);
        let line = |(cluster, version): (&ClusterName, &Version)| Line {
            cluster: cluster.clone(),
            counts: version.counts,
            in_progress: said.get(cluster).map_or(0, ByNode::in_progress),
        };
        let mut lines: Vec<Line> = self.versions.iter().map(line).collect();
        lines.sort_by(|a, b| a.cluster.cmp(&b.cluster));
        lines
    }

    /// What is in progress, and the rates.
    fn last_said(
        &self,
        wanted: &dyn Fn(&ClusterName) -> bool,
        at: Instant,
    ) -> HashMap<&ClusterName, ByNode<'_>> {
        let mut said: HashMap<&ClusterName, ByNode<'_>> = HashMap::new();
        for stream in self.streams.values() {
            let age = at.saturating_duration_since(stream.heard);
            for (cluster, share) in stream.shares.iter().filter(|(name, _)| wanted(name)) {
                let of_version = said.entry(cluster).or_default();
                let node = of_version.nodes.entry(&stream.node).or_default();
                node.in_progress = node.in_progress.saturating_add(share.in_progress);
                node.rps += share.rate(age);
                for (address, in_progress) in &share.endpoints {
                    let sum = of_version.endpoints.entry(*address).or_default();
                    *sum = sum.saturating_add(*in_progress);
                }
            }
        }
        said
    }

    fn reporters(&self, at: Instant) -> Vec<Reporter> {
        let mut heard: HashMap<&Arc<str>, Instant> = HashMap::new();
        for stream in self.streams.values() {
            let newest = heard.entry(&stream.node).or_insert(stream.heard);
            *newest = stream.heard.max(*newest);
        }
        let reporter = |(name, node): (&Arc<str>, &Node)| Reporter {
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

fn version_load(name: &ClusterName, version: &Version, by_node: &ByNode<'_>) -> VersionLoad {
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
    let endpoints = version.endpoints.iter().map(|(address, row)| EndpointLoad {
        id: row.id.clone(),
        address: address.to_string(),
        counts: counts(row.counts),
        in_progress: by_node.endpoints.get(address).copied().unwrap_or(0),
        metrics: metrics(&row.metrics),
    });
    let mut endpoints: Vec<EndpointLoad> = endpoints.collect();
    endpoints.sort_by(|a, b| a.id.cmp(&b.id));
    let proxies = by_node.nodes.iter().map(|(node, of_node)| ProxyLoad {
        node: (*node).to_owned(),
        counts: counts(of_node.counts),
        in_progress: of_node.in_progress,
        rps: of_node.rps,
    });
    VersionLoad {
        service: name.service.clone(),
        version: name.version.clone(),
        counts: counts(version.counts),
        in_progress: by_node.in_progress(),
        rps: by_node.nodes.values().map(|node| node.rps).sum(),
        dropped_for: version.categories.iter().map(|(name, count)| (name.to_string(), *count)).collect(),
        metrics: metrics(&all),
        localities: localities.collect(),
        endpoints,
        proxies: proxies.collect(),
    }
}

fn counts(counts: Counts) -> LoadCounts {
    let Counts { issued, successful, errors, dropped } = counts;
    LoadCounts { requests: issued, successful, errors, dropped }
}

fn metrics(metrics: &Metrics) -> BTreeMap<String, MetricLoad> {
    let metric = |(name, metric): (&str, Metric)| {
        (name.to_owned(), MetricLoad { average: metric.average(), requests: metric.finished })
    };
    metrics.iter().map(metric).collect()
}
