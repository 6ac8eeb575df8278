//! Real parts for the tests: an ADS server whose state the test sets by hand, backends that speak
//! HTTP, a proxy, and a client. Everything on port 0.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(unreachable_pub, reason = "shared by test programs as a module")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

pub mod backend;
pub mod control;
pub mod http2;
pub mod peer;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use config::bootstrap::ProxySettings;
use http_body_util::{BodyExt, Empty};
use hyper::{Request, Response, body::Incoming};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{net::TcpStream, sync::oneshot, task::JoinHandle};

/// Longest wait for anything that should happen.
pub const DEADLINE: Duration = Duration::from_secs(15);

/// Waits until `probe` gives a value.
pub async fn eventually<T>(what: &str, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = probe().await {
            return value;
        }
        assert!(Instant::now() < until, "not in {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Loopback, any free port.
pub const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// Gateway `edge`, all of it to `shop/v1` with the given endpoints.
pub fn shop(addresses: &[SocketAddr]) -> [(config::xds::ResourceType, String, Vec<u8>); 4] {
    [
        control::cluster("shop/v1", config::Protocol::Http),
        control::endpoints("shop/v1", addresses),
        control::listener("edge", ANY),
        control::routes("edge", "shop", &[("v1", 1)]),
    ]
}

/// A control plane that serves [`shop`], and a proxy that has applied it.
pub struct World {
    pub control: control::Control,
    pub proxy: Running,
    pub edge: SocketAddr,
}

impl World {
    pub async fn start(addresses: &[SocketAddr]) -> Self {
        let control = control::Control::start().await;
        control.set(shop(addresses));
        let proxy = Running::start(control.servers(), |_| {}).await;
        let edge = proxy.listener("edge").await;
        control.acknowledged().await;
        Self { control, proxy, edge }
    }
}

/// A path that is removed at the end.
pub struct Temporary {
    pub path: std::path::PathBuf,
}

/// A file of its own for a test.
pub fn temporary(name: &str) -> Temporary {
    let path =
        std::env::temp_dir().join(format!("sluicegate-{name}-{}-{}", std::process::id(), fastrand::u64(..)));
    Temporary { path }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.path);
    }
}

/// A proxy that runs.
pub struct Running {
    pub admin: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), proxy::StartError>>,
}

impl Running {
    /// A proxy that follows `servers`, with settings changed by `change`.
    pub async fn start(servers: Vec<String>, change: impl FnOnce(&mut ProxySettings)) -> Self {
        let mut settings = ProxySettings::new("test", servers);
        settings.admin_addr = ([127, 0, 0, 1], 0).into();
        settings.threads = 2;
        change(&mut settings);
        let proxy = proxy::Proxy::bind(settings).await.unwrap();
        let admin = proxy.admin_addr();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(proxy.serve(async move { _ = stopped.await }));
        Self { admin, stop: Some(stop), task }
    }

    /// Tells it to stop, without waiting.
    pub fn stop(&mut self) {
        drop(self.stop.take());
    }

    /// Waits until it has stopped.
    pub async fn stopped(mut self) {
        self.stop();
        tokio::time::timeout(DEADLINE, self.task).await.expect("stops in time").unwrap().unwrap();
    }

    /// JSON from the admin interface.
    pub async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&get(self.admin, "admin", path).await.unwrap().body).unwrap()
    }

    /// The value of one line of `/metrics` that starts with `name`; 0 when it is not there.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = get(self.admin, "admin", "/metrics").await.unwrap().text();
        let line = text.lines().find(|line| line.starts_with(&format!("sluicegate_proxy_{name}")));
        line.and_then(|l| l.rsplit(' ').next()).map_or(0.0, |value| value.parse().unwrap())
    }

    /// The bound address of a listener, once it is bound.
    pub async fn listener(&self, name: &str) -> SocketAddr {
        eventually(&format!("listener {name}"), async || self.listener_now(name).await).await
    }

    /// The bound address of a listener, if it is.
    pub async fn listener_now(&self, name: &str) -> Option<SocketAddr> {
        let listeners = self.json("/listeners").await;
        let listener = listeners.as_array().unwrap().iter().find(|l| l["name"] == name)?;
        Some(listener["address"].as_str().unwrap().parse().unwrap())
    }

    /// Waits until nothing is in flight on `cluster`: a request is counted out just after its last
    /// byte has left.
    pub async fn idle(&self, cluster: &str) {
        eventually("nothing in flight", async || (self.in_flight(cluster).await == 0).then_some(())).await;
    }

    /// Requests in flight on `cluster`, as `/clusters` tells.
    pub async fn in_flight(&self, cluster: &str) -> u64 {
        let clusters = self.json("/clusters").await;
        let found = clusters.as_array().unwrap().iter().find(|c| c["name"] == cluster);
        found.map_or(0, |c| c["in_flight"].as_u64().unwrap())
    }
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    pub async fn read(response: Response<Incoming>) -> Result<Self, hyper::Error> {
        let (head, body) = response.into_parts();
        Ok(Self {
            status: head.status.as_u16(),
            headers: head.headers,
            body: body.collect().await?.to_bytes(),
        })
    }
}

/// A GET on a connection of its own.
pub async fn get(
    to: SocketAddr,
    host: &str,
    path: &str,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    Connection::open(to).await?.get_soon(host, path).await
}

/// A client connection that is kept alive.
pub struct Connection {
    sender: hyper::client::conn::http1::SendRequest<Empty<Bytes>>,
}

impl Connection {
    pub async fn open(to: SocketAddr) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(to).await?;
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    pub async fn get(
        &mut self,
        host: &str,
        path: &str,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        let request = Request::get(path).header("host", host).body(Empty::new())?;
        let answer = async {
            self.sender.ready().await?;
            Answer::read(self.sender.send_request(request).await?).await
        };
        Ok(answer.await?)
    }

    /// Like [`Self::get`], and fails when the answer takes too long.
    pub async fn get_soon(
        &mut self,
        host: &str,
        path: &str,
    ) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
        tokio::time::timeout(DEADLINE, self.get(host, path)).await.expect("an answer in time")
    }

    /// Whether the proxy has closed it.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}
