//! What a client asks for and holds of one type.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use config::xds::ResourceType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::{ACK_TIMEOUT, MAX_NAMES, Reply, Response, Variant, Violation};
use crate::snapshot::{Name, Resource, Snapshot};

/// The name that stands for every resource ("How the client specifies what resources to return").
const WILDCARD: &str = "*";

/// The interest of one client in one type.
#[derive(Debug)]
pub struct Interest {
    resource_type: ResourceType,
    variant: Variant,
    /// Whether the client has asked at all.
    asked: bool,
    wildcard: bool,
    /// Whether a name was ever given: from then on, no names means nothing instead of everything.
    named_once: bool,
    names: HashSet<Name>,
    /// What the client holds, as far as it was sent.
    held: HashMap<Name, Held>,
    /// Names that may differ from what is held, and the revision since when.
    open: BTreeMap<Name, u64>,
    /// The first request is answered even if there is nothing to say: the client waits for it.
    greeting_owed: bool,
    in_flight: Option<InFlight>,
    last_nonce: Arc<str>,
    refused: Refused,
}

/// What a client was last told about a name.
#[derive(Debug)]
enum Held {
    /// It has this version; the resource itself when it came over this stream.
    Version(Arc<str>, Option<Arc<Resource>>),
    /// It was told that there is none.
    Absent,
}

#[derive(Debug)]
struct InFlight {
    since: Instant,
    published: Instant,
    names: Vec<(Name, u64)>,
    /// The oldest revision that is open until this is acknowledged.
    oldest: u64,
}

/// Names whose newest form the client refused, and the revision since when.
#[derive(Debug, Default)]
struct Refused {
    names: BTreeMap<Name, u64>,
    /// The reason did not say which names, so all of the response stand for it.
    vague: bool,
}

impl Interest {
    pub(super) fn new(resource_type: ResourceType, variant: Variant) -> Self {
        Self {
            resource_type,
            variant,
            asked: false,
            wildcard: false,
            named_once: false,
            names: HashSet::new(),
            held: HashMap::new(),
            open: BTreeMap::new(),
            greeting_owed: false,
            in_flight: None,
            last_nonce: Arc::from(""),
            refused: Refused::default(),
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    pub(super) fn is_refused(&self) -> bool {
        !self.refused.names.is_empty()
    }

    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.names.contains(name)
    }

    /// "State of the world: a response of LDS or CDS has every resource that was subscribed to"
    /// ("Resource hints": the other types may be partial).
    fn is_full_state(&self) -> bool {
        self.variant == Variant::StateOfTheWorld && self.resource_type.legacy_wildcard()
    }

    // ---- snapshots ----

    /// A resource changed, appeared or went at `revision`.
    pub(super) fn changed(&mut self, name: &Name, revision: u64) {
        if self.asked && self.wants(name) {
            self.open_since(name, revision);
        }
    }

    /// Anything may have changed since `revision`.
    pub(super) fn anything_changed(&mut self, snapshot: &Snapshot, revision: u64) {
        if !self.asked {
            return;
        }
        let held: Vec<Name> = self.held.keys().filter(|name| self.wants(name)).cloned().collect();
        let named: Vec<Name> = self.names.iter().cloned().collect();
        held.iter().chain(&named).for_each(|name| self.open_since(name, revision));
        if self.wildcard {
            snapshot.resources(self.resource_type).keys().for_each(|name| self.open_since(name, revision));
        }
    }

    /// The resource is to be sent though the client holds it.
    pub(super) fn owe(&mut self, name: &Name, revision: u64) {
        if self.asked && self.wants(name) {
            self.held.remove(name);
            self.open_since(name, revision);
        }
    }

    fn open_since(&mut self, name: &Name, revision: u64) {
        let since = self.open.entry(Arc::clone(name)).or_insert(revision);
        *since = revision.min(*since);
    }

    // ---- requests ----

    pub(super) fn on_incremental(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        let first = !self.asked;
        if first {
            // "initial_resource_versions: … the versions of the resources that the client holds":
            // honoured in the first request of a stream only.
            let versions = request.initial_resource_versions.into_iter();
            self.held = versions.map(|(name, v)| (Name::from(name), Held::Version(v.into(), None))).collect();
            self.greet(request.resource_names_subscribe.is_empty());
        }
        let revision = if first { 1 } else { snapshot.revision() };
        for name in request.resource_names_subscribe {
            self.subscribe(name.into(), first, revision, snapshot)?;
        }
        for name in request.resource_names_unsubscribe {
            self.unsubscribe(&name, revision);
        }
        if first {
            let (names, wildcard) = (&self.names, self.wildcard);
            self.held.retain(|name, _| wildcard || names.contains(name));
            self.anything_changed(snapshot, revision);
        }
        // "The nonce of the response it acknowledges": a stale one acknowledges nothing, but the
        // changes of subscription above count ("incremental: subscriptions are deltas").
        let reason = request.error_detail.map(|status| status.message);
        Ok(self.on_reply(&request.response_nonce, reason, now))
    }

    pub(super) fn on_state_of_the_world(
        &mut self,
        request: DiscoveryRequest,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        let first = !self.asked;
        if !first && !request.response_nonce.is_empty() && *request.response_nonce != *self.last_nonce {
            // "The management server should not send a DiscoveryResponse for any DiscoveryRequest
            // that has a stale nonce": the client answers the newer response with all it wants.
            return Ok(None);
        }
        let reason = request.error_detail.map(|status| status.message);
        // "Unknown nonces on a new stream are tolerated": the first request starts afresh.
        let reply = if first { None } else { self.on_reply(&request.response_nonce, reason, now) };
        let names = request.resource_names;
        if names.len() > MAX_NAMES {
            return Err(Violation::TooManyNames);
        }
        if first {
            self.greet(names.is_empty());
        } else if names.is_empty() && self.named_once {
            self.wildcard = false;
        }
        let revision = if first { 1 } else { snapshot.revision() };
        self.replace_names(names, revision, snapshot);
        if first {
            self.anything_changed(snapshot, revision);
        }
        Ok(reply)
    }

    fn greet(&mut self, names_nothing: bool) {
        self.asked = true;
        self.greeting_owed = true;
        // "For LDS and CDS, … if the client never names a resource, it is a wildcard."
        self.wildcard = names_nothing && self.resource_type.legacy_wildcard();
    }

    fn subscribe(
        &mut self,
        name: Name,
        first: bool,
        revision: u64,
        snapshot: &Snapshot,
    ) -> Result<(), Violation> {
        self.named_once = true;
        if &*name == WILDCARD {
            self.wildcard = true;
            self.anything_changed(snapshot, revision);
            return Ok(());
        }
        if self.names.len() >= MAX_NAMES {
            return Err(Violation::TooManyNames);
        }
        if !first {
            // "Re-subscribing: the server must send the resource even if the client has it."
            self.held.remove(&name);
        }
        self.open_since(&name, revision);
        self.names.insert(name);
        Ok(())
    }

    fn unsubscribe(&mut self, name: &str, revision: u64) {
        if name == WILDCARD {
            self.wildcard = false;
            let names = &self.names;
            self.held.retain(|name, _| names.contains(name));
            self.open.retain(|name, _| names.contains(name));
        } else if let Some(name) = self.names.take(name) {
            self.held.remove(&name);
            if self.wildcard {
                // "Unsubscribing from a resource that the wildcard covers is answered with it, or
                // with its removal."
                self.held.insert(Arc::clone(&name), Held::Version(Arc::from(""), None));
                self.open_since(&name, revision);
            } else {
                self.open.remove(&name);
            }
        }
        // A name that was never subscribed to: nothing to do.
    }

    fn replace_names(&mut self, names: Vec<String>, revision: u64, snapshot: &Snapshot) {
        let mut now: HashSet<Name> = names.into_iter().map(Name::from).collect();
        self.named_once |= !now.is_empty();
        let wildcard = now.remove(WILDCARD) || (self.wildcard && !self.named_once);
        let was_wildcard = std::mem::replace(&mut self.wildcard, wildcard);
        let before = std::mem::replace(&mut self.names, now);
        let added: Vec<Name> = self.names.difference(&before).cloned().collect();
        for name in added {
            self.open_since(&name, revision);
        }
        if wildcard && !was_wildcard {
            self.anything_changed(snapshot, revision);
        }
        if !wildcard {
            // What is no longer asked for is forgotten on both sides.
            let names = &self.names;
            self.held.retain(|name, _| names.contains(name));
            self.open.retain(|name, _| names.contains(name));
        }
    }

    fn on_reply(&mut self, nonce: &str, reason: Option<String>, now: Instant) -> Option<Reply> {
        // An empty nonce on a stream that has none yet must not match.
        if nonce.is_empty() || nonce != &*self.last_nonce {
            return None;
        }
        let InFlight { published, names, oldest, .. } = self.in_flight.take()?;
        // "NACK = error_detail is present."
        let Some(reason) = reason else {
            self.refused.acknowledged(&names);
            return Some(Reply::Ack(now.saturating_duration_since(published)));
        };
        self.refused.add(&names, oldest, &reason);
        Some(Reply::Nack(reason))
    }

    // ---- responses ----

    /// The response that is due, and the names of resources it replaces by another version.
    pub(super) fn respond(
        &mut self,
        snapshot: &Snapshot,
        nonce: Arc<str>,
        may_remove: bool,
        now: Instant,
    ) -> Option<(Response, Vec<Name>)> {
        if !self.asked || self.is_in_flight(now) {
            return None;
        }
        let batch = self.take_open(snapshot, may_remove);
        let nothing = batch.send.is_empty() && batch.removed.is_empty();
        if nothing && !self.greeting_owed {
            return None;
        }
        let greeting = std::mem::take(&mut self.greeting_owed);
        let silent = self.variant == Variant::StateOfTheWorld && !self.is_full_state();
        if silent && batch.send.is_empty() && !(greeting && self.wildcard) {
            // Absence cannot be said in a partial state of the world: the client waits, or drops
            // what it holds with the resource that named it.
            return None;
        }
        let resources = if self.is_full_state() { self.full_state(snapshot) } else { batch.send };
        // An overdue response is not waited for any more, but what it carried stays open.
        let overdue = self.in_flight.take();
        let oldest = batch.open.iter().map(|(_, revision)| *revision);
        let oldest = oldest.chain(overdue.map(|o| o.oldest)).chain(greeting.then_some(1)).min();
        self.in_flight = Some(InFlight {
            since: now,
            published: snapshot.published(),
            names: batch.open,
            oldest: oldest.unwrap_or_else(|| snapshot.revision()),
        });
        self.last_nonce = Arc::clone(&nonce);
        let version_info = match self.variant {
            Variant::Incremental => String::new(),
            Variant::StateOfTheWorld => self.digest(),
        };
        let removed = if self.variant == Variant::Incremental { batch.removed } else { Vec::new() };
        let response = Response {
            resource_type: self.resource_type,
            revision: snapshot.revision(),
            nonce,
            version_info,
            resources,
            removed,
        };
        Some((response, batch.replaced))
    }

    /// Settles the open names against what is held, keeping those whose removal has to wait.
    fn take_open(&mut self, snapshot: &Snapshot, may_remove: bool) -> Batch {
        let mut batch = Batch::default();
        for (name, revision) in std::mem::take(&mut self.open) {
            let current = snapshot.resource(self.resource_type, &name);
            match (current, self.held.get(&name)) {
                (Some(resource), Some(Held::Version(version, _))) if *version == resource.version => {}
                (Some(resource), held) => {
                    if matches!(held, Some(Held::Version(..))) {
                        batch.replaced.push(Arc::clone(&name));
                    }
                    let held = Held::Version(Arc::clone(&resource.version), Some(Arc::clone(resource)));
                    self.held.insert(Arc::clone(&name), held);
                    batch.send.push(Arc::clone(resource));
                    batch.open.push((name, revision));
                }
                (None, Some(Held::Version(..))) if !may_remove => {
                    self.open.insert(name, revision);
                }
                (None, Some(Held::Absent)) => {}
                (None, None) if !self.names.contains(&name) => {}
                (None, _) => {
                    // Remembered where it was named, so that its removal is never repeated and
                    // its appearance is sent.
                    if self.names.contains(&name) {
                        self.held.insert(Arc::clone(&name), Held::Absent);
                    } else {
                        self.held.remove(&name);
                    }
                    batch.removed.push(Arc::clone(&name));
                    batch.open.push((name, revision));
                }
            }
        }
        batch
    }

    /// Everything asked for, as it is or, where its removal has to wait, as it was.
    fn full_state(&self, snapshot: &Snapshot) -> Vec<Arc<Resource>> {
        let current = snapshot.resources(self.resource_type);
        let mut state: BTreeMap<&Name, &Arc<Resource>> = if self.wildcard {
            current.iter().collect()
        } else {
            self.names.iter().filter_map(|name| current.get_key_value(name)).collect()
        };
        let waiting = self.open.keys().filter_map(|name| match self.held.get(name) {
            Some(Held::Version(_, Some(resource))) => Some((name, resource)),
            _ => None,
        });
        for (name, resource) in waiting {
            state.entry(name).or_insert(resource);
        }
        state.into_values().map(Arc::clone).collect()
    }

    /// A hash over what the client holds, independent of order.
    fn digest(&self) -> String {
        let digest = self.held.iter().fold(0_u64, |sum, (name, held)| match held {
            Held::Version(version, _) => {
                let pair = [name.as_bytes(), version.as_bytes()].concat();
                sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(&pair))
            }
            Held::Absent => sum,
        });
        format!("{digest:016x}")
    }

    // ---- where it stands ----

    /// Whether a response is on its way that the next has to wait for.
    pub(super) fn is_in_flight(&self, now: Instant) -> bool {
        self.in_flight.as_ref().is_some_and(|f| now < f.since + ACK_TIMEOUT)
    }

    /// Whether the client has been sent everything and has accepted it, or has had its time to.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        !self.is_in_flight(now) && self.open.is_empty() && !self.is_refused()
    }

    /// When the wait for an acknowledgement ends.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.in_flight.as_ref().map(|f| f.since + ACK_TIMEOUT).filter(|deadline| *deadline > now)
    }

    /// The oldest revision that the client has not acknowledged everything of.
    pub(super) fn oldest_open(&self) -> Option<u64> {
        let open = self.open.values().min().copied();
        let in_flight = self.in_flight.as_ref().map(|f| f.oldest);
        let refused = self.refused.names.values().min().copied();
        let greeting = self.greeting_owed.then_some(1);
        [open, in_flight, refused, greeting].into_iter().flatten().min()
    }
}

#[derive(Default)]
struct Batch {
    send: Vec<Arc<Resource>>,
    removed: Vec<Name>,
    replaced: Vec<Name>,
    /// What was open and is settled once this is acknowledged.
    open: Vec<(Name, u64)>,
}

impl Refused {
    fn add(&mut self, names: &[(Name, u64)], oldest: u64, reason: &str) {
        let blamed = names.iter().filter(|(name, _)| reason.contains(&**name)).collect::<Vec<_>>();
        self.vague = blamed.is_empty();
        if blamed.is_empty() {
            self.names.extend(names.iter().map(|(name, _)| (Arc::clone(name), oldest)));
        } else {
            self.names.extend(blamed.into_iter().cloned());
        }
    }

    fn acknowledged(&mut self, names: &[(Name, u64)]) {
        let before = self.names.len();
        for (name, _) in names {
            self.names.remove(name);
        }
        if self.vague && self.names.len() < before {
            self.names.clear();
        }
    }
}
