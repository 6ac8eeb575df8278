//! What happens to a request: route → version → endpoint, what is tried again, what is counted.
//! Plain functions over a borrowed head; the same for every protocol.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
};

use config::{Health, xds::route::CONNECT_RETRIES};
use http::StatusCode;

use crate::{
    cluster::{Cluster, Endpoint},
    load::{
        Aborted, EndpointLoad, Series, VersionLoad, now_micros,
        shard::{Held, PerCore},
    },
    route::{Fields, NoRoute, RouteTable},
    shared::{Requests, Taken},
    table::RoutingTable,
};

/// The part of a request that decides where it goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a, F> {
    /// Host, with or without a port; empty when there is none.
    pub(crate) host: &'a str,
    /// Without the query.
    pub(crate) path: &'a str,
    pub(crate) fields: &'a F,
}

/// Why a request got its answer from the proxy. Displayed, it is the body of that answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
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
            Self::BadRequest => StatusCode::BAD_REQUEST,
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

/// Lets a request in: route, version draw, first endpoint. One table, so that they fit together.
///
/// # Errors
/// When it gets no further; a refusal for want of an endpoint is counted.
pub(crate) fn admit(
    table: &RoutingTable,
    routes: Option<&RouteTable>,
    requests: &Requests,
    gateway: &PerCore<Arc<str>>,
    head: &Head<'_, impl Fields>,
    since: u64,
) -> Result<Journey, Refused> {
    let taken = requests.admit().ok_or(Refused::from(Refusal::Overloaded))?;
    let mut rng = fastrand::Rng::new();
    let cluster = route(table, routes, head, &mut rng)?;
    let mut journey = Journey::new(cluster, gateway.hold(), taken, since);
    if journey.next_endpoint(&mut rng) {
        return Ok(journey);
    }
    journey.count(gateway, |series| _ = series.here().no_endpoint.fetch_add(1, Ordering::Relaxed));
    let refusal = Refusal::NoEndpoint(journey.cluster.config.name.clone());
    Err(Refused { refusal, journey: Some(Box::new(journey)) })
}

/// A request that was not let in; counted in its version if it got so far.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) refusal: Refusal,
    pub(crate) journey: Option<Box<Journey>>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, journey: None }
    }
}

/// The cluster that answers.
fn route(
    table: &RoutingTable,
    routes: Option<&RouteTable>,
    head: &Head<'_, impl Fields>,
    rng: &mut fastrand::Rng,
) -> Result<Held<Cluster>, Refusal> {
    let found = match routes {
        Some(routes) => routes.find(head.host, head.path, head.fields),
        None => Err(NoRoute::Host),
    };
    let split = found.map_err(|why| match why {
        NoRoute::Host => Refusal::UnknownHost(head.host.to_owned()),
        NoRoute::Path => Refusal::NoRoute(head.path.to_owned()),
    })?;
    let cluster = split.draw(rng).ok_or(Refusal::Internal)?;
    let known = table.cluster(cluster).map(PerCore::hold);
    known.ok_or_else(|| Refusal::NoCluster(cluster.to_string()))
}

/// Whether a request may be sent again although it may have been received once: only methods whose
/// repetition changes nothing (RFC 9110 §9.2.2).
pub(crate) fn is_idempotent(method: &str) -> bool {
    matches!(method, "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
}

/// A request under way: holds the cluster it was routed to, so that retries stay in the version and
/// the table they began with, and counts it in, until it is dropped or finished.
#[derive(Debug)]
pub(crate) struct Journey {
    cluster: Held<Cluster>,
    gateway: Held<Arc<str>>,
    /// When it began, in µs of [`now_micros`].
    since: u64,
    /// The part of the version's concurrency that it counts in; `None` once it is counted out.
    part: Option<usize>,
    /// The endpoint that has it now.
    endpoint: Option<u32>,
    /// Where it was sent last; also after the last attempt failed.
    last: Option<u32>,
    /// Generations of the endpoints that failed it.
    tried: Vec<u64>,
    attempts: u32,
    /// Whether it was sent again after a fresh connection died under it.
    repeated: bool,
    _taken: Taken,
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
    fn new(cluster: Held<Cluster>, gateway: Held<Arc<str>>, taken: Taken, since: u64) -> Self {
        let part = Some(cluster.load.concurrency.start(since));
        Self {
            cluster,
            gateway,
            since,
            part,
            endpoint: None,
            last: None,
            tried: Vec::new(),
            attempts: 0,
            repeated: false,
            _taken: taken,
        }
    }

    fn next_endpoint(&mut self, rng: &mut fastrand::Rng) -> bool {
        let now = if self.attempts == 0 { self.since } else { now_micros() };
        self.leave_endpoint(now); // counted out before the next one is compared
        let Some(picked) = self.cluster.pick(&self.tried, rng) else { return false };
        let endpoint: &Endpoint = self.cluster.endpoint(picked);
        debug_assert!(endpoint.health == Health::Ready, "only ready ones are candidates");
        endpoint.load.concurrency.start(now);
        endpoint.load.requests.fetch_add(1, Ordering::Relaxed);
        (self.endpoint, self.last) = (Some(picked), Some(picked));
        self.attempts += 1;
        true
    }

    fn leave_endpoint(&mut self, now: u64) {
        if let Some(endpoint) = self.endpoint.take() {
            self.cluster.endpoint(endpoint).load.concurrency.end(now);
        }
    }

    /// The endpoint that has it failed it.
    fn count_failed(&self) {
        if let Some(endpoint) = self.endpoint {
            self.cluster.endpoint(endpoint).load.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The endpoint could not be connected to, so nothing was sent: picks another one of the same
    /// version. `false` when none is left, or [`CONNECT_RETRIES`] others were tried.
    pub(crate) fn connect_failed(&mut self, gateway: &Arc<str>, rng: &mut fastrand::Rng) -> bool {
        self.count_failed();
        self.note_tried();
        self.retry(gateway, rng)
    }

    /// A connection was lost before any byte of a response. Another endpoint is preferred; but this
    /// one may be fine, so it is taken again when there is no other. `false` when the bound on
    /// attempts is reached, which is one repetition after fresh connections: what kills an endpoint
    /// must not be handed to all of them.
    pub(crate) fn connection_died(&mut self, how: Died, gateway: &Arc<str>, rng: &mut fastrand::Rng) -> bool {
        self.count_failed();
        if how == Died::Fresh && std::mem::replace(&mut self.repeated, true) {
            self.leave_endpoint(now_micros());
            return false;
        }
        let tried = self.tried.len();
        self.note_tried();
        if self.retry(gateway, rng) {
            return true;
        }
        self.tried.truncate(tried);
        self.retry(gateway, rng)
    }

    fn note_tried(&mut self) {
        self.tried.extend(self.last.map(|last| self.cluster.endpoint(last).load.generation));
    }

    fn retry(&mut self, gateway: &Arc<str>, rng: &mut fastrand::Rng) -> bool {
        if self.attempts > CONNECT_RETRIES || !self.next_endpoint(rng) {
            self.leave_endpoint(now_micros());
            return false;
        }
        self.count(gateway, |series| _ = series.here().retries.fetch_add(1, Ordering::Relaxed));
        true
    }

    /// Where to send it now; `None` once every attempt has failed.
    pub(crate) fn endpoint(&self) -> Option<&Arc<EndpointLoad>> {
        self.endpoint.map(|endpoint| &self.cluster.endpoint(endpoint).load)
    }

    /// The address of the endpoint that was tried last, for people.
    pub(crate) fn address(&self) -> Option<SocketAddr> {
        self.last.map(|last| self.cluster.endpoint(last).load.address)
    }

    /// The cluster it was routed to.
    pub(crate) fn cluster(&self) -> &Held<Cluster> {
        &self.cluster
    }

    /// Its version.
    pub(crate) fn version(&self) -> &VersionLoad {
        &self.cluster.load
    }

    /// Endpoints it was given to.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// Counts in the counters of its version and `gateway`.
    pub(crate) fn count(&self, gateway: &Arc<str>, count: impl FnOnce(&Series)) {
        self.cluster.load.count(gateway, count);
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
    pub(crate) fn timed_out(&self, gateway: &Arc<str>) -> Refusal {
        self.count(gateway, |series| _ = series.here().timeouts.fetch_add(1, Ordering::Relaxed));
        Refusal::TimedOut(self.cluster.config.name.clone())
    }

    /// It ended at `now` with `status` (0: none was sent).
    pub(crate) fn finish(mut self, gateway: &Arc<str>, status: u16, aborted: Option<Aborted>, now: u64) {
        let micros = now.saturating_sub(self.since);
        self.count(gateway, |series| series.finished(status, micros, aborted));
        // A client that leaves is no fault of the endpoint.
        if status >= 500 || matches!(aborted, Some(Aborted::Upstream | Aborted::Timeout)) {
            self.count_failed();
        }
        self.count_out(now);
    }

    fn count_out(&mut self, now: u64) {
        self.leave_endpoint(now);
        if let Some(part) = self.part.take() {
            self.cluster.load.concurrency.end(part, now);
        }
    }
}

impl Drop for Journey {
    /// Counted out, whatever the way. One that was not finished was cut off where it was, when the
    /// time to drain ran out.
    fn drop(&mut self) {
        if self.part.is_some() {
            let now = now_micros();
            let micros = now.saturating_sub(self.since);
            let cut = |series: &Series| series.finished(0, micros, Some(Aborted::Timeout));
            self.cluster.load.count(&self.gateway, cut);
            self.count_failed();
            self.count_out(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use config::xds::route::{PathRule, RouteConfig, RouteEntry, VirtualHost};
    use http::HeaderMap;

    use super::*;
    use crate::{
        cluster::tests::{assignment, config},
        shared::MAX_REQUESTS,
        table::{Change, Live},
    };

    fn world(ports: &[(u16, Health)]) -> Live {
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

    fn gateway() -> PerCore<Arc<str>> {
        PerCore::new("edge".into())
    }

    fn admitted(live: &Live, config: &str, host: &str, path: &str) -> Result<Journey, Refused> {
        let head = Head { host, path, fields: &HeaderMap::new() };
        let table = live.load();
        let routes = table.routes.get(config).map(|routes| &**routes);
        admit(&table, routes, &Requests::new(MAX_REQUESTS), &gateway(), &head, now_micros())
    }

    fn in_flight(live: &Live) -> (u32, u32) {
        let table = live.load();
        let cluster = table.clusters.get("shop/v1").unwrap();
        let endpoints = cluster.endpoints.iter().map(|e| e.load.concurrency.in_flight()).sum();
        (cluster.load.concurrency.in_flight(), endpoints)
    }

    #[test]
    fn a_refusal_says_what_is_wrong() {
        let live = world(&[]);
        for (config, host, path, status, text) in [
            ("edge", "b.com", "/", 404, "no route for host b.com"),
            ("none", "a.com", "/", 404, "no route for host a.com"),
            ("edge", "a.com", "/x", 404, "no route for path /x"),
            ("edge", "a.com", "/gone", 503, "gone/v1 is not known to this proxy"),
            ("edge", "a.com", "/shop/1", 503, "no ready endpoint for shop/v1"),
        ] {
            let refusal = admitted(&live, config, host, path).unwrap_err().refusal;
            assert_eq!((refusal.status().as_u16(), refusal.to_string().as_str()), (status, text));
        }
        let version = Arc::clone(&live.load().clusters.get("shop/v1").unwrap().load);
        assert_eq!(version.series(&gateway()).sum(|counts| &counts.no_endpoint), 1);
        let long = Refusal::NoRoute("é".repeat(5_000)).to_string();
        assert!(long.chars().count() < 200);
    }

    #[test]
    fn connect_failures_go_to_other_endpoints_a_bounded_number_of_times() {
        for (endpoints, expected) in [(1_u16, 1), (2, 2), (9, 1 + CONNECT_RETRIES)] {
            let ports: Vec<_> = (1..=endpoints).map(|port| (port, Health::Ready)).collect();
            let live = world(&ports);
            let mut rng = fastrand::Rng::with_seed(4);
            let mut journey = admitted(&live, "edge", "a.com", "/shop").unwrap();
            let mut seen = vec![journey.address().unwrap()];
            while journey.connect_failed(&gateway(), &mut rng) {
                let next = journey.address().unwrap();
                assert!(!seen.contains(&next), "an endpoint was tried twice");
                seen.push(next);
                assert_eq!(in_flight(&live), (1, 1), "only the endpoint being tried is busy");
            }
            assert_eq!((seen.len() as u32, journey.attempts()), (expected, expected));
            assert_eq!(journey.endpoint().map(|e| e.address), None);
            assert_eq!(journey.address(), seen.last().copied(), "the log says where it was last");
            assert_eq!(in_flight(&live), (1, 0));
            drop(journey);
            assert_eq!(in_flight(&live), (0, 0));
        }
    }

    #[test]
    fn a_request_that_may_have_been_received_is_repeated_once_on_fresh_connections() {
        for (how, expected) in
            [(Died::Fresh, 1), (Died::Reused, CONNECT_RETRIES), (Died::Unprocessed, CONNECT_RETRIES)]
        {
            let live = world(&[(1, Health::Ready), (2, Health::Ready)]);
            let mut rng = fastrand::Rng::with_seed(4);
            let mut journey = admitted(&live, "edge", "a.com", "/shop").unwrap();
            let first = journey.address();
            let mut repetitions = 0;
            while journey.connection_died(how, &gateway(), &mut rng) {
                assert!(repetitions > 0 || journey.address() != first, "another one is preferred");
                repetitions += 1;
            }
            assert_eq!(repetitions, expected, "{how:?}");
            assert_eq!(in_flight(&live), (1, 0));
        }
    }

    #[test]
    fn a_request_that_is_finished_is_counted_out_and_in_its_series() {
        let live = world(&[(1, Health::Ready)]);
        let journey = admitted(&live, "edge", "a.com", "/shop").unwrap();
        assert_eq!(in_flight(&live), (1, 1));
        let version = Arc::clone(&live.load().clusters.get("shop/v1").unwrap().load);
        journey.finish(&gateway(), 200, None, now_micros());
        assert_eq!(in_flight(&live), (0, 0));
        assert_eq!(version.series(&gateway()).sum(|counts| &counts.classes[2]), 1);
    }

    #[test]
    fn only_idempotent_methods_may_be_repeated() {
        assert!(is_idempotent("GET") && is_idempotent("DELETE"));
        assert!(!is_idempotent("POST") && !is_idempotent("PATCH") && !is_idempotent("get"));
    }
}
