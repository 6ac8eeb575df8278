//! HAProxy (Debian's `haproxy`), changed over its runtime API.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
    process::Command,
};

use crate::{process::Process, temp::TempDir, until};

pub struct HaProxy {
    pub process: Process,
    pub address: SocketAddr,
    socket: PathBuf,
    _directory: TempDir,
}

impl HaProxy {
    /// One front end to one back end with server `a`, and with server `b` in maintenance.
    pub async fn start(a: SocketAddr, b: SocketAddr) -> Option<Self> {
        let binary = super::find("haproxy")?;
        let directory = TempDir::new();
        let (config, socket, log) =
            (directory.join("haproxy.cfg"), directory.join("socket"), directory.join("log"));
        let address = free_port().await;
        let text = format!(
            "global\n  stats socket {} mode 600 level admin\n  nbthread 1\n\
             defaults\n  mode http\n  timeout connect 1s\n  timeout client 60s\n  timeout server 60s\n\
             frontend edge\n  bind {address}\n  default_backend shop\n\
             backend shop\n  balance leastconn\n  server a {a}\n  server b {b} disabled\n",
            socket.display()
        );
        std::fs::write(&config, text).unwrap();
        let mut command = Command::new(binary);
        command.arg("-db").arg("-f").arg(&config);
        let process = Process::start(command, &log);
        until("HAProxy to listen", Duration::from_secs(10), async || TcpStream::connect(address).await.ok())
            .await;
        Some(Self { process, address, socket, _directory: directory })
    }

    /// Puts server `b` in or out, and returns when HAProxy has answered.
    pub async fn set_b(&self, ready: bool) {
        let state = if ready { "ready" } else { "maint" };
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        stream.write_all(format!("set server shop/b state {state}\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.trim().is_empty(), "HAProxy: {answer}");
    }
}

/// A port that was free a moment ago, for programs that cannot choose one and say which.
pub async fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}
