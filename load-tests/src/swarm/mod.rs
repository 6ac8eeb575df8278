//! Many proxies in one process, against one real server: how far a control plane goes.
//!
//! - `http2`: a gRPC stream on a connection of its own. `wire`: the few fields that are read and written.
//! - `proxy`: one of them: a TCP connection, an incremental aggregated stream, an acknowledgement for
//!   each response at once. It holds what a proxy has to know and sends no traffic.
//! - `plan`: changes that are about to come, and who has applied each.
//! - [`crowd`]: all of them, on a thread of their own.
//! - `world`: services and endpoints. `writer`: changes through the API, paced or as fast as it goes.
//! - [`measure`]: what is asked. [`report`]: what is answered.
//!
//! A change is a probe endpoint that comes or goes. Probes of a service are numbered, and at most two
//! are there at a time, so that a set of them tells how many changes it has behind it: a proxy that was
//! sent several changes as one still knows which it has.

pub mod crowd;
mod http2;
pub mod measure;
mod plan;
mod proxy;
pub mod report;
mod wire;
mod world;
mod writer;
