//! A registration that lives as long as its connection, and comes back when the server does.

use std::{convert::Infallible, time::Duration};

use config::{ClusterName, EndpointId};
use hyper::{Method, StatusCode};
use tokio::time::{Instant, sleep};
use xds_server::api::types::{EndpointBody, ErrorAnswer, WriteAnswer};

use crate::{
    client::{Client, Error},
    delete::endpoint_path,
};

/// The server sends an empty line each second; after this long without one it is gone.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a registration must have lived for the next to be tried at once.
const STABLE: Duration = Duration::from_secs(1);
/// How long a withdrawal waits until every proxy has stopped sending requests.
const WITHDRAW_WAIT: Duration = Duration::from_secs(5);

/// An instance, and what to register it as.
pub(crate) struct Registration {
    /// Its version.
    pub(crate) cluster: ClusterName,
    /// Unique within the version.
    pub(crate) id: EndpointId,
    /// Where it listens, and the rest.
    pub(crate) body: EndpointBody,
}

/// What becomes of a registration while it is held.
pub(crate) enum State {
    /// The server has it.
    Held(WriteAnswer),
    /// The server does not have it, or may not; it is tried again. Said once a reason.
    Lost(String),
}

/// How a connection that held a registration ended.
enum Ended {
    /// It broke, or did not come about; the next may do better.
    Broke(Error),
    /// The server ended the registration: it was deleted, or another instance has its id.
    Over(Error),
}

impl Registration {
    /// Registers, and again whenever the connection is lost, until this is dropped. What the server
    /// refuses at the first try is an error; later it may be that the server is not what it was. It
    /// is an error too when the registration was deleted or taken over: coming back would undo it.
    ///
    /// Not polling this keeps the connection, and so the registration, but does not renew it.
    pub(crate) async fn hold(
        &self,
        client: &Client,
        mut tell: impl FnMut(State),
    ) -> Result<Infallible, Error> {
        let mut backoff = Backoff::new();
        let mut was_held = false;
        let mut said = String::new();
        loop {
            let began = Instant::now();
            let error = self.hold_once(client, |answer| {
                was_held = true;
                said.clear();
                tell(State::Held(answer));
            });
            let error = match error.await {
                Ended::Over(error) => return Err(error),
                Ended::Broke(error) if !was_held && is_final(&error) => return Err(error),
                Ended::Broke(error) => error,
            };
            let reason = error.to_string();
            if reason != said {
                tell(State::Lost(reason.clone()));
                said = reason;
            }
            if began.elapsed() > STABLE {
                backoff = Backoff::new();
            }
            sleep(backoff.next()).await;
        }
    }

    /// One connection, to its end; returns why it ended.
    async fn hold_once(&self, client: &Client, held: impl FnOnce(WriteAnswer)) -> Ended {
        let api = || client.base().to_owned();
        let gone = |cause: &str| Ended::Broke(Error::Unreachable { api: api(), cause: cause.to_owned() });
        let foreign =
            |what: serde_json::Error| Ended::Broke(Error::Foreign { api: api(), what: what.to_string() });
        let path = format!("{}/hold", endpoint_path(&self.cluster, &self.id));
        let call = client.call(Method::POST, path).json(&self.body);
        let mut lines = match call.stream().await {
            Ok(lines) => lines,
            Err(error) => return Ended::Broke(error),
        };
        match lines.next_within(SILENCE).await {
            Ok(Some(first)) => match serde_json::from_slice(&first) {
                Ok(answer) => held(answer),
                Err(error) => return foreign(error),
            },
            Ok(None) => return gone("the server ended the registration before it began"),
            Err(error) => return Ended::Broke(error),
        }
        loop {
            match lines.next_within(SILENCE).await {
                Ok(Some(line)) if line.trim_ascii().is_empty() => {}
                // Anything but a heartbeat says why the registration is over.
                Ok(Some(line)) => {
                    return match serde_json::from_slice::<ErrorAnswer>(&line) {
                        Ok(answer) => {
                            Ended::Over(Error::Refused { status: StatusCode::CONFLICT, body: answer.error })
                        }
                        Err(error) => foreign(error),
                    };
                }
                Ok(None) => return gone("the server ended the registration"),
                Err(error) => return Ended::Broke(error),
            }
        }
    }

    /// Takes the instance out of every proxy's choice; returns when no more requests will come.
    pub(crate) async fn withdraw(&self, client: &Client) -> Result<WriteAnswer, Error> {
        let path = endpoint_path(&self.cluster, &self.id);
        client.call(Method::DELETE, path).wait(Some(WITHDRAW_WAIT)).send().await?.json()
    }

    /// Withdraws, and says so; that the server is away is no reason not to stop.
    pub(crate) async fn withdraw_and_say(&self, client: &Client) {
        match self.withdraw(client).await {
            Ok(answer) => {
                let wait = answer.applied.map(|a| {
                    let ms = crate::output::millis(a.ms);
                    if a.complete {
                        format!("; every proxy knew after {ms}")
                    } else {
                        format!("; not every proxy knew after {ms}")
                    }
                });
                eprintln!("{self} withdrawn{}", wait.unwrap_or_default());
            }
            Err(error) => eprintln!("{self} could not be withdrawn: {error}"),
        }
    }
}

impl std::fmt::Display for Registration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.cluster, self.id)
    }
}

/// Whether trying again cannot help: the server understood and refuses.
fn is_final(error: &Error) -> bool {
    match error {
        Error::Refused { status, .. } => {
            status.is_client_error()
                && !matches!(*status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        }
        Error::Foreign { .. } => true,
        Error::Unreachable { .. } => false,
    }
}

/// Doubling pauses. Half of each is drawn by lot, so that the instances of a server that restarts do
/// not all come back in the same instant.
struct Backoff {
    pause: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(2);

    fn new() -> Self {
        Self { pause: Self::FIRST }
    }

    fn next(&mut self) -> Duration {
        let half = self.pause / 2;
        self.pause = (self.pause * 2).min(Self::LONGEST);
        half + half.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::sync::{Arc, Mutex};

    use crate::testing::{Reply, server};

    const ANSWER: &str = r#"{"revision":3,"changes":[]}"#;
    const NOT_FOUND: &str = r#"{"error":{"code":"not_found","message":"there is no service checkout"}}"#;

    fn registration() -> Registration {
        let body = EndpointBody { address: "127.0.0.1:9001".to_owned(), ttl: None, weight: None, zone: None };
        Registration { cluster: "checkout/v2".parse().unwrap(), id: "a".parse().unwrap(), body }
    }

    fn held() -> Reply {
        Reply::Open(ANSWER.to_owned(), Duration::from_millis(20))
    }

    fn refused() -> Reply {
        Reply::Whole("404 Not Found", NOT_FOUND.to_owned())
    }

    #[tokio::test]
    async fn a_registration_comes_back_when_its_connection_is_cut() {
        let (client, mut requests) = server(vec![held(), refused(), held()]).await;
        let states = Arc::new(Mutex::new(Vec::new()));
        let registration = registration();
        let hold = registration.hold(&client, |state| {
            states.lock().unwrap().push(matches!(state, State::Held(_)));
        });
        let third_request = async {
            for _ in 0..3 {
                let request = requests.recv().await.unwrap();
                assert!(
                    request.starts_with("POST /v1/services/checkout/versions/v2/endpoints/a/hold "),
                    "{request}"
                );
            }
            while states.lock().unwrap().len() < 4 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            Err(error) = hold => panic!("{error}"),
            () = third_request => {}
        }
        // Held, lost, refused (the server had forgotten the service for a moment), held.
        assert_eq!(*states.lock().unwrap(), [true, false, false, true]);
    }

    #[tokio::test]
    async fn a_registration_that_was_taken_over_does_not_come_back() {
        let taken = format!("{ANSWER}\n{}", NOT_FOUND.replace("not_found", "conflict"));
        let (client, _requests) = server(vec![Reply::Open(taken, Duration::from_secs(5))]).await;
        let Err(error) = registration().hold(&client, |_| {}).await;
        assert_eq!(error.exit_code(), crate::exit::FAILED);
    }

    #[tokio::test]
    async fn what_is_refused_at_the_first_try_is_an_error() {
        let (client, _requests) = server(vec![refused()]).await;
        let Err(error) = registration().hold(&client, |_| {}).await;
        assert_eq!(error.to_string(), "there is no service checkout");
    }

    #[test]
    fn pauses_grow_to_their_limit_and_no_further() {
        let mut backoff = Backoff::new();
        let pauses: Vec<Duration> = (0..10).map(|_| backoff.next()).collect();
        assert!(pauses[0] >= Backoff::FIRST / 2 && pauses[0] <= Backoff::FIRST, "{pauses:?}");
        assert!(pauses[9] >= Backoff::LONGEST / 2 && pauses[9] <= Backoff::LONGEST, "{pauses:?}");
    }
}
