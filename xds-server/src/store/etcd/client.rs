//! Calls to etcd: each with a deadline, on one connection to one member, another member after a failure.
//!
//! A failed connection is given up rather than waited for: after a partition, TCP alone may take
//! minutes to find out that the way is free again.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use config::etcd::EtcdUrl;
use http::uri::PathAndQuery;
use hyper_util::client::legacy::connect::HttpConnector;
use prost::Message;
use tokio_stream::Stream;
use tonic::{
    Code, Request, Status, Streaming,
    client::Grpc,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use super::wire::{
    AuthenticateRequest, AuthenticateResponse, LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest,
    LeaseKeepAliveResponse, RangeRequest, RangeResponse, TxnRequest, TxnResponse, WatchRequest,
    WatchResponse,
};

/// How long a member may take for a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// How long a member may take for an answer.
const ANSWER: Duration = Duration::from_secs(2);
/// How long the kernel goes on trying to deliver what was sent: a write that was answered as failed is
/// not to arrive when a partition heals, minutes later.
const UNDELIVERED: Duration = Duration::from_secs(4);
/// How large an answer may be, in bytes: etcd's own bound on what it holds is far below.
const MAX_ANSWER: usize = 1 << 30;

/// Why a call to etcd did not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody answered: it may have been done, or not.
    #[error("{0}")]
    Unavailable(String),
    /// etcd said no: it was not done, and asking again does not help.
    #[error("etcd refused: {0}")]
    Refused(String),
}

impl Failure {
    /// Nobody answered in time.
    pub(crate) fn late(after: Duration) -> Self {
        Self::Unavailable(format!("no member answered within {after:?}"))
    }
}

/// A client of one etcd cluster.
pub(crate) struct Client {
    url: EtcdUrl,
    current: Mutex<Current>,
}

/// The connection in use.
struct Current {
    /// Counts connections, so that of many calls that fail together only the first changes it.
    generation: u64,
    member: usize,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// A client that connects when it is first used. Call within a tokio runtime.
    pub(crate) fn new(url: EtcdUrl) -> Self {
        // Servers that start together spread over the members.
        let member = fastrand::usize(..url.members().len());
        let channel = channel(&url.members()[member]);
        Self { current: Mutex::new(Current { generation: 0, member, channel, token: None }), url }
    }

    /// The member in use, as `host:port`.
    pub(crate) fn member(&self) -> String {
        self.url.members()[self.lock().member].clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which connection is in use, for [`Client::give_up`].
    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// From now on a new connection, to the next member, unless `generation` is no longer in use.
    pub(crate) fn give_up(&self, generation: u64) {
        let mut current = self.lock();
        if current.generation == generation {
            current.member = (current.member + 1) % self.url.members().len();
            current.channel = channel(&self.url.members()[current.member]);
            current.token = None;
            current.generation += 1;
        }
    }

    pub(super) async fn range(&self, ask: RangeRequest) -> Result<RangeResponse, Failure> {
        self.unary("/etcdserverpb.KV/Range", ask).await
    }

    pub(super) async fn txn(&self, ask: TxnRequest) -> Result<TxnResponse, Failure> {
        self.unary("/etcdserverpb.KV/Txn", ask).await
    }

    pub(super) async fn grant(&self, ttl: i64) -> Result<LeaseGrantResponse, Failure> {
        self.unary("/etcdserverpb.Lease/LeaseGrant", LeaseGrantRequest { ttl }).await
    }

    /// Gives a lease its full term again; `false` when there is no such lease.
    pub(super) async fn keep_alive(&self, id: i64) -> Result<bool, Failure> {
        let ask = tokio_stream::once(LeaseKeepAliveRequest { id });
        let generation = self.generation();
        let call = async {
            let path = "/etcdserverpb.Lease/LeaseKeepAlive";
            let mut answers: Streaming<LeaseKeepAliveResponse> =
                self.streaming(generation, path, ask).await?;
            match answers.message().await {
                Ok(Some(answer)) => Ok(answer.ttl > 0),
                Ok(None) => Err(Failure::Unavailable("etcd ended the stream of renewals".to_owned())),
                Err(status) => Err(failure(&status)),
            }
        };
        self.in_time(generation, call).await
    }

    /// Opens a watch; the caller gives up the connection when it goes silent.
    pub(super) async fn watch(
        &self,
        asks: impl Stream<Item = WatchRequest> + Send + 'static,
    ) -> Result<Streaming<WatchResponse>, Failure> {
        let generation = self.generation();
        let opened = self.streaming(generation, "/etcdserverpb.Watch/Watch", asks);
        tokio::time::timeout(ANSWER, opened).await.unwrap_or_else(|_| Err(self.late()))
    }

    /// One call with a deadline. After silence or a broken connection the next call has a new one.
    async fn in_time<T>(
        &self,
        generation: u64,
        call: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let result = tokio::time::timeout(ANSWER, call).await;
        let result = result.unwrap_or_else(|_| Err(self.late()));
        if matches!(result, Err(Failure::Unavailable(_))) {
            self.give_up(generation);
        }
        result
    }

    fn late(&self) -> Failure {
        Failure::Unavailable(format!("{} did not answer within {ANSWER:?}", self.member()))
    }

    async fn unary<Q, A>(&self, path: &'static str, ask: Q) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let generation = self.generation();
        let call = async {
            let mut anew = false;
            loop {
                let (mut grpc, request) = self.prepare(ask.clone()).await?;
                ready(&mut grpc).await?;
                let codec = ProstCodec::<Q, A>::default();
                match grpc.unary(request, PathAndQuery::from_static(path), codec).await {
                    Ok(answer) => return Ok(answer.into_inner()),
                    // Tokens end; once, a new one is asked for.
                    Err(status) if self.forget_token(generation, &status) && !anew => anew = true,
                    Err(status) => return Err(failure(&status)),
                }
            }
        };
        self.in_time(generation, call).await
    }

    async fn streaming<Q, A>(
        &self,
        generation: u64,
        path: &'static str,
        asks: impl Stream<Item = Q> + Send + 'static,
    ) -> Result<Streaming<A>, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let (mut grpc, request) = self.prepare(asks).await?;
        ready(&mut grpc).await?;
        let codec = ProstCodec::<Q, A>::default();
        match grpc.streaming(request, PathAndQuery::from_static(path), codec).await {
            Ok(answers) => Ok(answers.into_inner()),
            Err(status) => {
                self.forget_token(generation, &status);
                Err(failure(&status))
            }
        }
    }

    /// The connection, and a request with what etcd wants to see.
    async fn prepare<Q>(&self, ask: Q) -> Result<(Grpc<Channel>, Request<Q>), Failure> {
        let (channel, token) = {
            let current = self.lock();
            (current.channel.clone(), current.token.clone())
        };
        let mut grpc = Grpc::new(channel).max_decoding_message_size(MAX_ANSWER);
        let token = match (token, self.url.login()) {
            (None, Some((name, password))) => Some(self.login(&mut grpc, name, password).await?),
            (token, _) => token,
        };
        let mut request = Request::new(ask);
        // A member that has lost the others says so instead of going on with what is old.
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        if let Some(token) = token {
            request.metadata_mut().insert("token", token);
        }
        Ok((grpc, request))
    }

    async fn login(
        &self,
        grpc: &mut Grpc<Channel>,
        name: &str,
        password: &str,
    ) -> Result<MetadataValue<Ascii>, Failure> {
        ready(grpc).await?;
        let ask = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
        let codec = ProstCodec::<AuthenticateRequest, AuthenticateResponse>::default();
        let path = PathAndQuery::from_static("/etcdserverpb.Auth/Authenticate");
        let answer = grpc.unary(Request::new(ask), path, codec).await.map_err(|status| failure(&status))?;
        let token = answer.into_inner().token;
        let mut token: MetadataValue<Ascii> =
            token.parse().map_err(|_| Failure::Refused("its token is no header value".to_owned()))?;
        token.set_sensitive(true);
        self.lock().token = Some(token.clone());
        Ok(token)
    }

    /// Whether a call failed for its token, which is then forgotten.
    fn forget_token(&self, generation: u64, status: &Status) -> bool {
        let mut current = self.lock();
        let ours = current.generation == generation && current.token.is_some();
        let ended = status.code() == Code::Unauthenticated && ours;
        if ended {
            current.token = None;
        }
        ended
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Failure> {
    grpc.ready().await.map_err(|e| Failure::Unavailable(with_causes(&e)))
}

fn channel(member: &str) -> Channel {
    let uri = format!("http://{member}");
    // A member is a host and a port, which is a URI; should one not be, nobody answers there.
    let endpoint = Endpoint::from_shared(uri).unwrap_or_else(|_| Endpoint::from_static("http://0.0.0.0:1"));
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(CONNECT));
    connector.set_tcp_user_timeout(Some(UNDELIVERED));
    endpoint.connect_timeout(CONNECT).connect_with_connector_lazy(connector)
}

/// Whether etcd said no, or nobody knows (`api/v3rpc/rpctypes/error.go` of etcd: what a member cannot
/// do for lack of the others is `Unavailable`).
fn failure(status: &Status) -> Failure {
    match status.code() {
        Code::InvalidArgument
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::NotFound
        | Code::AlreadyExists
        | Code::OutOfRange
        | Code::Unimplemented => Failure::Refused(status.message().to_owned()),
        _ => Failure::Unavailable(with_causes(status)),
    }
}

/// An error with what caused it: tonic's own words are `transport error`.
fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = match error.downcast_ref::<Status>() {
        Some(status) => status.message().to_owned(),
        None => error.to_string(),
    };
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
