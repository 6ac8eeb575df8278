//! What a client asks for and holds of one type.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::Instant,
};

use config::xds::ResourceType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use super::{
    ACK_TIMEOUT, MAX_NAME_LENGTH, MAX_NAMES, Reply, Response, Variant, Violation,
    reply::{InFlight, Refused, Since, Unanswered},
};
use crate::snapshot::{Logged, Name, Resource, Snapshot};

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
    /// What is to be sent although the client says that it holds it, from before it has asked.
    owed: HashSet<Name>,
    /// Names that may differ from what is held, and since when.
    open: BTreeMap<Name, Since>,
    /// The first request is answered even if there is nothing to say: the client waits for it.
    greeting_owed: bool,
    unanswered: Unanswered,
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
            owed: HashSet::new(),
            open: BTreeMap::new(),
            greeting_owed: false,
            unanswered: Unanswered::default(),
            last_nonce: Arc::from(""),
            refused: Refused::default(),
        }
    }

    pub(super) fn is_asked(&self) -> bool {
        self.asked
    }

    pub(super) fn is_refused(&self) -> bool {
        !self.refused.is_empty()
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

    /// A resource changed, appeared or went.
    pub(super) fn changed(&mut self, change: &Logged) {
        if self.asked && self.wants(&change.name) {
            self.open_since(&change.name, Since::change(change));
        }
    }

    /// Anything may have changed since `revision`.
    pub(super) fn anything_changed(&mut self, snapshot: &Snapshot, revision: u64) {
        if !self.asked {
            return;
        }
        let since = Since::revision(revision);
        let held: Vec<Name> = self.held.keys().filter(|name| self.wants(name)).cloned().collect();
        let named: Vec<Name> = self.names.iter().cloned().collect();
        held.iter().chain(&named).for_each(|name| self.open_since(name, since));
        if self.wildcard {
            snapshot.resources(self.resource_type).keys().for_each(|name| self.open_since(name, since));
        }
    }

    /// The resource is to be sent though the client holds it, or will say so when it asks.
    pub(super) fn owe(&mut self, name: &Name, revision: u64) {
        if !self.asked {
            self.owed.insert(Arc::clone(name));
        } else if self.wants(name) {
            self.held.remove(name);
            self.open_since(name, Since::revision(revision));
        }
    }

    fn open_since(&mut self, name: &Name, since: Since) {
        let known = self.open.entry(Arc::clone(name)).or_insert(since);
        *known = known.older(since);
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
        let mut everything = false;
        for name in request.resource_names_subscribe {
            everything |= name == WILDCARD;
            self.subscribe(name, first, revision)?;
        }
        if everything {
            self.anything_changed(snapshot, revision);
        }
        for name in request.resource_names_unsubscribe {
            self.unsubscribe(&name, revision);
        }
        if first {
            let (names, wildcard, owed) = (&self.names, self.wildcard, std::mem::take(&mut self.owed));
            self.held.retain(|name, _| (wildcard || names.contains(name)) && !owed.contains(name));
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
        if names.iter().any(|name| name.len() > MAX_NAME_LENGTH) {
            return Err(Violation::NameTooLong);
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

    fn subscribe(&mut self, name: String, first: bool, revision: u64) -> Result<(), Violation> {
        self.named_once = true;
        if name == WILDCARD {
            self.wildcard = true;
            return Ok(());
        }
        if name.len() > MAX_NAME_LENGTH {
            return Err(Violation::NameTooLong);
        }
        let name = Name::from(name);
        if !first {
            // "Re-subscribing: the server must send the resource even if the client has it."
            self.held.remove(&name);
        }
        self.open_since(&name, Since::revision(revision));
        self.names.insert(name);
        if self.names.len() > MAX_NAMES { Err(Violation::TooManyNames) } else { Ok(()) }
    }

    fn unsubscribe(&mut self, name: &str, revision: u64) {
        if name == WILDCARD {
            self.wildcard = false;
            self.forget_unwanted();
        } else if let Some(name) = self.names.take(name) {
            self.held.remove(&name);
            if self.wildcard {
                // "Unsubscribing from a resource that the wildcard covers is answered with it, or
                // with its removal."
                self.held.insert(Arc::clone(&name), Held::Version(Arc::from(""), None));
                self.open_since(&name, Since::revision(revision));
            } else {
                self.open.remove(&name);
                self.refused.forget(&name);
            }
        }
        // A name that was never subscribed to: nothing to do.
    }

    /// What is no longer asked for is forgotten on both sides.
    fn forget_unwanted(&mut self) {
        let names = &self.names;
        self.held.retain(|name, _| names.contains(name));
        self.open.retain(|name, _| names.contains(name));
        self.refused.retain(|name| names.contains(name));
    }

    fn replace_names(&mut self, names: Vec<String>, revision: u64, snapshot: &Snapshot) {
        let mut now: HashSet<Name> = names.into_iter().map(Name::from).collect();
        self.named_once |= !now.is_empty();
        let wildcard = now.remove(WILDCARD) || (self.wildcard && !self.named_once);
        let was_wildcard = std::mem::replace(&mut self.wildcard, wildcard);
        let before = std::mem::replace(&mut self.names, now);
        let added: Vec<Name> = self.names.difference(&before).cloned().collect();
        for name in added {
            self.open_since(&name, Since::revision(revision));
        }
        if wildcard && !was_wildcard {
            self.anything_changed(snapshot, revision);
        }
        if !wildcard {
            self.forget_unwanted();
        }
    }

    fn on_reply(&mut self, nonce: &str, reason: Option<String>, now: Instant) -> Option<Reply> {
        let answered = self.unanswered.take(nonce)?;
        // "NACK = error_detail is present."
        let Some(reason) = reason else {
            self.refused.acknowledged(&answered.names);
            return Some(Reply::Ack(answered.published.map(|at| now.saturating_duration_since(at))));
        };
        self.refused.add(&answered, &reason);
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
            batch.removed.iter().for_each(|name| self.refused.forget(name));
            return None;
        }
        let resources = if self.is_full_state() { self.full_state(snapshot) } else { batch.send };
        self.unanswered.push(InFlight::new(Arc::clone(&nonce), now, batch.open, greeting));
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
        for (name, since) in std::mem::take(&mut self.open) {
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
                    batch.open.push((name, since));
                }
                (None, Some(Held::Version(..))) if !may_remove => {
                    self.open.insert(name, since);
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
                    batch.open.push((name, since));
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
        self.unanswered.newest().is_some_and(|sent| now < sent + ACK_TIMEOUT)
    }

    /// Whether there is something to send, if it may be.
    pub(super) fn is_waiting(&self) -> bool {
        self.asked && (self.greeting_owed || !self.open.is_empty())
    }

    /// Whether the client has been sent everything and has accepted it, or has had its time to.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        !self.is_in_flight(now) && self.open.is_empty() && !self.is_refused()
    }

    /// When the wait for an acknowledgement ends.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        self.unanswered.newest().map(|sent| sent + ACK_TIMEOUT).filter(|deadline| *deadline > now)
    }

    /// The oldest revision that the client has not acknowledged everything of.
    pub(super) fn oldest_open(&self) -> Option<u64> {
        let open = self.open.values().map(|since| since.revision).min();
        let greeting = self.greeting_owed.then_some(1);
        [open, self.unanswered.oldest(), self.refused.oldest(), greeting].into_iter().flatten().min()
    }
}

#[derive(Default)]
struct Batch {
    send: Vec<Arc<Resource>>,
    removed: Vec<Name>,
    replaced: Vec<Name>,
    /// What was open and is settled once this is acknowledged.
    open: Vec<(Name, Since)>,
}
