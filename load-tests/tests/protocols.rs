//! Clients and servers that are not ours, through the real proxy: each pair of protocols.
//!
//! - `curl`: HTTP/1.0, HTTP/1.1 and HTTP/2 without TLS, before nginx and Node.
//! - `h2`: h2load and curl before nghttpd, and each against the other protocol.
//! - `grpc`: grpcio on both sides. `websocket`: ws on both sides.
//!
//! The scripts beside them report what they saw as JSON; what is right is said here.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

#[path = "protocols/curl.rs"]
mod curl;
#[path = "protocols/grpc.rs"]
mod grpc;
#[path = "protocols/h2.rs"]
mod h2;
mod support;
#[path = "protocols/websocket.rs"]
mod websocket;
