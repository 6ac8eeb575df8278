//! Settings of the processes: what is decided before the first configuration arrives.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use crate::{
    etcd::EtcdUrl,
    tls::{CertificateFiles, ClientTls},
};

/// Default address of the HTTP API: loopback, which needs no authentication.
pub const DEFAULT_API_ADDR: &str = "127.0.0.1:18080";
/// Default address of the xDS server: loopback, which needs no authentication.
pub const DEFAULT_XDS_ADDR: &str = "127.0.0.1:18000";
/// Default address of a proxy's admin interface.
pub const DEFAULT_ADMIN_ADDR: &str = "127.0.0.1:19000";

/// Settings of an xDS server.
#[derive(Clone, Debug)]
pub struct ServerSettings {
    /// Where the HTTP API listens; port 0 chooses a free one.
    pub api_addr: SocketAddr,
    /// Where xDS listens; port 0 chooses a free one.
    pub xds_addr: SocketAddr,
    /// Where the embedded store keeps its file; created when missing.
    pub data_dir: PathBuf,
    /// How long a registration by connection may take to come back after a restart of the server.
    pub hold_grace: Duration,
    /// How often proxies are asked to report their load.
    pub load_interval: Duration,
    /// The access file of the API; without one, whoever reaches the API may do everything.
    pub access: Option<PathBuf>,
    /// What the API and xDS speak TLS with; `None` in the clear.
    pub tls: Option<ServerTls>,
    /// Whether to listen beyond loopback though nobody would have to say who they are.
    pub insecure: bool,
    /// The store that several servers share; `None` keeps everything in `data_dir`.
    pub shared: Option<SharedStore>,
}

/// The TLS of a server's listeners, as PEM files that are followed when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    /// What the server shows.
    pub certificate: CertificateFiles,
    /// The authorities of its clients: with them clients of xDS have to show a certificate, and clients
    /// of the API may.
    pub client_ca: Option<PathBuf>,
}

/// A store that several servers share.
#[derive(Clone, Debug)]
pub struct SharedStore {
    /// Where it is.
    pub etcd: EtcdUrl,
    /// What the others call this server when it has changed something.
    pub server: String,
}

impl ServerSettings {
    /// The defaults, with data in `data_dir`.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            api_addr: DEFAULT_API_ADDR.parse().expect("a constant address"),
            xds_addr: DEFAULT_XDS_ADDR.parse().expect("a constant address"),
            data_dir: data_dir.into(),
            hold_grace: Duration::from_secs(10),
            load_interval: Duration::from_secs(1),
            access: None,
            tls: None,
            insecure: false,
            shared: None,
        }
    }
}

/// Settings of an edge proxy.
#[derive(Clone, Debug)]
pub struct ProxySettings {
    /// The `id` of its xDS node: unique among the proxies of a server, stable over restarts.
    pub node_id: String,
    /// The `cluster` of its xDS node: the group of proxies it belongs to.
    pub node_cluster: String,
    /// xDS servers, as `host:port`, in order of preference; at least one.
    pub servers: Vec<String>,
    /// How the servers are reached over TLS; `None` in the clear. Files are read for each connection.
    pub xds_tls: Option<ClientTls>,
    /// The name that the servers' certificates are for; `None` is the host of each.
    pub xds_name: Option<String>,
    /// The gateways it serves, which are the names of listeners; all of them when it is empty.
    pub gateways: Vec<String>,
    /// Where the admin interface listens; port 0 chooses a free one.
    pub admin_addr: SocketAddr,
    /// Where the last good configuration is kept; `None` keeps none.
    pub last_good: Option<PathBuf>,
    /// Where the access log goes; `None` writes none.
    pub access_log: Option<AccessLog>,
    /// How long in-flight requests may take to finish when the proxy stops.
    pub drain_timeout: Duration,
    /// Threads that serve requests; 0 means one a core.
    pub threads: usize,
}

impl ProxySettings {
    /// The defaults, for a proxy called `node_id` that follows `servers`.
    pub fn new(node_id: impl Into<String>, servers: Vec<String>) -> Self {
        Self {
            node_id: node_id.into(),
            node_cluster: "edge".to_owned(),
            servers,
            xds_tls: None,
            xds_name: None,
            gateways: Vec::new(),
            admin_addr: DEFAULT_ADMIN_ADDR.parse().expect("a constant address"),
            last_good: None,
            access_log: None,
            drain_timeout: Duration::from_secs(30),
            threads: 0,
        }
    }
}

/// Where a JSON access log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// Standard output.
    Stdout,
    /// Appended to a file.
    File(PathBuf),
}
