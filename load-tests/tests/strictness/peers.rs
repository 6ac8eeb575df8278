//! nginx and HAProxy in front of one endpoint.

use std::net::SocketAddr;

use load_tests::{process::Process, temp::TempDir, until};
use tokio::{net::TcpStream, process::Command};

use crate::support::{SOON, nginx::Nginx, peer};

pub(crate) struct HaProxy {
    pub(crate) address: SocketAddr,
    _process: Process,
    _directory: TempDir,
}

/// HAProxy as it comes.
pub(crate) async fn haproxy(upstream: SocketAddr) -> HaProxy {
    let (directory, address) = (TempDir::new(), peer::free_port().await);
    let config = directory.join("haproxy.cfg");
    let text = format!(
        "global\n  nbthread 1\n\
         defaults\n  mode http\n  timeout connect 1s\n  timeout client 10s\n  timeout server 10s\n\
         frontend edge\n  bind {address}\n  default_backend shop\n\
         backend shop\n  server a {upstream}\n"
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new(peer::find("haproxy"));
    command.arg("-db").arg("-f").arg(&config);
    let process = Process::start(command, &directory.join("log"));
    until("HAProxy to listen", SOON, async || TcpStream::connect(address).await.ok()).await;
    HaProxy { address, _process: process, _directory: directory }
}

/// nginx as it comes, but for passing on the host and the body as they come in.
pub(crate) async fn nginx(upstream: SocketAddr) -> Nginx {
    Nginx::start("", &nginx_location(upstream)).await
}

pub(crate) fn nginx_location(upstream: SocketAddr) -> String {
    format!(
        "location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1; \
         proxy_set_header Host $http_host; proxy_request_buffering off; proxy_next_upstream off; }}"
    )
}
