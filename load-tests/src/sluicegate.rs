//! The binary under test, its server and its proxies.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use serde::Deserialize;
use tokio::process::Command;

use crate::{api::Api, process::Process, temp::TempDir, until};

/// The `sluicegate` binary of this build's profile, built if it is not current.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        // For trying another build than this one's.
        if let Some(binary) = std::env::var_os("SLUICEGATE_BINARY") {
            return PathBuf::from(binary);
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "sluicegate", "--bin", "sluicegate"]).current_dir(root);
        // What `cargo test` tells a test is not for another cargo: build scripts (ring's) would take
        // it for a change, and everything that uses them would be built again, each time.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if text.starts_with("CARGO") && !matches!(&*text, "CARGO_HOME" | "CARGO_TARGET_DIR") {
                cargo.env_remove(&name);
            }
        }
        let current = std::env::current_exe().unwrap();
        // target/<profile>/deps/<test> or target/<profile>/<program>
        let mut directory = current.parent().unwrap();
        if directory.ends_with("deps") {
            directory = directory.parent().unwrap();
        }
        match directory.file_name().and_then(|name| name.to_str()) {
            Some("debug") | None => {}
            Some(profile) => drop(cargo.args(["--profile", profile])),
        }
        assert!(cargo.status().unwrap().success(), "cannot build the sluicegate binary");
        directory.join("sluicegate")
    })
}

#[derive(Debug, Deserialize)]
struct Ready {
    api: Option<SocketAddr>,
    xds: Option<SocketAddr>,
    admin: Option<SocketAddr>,
}

async fn start(arguments: &[&str], directory: &Path, name: &str) -> (Process, Ready) {
    start_with(Command::new(binary()), arguments, directory, name).await
}

async fn start_with(
    mut command: Command,
    arguments: &[&str],
    directory: &Path,
    name: &str,
) -> (Process, Ready) {
    let (ready_file, log) = (directory.join(format!("{name}.ready")), directory.join(format!("{name}.log")));
    let _ = std::fs::remove_file(&ready_file);
    command.args(arguments).arg("--ready-file").arg(&ready_file).current_dir(directory);
    let mut process = Process::start(command, &log);
    let ready = process.ready(&ready_file, &log).await;
    (process, ready)
}

/// A `sluicegate xds-server`.
pub struct Server {
    pub process: Process,
    pub api: Api,
    pub xds: SocketAddr,
    directory: TempDir,
    store: Option<String>,
}

impl Server {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With flags beside the usual ones. [`Self::api`] does not speak TLS.
    pub async fn start_with(flags: &[&str]) -> Self {
        Self::start_in(TempDir::new(), "127.0.0.1:0", "127.0.0.1:0", None, flags).await
    }

    /// One of the servers that share `store`.
    pub async fn start_sharing(store: &str) -> Self {
        Self::start_in(TempDir::new(), "127.0.0.1:0", "127.0.0.1:0", Some(store.to_owned()), &[]).await
    }

    /// The same in a network namespace, where it listens at `ip`.
    pub async fn start_sharing_in(namespace: &str, ip: IpAddr, store: &str) -> Self {
        let (directory, at) = (TempDir::new(), SocketAddr::new(ip, 0).to_string());
        let arguments = ["xds-server", "--api-addr", &at, "--xds-addr", &at, "--insecure", "--store", store];
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(binary());
        let (process, ready) = start_with(command, &arguments, directory.path(), "server").await;
        let (api, xds) = (Api::new(ready.api.unwrap()), ready.xds.unwrap());
        Self { process, api, xds, directory, store: Some(store.to_owned()) }
    }

    async fn start_in(
        directory: TempDir,
        api: &str,
        xds: &str,
        store: Option<String>,
        flags: &[&str],
    ) -> Self {
        let data = directory.join("data");
        let mut arguments =
            vec!["xds-server", "--data-dir", data.to_str().unwrap(), "--api-addr", api, "--xds-addr", xds];
        arguments.extend(store.iter().flat_map(|url| ["--store", url]));
        arguments.extend(flags);
        let (process, ready) = start(&arguments, directory.path(), "server").await;
        Self { process, api: Api::new(ready.api.unwrap()), xds: ready.xds.unwrap(), directory, store }
    }

    /// Starts again with the same data and addresses; the old process has to be gone.
    pub async fn restart(self) -> Self {
        self.restart_with(&[]).await
    }

    /// The same, with flags beside the usual ones.
    pub async fn restart_with(self, flags: &[&str]) -> Self {
        let (api, xds) = (self.api.address().to_string(), self.xds.to_string());
        Self::start_in(self.directory, &api, &xds, self.store, flags).await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("server.log")).unwrap_or_default()
    }
}

/// A `sluicegate proxy`.
pub struct Edge {
    pub process: Process,
    pub admin: Api,
    directory: TempDir,
    node: String,
}

#[derive(Debug, Deserialize)]
pub struct Listener {
    pub name: String,
    pub address: SocketAddr,
}

impl Edge {
    /// A proxy called `node` that follows the server at `xds`.
    pub async fn start(node: &str, xds: SocketAddr) -> Self {
        Self::start_in(TempDir::new(), node, &[xds], &[]).await
    }

    /// With flags beside the usual ones.
    pub async fn start_with(node: &str, xds: SocketAddr, flags: &[&str]) -> Self {
        Self::start_in(TempDir::new(), node, &[xds], flags).await
    }

    /// A proxy called `node` that follows one of `servers`.
    pub async fn start_following(node: &str, servers: &[SocketAddr]) -> Self {
        Self::start_in(TempDir::new(), node, servers, &[]).await
    }

    async fn start_in(directory: TempDir, node: &str, servers: &[SocketAddr], flags: &[&str]) -> Self {
        let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
        let data = directory.join("data");
        let data = data.to_str().unwrap();
        let mut arguments = vec!["proxy", "--node", node, "--admin-addr", "127.0.0.1:0", "--data-dir", data];
        arguments.extend(servers.iter().flat_map(|server| ["--server", server]));
        arguments.extend(flags);
        let (process, ready) = start(&arguments, directory.path(), "proxy").await;
        Self { process, admin: Api::new(ready.admin.unwrap()), directory, node: node.to_owned() }
    }

    /// Starts again with the same data; the old process has to be gone.
    pub async fn restart(self, xds: SocketAddr) -> Self {
        self.restart_with(xds, &[]).await
    }

    /// The same, with flags beside the usual ones.
    pub async fn restart_with(self, xds: SocketAddr, flags: &[&str]) -> Self {
        let Self { directory, node, .. } = self;
        Self::start_in(directory, &node, &[xds], flags).await
    }

    /// Where a gateway listens, once it does.
    pub async fn gateway(&self, name: &str) -> SocketAddr {
        until("the gateway to listen", Duration::from_secs(10), async || {
            let listeners: Vec<Listener> = self.admin.read("/listeners").await.ok()?;
            listeners.into_iter().find(|l| l.name == name).map(|l| l.address)
        })
        .await
    }

    /// Its metrics as text.
    pub async fn metrics(&self) -> String {
        self.admin.text("/metrics").await.unwrap()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("proxy.log")).unwrap_or_default()
    }
}

/// A manifest for service `shop` with `versions` and `weights`, behind gateway `edge` at `listen`.
pub fn manifest(listen: &str, weights: &[(&str, u32)]) -> String {
    let versions: Vec<String> = weights.iter().map(|(v, _)| format!("  {v}: {{}}\n")).collect();
    let versions = versions.concat();
    let weights: Vec<String> = weights.iter().map(|(v, w)| format!("{v}: {w}")).collect();
    format!(
        "kind: Service\nname: shop\nversions:\n{versions}split: {{weights: {{{}}}}}\n\
         ---\nkind: Gateway\nname: edge\nlisten: {listen}\n\
         ---\nkind: Route\nname: all\ngateway: edge\nrules: [{{service: shop}}]\n",
        weights.join(", ")
    )
}
