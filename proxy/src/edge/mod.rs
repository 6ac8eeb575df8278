//! Where requests come in.
//!
//! - [`policy`]: what happens to a request, as plain functions; knows no protocol and does no I/O.
//! - [`h1`]: HTTP/1 as bytes, pure.
//! - [`lean`]: the engine for HTTP/1 on both sides. It asks `policy` and carries out.
//! - [`general`]: the engine for whatever has HTTP/2 on one side at least.
//! - [`connection`]: from an accepted socket to the engine its protocol belongs to. [`stream`]: its
//!   bytes, in clear or through TLS. [`upstream`]: connections to endpoints.
//! - [`gateway`]: what all connections of a gateway share. [`answer`]: what the proxy says itself;
//!   [`fault`]: why, when an attempt failed.
//! - [`listener`]: sockets and accept loops; added, changed and removed while running.

mod answer;
mod connection;
mod fault;
mod gateway;
pub(crate) mod general;
pub(crate) mod h1;
mod lean;
pub(crate) mod listener;
pub(crate) mod policy;
pub(crate) mod stream;
mod upstream;
