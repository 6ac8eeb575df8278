//! The proxies, each configured for what all of them do here: HTTP/1.1 keep-alive to clients and to the
//! upstream with pools that never run out, `x-forwarded-for`, time-outs that do not fire, no access log,
//! no TLS to the upstream, and one worker. Where a program has a faster way that its manual recommends
//! for production, it is taken; the comment beside each configuration says which.
//!
//! Peers get one upstream address and no routes to choose from. Sluicegate gets a thousand hosts, a
//! 90/10 split over two versions with two endpoints each (all of them the same upstream process), P2C,
//! metrics and exact concurrency: what is not cheaper for it.

mod envoy;
mod haproxy;
mod nginx;
mod relay;
mod sluicegate;

use std::{any::Any, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use clap::ValueEnum;
use serde::Serialize;
use tokio::net::TcpStream;

use super::{scenario::Front, usage::family};
use crate::until;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum Kind {
    Sluicegate,
    Nginx,
    HaProxy,
    Envoy,
    Relay,
}

impl Kind {
    pub const ALL: [Self; 5] = [Self::Sluicegate, Self::Nginx, Self::HaProxy, Self::Envoy, Self::Relay];

    pub fn label(self) -> &'static str {
        match self {
            Self::Sluicegate => "Sluicegate",
            Self::Nginx => "nginx",
            Self::HaProxy => "HAProxy",
            Self::Envoy => "Envoy",
            Self::Relay => "raw relay",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sluicegate => "sluicegate",
            Self::Nginx => "nginx",
            Self::HaProxy => "haproxy",
            Self::Envoy => "envoy",
            Self::Relay => "relay",
        })
    }
}

/// What a subject is started for.
#[derive(Clone, Debug)]
pub struct Setup {
    pub front: Front,
    /// Addresses of the same upstream; peers use the first.
    pub upstream: Vec<SocketAddr>,
    pub hosts: Vec<String>,
    pub workers: u32,
    pub cores: Vec<usize>,
    /// Where what is not measured runs, Sluicegate's server for example.
    pub other_cores: Vec<usize>,
    pub certificate: Certificate,
    /// File descriptors that a process can have.
    pub descriptors: u64,
}

/// A certificate and its key, as PEM files.
#[derive(Clone, Debug)]
pub struct Certificate {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Both in one file, as `HAProxy` reads them.
    pub both: PathBuf,
}

/// A proxy that runs.
pub struct Subject {
    pub kind: Kind,
    pub address: SocketAddr,
    /// All its processes, which are measured together.
    pub pids: Vec<u32>,
    _running: Box<dyn Any>,
}

impl Subject {
    /// Starts one; an error says why it cannot be measured.
    pub async fn start(kind: Kind, setup: &Setup) -> anyhow::Result<Self> {
        match kind {
            Kind::Sluicegate => sluicegate::start(setup).await,
            Kind::Nginx => nginx::start(setup).await,
            Kind::HaProxy => haproxy::start(setup).await,
            Kind::Envoy => envoy::start(setup).await,
            Kind::Relay => relay::start(setup).await,
        }
    }

    /// Waits until the process listens, and finds its workers.
    async fn listening(
        kind: Kind,
        address: SocketAddr,
        pid: u32,
        running: impl Any,
        log: impl Fn() -> String,
    ) -> anyhow::Result<Self> {
        let connected = tokio::time::timeout(
            Duration::from_secs(10),
            until("a subject to listen", Duration::from_mins(1), async || {
                TcpStream::connect(address).await.ok()
            }),
        );
        if connected.await.is_err() {
            anyhow::bail!("{kind} does not listen: {}", log().trim());
        }
        Ok(Self { kind, address, pids: family(pid), _running: Box::new(running) })
    }
}
