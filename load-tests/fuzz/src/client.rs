//! A client that does what the protocol asks of one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};
use xds_server::{
    kind::{Client, Kind},
    resource::{Name, Version},
    subscription::{Response, Variant},
};

use crate::world::{BAD, OTHERS};

/// What a client asks for and holds of one type.
#[derive(Debug, Default)]
pub struct Following {
    /// Whether it has asked on this stream.
    pub asked: bool,
    pub wildcard: bool,
    /// Whether a name was given on this stream, as far as the server knows.
    named_once: bool,
    /// Names and collections, canonical.
    names: BTreeSet<&'static str>,
    pub held: BTreeMap<Name, Version>,
    /// Of the newest response that it got on this stream.
    nonce: String,
    /// What it has to say of those it got: nonces, with why it refused.
    pub unanswered: VecDeque<(String, Option<String>)>,
}

impl Following {
    pub fn wants(&self, name: &str) -> bool {
        let directory = name.rfind('/').map_or("", |slash| &name[..=slash]);
        let member = |asked: &str| {
            asked.starts_with("xdstp:") && asked.strip_suffix('*').is_some_and(|prefix| prefix == directory)
        };
        self.wildcard || self.names.contains(name) || self.names.iter().copied().any(member)
    }

    /// A new stream begins; unless `remembers`, with nothing.
    pub fn begin(&mut self, remembers: bool) {
        (self.asked, self.named_once) = (false, false);
        self.nonce.clear();
        self.unanswered.clear();
        if !remembers {
            self.held.clear();
        }
    }

    /// Asks for more; the name as it is written in a request.
    pub fn add(&mut self, name: &'static str) {
        if name == OTHERS[0] {
            self.wildcard = true;
        } else {
            self.names.insert(canonical(name));
        }
    }

    pub fn take(&mut self, name: &'static str) {
        if name == OTHERS[0] {
            self.wildcard = false;
        } else {
            self.names.remove(canonical(name));
        }
    }

    /// What the server will not speak of any more is dropped.
    pub fn drop_unwanted(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.held = held.into_iter().filter(|(name, _)| self.wants(name)).collect();
    }

    /// Applies a response, but for what is bad in it. Names that in the reason if `precise`.
    pub fn apply(&mut self, response: &Response, variant: Variant, precise: bool) {
        let whole = variant == Variant::StateOfTheWorld && response.kind.is_whole();
        let before = if whole { std::mem::take(&mut self.held) } else { BTreeMap::new() };
        let mut bad = Vec::new();
        for resource in &response.resources {
            if resource.value() == BAD {
                bad.push(&*resource.name);
                // It goes on with what it has.
                self.held.extend(before.get_key_value(&resource.name).map(|(name, v)| (name.clone(), *v)));
            } else if self.wants(&resource.name) {
                self.held.insert(resource.name.clone(), resource.version);
            }
        }
        for name in &response.removed {
            self.held.remove(name);
        }
        let reason = if precise { format!("refused: {}", bad.join(", ")) } else { String::new() };
        self.nonce = response.nonce.to_string();
        self.unanswered.push_back((self.nonce.clone(), (!bad.is_empty()).then_some(reason)));
    }

    // ---- incremental ----

    /// All it wants, as on a new stream, with the versions it holds or, if `garbled`, something else.
    pub fn first(&mut self, kind: &Kind, client: Client, garbled: bool) -> DeltaDiscoveryRequest {
        let version = |version: &Version| if garbled { "garbled".to_owned() } else { version.to_string() };
        let held = self.held.iter().map(|(name, held)| (name.to_string(), version(held)));
        let initial_resource_versions = held.collect();
        let resource_names_subscribe = self.list(kind, client);
        self.asked = true;
        self.drop_unwanted();
        DeltaDiscoveryRequest { resource_names_subscribe, initial_resource_versions, ..Default::default() }
    }

    /// The next thing it has to say; what it said nothing of before is passed over if `newest`.
    pub fn answer(&mut self, newest: bool) -> Option<(String, Option<Status>)> {
        if newest {
            self.unanswered.drain(..self.unanswered.len().saturating_sub(1));
        }
        let (nonce, reason) = self.unanswered.pop_front()?;
        Some((nonce, reason.map(|message| Status { message, ..Default::default() })))
    }

    // ---- state of the world ----

    /// All it wants, with the newest nonce it knows.
    pub fn request(&mut self, kind: &Kind, client: Client) -> DiscoveryRequest {
        let resource_names = self.list(kind, client);
        DiscoveryRequest { resource_names, response_nonce: self.nonce.clone(), ..Default::default() }
    }

    /// The server has taken in a request with these names.
    pub fn accepted(&mut self, names_nothing: bool) {
        self.asked = true;
        self.named_once |= !names_nothing;
        self.drop_unwanted();
    }

    fn list(&mut self, kind: &Kind, client: Client) -> Vec<String> {
        if self.names.is_empty() && !self.named_once && kind.is_whole() && !client.grpc {
            // There is no way to say anything else.
            self.wildcard = true;
            return Vec::new();
        }
        let everything = self.wildcard.then_some(OTHERS[0]);
        self.names.iter().copied().chain(everything).map(str::to_owned).collect()
    }
}

fn canonical(name: &'static str) -> &'static str {
    if name == "xdstp:///t/x?b=2&a=1" { "xdstp:///t/x?a=1&b=2" } else { name }
}
