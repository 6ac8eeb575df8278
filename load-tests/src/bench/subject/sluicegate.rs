//! Sluicegate: a server and a proxy as processes of their own, of which the proxy is measured.

use std::{fmt::Write as _, net::SocketAddr, path::Path, time::Duration};

use anyhow::Context;
use serde::Deserialize;

use super::{Kind, Setup, Subject};
use crate::{
    api::Api,
    bench::{pinned, scenario::Front},
    process::Process,
    sluicegate::{Listener, binary},
    temp::TempDir,
};

#[derive(Deserialize)]
struct ServerReady {
    api: SocketAddr,
    xds: SocketAddr,
}

#[derive(Deserialize)]
struct ProxyReady {
    admin: SocketAddr,
}

pub(super) async fn start(setup: &Setup) -> anyhow::Result<Subject> {
    let directory = TempDir::new();
    let (ready_file, log) = (directory.join("server.ready"), directory.join("server.log"));
    let mut command = pinned::command(&setup.other_cores, binary());
    command.args(["xds-server", "--api-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--data-dir"]);
    command.arg(directory.join("server")).arg("--ready-file").arg(&ready_file);
    let mut server = Process::start(command, &log);
    let ready: ServerReady = server.ready(&ready_file, &log).await;
    let answer = Api::new(ready.api).apply(&manifest(setup)).await;
    anyhow::ensure!(answer.status.is_success(), "its server refuses the manifest: {}", answer.message());

    let (ready_file, log) = (directory.join("ready"), directory.join("log"));
    let mut command = pinned::command(&setup.cores, binary());
    command.args(["proxy", "--server", &ready.xds.to_string(), "--node", "peers"]);
    command.args(["--threads", &setup.workers.to_string(), "--admin-addr", "127.0.0.1:0", "--data-dir"]);
    command.arg(directory.join("data")).arg("--ready-file").arg(&ready_file);
    let mut process = Process::start(command, &log);
    let ready: ProxyReady = process.ready(&ready_file, &log).await;
    let admin = Api::new(ready.admin);
    let address = listener(&admin, &log).await?;
    let pid = process.pid();
    let log = move || std::fs::read_to_string(&log).unwrap_or_default();
    Subject::listening(Kind::Sluicegate, address, pid, (process, server, directory), log).await
}

async fn listener(admin: &Api, log: &Path) -> anyhow::Result<SocketAddr> {
    for _ in 0..1_000 {
        let listeners: Vec<Listener> = admin.read("/listeners").await.unwrap_or_default();
        if let Some(listener) = listeners.into_iter().find(|listener| listener.name == "edge") {
            return Ok(listener.address);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let log = std::fs::read_to_string(log).unwrap_or_default();
    Err(anyhow::anyhow!("{}", log.trim())).context("its proxy does not listen")
}

/// One route a host; what is asked of is a service whose traffic divides over two versions, each with
/// endpoints to choose between.
fn manifest(setup: &Setup) -> String {
    let protocol = if setup.front == Front::Grpc { "grpc" } else { "http" };
    let [a, b, c, d] = std::array::from_fn(|i| setup.upstream[i % setup.upstream.len()]);
    let mut text = format!(
        "kind: Service\nname: shop\nprotocol: {protocol}\nversions:\n  v1: {{endpoints: [\"{a}\", \"{b}\"]}}\n  \
         v2: {{endpoints: [\"{c}\", \"{d}\"]}}\nsplit: {{weights: {{v1: 90, v2: 10}}}}\n\
         ---\nkind: Gateway\nname: edge\nlisten: 127.0.0.1:0\n"
    );
    if setup.front != Front::Plain {
        let (cert, key) = (setup.certificate.cert.display(), setup.certificate.key.display());
        let _ = writeln!(text, "tls: {{certificates: [{{cert: \"{cert}\", key: \"{key}\"}}]}}");
    }
    for (i, host) in setup.hosts.iter().enumerate() {
        let _ = write!(
            text,
            "---\nkind: Route\nname: r{i}\ngateway: edge\nhosts: [\"{host}\"]\nrules:\n\
             - match: {{path_prefix: /}}\n  service: shop\n"
        );
    }
    text
}
