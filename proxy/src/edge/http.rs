//! The HTTP engine, on pingora-proxy. It only carries out what [`policy`] decides; the one place
//! that knows pingora's HTTP types.
//!
//! Limits are pingora's own where it has them: 256 fields a request head in HTTP/1, 64 KiB of headers
//! and 100 streams a connection in HTTP/2.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Version, header};
use pingora_core::{
    apps::HttpServerOptions,
    modules::http::HttpModules,
    protocols::{TcpKeepalive, http::v2::server::default_h2_options},
    server::{ShutdownWatch, configuration::ServerConf},
    upstreams::peer::HttpPeer,
};
use pingora_error::{Error, ErrorSource, ErrorType, Result, RetryType};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, HttpProxy, ProxyHttp, ProxyWarnLogContext, Session};

use super::{
    downstream::Downstream,
    policy::{self, Died, Head, Journey, Refusal},
};
use crate::{
    access_log::{self, Line},
    cluster::Cluster,
    load::{Aborted, EndpointLoad, now_micros},
    shared::{Shared, Taken},
};

/// How long an idle connection to an endpoint is kept.
const UPSTREAM_IDLE: Duration = Duration::from_secs(30);
/// Requests at once on one HTTP/2 connection to an endpoint.
const UPSTREAM_STREAMS: usize = 100;
/// How often HTTP/2 connections to endpoints are checked.
const UPSTREAM_PING: Duration = Duration::from_secs(10);
/// Idle connections to endpoints kept by one gateway, over all endpoints.
const POOL: usize = 8_192;
/// How long a client's HTTP/2 connection may be idle; HTTP/1 has pingora's 60 s.
const DOWNSTREAM_H2_IDLE: Duration = Duration::from_mins(1);

/// How long an endpoint may neither send nor take anything while a request is with it. What Envoy
/// allows a stream to be idle by default.
const UPSTREAM_SILENCE: Duration = Duration::from_mins(5);
/// How long an endpoint's machine may acknowledge nothing.
#[cfg(target_os = "linux")]
const UPSTREAM_UNACKNOWLEDGED: Duration = Duration::from_secs(15);
/// How long a client may take nothing of a response that waits for it.
const DOWNSTREAM_WRITE: Duration = Duration::from_mins(1);
/// How long the rest of a request body that nobody wants is read, to use the connection again.
const DOWNSTREAM_DRAIN: Duration = Duration::from_secs(10);

const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// One gateway's side of the engine.
pub(super) struct Engine {
    shared: Arc<Shared>,
    gateway: Arc<str>,
    /// Name of the route configuration; the listener may be given another one while running.
    route_config: Arc<ArcSwap<String>>,
    stopping: ShutdownWatch,
}

/// What is known of one request.
pub(super) struct Request {
    since: u64,
    journey: Option<Journey>,
    refusal: Option<Refusal>,
    /// It failed, and the client was told so in a response that is whole.
    told: bool,
    counted: bool,
    /// Its place among all requests in flight.
    taken: Option<Taken>,
}

impl Drop for Request {
    /// Counts a request that was cut off where it was, when the time to drain ran out.
    fn drop(&mut self) {
        if let Some(journey) = self.journey.take_if(|_| !self.counted) {
            let micros = now_micros().saturating_sub(self.since);
            journey.series().finished(0, micros, Some(Aborted::Timeout));
        }
    }
}

impl Engine {
    /// pingora's proxy around an engine.
    pub(super) fn build(
        shared: Arc<Shared>,
        gateway: Arc<str>,
        route_config: Arc<ArcSwap<String>>,
        stopping: ShutdownWatch,
    ) -> Arc<HttpProxy<Self>> {
        let conf = ServerConf {
            // The pool's bound is this times the number of threads.
            upstream_keepalive_pool_size: POOL,
            threads: 1,
            // The policy decides how often; this is only pingora's own bound above it.
            max_retries: 16,
            // No endpoint speaks TLS yet, so no roots of trust are needed. pingora would read the
            // machine's at every new listener, and panic where they are broken.
            ca_file: Some("/dev/null".to_owned()),
            ..ServerConf::default()
        };
        let engine = Self { shared, gateway, route_config, stopping };
        let mut proxy = HttpProxy::new(engine, Arc::new(conf));
        let mut options = HttpServerOptions::default();
        options.h2c = true;
        options.h2_idle_timeout = Some(DOWNSTREAM_H2_IDLE);
        proxy.server_options = Some(options);
        proxy.h2_options = Some(default_h2_options());
        proxy.handle_init_modules();
        Arc::new(proxy)
    }

    fn admit(&self, session: &Session, request: &mut Request) -> Result<(), Refusal> {
        request.taken = Some(self.shared.requests.admit().ok_or(Refusal::Overloaded)?);
        let head = session.req_header();
        let host = host(head);
        if host.is_empty() && head.version == Version::HTTP_11 {
            return Err(Refusal::NoHost);
        }
        let mut rng = fastrand::Rng::new();
        let asked = Head { host, path: head.uri.path(), headers: &head.headers };
        let route_config = self.route_config.load();
        let cluster = policy::route(&self.shared.live.load(), &route_config, asked, &mut rng)?;
        request.journey.insert(Journey::new(cluster, &self.gateway)).begin(&mut rng)
    }

    /// Counts the request out; once, whichever way it ended.
    fn finish(&self, session: &Session, request: &mut Request, error: Option<&Error>) {
        if std::mem::replace(&mut request.counted, true) {
            return;
        }
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let micros = now_micros().saturating_sub(request.since);
        let aborted = error.filter(|_| !request.told).map(why_aborted);
        let journey = request.journey.take();
        match &journey {
            Some(journey) => journey.series().finished(status, micros, aborted),
            None => self.shared.unrouted_of(&self.gateway).finished(status, micros, aborted),
        }
        if let Some(log) = &self.shared.access_log {
            let head = session.req_header();
            let empty = || Arc::<str>::from("");
            log.log(Line {
                time: access_log::now(),
                gateway: Arc::clone(&self.gateway),
                client: session.client_addr().map(ToString::to_string).unwrap_or_default(),
                method: access_log::cut(head.method.as_str()),
                host: access_log::cut(host(head)),
                path: access_log::cut(head.uri.path()),
                status,
                aborted,
                service: journey.as_ref().map_or_else(empty, |j| Arc::clone(&j.version().service)),
                version: journey.as_ref().map_or_else(empty, |j| Arc::clone(&j.version().version)),
                endpoint: journey.as_ref().and_then(policy::address).map(|address| address.to_string()),
                attempts: journey.as_ref().map_or(0, Journey::attempts),
                duration_ms: micros as f64 / 1e3,
                bytes_sent: session.body_bytes_sent() as u64,
            });
        }
    }
}

/// Who or what cut a response.
fn why_aborted(error: &Error) -> Aborted {
    match (error.etype(), error.esource()) {
        (ErrorType::ReadTimedout | ErrorType::WriteTimedout, _) => Aborted::Timeout,
        (_, ErrorSource::Downstream) => Aborted::Client,
        _ => Aborted::Upstream,
    }
}

/// What the client is told of an error that is not its endpoint's; `None` when it has gone.
fn refusal_of(error: &Error) -> Option<Refusal> {
    use ErrorType::{ConnectionClosed, HTTPStatus, ReadError, ReadTimedout, WriteError, WriteTimedout};
    match (error.esource(), error.etype()) {
        (ErrorSource::Downstream, WriteError | WriteTimedout | ReadError | ConnectionClosed) => None,
        (ErrorSource::Downstream, ReadTimedout) => Some(Refusal::SlowBody),
        (ErrorSource::Downstream, _) | (_, HTTPStatus(400..=499)) => Some(Refusal::BadRequest),
        _ => Some(Refusal::Internal),
    }
}

/// What the client is told of an error of its endpoint.
fn upstream_refusal(error: &Error, journey: &Journey) -> Refusal {
    match error.etype() {
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => journey.timed_out(),
        _ => journey.broken(),
    }
}

/// The host a request is for: of the target when it has one, else of the `Host` field (RFC 9112
/// §3.2.2, RFC 9113 §8.3.1).
fn host(head: &RequestHeader) -> &str {
    match head.uri.authority() {
        Some(authority) => authority.as_str().rsplit_once('@').map_or(authority.as_str(), |(_, host)| host),
        None => head.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or(""),
    }
}

fn peer(cluster: &Cluster, endpoint: &EndpointLoad) -> HttpPeer {
    let mut peer = HttpPeer::new(endpoint.address, false, String::new());
    // An endpoint that was removed and came back is not the one that is pooled.
    peer.group_key = endpoint.generation;
    let options = &mut peer.options;
    options.connection_timeout = Some(cluster.config.connect_timeout);
    options.total_connection_timeout = Some(cluster.config.connect_timeout);
    options.idle_timeout = Some(UPSTREAM_IDLE);
    options.read_timeout = Some(UPSTREAM_SILENCE);
    options.write_timeout = Some(UPSTREAM_SILENCE);
    if cluster.config.http2 {
        options.set_http_version(2, 2);
        options.max_h2_streams = UPSTREAM_STREAMS;
        options.h2_ping_interval = Some(UPSTREAM_PING);
    } else {
        options.set_http_version(1, 1);
    }
    options.tcp_keepalive = Some(TcpKeepalive {
        idle: Duration::from_mins(1),
        interval: Duration::from_secs(5),
        count: 5,
        #[cfg(target_os = "linux")]
        user_timeout: UPSTREAM_UNACKNOWLEDGED,
    });
    peer
}

async fn respond(session: &mut Session, refusal: &Refusal) -> Result<()> {
    let body = Bytes::from(format!("{refusal}\n"));
    let mut response = ResponseHeader::build(refusal.status(), Some(4))?;
    response.insert_header(header::CONTENT_TYPE, "text/plain")?;
    response.insert_header(header::CONTENT_LENGTH, body.len())?;
    let head_only = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(response), head_only).await?;
    if !head_only {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

#[async_trait]
impl ProxyHttp for Engine {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            since: now_micros(),
            journey: None,
            refusal: None,
            told: false,
            counted: false,
            taken: None,
        }
    }

    /// No modules: responses pass as they are.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    async fn early_request_filter(&self, session: &mut Session, _: &mut Request) -> Result<()> {
        let stream = session.stream().and_then(|stream| (**stream).as_any().downcast_ref::<Downstream>());
        if let Some(stream) = stream {
            stream.head_complete();
        }
        session.set_write_timeout(Some(DOWNSTREAM_WRITE));
        session.set_total_drain_timeout(Some(DOWNSTREAM_DRAIN));
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> Result<bool> {
        match self.admit(session, request) {
            Ok(()) => Ok(false),
            Err(refusal) => {
                respond(session, &refusal).await?;
                Ok(true)
            }
        }
    }

    async fn upstream_peer(&self, _: &mut Session, request: &mut Request) -> Result<Box<HttpPeer>> {
        let journey = request.journey.as_ref();
        let next = journey.and_then(|journey| Some((journey.cluster(), journey.endpoint()?)));
        match next {
            Some((cluster, endpoint)) => Ok(Box::new(peer(cluster, endpoint))),
            None => Err(Error::explain(ErrorType::InternalError, "no endpoint was picked")),
        }
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> Result<()> {
        if let Some(client) = session.client_addr().and_then(|address| address.as_inet()) {
            let mut list =
                upstream.headers.get_all(&FORWARDED_FOR).iter().fold(Vec::new(), |mut list, value| {
                    list.extend_from_slice(value.as_bytes());
                    list.extend_from_slice(b", ");
                    list
                });
            list.extend_from_slice(client.ip().to_canonical().to_string().as_bytes());
            if let Ok(value) = HeaderValue::from_bytes(&list) {
                upstream.insert_header(FORWARDED_FOR, value)?;
            }
        }
        upstream.insert_header(FORWARDED_PROTO, "http")?;
        // pingora drops `te` as hop-by-hop; gRPC servers insist on it (gRPC over HTTP/2, "Requests").
        let trailers = session.req_header().headers.get(header::TE).is_some_and(|te| te == "trailers");
        if trailers && request.journey.as_ref().is_some_and(|journey| journey.cluster().config.http2) {
            upstream.insert_header(header::TE, "trailers")?;
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        _: &mut ResponseHeader,
        _: &mut Request,
    ) -> Result<()> {
        if *self.stopping.borrow() {
            session.set_keepalive(None);
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        _: &mut Session,
        _: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let Some(journey) = &mut request.journey else { return error };
        let again = journey.connect_failed(&mut fastrand::Rng::new());
        if !again {
            request.refusal = Some(journey.unreachable());
        }
        error.set_retry(again);
        error
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        pooled: bool,
    ) -> Box<Error> {
        use ErrorType::{ConnectionClosed, ReadError, WriteError};
        // "Yes" comes for streams that the endpoint declared unprocessed (RFC 9113 §8.7).
        let unprocessed = matches!(error.retry, RetryType::Decided(true));
        let lost = *error.esource() == ErrorSource::Upstream
            && matches!(error.etype(), ConnectionClosed | ReadError | WriteError)
            && session.response_written().is_none();
        let how = match (unprocessed, pooled) {
            (true, _) => Died::Unprocessed,
            (false, true) => Died::Reused,
            // Repeated too: an endpoint that leaves may close a connection it has just accepted.
            (false, false) => Died::Fresh,
        };
        let repeatable = lost && policy::is_idempotent(&session.req_header().method);
        let replayable = !session.as_ref().retry_buffer_truncated();
        let journey = request.journey.as_mut();
        let again = (unprocessed || repeatable)
            && replayable
            && journey.is_some_and(|journey| journey.connection_died(how, &mut fastrand::Rng::new()));
        error.set_retry(again);
        if !again && *error.esource() == ErrorSource::Upstream {
            request.refusal = request.journey.as_ref().map(|journey| upstream_refusal(&error, journey));
        }
        error
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let refusal = request.refusal.take().or_else(|| refusal_of(error));
        session.set_keepalive(None);
        let mut error_code = 0;
        if let Some(refusal) = refusal {
            error_code = refusal.status().as_u16();
            // After a response has begun there is nothing to say but to break off.
            let begun = session.response_written().is_some_and(|r| !r.status.is_informational());
            if !begun {
                match respond(session, &refusal).await {
                    Ok(()) => request.told = true,
                    Err(error) => tracing::debug!("the client left before it could be told: {error}"),
                }
            }
        }
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        self.finish(session, request, error);
    }

    /// Counted in metrics and written to the access log, which say more.
    fn suppress_error_log(&self, _: &Session, _: &Request, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &Request, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_told_and_logged_by_its_source_and_kind() {
        use ErrorType::{ConnectionClosed, InvalidHTTPHeader, ReadError, ReadTimedout, WriteTimedout};
        for (kind, told, aborted) in [
            (ReadTimedout, Some(Refusal::SlowBody), Aborted::Timeout),
            (WriteTimedout, None, Aborted::Timeout),
            (ConnectionClosed, None, Aborted::Client),
            (InvalidHTTPHeader, Some(Refusal::BadRequest), Aborted::Client),
        ] {
            let error = Error::new_down(kind);
            assert_eq!((refusal_of(&error), why_aborted(&error)), (told, aborted), "{error}");
        }
        assert_eq!(Refusal::SlowBody.status(), 408);
        assert_eq!(refusal_of(&Error::new_in(ErrorType::InternalError)), Some(Refusal::Internal));
        assert_eq!(why_aborted(&Error::new_up(ReadTimedout)), Aborted::Timeout);
        assert_eq!(why_aborted(&Error::new_up(ReadError)), Aborted::Upstream);
    }

    #[test]
    fn a_request_that_is_cut_off_by_a_drain_is_counted() {
        use std::sync::atomic::Ordering;

        let load = Arc::new(crate::load::VersionLoad::new("shop/v1"));
        let cluster = Cluster::new(crate::cluster::tests::config("shop/v1"), Arc::clone(&load), None, None);
        let journey = Journey::new(Arc::new(cluster), &"edge".into());
        let series = Arc::clone(journey.series());
        drop(Request {
            since: now_micros(),
            journey: Some(journey),
            refusal: None,
            told: false,
            counted: false,
            taken: None,
        });
        assert_eq!(series.aborted[Aborted::Timeout as usize].load(Ordering::Relaxed), 1);
        assert_eq!(load.concurrency.in_flight(), 0);
    }

    #[test]
    fn a_silent_endpoint_is_not_waited_for_without_a_bound() {
        use std::sync::atomic::Ordering;

        use crate::cluster::tests::{assignment, config};
        let ports = [(1, config::Health::Ready)];
        let load = Arc::new(crate::load::VersionLoad::new("shop/v1"));
        let cluster = Cluster::new(config("shop/v1"), load, Some(&assignment("shop/v1", &ports)), None);
        let options = peer(&cluster, &cluster.endpoints[0].load).options;
        assert_eq!(options.read_timeout, Some(UPSTREAM_SILENCE));
        assert_eq!(options.write_timeout, Some(UPSTREAM_SILENCE));

        let journey = Journey::new(Arc::new(cluster), &"edge".into());
        let refusal = upstream_refusal(&Error::new_up(ErrorType::ReadTimedout), &journey);
        assert_eq!(
            (refusal.status().as_u16(), refusal.to_string().as_str()),
            (504, "an endpoint of shop/v1 did not answer in time")
        );
        assert_eq!(journey.series().timeouts.load(Ordering::Relaxed), 1);
        let broken = upstream_refusal(&Error::new_up(ErrorType::ReadError), &journey);
        assert_eq!(broken.status(), 502);
    }
}
