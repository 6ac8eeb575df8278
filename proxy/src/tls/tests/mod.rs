//! Real handshakes over loopback, and real files that change under them.

mod client;
mod files;
mod server;
mod stream;
pub(super) mod support;
