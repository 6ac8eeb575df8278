//! Rows as requests of the protocol (`envoy/config/endpoint/v3/load_report.proto`).

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use config::xds::load::encode_interval;
use envoy_types::pb::envoy::config::{
    core::v3::{
        Address, Locality, SocketAddress, address::Address as AddressKind, socket_address::PortSpecifier,
    },
    endpoint::v3::{ClusterStats, UpstreamEndpointStats, UpstreamLocalityStats},
};

use super::ledger::{Counts, Row};

/// How many rows go into one request: each takes at most 400 bytes, and servers take 1 MiB.
const MAX_ROWS: usize = 2_048;

/// What `rows` say, in parts that are each small enough for one request; at least one part.
pub(super) fn parts(rows: &[Row], interval: Duration, by_endpoint: bool) -> Vec<Vec<ClusterStats>> {
    if rows.is_empty() {
        return vec![Vec::new()];
    }
    rows.chunks(MAX_ROWS).map(|rows| part(rows, interval, by_endpoint)).collect()
}

fn part(rows: &[Row], interval: Duration, by_endpoint: bool) -> Vec<ClusterStats> {
    let mut clusters: BTreeMap<&Arc<str>, BTreeMap<&Arc<str>, Vec<&Row>>> = BTreeMap::new();
    for row in rows {
        clusters.entry(&row.cluster).or_default().entry(&row.zone).or_default().push(row);
    }
    let stats = |(cluster, zones): (&Arc<str>, BTreeMap<&Arc<str>, Vec<&Row>>)| ClusterStats {
        cluster_name: cluster.to_string(),
        upstream_locality_stats: zones.iter().map(|(zone, rows)| locality(zone, rows, by_endpoint)).collect(),
        load_report_interval: Some(encode_interval(interval)),
        ..ClusterStats::default()
    };
    clusters.into_iter().map(stats).collect()
}

fn locality(zone: &str, rows: &[&Row], by_endpoint: bool) -> UpstreamLocalityStats {
    let mut sum = Counts::default();
    for row in rows {
        sum.add(row.counts);
    }
    let endpoints = rows.iter().filter(|_| by_endpoint).filter_map(|row| {
        Some(UpstreamEndpointStats {
            address: Some(address(row.address?)),
            total_successful_requests: row.counts.successful,
            total_requests_in_progress: row.counts.in_progress,
            total_error_requests: row.counts.errors,
            total_issued_requests: row.counts.issued,
            ..UpstreamEndpointStats::default()
        })
    });
    UpstreamLocalityStats {
        locality: (!zone.is_empty()).then(|| Locality { zone: zone.to_owned(), ..Locality::default() }),
        total_successful_requests: sum.successful,
        total_requests_in_progress: sum.in_progress,
        total_error_requests: sum.errors,
        total_issued_requests: sum.issued,
        upstream_endpoint_stats: endpoints.collect(),
        ..UpstreamLocalityStats::default()
    }
}

fn address(address: SocketAddr) -> Address {
    Address {
        address: Some(AddressKind::SocketAddress(SocketAddress {
            address: address.ip().to_string(),
            port_specifier: Some(PortSpecifier::PortValue(u32::from(address.port()))),
            ..SocketAddress::default()
        })),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::service::load_stats::v3::LoadStatsRequest;
    use prost::Message;

    use super::*;

    fn row(cluster: &str, zone: &str, port: Option<u16>, issued: u64) -> Row {
        Row {
            cluster: cluster.into(),
            zone: zone.into(),
            address: port.map(|port| ([127, 0, 0, 1], port).into()),
            counts: Counts { issued, successful: issued, errors: 0, in_progress: 1 },
        }
    }

    #[test]
    fn a_locality_is_the_sum_of_its_endpoints_and_of_those_that_are_gone() {
        let rows = [row("a/v1", "x", Some(1), 3), row("a/v1", "x", None, 4), row("a/v1", "", Some(2), 5)];
        let parts = parts(&rows, Duration::from_secs(1), true);
        let [cluster] = parts[0].as_slice() else { panic!("{parts:?}") };
        let sums: Vec<_> = cluster
            .upstream_locality_stats
            .iter()
            .map(|l| (l.total_issued_requests, l.total_requests_in_progress, l.upstream_endpoint_stats.len()))
            .collect();
        assert_eq!(sums, [(5, 1, 1), (7, 2, 1)]);
        let coarse = super::parts(&rows, Duration::from_secs(1), false);
        assert!(coarse[0][0].upstream_locality_stats.iter().all(|l| l.upstream_endpoint_stats.is_empty()));
    }

    #[test]
    fn every_part_of_a_large_report_is_small_enough() {
        let name = |i: usize| format!("{}{i:05}/{}", "s".repeat(58), "v".repeat(63));
        let rows: Vec<Row> =
            (0..5_000).map(|i| row(&name(i), &"z".repeat(128), Some(u16::MAX), u64::MAX >> 20)).collect();
        let parts = parts(&rows, Duration::from_hours(1), true);
        assert_eq!(parts.len(), 3);
        assert_eq!(parts.iter().flatten().count(), 5_000);
        for cluster_stats in parts {
            let request = LoadStatsRequest { node: None, cluster_stats };
            assert!(request.encoded_len() < (1 << 20) - 1_024, "{}", request.encoded_len());
        }
    }
}
