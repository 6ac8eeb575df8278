//! Clients and backends that speak HTTP/2 frame by frame, and backends of HTTP/1 that say what they are
//! told to, byte by byte.

use std::{future::Future, net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server::SendResponse};
use http::{HeaderMap, Request, Response};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinHandle,
};

use super::{
    ANY, DEADLINE,
    control::{self, Control},
};

/// Fails when it takes too long.
pub async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("in time")
}

/// A client's connection.
pub struct Client {
    pub send: client::SendRequest<Bytes>,
    /// Ends with the connection.
    pub connection: JoinHandle<Result<(), h2::Error>>,
}

impl Client {
    pub async fn open(to: SocketAddr) -> Self {
        // As many as the proxy will say that it takes, which has not come yet.
        Self::open_with(to, client::Builder::new().initial_max_send_streams(100)).await
    }

    pub async fn open_with(to: SocketAddr, builder: &client::Builder) -> Self {
        let stream = TcpStream::connect(to).await.unwrap();
        let (send, connection) = builder.handshake(stream).await.unwrap();
        Self { send, connection: tokio::spawn(connection) }
    }

    /// Sends a head. The stream is for the body, unless `ends`.
    pub async fn begin(
        &mut self,
        request: Request<()>,
        ends: bool,
    ) -> (client::ResponseFuture, SendStream<Bytes>) {
        soon(std::future::poll_fn(|cx| self.send.poll_ready(cx))).await.unwrap();
        self.send.send_request(request, ends).unwrap()
    }

    /// Sends all of a request, and reads all of its response.
    pub async fn ask(&mut self, request: Request<()>, body: &[u8]) -> Result<Answer, h2::Error> {
        let (response, mut stream) = self.begin(request, body.is_empty()).await;
        if !body.is_empty() {
            stream.send_data(Bytes::copy_from_slice(body), true)?;
        }
        Answer::read(soon(response).await?).await
    }
}

pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://a.com{path}")).body(()).unwrap()
}

pub fn post(path: &str) -> Request<()> {
    Request::post(format!("http://a.com{path}")).body(()).unwrap()
}

/// A response to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    pub async fn read(response: Response<RecvStream>) -> Result<Self, h2::Error> {
        let (head, mut stream) = response.into_parts();
        let (body, trailers) = soon(read(&mut stream)).await?;
        Ok(Self { status: head.status.as_u16(), headers: head.headers, body, trailers })
    }
}

/// All of a body.
pub async fn read(stream: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut body = Vec::new();
    while let Some(data) = stream.data().await {
        let data = data?;
        stream.flow_control().release_capacity(data.len())?;
        body.extend_from_slice(&data);
    }
    Ok((body, stream.trailers().await?))
}

/// Sends `data` as there is room; returns how much of it went before the stream ended.
pub async fn send_all(stream: &mut SendStream<Bytes>, mut data: Bytes, ends: bool) -> usize {
    let all = data.len();
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await else { break };
        let now = data.split_to(room.min(data.len()));
        let last = data.is_empty();
        if stream.send_data(now, ends && last).is_err() {
            break;
        }
    }
    all - data.len()
}

/// A backend of HTTP/2 whose requests `answer` gets. It ends when it is dropped.
pub struct Backend {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Backend {
    pub async fn start<F>(
        answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start_with(h2::server::Builder::new(), answer).await
    }

    pub async fn start_with<F>(
        builder: h2::server::Builder,
        answer: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = Arc::new(answer);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (builder, answer) = (builder.clone(), Arc::clone(&answer));
                connections.spawn(async move {
                    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
                    let mut streams = tokio::task::JoinSet::new();
                    while let Some(Ok((request, respond))) = connection.accept().await {
                        streams.spawn(answer(request, respond));
                    }
                });
            }
        });
        Self { address, task }
    }
}

/// Answers with what it got: body, trailers, and some of the fields.
pub async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let mut response = Response::builder().header("x-path", head.uri.path());
    for name in ["te", "x-forwarded-for", "x-forwarded-proto", "content-length", "expect"] {
        if let Some(value) = head.headers.get(name) {
            response = response.header(format!("seen-{name}"), value);
        }
    }
    if let Some(authority) = head.uri.authority() {
        response = response.header("seen-authority", authority.as_str());
    }
    let Ok((body, trailers)) = read(&mut body).await else { return };
    let ends = body.is_empty() && trailers.is_none();
    let Ok(mut stream) = respond.send_response(response.body(()).unwrap(), ends) else { return };
    if !ends {
        send_all(&mut stream, body.into(), trailers.is_none()).await;
        if let Some(trailers) = trailers {
            _ = stream.send_trailers(trailers);
        }
    }
}

/// A backend of HTTP/1 that hands each connection to `serve`.
pub async fn raw<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(ANY).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    address
}

/// Reads a head, and returns it with what came behind it.
pub async fn read_head(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let rest = bytes.split_off(end + 4);
            return (String::from_utf8(bytes).unwrap(), rest);
        }
        let n = stream.read_buf(&mut bytes).await.unwrap();
        assert!(n > 0, "closed within a head: {:?}", String::from_utf8_lossy(&bytes));
    }
}

/// Reads until `end` has come.
pub async fn read_until(stream: &mut TcpStream, mut bytes: Vec<u8>, end: &[u8]) -> Vec<u8> {
    while !bytes.ends_with(end) {
        let n = stream.read_buf(&mut bytes).await.unwrap();
        assert!(n > 0, "closed before {end:?}: {:?}", String::from_utf8_lossy(&bytes));
    }
    bytes
}

pub async fn write(stream: &mut TcpStream, bytes: impl AsRef<[u8]>) {
    stream.write_all(bytes.as_ref()).await.unwrap();
}

/// A proxy in front of endpoints that speak `protocol`.
pub async fn world(protocol: config::Protocol, addresses: &[SocketAddr]) -> super::World {
    let control = Control::start().await;
    control.set(super::shop(addresses));
    control.set([control::cluster("shop/v1", protocol)]);
    let proxy = super::Running::start(control.servers(), |settings| settings.threads = 1).await;
    let edge = proxy.listener("edge").await;
    control.acknowledged().await;
    super::World { control, proxy, edge }
}
