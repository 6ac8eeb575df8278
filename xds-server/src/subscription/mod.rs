//! What one client is owed: (requests, snapshots) → responses. Pure: no I/O, time is passed in.
//!
//! - `names`: which resources a client asks for: names, collections, everything. `set`: names that streams
//!   share.
//! - [`interest`]: what it asks for and holds of one type: snapshots and requests in. `fresh`: what it has
//!   begun to ask for.
//! - `respond`: the responses out. `reply`: what is on its way, and what the client made of it.
//! - `reference`: what a cluster and its assignment refer to. `order`: what may be sent before what.
//! - [`view`]: where each resource stands with the client.
//! - here: the types of one stream.
//!
//! Citations are of `docs/root/api-docs/xds_protocol.rst` of Envoy, by section or in its words.
//!
//! Bounds: one response a type is in flight; what changes meanwhile is merged into the next, so a
//! slow client costs no memory and skips to the newest state. A client that never acknowledges gets
//! a response a type each [`ACK_TIMEOUT`].

mod fresh;
pub mod interest;
mod names;
mod order;
mod reference;
mod reply;
mod respond;
mod set;
#[cfg(test)]
mod tests;
pub mod view;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::{
    kind::{Client, Kind},
    resource::{Name, Resource},
    snapshot::{Logged, Snapshot},
};
use interest::Interest;
use order::Permits;

/// How long an unacknowledged response holds back what must not overtake it.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// How many names a client may ask for by name, a type.
pub const MAX_NAMES: usize = 65_536;

/// How long all names of one stream may be together, in bytes.
pub const MAX_NAME_BYTES: usize = 16 << 20;

/// How long a name may be, in bytes.
pub const MAX_NAME_LENGTH: usize = 1_024;

/// How many types are followed on one stream; those asked for beyond are as if nothing were known of them.
pub const MAX_TYPES: usize = 32;

/// How large a response may become before the rest goes into the next, in bytes. gRPC clients refuse
/// messages above 4 MiB, and what is on its way is remembered for each client. A state of the world that
/// has to be whole is not divided.
pub const RESPONSE_BYTES: usize = 256 << 10;

/// `name` as clients have to ask for it; `None` when it is too long.
pub fn canonical_name(name: &str) -> Option<std::borrow::Cow<'_, str>> {
    names::canonical(name).ok()
}

/// The two variants of the protocol ("Four Variants of the xDS Transport Protocol"; both over ADS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// `DeltaAggregatedResources`
    Incremental,
    /// `StreamAggregatedResources`
    StateOfTheWorld,
}

/// A response that is due.
#[derive(Clone, Debug)]
pub struct Response {
    /// Its type.
    pub kind: Kind,
    /// The revision of the snapshot it was made from.
    pub revision: u64,
    /// Identifies it in the acknowledgement.
    pub nonce: Arc<str>,
    /// State of the world: a hash over what the client then holds.
    pub version_info: String,
    /// Resources to send.
    pub resources: Vec<Arc<Resource>>,
    /// Names that are gone, or never were. Incremental only.
    pub removed: Vec<Name>,
    /// Resources the client has, whose TTL begins anew.
    pub heartbeats: Vec<Arc<Resource>>,
}

/// What a request said about an earlier response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It was applied. The oldest change in it was published this long ago; `None` when it only
    /// answered what the client asked for.
    Ack(Option<Duration>),
    /// It was refused, for this reason.
    Nack(String),
}

/// Why a stream cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A client asks for more than [`MAX_NAMES`] names.
    #[error("more than {MAX_NAMES} names of one type were subscribed to on one stream; use a wildcard")]
    TooManyNames,
    /// The names a client asks for are longer than [`MAX_NAME_BYTES`] together.
    #[error("names of more than {MAX_NAME_BYTES} bytes were subscribed to on one stream; use a wildcard")]
    NamesTooLong,
    /// A client asks for a name longer than [`MAX_NAME_LENGTH`].
    #[error("a name of more than {MAX_NAME_LENGTH} bytes was subscribed to")]
    NameTooLong,
}

/// One stream of one client.
#[derive(Debug)]
pub struct Session {
    snapshot: Snapshot,
    variant: Variant,
    client: Client,
    /// Whether it is of one type only: nobody else's order matters, and nothing else is waited for.
    single: bool,
    /// In the order of their types, which is that in which clients need them.
    interests: Vec<Interest>,
    nonces: u64,
    applied: u64,
    /// When the client first asked for something.
    began: Option<Instant>,
    /// Since when listeners or routes wait for clusters.
    routing_waits: Option<Instant>,
    /// What the listeners and routes were made from that are on their way, and when. A client that asks
    /// for clusters by name asks after it has seen the routes that name them; if those clusters are gone by
    /// then, it gets them as they were, or it would send requests to nothing until newer routes come.
    routed: Option<(Snapshot, Instant)>,
}

impl Session {
    /// An aggregated stream of `client` that starts at `snapshot`.
    pub fn new(variant: Variant, client: Client, snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            variant,
            client,
            single: false,
            interests: Vec::new(),
            nonces: 0,
            applied: 0,
            began: None,
            routing_waits: None,
            routed: None,
        }
    }

    /// The same for a stream of one type.
    pub fn of_one_type(variant: Variant, client: Client, snapshot: Snapshot) -> Self {
        Self { single: true, ..Self::new(variant, client, snapshot) }
    }

    fn get(&self, kind: &Kind) -> Option<&Interest> {
        let at = self.interests.binary_search_by(|interest| interest.shelf.0.cmp(kind)).ok()?;
        self.interests.get(at)
    }

    fn at(&mut self, kind: &Kind) -> Option<usize> {
        match self.interests.binary_search_by(|interest| interest.shelf.0.cmp(kind)) {
            Ok(at) => Some(at),
            // Those that have a name here are few.
            Err(_) if matches!(kind, Kind::Other(_)) && self.interests.len() >= MAX_TYPES => None,
            Err(at) => {
                let shelf = (kind.clone(), self.client.view(kind));
                self.interests.insert(at, Interest::new(shelf, self.variant, self.client));
                Some(at)
            }
        }
    }

    /// Takes in a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Snapshot) {
        let changes: Option<Vec<&Logged>> =
            snapshot.changes_since(self.snapshot.revision()).map(Iterator::collect);
        for interest in &mut self.interests {
            interest.advance(&self.snapshot, &snapshot, changes.as_deref());
        }
        self.snapshot = snapshot;
    }

    /// Takes in an incremental request; says what it answered to a response, if it did.
    pub fn on_incremental(
        &mut self,
        kind: &Kind,
        request: DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        self.began.get_or_insert(now);
        let Some(at) = self.at(kind) else { return Ok(None) };
        let collections = match self.routed {
            Some(_) if *kind == Kind::LbEndpoint => request.resource_names_subscribe.clone(),
            _ => Vec::new(),
        };
        let interest = &mut self.interests[at];
        let reply = interest.on_incremental(request, &self.snapshot, now)?;
        if let Some((routed, _)) = &self.routed {
            for name in &collections {
                interest.open_gone(name, &self.snapshot, routed);
            }
        }
        self.within_bounds(reply)
    }

    /// Takes in a state-of-the-world request; says what it answered to a response, if it did.
    pub fn on_state_of_the_world(
        &mut self,
        kind: &Kind,
        request: DiscoveryRequest,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        self.began.get_or_insert(now);
        let Some(at) = self.at(kind) else { return Ok(None) };
        let reply = self.interests[at].on_state_of_the_world(request, &self.snapshot, now)?;
        self.within_bounds(reply)
    }

    fn within_bounds(&self, reply: Option<Reply>) -> Result<Option<Reply>, Violation> {
        let bytes: usize = self.interests.iter().map(|interest| interest.names.bytes()).sum();
        if bytes > MAX_NAME_BYTES { Err(Violation::NamesTooLong) } else { Ok(reply) }
    }

    /// Whether a refusal of this type still stands.
    pub fn is_refused(&self, kind: &Kind) -> bool {
        self.get(kind).is_some_and(Interest::is_refused)
    }

    fn is_in_flight(&self, kind: &Kind, now: Instant) -> bool {
        self.get(kind).is_some_and(|interest| interest.is_in_flight(now))
    }

    fn is_settled(&self, kind: &Kind, now: Instant) -> bool {
        self.get(kind).is_none_or(|interest| interest.is_settled(now))
    }

    /// The next response that may be sent; `None` when nothing may until a request, a snapshot or
    /// [`Self::deadline`].
    ///
    /// "Eventual consistency considerations", make before break: clusters and their endpoints first;
    /// listeners and routes when the client has acknowledged the clusters, or after [`ACK_TIMEOUT`];
    /// removals of clusters and assignments when it has acknowledged the routes that no longer need
    /// them.
    pub fn poll(&mut self, now: Instant) -> Option<Response> {
        self.forget_routed(now);
        if self.interests.iter().all(Interest::is_idle) {
            self.routing_waits = None;
            return None;
        }
        // Clusters that keep changing must not hold routes back for ever.
        let waited = self.routing_waits.is_some_and(|since| now >= since + ACK_TIMEOUT);
        let permits = Permits::new(self, waited, now);
        let count = self.interests.len();
        // What has waited long enough comes first.
        let routing = self.interests.partition_point(|interest| interest.shelf.0 < Kind::Listener);
        let first = if waited { routing } else { 0 };
        let mut settled_silently = false;
        for at in (0..count).map(|i| (first + i) % count) {
            let (may_send, may_remove) = permits.of(&self.interests[at].shelf.0);
            if !may_send {
                continue;
            }
            let interest = &mut self.interests[at];
            let was_waiting = interest.is_waiting();
            let routed = self.routed.as_ref().map(|(routed, _)| routed);
            let Some((response, replaced)) =
                interest.respond(&self.snapshot, routed, self.nonces + 1, may_remove, now)
            else {
                settled_silently |= was_waiting && !interest.is_waiting();
                continue;
            };
            self.nonces += 1;
            if order::is_routing(&response.kind) && !self.single {
                self.routed = Some((self.snapshot.clone(), now));
            }
            self.note_routing_waits(now);
            if response.kind == Kind::Cluster && !self.single && !replaced.is_empty() {
                self.send_endpoints_again(&replaced);
            }
            return Some(response);
        }
        if settled_silently {
            // An absence that a state of the world cannot say: removals may have waited for it, and there
            // is no acknowledgement to come. Each turn leaves one type less that waits.
            return self.poll(now);
        }
        self.note_routing_waits(now);
        None
    }

    /// What routes were made from is no longer needed when the client has applied them.
    fn forget_routed(&mut self, now: Instant) {
        let Some((_, sent)) = &self.routed else { return };
        let mut routing = self.interests.iter().filter(|interest| order::is_routing(&interest.shelf.0));
        if now >= *sent + ACK_TIMEOUT || routing.all(|interest| interest.is_settled(now)) {
            self.routed = None;
        }
    }

    /// A cluster that changed warms anew and waits for its endpoints, which have not changed
    /// ("Resource warming": "even though there is no change in endpoints").
    fn send_endpoints_again(&mut self, clusters: &[Name]) {
        // Without room for another type the client has not asked for endpoints, nor can it.
        let Some(assignments) = self.at(&Kind::LoadAssignment) else { return };
        let clusters = clusters.iter().map(|cluster| (cluster, self.assignment_of(cluster)));
        let clusters: Vec<(&Name, Name)> = clusters.collect();
        for (_, assignment) in &clusters {
            self.interests[assignments].owe(assignment, &self.snapshot);
        }
        let Ok(endpoints) = self.interests.binary_search_by(|i| i.shelf.0.cmp(&Kind::LbEndpoint)) else {
            return;
        };
        let assigned = self.interests[assignments].shelf.clone();
        let endpoints = &mut self.interests[endpoints];
        let resources = self.snapshot.resources(&endpoints.shelf);
        for (cluster, assignment) in &clusters {
            let own = config::xds::leds::cluster_prefix(cluster);
            let from = (std::ops::Bound::Included(&*own), std::ops::Bound::Unbounded);
            let below = resources.range::<_, str>(from).map(|(name, _)| name);
            below
                .take_while(|name| name.starts_with(&own))
                .for_each(|name| endpoints.owe(name, &self.snapshot));
            // Those of a cluster that was put as it is may be called anything.
            let others = self.snapshot.resource(&assigned, assignment);
            let others = others.map(|resource| reference::collections(&resource.value())).unwrap_or_default();
            for prefix in others.iter().filter_map(|name| names::collection(name)) {
                if !prefix.starts_with(&own) {
                    names::members(resources, prefix).for_each(|name| endpoints.owe(name, &self.snapshot));
                }
            }
        }
    }

    /// The name of the load assignment that a cluster follows.
    fn assignment_of(&self, cluster: &Name) -> Name {
        let shelf = (Kind::Cluster, self.client.view(&Kind::Cluster));
        let named = self.snapshot.resource(&shelf, cluster);
        let named = named.and_then(|resource| reference::assignment(&resource.value()));
        named.map_or_else(|| Arc::clone(cluster), Name::from)
    }

    fn note_routing_waits(&mut self, now: Instant) {
        let routing = self.interests.iter().filter(|interest| order::is_routing(&interest.shelf.0));
        let waits = routing.into_iter().any(|interest| interest.has_to_send(&self.snapshot));
        self.routing_waits = waits.then(|| self.routing_waits.unwrap_or(now));
    }

    /// When [`Self::poll`] may have something though nothing happened.
    pub fn deadline(&self, now: Instant) -> Option<Instant> {
        let interests = self.interests.iter().filter_map(|interest| interest.deadline(now));
        let session = [self.routing_waits, self.began.filter(|_| !self.is_routing_asked())];
        let session = session.into_iter().flatten().map(|since| since + ACK_TIMEOUT);
        interests.chain(session.filter(|deadline| *deadline > now)).min()
    }

    fn is_routing_asked(&self) -> bool {
        self.get(&Kind::Listener).is_some_and(|listeners| listeners.asked)
    }

    /// The newest revision of which the client has acknowledged everything it subscribed to. On an
    /// aggregated stream zero until it has asked for listeners, without which it does not know what it
    /// will need; a client that does not ask for them within [`ACK_TIMEOUT`] does without.
    pub fn applied(&mut self, now: Instant) -> u64 {
        let starting = !self.single && self.began.is_none_or(|began| now < began + ACK_TIMEOUT);
        if starting && !self.is_routing_asked() {
            return self.applied;
        }
        let asked = self.interests.iter().filter(|interest| interest.asked);
        let oldest_open = asked.filter_map(Interest::oldest_open).min();
        let newest = oldest_open.map_or(u64::MAX, |open| open.saturating_sub(1));
        self.applied = self.applied.max(newest.min(self.snapshot.revision()));
        self.applied
    }
}
