//! The xDS protocol over real streams: a whole server on port 0, driven by its HTTP API, and clients of
//! generated code. Each file is a theme; `support` has the server, the client and how it waits.
//!
//! Citations are sections of `docs/root/api-docs/xds_protocol.rst` of Envoy. Most tests run in every
//! variant of "Four Variants": incremental and state of the world, aggregated and a stream a type.

#![allow(
    clippy::unwrap_used,
    clippy::doc_markdown,
    clippy::format_push_string,
    unreachable_pub,
    reason = "in a test an unwrap is an assertion, quotations are as they are, and nothing is public"
)]

#[macro_use]
mod support;

mod ack_nack;
mod hostile;
mod on_demand;
mod order;
mod per_type;
mod reconnect;
mod resources;
mod state_of_the_world;
mod status;
mod subscription;
mod ttl;
