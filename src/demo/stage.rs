//! What the demo plays on: server, proxy and instances as child processes on free ports.

use std::{
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::time::sleep;
use xds_server::api::types::{Proxies, ServiceView};

use super::program::Program;
use crate::{client::Client, serve::Ready};

/// The service of the demo.
pub(super) const SERVICE: &str = "checkout";
/// How long anything may take to start. A machine that is busy compiling is slow.
const START_LIMIT: Duration = Duration::from_secs(15);
/// How often is asked whether something has happened.
pub(super) const POLL: Duration = Duration::from_millis(1);
/// How much of the server's log is shown when something fails.
const LOG_LINES: usize = 15;

const MANIFEST: &str = r#"
kind: Service
name: checkout
versions: {v1: {}, v2: {}}
split:
  weights: {v1: 100, v2: 0}
---
kind: Gateway
name: edge
listen: 127.0.0.1:0
---
kind: Route
name: shop
gateway: edge
hosts: ["*"]
rules:
- match: {path_prefix: /}
  service: checkout
"#;

/// The processes and their directory.
pub(super) struct Stage {
    // Dropped in this order: the directory goes when nobody writes to it any more.
    instances: Vec<Program>,
    server: Option<Program>,
    api: Option<Client>,
    dir: TempDir,
}

impl Stage {
    pub(super) fn new() -> anyhow::Result<Self> {
        Ok(Self { instances: Vec::new(), server: None, api: None, dir: TempDir::new()? })
    }

    /// Starts server and proxy, with the demo's manifest; where they listen.
    pub(super) async fn start_server(&mut self) -> anyhow::Result<Ready> {
        let manifest = self.dir.path("demo.yaml");
        let ready_file = self.dir.path("ready.json");
        fs::write(&manifest, MANIFEST)?;
        let free = "127.0.0.1:0";
        let arguments =
            ["serve", "-f", &manifest, "--ready-file", &ready_file, "--data-dir", &self.dir.path("data")];
        let addresses =
            ["--api-addr", free, "--xds-addr", free, "--admin-addr", free, "--drain-timeout", "2s"];
        let server =
            Program::start("the server", &[&arguments[..], &addresses].concat(), self.log("server")?)?;
        let server = self.server.insert(server);
        let deadline = Instant::now() + START_LIMIT;
        let ready: Ready = loop {
            if let Ok(text) = fs::read(&ready_file) {
                break serde_json::from_slice(&text)?;
            }
            if server.has_ended() {
                bail!("the server ended before it listened");
            }
            if Instant::now() > deadline {
                bail!("the server did not listen within {} s", START_LIMIT.as_secs());
            }
            sleep(POLL).await;
        };
        let api = ready.api.context("the ready file names no API")?;
        self.api = Some(Client::new(&format!("http://{api}"))?);
        Ok(ready)
    }

    /// The API of the server that was started.
    pub(super) fn api(&self) -> anyhow::Result<&Client> {
        self.api.as_ref().context("the server is started first")
    }

    /// Where the proxy's gateway listens. Port 0 let it choose, so only its admin interface knows.
    pub(super) async fn gateway(&self, admin: SocketAddr) -> anyhow::Result<SocketAddr> {
        let admin = Client::new(&format!("http://{admin}"))?;
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let listeners: Value = admin.get("/listeners").await?;
            let bound = listeners.get(0).and_then(|l| l.get("address")?.as_str()?.parse().ok());
            match bound {
                Some(address) => return Ok(address),
                None if Instant::now() > deadline => {
                    bail!("the proxy opened no listener; it has {listeners}")
                }
                None => sleep(POLL).await,
            }
        }
    }

    /// Starts an instance; when it was started, and when its registration was answered.
    pub(super) async fn start_instance(
        &mut self,
        version: &str,
        id: &str,
    ) -> anyhow::Result<(Instant, Instant)> {
        let api = self.api()?.base().to_owned();
        let arguments = ["echo", "--version", version, "--service", SERVICE, "--id", id, "--api", &api];
        let began = Instant::now();
        let mut instance = Program::start(id, &arguments, self.log(id)?)?;
        let registered = instance.says("registered", START_LIMIT).await?;
        self.instances.push(instance);
        Ok((began, registered))
    }

    /// Takes an instance off the stage, to be killed or stopped.
    pub(super) fn take(&mut self, id: &str) -> anyhow::Result<Program> {
        let found = self.instances.iter().position(|p| p.name == id);
        Ok(self.instances.swap_remove(found.with_context(|| format!("no instance is called {id}"))?))
    }

    /// Waits until neither the server nor a proxy knows the instance.
    pub(super) async fn forgotten(&self, id: &str, limit: Duration) -> anyhow::Result<Option<Instant>> {
        let deadline = Instant::now() + limit;
        let mut left_server = false;
        while Instant::now() < deadline {
            if !left_server {
                let view: ServiceView = self.api()?.get(format!("/v1/services/{SERVICE}")).await?;
                left_server = !view.versions.iter().flat_map(|v| &v.endpoints).any(|e| e.id.as_str() == id);
            }
            if left_server {
                let view: Proxies = self.api()?.get("/v1/proxies").await?;
                if !view.proxies.is_empty() && view.proxies.iter().all(|proxy| proxy.synced) {
                    return Ok(Some(Instant::now()));
                }
            }
            sleep(POLL).await;
        }
        Ok(None)
    }

    /// The end of what the server said on stderr.
    pub(super) fn server_log(&self) -> String {
        let log = fs::read_to_string(self.dir.path("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }

    /// Stops everything: the instances together, then the server they withdraw from.
    pub(super) async fn close(&mut self) {
        let stops = self.instances.drain(..).map(Program::stop);
        futures_util::future::join_all(stops).await;
        if let Some(server) = self.server.take() {
            let _ = server.stop().await;
        }
    }

    fn log(&self, name: &str) -> anyhow::Result<fs::File> {
        Ok(fs::File::create(self.dir.path(&format!("{name}.log")))?)
    }
}

/// A directory that is removed with this value.
struct TempDir(PathBuf);

impl TempDir {
    fn new() -> anyhow::Result<Self> {
        let name = format!("sluicegate-demo-{}-{:08x}", std::process::id(), fastrand::u32(..));
        let path = env::temp_dir().join(name);
        fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            eprintln!("could not remove {}: {error}", self.0.display());
        }
    }
}
