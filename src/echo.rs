//! `sluicegate echo`: a tiny HTTP/1.1 instance that says who it is.

use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use config::{ClusterName, EndpointId, ServiceName, VersionName, Zone};
use http_body_util::Full;
use hyper::{
    Request, Response, body::Incoming, header::HeaderValue, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use xds_server::api::types::EndpointBody;

use crate::{
    client::Client,
    connection::Connection,
    exit, flags,
    hold::{Registration, State},
    output,
    process::{self, Signals},
    register,
};

/// Connections served at once; more wait to be accepted.
const MAX_CONNECTIONS: usize = 10_000;
/// How long in-flight requests may take to finish when it stops.
const DRAIN: Duration = Duration::from_secs(30);

/// Run a tiny HTTP instance that answers every request with who it is; for trying things out
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate echo --version v1 --listen 127.0.0.1:9001
  sluicegate echo --version v2 --service checkout                registers itself
  sluicegate echo --version v2 --service checkout --delay 50ms --id slow-1"))]
pub(crate) struct Echo {
    /// What to answer in `x-version`
    #[arg(long, value_name = "VERSION")]
    version: VersionName,
    /// Where to listen; port 0 chooses a free one
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// How long every answer takes
    #[arg(long, value_parser = flags::duration, default_value = "0ms", value_name = "TIME")]
    delay: Duration,
    /// Register as an instance of this service for as long as this process lives
    #[arg(long)]
    service: Option<ServiceName>,
    /// What to answer in `x-instance`, and to register as [default: this host and process id]
    #[arg(long)]
    id: Option<EndpointId>,
    /// Failure domain to register
    #[arg(long, requires = "service")]
    zone: Option<Zone>,
    #[command(flatten)]
    connection: Connection,
    /// Stop when standard input ends, for parents that must not leave it behind
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
}

impl Echo {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let mut signals = Signals::new()?;
        let id = self.id.clone().map_or_else(register::default_id, Ok)?;
        let client = self.connection.client()?;
        let listener = TcpListener::bind(self.listen)
            .await
            .with_context(|| format!("cannot listen on {}", self.listen))?;
        let address = listener.local_addr()?;
        output::print(format_args!("listening on http://{address} as {} {id}\n", self.version))?;

        let instance = Arc::new(Instance::new(&self.version, &id, self.delay)?);
        let stop = CancellationToken::new();
        let serving = tokio::spawn(instance.serve(listener, stop.clone()));

        let registration = self.service.as_ref().map(|service| Registration {
            cluster: ClusterName::new(service.clone(), self.version.clone()),
            id,
            body: EndpointBody {
                address: address.to_string(),
                ttl: None,
                weight: None,
                zone: self.zone.clone(),
            },
        });
        let hold = hold(registration.as_ref(), &client);
        tokio::pin!(hold);
        tokio::select! {
            Err(error) = &mut hold => return Err(error),
            () = signals.next() => {}
            () = process::stdin_closed(self.until_stdin_closes) => {}
        }
        let finish = async {
            if let Some(registration) = &registration {
                registration.withdraw_and_say(&client).await;
            }
            stop.cancel();
            timeout(DRAIN, serving).await.context("some requests did not finish in time")??;
            Ok(())
        };
        tokio::select! {
            result = finish => result,
            () = signals.next() => anyhow::bail!("interrupted before all requests were finished"),
        }
    }
}

/// Holds the registration, if there is one; lines on stdout tell a parent process.
async fn hold(registration: Option<&Registration>, client: &Client) -> anyhow::Result<Infallible> {
    let Some(registration) = registration else { return std::future::pending().await };
    let never = registration.hold(client, |state| match state {
        State::Held(answer) => {
            // The parent may have stopped listening; the instance goes on.
            let _ =
                output::print(format_args!("registered {registration} at revision {}\n", answer.revision));
        }
        lost @ State::Lost(_) => register::say(registration, client, lost),
    });
    never.await.with_context(|| format!("cannot register {registration}"))
}

/// Who answers, and how.
pub(crate) struct Instance {
    version: HeaderValue,
    id: HeaderValue,
    greeting: String,
    delay: Duration,
}

impl Instance {
    pub(crate) fn new(version: &VersionName, id: &EndpointId, delay: Duration) -> anyhow::Result<Self> {
        Ok(Self {
            version: HeaderValue::from_str(version.as_str())?,
            id: HeaderValue::from_str(id.as_str())?,
            greeting: format!("{version} {id}"),
            delay,
        })
    }

    /// Serves until `stop`, then finishes what is in flight.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener, stop: CancellationToken) {
        let connections = TaskTracker::new();
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let accept = async {
                let permit = permits.clone().acquire_owned().await.expect("never closed");
                (listener.accept().await, permit)
            };
            match tokio::select! { () = stop.cancelled() => break, accepted = accept => accepted } {
                (Ok((stream, _)), permit) => {
                    let (instance, stop) = (self.clone(), stop.clone());
                    connections.spawn(async move {
                        instance.connection(stream, stop).await;
                        drop(permit);
                    });
                }
                // Out of descriptors, most likely: some come back as connections end.
                (Err(error), _) => {
                    tracing::warn!(%error, "cannot accept");
                    sleep(Duration::from_millis(10)).await;
                }
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    async fn connection(self: Arc<Self>, stream: TcpStream, stop: CancellationToken) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| {
            let instance = self.clone();
            async move { Ok::<_, Infallible>(instance.answer(&request).await) }
        });
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = &mut connection => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke");
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !self.delay.is_zero() {
            sleep(self.delay).await;
        }
        let body = format!("{} {}\n", self.greeting, request.uri().path());
        let mut response = Response::new(Full::new(Bytes::from(body)));
        response.headers_mut().insert("x-version", self.version.clone());
        response.headers_mut().insert("x-instance", self.id.clone());
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use hyper::Method;

    use super::*;
    use crate::client::Error;

    async fn instance(delay: Duration) -> (Client, CancellationToken, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Client::new(&listener.local_addr().unwrap().to_string()).unwrap();
        let instance = Instance::new(&"v1".parse().unwrap(), &"a".parse().unwrap(), delay).unwrap();
        let stop = CancellationToken::new();
        (client, stop.clone(), tokio::spawn(Arc::new(instance).serve(listener, stop)))
    }

    #[tokio::test]
    async fn an_answer_names_version_instance_and_path() {
        let (client, ..) = instance(Duration::ZERO).await;
        let mut lines = client.call(Method::GET, "/some/path").query("q", 1).stream().await.unwrap();
        assert_eq!(lines.next().await.unwrap().unwrap(), "v1 a /some/path");
    }

    #[tokio::test]
    async fn a_stop_finishes_what_is_in_flight_and_takes_nothing_new() {
        let delay = Duration::from_millis(100);
        let (client, stop, serving) = instance(delay).await;
        let began = Instant::now();
        let in_flight = async {
            let answer = client.call(Method::GET, "/").send().await;
            assert!(answer.is_ok() && began.elapsed() >= delay);
        };
        let stopping = async {
            sleep(delay / 2).await;
            stop.cancel();
        };
        tokio::join!(in_flight, stopping);
        serving.await.unwrap();
        let refused = client.call(Method::GET, "/").send().await;
        assert!(matches!(refused, Err(Error::Unreachable { .. })));
    }
}
