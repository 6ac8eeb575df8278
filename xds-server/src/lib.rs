//! The control plane of Sluicegate: knows every instance, and tells every proxy.
//!
//! # Rooms
//! - [`registry`]: the one writer. Tries a write, commits it to the store, publishes a snapshot.
//! - [`store`]: what outlives the process.
//! - [`lease`]: what keeps endpoints alive between writes.
//! - [`snapshot`]: what proxies are to know. [`resource`]: one piece of it, encoded once.
//!   [`kind`]: the types, and the forms they come in.
//! - [`subscription`]: pure; what one client is owed. All rules of the protocol.
//! - [`ads`]: the gRPC streams around it.
//! - [`fleet`]: the connected clients and how far each has come. [`timeline`]: what happened.
//! - [`load_report`]: what proxies report of their load, summed up.
//! - [`message`]: messages of the Envoy API from JSON.
//! - [`certificates`]: whether the files that gateways and services name can be used.
//! - [`access`]: who may do what, on the API and on xDS.
//! - [`api`]: the HTTP API. [`metrics`]: what is counted. [`limit`]: connections in bounds.
//!
//! # Flow of a write
//! `api` → `registry` (try, commit, publish) → every stream of `ads` wakes, asks its `subscription`
//! for what is due, sends shared bytes → the client acknowledges → `fleet` → `timeline`, and those
//! who wait for it.
//!
//! Architecture invariants: `proxy` is never imported. `snapshot`, `subscription`, `registry::world`
//! and `registry::write` do no I/O. Nothing holds a lock over an `await` or a send.
//!
//! # As a library
//! A platform may embed the server in place of one that it would write itself, and write resources of
//! any type in transactions. They are served by the same rules, in every variant of the protocol.
//! ```
//! use xds_server::{Server, config::bootstrap::ServerSettings, kind::Kind};
//! use xds_server::registry::{raw::Raw, write::Write};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = std::env::temp_dir().join(format!("sluicegate-doc-{}", std::process::id()));
//! # let removed = directory.clone();
//! tokio::runtime::Runtime::new()?.block_on(async {
//!     let mut settings = ServerSettings::new(&directory);
//!     settings.api_addr = "127.0.0.1:0".parse()?;
//!     settings.xds_addr = "127.0.0.1:0".parse()?;
//!     let server = Server::bind(settings).await?;
//!     let writer = server.registry().clone();
//!     let xds = server.xds_addr();
//!     let serving = tokio::spawn(server.serve(std::future::pending()));
//!
//!     let own = Raw {
//!         kind: Kind::of("type.googleapis.com/my.own.Type"),
//!         name: "a".into(),
//!         value: "its message, encoded".into(),
//!         ttl: None,
//!     };
//!     // All of it, or nothing; answered when it is durable and on its way to the clients.
//!     let done = writer.write(Write::Resources { put: vec![own], remove: vec![] }, "my platform", false);
//!     println!("revision {} is served at {xds}", done.await?.revision);
//! #   serving.abort();
//! #   Ok::<_, Box<dyn std::error::Error>>(())
//! })
//! # .inspect(|()| _ = std::fs::remove_dir_all(removed))
//! # }
//! ```

pub mod access;
pub mod ads;
pub mod api;
pub mod certificates;
pub mod fleet;
pub mod kind;
pub mod lease;
pub mod limit;
pub mod load_report;
pub mod message;
pub mod metrics;
pub mod registry;
pub mod resource;
mod server;
pub mod snapshot;
pub mod store;
pub mod subscription;
pub mod timeline;

pub use config;
pub use server::{Server, StartError};
