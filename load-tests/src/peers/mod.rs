//! Envoy, HAProxy, nginx, etcd and gRPC clients, as their packages ship them.

pub mod envoy;
pub mod etcd;
pub mod grpc;
pub mod haproxy;
pub mod nginx;

use std::path::PathBuf;

/// The path of a program, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|directory| directory.join(program)).find(|p| p.is_file())
}
