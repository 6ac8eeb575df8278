//! A whole server with its files in a directory of the test's own, and clients that show what they like.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use config::{
    CertificateFiles,
    bootstrap::{ServerSettings, ServerTls},
    tls::ClientTls,
};
use envoy_types::pb::envoy::{
    config::core::v3::Node,
    service::discovery::v3::{
        DeltaDiscoveryRequest, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use tokio_rustls::TlsConnector;
use xds_server::{Server, StartError};

/// How long anything may take before a test fails.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !holds().await {
        assert!(Instant::now() < deadline, "waited {SOON:?} for {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A directory that is removed with the test.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-access-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Writes a file whole, in one step.
    pub(crate) fn put(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        std::fs::write(self.at("beside"), content).unwrap();
        std::fs::rename(self.at("beside"), self.at(name)).unwrap();
        self.at(name)
    }

    pub(crate) fn pair(&self, name: &str) -> CertificateFiles {
        CertificateFiles { cert: self.at(&format!("{name}.pem")), key: self.at(&format!("{name}.key")) }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Somebody who issues certificates; its own is `<name>.pem`.
pub(crate) struct Authority<'s> {
    scratch: &'s Scratch,
    pub(crate) ca: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl<'s> Authority<'s> {
    pub(crate) fn new(scratch: &'s Scratch, name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let ca = scratch.put(&format!("{name}.pem"), issuer.pem());
        Self { scratch, ca, issuer }
    }

    /// A pair called `file`, for names: addresses, URIs or DNS names.
    pub(crate) fn issue(&self, file: &str, names: &[&str]) -> CertificateFiles {
        let (uris, names): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains("://"));
        let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.subject_alt_names.extend(uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap())));
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        self.scratch.put(&format!("{file}.key"), key.serialize_pem());
        self.scratch.put(&format!("{file}.pem"), certificate.pem());
        self.scratch.pair(file)
    }

    /// What a client starts TLS with that trusts this authority, and shows `certificate`.
    pub(crate) fn client(&self, certificate: Option<CertificateFiles>) -> ClientTls {
        ClientTls { ca: self.ca.clone(), certificate }
    }
}

pub(crate) fn settings(scratch: &Scratch) -> ServerSettings {
    let mut settings = ServerSettings::new(scratch.at("data"));
    settings.api_addr = "127.0.0.1:0".parse().unwrap();
    settings.xds_addr = settings.api_addr;
    settings
}

pub(crate) fn with_tls(certificate: CertificateFiles, client_ca: Option<&Path>) -> ServerTls {
    ServerTls { certificate, client_ca: client_ca.map(Path::to_owned) }
}

/// A server that runs until it is stopped.
pub(crate) struct Running {
    pub(crate) api: SocketAddr,
    pub(crate) xds: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), StartError>>,
}

/// An answer of the API.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// A request of the API.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) token: Option<&'a str>,
    pub(crate) tls: Option<&'a ClientTls>,
    pub(crate) headers: &'a str,
}

pub(crate) const NOTHING: Ask<'static> = Ask { token: None, tls: None, headers: "" };

impl<'a> Ask<'a> {
    pub(crate) fn token(token: &'a str) -> Self {
        Self { token: Some(token), ..NOTHING }
    }
}

impl Running {
    pub(crate) async fn start(settings: ServerSettings) -> Self {
        let server = Server::bind(settings).await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let (api, xds) = (server.api_addr(), server.xds_addr());
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self { api, xds, stop, served }
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }

    /// One request over a connection of its own; an error when there is none.
    pub(crate) async fn ask(
        &self,
        ask: Ask<'_>,
        method: &str,
        path: &str,
        body: &str,
    ) -> std::io::Result<Answer> {
        let token = ask.token.map(|token| format!("authorization: Bearer {token}\r\n")).unwrap_or_default();
        let host =
            if ask.headers.contains("host: ") { String::new() } else { format!("host: {}\r\n", self.api) };
        let request = format!(
            "{method} {path} HTTP/1.1\r\n{host}connection: close\r\n{token}{}content-length: {}\r\n\r\n{body}",
            ask.headers,
            body.len()
        );
        let stream = TcpStream::connect(self.api).await?;
        match ask.tls {
            None => exchange(stream, &request).await,
            Some(tls) => exchange(secure(stream, tls).await?, &request).await,
        }
    }

    /// The same, and its status.
    pub(crate) async fn status(&self, ask: Ask<'_>, method: &str, path: &str) -> u16 {
        let body = if path.ends_with("/split") { r#"{"weights": {"v1": 1}}"# } else { "" };
        self.ask(ask, method, path, body).await.unwrap().status
    }

    /// How often was refused because of `by`.
    pub(crate) async fn refused(&self, ask: Ask<'_>, by: &str) -> u64 {
        self.count(ask, &format!("sluicegate_xds_requests_refused_total{{by=\"{by}\"}} ")).await
    }

    /// How many of the files cannot be used as they are.
    pub(crate) async fn failing(&self, ask: Ask<'_>) -> u64 {
        self.count(ask, "sluicegate_xds_access_failing ").await
    }

    async fn count(&self, ask: Ask<'_>, series: &str) -> u64 {
        let metrics = self.ask(ask, "GET", "/metrics", "").await.unwrap().body;
        let line = metrics.lines().find_map(|line| line.strip_prefix(series));
        line.unwrap_or_else(|| panic!("no {series} in {metrics}")).parse().unwrap()
    }

    /// What the server says to a proxy called `node`: the names of the clusters it is sent first.
    pub(crate) async fn follow(
        &self,
        node: &str,
        tls: Option<&ClientTls>,
    ) -> Result<Vec<String>, tonic::Status> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let endpoint = tonic::transport::Endpoint::from_shared(format!("{scheme}://{}", self.xds)).unwrap();
        let channel = match tls {
            None => endpoint.connect().await,
            Some(tls) => {
                let connector = hyper_rustls::HttpsConnectorBuilder::new()
                    .with_tls_config(tls.read().unwrap())
                    .https_only()
                    .enable_http2()
                    .build();
                endpoint.connect_with_connector(connector).await
            }
        };
        let channel = channel.map_err(|error| tonic::Status::unavailable(format!("{error:?}")))?;
        let request = DeltaDiscoveryRequest {
            node: Some(Node { id: node.to_owned(), ..Node::default() }),
            type_url: "type.googleapis.com/envoy.config.cluster.v3.Cluster".to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        // Kept open: a client that has nothing more to say is still there.
        let (sender, requests) = tokio::sync::mpsc::channel(1);
        sender.send(request).await.unwrap();
        let requests = tokio_stream::wrappers::ReceiverStream::new(requests);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let mut responses = client.delta_aggregated_resources(requests).await?.into_inner();
        let response = tokio::time::timeout(SOON, responses.message()).await.expect("an answer")?;
        let resources = response.expect("a response before the end").resources;
        Ok(resources.into_iter().map(|resource| resource.name).collect())
    }
}

/// A connection with TLS, which has sent what it shows. Whether it is accepted, only reading tells.
pub(crate) async fn secure(
    stream: TcpStream,
    tls: &ClientTls,
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let connector = TlsConnector::from(Arc::new(tls.read().unwrap()));
    connector.connect(ServerName::try_from("127.0.0.1").unwrap(), stream).await
}

async fn exchange(mut stream: impl AsyncRead + AsyncWrite + Unpin, request: &str) -> std::io::Result<Answer> {
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let answer = String::from_utf8(answer).unwrap();
    let Some((head, body)) = answer.split_once("\r\n\r\n") else {
        return Err(std::io::Error::other("the connection closed without an answer"));
    };
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
