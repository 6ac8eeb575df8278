//! From the answer to a change of endpoints to the traffic that shows it: Sluicegate, Envoy driven
//! by Sluicegate's server, HAProxy's runtime API and an nginx reload, in one run.
//!
//! Each round puts an endpoint in and takes it out again, under steady traffic. *Added*: from the
//! answer to the first request that reaches it. *Removed*: from the answer to the last request that
//! reaches it. *Killed*: from `kill -9` of an instance that holds its registration to the proxy no
//! longer choosing it. A request that came before the answer counts as 0. Every peer gets the same traffic
//! from the same clients, and the same two instances.

use std::{net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum};
use load_tests::{
    backend::{Backend, Hits, now_ns},
    figures::Figures,
    peers::{
        envoy::{Envoy, Variant},
        haproxy::HaProxy,
        nginx::Nginx,
    },
    process::Process,
    sluicegate::{Edge, Server, binary, manifest},
    temp::TempDir,
    traffic::{Client, Traffic},
    until,
};
use serde::Serialize;

/// How long a removed endpoint must have been quiet for its last request to count as the last.
const QUIET: Duration = Duration::from_millis(15);
const SOON: Duration = Duration::from_secs(20);

/// Measure how long a change of endpoints takes to show in traffic, side by side.
#[derive(Parser)]
#[command(after_help = "Examples:
  cargo run --release -p load-tests --bin propagation
  cargo run --release -p load-tests --bin propagation -- --changes 200 --output json")]
struct Arguments {
    /// Changes a peer, half of them additions; nginx gets a twentieth, for each costs it new processes
    #[arg(long, default_value_t = 1_000)]
    changes: usize,
    /// Connections that send requests, each one after the other
    #[arg(long, default_value_t = 2)]
    connections: usize,
    /// A table for people or JSON for programs
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Exit with 1 unless Sluicegate's median is at most 0.5 ms and its p99 at most 2 ms
    #[arg(long)]
    check: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Serialize)]
struct Row {
    peer: &'static str,
    added: Figures,
    removed: Figures,
    /// From `kill -9` of an instance that is held by a connection to the proxy no longer choosing it.
    #[serde(skip_serializing_if = "Option::is_none")]
    killed: Option<Figures>,
    /// Requests that failed meanwhile, of all.
    failed: u64,
    requests: u64,
}

/// Something whose endpoint `b` can be put in and taken out.
enum Peer {
    OverServer { server: Server, proxy: Box<Proxy>, gateway: SocketAddr, b: SocketAddr },
    HaProxy(HaProxy),
    Nginx(Nginx),
}

enum Proxy {
    Edge(Edge),
    Envoy { _envoy: Envoy },
}

impl Peer {
    async fn over_server(envoy: Option<Variant>, a: SocketAddr, b: SocketAddr) -> Self {
        let server = Server::start().await;
        server.api.apply(&manifest("127.0.0.1:0", &[("v1", 1)])).await.ok();
        server.api.register("shop/v1", "a", a).await.ok();
        let (proxy, gateway) = match envoy {
            None => {
                let edge = Edge::start("edge-1", server.xds).await;
                let gateway = edge.gateway("edge").await;
                (Proxy::Edge(edge), gateway)
            }
            Some(variant) => {
                let envoy = Envoy::start("envoy-1", server.xds, variant).await;
                let gateway = envoy.gateway("edge").await;
                (Proxy::Envoy { _envoy: envoy }, gateway)
            }
        };
        Self::OverServer { server, proxy: Box::new(proxy), gateway, b }
    }

    fn address(&self) -> SocketAddr {
        match self {
            Self::OverServer { gateway, .. } => *gateway,
            Self::HaProxy(haproxy) => haproxy.address,
            Self::Nginx(nginx) => nginx.address,
        }
    }

    /// Returns when the peer has answered that it has taken the change.
    async fn set_b(&self, there: bool) {
        match self {
            Self::OverServer { server, b, .. } if there => {
                drop(server.api.register("shop/v1", "b", *b).await.ok());
            }
            Self::OverServer { server, .. } => drop(server.api.remove("shop/v1", "b").await.ok()),
            Self::HaProxy(haproxy) => haproxy.set_b(there).await,
            Self::Nginx(nginx) => nginx.set_b(there).await,
        }
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let (a, b) = (Backend::start("a").await, Backend::start("b").await);
    let mut rows = Vec::new();
    for name in ["sluicegate", "envoy, incremental", "envoy, state of the world", "haproxy", "nginx"] {
        let peer = match name {
            "sluicegate" => Some(Peer::over_server(None, a.address, b.address).await),
            "envoy, incremental" => {
                Some(Peer::over_server(Some(Variant::Incremental), a.address, b.address).await)
            }
            "envoy, state of the world" => {
                Some(Peer::over_server(Some(Variant::StateOfTheWorld), a.address, b.address).await)
            }
            "haproxy" => HaProxy::start(a.address, b.address).await.map(Peer::HaProxy),
            _ => Nginx::start(a.address, b.address).await.map(Peer::Nginx),
        };
        let Some(peer) = peer else {
            eprintln!("{name} is not installed and is left out; .ci/install test installs it");
            continue;
        };
        let changes = if name == "nginx" { arguments.changes / 20 } else { arguments.changes };
        eprintln!("{name}: {changes} changes …");
        let mut row = measure(name, &peer, &b.hits, changes, arguments.connections).await;
        if let Peer::OverServer { server, proxy, .. } = &peer
            && let Proxy::Edge(edge) = proxy.as_ref()
        {
            row.killed = Some(kills(server, edge, (changes / 20).max(1)).await);
        }
        rows.push(row);
    }
    print(&rows, arguments.output);
    let good = |f: &Figures| f.p50_ms <= 0.5 && f.p99_ms <= 2.0;
    if arguments.check && !rows.iter().take(1).all(|row| good(&row.added) && good(&row.removed)) {
        eprintln!("sluicegate is not within 0.5 ms (median) and 2 ms (p99)");
        return std::process::ExitCode::FAILURE;
    }
    std::process::ExitCode::SUCCESS
}

async fn measure(name: &'static str, peer: &Peer, b: &Hits, changes: usize, connections: usize) -> Row {
    until("the first answer", SOON, async || Client::new(peer.address()).get("/").await.ok()).await;
    let traffic = Traffic::start(peer.address(), connections);
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..(changes / 2).max(1) {
        b.forget();
        peer.set_b(true).await;
        let answered = now_ns();
        // Waiting, not polling: a core that spins would be missing where the change has to go.
        let first = tokio::time::timeout(SOON, b.reached()).await;
        let first = first.unwrap_or_else(|_| panic!("{name}: an added endpoint was never reached"));
        added.push(first.saturating_sub(answered));
        // Enough requests that the connections to it are in steady use.
        tokio::time::sleep(Duration::from_millis(3)).await;
        peer.set_b(false).await;
        let answered = now_ns();
        removed.push(last_after(b, answered).await.saturating_sub(answered));
    }
    let outcome = traffic.stop().await;
    Row {
        peer: name,
        added: Figures::of(added),
        removed: Figures::of(removed),
        killed: None,
        failed: outcome.failures,
        requests: outcome.requests(),
    }
}

/// Starts instances that hold their registration, and kills each as the kernel would.
async fn kills(server: &Server, edge: &Edge, count: usize) -> Figures {
    let api = format!("http://{}", server.api.address());
    let mut gone = Vec::with_capacity(count);
    for i in 0..count {
        let (directory, id) = (TempDir::new(), format!("victim-{i}"));
        let mut command = tokio::process::Command::new(binary());
        command.args(["echo", "--version", "v1", "--service", "shop", "--id", &id, "--api", &api]);
        let mut victim = Process::start(command, &directory.join("log"));
        let listed = async || edge.admin.text("/clusters").await.is_ok_and(|clusters| clusters.contains(&id));
        until("the proxy to know the instance", SOON, async || listed().await.then_some(())).await;
        let killed = now_ns();
        victim.start_kill();
        while listed().await {}
        gone.push(now_ns() - killed);
        victim.kill().await;
    }
    Figures::of(gone)
}

/// When the last request arrived: the one that none follows for [`QUIET`].
async fn last_after(b: &Hits, answered: u64) -> u64 {
    loop {
        let last = b.last_ns().unwrap_or(0).max(answered);
        let quiet_for = now_ns().saturating_sub(last);
        match u64::try_from(QUIET.as_nanos()).unwrap_or(u64::MAX).checked_sub(quiet_for) {
            None | Some(0) => return last,
            Some(rest) => tokio::time::sleep(Duration::from_nanos(rest)).await,
        }
    }
}

fn print(rows: &[Row], output: Output) {
    if output == Output::Json {
        println!("{}", serde_json::to_string_pretty(rows).expect("figures are numbers and words"));
        return;
    }
    println!(
        "{:<26} {:<8} {:>6} {:>9} {:>9} {:>9} {:>9}  failed",
        "ms after the answer", "", "n", "min", "p50", "p99", "max"
    );
    for row in rows {
        println!("{:<26} {:<8} {}  {}/{}", row.peer, "added", row.added.row(), row.failed, row.requests);
        println!("{:<26} {:<8} {}", "", "removed", row.removed.row());
        if let Some(killed) = &row.killed {
            println!("{:<26} {:<8} {}", "", "killed", killed.row());
        }
    }
}
