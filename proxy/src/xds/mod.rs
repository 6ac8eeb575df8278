//! Following an xDS server.
//!
//! - [`cache`]: pure; responses of a server → changes of the table and of the listeners, then ACK or
//!   NACK. [`wire`]: the messages it sends.
//! - [`last_good`]: the file that stands in when no server answers at start.
//! - [`servers`]: pure; which server is next, and after what pause.
//! - [`tls`]: how a server is reached over TLS.
//! - [`client`]: the stream; carries out what the cache decides.

pub(crate) mod cache;
pub(crate) mod client;
pub(crate) mod last_good;
mod servers;
mod tls;
mod wire;
