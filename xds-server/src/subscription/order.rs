//! What may be sent before what ("Eventual consistency considerations").

use std::time::Instant;

use super::Session;
use crate::kind::Kind;

/// Whether a type decides where requests go.
pub(super) fn is_routing(kind: &Kind) -> bool {
    use Kind::{Listener, RouteConfiguration, ScopedRouteConfiguration, VirtualHost};
    matches!(kind, Listener | ScopedRouteConfiguration | RouteConfiguration | VirtualHost)
}

/// What a session may send now.
pub(super) struct Permits {
    /// No clusters are on their way that routes may need.
    clusters_free: bool,
    listeners_settled: bool,
    /// The client has all listeners and routes as they are.
    routing_settled: bool,
    clusters_settled: bool,
}

impl Permits {
    /// `waited`: listeners or routes have waited for clusters as long as they have to.
    pub(super) fn new(session: &Session, waited: bool, now: Instant) -> Self {
        let new_assignments =
            session.get(&Kind::LoadAssignment).is_some_and(|interest| interest.has_news(&session.snapshot));
        let routing = session.interests.iter().filter(|interest| is_routing(&interest.shelf.0));
        Self {
            // "LDS updates must arrive after corresponding CDS/EDS updates". Assignments that only change
            // do not matter: under churn there is always one.
            clusters_free: waited || !(session.is_in_flight(&Kind::Cluster, now) || new_assignments),
            listeners_settled: session.is_settled(&Kind::Listener, now),
            routing_settled: routing.into_iter().all(|interest| interest.is_settled(now)),
            clusters_settled: session.is_settled(&Kind::Cluster, now),
        }
    }

    /// Whether resources of this type may be sent, and removed.
    pub(super) fn of(&self, kind: &Kind) -> (bool, bool) {
        match kind {
            // "Stale CDS clusters and related EDS endpoints (ones no longer being referenced) can then be
            // removed."
            Kind::Cluster => (true, self.routing_settled),
            // An endpoint that is gone is gone; those of a version that is gone wait with it: see `respond`.
            Kind::Secret | Kind::LoadAssignment | Kind::LbEndpoint => {
                (true, self.routing_settled && self.clusters_settled)
            }
            Kind::Listener | Kind::ScopedRouteConfiguration | Kind::VirtualHost => (self.clusters_free, true),
            Kind::RouteConfiguration => (self.clusters_free, self.listeners_settled),
            Kind::ExtensionConfig | Kind::Runtime | Kind::Other(_) => (true, true),
        }
    }
}
