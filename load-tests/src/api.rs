//! The API as a client sees it: JSON over one kept connection.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::{net::TcpStream, sync::Mutex};

type Sender = http1::SendRequest<Full<Bytes>>;

pub struct Api {
    address: SocketAddr,
    connection: Mutex<Option<Sender>>,
}

#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Value,
}

impl Answer {
    /// The body of a success.
    pub fn ok(self) -> Value {
        assert!(self.status.is_success(), "{}: {}", self.status, self.body);
        self.body
    }

    /// The sentence of a refusal.
    pub fn message(&self) -> &str {
        self.body["error"]["message"].as_str().unwrap_or_default()
    }
}

/// A registration that lives as long as this.
pub struct Hold {
    _sender: Sender,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        // Closes the socket.
        self.connection.abort();
    }
}

async fn connect(address: SocketAddr) -> anyhow::Result<(Sender, tokio::task::JoinHandle<()>)> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok((sender, connection))
}

fn request(method: Method, path: &str, content_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "sluicegate")
        .header(header::CONTENT_TYPE, content_type)
        .body(Full::new(body.into()))
        .unwrap()
}

impl Api {
    pub fn new(address: SocketAddr) -> Self {
        Self { address, connection: Mutex::new(None) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Sends one request; a connection that was closed meanwhile is opened again.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        content_type: &str,
        body: impl Into<Bytes>,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = request(method, path, content_type, body);
        let mut kept = self.connection.lock().await;
        let mut sender = match usable(kept.take()).await {
            Some(sender) => sender,
            None => connect(self.address).await?.0,
        };
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        *kept = Some(sender);
        Ok((status, body))
    }

    pub async fn json(&self, method: Method, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let (status, body) = self.send(method, path, "application/json", body).await.unwrap();
        let body = serde_json::from_slice(&body).unwrap_or_else(|e| panic!("{path}: {e}: {body:?}"));
        Answer { status, body }
    }

    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        let (_, body) = self.send(Method::GET, path, "", Bytes::new()).await?;
        Ok(String::from_utf8(body.to_vec())?)
    }

    /// The status of a GET; 0 when nobody answers.
    pub async fn status(&self, path: &str) -> u16 {
        self.send(Method::GET, path, "", Bytes::new()).await.map_or(0, |(status, _)| status.as_u16())
    }

    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(serde_json::from_str(&self.text(path).await?)?)
    }

    pub async fn get(&self, path: &str) -> Value {
        self.json(Method::GET, path, &Value::Null).await.ok()
    }

    pub async fn apply(&self, manifest: &str) -> Answer {
        self.apply_to("/v1/apply", manifest).await
    }

    pub async fn apply_to(&self, path: &str, manifest: &str) -> Answer {
        let sent = self.send(Method::POST, path, "application/yaml", manifest.to_owned()).await;
        let (status, body) = sent.unwrap();
        Answer { status, body: serde_json::from_slice(&body).unwrap() }
    }

    pub async fn split(&self, service: &str, weights: Value) -> Answer {
        self.json(Method::PUT, &format!("/v1/services/{service}/split"), &json!({"weights": weights})).await
    }

    pub async fn register(&self, cluster: &str, id: &str, address: SocketAddr) -> Answer {
        self.json(Method::PUT, &endpoint_path(cluster, id), &json!({"address": address.to_string()})).await
    }

    pub async fn remove(&self, cluster: &str, id: &str) -> Answer {
        self.json(Method::DELETE, &endpoint_path(cluster, id), &Value::Null).await
    }

    /// Registers an endpoint for as long as the returned [`Hold`] lives.
    pub async fn hold(&self, cluster: &str, id: &str, address: SocketAddr) -> Hold {
        let (mut sender, connection) = connect(self.address).await.unwrap();
        let path = format!("{}/hold", endpoint_path(cluster, id));
        let body = json!({"address": address.to_string()}).to_string();
        let response =
            sender.send_request(request(Method::POST, &path, "application/json", body)).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let mut body = response.into_body();
        let line = body.frame().await.unwrap().unwrap().into_data().unwrap();
        serde_json::from_slice::<Value>(&line).unwrap();
        tokio::spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
        Hold { _sender: sender, connection }
    }
}

/// The kept connection, unless the other side has closed it.
async fn usable(kept: Option<Sender>) -> Option<Sender> {
    let mut sender = kept?;
    sender.ready().await.ok()?;
    Some(sender)
}

/// The path of an endpoint of a cluster such as `shop/v1`.
pub fn endpoint_path(cluster: &str, id: &str) -> String {
    let (service, version) = cluster.split_once('/').unwrap();
    format!("/v1/services/{service}/versions/{version}/endpoints/{id}")
}

/// The sum of the samples of a series, in the text of `/metrics`; `name` may go on into the labels.
pub fn series(metrics: &str, name: &str) -> f64 {
    let samples = metrics.lines().filter(|line| line.starts_with(name));
    samples.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}
