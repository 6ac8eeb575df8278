//! HTTP/1.1 to the API. Everything has a limit: time to connect, time to answer, size of an answer.

use std::{env, fmt, io, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use config::tls::ClientTls;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{
    HeaderMap, Method, Request, Response, StatusCode,
    body::Incoming,
    header::{AUTHORIZATION, CONTENT_TYPE, ETAG, IF_MATCH},
};
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use serde::{Serialize, de::DeserializeOwned};
use xds_server::api::types::{ErrorAnswer, ErrorBody};

use crate::{connection::Token, exit, exit::Invalid, process};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Over loopback an answer takes microseconds; a server that is this slow is as good as away.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The largest answer that is read: some hundred thousand endpoints.
const MAX_ANSWER_BYTES: usize = 64 << 20;
/// The longest line of a stream.
const MAX_LINE_BYTES: usize = 1 << 20;

/// Why a call did not work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// There is no server, or it went away, or it does not answer.
    #[error("cannot reach {api}: {cause}; is `sluicegate serve` running? --api or SLUICEGATE_API says where")]
    Unreachable {
        /// Where it was looked for.
        api: String,
        /// What happened instead.
        cause: String,
    },
    /// The server answered, and said no.
    #[error("{}", Refusal(.body))]
    Refused {
        /// Its status.
        status: StatusCode,
        /// Its reason.
        body: ErrorBody,
    },
    /// Something else listens there.
    #[error(
        "{api} does not speak Sluicegate's API ({what}); --api or SLUICEGATE_API says where the server is"
    )]
    Foreign {
        /// Where it was looked for.
        api: String,
        /// What it said.
        what: String,
    },
}

impl Error {
    /// The exit code that says so.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Unreachable { .. } => exit::UNREACHABLE,
            Self::Refused { status, .. } => match *status {
                StatusCode::BAD_REQUEST
                | StatusCode::UNPROCESSABLE_ENTITY
                | StatusCode::PAYLOAD_TOO_LARGE => exit::INVALID,
                _ => exit::FAILED,
            },
            Self::Foreign { .. } => exit::FAILED,
        }
    }

    /// Whether the server said this.
    pub(crate) fn is_status(&self, wanted: StatusCode) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}

/// A refusal for people: each fault with its place, or else the sentence that sums it up.
pub(crate) struct Refusal<'a>(pub(crate) &'a ErrorBody);

impl fmt::Display for Refusal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.details.split_first() {
            None => f.write_str(&self.0.message),
            Some((first, more)) => {
                write!(f, "{first}")?;
                more.iter().try_for_each(|detail| write!(f, "\n  {detail}"))
            }
        }
    }
}

/// A client of one API. Clones share connections.
#[derive(Clone)]
pub(crate) struct Client {
    /// Without a slash at the end.
    base: String,
    actor: String,
    token: Option<Token>,
    http: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    /// A client of the API at `api`, a URL or `host:port`, in the clear and with nothing to show.
    pub(crate) fn new(api: &str) -> anyhow::Result<Self> {
        Self::secure(api, None, None)
    }

    /// A client that shows `token`, and reaches an https `api` by `tls`.
    pub(crate) fn secure(api: &str, token: Option<Token>, tls: Option<&ClientTls>) -> anyhow::Result<Self> {
        let base = base_url(api)?;
        let uri: hyper::Uri = base.parse()?;
        let invalid = |why: String| Invalid(format!("--api {api}: {why}"));
        if token.is_some() {
            Token::check(&uri).map_err(invalid)?;
        }
        let config = match tls {
            Some(tls) => tls.read().map_err(|e| Invalid(e.to_string()))?,
            None if uri.scheme_str() == Some("https") => {
                let why = "which authorities to know it by is not said; name their certificates with --ca";
                return Err(invalid(why.to_owned()).into());
            }
            // Never used: the URL has no TLS.
            None => ClientTls::trusting_nobody()?,
        };
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        connector.enforce_http(false);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(connector);
        let http =
            legacy::Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(Self { base, actor: actor(), token, http })
    }

    /// A call, to be completed and sent.
    pub(crate) fn call(&self, method: Method, path: impl Into<String>) -> Call<'_> {
        Call {
            client: self,
            method,
            path: path.into(),
            query: Vec::new(),
            headers: HeaderMap::new(),
            body: Bytes::new(),
            patience: ANSWER_TIMEOUT,
        }
    }

    /// Reads `path`.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: impl Into<String>) -> Result<T, Error> {
        self.call(Method::GET, path).send().await?.json()
    }

    /// Where the API is.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    fn unreachable(&self, cause: impl Into<String>) -> Error {
        Error::Unreachable { api: self.base.clone(), cause: cause.into() }
    }

    fn foreign(&self, what: impl Into<String>) -> Error {
        Error::Foreign { api: self.base.clone(), what: what.into() }
    }
}

fn base_url(api: &str) -> anyhow::Result<String> {
    let invalid =
        |why: String| Invalid(format!("--api {api}: {why}; write for example http://127.0.0.1:18080"));
    let url = if api.contains("://") { api.to_owned() } else { format!("http://{api}") };
    let url = url.trim_end_matches('/').to_owned();
    let uri: hyper::Uri = url.parse().map_err(|e| invalid(format!("{e}")))?;
    match (uri.scheme_str(), uri.query()) {
        (Some("http" | "https"), None) => Ok(url),
        (Some("http" | "https"), Some(_)) => Err(invalid("a query has no place in it".to_owned()).into()),
        _ => Err(invalid("the API speaks http and https".to_owned()).into()),
    }
}

/// Who this is, for the timeline: `user@host`.
fn actor() -> String {
    let user =
        ["USER", "LOGNAME"].iter().find_map(|name| env::var(name).ok().filter(|user| !user.is_empty()));
    user.map_or_else(|| "sluicegate".to_owned(), |user| format!("{user}@{}", process::hostname()))
}

/// A call that is being put together.
pub(crate) struct Call<'a> {
    client: &'a Client,
    method: Method,
    path: String,
    query: Vec<String>,
    headers: HeaderMap,
    body: Bytes,
    patience: Duration,
}

impl Call<'_> {
    /// Adds `name=value` to the query; neither needs escaping.
    pub(crate) fn query(mut self, name: &str, value: impl fmt::Display) -> Self {
        self.query.push(format!("{name}={value}"));
        self
    }

    /// With a limit, answers only when all proxies have it, or when the limit is over.
    pub(crate) fn wait(mut self, limit: Option<Duration>) -> Self {
        let Some(limit) = limit else { return self };
        self.patience += limit;
        self.query("wait", "applied").query("timeout", format!("{}ms", limit.as_millis()))
    }

    /// Only if the object is still as it was when `etag` was read.
    pub(crate) fn if_match(mut self, etag: Option<&str>) -> Self {
        if let Some(etag) = etag.and_then(|etag| etag.parse().ok()) {
            self.headers.insert(IF_MATCH, etag);
        }
        self
    }

    /// With a JSON body.
    pub(crate) fn json(self, body: &impl Serialize) -> Self {
        self.body("application/json", body)
    }

    /// With a body that is JSON under another name.
    pub(crate) fn body(mut self, content_type: &'static str, body: &impl Serialize) -> Self {
        self.headers.insert(CONTENT_TYPE, content_type.parse().expect("a constant header value"));
        self.body = serde_json::to_vec(body).expect("the API's types are plain data").into();
        self
    }

    /// Sends it and reads the whole answer.
    pub(crate) async fn send(self) -> Result<Answer, Error> {
        let (client, patience) = (self.client, self.patience);
        let answer = async {
            let response = self.begin().await?;
            let etag = response.headers().get(ETAG).and_then(|v| v.to_str().ok()).map(str::to_owned);
            let body = read_all(client, response.into_body()).await?;
            Ok(Answer { api: client.base.clone(), etag, body })
        };
        within(client, patience, answer).await
    }

    /// Sends it and leaves the answer open, to be read by the line.
    pub(crate) async fn stream(self) -> Result<Lines, Error> {
        let (client, patience) = (self.client, self.patience);
        let response = within(client, patience, self.begin()).await?;
        Ok(Lines { client: client.clone(), body: response.into_body(), buffer: BytesMut::new() })
    }

    /// Sends it; a refusal is an error.
    async fn begin(self) -> Result<Response<Incoming>, Error> {
        let client = self.client;
        let separator = if self.query.is_empty() { "" } else { "?" };
        let uri = format!("{}{}{separator}{}", client.base, self.path, self.query.join("&"));
        let mut request = Request::builder().method(self.method).uri(uri).body(Full::new(self.body));
        if let Ok(request) = &mut request {
            request.headers_mut().extend(self.headers);
            let actor = client.actor.parse().unwrap_or_else(|_| "sluicegate".parse().expect("a constant"));
            request.headers_mut().insert("x-sluicegate-actor", actor);
            if let Some(token) = &client.token {
                request.headers_mut().insert(AUTHORIZATION, token.header());
            }
        }
        let request = request.map_err(|e| client.unreachable(e.to_string()))?;
        let response = client.http.request(request).await.map_err(|e| client.unreachable(root_cause(&e)))?;
        if response.status().is_success() { Ok(response) } else { Err(refusal(client, response).await) }
    }
}

/// A whole answer.
pub(crate) struct Answer {
    api: String,
    /// Its `ETag`, if it has one.
    pub(crate) etag: Option<String>,
    body: Bytes,
}

impl Answer {
    /// What it says.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_slice(&self.body)
            .map_err(|e| Error::Foreign { api: self.api.clone(), what: e.to_string() })
    }
}

/// An answer that stays open. Dropping it closes its connection.
pub(crate) struct Lines {
    client: Client,
    body: Incoming,
    buffer: BytesMut,
}

impl Lines {
    /// The next line, without its end; `None` when the server has ended the answer.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line = self.buffer.split_to(end).freeze();
                self.buffer.advance(1);
                return Ok(Some(line));
            }
            if self.buffer.len() > MAX_LINE_BYTES {
                return Err(self.client.foreign(format!("a line of more than {MAX_LINE_BYTES} bytes")));
            }
            let Some(frame) = self.body.frame().await else { return Ok(None) };
            let frame = frame.map_err(|e| self.client.unreachable(root_cause(&e)))?;
            if let Ok(data) = frame.into_data() {
                self.buffer.extend_from_slice(&data);
            }
        }
    }

    /// The next line, which has to come within `limit`.
    pub(crate) async fn next_within(&mut self, limit: Duration) -> Result<Option<Bytes>, Error> {
        let client = self.client.clone();
        within(&client, limit, self.next()).await
    }
}

async fn within<T>(
    client: &Client,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let late = |_| client.unreachable(format!("no answer within {} s", limit.as_secs_f64()));
    tokio::time::timeout(limit, work).await.map_err(late)?
}

async fn read_all(client: &Client, body: Incoming) -> Result<Bytes, Error> {
    let read = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    read.map(http_body_util::Collected::to_bytes).map_err(|e| client.unreachable(root_cause(&*e)))
}

async fn refusal(client: &Client, response: Response<Incoming>) -> Error {
    let status = response.status();
    match read_all(client, response.into_body()).await {
        Ok(body) => match serde_json::from_slice::<ErrorAnswer>(&body) {
            Ok(answer) => Error::Refused { status, body: answer.error },
            Err(_) => client.foreign(status.to_string()),
        },
        Err(error) => error,
    }
}

/// The innermost cause in few words: `connection refused`, not how many layers it passed.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    let Some(root) = causes.last() else { return error.to_string() };
    match root.downcast_ref::<io::Error>() {
        Some(io) if io.kind() != io::ErrorKind::Other => io.kind().to_string(),
        _ => root.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_url_with_or_without_its_scheme() {
        assert_eq!(base_url("127.0.0.1:18080").unwrap(), "http://127.0.0.1:18080");
        assert_eq!(base_url("http://[::1]:1/").unwrap(), "http://[::1]:1");
        assert_eq!(base_url("https://a:1").unwrap(), "https://a:1");
        for bad in ["ftp://a:1", "http://", "a b", "http://a?x=1", ""] {
            assert!(base_url(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_with_the_remedy() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let error = Client::new(&address).unwrap().get::<()>("/v1/services").await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("http://{address}: connection refused")), "{text}");
        assert!(text.contains("sluicegate serve") && text.contains("SLUICEGATE_API"), "{text}");
        assert_eq!(error.exit_code(), exit::UNREACHABLE);
    }
}
