//! A `LoadStatsRequest` as what it says, in bounds (`envoy/config/endpoint/v3/load_report.proto`). What
//! makes no sense is left out and counted; the rest is taken.

use std::{net::SocketAddr, time::Duration};

use config::{
    ClusterName,
    xds::load::{Mark, decode_interval},
};
use envoy_types::pb::envoy::{
    config::{
        core::v3::{Address, Locality, address::Address as AddressKind, socket_address::PortSpecifier},
        endpoint::v3::{
            ClusterStats, EndpointLoadMetricStats, UnnamedEndpointLoadMetricStats, UpstreamEndpointStats,
            UpstreamLocalityStats,
        },
    },
    service::load_stats::v3::LoadStatsRequest,
};

use super::count::{Counts, Metric};

/// The longest name of a metric, a locality or a category, in bytes.
pub(super) const MAX_NAME: usize = 128;

/// What one request reports.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// Which report it is, of a client that numbers them.
    pub(super) mark: Option<Mark>,
    pub(super) clusters: Vec<OfCluster>,
    /// Values that were left out.
    pub(super) refused: u64,
}

#[derive(Debug, Default)]
pub(super) struct OfCluster {
    /// `None` if it cannot be one of ours.
    pub(super) cluster: Option<ClusterName>,
    /// Over how long, if the client says something sensible.
    pub(super) interval: Option<Duration>,
    pub(super) dropped: u64,
    /// What of it was dropped for which reason.
    pub(super) categories: Vec<(String, u64)>,
    pub(super) localities: Vec<OfLocality>,
}

#[derive(Debug, Default)]
pub(super) struct OfLocality {
    pub(super) name: String,
    pub(super) counts: Counts,
    pub(super) in_progress: u64,
    pub(super) metrics: Vec<(String, Metric)>,
    pub(super) endpoints: Vec<OfEndpoint>,
}

#[derive(Debug)]
pub(super) struct OfEndpoint {
    pub(super) address: SocketAddr,
    pub(super) counts: Counts,
    pub(super) in_progress: u64,
    pub(super) metrics: Vec<(String, Metric)>,
}

impl OfCluster {
    /// The sum over its localities, and what was dropped.
    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts { dropped: self.dropped, ..Counts::default() };
        for locality in &self.localities {
            counts.add(locality.counts);
        }
        counts
    }

    /// The sum over its localities.
    pub(super) fn in_progress(&self) -> u64 {
        self.localities.iter().fold(0, |sum, locality| sum.saturating_add(locality.in_progress))
    }
}

/// Reads a request.
pub(super) fn read(request: LoadStatsRequest) -> Report {
    let mark = request.node.as_ref().and_then(Mark::decode);
    let mut reader = Reader { refused: 0 };
    let clusters = request.cluster_stats.into_iter().map(|stats| reader.cluster(stats)).collect();
    Report { mark, clusters, refused: reader.refused }
}

struct Reader {
    refused: u64,
}

impl Reader {
    fn cluster(&mut self, stats: ClusterStats) -> OfCluster {
        let mut categories = Vec::new();
        for dropped in stats.dropped_requests {
            if (1..=MAX_NAME).contains(&dropped.category.len()) {
                categories.push((dropped.category, dropped.dropped_count));
            } else {
                self.refused += 1;
            }
        }
        OfCluster {
            cluster: stats.cluster_name.parse().ok(),
            interval: stats.load_report_interval.as_ref().and_then(decode_interval),
            dropped: stats.total_dropped_requests,
            categories,
            localities: stats.upstream_locality_stats.into_iter().map(|s| self.locality(s)).collect(),
        }
    }

    fn locality(&mut self, stats: UpstreamLocalityStats) -> OfLocality {
        let unnamed = [
            ("cpu_utilization", stats.cpu_utilization),
            ("mem_utilization", stats.mem_utilization),
            ("application_utilization", stats.application_utilization),
        ];
        let mut metrics = self.metrics(stats.load_metric_stats);
        for (name, metric) in unnamed {
            let Some(UnnamedEndpointLoadMetricStats {
                num_requests_finished_with_metric,
                total_metric_value,
            }) = metric
            else {
                continue;
            };
            let metric = self.metric(num_requests_finished_with_metric, total_metric_value);
            metrics.extend(metric.map(|metric| (name.to_owned(), metric)));
        }
        OfLocality {
            name: stats.locality.as_ref().map(locality_name).unwrap_or_default(),
            counts: Counts {
                issued: stats.total_issued_requests,
                successful: stats.total_successful_requests,
                errors: stats.total_error_requests,
                dropped: 0,
            },
            in_progress: stats.total_requests_in_progress,
            metrics,
            endpoints: stats.upstream_endpoint_stats.into_iter().filter_map(|s| self.endpoint(s)).collect(),
        }
    }

    fn endpoint(&mut self, stats: UpstreamEndpointStats) -> Option<OfEndpoint> {
        let Some(address) = stats.address.as_ref().and_then(socket_address) else {
            self.refused += 1;
            return None;
        };
        Some(OfEndpoint {
            address,
            counts: Counts {
                issued: stats.total_issued_requests,
                successful: stats.total_successful_requests,
                errors: stats.total_error_requests,
                dropped: 0,
            },
            in_progress: stats.total_requests_in_progress,
            metrics: self.metrics(stats.load_metric_stats),
        })
    }

    fn metrics(&mut self, stats: Vec<EndpointLoadMetricStats>) -> Vec<(String, Metric)> {
        let mut metrics = Vec::with_capacity(stats.len());
        for stats in stats {
            let metric = self.metric(stats.num_requests_finished_with_metric, stats.total_metric_value);
            // "Name of the metric; may be empty."
            match (metric, stats.metric_name.len() <= MAX_NAME) {
                (Some(metric), true) => metrics.push((stats.metric_name, metric)),
                (Some(_), false) => self.refused += 1,
                (None, _) => {}
            }
        }
        metrics
    }

    fn metric(&mut self, finished: u64, total: f64) -> Option<Metric> {
        // One that is not a number would make the sum none, for ever.
        let sensible = total.is_finite() && total >= 0.0;
        self.refused += u64::from(!sensible);
        sensible.then_some(Metric { finished, total })
    }
}

/// `zone` alone where there is no more to a locality, as with ours; else `region/zone/sub_zone`.
fn locality_name(locality: &Locality) -> String {
    let mut name = match (locality.region.as_str(), locality.sub_zone.as_str()) {
        ("", "") => locality.zone.clone(),
        (region, sub_zone) => format!("{region}/{}/{sub_zone}", locality.zone),
    };
    let mut end = MAX_NAME.min(name.len());
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.truncate(end);
    name
}

fn socket_address(address: &Address) -> Option<SocketAddr> {
    let AddressKind::SocketAddress(socket) = address.address.as_ref()? else { return None };
    let Some(PortSpecifier::PortValue(port)) = socket.port_specifier else { return None };
    Some(SocketAddr::new(socket.address.parse().ok()?, u16::try_from(port).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metric(name: &str, total: f64) -> EndpointLoadMetricStats {
        EndpointLoadMetricStats {
            metric_name: name.to_owned(),
            num_requests_finished_with_metric: 1,
            total_metric_value: total,
        }
    }

    #[test]
    fn values_that_make_no_sense_are_left_out_and_counted() {
        let bad = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.5].map(|total| metric("bad", total));
        let long = metric(&"n".repeat(MAX_NAME + 1), 1.0);
        let locality = UpstreamLocalityStats {
            load_metric_stats: bad.into_iter().chain([long, metric("good", 1.5), metric("", 0.0)]).collect(),
            cpu_utilization: Some(UnnamedEndpointLoadMetricStats {
                num_requests_finished_with_metric: 2,
                total_metric_value: 0.5,
            }),
            mem_utilization: Some(UnnamedEndpointLoadMetricStats {
                num_requests_finished_with_metric: 2,
                total_metric_value: f64::NAN,
            }),
            upstream_endpoint_stats: vec![UpstreamEndpointStats::default()],
            ..Default::default()
        };
        let stats = ClusterStats { upstream_locality_stats: vec![locality], ..Default::default() };
        let report = read(LoadStatsRequest { node: None, cluster_stats: vec![stats] });
        let locality = &report.clusters[0].localities[0];
        let names: Vec<_> = locality.metrics.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((names, report.refused), (vec!["good", "", "cpu_utilization"], 7));
        assert!(locality.endpoints.is_empty());
    }

    #[test]
    fn a_locality_is_named_by_its_zone_unless_it_says_more() {
        let locality = |region: &str, zone: &str| Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            sub_zone: String::new(),
        };
        assert_eq!(locality_name(&locality("", "a")), "a");
        assert_eq!(locality_name(&locality("eu", "a")), "eu/a/");
        assert!(locality_name(&locality("", &"é".repeat(MAX_NAME))).len() <= MAX_NAME);
    }
}
