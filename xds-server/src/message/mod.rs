//! Messages of the Envoy API from protobuf's JSON mapping
//! (<https://protobuf.dev/programming-guides/json/>), as config dumps and Envoy's YAML have it. Pure.
//!
//! - `types`: which messages there are.
//! - `encode`: JSON to bytes, the same on every server.
//! - `expected`: what a field takes, for people.
//!
//! What a JSON of a type means for scalars, durations, wrappers and the like is `prost-reflect`'s to say.
//! The walk over messages, lists, maps and `Any` is done here: so that the bytes are the same every time,
//! which its hash maps are not, and so that a fault has a path.

mod encode;
mod expected;
mod types;

use std::fmt;

use bytes::Bytes;
use serde_json::{Value, value::RawValue};

/// How many messages may be in one another. Parsers of protobuf stop at 100 by default.
pub const MAX_DEPTH: usize = 64;
/// How much of a name is shown in a fault, in characters.
const MAX_SHOWN: usize = 100;

/// Why a JSON is not of its type. Never shows a value, which may be secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: `.route_config.virtual_hosts[0].domains`, or nothing for all of it.
    pub path: String,
    /// What is wrong there.
    pub reason: String,
}

impl Fault {
    fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    /// The same fault, seen from one step further out.
    fn under(mut self, step: impl fmt::Display) -> Self {
        self.path.insert_str(0, &step.to_string());
        self
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.reason)
    }
}

/// The message of type `type_url` that `json` describes: its fields by number, its maps by key, so that
/// equal JSON gives equal bytes. A member `@type` that says the same as `type_url` is let be.
///
/// The first call reads the descriptors, which takes tens of milliseconds; none belongs on a thread that
/// others wait for. Memory and time are in proportion to `json`, whose size the caller bounds.
pub fn from_json(type_url: &str, json: &RawValue) -> Result<Bytes, Fault> {
    let message = types::of(type_url)?;
    // Bounds its own depth, so that what comes after need not fear for the stack.
    let value: Value = serde_json::from_str(json.get())
        .map_err(|_| Fault::new("is nested too deep, or has a number that is out of every range"))?;
    encode::resource(&message, type_url, &value).map(Bytes::from)
}

/// As much of `name` as is shown.
fn short(name: &str) -> &str {
    name.char_indices().nth(MAX_SHOWN).map_or(name, |(end, _)| &name[..end])
}

#[cfg(test)]
mod tests;
