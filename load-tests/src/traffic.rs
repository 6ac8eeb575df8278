//! Steady requests over kept connections, and what became of them.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::{net::TcpStream, task::JoinSet};

/// What became of the requests.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Outcome {
    /// Successes by the version that answered.
    pub versions: BTreeMap<String, u64>,
    /// What failed, with the first reasons.
    pub failures: u64,
    pub reasons: Vec<String>,
}

impl Outcome {
    pub fn requests(&self) -> u64 {
        self.versions.values().sum::<u64>() + self.failures
    }

    /// The share of `version` in percent.
    pub fn share(&self, version: &str) -> f64 {
        let of = self.versions.get(version).copied().unwrap_or(0);
        of as f64 * 100.0 / self.requests().max(1) as f64
    }

    fn add(&mut self, result: Result<String, String>) {
        match result {
            Ok(version) => *self.versions.entry(version).or_default() += 1,
            Err(reason) => {
                self.failures += 1;
                if self.reasons.len() < 10 {
                    self.reasons.push(reason);
                }
            }
        }
    }
}

/// Traffic that goes on until it is stopped.
pub struct Traffic {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    outcome: Arc<Mutex<Outcome>>,
    clients: JoinSet<()>,
}

impl Traffic {
    /// `connections` clients, each sending its next request when it has the answer to the last.
    pub fn start(to: SocketAddr, connections: usize) -> Self {
        Self::start_bounded(to, connections, u64::MAX)
    }

    fn start_bounded(to: SocketAddr, connections: usize, total: u64) -> Self {
        let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let outcome = Arc::new(Mutex::new(Outcome::default()));
        let mut clients = JoinSet::new();
        for _ in 0..connections {
            let (stop, sent, outcome) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&outcome));
            clients.spawn(async move {
                let mut client = Client::new(to);
                while !stop.load(Ordering::Relaxed) && sent.fetch_add(1, Ordering::Relaxed) < total {
                    let result = client.get("/").await;
                    outcome.lock().unwrap().add(result);
                }
            });
        }
        Self { stop, sent, outcome, clients }
    }

    /// Sends `total` requests and says what became of them.
    pub async fn run(to: SocketAddr, connections: usize, total: u64) -> Outcome {
        let traffic = Self::start_bounded(to, connections, total);
        traffic.finish().await
    }

    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    pub fn so_far(&self) -> Outcome {
        self.outcome.lock().unwrap().clone()
    }

    /// Waits for the answers on the way, and says what became of all.
    pub async fn stop(self) -> Outcome {
        self.stop.store(true, Ordering::Relaxed);
        self.finish().await
    }

    async fn finish(mut self) -> Outcome {
        while let Some(client) = self.clients.join_next().await {
            client.unwrap();
        }
        self.so_far()
    }
}

/// One client with one kept connection.
pub struct Client {
    to: SocketAddr,
    sender: Option<http1::SendRequest<Empty<Bytes>>>,
}

impl Client {
    pub fn new(to: SocketAddr) -> Self {
        Self { to, sender: None }
    }

    /// The version that answered, or what went wrong.
    pub async fn get(&mut self, path: &str) -> Result<String, String> {
        self.get_with(path, "shop.example.com", &[]).await
    }

    pub async fn get_with(
        &mut self,
        path: &str,
        host: &str,
        headers: &[(&str, &str)],
    ) -> Result<String, String> {
        let kept = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let mut sender = match kept {
            Some(sender) => sender,
            None => self.connect().await.map_err(|e| format!("connect: {e}"))?,
        };
        let mut request = Request::get(path).header(header::HOST, host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Empty::new()).unwrap();
        let response = sender.send_request(request).await.map_err(|e| format!("send: {e}"))?;
        let status = response.status();
        let version = response.headers().get("x-version").and_then(|v| v.to_str().ok()).map(str::to_owned);
        let body = response.into_body().collect().await.map_err(|e| format!("body: {e}"))?.to_bytes();
        self.sender = Some(sender);
        match version {
            Some(version) if status.is_success() => Ok(version),
            _ => Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim())),
        }
    }

    async fn connect(&self) -> anyhow::Result<http1::SendRequest<Empty<Bytes>>> {
        let stream = TcpStream::connect(self.to).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(sender)
    }
}
