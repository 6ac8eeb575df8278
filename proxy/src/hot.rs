//! The decision about one request, and the publication of one change, without I/O: what benchmarks
//! measure.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use config::{
    Health,
    xds::{
        assignment::{AssignedEndpoint, Assignment},
        cluster::ClusterConfig,
        route::{PathRule, RouteConfig, RouteEntry, VirtualHost},
    },
};
use http::HeaderMap;

use crate::{
    edge::policy::{self, Head, Journey},
    table::{Change, Live},
};

/// The table of a proxy whose one gateway has services under paths of their own, each with a 90/10
/// split over two versions.
#[derive(Debug)]
pub struct HotPath {
    live: Live,
    gateway: Arc<str>,
    headers: HeaderMap,
}

impl HotPath {
    /// `services` services, each version with `endpoints` endpoints.
    pub fn new(services: usize, endpoints: u16) -> Self {
        let live = Live::default();
        let names: Vec<String> = (0..services).map(|i| format!("s{i}")).collect();
        for name in &names {
            for version in ["v1", "v2"] {
                live.publish([change(&format!("{name}/{version}"), endpoints)]);
            }
        }
        let routes = names.iter().map(|name| RouteEntry {
            path: PathRule::Segments(format!("/{name}")),
            headers: Vec::new(),
            clusters: vec![(format!("{name}/v1"), 90), (format!("{name}/v2"), 10)],
        });
        let host = VirtualHost { domains: vec!["*".to_owned()], routes: routes.collect() };
        let config = RouteConfig { name: "edge".to_owned(), ignore_port: true, virtual_hosts: vec![host] };
        live.publish([Change::Routes(Arc::new(config))]);
        Self { live, gateway: "edge".into(), headers: HeaderMap::new() }
    }

    /// What happens to a request from its head to its end, but for moving bytes: table, route,
    /// version, endpoint, counted in and out.
    pub fn decide(&self, path: &str, rng: &mut fastrand::Rng) -> Option<SocketAddr> {
        let table = self.live.load();
        let head = Head { host: "shop.example.com", path, headers: &self.headers };
        let cluster = policy::route(&table, "edge", head, rng).ok()?;
        let mut journey = Journey::new(cluster, &self.gateway);
        journey.begin(rng).ok()?;
        policy::address(&journey)
    }

    /// Publishes a change of the endpoints of one version, which then has `endpoints`.
    pub fn publish(&self, service: usize, endpoints: u16) {
        self.live.publish([change(&format!("s{service}/v1"), endpoints)]);
    }
}

fn change(name: &str, endpoints: u16) -> Change {
    let config = ClusterConfig {
        name: name.to_owned(),
        assignment: name.to_owned(),
        http2: false,
        connect_timeout: Duration::from_secs(1),
    };
    let endpoint = |port: u16| AssignedEndpoint {
        id: format!("e{port}"),
        address: ([127, 0, 0, 1], port).into(),
        weight: 1,
        zone: String::new(),
        health: Health::Ready,
    };
    let assignment = Assignment { name: name.to_owned(), endpoints: (1..=endpoints).map(endpoint).collect() };
    Change::Cluster(Arc::new(config), Some(Arc::new(assignment)))
}
