//! An authority of the test's own, made with the openssl command.

use std::path::{Path, PathBuf};

use load_tests::temp::TempDir;
use tokio::process::Command;

use super::peer;

pub(crate) struct Authority {
    directory: TempDir,
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    /// As a gateway's manifest names it.
    pub(crate) fn yaml(&self) -> String {
        format!("{{cert: {}, key: {}}}", self.cert.display(), self.key.display())
    }

    /// Puts this pair in the place of another, one file at a time, each in one step (rename(2)).
    pub(crate) fn replace(&self, other: &Self) {
        for (from, to) in [(&self.cert, &other.cert), (&self.key, &other.key)] {
            // A rename within the directory, so that this pair stays where it is.
            let beside = to.with_extension("new");
            std::fs::copy(from, &beside).unwrap();
            std::fs::rename(&beside, to).unwrap();
        }
    }
}

impl Authority {
    pub(crate) async fn new() -> Self {
        let authority = Self { directory: TempDir::new() };
        let (key, cert) = (authority.path("ca.key"), authority.ca());
        let mut arguments = vec!["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=Test authority"];
        arguments.extend(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
        arguments.extend(["-addext", "keyUsage=critical,keyCertSign,cRLSign"]);
        arguments.extend(["-keyout", text(&key), "-out", text(&cert)]);
        openssl(&arguments, b"").await.ok();
        authority
    }

    /// Its own certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A file in its directory, which goes with it.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The files of a pair that was issued as `file`.
    pub(crate) fn pair(&self, file: &str) -> Pair {
        Pair { cert: self.path(&format!("{file}.pem")), key: self.path(&format!("{file}.key")) }
    }

    /// A certificate for a DNS name, with a key of its own.
    pub(crate) async fn issue(&self, file: &str, dns: &str, serial: u32) -> Pair {
        self.issue_for(file, &format!("DNS:{dns}"), "serverAuth", serial).await
    }

    /// A certificate for names as openssl writes them, for example `DNS:a.example,IP:127.0.0.1`.
    pub(crate) async fn issue_for(&self, file: &str, names: &str, usage: &str, serial: u32) -> Pair {
        let Pair { cert, key } = self.pair(file);
        let (request, extensions) = (cert.with_extension("csr"), cert.with_extension("ext"));
        let subject = format!("/CN={file}");
        let mut arguments = vec!["req", "-new", "-nodes", "-subj", &subject, "-newkey", "ec", "-pkeyopt"];
        arguments.extend(["ec_paramgen_curve:prime256v1", "-keyout", text(&key), "-out", text(&request)]);
        openssl(&arguments, b"").await.ok();
        let content =
            format!("basicConstraints=CA:FALSE\nextendedKeyUsage={usage}\nsubjectAltName={names}\n");
        std::fs::write(&extensions, content).unwrap();
        let (serial, ca, ca_key) = (serial.to_string(), self.ca(), self.path("ca.key"));
        let mut arguments = vec!["x509", "-req", "-days", "2", "-set_serial", &serial];
        arguments.extend(["-in", text(&request), "-CA", text(&ca), "-CAkey", text(&ca_key)]);
        arguments.extend(["-extfile", text(&extensions), "-out", text(&cert)]);
        openssl(&arguments, b"").await.ok();
        Pair { cert, key }
    }
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs openssl with these arguments and this input.
pub(crate) async fn openssl(arguments: &[&str], input: &[u8]) -> peer::Said {
    let mut command = Command::new(peer::find("openssl"));
    command.args(arguments);
    peer::run_with(command, input).await
}
