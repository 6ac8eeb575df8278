//! Flags of the processes, and the settings they make.

use std::{fs, io, net::SocketAddr, path::PathBuf, str::FromStr, time::Duration};

use anyhow::Context;
use clap::Args;
use config::{
    CertificateFiles,
    bootstrap::{
        AccessLog, DEFAULT_ADMIN_ADDR, DEFAULT_API_ADDR, DEFAULT_XDS_ADDR, ProxySettings, ServerSettings,
        ServerTls, SharedStore,
    },
    etcd::EtcdUrl,
    tls::ClientTls,
};

use super::ready::Ready;
use crate::{exit::Invalid, flags::duration, process::hostname};

/// Where a process keeps what must survive it.
#[derive(Args)]
pub(super) struct Data {
    /// Where state is kept; created when missing
    #[arg(long, default_value = "sluicegate-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Data {
    /// Where the proxy `node` keeps its last good configuration.
    pub(super) fn last_good(&self, node: &str) -> anyhow::Result<PathBuf> {
        let dir = &self.data_dir;
        fs::create_dir_all(dir).with_context(|| format!("cannot create --data-dir {}", dir.display()))?;
        // A node id is free text; a file name is not.
        let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.') { c } else { '_' };
        Ok(dir.join(format!("last-good-{}", node.chars().map(plain).collect::<String>())))
    }
}

#[derive(Args)]
pub(super) struct Server {
    /// Where the HTTP API listens; beyond loopback it needs --access and --tls-cert
    #[arg(long, default_value = DEFAULT_API_ADDR, value_name = "ADDRESS")]
    api_addr: SocketAddr,
    /// Where xDS listens; beyond loopback it needs --tls-cert and --client-ca
    #[arg(long, default_value = DEFAULT_XDS_ADDR, value_name = "ADDRESS")]
    xds_addr: SocketAddr,
    /// How often proxies are asked to report their load, 10ms to 1h
    #[arg(long, value_parser = duration, default_value = "1s", value_name = "TIME")]
    load_interval: Duration,
    /// Who may do what on the API, by token or client certificate, and which proxy may be which node
    #[arg(long, value_name = "FILE")]
    access: Option<PathBuf>,
    /// The certificate that the API and xDS show, as a PEM file with its chain; they speak TLS then
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// Its private key, as a PEM file
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authorities of client certificates, as a PEM file; xDS then asks for one, which names the node
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    client_ca: Option<PathBuf>,
    /// Listen beyond loopback though nobody would have to say who they are
    #[arg(long)]
    insecure: bool,
    // Not as documentation, in which brackets are links.
    #[arg(
        long,
        env = "SLUICEGATE_STORE",
        hide_env_values = true,
        value_name = "URL",
        help = "An etcd cluster that any number of servers share, instead of a file in --data-dir: \
                etcd://[USER:PASSWORD@]HOST:PORT[,HOST:PORT…][/PREFIX]"
    )]
    store: Option<EtcdUrl>,
}

impl Server {
    pub(super) fn settings(&self, data: &Data) -> ServerSettings {
        let defaults = ServerSettings::new(&data.data_dir);
        let tls = pair(self.tls_cert.as_ref(), self.tls_key.as_ref())
            .map(|certificate| ServerTls { certificate, client_ca: self.client_ca.clone() });
        ServerSettings {
            api_addr: self.api_addr,
            xds_addr: self.xds_addr,
            access: self.access.clone(),
            tls,
            insecure: self.insecure,
            load_interval: self.load_interval,
            shared: self.store.clone().map(|etcd| SharedStore { etcd, server: server_name() }),
            ..defaults
        }
    }
}

/// What the other servers call this one: two of them may be on one host.
fn server_name() -> String {
    format!("{}/{}", hostname(), std::process::id())
}

/// Both or neither, which the command line has seen to.
fn pair(cert: Option<&PathBuf>, key: Option<&PathBuf>) -> Option<CertificateFiles> {
    Some(CertificateFiles { cert: cert?.clone(), key: key?.clone() })
}

#[derive(Args)]
pub(super) struct Proxy {
    /// Where the proxy's admin interface listens
    #[arg(long, default_value = DEFAULT_ADMIN_ADDR, value_name = "ADDRESS")]
    admin_addr: SocketAddr,
    /// The proxy's id: unique among the proxies of a server, stable over restarts [default: this host]
    #[arg(long, value_name = "ID")]
    node: Option<String>,
    /// Serve this gateway only, and hold only what it routes; repeat it for several [default: all]
    #[arg(long = "gateway", value_name = "NAME", value_parser = gateway)]
    gateways: Vec<String>,
    /// Threads that serve requests; 0 means one a core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// Write a JSON access log to this file, or to standard output with -
    #[arg(long, value_name = "FILE|-")]
    access_log: Option<PathBuf>,
    /// How long in-flight requests may take to finish when it stops
    #[arg(long, value_parser = duration, default_value = "30s", value_name = "TIME")]
    drain_timeout: Duration,
    /// The authorities to know xDS servers by, as a PEM file; they are reached over TLS then
    #[arg(long, value_name = "FILE")]
    xds_ca: Option<PathBuf>,
    /// The certificate to show them, which says what node this may be, as a PEM file with its chain
    #[arg(long, value_name = "FILE", requires = "xds_key", requires = "xds_ca")]
    xds_cert: Option<PathBuf>,
    /// Its private key, as a PEM file
    #[arg(long, value_name = "FILE", requires = "xds_cert")]
    xds_key: Option<PathBuf>,
    /// The name that the servers' certificates are for [default: the host of each]
    #[arg(long, value_name = "NAME", requires = "xds_ca")]
    xds_name: Option<String>,
}

impl Proxy {
    /// Whether the proxy beside a server with these settings could follow it.
    pub(super) fn can_follow(&self, server: &ServerSettings) -> anyhow::Result<()> {
        let Some(tls) = &server.tls else { return Ok(()) };
        let lacks = if self.xds_ca.is_none() {
            "--xds-ca, the authorities to know the server's --tls-cert by"
        } else if tls.client_ca.is_some() && self.xds_cert.is_none() {
            "--xds-cert and --xds-key, the certificate it shows the server"
        } else {
            return Ok(());
        };
        Err(Invalid(format!(
            "with --tls-cert the proxy of `serve` follows the server over TLS; give {lacks}"
        ))
        .into())
    }

    pub(super) fn settings(&self, servers: Vec<String>) -> ProxySettings {
        let defaults = ProxySettings::new(self.node.clone().unwrap_or_else(hostname), servers);
        let access_log = self.access_log.clone().map(|path| match path.to_str() {
            Some("-") => AccessLog::Stdout,
            _ => AccessLog::File(path),
        });
        ProxySettings {
            admin_addr: self.admin_addr,
            gateways: self.gateways.clone(),
            threads: self.threads,
            access_log,
            drain_timeout: self.drain_timeout,
            xds_tls: self
                .xds_ca
                .clone()
                .map(|ca| ClientTls { ca, certificate: pair(self.xds_cert.as_ref(), self.xds_key.as_ref()) }),
            xds_name: self.xds_name.clone(),
            ..defaults
        }
    }
}

/// The name of a listener, of whatever server: not only of a gateway of ours.
fn gateway(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a gateway has a name".to_owned()),
        "*" => Err("`*` is not a gateway; without --gateway it is all of them".to_owned()),
        name => Ok(name.to_owned()),
    }
}

/// What every long-lived process has.
#[derive(Args)]
pub(super) struct Process {
    /// Write a JSON file with the process id and the addresses, once it listens
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// Stop when standard input ends, for parents that must not leave it behind
    #[arg(long, hide = true)]
    pub(super) until_stdin_closes: bool,
}

impl Process {
    /// Before anything listens: room for connections, and no word of a former life.
    pub(super) fn prepare(&self) -> anyhow::Result<()> {
        // Two descriptors a request add up; the soft limit is often 1024.
        if let Err(error) = rlimit::increase_nofile_limit(u64::MAX) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
        match self.ready_file.as_ref().map(|path| (path, fs::remove_file(path))) {
            Some((path, Err(error))) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot replace --ready-file {}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Says where it listens.
    pub(super) fn announce(&self, ready: &Ready) -> anyhow::Result<()> {
        // Not on stdout, where the access log may go.
        eprint!("{ready}");
        match &self.ready_file {
            Some(path) => {
                ready.write(path).with_context(|| format!("cannot write --ready-file {}", path.display()))
            }
            None => Ok(()),
        }
    }
}

/// `host:port`; the host is resolved at each connection, because its addresses may change.
#[derive(Clone, Debug)]
pub(super) struct HostPort(pub(super) String);

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let valid = text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        if valid {
            Ok(Self(text.to_owned()))
        } else {
            Err(format!("`{text}` is not host:port, like 10.0.0.5:18000"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_host_and_a_port() {
        for good in ["127.0.0.1:18000", "xds.internal:1", "[::1]:18000"] {
            assert!(good.parse::<HostPort>().is_ok(), "{good}");
        }
        for bad in ["", "host", ":1", "host:", "host:0", "host:65536", "http://host:1"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_last_good_file_of_any_node_stays_in_its_directory() {
        let dir = std::env::temp_dir().join(format!("sluicegate-{}", fastrand::u64(..)));
        let path = Data { data_dir: dir.clone() }.last_good("../a b").unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(path, dir.join("last-good-.._a_b"));
    }
}
