//! What one client is owed: (requests, snapshots) → responses. Pure: no I/O, time is passed in.
//!
//! - [`interest`]: what a client asks for and holds of one type; the rules of both variants.
//! - `reply`: what is on its way, and what the client made of it.
//! - here: the four types of one stream, and the order between them.
//!
//! Citations are of `docs/root/api-docs/xds_protocol.rst` of Envoy, by section.
//!
//! Bounds: one response a type is in flight; what changes meanwhile is merged into the next, so a
//! slow client costs no memory and skips to the newest state. A client that never acknowledges gets
//! a response a type each [`ACK_TIMEOUT`].

pub mod interest;
mod reply;
#[cfg(test)]
mod tests;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use config::xds::ResourceType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};

use crate::snapshot::{Name, Resource, Snapshot};
use interest::Interest;

/// How long an unacknowledged response holds back what must not overtake it.
pub const ACK_TIMEOUT: Duration = Duration::from_secs(3);

/// How many names a client may ask for by name, a type.
pub const MAX_NAMES: usize = 65_536;

/// How long a name may be, in bytes.
pub const MAX_NAME_LENGTH: usize = 512;

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
    pub resource_type: ResourceType,
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
    /// A client asks for a name longer than [`MAX_NAME_LENGTH`].
    #[error("a name of more than {MAX_NAME_LENGTH} bytes was subscribed to")]
    NameTooLong,
}

/// One stream of one client.
#[derive(Debug)]
pub struct Session {
    snapshot: Snapshot,
    interests: [Interest; ResourceType::ALL.len()],
    nonces: u64,
    applied: u64,
    /// When the client first asked for something.
    began: Option<Instant>,
    /// Since when listeners or routes wait for clusters.
    routing_waits: Option<Instant>,
}

impl Session {
    /// A stream that starts at `snapshot`.
    pub fn new(variant: Variant, snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            interests: ResourceType::ALL.map(|resource_type| Interest::new(resource_type, variant)),
            nonces: 0,
            applied: 0,
            began: None,
            routing_waits: None,
        }
    }

    fn interest(&self, resource_type: ResourceType) -> &Interest {
        &self.interests[resource_type.index()]
    }

    /// Takes in a newer snapshot.
    pub fn on_snapshot(&mut self, snapshot: Snapshot) {
        match snapshot.changes_since(self.snapshot.revision()) {
            Some(changes) => {
                for change in changes {
                    self.interests[change.resource_type.index()].changed(change);
                }
            }
            None => {
                for interest in &mut self.interests {
                    interest.anything_changed(&snapshot, self.snapshot.revision() + 1);
                }
            }
        }
        self.snapshot = snapshot;
    }

    /// Takes in an incremental request; says what it answered to a response, if it did.
    pub fn on_incremental(
        &mut self,
        resource_type: ResourceType,
        request: DeltaDiscoveryRequest,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        self.began.get_or_insert(now);
        let interest = &mut self.interests[resource_type.index()];
        interest.on_incremental(request, &self.snapshot, now)
    }

    /// Takes in a state-of-the-world request; says what it answered to a response, if it did.
    pub fn on_state_of_the_world(
        &mut self,
        resource_type: ResourceType,
        request: DiscoveryRequest,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        self.began.get_or_insert(now);
        let interest = &mut self.interests[resource_type.index()];
        interest.on_state_of_the_world(request, &self.snapshot, now)
    }

    /// Whether a refusal of this type still stands.
    pub fn is_refused(&self, resource_type: ResourceType) -> bool {
        self.interest(resource_type).is_refused()
    }

    /// The next response that may be sent; `None` when nothing may until a request, a snapshot or
    /// [`Self::deadline`].
    ///
    /// "Eventual consistency considerations", make before break: clusters and their assignments
    /// first; listeners and routes when the client has acknowledged the clusters, or after
    /// [`ACK_TIMEOUT`]; removals of clusters and assignments when it has acknowledged the routes that
    /// no longer need them.
    pub fn poll(&mut self, now: Instant) -> Option<Response> {
        use ResourceType::{Cluster, Listener, LoadAssignment, RouteConfiguration};
        // Clusters that keep changing must not hold routes back for ever.
        let waited = self.routing_waits.is_some_and(|since| now >= since + ACK_TIMEOUT);
        let clusters_free = waited || !self.interest(Cluster).is_in_flight(now);
        let listeners_settled = self.interest(Listener).is_settled(now);
        let routing_settled = listeners_settled && self.interest(RouteConfiguration).is_settled(now);
        let clusters_settled = self.interest(Cluster).is_settled(now);
        let mut plan = [
            (Cluster, true, routing_settled),
            (LoadAssignment, true, routing_settled && clusters_settled),
            (Listener, clusters_free, true),
            (RouteConfiguration, clusters_free, listeners_settled),
        ];
        if waited {
            plan.rotate_left(2);
        }
        for (resource_type, may_send, may_remove) in plan {
            if !may_send {
                continue;
            }
            let nonce = Arc::from(format!("{:x}", self.nonces + 1));
            let interest = &mut self.interests[resource_type.index()];
            let Some((response, replaced)) = interest.respond(&self.snapshot, nonce, may_remove, now) else {
                continue;
            };
            self.nonces += 1;
            self.note_routing_waits(now);
            if resource_type == Cluster {
                // A cluster that changed warms anew and waits for its assignment, which has not
                // changed ("Resource warming"): send it again.
                let assignments = &mut self.interests[LoadAssignment.index()];
                for name in &replaced {
                    assignments.owe(name, self.snapshot.revision());
                }
            }
            return Some(response);
        }
        self.note_routing_waits(now);
        None
    }

    fn note_routing_waits(&mut self, now: Instant) {
        let waits = self.interest(ResourceType::Listener).is_waiting()
            || self.interest(ResourceType::RouteConfiguration).is_waiting();
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
        self.interest(ResourceType::Listener).is_asked()
    }

    /// The newest revision of which the client has acknowledged everything it subscribed to. Zero
    /// until it has asked for listeners, without which it does not know what it will need; a client
    /// that does not ask for them within [`ACK_TIMEOUT`] does without.
    pub fn applied(&mut self, now: Instant) -> u64 {
        let starting = self.began.is_none_or(|began| now < began + ACK_TIMEOUT);
        if starting && !self.is_routing_asked() {
            return self.applied;
        }
        let asked = self.interests.iter().filter(|interest| interest.is_asked());
        let oldest_open = asked.filter_map(Interest::oldest_open).min();
        let newest = oldest_open.map_or(u64::MAX, |open| open.saturating_sub(1));
        self.applied = self.applied.max(newest.min(self.snapshot.revision()));
        self.applied
    }
}
