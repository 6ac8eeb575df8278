//! What happens to a request: route → version → endpoint, what is tried again, what is counted.
//! Plain functions over a borrowed head; the same for every protocol.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use config::{Health, xds::route::CONNECT_RETRIES};
use http::{HeaderMap, Method, StatusCode};

use crate::{
    cluster::{Cluster, Endpoint},
    load::{EndpointLoad, Series, VersionLoad, now_micros},
    route::NoRoute,
    table::RoutingTable,
};

/// The part of a request that decides where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    /// Host, with or without a port; empty when there is none.
    pub(crate) host: &'a str,
    /// Without the query.
    pub(crate) path: &'a str,
    pub(crate) headers: &'a HeaderMap,
}

/// Why a request got its answer from the proxy. Displayed, it is the body of that answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// An HTTP/1.1 request without a host (RFC 9112 §3.2).
    NoHost,
    /// Nothing answers for the host.
    UnknownHost(String),
    /// The host has no route for the path.
    NoRoute(String),
    /// The route leads to a cluster the proxy was never told about.
    NoCluster(String),
    /// The version has no endpoint that is ready.
    NoEndpoint(String),
    /// No endpoint could be connected to; nothing was sent.
    Unreachable {
        /// Name of the cluster.
        cluster: String,
        /// How many endpoints were tried.
        attempts: u32,
    },
    /// The endpoint failed after the request was, or may have been, sent.
    Broken(String),
    /// The endpoint neither answered nor took more of the request for too long.
    TimedOut(String),
    /// The client's request cannot be forwarded.
    BadRequest,
    /// The client let its request body wait for too long.
    SlowBody,
    /// The proxy has as many requests in flight as it takes.
    Overloaded,
    /// A fault of the proxy.
    Internal,
}

impl Refusal {
    /// 404 for what does not exist, 503 for what may work in a moment (also connect failures, as
    /// Envoy answers them: nothing was sent, so trying again is safe), 502 for an endpoint that
    /// broke off, 504 for one that is silent.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NoHost | Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::UnknownHost(_) | Self::NoRoute(_) => StatusCode::NOT_FOUND,
            Self::NoCluster(_) | Self::NoEndpoint(_) | Self::Unreachable { .. } | Self::Overloaded => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Broken(_) => StatusCode::BAD_GATEWAY,
            Self::TimedOut(_) => StatusCode::GATEWAY_TIMEOUT,
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// What a client sent goes back to it shortened.
const SHOWN: usize = 100;

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoHost => f.write_str("the request names no host"),
            Self::UnknownHost(host) => write!(f, "no route for host {host:.SHOWN$}"),
            Self::NoRoute(path) => write!(f, "no route for path {path:.SHOWN$}"),
            Self::NoCluster(cluster) => write!(f, "{cluster} is not known to this proxy"),
            Self::NoEndpoint(cluster) => write!(f, "no ready endpoint for {cluster}"),
            Self::Unreachable { cluster, attempts } => {
                write!(f, "no endpoint of {cluster} could be connected to ({attempts} tried)")
            }
            Self::Broken(cluster) => {
                write!(f, "an endpoint of {cluster} closed the connection or sent no valid response")
            }
            Self::TimedOut(cluster) => write!(f, "an endpoint of {cluster} did not answer in time"),
            Self::BadRequest => f.write_str("the request is not valid"),
            Self::SlowBody => f.write_str("the body of the request took too long"),
            Self::Overloaded => f.write_str("too many requests are in flight"),
            Self::Internal => f.write_str("an error inside the proxy"),
        }
    }
}

/// The cluster that answers: route, then version draw. One table, so that they fit together.
pub(crate) fn route(
    table: &RoutingTable,
    route_config: &str,
    head: Head<'_>,
    rng: &mut fastrand::Rng,
) -> Result<Arc<Cluster>, Refusal> {
    let found = match table.routes.get(route_config) {
        Some(routes) => routes.find(head.host, head.path, head.headers),
        None => Err(NoRoute::Host),
    };
    let split = found.map_err(|why| match why {
        NoRoute::Host => Refusal::UnknownHost(head.host.to_owned()),
        NoRoute::Path => Refusal::NoRoute(head.path.to_owned()),
    })?;
    let cluster = split.draw(rng).ok_or(Refusal::Internal)?;
    table.clusters.get(cluster).cloned().ok_or_else(|| Refusal::NoCluster(cluster.to_string()))
}

/// Whether a request may be sent again although it may have been received once: only methods whose
/// repetition changes nothing (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}

/// A request under way: holds the cluster it was routed to, so that retries stay in the version and
/// the table they began with, and counts it in, until it is dropped or finished.
#[derive(Debug)]
pub(crate) struct Journey {
    cluster: Arc<Cluster>,
    series: Arc<Series>,
    version: InFlight<VersionLoad>,
    endpoint: Option<InFlight<EndpointLoad>>,
    /// Generations of the endpoints that failed it.
    tried: Vec<u64>,
    attempts: u32,
    /// Where it was sent last; also after the last attempt failed.
    address: Option<SocketAddr>,
    /// Whether it was sent again after a fresh connection died under it.
    repeated: bool,
}

/// What a connection was that died under a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Died {
    /// The endpoint says that it did not process the request.
    Unprocessed,
    /// It was used before, so most likely the endpoint closed it while it was idle.
    Reused,
    /// Made for this request, so the request itself may be what kills its endpoint.
    Fresh,
}

impl Journey {
    /// Begins: a version was drawn. No endpoint is picked yet.
    pub(crate) fn new(cluster: Arc<Cluster>, gateway: &Arc<str>) -> Self {
        let series = cluster.load.series(gateway);
        let version = InFlight::start(Arc::clone(&cluster.load));
        Self {
            cluster,
            series,
            version,
            endpoint: None,
            tried: Vec::new(),
            attempts: 0,
            address: None,
            repeated: false,
        }
    }

    /// Picks the first endpoint.
    ///
    /// # Errors
    /// [`Refusal::NoEndpoint`] when none is ready. It is counted.
    pub(crate) fn begin(&mut self, rng: &mut fastrand::Rng) -> Result<(), Refusal> {
        if self.next_endpoint(rng) {
            return Ok(());
        }
        self.series.no_endpoint.fetch_add(1, Ordering::Relaxed);
        Err(Refusal::NoEndpoint(self.cluster.config.name.clone()))
    }

    fn next_endpoint(&mut self, rng: &mut fastrand::Rng) -> bool {
        self.endpoint = None; // counted out before the next one is compared
        let picked = self.cluster.pick(&self.tried, rng).map(|endpoint: &Endpoint| {
            debug_assert!(endpoint.health == Health::Ready, "only ready ones are candidates");
            Arc::clone(&endpoint.load)
        });
        let Some(load) = picked else { return false };
        load.requests.fetch_add(1, Ordering::Relaxed);
        self.address = Some(load.address);
        self.endpoint = Some(InFlight::start(load));
        self.attempts += 1;
        true
    }

    /// The endpoint could not be connected to, so nothing was sent: picks another one of the same
    /// version. `false` when none is left, or [`CONNECT_RETRIES`] others were tried.
    pub(crate) fn connect_failed(&mut self, rng: &mut fastrand::Rng) -> bool {
        self.tried.extend(self.endpoint.as_ref().map(|endpoint| endpoint.0.generation));
        self.retry(rng)
    }

    /// A connection was lost before any byte of a response. Another endpoint is preferred; but this one
    /// may be fine, so it is taken again when there is no other. `false` when the bound on attempts is reached, which is one repetition after
    /// fresh connections: what kills an endpoint must not be handed to all of them.
    pub(crate) fn connection_died(&mut self, how: Died, rng: &mut fastrand::Rng) -> bool {
        if how == Died::Fresh && std::mem::replace(&mut self.repeated, true) {
            self.endpoint = None;
            return false;
        }
        let tried = self.tried.len();
        self.tried.extend(self.endpoint.as_ref().map(|endpoint| endpoint.0.generation));
        if self.retry(rng) {
            return true;
        }
        self.tried.truncate(tried);
        self.retry(rng)
    }

    fn retry(&mut self, rng: &mut fastrand::Rng) -> bool {
        if self.attempts > CONNECT_RETRIES || !self.next_endpoint(rng) {
            self.endpoint = None;
            return false;
        }
        self.series.retries.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// Where to send it now; `None` once every attempt has failed.
    pub(crate) fn endpoint(&self) -> Option<&Arc<EndpointLoad>> {
        self.endpoint.as_ref().map(|endpoint| &endpoint.0)
    }

    /// The cluster it was routed to.
    pub(crate) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Its version.
    pub(crate) fn version(&self) -> &VersionLoad {
        &self.version.0
    }

    /// Endpoints it was given to.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counters of its version and gateway.
    pub(crate) fn series(&self) -> &Arc<Series> {
        &self.series
    }

    /// The refusal after all attempts to connect failed.
    pub(crate) fn unreachable(&self) -> Refusal {
        Refusal::Unreachable { cluster: self.cluster.config.name.clone(), attempts: self.attempts }
    }

    /// The refusal after an endpoint broke off.
    pub(crate) fn broken(&self) -> Refusal {
        Refusal::Broken(self.cluster.config.name.clone())
    }

    /// The refusal after an endpoint was silent for too long. It is counted.
    pub(crate) fn timed_out(&self) -> Refusal {
        self.series.timeouts.fetch_add(1, Ordering::Relaxed);
        Refusal::TimedOut(self.cluster.config.name.clone())
    }
}

/// The address of the endpoint that was tried last, for people.
pub(crate) fn address(journey: &Journey) -> Option<SocketAddr> {
    journey.address
}

/// One request counted in; counts it out when dropped, whatever the way.
#[derive(Debug)]
struct InFlight<T: Counted>(Arc<T>);

/// What has requests in flight.
pub(crate) trait Counted {
    /// Its counter.
    fn concurrency(&self) -> &crate::load::Concurrency;
}

impl Counted for VersionLoad {
    fn concurrency(&self) -> &crate::load::Concurrency {
        &self.concurrency
    }
}

impl Counted for EndpointLoad {
    fn concurrency(&self) -> &crate::load::Concurrency {
        &self.concurrency
    }
}

impl<T: Counted> InFlight<T> {
    fn start(load: Arc<T>) -> Self {
        load.concurrency().start(now_micros());
        Self(load)
    }
}

impl<T: Counted> Drop for InFlight<T> {
    fn drop(&mut self) {
        self.0.concurrency().end(now_micros());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        cluster::tests::{assignment, config},
        table::{Change, Live},
    };

    fn world(ports: &[(u16, Health)]) -> Live {
        use config::xds::route::{PathRule, RouteConfig, RouteEntry, VirtualHost};
        let live = Live::default();
        let entry = |path: &str, cluster: &str| RouteEntry {
            path: PathRule::Segments(path.into()),
            headers: vec![],
            clusters: vec![(cluster.into(), 1)],
        };
        let host = VirtualHost {
            domains: vec!["a.com".into()],
            routes: vec![entry("/shop", "shop/v1"), entry("/gone", "gone/v1")],
        };
        let routes = RouteConfig { name: "edge".into(), ignore_port: true, virtual_hosts: vec![host] };
        live.publish([
            Change::Cluster(config("shop/v1"), Some(Arc::new(assignment("shop/v1", ports)))),
            Change::Routes(Arc::new(routes)),
        ]);
        live
    }

    fn routed(live: &Live, config: &str, host: &str, path: &str) -> Result<Arc<Cluster>, Refusal> {
        let headers = HeaderMap::new();
        let head = Head { host, path, headers: &headers };
        route(&live.load(), config, head, &mut fastrand::Rng::with_seed(1))
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        let live = world(&[]);
        for (config, host, path, status, text) in [
            ("edge", "b.com", "/", 404, "no route for host b.com"),
            ("none", "a.com", "/", 404, "no route for host a.com"),
            ("edge", "a.com", "/x", 404, "no route for path /x"),
            ("edge", "a.com", "/gone", 503, "gone/v1 is not known to this proxy"),
        ] {
            let refusal = routed(&live, config, host, path).unwrap_err();
            assert_eq!((refusal.status().as_u16(), refusal.to_string().as_str()), (status, text));
        }
        let cluster = routed(&live, "edge", "a.com", "/shop/1").unwrap();
        let mut journey = Journey::new(cluster, &"edge".into());
        let refusal = journey.begin(&mut fastrand::Rng::with_seed(1)).unwrap_err();
        assert_eq!(refusal.to_string(), "no ready endpoint for shop/v1");
        assert_eq!(journey.series().no_endpoint.load(Ordering::Relaxed), 1);
        let long = Refusal::NoRoute("é".repeat(5_000)).to_string();
        assert!(long.chars().count() < 200);
    }

    #[test]
    fn connect_failures_go_to_other_endpoints_a_bounded_number_of_times() {
        for (endpoints, expected) in [(1_u16, 1), (2, 2), (9, 1 + CONNECT_RETRIES)] {
            let ports: Vec<_> = (1..=endpoints).map(|port| (port, Health::Ready)).collect();
            let live = world(&ports);
            let cluster = routed(&live, "edge", "a.com", "/shop").unwrap();
            let mut rng = fastrand::Rng::with_seed(4);
            let mut journey = Journey::new(Arc::clone(&cluster), &"edge".into());
            journey.begin(&mut rng).unwrap();
            let mut seen = vec![address(&journey).unwrap()];
            while journey.connect_failed(&mut rng) {
                let next = address(&journey).unwrap();
                assert!(!seen.contains(&next), "an endpoint was tried twice");
                seen.push(next);
                let busy: u32 = cluster.endpoints.iter().map(|e| e.load.concurrency.in_flight()).sum();
                assert_eq!(busy, 1, "only the endpoint being tried is busy");
            }
            assert_eq!((seen.len() as u32, journey.attempts()), (expected, expected));
            assert_eq!(journey.endpoint().map(|e| e.address), None);
            assert_eq!(address(&journey), seen.last().copied(), "the log says where it was last");
            assert_eq!(cluster.load.concurrency.in_flight(), 1);
            drop(journey);
            assert_eq!(cluster.load.concurrency.in_flight(), 0);
        }
    }

    #[test]
    fn a_request_that_may_have_been_received_is_repeated_once_on_fresh_connections() {
        for (how, expected) in
            [(Died::Fresh, 1), (Died::Reused, CONNECT_RETRIES), (Died::Unprocessed, CONNECT_RETRIES)]
        {
            let live = world(&[(1, Health::Ready), (2, Health::Ready)]);
            let cluster = routed(&live, "edge", "a.com", "/shop").unwrap();
            let mut rng = fastrand::Rng::with_seed(4);
            let mut journey = Journey::new(Arc::clone(&cluster), &"edge".into());
            journey.begin(&mut rng).unwrap();
            let first = address(&journey);
            let mut repetitions = 0;
            while journey.connection_died(how, &mut rng) {
                assert!(repetitions > 0 || address(&journey) != first, "another one is preferred");
                repetitions += 1;
            }
            assert_eq!(repetitions, expected, "{how:?}");
            assert!(cluster.endpoints.iter().all(|e| e.load.concurrency.in_flight() == 0));
        }
    }

    #[test]
    fn only_idempotent_methods_may_be_repeated() {
        assert!(is_idempotent(&Method::GET) && is_idempotent(&Method::DELETE));
        assert!(!is_idempotent(&Method::POST) && !is_idempotent(&Method::PATCH));
    }
}
