//! The request path without I/O: what benchmarks measure. Nothing else uses it, and it decides nothing.
//!
//! - [`HotPath`]: one request from its head to its end, and the publication of one change.
//! - [`Follower`]: one change of endpoints, from the bytes of a response to the published table.
//! - The pieces: `heads` (parse and write), `routes` (the lookup alone), `version` (pick and account).

mod follow;
mod heads;
mod routes;
mod version;

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
    edge::{
        h1::{self, request::parse_request, response::parse_response},
        policy::{self, Head, Journey},
    },
    load::shard::PerCore,
    load::{now_micros, shard},
    route::Fields,
    shared::{MAX_REQUESTS, Requests},
    table::{Change, Live},
    worker::timer::Timer,
};

pub use follow::Follower;
pub use heads::{chunks, parsed_request, parsed_response, written_request, written_response};
pub use routes::{Routes, Rules};
pub use version::Version;

/// Makes this thread the worker of a core: it counts in that core's parts.
pub fn work_on_core(number: usize) {
    shard::claim(number);
}

/// The table of a proxy whose one gateway has services under paths of their own, each with a 90/10
/// split over two versions.
#[derive(Debug)]
pub struct HotPath {
    live: Live,
    requests: Requests,
    gateway: PerCore<Arc<str>>,
    headers: HeaderMap,
}

impl HotPath {
    /// `services` services, each version with `endpoints` endpoints.
    pub fn new(services: usize, endpoints: u16) -> Self {
        let live = Live::default();
        let names: Vec<String> = (0..services).map(|i| format!("s{i}")).collect();
        let versions = names.iter().flat_map(|name| [format!("{name}/v1"), format!("{name}/v2")]);
        live.publish(versions.map(|name| change(&name, endpoints)));
        let routes = names.iter().map(|name| RouteEntry {
            path: PathRule::Segments(format!("/{name}")),
            headers: Vec::new(),
            clusters: vec![(format!("{name}/v1"), 90), (format!("{name}/v2"), 10)],
        });
        let host = VirtualHost { domains: vec!["*".to_owned()], routes: routes.collect() };
        let config = RouteConfig { name: "edge".to_owned(), ignore_port: true, virtual_hosts: vec![host] };
        live.publish([Change::Routes(Arc::new(config))]);
        Self {
            live,
            requests: Requests::new(MAX_REQUESTS),
            gateway: PerCore::new("edge".into()),
            headers: HeaderMap::new(),
        }
    }

    /// What happens to a request from its head to its end, but for moving bytes: table, route,
    /// version, endpoint, counted in and out. `None` when it was refused.
    pub fn decide(&self, path: &str) -> Option<SocketAddr> {
        let head = Head { host: "shop.example.com", path, fields: &self.headers };
        let journey = self.admit(&head)?;
        let address = journey.address();
        journey.finish(&self.gateway, 200, None, now_micros());
        address
    }

    /// The same from the bytes of both heads: parsed, decided, and written on to `out`. `None` when
    /// either was refused or is not whole.
    pub fn exchange(&self, request: &[u8], response: &[u8], out: &mut Vec<u8>) -> Option<SocketAddr> {
        let journey = {
            let mut slots = h1::slots();
            let head = parse_request(request, &mut slots).ok()??;
            let asked = Head { host: head.host(), path: head.path(), fields: &head };
            let journey = self.admit(&asked)?;
            out.clear();
            head.write_upstream(out, &heads::request_edits());
            journey
        };
        let mut slots = h1::slots();
        let head = parse_response(response, &mut slots, false).ok()??;
        out.clear();
        head.write_downstream(out, &heads::response_edits());
        let address = journey.address();
        journey.finish(&self.gateway, head.status(), None, now_micros());
        address
    }

    fn admit(&self, head: &Head<'_, impl Fields>) -> Option<Journey> {
        let table = self.live.load();
        let routes = table.routes.get("edge").map(|routes| &**routes);
        policy::admit(&table, routes, &self.requests, &self.gateway, head, now_micros()).ok()
    }

    /// Publishes a change of the endpoints of one version, which then has `endpoints`.
    pub fn publish(&self, service: usize, endpoints: u16) {
        self.live.publish([change(&format!("s{service}/v1"), endpoints)]);
    }
}

/// The one deadline of a connection.
#[derive(Debug)]
pub struct Deadline(Timer);

impl Deadline {
    /// One that never passes.
    #[allow(clippy::new_without_default, reason = "it takes a place in this core's wheel")]
    pub fn new() -> Self {
        Self(Timer::new())
    }

    /// Moves it as a request does: its head came, its endpoint is awaited, the next head is.
    pub fn request(&self) {
        for seconds in [10, 60, 60] {
            self.0.set(Duration::from_secs(seconds));
        }
    }
}

fn change(name: &str, endpoints: u16) -> Change {
    let (config, assignment) = cluster(name, endpoints);
    Change::Cluster(Arc::new(config), Some(Arc::new(assignment)))
}

fn cluster(name: &str, endpoints: u16) -> (ClusterConfig, Assignment) {
    let config = ClusterConfig {
        name: name.to_owned(),
        assignment: name.to_owned(),
        http2: false,
        connect_timeout: Duration::from_secs(1),
        tls: None,
    };
    let endpoint = |port: u16| AssignedEndpoint {
        id: format!("e{port}").into(),
        address: ([127, 0, 0, 1], port).into(),
        weight: 1,
        zone: Arc::default(),
        health: Health::Ready,
    };
    let assignment = Assignment {
        name: name.to_owned(),
        endpoints: (1..=endpoints).map(endpoint).collect(),
        collections: Vec::new(),
    };
    (config, assignment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_is_measured_is_one_that_succeeds() {
        let hot = HotPath::new(3, 2);
        assert!(hot.decide("/s2/cart").is_some());
        assert!(hot.decide("/s3/cart").is_none());
        let (request, response) = (b"GET /s1 HTTP/1.1\r\nhost: a\r\n\r\n", b"HTTP/1.1 204 No\r\n\r\n");
        assert!(hot.exchange(request, response, &mut Vec::new()).is_some());
        hot.publish(0, 1);
        assert_eq!(hot.live.load().sequence, 3);
    }
}
