//! TLS: which files a gateway and a service name, and what those files hold.
//!
//! - this file: the names, as manifests and xDS carry them. Nothing here opens a file.
//! - `pair`: the bytes of a certificate and its key → a [`Certificate`] to serve with. Pure.
//! - `secret`: which certificates a gateway names. `pem`: a pair that came as text. Pure.
//! - `identity`: whom a client certificate speaks for. Pure.
//! - `files`: reads files, within a bound. `fingerprint`: whether they changed since. `client`: what
//!   connections to a control plane start with. No other room of this crate reads files.
//!
//! A gateway names its certificates in one of two ways. As files, by paths that every proxy reads for
//! itself: private keys are neither stored by the server nor sent over the network. Or as secrets, which the
//! server was given over its API, and gives to proxies over SDS.

mod client;
mod files;
mod fingerprint;
mod identity;
mod pair;
mod pem;
mod secret;

use std::path::{Path, PathBuf};

use rustls::pki_types::DnsName;
use serde::Serialize;

pub use client::{ClientError, ClientTls};
pub use files::{Fault, FileError, MAX_FILE, read, read_ca};
pub use fingerprint::{Fingerprint, contents};
pub use identity::identities;
pub use pair::{Certificate, PairError, Part, Validity, authorities, certified_key};
pub use pem::CertificatePem;
pub use secret::{Certificates, SecretRef};

/// How many certificates a gateway may have.
pub const MAX_CERTIFICATES: usize = 1_000;
/// The longest path, in bytes (Linux `PATH_MAX`, without its final zero).
const MAX_PATH: usize = 4_095;

/// The protocols a gateway with TLS offers, best first (RFC 7301 §6, RFC 9113 §3.1).
pub const GATEWAY_ALPN: [&str; 2] = ["h2", "http/1.1"];

/// A certificate and its private key, both as PEM files where the proxy runs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct CertificateFiles {
    /// The chain: the certificate itself first, then its intermediates.
    pub cert: PathBuf,
    /// The private key: PKCS#8, SEC1 or PKCS#1.
    pub key: PathBuf,
}

/// How a gateway terminates TLS.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct GatewayTls {
    /// What it can show. Clients that name no host, or one that no certificate is for, are shown the first.
    pub certificates: Certificates,
}

/// How a proxy connects to the instances of a service over TLS.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UpstreamTls {
    /// A PEM file with the certificates that are trusted to sign those of the instances.
    pub ca: PathBuf,
    /// The name that is sent (RFC 6066 §3), and that the certificate must be for (RFC 9525 §6). A DNS
    /// name as [`check_sni`] allows it, in lower case.
    pub sni: String,
}

/// Why a server name was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SniError {
    /// It is empty.
    #[error(
        "is empty; without a name the certificate of an instance could not be checked: give the DNS name it is for, for example `checkout.internal`"
    )]
    Empty,
    /// It is not a DNS name.
    #[error(
        "is not a DNS name; use one such as `checkout.internal`: no wildcard, no port, no final dot, and no IP address (RFC 6066 §3 allows none)"
    )]
    NotDns,
}

/// Whether `name` can be the server name of a connection.
///
/// # Errors
/// When it is empty or not a DNS name.
pub fn check_sni(name: &str) -> Result<(), SniError> {
    if name.is_empty() {
        return Err(SniError::Empty);
    }
    let is_dns = !name.ends_with('.') && DnsName::try_from(name).is_ok();
    if is_dns { Ok(()) } else { Err(SniError::NotDns) }
}

/// Why a path was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// It depends on where a process was started.
    #[error(
        "is not an absolute path; the server and every proxy read the file, each from its own directory: write it from the root, for example `/etc/sluicegate/edge.pem`"
    )]
    Relative,
    /// No file can be called that.
    #[error("is not the path of a file: it has at most 4095 bytes and none that is zero")]
    Impossible,
}

/// Whether a manifest may name the file at `path`.
///
/// # Errors
/// When it is relative, or no path at all.
pub fn check_path(path: &str) -> Result<(), PathError> {
    if path.len() > MAX_PATH || path.contains('\0') {
        return Err(PathError::Impossible);
    }
    if Path::new(path).is_absolute() { Ok(()) } else { Err(PathError::Relative) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_name_is_a_dns_name() {
        for good in ["checkout.internal", "localhost", "a-b.c_d.example", "xn--bcher-kva.example"] {
            assert_eq!(check_sni(good), Ok(()), "{good}");
        }
        assert_eq!(check_sni(""), Err(SniError::Empty));
        let long = format!("{}.example", "x".repeat(64));
        for bad in
            ["127.0.0.1", "::1", "[::1]", "*.example.com", "a:443", "a.", ".a", "a b", "é", long.as_str()]
        {
            assert_eq!(check_sni(bad), Err(SniError::NotDns), "{bad}");
        }
    }

    #[test]
    fn a_path_starts_at_the_root() {
        assert_eq!(check_path("/etc/edge.pem"), Ok(()));
        for bad in ["", "edge.pem", "./edge.pem", "~/edge.pem"] {
            assert_eq!(check_path(bad), Err(PathError::Relative), "{bad}");
        }
        for bad in ["/a\0b".to_owned(), format!("/{}", "a".repeat(4_095))] {
            assert_eq!(check_path(&bad), Err(PathError::Impossible));
        }
    }
}
