//! `HAProxy` (Debian's package).

use super::{Kind, Setup, Subject};
use crate::{
    bench::{pinned, scenario::Front},
    peers::{self, haproxy::free_port},
    process::Process,
    temp::TempDir,
};

pub(super) async fn start(setup: &Setup) -> anyhow::Result<Subject> {
    let Some(binary) = peers::find("haproxy") else { anyhow::bail!("HAProxy is not installed") };
    let (directory, address) = (TempDir::new(), free_port().await);
    let (path, log) = (directory.join("haproxy.cfg"), directory.join("log"));
    std::fs::write(&path, config(setup, &address.to_string()))?;
    let mut command = pinned::command(&setup.cores, binary);
    command.arg("-db").arg("-f").arg(&path);
    let process = Process::start(command, &log);
    let pid = process.pid();
    let log = move || std::fs::read_to_string(&log).unwrap_or_default();
    Subject::listening(Kind::HaProxy, address, pid, (process, directory), log).await
}

/// `http-reuse always`: without it, the first request of a client connection gets a new connection to
/// the upstream, which no other subject here does. The ratios: without them it closes upstream
/// connections instead of pooling them, from a quarter of its descriptors on (4,096 connections).
fn config(setup: &Setup, address: &str) -> String {
    let Setup { workers, upstream, certificate, descriptors, .. } = setup;
    // Each connection may need two descriptors, and it wants some for itself.
    let connections = descriptors.saturating_sub(1_000) / 2;
    let tls = match setup.front {
        Front::Plain => String::new(),
        Front::Tls | Front::Grpc => {
            format!("ssl crt {} alpn h2,http/1.1 ssl-min-ver TLSv1.2", certificate.both.display())
        }
    };
    let protocol = if setup.front == Front::Grpc { "proto h2" } else { "" };
    format!(
        "global
  nbthread {workers}
  maxconn {connections}
  tune.pool-low-fd-ratio 90
  tune.pool-high-fd-ratio 95
defaults
  mode http
  timeout connect 5s
  timeout client 300s
  timeout server 60s
  timeout http-keep-alive 300s
  option forwardfor
  http-reuse always
frontend edge
  bind {address} backlog 8192 {tls}
  default_backend upstream
backend upstream
  server a {} {protocol}
",
        upstream[0]
    )
}
