//! Programs that are not ours: found, run with a deadline, started as servers.

use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use load_tests::{peers, process::Process, temp::TempDir};
use serde::Deserialize;
use serde_json::Value;
use tokio::{io::AsyncWriteExt, net::TcpListener, process::Command};

/// How long a program that ends by itself may run.
const DEADLINE: Duration = Duration::from_mins(1);

/// The path of a program.
///
/// # Panics
/// When it is not installed: a test against it must not pass without it.
pub(crate) fn find(program: &str) -> PathBuf {
    peers::find(program).unwrap_or_else(|| panic!("{program} is not installed: .ci/install test installs it"))
}

/// Where `.ci/install test` puts what comes from `PyPI` and npm.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers")
}

/// A script of `tests/protocols/`, with the interpreter and the packages it needs.
pub(crate) fn script(name: &str) -> Command {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/protocols").join(name);
    let (interpreter, package) = if path.extension().is_some_and(|e| e == "py") {
        (installed().join("bin/python"), installed().join("lib"))
    } else {
        (find("node"), installed().join("node_modules/ws"))
    };
    for needed in [&interpreter, &package] {
        assert!(needed.exists(), "{} is missing: .ci/install test installs it", needed.display());
    }
    let mut command = Command::new(interpreter);
    // Scripts are found beside the tests and packages are not, so the packages are named.
    command.arg(path).env("PEERS", installed()).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// What a program said.
pub(crate) struct Said {
    command: String,
    pub(crate) code: i32,
    pub(crate) out: Vec<u8>,
    pub(crate) err: String,
}

impl fmt::Debug for Said {
    /// Enough to see what went wrong: a body of 20 MiB is not.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let start = String::from_utf8_lossy(&self.out[..self.out.len().min(1_500)]);
        let start: String =
            start.chars().map(|c| if c == '\n' || !c.is_control() { c } else { '·' }).collect();
        let (command, code, length, err) = (&self.command, self.code, self.out.len(), &self.err);
        write!(f, "{command}\ncode {code}, {length} bytes: {start}\nstderr: {err}")
    }
}

impl Said {
    /// What it wrote, once it has ended well.
    pub(crate) fn ok(self) -> Vec<u8> {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    /// What it wrote as JSON, once it has ended well.
    pub(crate) fn json(self) -> Value {
        assert_eq!(self.code, 0, "{self:?}");
        serde_json::from_slice(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// Runs a program to its end.
pub(crate) async fn run(command: Command) -> Said {
    run_with(command, b"").await
}

/// Runs a program to its end, with `input` as what it reads.
pub(crate) async fn run_with(mut command: Command, input: &[u8]) -> Said {
    let name = format!("{:?}", command.as_std());
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
    let mut stdin = child.stdin.take().unwrap();
    let ended = tokio::time::timeout(DEADLINE, async {
        let writing = async {
            // A program may end without having read everything.
            let _ = stdin.write_all(input).await;
            drop(stdin);
        };
        tokio::join!(writing, child.wait_with_output()).1
    });
    let output = ended.await.unwrap_or_else(|_| panic!("{name} did not end within {DEADLINE:?}")).unwrap();
    Said {
        command: name,
        code: output.status.code().unwrap_or(-1),
        out: output.stdout,
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A port for a program that cannot choose one and say which.
pub(crate) async fn free_port() -> SocketAddr {
    for _ in 0..100 {
        // Below those that the kernel gives out (`ip_local_port_range`), so that none of the many
        // connections of a test gets it before the program does.
        let port = fastrand::u16(10_000..32_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener.local_addr().unwrap();
        }
    }
    panic!("none of a hundred ports is free");
}

/// curl, quiet but for errors, without the machine's own settings.
pub(crate) async fn curl(arguments: &[&str]) -> Said {
    let mut command = Command::new(find("curl"));
    command.args(["--disable", "--silent", "--show-error", "--noproxy", "*", "--max-time", "30"]);
    command.args(arguments);
    run(command).await
}

/// What nghttp tells of a request over HTTP/2 without TLS: each header, and each trailer.
pub(crate) async fn nghttp(arguments: &[&str]) -> String {
    let mut command = Command::new(find("nghttp"));
    command.args(["--verbose", "--null-out", "--no-dep", "--timeout=30"]).args(arguments);
    String::from_utf8(run(command).await.ok()).unwrap()
}

/// A script that serves, and says where in a file.
pub(crate) struct Serving {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

#[derive(Deserialize)]
struct Ready {
    address: SocketAddr,
}

impl Serving {
    /// Starts a script; its first argument is the file it writes `{"address": …}` to.
    pub(crate) async fn start(name: &str) -> Self {
        Self::start_with(name, &[]).await
    }

    /// The same with more arguments.
    pub(crate) async fn start_with(name: &str, arguments: &[&str]) -> Self {
        let directory = TempDir::new();
        let (ready, log) = (directory.join("ready"), directory.join("log"));
        let mut command = script(name);
        command.arg(&ready).args(arguments);
        let mut process = Process::start(command, &log);
        let Ready { address } = process.ready(&ready, &log).await;
        Self { process, address, directory }
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}

/// nghttpd as an HTTP/2 server without TLS.
pub(crate) struct Nghttpd {
    _process: Process,
    pub(crate) address: SocketAddr,
    directory: TempDir,
}

impl Nghttpd {
    /// Serves `/file` with `content`, returns what is uploaded, and ends each response with a trailer.
    pub(crate) async fn start(content: &[u8]) -> Self {
        let directory = TempDir::new();
        let root = directory.join("root");
        std::fs::create_dir(&root).unwrap();
        std::fs::write(root.join("file"), content).unwrap();
        let address = free_port().await;
        let mut command = Command::new(find("nghttpd"));
        // It names its trailers itself; the value is what a client checks.
        command.args(["--no-tls", "--echo-upload", "--trailer=x-trailer: from nghttpd", "--verbose"]);
        command.arg("--address").arg(address.ip().to_string()).arg("--htdocs").arg(root);
        command.arg(address.port().to_string());
        let process = Process::start(command, &directory.join("log"));
        load_tests::until("nghttpd to listen", super::SOON, async || {
            tokio::net::TcpStream::connect(address).await.ok()
        })
        .await;
        Self { _process: process, address, directory }
    }

    /// The frames it saw and sent, as it tells them.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}
