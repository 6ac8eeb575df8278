//! Where requests come in.
//!
//! - [`policy`]: what happens to a request, as plain functions; knows no protocol and does no I/O.
//! - [`http`]: the engine that moves HTTP, on pingora-proxy. It asks `policy` and carries out.
//! - [`downstream`]: one client connection as pingora wants to see it.
//! - [`listener`]: sockets and accept loops; added, changed and removed while running.

mod downstream;
mod http;
pub(crate) mod listener;
pub(crate) mod policy;
