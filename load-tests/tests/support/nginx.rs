//! nginx with a configuration of the test's own.

use std::{net::SocketAddr, path::PathBuf};

use load_tests::{process::Process, temp::TempDir, until};
use tokio::{net::TcpStream, process::Command};

use super::{SOON, peer};

pub(crate) struct Nginx {
    _process: Process,
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

impl Nginx {
    /// Starts nginx with one `server`; `body` is what follows its `listen`, `listen` what follows the
    /// address there (`ssl`). Files of `root` are in [`Nginx::root`].
    pub(crate) async fn start(listen: &str, body: &str) -> Self {
        let directory = TempDir::new();
        std::fs::create_dir(directory.join("root")).unwrap();
        let address = peer::free_port().await;
        // One process, which ends with its handle: workers would outlive a master that is killed.
        let text = format!(
            "master_process off; daemon off; pid nginx.pid; error_log stderr; events {{}}\n\
             http {{ access_log access.log; root root; client_max_body_size 0;\n\
             client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n\
             server {{ listen {address} {listen};\n{body}\n}} }}\n"
        );
        std::fs::write(directory.join("nginx.conf"), text).unwrap();
        let mut command = Command::new(peer::find("nginx"));
        command.arg("-p").arg(directory.path()).args(["-e", "stderr", "-c", "nginx.conf"]);
        let log = directory.join("log");
        let process = Process::start(command, &log);
        until("nginx to listen", SOON, async || TcpStream::connect(address).await.ok()).await;
        Self { _process: process, address, directory }
    }

    /// A file that it serves, or that was put there.
    pub(crate) fn root(&self, name: &str) -> PathBuf {
        self.directory.join("root").join(name)
    }

    /// The requests it was sent, a line each.
    pub(crate) fn requests(&self) -> String {
        std::fs::read_to_string(self.directory.join("access.log")).unwrap_or_default()
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}
