//! TLS (RFC 8446, RFC 5246) on both sides of the proxy: certificates, trusted authorities, and the
//! files or secrets they come from.
//!
//! # Rooms
//! - `choose`: pure; which certificate a client is shown, by the name it asks for.
//! - `server`: what a listener terminates TLS with. `client`: what connections to endpoints start with.
//! - `stream`: a client's connection, without rustls' buffers.
//! - `read`: files → what they hold, with a fingerprint of the bytes.
//! - `registry`: all of the above that is in use, compared with its files on request; the crate `watch`
//!   knows when. `secrets`: what servers gave over SDS.
//! - `suites`: the one provider of cryptography.
//!
//! # What happens when
//! A listener's TLS is prepared before the update that names it is acknowledged, and published after
//! ([`Tls::prepare`], [`Tls::server`], [`ServerTls::publish`]). From then on the watcher keeps it like
//! its files. A secret is taken in before it is acknowledged ([`Tls::put_secret`]), and shown by every
//! listener that names it. A swap stores one pointer: no connection and no listener notices.
//!
//! # Architecture invariants
//! - A pair that is not whole (half written, a key of another certificate) never replaces one that is.
//! - A handshake takes no lock that a reload holds.
//! - Files are read by blocking calls: on the control runtime's blocking threads, never on a core that
//!   serves requests.
//! - Absent on purpose: client certificates, OCSP stapling, 0-RTT, tickets shared between proxies.

mod choose;
mod client;
mod read;
mod registry;
mod secrets;
mod server;
mod stream;
mod suites;
#[cfg(test)]
mod tests;

pub(crate) use client::{Alpn, ClientTls};
pub(crate) use registry::Tls;
pub(crate) use server::{Prepared, ServerTls};
pub(crate) use stream::ServerStream;
