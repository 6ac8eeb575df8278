//! etcd (Debian's `etcd-server`): members that can be stopped, killed and started again in place.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use hyper::Method;
use serde_json::{Value, json};
use tokio::{net::TcpListener, process::Command};

use crate::{api::Api, process::Process, temp::TempDir, until};

pub struct Etcd {
    pub process: Process,
    /// Where clients find it; its JSON gateway as well.
    pub address: SocketAddr,
    api: Api,
    number: usize,
    /// Every member and where the others find it.
    peers: String,
    /// Further addresses of this machine at which it listens.
    further: Vec<IpAddr>,
    directory: TempDir,
}

impl Etcd {
    /// A new member with nothing in it.
    pub async fn start() -> Self {
        Self::start_at(&[]).await
    }

    /// The same, which listens at `further` addresses of this machine too.
    pub async fn start_at(further: &[IpAddr]) -> Self {
        let peers = format!("m0=http://{}", free_port().await);
        let etcd = Self::member(0, &peers, further).await;
        etcd.answers().await;
        etcd
    }

    /// `count` new members of one cluster, which any majority of them keeps up.
    pub async fn cluster(count: usize) -> Vec<Self> {
        let mut peers = Vec::new();
        for i in 0..count {
            peers.push(format!("m{i}=http://{}", free_port().await));
        }
        let peers = peers.join(",");
        let mut members = Vec::new();
        for i in 0..count {
            members.push(Self::member(i, &peers, &[]).await);
        }
        for member in &members {
            member.answers().await;
        }
        members
    }

    async fn member(number: usize, peers: &str, further: &[IpAddr]) -> Self {
        let (directory, address) = (TempDir::new(), free_port().await);
        let (peers, further) = (peers.to_owned(), further.to_vec());
        let process = start(directory.path(), number, address, &peers, &further);
        Self { process, address, api: Api::new(address), number, peers, further, directory }
    }

    /// What `--store` takes.
    pub fn url(&self) -> String {
        format!("etcd://{}/test", self.address)
    }

    /// The same for who logs in as `user:password`.
    pub fn url_for(&self, login: &str) -> String {
        let at = if login.is_empty() { "" } else { "@" };
        format!("etcd://{login}{at}{}/test", self.address)
    }

    /// Starts it again with what it had; the old process has to be gone.
    pub async fn restart(&mut self) {
        self.start_again();
        self.answers().await;
    }

    /// Forgets the history of everything: who was away cannot follow change by change.
    pub async fn compact(&self) {
        let newest = self.ask("/v3/kv/range", &json!({"key": "AA=="})).await.expect("etcd answers");
        let revision = newest["header"]["revision"].clone();
        let answer = self.ask("/v3/kv/compaction", &json!({"revision": revision, "physical": true})).await;
        assert!(answer.is_some(), "etcd compacts up to {revision}");
    }

    /// The same without waiting until it answers, which it does not while it is alone.
    pub fn start_again(&mut self) {
        self.process = start(self.directory.path(), self.number, self.address, &self.peers, &self.further);
    }

    /// Removes all that it had; its process has to be gone.
    pub fn forget(&self) {
        std::fs::remove_dir_all(self.directory.join("data")).unwrap();
    }

    /// From now on only `root` with this password may do anything.
    pub async fn require_password(&self, password: &str) {
        let root = json!({"name": "root", "password": password});
        let grant = json!({"user": "root", "role": "root"});
        for (what, body) in [("user/add", root), ("role/add", json!({"name": "root"})), ("user/grant", grant)]
        {
            self.ask(&format!("/v3/auth/{what}"), &body).await.unwrap_or_else(|| panic!("etcd takes {what}"));
        }
        self.ask("/v3/auth/enable", &json!({})).await.expect("etcd asks for a password");
    }

    /// Ends every lease at once, as if nobody had renewed it; says how many there were.
    pub async fn end_leases(&self) -> usize {
        let listed = self.ask("/v3/lease/leases", &json!({})).await.expect("etcd lists its leases");
        let leases: Vec<Value> = listed["leases"].as_array().cloned().unwrap_or_default();
        for lease in &leases {
            self.ask("/v3/lease/revoke", &json!({"ID": lease["ID"]})).await.expect("etcd ends a lease");
        }
        leases.len()
    }

    async fn answers(&self) {
        until("etcd to answer", Duration::from_secs(20), async || {
            self.ask("/v3/kv/range", &json!({"key": "AA=="})).await
        })
        .await;
    }

    /// One call of its JSON gateway; `None` when it fails.
    async fn ask(&self, path: &str, body: &Value) -> Option<Value> {
        let sent = self.api.send(Method::POST, path, "application/json", body.to_string());
        let (status, body) = sent.await.ok()?;
        status.is_success().then(|| serde_json::from_slice(&body).ok())?
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("etcd.log")).unwrap_or_default()
    }
}

fn start(directory: &Path, number: usize, address: SocketAddr, peers: &str, further: &[IpAddr]) -> Process {
    let binary = super::find("etcd").expect("etcd is not installed: .ci/install test installs it");
    let (name, client) = (format!("m{number}"), format!("http://{address}"));
    let peer = peers.split(',').find_map(|peer| peer.strip_prefix(&name)?.strip_prefix('='));
    let peer = peer.expect("a member is one of the peers");
    let mut command = Command::new(binary);
    command.args(["--name", &name, "--log-level", "warn", "--data-dir"]).arg(directory.join("data"));
    let further = further.iter().map(|ip| format!(",http://{}", SocketAddr::new(*ip, address.port())));
    let listen = format!("{client}{}", further.collect::<String>());
    command.args(["--listen-client-urls", &listen, "--advertise-client-urls", &client]);
    command.args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]);
    command.args(["--initial-cluster", peers]);
    // The machine may say otherwise for an etcd of its own.
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("ETCD_")) {
        command.env_remove(name);
    }
    Process::start(command, &directory.join("etcd.log"))
}

/// A port that it finds again after a restart: below those that the kernel gives out.
async fn free_port() -> SocketAddr {
    for _ in 0..100 {
        let port = fastrand::u16(10_000..32_000);
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)).await {
            return listener.local_addr().unwrap();
        }
    }
    panic!("none of a hundred ports is free");
}
