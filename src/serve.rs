//! `sluicegate serve`, `xds-server` and `proxy`: the processes. The only room that knows the two crates.
//!
//! Each side runs on a runtime and a thread of its own, so that neither can delay the other, and so
//! that what one spawns ends with it. This thread waits for signals, and for a side that fails.

mod flags;
mod ready;
mod side;

use std::{path::PathBuf, process::exit};

use anyhow::{Context, anyhow};
use clap::Args;
use config::bootstrap::{ProxySettings, ServerSettings};
use xds_server::api::types::{ErrorBody, File, WriteAnswer};

use crate::{
    client::Refusal,
    exit::{self, Invalid},
    manifests, output,
    process::{self, Signals},
};
pub(crate) use ready::Ready;
use side::{Side, Started};

/// Run server and proxy in one process: all that one machine needs
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate serve
  sluicegate serve -f shop.yaml                 applied before anything is served, all or nothing
  sluicegate serve --data-dir /var/lib/sluicegate --api-addr 127.0.0.1:0 --ready-file /run/sluicegate.json

What -f names is created or changed at each start; a service that exists keeps the split it was shifted to,
unless a version with traffic is no longer in the file. `apply -f` sets the split as well.

SIGTERM and SIGINT stop it when in-flight requests are finished; a second one stops it at once."))]
pub(crate) struct Serve {
    /// Manifests to apply at start: a file, a directory, or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR|-")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    server: flags::Server,
    #[command(flatten)]
    proxy: flags::Proxy,
    #[command(flatten)]
    data: flags::Data,
    #[command(flatten)]
    process: flags::Process,
}

/// Run only the server: the API, and xDS for proxies
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate xds-server
  sluicegate xds-server --xds-addr 10.0.0.5:18000 --tls-cert xds.pem --tls-key xds.key --client-ca edge-ca.pem
  sluicegate xds-server --store etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/shop

With --store any number of servers share what is declared and registered: a proxy may follow any of them
(`proxy --server A --server B`), and a change that one takes is pushed by all. The server waits at start until
etcd answers; should etcd go away later, proxies are served what is known, and changes are refused."))]
pub(crate) struct XdsServer {
    #[command(flatten)]
    server: flags::Server,
    #[command(flatten)]
    data: flags::Data,
    #[command(flatten)]
    process: flags::Process,
}

/// Run only an edge proxy that follows one or more servers
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate proxy
  sluicegate proxy --server 10.0.0.5:18000 --server 10.0.0.6:18000 --node edge-1
  sluicegate proxy --access-log - --threads 4"))]
pub(crate) struct ProxyOnly {
    /// An xDS server, in order of preference; may be repeated
    #[arg(long = "server", value_name = "HOST:PORT", default_value = config::bootstrap::DEFAULT_XDS_ADDR)]
    servers: Vec<flags::HostPort>,
    /// Do not keep the last good configuration, with which a proxy starts when no server answers
    #[arg(long)]
    no_last_good: bool,
    #[command(flatten)]
    proxy: flags::Proxy,
    #[command(flatten)]
    data: flags::Data,
    #[command(flatten)]
    process: flags::Process,
}

/// Runs both sides in one process.
pub(crate) fn serve(command: Serve) -> anyhow::Result<()> {
    let files = manifests::load(&command.files)?;
    manifests::check(&files)?;
    command.process.prepare()?;
    let settings = command.server.settings(&command.data);
    command.proxy.can_follow(&settings)?;
    run(async move {
        let mut signals = Signals::new()?;
        let mut server = start_server(settings, files);
        let Some(at) = unless_stopped(server.started(), &mut signals).await? else { return Ok(()) };
        let mut settings = command.proxy.settings(vec![at.xds.to_string()]);
        // The server is in this process and has its store: there is nothing to fall back from.
        settings.last_good = None;
        let mut proxy = start_proxy(settings);
        let Some(admin) = unless_stopped(proxy.started(), &mut signals).await? else { return Ok(()) };
        command.process.announce(&Ready::new(Some(at), Some(admin)))?;

        let failed = tokio::select! {
            () = stop_asked(&mut signals, command.process.until_stdin_closes) => Ok(()),
            ended = server.ended() => ended.and(Err(anyhow!("the server has ended by itself"))),
            ended = proxy.ended() => ended.and(Err(anyhow!("the proxy has ended by itself"))),
        };
        let finish = async {
            // The proxy first: it finishes its requests while the server still tells it where.
            let proxy = proxy.stop().await;
            let server = server.stop().await;
            failed.and(proxy).and(server)
        };
        or_at_once(finish, signals).await
    })
}

/// Runs the server alone.
pub(crate) fn xds_server(command: &XdsServer) -> anyhow::Result<()> {
    command.process.prepare()?;
    let settings = command.server.settings(&command.data);
    run(async move {
        let mut signals = Signals::new()?;
        let mut server = start_server(settings, Vec::new());
        let Some(at) = unless_stopped(server.started(), &mut signals).await? else { return Ok(()) };
        let ready = Ready::new(Some(at), None);
        run_alone(server, &ready, &command.process, signals).await
    })
}

/// Runs a proxy alone.
pub(crate) fn proxy(command: ProxyOnly) -> anyhow::Result<()> {
    command.process.prepare()?;
    let mut settings = command.proxy.settings(command.servers.into_iter().map(|s| s.0).collect());
    if !command.no_last_good {
        settings.last_good = Some(command.data.last_good(&settings.node_id)?);
    }
    run(async move {
        let mut signals = Signals::new()?;
        let mut proxy = start_proxy(settings);
        let Some(admin) = unless_stopped(proxy.started(), &mut signals).await? else { return Ok(()) };
        let ready = Ready::new(None, Some(admin));
        run_alone(proxy, &ready, &command.process, signals).await
    })
}

/// This thread only waits.
fn run(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

/// One side from its start to its end.
async fn run_alone<A>(
    mut side: Side<A>,
    ready: &Ready,
    process: &flags::Process,
    mut signals: Signals,
) -> anyhow::Result<()> {
    process.announce(ready)?;
    let failed = tokio::select! {
        () = stop_asked(&mut signals, process.until_stdin_closes) => Ok(()),
        ended = side.ended() => ended.and(Err(anyhow!("it has ended by itself"))),
    };
    or_at_once(async { failed.and(side.stop().await) }, signals).await
}

/// What starts, or nothing when a signal comes first: then there is nothing to finish.
async fn unless_stopped<A>(
    starting: impl Future<Output = anyhow::Result<A>>,
    signals: &mut Signals,
) -> anyhow::Result<Option<A>> {
    tokio::select! {
        started = starting => started.map(Some),
        () = signals.next() => Ok(None),
    }
}

async fn stop_asked(signals: &mut Signals, until_stdin_closes: bool) {
    tokio::select! {
        () = signals.next() => {}
        () = process::stdin_closed(until_stdin_closes) => {}
    }
    tracing::info!("stopping when in-flight requests are finished; a second signal stops at once");
}

/// Finishes, unless a second signal comes.
async fn or_at_once(
    finish: impl Future<Output = anyhow::Result<()>>,
    mut signals: Signals,
) -> anyhow::Result<()> {
    tokio::select! {
        result = finish => result,
        () = signals.next() => {
            tracing::warn!("stopped at once, by a second signal");
            exit(i32::from(exit::FAILED))
        }
    }
}

/// Where a server listens.
#[derive(Clone, Copy, Debug)]
struct ServerAt {
    api: std::net::SocketAddr,
    xds: std::net::SocketAddr,
    has_tls: bool,
}

/// Starts a server on a thread of its own; it serves when it has applied the files.
fn start_server(settings: ServerSettings, files: Vec<File>) -> Side<ServerAt> {
    Side::start("xds-server", move |started: Started<ServerAt>, stop| async move {
        let (api, xds, has_tls) = (settings.api_addr, settings.xds_addr, settings.tls.is_some());
        let server = xds_server::Server::bind(settings)
            .await
            .with_context(|| format!("cannot start the server (API at {api}, xDS at {xds})"))?;
        if !files.is_empty() {
            let files = files.into_iter().map(|file| (file.name, file.text)).collect();
            let answer = server.apply(files, "serve -f").await.map_err(|e| refused(&e))?;
            tracing::info!("{}", applied(&answer));
        }
        started.tell(ServerAt { api: server.api_addr(), xds: server.xds_addr(), has_tls });
        Ok(server.serve(stop).await?)
    })
}

/// Starts a proxy on a thread of its own; its requests run on threads it starts itself.
fn start_proxy(settings: ProxySettings) -> Side<std::net::SocketAddr> {
    Side::start("proxy", move |started, stop| async move {
        let admin = settings.admin_addr;
        let proxy = proxy::Proxy::bind(settings)
            .await
            .with_context(|| format!("cannot start the proxy (admin at {admin})"))?;
        started.tell(proxy.admin_addr());
        Ok(proxy.serve(stop).await?)
    })
}

fn refused(error: &ErrorBody) -> anyhow::Error {
    Invalid(Refusal(error).to_string()).into()
}

fn applied(answer: &WriteAnswer) -> String {
    format!("applied {} objects: {}", answer.changes.len(), output::revision(answer))
}
