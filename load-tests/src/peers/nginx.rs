//! nginx (Debian's `nginx`), changed by a new configuration file and a reload.

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, process::Command};

use super::haproxy::free_port;
use crate::{process::Process, temp::TempDir, until};

pub struct Nginx {
    pub process: Process,
    pub address: SocketAddr,
    binary: PathBuf,
    directory: TempDir,
    servers: (SocketAddr, SocketAddr),
}

impl Nginx {
    /// One server to one upstream with server `a`, and without server `b`.
    pub async fn start(a: SocketAddr, b: SocketAddr) -> Option<Self> {
        let binary = super::find("nginx")?;
        let directory = TempDir::new();
        let address = free_port().await;
        write_config(&directory, address, &[a]);
        let mut command = Command::new(&binary);
        command.arg("-p").arg(directory.path()).args(["-c", "nginx.conf", "-g", "daemon off;"]);
        let process = Process::start(command, &directory.join("log"));
        until("nginx to listen", Duration::from_secs(10), async || TcpStream::connect(address).await.ok())
            .await;
        Some(Self { process, address, binary, directory, servers: (a, b) })
    }

    /// Writes a configuration with or without `b`, and returns when `nginx -s reload` has.
    pub async fn set_b(&self, ready: bool) {
        let (a, b) = self.servers;
        let servers = if ready { vec![a, b] } else { vec![a] };
        write_config(&self.directory, self.address, &servers);
        let mut command = Command::new(&self.binary);
        command.arg("-p").arg(self.directory.path()).args(["-c", "nginx.conf", "-s", "reload"]);
        let output = command.output().await.unwrap();
        assert!(output.status.success(), "nginx: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Nginx {
    /// Its workers outlive a master that is killed, so it is told to stop and waited for.
    fn drop(&mut self) {
        let mut command = std::process::Command::new(&self.binary);
        command.arg("-p").arg(self.directory.path()).args(["-c", "nginx.conf", "-s", "stop"]);
        let _ = command.output();
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.directory.join("nginx.pid").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn write_config(directory: &TempDir, address: SocketAddr, servers: &[SocketAddr]) {
    let servers: Vec<String> = servers.iter().map(|s| format!("server {s};")).collect();
    let servers = servers.join(" ");
    let text = format!(
        "worker_processes 1; pid nginx.pid; error_log error.log; events {{}}\n\
         http {{ access_log off;\n\
         upstream shop {{ {servers} keepalive 32; }}\n\
         server {{ listen {address}; keepalive_requests 1000000; location / {{\n\
         proxy_pass http://shop; proxy_http_version 1.1; proxy_set_header Connection ''; }} }} }}\n"
    );
    std::fs::write(directory.join("nginx.conf"), text).unwrap();
}
