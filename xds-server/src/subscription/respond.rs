//! What is due to a client of one type: the open names, settled against the snapshot.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    ACK_TIMEOUT, Response, Variant,
    interest::{Held, Interest, Open},
    names::collection,
    reply::{InFlight, Sent},
};
use crate::{
    kind::{Kind, View},
    resource::{Name, Resource, Version},
    snapshot::Snapshot,
};

/// A resource with a TTL gets a sign of life so many times before that has passed.
const HEARTBEATS: u32 = 3;
/// The shortest pause between two, should somebody choose a very short TTL.
const MIN_HEARTBEAT: Duration = Duration::from_millis(200);

#[derive(Default)]
struct Batch {
    send: Vec<Arc<Resource>>,
    removed: Vec<Name>,
    replaced: Vec<Name>,
    /// What is settled once this is acknowledged.
    sent: Vec<Sent>,
    /// What is there again as the client has it.
    alive: Vec<Arc<Resource>>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.send.is_empty() && self.removed.is_empty()
    }
}

impl Interest {
    /// Whether it has nothing to say, now or later, until something happens: mostly one type has.
    pub(super) fn is_idle(&self) -> bool {
        let settled = self.open.is_empty() && self.fresh.is_none() && !self.greeting_owed;
        settled && self.heartbeats.is_empty()
    }

    /// The response that is due, and the names of resources it replaces by another version. `routed` is
    /// what the routes were made from that the client has yet to apply.
    pub(super) fn respond(
        &mut self,
        snapshot: &Snapshot,
        routed: Option<&Snapshot>,
        nonce: u64,
        may_remove: bool,
        now: Instant,
    ) -> Option<(Response, Vec<Name>)> {
        if !self.asked || self.is_idle() || self.is_in_flight(now) {
            return None;
        }
        let batch = self.take_open(snapshot, routed, may_remove);
        let heartbeats = self.take_heartbeats(snapshot, now);
        let nothing = batch.is_empty() && heartbeats.is_empty();
        if nothing && !self.greeting_owed {
            return None;
        }
        let greeting = std::mem::take(&mut self.greeting_owed);
        let silent = self.variant == Variant::StateOfTheWorld && !self.is_full_state();
        if silent && batch.send.is_empty() && heartbeats.is_empty() && !(greeting && self.names.wildcard) {
            // Absence cannot be said in a partial state of the world: the client waits, or drops what it
            // holds with the resource that named it ("Deleting Resources").
            batch.removed.iter().for_each(|name| self.refused.forget(name));
            return None;
        }
        self.begin_heartbeats(&batch.send, now);
        self.begin_heartbeats(&batch.alive, now);
        // A whole state has every resource, and with it what keeps it alive.
        let whole = self.is_full_state();
        let (resources, heartbeats) =
            if whole { (self.full_state(snapshot), Vec::new()) } else { (batch.send, heartbeats) };
        let version_info = match self.variant {
            Variant::Incremental => String::new(),
            Variant::StateOfTheWorld => digest(&resources),
        };
        let removed = if self.variant == Variant::Incremental { batch.removed } else { Vec::new() };
        let nonce: Arc<str> = format!("{nonce:x}").into();
        self.unanswered.push(InFlight::new(Arc::clone(&nonce), now, batch.sent, greeting));
        self.last_nonce = Arc::clone(&nonce);
        let (kind, revision) = (self.shelf.0.clone(), snapshot.revision());
        let response = Response { kind, revision, nonce, version_info, resources, removed, heartbeats };
        Some((response, batch.replaced))
    }

    /// Settles the open names against what is held, keeping those whose removal has to wait, and those
    /// that would make the response too large for clients with the usual limits.
    fn take_open(&mut self, snapshot: &Snapshot, routed: Option<&Snapshot>, may_remove: bool) -> Batch {
        let mut batch = Batch::default();
        let (mut bytes, mut kept, mut full) = (0, BTreeMap::new(), false);
        let mut open = std::mem::take(&mut self.open);
        while let Some((name, Open { since, held })) = open.pop_first() {
            let current = snapshot.resource(&self.shelf, &name);
            if current.is_none()
                && !matches!(held, Held::Version(..))
                && let Some(was) = routed.and_then(|routed| self.as_routed(&name, snapshot, routed))
            {
                bytes += was.size();
                if bytes > self.budget && !batch.is_empty() && !self.is_full_state() {
                    open.insert(name, Open { since, held });
                    full = true;
                    break;
                }
                // It is to be removed, as soon as no route needs it.
                let held = Held::Version(Some(was.version), Some(Arc::clone(was)));
                kept.insert(Arc::clone(&name), Open { since, held });
                batch.send.push(Arc::clone(was));
                batch.sent.push(Sent { name, since, before: None });
                continue;
            }
            match (current, held) {
                (Some(resource), Held::Version(Some(version), _)) if version == resource.version => {
                    if resource.ttl.is_some() && !self.heartbeats.contains_key(&name) {
                        batch.alive.push(Arc::clone(resource));
                    }
                }
                (Some(_), Held::Nothing) if self.is_fresh(&name) => {}
                (Some(resource), held) => {
                    bytes += resource.size();
                    if bytes > self.budget && !batch.is_empty() && !self.is_full_state() {
                        open.insert(name, Open { since, held });
                        full = true;
                        break;
                    }
                    let before = match held {
                        Held::Version(before, _) => {
                            batch.replaced.push(Arc::clone(&name));
                            before
                        }
                        Held::Nothing | Held::Absent => None,
                    };
                    batch.send.push(Arc::clone(resource));
                    batch.sent.push(Sent { name, since, before });
                }
                (None, held @ Held::Version(..)) if !may_remove && !self.is_one_of_many(&name, snapshot) => {
                    kept.insert(name, Open { since, held });
                }
                (None, Held::Absent) => {}
                (None, Held::Nothing) if !self.is_missing(&name, snapshot, routed) => {}
                (None, held) => {
                    bytes += name.len() + 4;
                    // A state of the world does not say it.
                    let said = self.variant == Variant::Incremental;
                    if bytes > self.budget && !batch.is_empty() && said {
                        open.insert(name, Open { since, held });
                        full = true;
                        break;
                    }
                    let before = if let Held::Version(before, _) = held { before } else { None };
                    batch.removed.push(Arc::clone(&name));
                    batch.sent.push(Sent { name, since, before });
                }
            }
        }
        kept.append(&mut open);
        self.open = kept;
        if !full {
            self.take_fresh(snapshot, routed, &mut batch, bytes);
        }
        batch
    }

    /// What the client has just begun to ask for, as far as there is room for it. `bytes`: what is in the
    /// response already.
    fn take_fresh(
        &mut self,
        snapshot: &Snapshot,
        routed: Option<&Snapshot>,
        batch: &mut Batch,
        mut bytes: usize,
    ) {
        let resources = snapshot.resources(&self.shelf);
        while let Some(mut fresh) = self.fresh.take() {
            let since = fresh.since;
            for (name, resource) in fresh.rest(resources) {
                bytes += resource.size();
                if bytes > self.budget && !batch.is_empty() {
                    self.fresh = Some(fresh);
                    return;
                }
                batch.send.push(Arc::clone(resource));
                batch.sent.push(Sent { name: Arc::clone(name), since, before: None });
                fresh.sent(Arc::clone(name));
            }
            let name: Name = format!("{}*", fresh.scope()).into();
            if fresh.is_untouched() && !fresh.scope().is_empty() && self.is_missing(&name, snapshot, routed) {
                // A collection is said to be empty.
                bytes += fresh.scope().len() + 5;
                if bytes > self.budget && !batch.is_empty() {
                    self.fresh = Some(fresh);
                    return;
                }
                batch.removed.push(Arc::clone(&name));
                batch.sent.push(Sent { name, since, before: None });
            }
            self.fresh = fresh.next();
        }
    }

    /// Whether `name` is an endpoint of a version that is still there: then it alone is gone, and takes no
    /// requests any more.
    fn is_one_of_many(&self, name: &str, snapshot: &Snapshot) -> bool {
        let cluster = || config::xds::leds::parse_member(name).map(|(cluster, ..)| cluster.to_string());
        let there = |cluster: String| snapshot.resource(&(Kind::Cluster, View::Common), &cluster).is_some();
        self.shelf.0 == Kind::LbEndpoint && cluster().is_some_and(there)
    }

    /// Whether `name` is an endpoint that is gone because its version is.
    pub(super) fn went_with_its_version(&self, name: &str, snapshot: &Snapshot) -> bool {
        snapshot.resource(&self.shelf, name).is_none() && !self.is_one_of_many(name, snapshot)
    }

    /// A cluster or what belongs to one that is gone, as it was when the routes were made that the client
    /// is about to apply.
    fn as_routed<'a>(&self, name: &str, now: &Snapshot, routed: &'a Snapshot) -> Option<&'a Arc<Resource>> {
        let kind = &self.shelf.0;
        let needed = matches!(kind, Kind::Cluster | Kind::LoadAssignment | Kind::LbEndpoint);
        let was = routed.resource(&self.shelf, name).filter(|_| needed)?;
        (self.names.wants(name) && self.went_with_its_version(name, now)).then_some(was)
    }

    /// Whether the client asked for `name` itself, which it is to be told does not exist ("Knowing When a
    /// Requested Resource Does Not Exist"), and for a collection when it is empty.
    fn is_missing(&self, name: &str, snapshot: &Snapshot, routed: Option<&Snapshot>) -> bool {
        match collection(name) {
            Some(prefix) if self.names.has_collection(name) => {
                let went = |routed: &Snapshot| {
                    let mut members = super::names::members(routed.resources(&self.shelf), prefix);
                    members.any(|member| self.went_with_its_version(member, snapshot))
                };
                super::names::members(snapshot.resources(&self.shelf), prefix).next().is_none()
                    && !routed.is_some_and(went)
            }
            _ => self.names.has(name),
        }
    }

    /// "For LDS and CDS, the server must include the complete state of the world" ("Grouping Resources
    /// into Responses": the other types may be partial).
    pub(super) fn is_full_state(&self) -> bool {
        self.variant == Variant::StateOfTheWorld && self.shelf.0.is_whole()
    }

    /// Everything asked for, as it is or, where its removal has to wait, as it was.
    fn full_state(&self, snapshot: &Snapshot) -> Vec<Arc<Resource>> {
        let current = snapshot.resources(&self.shelf);
        let mut state: BTreeMap<&Name, &Arc<Resource>> = if self.names.wildcard {
            current.iter().collect()
        } else {
            self.names.single().filter_map(|name| current.get_key_value(name)).collect()
        };
        let waiting = self.open.iter().filter_map(|(name, open)| match &open.held {
            Held::Version(_, Some(resource)) => Some((name, resource)),
            _ => None,
        });
        for (name, resource) in waiting {
            state.entry(name).or_insert(resource);
        }
        state.into_values().map(Arc::clone).collect()
    }

    // ---- signs of life ----

    fn begin_heartbeats(&mut self, sent: &[Arc<Resource>], now: Instant) {
        // To others they have no time to live.
        if !self.client.ttl {
            return;
        }
        for resource in sent {
            match resource.ttl {
                Some(ttl) => {
                    let pause = (ttl / HEARTBEATS).max(MIN_HEARTBEAT);
                    self.heartbeats.insert(Arc::clone(&resource.name), (now + pause, pause));
                }
                None => _ = self.heartbeats.remove(&resource.name),
            }
        }
    }

    /// Those that are due, of resources that the client has ("TTL": "heartbeats").
    fn take_heartbeats(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<Arc<Resource>> {
        let mut due = Vec::new();
        let (shelf, open) = (&self.shelf, &self.open);
        self.heartbeats.retain(|name, (at, pause)| {
            let Some(resource) = snapshot.resource(shelf, name).filter(|r| r.ttl.is_some()) else {
                return false;
            };
            if *at <= now && !open.contains_key(name) {
                *at = now + *pause;
                due.push(Arc::clone(resource));
            }
            true
        });
        due
    }

    // ---- where it stands ----

    /// Whether a response is on its way that the next has to wait for.
    pub(super) fn is_in_flight(&self, now: Instant) -> bool {
        self.unanswered.newest().is_some_and(|sent| now < sent + ACK_TIMEOUT)
    }

    /// Whether there is something to send, if it may be.
    pub(super) fn is_waiting(&self) -> bool {
        self.asked && (self.greeting_owed || self.fresh.is_some() || !self.open.is_empty())
    }

    /// Whether there is something to send that is not a removal.
    pub(super) fn has_to_send(&self, snapshot: &Snapshot) -> bool {
        let there = |name: &Name| snapshot.resource(&self.shelf, name).is_some();
        self.asked && (self.greeting_owed || self.fresh.is_some() || self.open.keys().any(there))
    }

    /// Whether there is something to send that the client has nothing of, or has to get again.
    pub(super) fn has_news(&self, snapshot: &Snapshot) -> bool {
        let news = |(name, open): (&Name, &Open)| {
            matches!(open.held, Held::Nothing | Held::Absent | Held::Version(None, _))
                && snapshot.resource(&self.shelf, name).is_some()
        };
        self.asked && (self.fresh.is_some() || self.open.iter().any(news))
    }

    /// Whether the client has been sent everything and has accepted it, or has had its time to.
    pub(super) fn is_settled(&self, now: Instant) -> bool {
        !self.is_in_flight(now) && self.fresh.is_none() && self.open.is_empty() && !self.is_refused()
    }

    /// When the wait for an acknowledgement ends, or a sign of life is due.
    pub(super) fn deadline(&self, now: Instant) -> Option<Instant> {
        let answer = self.unanswered.newest().map(|sent| sent + ACK_TIMEOUT).filter(|at| *at > now);
        // One that is due already waits for what holds this type back.
        let beat = self.heartbeats.values().map(|(at, _)| *at).filter(|at| *at > now).min();
        // While an answer is waited for, nothing is sent.
        answer.or(beat)
    }

    /// The oldest revision that the client has not acknowledged everything of.
    pub(super) fn oldest_open(&self) -> Option<u64> {
        let open = self.open.values().map(|open| open.since.revision).min();
        let greeting = self.greeting_owed.then_some(1);
        let fresh = self.fresh.as_ref().map(|fresh| fresh.since.revision);
        [open, fresh, self.unanswered.oldest(), self.refused.oldest(), greeting].into_iter().flatten().min()
    }
}

/// A hash over the resources of a response.
fn digest(resources: &[Arc<Resource>]) -> String {
    let digest = resources.iter().fold(0_u64, |sum, resource| {
        let pair = [resource.name.as_bytes(), &resource.version.0.to_be_bytes()].concat();
        sum.wrapping_add(xxhash_rust::xxh3::xxh3_64(&pair))
    });
    Version(digest).to_string()
}
