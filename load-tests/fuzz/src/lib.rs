//! What the targets share. Each target is a file of `targets/`; `run.sh` builds and runs one.
//!
//! - [`input`]: bytes read as choices.
//! - [`world`]: a small world of resources, as a client of the xDS server may meet it.
//! - [`client`]: a client that does what the protocol asks of one, and what it holds.
//! - [`stream`]: both on one stream, and what has to be true of it.

pub mod client;
pub mod input;
pub mod stream;
pub mod world;
