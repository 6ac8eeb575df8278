//! Where the processes listen: for people on stderr, for programs in a file.

use std::{fmt, fs, io, net::SocketAddr, path::Path};

use serde::{Deserialize, Serialize};

use super::ServerAt;

/// What the ready file says.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    pid: u32,
    /// The HTTP API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<SocketAddr>,
    /// The xDS server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) xds: Option<SocketAddr>,
    /// The proxy's admin interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) admin: Option<SocketAddr>,
    /// Whether the API and xDS speak TLS.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tls: bool,
}

impl Ready {
    pub(super) fn new(server: Option<ServerAt>, admin: Option<SocketAddr>) -> Self {
        let pid = std::process::id();
        let tls = server.is_some_and(|s| s.has_tls);
        Self { pid, api: server.map(|s| s.api), xds: server.map(|s| s.xds), admin, tls }
    }

    /// Writes the file whole or not at all: who finds it can read it.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}", self.pid));
        fs::write(&name, serde_json::to_vec(self)?)?;
        fs::rename(&name, path)
    }
}

impl fmt::Display for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |what: &str, at: Option<SocketAddr>, scheme: &str| match at {
            Some(at) => writeln!(f, "{what:<6} {scheme}{at}"),
            None => Ok(()),
        };
        line("API", self.api, if self.tls { "https://" } else { "http://" })?;
        line("xDS", self.xds, if self.tls { "(TLS) " } else { "" })?;
        line("admin", self.admin, "http://")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_applies_is_written() {
        let path = std::env::temp_dir().join(format!("sluicegate-ready-{}", fastrand::u64(..)));
        let ready = Ready::new(None, Some("127.0.0.1:19000".parse().unwrap()));
        ready.write(&path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(text, format!(r#"{{"pid":{},"admin":"127.0.0.1:19000"}}"#, std::process::id()));
        assert_eq!(ready.to_string(), "admin  http://127.0.0.1:19000\n");
    }
}
