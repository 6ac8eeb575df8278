//! Steady traffic over keep-alive connections, and a note of who answered each request when.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{HeaderMap, Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{MissedTickBehavior, interval, sleep, timeout},
};

use super::stage::POLL;

/// How many connections; each has one request in flight at a time.
pub(super) const CONNECTIONS: usize = 8;
/// Each connection sends one request in this time.
const PACE: Duration = Duration::from_millis(2);
/// A request that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(2);
const MAX_BODY_BYTES: usize = 64 << 10;

/// One request and what became of it.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) sent: Instant,
    pub(super) done: Instant,
    /// Who answered, or why nobody did.
    pub(super) outcome: Result<Answer, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) version: String,
    pub(super) instance: String,
}

impl Sample {
    pub(super) fn is_from(&self, instance: &str) -> bool {
        self.outcome.as_ref().is_ok_and(|answer| answer.instance == instance)
    }

    pub(super) fn is_version(&self, version: &str) -> bool {
        self.outcome.as_ref().is_ok_and(|answer| answer.version == version)
    }
}

/// Traffic that flows until this is dropped. It keeps every sample: some thousand a second, for the
/// seconds a demo lasts.
pub(super) struct Traffic {
    log: Arc<Mutex<Vec<Sample>>>,
    _connections: JoinSet<()>,
}

impl Traffic {
    /// Starts it, once one request has been answered.
    pub(super) async fn start(gateway: SocketAddr, limit: Duration) -> anyhow::Result<Self> {
        let deadline = Instant::now() + limit;
        loop {
            match Connection::open(gateway).await {
                Ok(mut connection) => match connection.request().await {
                    Ok(_) => break,
                    Err(why) if Instant::now() > deadline => bail!("no request is answered: {why}"),
                    Err(_) => {}
                },
                Err(why) if Instant::now() > deadline => bail!("no connection to the gateway: {why}"),
                Err(_) => {}
            }
            sleep(POLL).await;
        }
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut connections = JoinSet::new();
        for i in 0..CONNECTIONS {
            let log = log.clone();
            connections.spawn(async move {
                // Not all in the same instant.
                sleep(PACE.mul_f64(i as f64 / CONNECTIONS as f64)).await;
                send_steadily(gateway, &log).await;
            });
        }
        Ok(Self { log, _connections: connections })
    }

    /// Samples from here on are of what happens now.
    pub(super) fn mark(&self) -> usize {
        self.samples().len()
    }

    /// Waits for the first sample after `mark` for which `is_it` holds.
    pub(super) async fn first(
        &self,
        mark: usize,
        limit: Duration,
        is_it: impl Fn(&Sample) -> bool,
    ) -> Option<Sample> {
        let deadline = Instant::now() + limit;
        let mut seen = mark;
        loop {
            {
                let samples = self.samples();
                if let Some(found) = samples[seen..].iter().find(|s| is_it(s)) {
                    return Some(found.clone());
                }
                seen = samples.len();
            }
            if Instant::now() > deadline {
                return None;
            }
            sleep(POLL).await;
        }
    }

    /// The samples after `mark` for which `is_it` holds.
    pub(super) fn all(&self, mark: usize, is_it: impl Fn(&Sample) -> bool) -> Vec<Sample> {
        self.samples()[mark..].iter().filter(|s| is_it(s)).cloned().collect()
    }

    /// What became of the requests that were sent after `from`.
    pub(super) fn tally(&self, mark: usize, from: Instant) -> Tally {
        let mut tally = Tally::default();
        for sample in self.samples()[mark..].iter().filter(|s| s.sent >= from) {
            match &sample.outcome {
                Ok(answer) => {
                    *tally.versions.entry(answer.version.clone()).or_default() += 1;
                    *tally.instances.entry(answer.instance.clone()).or_default() += 1;
                }
                Err(_) => tally.failed += 1,
            }
        }
        tally
    }

    fn samples(&self) -> MutexGuard<'_, Vec<Sample>> {
        // A sample is pushed whole, so a panic elsewhere leaves nothing half done.
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts of a stretch of traffic.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) versions: BTreeMap<String, u64>,
    pub(super) instances: BTreeMap<String, u64>,
    pub(super) failed: u64,
}

impl Tally {
    pub(super) fn answered(&self) -> u64 {
        self.versions.values().sum()
    }

    /// The share of a version among what was answered, in percent.
    pub(super) fn share(&self, version: &str) -> f64 {
        let count = self.versions.get(version).copied().unwrap_or(0);
        100.0 * count as f64 / self.answered().max(1) as f64
    }
}

/// One connection's part: a request each [`PACE`], and a new connection when one breaks.
async fn send_steadily(gateway: SocketAddr, log: &Mutex<Vec<Sample>>) {
    let mut pace = interval(PACE);
    // A slow answer is not followed by a burst.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = None;
    loop {
        pace.tick().await;
        let sent = Instant::now();
        let outcome = async {
            let open = match connection.take() {
                Some(open) => open,
                None => Connection::open(gateway).await.map_err(|e| format!("{e:#}"))?,
            };
            let open = connection.insert(open);
            open.request().await.map_err(|e| format!("{e:#}"))
        };
        let outcome =
            timeout(PATIENCE, outcome).await.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        if outcome.is_err() {
            connection = None;
        }
        let sample = Sample { sent, done: Instant::now(), outcome };
        log.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }
}

/// A keep-alive connection to the gateway.
struct Connection {
    send: http1::SendRequest<Empty<Bytes>>,
    host: String,
    _task: JoinSet<()>,
}

impl Connection {
    async fn open(gateway: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(gateway).await?;
        stream.set_nodelay(true)?;
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let mut task = JoinSet::new();
        task.spawn(async move {
            // Its end shows at the next request.
            let _ = connection.await;
        });
        Ok(Self { send, host: gateway.to_string(), _task: task })
    }

    async fn request(&mut self) -> anyhow::Result<Answer> {
        self.send.ready().await?;
        let request = Request::get("/hello").header("host", &self.host).body(Empty::new())?;
        let response = self.send.send_request(request).await?;
        let (head, body) = response.into_parts();
        let body =
            Limited::new(body, MAX_BODY_BYTES).collect().await.map_err(|e| anyhow::anyhow!(e))?.to_bytes();
        if !head.status.is_success() {
            bail!("{}: {}", head.status, String::from_utf8_lossy(&body).trim());
        }
        let field =
            |name: &str| text(&head.headers, name).with_context(|| format!("an answer without {name}"));
        Ok(Answer { version: field("x-version")?, instance: field("x-instance")? })
    }
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    Some(headers.get(name)?.to_str().ok()?.to_owned())
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::echo::Instance;

    #[test]
    fn a_share_is_of_what_was_answered() {
        let tally =
            Tally { versions: [("v1".to_owned(), 90), ("v2".to_owned(), 10)].into(), ..Tally::default() };
        assert!((tally.share("v2") - 10.0).abs() < 1e-9);
        assert!(Tally::default().share("v2").abs() < 1e-9);
    }

    #[tokio::test]
    async fn traffic_notes_who_answered_and_what_failed() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let instance = Instance::new(&"v1".parse().unwrap(), &"a".parse().unwrap(), Duration::ZERO).unwrap();
        let stop = CancellationToken::new();
        let serving = tokio::spawn(Arc::new(instance).serve(listener, stop.clone()));

        let limit = Duration::from_secs(5);
        let began = Instant::now();
        let traffic = Traffic::start(address, limit).await.unwrap();
        let first = traffic.first(0, limit, |s| s.is_from("a") && s.is_version("v1")).await.unwrap();
        assert!(first.sent >= began && first.done >= first.sent);
        assert!(traffic.first(0, Duration::ZERO, |s| s.is_from("b")).await.is_none());

        stop.cancel();
        serving.await.unwrap();
        let mark = traffic.mark();
        assert!(traffic.first(mark, limit, |s| s.outcome.is_err()).await.is_some());
        let tally = traffic.tally(0, began);
        assert!(
            tally.answered() > 0 && tally.failed > 0 && (tally.share("v1") - 100.0).abs() < 1e-9,
            "{tally:?}"
        );
    }
}
