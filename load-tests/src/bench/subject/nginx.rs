//! nginx (Debian's package).

use std::time::{Duration, Instant};

use super::{Kind, Setup, Subject};
use crate::{
    bench::{pinned, scenario::Front, usage::family},
    peers::{self, haproxy::free_port},
    process::Process,
    temp::TempDir,
};

/// Its master takes the workers along when it is told to stop, and not when it is killed.
struct Nginx {
    process: Process,
    directory: TempDir,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        use rustix::process::{Pid, Signal, kill_process};
        let pid = i32::try_from(self.process.pid()).ok().and_then(Pid::from_raw);
        if pid.is_none_or(|pid| kill_process(pid, Signal::TERM).is_err()) {
            return;
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.directory.join("nginx.pid").exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

pub(super) async fn start(setup: &Setup) -> anyhow::Result<Subject> {
    let Some(binary) = peers::find("nginx") else { anyhow::bail!("nginx is not installed") };
    let (directory, address) = (TempDir::new(), free_port().await);
    let log = directory.join("log");
    std::fs::write(directory.join("nginx.conf"), config(setup, &address.to_string()))?;
    let mut command = pinned::command(&setup.cores, binary);
    command.arg("-p").arg(directory.path()).args(["-c", "nginx.conf", "-g", "daemon off;"]);
    let process = Process::start(command, &log);
    let pid = process.pid();
    // The master listens before it has workers.
    for _ in 0..500 {
        if family(pid).len() > setup.workers as usize {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let log = move || std::fs::read_to_string(&log).unwrap_or_default();
    Subject::listening(Kind::Nginx, address, pid, Nginx { process, directory }, log).await
}

/// A pool larger than any number of connections here; bodies go through as they come
/// (`proxy_request_buffering off`) and never to a file; sessions over TLS are kept and tickets given.
fn config(setup: &Setup, address: &str) -> String {
    let Setup { workers, upstream, certificate, descriptors, .. } = setup;
    let (upstream, connections) = (upstream[0], descriptors.saturating_sub(500));
    let cert = certificate.cert.display();
    let key = certificate.key.display();
    let tls = format!(
        "ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;
      ssl_session_cache shared:tls:10m; ssl_session_tickets on;"
    );
    let (listen, tls) = match setup.front {
        Front::Plain => ("backlog=8192", ""),
        Front::Tls | Front::Grpc => ("ssl http2 backlog=8192", tls.as_str()),
    };
    let pass = match setup.front {
        Front::Plain | Front::Tls => {
            "proxy_pass http://upstream; proxy_http_version 1.1;
        proxy_set_header Connection ''; proxy_set_header Host $host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_request_buffering off; proxy_max_temp_file_size 0;"
        }
        Front::Grpc => {
            "grpc_pass grpc://upstream; grpc_set_header Host $host;
        grpc_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
        }
    };
    format!(
        "worker_processes {workers}; worker_rlimit_nofile {descriptors};
pid nginx.pid; error_log error.log;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  upstream upstream {{
    server {upstream}; keepalive 10000; keepalive_requests 1000000000; keepalive_timeout 300s;
  }}
  server {{
      listen {address} {listen};
      {tls}
      keepalive_requests 1000000000; keepalive_timeout 300s; client_max_body_size 0;
      location / {{
        {pass}
      }}
  }}
}}
"
    )
}
