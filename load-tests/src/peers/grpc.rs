//! Real gRPC clients of `xds:///` targets: grpcio (`PyPI`), which is the C core, and `@grpc/grpc-js-xds` (npm).
//!
//! Each is one process with one channel, which does what it is told line by line.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use config::xds::cluster::GRPC_CERTIFICATE_PROVIDER;
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
};

use crate::{temp::TempDir, traffic::Outcome};

/// How long a client may take to do what it is told, its start included.
const DEADLINE: Duration = Duration::from_mins(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    /// grpcio, on the C core.
    Python,
    /// `@grpc/grpc-js` with `@grpc/grpc-js-xds`.
    Node,
}

pub struct GrpcClient {
    _child: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    directory: TempDir,
}

impl Language {
    /// What runs the client.
    ///
    /// # Panics
    /// When it is not installed: a test against it must not pass without it.
    fn command(self) -> Command {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/peers");
        let (interpreter, package, script) = match self {
            Self::Python => (peers.join("bin/python"), peers.join("lib"), "grpc_client.py"),
            Self::Node => {
                let node = super::find("node").unwrap_or_else(|| PathBuf::from("node"));
                (node, peers.join("node_modules/@grpc/grpc-js-xds"), "grpc_client.mjs")
            }
        };
        for needed in [&interpreter, &package] {
            assert!(needed.exists(), "{} is missing: .ci/install test installs it", needed.display());
        }
        let mut command = Command::new(interpreter);
        command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/peers").join(script));
        command.env("PEERS", peers).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

/// What a client is to do beyond the usual.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options<'a> {
    /// What it is to know of the server (gRFC A27, `server_features`).
    pub features: &'a [&'a str],
    /// Its channel does as the server says about TLS (gRFC A29), and believes this authority.
    pub ca: Option<&'a Path>,
}

impl GrpcClient {
    /// A client called `node` with a channel to `target`, that follows the server at `xds`.
    pub fn start(
        language: Language,
        node: &str,
        xds: SocketAddr,
        target: &str,
        options: Options<'_>,
    ) -> Self {
        let directory = TempDir::new();
        let features = [&["xds_v3"], options.features].concat();
        let mut bootstrap = json!({
            "xds_servers": [{
                "server_uri": xds.to_string(),
                "channel_creds": [{"type": "insecure"}],
                "server_features": features
            }],
            // Node's client refuses a node without a locality.
            "node": {"id": node, "cluster": "test", "locality": {"zone": "test"}}
        });
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = language.command();
        command.arg(target);
        if let Some(ca) = options.ca {
            command.arg("xds");
            bootstrap["certificate_providers"] = json!({GRPC_CERTIFICATE_PROVIDER: {
                "plugin_name": "file_watcher",
                "config": {"ca_certificate_file": ca, "refresh_interval": "600s"}
            }});
        }
        command.env("GRPC_XDS_BOOTSTRAP_CONFIG", bootstrap.to_string());
        command.env_remove("GRPC_XDS_BOOTSTRAP");
        for proxy in ["grpc_proxy", "http_proxy", "https_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let mut child = command.spawn().unwrap_or_else(|e| panic!("cannot start {command:?}: {e}"));
        let stdin = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { _child: child, stdin, answers, directory }
    }

    /// Makes `calls` calls, four at a time, and says what became of them.
    pub async fn run(&mut self, calls: u64) -> Outcome {
        self.tell(&format!("run {calls}")).await;
        self.answer().await
    }

    /// Calls on and on, some hundred times a second, until [`Self::stop`].
    pub async fn begin(&mut self) {
        self.tell("start").await;
    }

    /// What became of the calls since [`Self::begin`].
    pub async fn so_far(&mut self) -> Outcome {
        self.tell("so_far").await;
        self.answer().await
    }

    /// Waits for the answers on the way, and says what became of all since [`Self::begin`].
    pub async fn stop(&mut self) -> Outcome {
        self.tell("stop").await;
        self.answer().await
    }

    async fn tell(&mut self, command: &str) {
        let written = self.stdin.write_all(format!("{command}\n").as_bytes()).await;
        written.unwrap_or_else(|e| panic!("{command}: {e}\n{}", self.log()));
    }

    async fn answer(&mut self) -> Outcome {
        match tokio::time::timeout(DEADLINE, self.answers.next_line()).await {
            Ok(Ok(Some(line))) => serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}")),
            other => panic!("a gRPC client did not answer: {other:?}\n{}", self.log()),
        }
    }

    /// What it wrote to stderr.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }
}
