//! A whole server in this process, driven by its HTTP API.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use config::bootstrap::ServerSettings;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tonic::transport::{Channel, Endpoint};
use xds_server::{Server, StartError};

use super::{CDS, Client, EDS, LDS, Mode, RDS, SOON};

/// Two versions that have a route, one that has none, and one that only [`super::quiet`] touches.
const MANIFEST: &str = "
kind: Service
name: shop
versions: {v1: {}, v2: {}}
split: {weights: {v1: 1, v2: 0}}
---
kind: Service
name: cart
versions: {v1: {}}
---
kind: Service
name: sentinel
versions: {v1: {}}
---
kind: Gateway
name: edge
listen: 127.0.0.1:8080
---
kind: Route
name: all
gateway: edge
rules: [{service: shop}]
";

/// A directory that is removed with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub struct World {
    pub api: SocketAddr,
    pub xds: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<Result<(), StartError>>>,
    scratch: Scratch,
    count: AtomicU32,
}

async fn bound(mut settings: ServerSettings, api: SocketAddr, xds: SocketAddr) -> Server {
    (settings.api_addr, settings.xds_addr) = (api, xds);
    let deadline = Instant::now() + SOON;
    // A server that was stopped closes its store on its own thread.
    loop {
        match Server::bind(settings.clone()).await {
            Err(StartError::Store(_)) if Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            bound => return bound.unwrap(),
        }
    }
}

impl World {
    /// A server that knows nothing.
    pub async fn empty() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluicegate-protocol-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        let mut world = Self {
            api: any,
            xds: any,
            stop: None,
            served: None,
            scratch: Scratch(path),
            count: AtomicU32::new(0),
        };
        world.serve().await;
        world
    }

    /// A server with clusters `cart/v1`, `sentinel/v1`, `shop/v1` and `shop/v2`, none of which has an
    /// endpoint, and a listener and a route configuration `edge`.
    pub async fn start() -> Self {
        let world = Self::empty().await;
        world.apply(MANIFEST).await;
        world
    }

    async fn serve(&mut self) {
        let settings = ServerSettings::new(self.scratch.0.join("data"));
        let server = bound(settings, self.api, self.xds).await;
        (self.api, self.xds) = (server.api_addr(), server.xds_addr());
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        self.served = Some(tokio::spawn(server.serve(async {
            let _ = stopped.await;
        })));
    }

    /// Stops and starts again with the same data and addresses.
    pub async fn restart(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.served.take().unwrap().await.unwrap().unwrap();
        self.serve().await;
    }

    /// A number that this world has not given before.
    pub fn next(&self) -> u32 {
        self.count.fetch_add(1, Ordering::Relaxed)
    }

    // ---- clients ----

    /// A connection of its own.
    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.xds)).unwrap();
        tokio::time::timeout(SOON, endpoint.connect()).await.unwrap().unwrap()
    }

    /// A client called `client`, on a connection of its own.
    pub async fn client(&self, mode: Mode) -> Client {
        Client::new(self.channel().await, mode, "client")
    }

    // ---- the API ----

    pub async fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.api).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            self.api,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tokio::time::timeout(SOON, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// Calls the API, which has to say yes.
    pub async fn done(&self, method: &str, path: &str, body: &str) -> Value {
        let (status, answer) = self.call(method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status}: {answer}");
        serde_json::from_str(&answer).unwrap_or_else(|e| panic!("{method} {path}: {e}: {answer}"))
    }

    pub async fn get(&self, path: &str) -> Value {
        self.done("GET", path, "").await
    }

    pub async fn metrics(&self) -> String {
        self.call("GET", "/metrics", "").await.1
    }

    pub async fn apply(&self, manifest: &str) {
        let (status, answer) = self.call("POST", "/v1/apply", manifest).await;
        assert_eq!(status, 200, "{answer}");
    }

    pub async fn delete(&self, kind: &str, name: &str) {
        self.done("DELETE", &format!("/v1/{kind}/{name}"), "").await;
    }

    fn endpoint(cluster: &str, id: &str) -> String {
        let (service, version) = cluster.split_once('/').unwrap();
        format!("/v1/services/{service}/versions/{version}/endpoints/{id}")
    }

    /// Puts an endpoint, at an address that nothing else has.
    pub async fn register(&self, cluster: &str, id: &str) {
        let number = self.next();
        let address = format!("10.{}.{}.1:80", number >> 8, number & 0xff);
        let body = json!({"address": address}).to_string();
        self.done("PUT", &Self::endpoint(cluster, id), &body).await;
    }

    pub async fn remove(&self, cluster: &str, id: &str) {
        self.done("DELETE", &Self::endpoint(cluster, id), "").await;
    }

    /// Changes the clusters of a service that has the one version `v1`.
    pub async fn protocol(&self, service: &str, protocol: &str) {
        let manifest =
            format!("kind: Service\nname: {service}\nprotocol: {protocol}\nversions: {{v1: {{}}}}\n");
        self.apply(&manifest).await;
    }

    /// The same, to a form that it never had.
    async fn server_name(&self, service: &str) {
        let (ca, number) = (self.scratch.0.join("ca.pem"), self.next());
        if !ca.exists() {
            let params = rcgen::CertificateParams::new(vec!["ca".to_owned()]).unwrap();
            let key = rcgen::KeyPair::generate().unwrap();
            std::fs::write(&ca, params.self_signed(&key).unwrap().pem()).unwrap();
        }
        let tls = format!("tls: {{ca: {}, sni: n{number}.internal}}", ca.display());
        self.apply(&format!("kind: Service\nname: {service}\n{tls}\nversions: {{v1: {{}}}}\n")).await;
    }

    pub async fn gateway(&self, name: &str) {
        let port = 20_000 + self.next();
        self.apply(&format!("kind: Gateway\nname: {name}\nlisten: 127.0.0.1:{port}\n")).await;
    }

    pub async fn service(&self, name: &str) {
        self.apply(&format!("kind: Service\nname: {name}\nversions: {{v1: {{}}}}\n")).await;
    }

    pub async fn split(&self, v1: u32, v2: u32) {
        let body = json!({"weights": {"v1": v1, "v2": v2}}).to_string();
        self.done("PUT", "/v1/services/shop/split", &body).await;
    }

    /// Changes the resource of this type that [`named`] names.
    pub async fn change(&self, kind: &str) {
        match kind {
            CDS => self.server_name("cart").await,
            EDS => self.register("cart/v1", &format!("e{}", self.next())).await,
            LDS => self.gateway("edge").await,
            RDS => self.split(1, self.next() + 1).await,
            other => panic!("{other}"),
        }
    }

    /// What the server says about the client called `client`.
    pub async fn proxy(&self) -> Value {
        let proxies = self.get("/v1/proxies").await;
        let of_client = |proxy: &&Value| proxy["node"] == "client";
        proxies["proxies"].as_array().unwrap().iter().find(of_client).cloned().unwrap_or_default()
    }
}

/// The name of the resource that [`World::change`] changes.
pub fn named(kind: &str) -> &'static str {
    if kind == CDS || kind == EDS { "cart/v1" } else { "edge" }
}
