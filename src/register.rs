//! `sluicegate register`: runs an instance and keeps it registered for as long as it lives.

use std::{
    ffi::OsString, net::SocketAddr, os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration,
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use config::{ClusterName, EndpointId, ServiceName, VersionName, Zone, endpoint::MAX_ENDPOINT_WEIGHT};
use tokio::{
    net::TcpStream,
    process::{Child, Command},
    time::{sleep, timeout},
};
use xds_server::api::types::EndpointBody;

use crate::{
    client::{self, Client},
    connection::{self, Connection},
    exit::{self, Invalid},
    flags,
    hold::{Registration, State},
    process::{self, Signals},
};

/// How often the address is tried until it answers.
const READY_POLL: Duration = Duration::from_millis(10);
/// One try to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// How long the app may take to stop when its registration has failed.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Run an app and keep it registered: it gets traffic when it answers, and none before it stops
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate register checkout v2 --address 127.0.0.1:9001 -- ./my-app --port 9001
  sluicegate register checkout v2 --address localhost:9001       an app that runs already
  sluicegate register checkout v2 --address 10.0.0.7:80 --id pod-7 --zone b -- ./my-app

On SIGTERM or SIGINT the instance is first taken out of every proxy's choice, and then told to stop,
so that no request is lost. A second signal kills it. A server that is away is no reason to stop the
app: registering is tried again until it works.", "\nWith an app: its exit code, or 128 + the signal that ended it.\nWithout an app: it is registered at once, whether it answers or not."))]
pub(crate) struct Register {
    /// The service
    service: ServiceName,
    /// The version this is an instance of
    version: VersionName,
    /// Where the instance listens; a name is resolved here
    #[arg(long, value_name = "HOST:PORT")]
    address: String,
    /// Unique within the version [default: this host and process id]
    #[arg(long)]
    id: Option<EndpointId>,
    /// Failure domain
    #[arg(long)]
    zone: Option<Zone>,
    /// Share relative to the other endpoints of the version
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_ENDPOINT_WEIGHT)))]
    weight: Option<u32>,
    /// How long the app may take until it accepts connections
    #[arg(long, value_parser = flags::duration, default_value = "60s", value_name = "TIME")]
    ready_timeout: Duration,
    #[command(flatten)]
    connection: Connection,
    /// The app and its arguments
    #[arg(last = true, value_name = "APP")]
    app: Vec<OsString>,
}

impl Register {
    pub(crate) async fn run(self) -> anyhow::Result<u8> {
        let client = self.connection.client()?;
        let addresses = resolve(&self.address).await?;
        // Before the app is started, so that no signal finds it without its keeper.
        let signals = Signals::new()?;
        match self.app.split_first() {
            Some((program, arguments)) => {
                let app = start(program, arguments)?;
                self.keep(&client, app, &addresses, signals).await
            }
            None => self.hold_only(&client, addresses[0], signals).await,
        }
    }

    /// The app's whole life: until it answers, registered, withdrawn, stopped.
    async fn keep(
        &self,
        client: &Client,
        mut app: Child,
        addresses: &[SocketAddr],
        mut signals: Signals,
    ) -> anyhow::Result<u8> {
        let address = tokio::select! {
            biased;
            () = signals.next() => return pass_on_stop(app, signals).await,
            status = app.wait() => {
                bail!("the app ended ({}) before it accepted a connection at {}", status?, self.address)
            }
            address = first_to_answer(addresses) => address,
            () = sleep(self.ready_timeout) => {
                process::stop(&mut app, STOP_PATIENCE).await?;
                bail!(
                    "nothing accepted a connection at {} within {} s; is it what the app listens on? --ready-timeout gives it longer",
                    self.address,
                    self.ready_timeout.as_secs_f64()
                )
            }
        };
        let registration = self.registration(address)?;
        let hold = registration.hold(client, |state| say(&registration, client, state));
        tokio::pin!(hold);
        tokio::select! {
            // Its registration ends with this process, at the latest; at once when `hold` is dropped.
            status = app.wait() => Ok(exit_code(status?)),
            Err(error) = &mut hold => {
                process::stop(&mut app, STOP_PATIENCE).await?;
                Err(refused(error, &registration))
            }
            () = signals.next() => {
                // `hold` is kept, but no longer polled: it must not bring back what is withdrawn.
                tokio::select! {
                    () = registration.withdraw_and_say(client) => {}
                    () = signals.next() => return kill(app).await,
                    status = app.wait() => return Ok(exit_code(status?)),
                }
                pass_on_stop(app, signals).await
            }
        }
    }

    async fn hold_only(
        &self,
        client: &Client,
        address: SocketAddr,
        mut signals: Signals,
    ) -> anyhow::Result<u8> {
        let registration = self.registration(address)?;
        let hold = registration.hold(client, |state| say(&registration, client, state));
        tokio::pin!(hold);
        tokio::select! {
            Err(error) = &mut hold => Err(refused(error, &registration)),
            () = signals.next() => {
                tokio::select! {
                    () = registration.withdraw_and_say(client) => Ok(exit::OK),
                    () = signals.next() => bail!("interrupted before every proxy knew"),
                }
            }
        }
    }

    fn registration(&self, address: SocketAddr) -> anyhow::Result<Registration> {
        let id = match &self.id {
            Some(id) => id.clone(),
            None => default_id()?,
        };
        let body = EndpointBody {
            address: address.to_string(),
            ttl: None,
            weight: self.weight,
            zone: self.zone.clone(),
        };
        Ok(Registration { cluster: ClusterName::new(self.service.clone(), self.version.clone()), id, body })
    }
}

/// `host-4711`: unique on one machine, and across machines as far as their names are.
pub(crate) fn default_id() -> anyhow::Result<EndpointId> {
    let name = format!("{}-{}", process::hostname(), std::process::id());
    name.parse().map_err(|e| anyhow!("this host's name makes no endpoint id ({e}); name it with --id"))
}

/// Says on stderr what becomes of a registration.
pub(crate) fn say(registration: &Registration, client: &Client, state: State) {
    match state {
        State::Held(answer) => eprintln!("{registration} registered (revision {})", answer.revision),
        State::Lost(why) => {
            eprintln!("{registration} is not registered at {}: {why}; trying again", client.base());
        }
    }
}

fn refused(error: client::Error, registration: &Registration) -> anyhow::Error {
    anyhow::Error::from(error).context(format!("cannot register {registration}"))
}

/// All addresses a name stands for; which one the app listens on, only a connection tells.
async fn resolve(address: &str) -> anyhow::Result<Vec<SocketAddr>> {
    let invalid =
        |why: String| Invalid(format!("--address {address}: {why}; write for example 127.0.0.1:9001"));
    let found: Vec<SocketAddr> =
        tokio::net::lookup_host(address).await.map_err(|e| invalid(e.to_string()))?.collect();
    match found.as_slice() {
        [] => Err(invalid("the name has no address".to_owned()).into()),
        all if all.iter().any(|a| a.port() == 0 || a.ip().is_unspecified()) => {
            Err(invalid("proxies cannot connect to it".to_owned()).into())
        }
        _ => Ok(found),
    }
}

fn start(program: &OsString, arguments: &[OsString]) -> anyhow::Result<Child> {
    Command::new(program)
        .args(arguments)
        // What this process may do is not the app's to do.
        .env_remove(connection::TOKEN)
        // A group of its own: Ctrl-C on a terminal reaches every process of a group at once, and would
        // stop the app before its registration is withdrawn.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {}", program.display()))
}

async fn first_to_answer(addresses: &[SocketAddr]) -> SocketAddr {
    loop {
        for &address in addresses {
            if let Ok(Ok(_)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                return address;
            }
        }
        sleep(READY_POLL).await;
    }
}

/// Tells the app to stop and waits for it, however long it takes; a second signal kills it.
async fn pass_on_stop(mut app: Child, mut signals: Signals) -> anyhow::Result<u8> {
    process::terminate(&app);
    tokio::select! {
        status = app.wait() => Ok(exit_code(status?)),
        () = signals.next() => kill(app).await,
    }
}

async fn kill(mut app: Child) -> anyhow::Result<u8> {
    process::kill_group(&app);
    Ok(exit_code(app.wait().await?))
}

/// As a shell reports it.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_app_that_a_signal_ended_is_reported_as_a_shell_does() {
        assert_eq!(exit_code(ExitStatus::from_raw(3 << 8)), 3);
        assert_eq!(exit_code(ExitStatus::from_raw(15)), 143);
    }

    #[tokio::test]
    async fn an_address_is_resolved_here_and_must_be_reachable() {
        assert_eq!(resolve("127.0.0.1:9001").await.unwrap(), ["127.0.0.1:9001".parse().unwrap()]);
        assert!(resolve("localhost:9001").await.unwrap().iter().all(|a| a.ip().is_loopback()));
        for bad in ["9001", "127.0.0.1", "127.0.0.1:0", "0.0.0.0:9001", ""] {
            assert!(resolve(bad).await.is_err_and(|e| e.is::<Invalid>()), "{bad}");
        }
    }
}
