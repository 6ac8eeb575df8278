//! What a server told us: responses in, changes and acknowledgements out. Pure: no sockets, no
//! clock (time is passed in), no tasks.
//!
//! The order of work is: prepare aside, publish once, acknowledge last. An [`Update`] says what to
//! publish; its requests are sent after that has been done.
//!
//! - Clusters and load assignments go live at once.
//! - A route configuration is *staged* until every cluster it names is there with its assignment,
//!   or [`WARMING_TIMEOUT`] has passed. A listener is staged until its routes are live, likewise.
//!   What was live before stays so meanwhile (xDS protocol, "Resource warming").
//!   A load assignment that names collections of endpoints is staged until they are answered, likewise.
//!   The clock runs from the first change that waits: one that comes meanwhile does not restart it.
//!   A cluster that was waited for in vain, or whose resource was refused, is not waited for again.
//! - Only what is routed is held: clusters are asked for by the names that route configurations give
//!   them, live or staged, and load assignments by those of these clusters. A cluster that nothing names
//!   any more is given up with its endpoints once the routes that do without it are live. Those of a
//!   listener that went are kept for as long as its last connections may last.
//! - LDS decides what exists. A cluster that CDS removed stays usable while a route names it. The removal
//!   of a load assignment or route configuration only means that the server forgot it: what is in use
//!   stays as it was, as in Envoy.
//! - Routes that name a cluster which the server says does not exist are acknowledged, and wait. Such a
//!   server has removed the cluster after it sent them, and has newer routes ready, which it sends only
//!   after that: to wait for the cluster would be to wait for each other.
//! - A resource that cannot be read is kept out (the one before stays), the rest of the response is
//!   applied, and the response is refused with a reason that names each bad resource.
//!
//! Here: taking in. [`assignments`]: endpoints, whole or one by one. [`listeners`]: what is bound.
//! [`secrets`]: what they show. [`warming`]: what may go live. [`subscriptions`]: what is asked for and what is acknowledged.

mod assignments;
mod listeners;
mod secrets;
mod subscriptions;
mod warming;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use config::xds::{
    ResourceType,
    assignment::decode_assignment,
    cluster::{ClusterConfig, decode_cluster},
    leds::decode_member,
    listener::{ListenerConfig, decode_listener},
    route::{RouteConfig, decode_route_config},
    secret::SecretConfig,
};
use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource,
};

use assignments::Assignments;
use listeners::ListenerState;

use super::wire;
use crate::table::Change;

/// How long routes wait for their clusters, listeners for their routes and load assignments for their
/// collections, and how long an acknowledgement is withheld for it. After that the new goes live as it is: a server that never
/// sends an assignment must not hold back everything else (cf. envoy#13009).
pub(crate) const WARMING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bound on acknowledgements withheld for one type; beyond it the oldest is sent.
const MAX_WITHHELD: usize = 4_096;

/// One `T` a type, in the order of [`ResourceType::ALL`].
pub(crate) type ByType<T> = [T; ResourceType::ALL.len()];

/// Resources held of one type, by name. Cloning it is cheap, whatever its size.
pub(crate) type HeldMap =
    imbl::GenericHashMap<Arc<str>, Held, foldhash::fast::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

/// A resource as the server sent it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) version: Arc<str>,
    pub(crate) value: Bytes,
}

impl std::fmt::Debug for Held {
    /// Without the value, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} bytes)", self.version, self.value.len())
    }
}

/// What to do, in the order of the fields.
#[derive(Debug, Default)]
pub(crate) struct Update {
    /// Have these shown first.
    pub(crate) secrets: Vec<SecretConfig>,
    /// Publish these.
    pub(crate) upserts: Vec<Change>,
    /// Then make the listeners these (all of them), and call [`Cache::on_listeners`].
    pub(crate) listeners: Option<Vec<ListenerConfig>>,
    /// Then publish these.
    pub(crate) removals: Vec<Change>,
    /// Then forget these secrets.
    pub(crate) secrets_gone: Vec<Arc<str>>,
    /// Then send these: subscriptions and acknowledgements.
    pub(crate) requests: Vec<DeltaDiscoveryRequest>,
    /// Whether anything held has changed.
    pub(crate) changed: bool,
}

/// The subscribed state of all types.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    /// What was accepted last: what the server need not send again.
    held: ByType<HeldMap>,
    /// What to start from when no server answers: what is in use, whether or not a server still
    /// knows it; of each listener what was bound last, in this run or the one it was saved by.
    last_good: ByType<HeldMap>,
    clusters: HashMap<Arc<str>, KnownCluster>,
    /// By their own name, which clusters refer to.
    assignments: Assignments,
    /// Names of clusters by the assignment they follow; its keys are what EDS is asked for.
    followers: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    routes: BTreeMap<Arc<str>, RouteState>,
    /// How many route configurations, live or staged, name a cluster; its keys are what CDS is asked for.
    routed: HashMap<Arc<str>, usize>,
    /// Those of them of which the server says that they do not exist.
    absent: BTreeSet<Arc<str>>,
    /// Route configurations that went with their listeners, which may still have requests, and until when.
    lingering: BTreeMap<Arc<str>, (Arc<RouteConfig>, Instant)>,
    /// How long that is.
    linger: Duration,
    /// The listeners that are followed; all of them when it is empty.
    gateways: BTreeSet<Arc<str>>,
    listeners: BTreeMap<Arc<str>, ListenerState>,
    /// Secrets that were given, and that a listener names.
    secrets: BTreeSet<Arc<str>>,
    /// Clusters that CDS removed or a route has ceased to name, to be dropped when none names them.
    retired: BTreeSet<Arc<str>>,
    /// Names the server was told of on this stream.
    subscribed: ByType<BTreeSet<Arc<str>>>,
    /// Clusters not worth waiting for, as long as they are not warm.
    given_up: BTreeSet<Arc<str>>,
    withheld: ByType<VecDeque<Withheld>>,
    /// Types of which a first response, or a saved state, has arrived.
    heard: ByType<bool>,
    connected: bool,
    warming_timeouts: u64,
    // What a single call gathers.
    touched_clusters: BTreeSet<Arc<str>>,
    touched_names: BTreeSet<Arc<str>>,
    touched_assignments: BTreeSet<Arc<str>>,
    secrets_given: Vec<SecretConfig>,
    listeners_touched: bool,
    routes_touched: bool,
}

#[derive(Debug)]
struct KnownCluster {
    config: Arc<ClusterConfig>,
    /// Removed by CDS, still named by a route.
    retired: bool,
    /// In the table already.
    shown: bool,
}

#[derive(Debug, Default)]
struct RouteState {
    live: Option<Arc<RouteConfig>>,
    staged: Option<(Arc<RouteConfig>, Instant)>,
}

/// An acknowledgement that waits until what it acknowledges is applied.
#[derive(Debug)]
struct Withheld {
    nonce: String,
    /// Names of resources of its type that are not applied yet.
    names: Vec<Arc<str>>,
    until: Instant,
}

impl Cache {
    /// Follows the listeners called `gateways`, and all if there are none. What a listener that goes needs
    /// is kept for `linger`.
    pub(crate) fn new<'a>(gateways: impl IntoIterator<Item = &'a str>, linger: Duration) -> Self {
        Self { gateways: gateways.into_iter().map(Arc::from).collect(), linger, ..Self::default() }
    }

    /// Takes in a response. Types that are not followed are ignored.
    pub(crate) fn on_response(&mut self, response: DeltaDiscoveryResponse, now: Instant) -> Update {
        let Some(kind) = ResourceType::from_type_url(&response.type_url) else {
            return Update::default();
        };
        self.heard[kind.index()] = true;
        let mut refused = Vec::new();
        let mut names = Vec::new();
        let mut changed = !response.removed_resources.is_empty();
        for name in &response.removed_resources {
            self.remove(kind, name);
            if kind == ResourceType::Listener {
                names.push(name.as_str().into());
            }
        }
        for resource in response.resources {
            let label = resource.name.clone();
            match self.accept(kind, resource, now) {
                Ok(Some(name)) => {
                    changed = true;
                    names.push(name);
                }
                Ok(None) => {}
                Err(reason) => {
                    self.give_up_refused(kind, &label);
                    refused.push(format!("{kind} `{label}`: {reason}"));
                }
            }
        }
        let mut update = Update { changed, ..Update::default() };
        if refused.is_empty() {
            let withheld = Withheld { nonce: response.nonce, names, until: now + WARMING_TIMEOUT };
            self.withheld[kind.index()].push_back(withheld);
        } else {
            update.requests.push(wire::nack(kind, response.nonce, refused.join("; ")));
        }
        self.settle(now, &mut update);
        update
    }

    /// Time has passed: what waited long enough goes live.
    pub(crate) fn on_time(&mut self, now: Instant) -> Update {
        let mut update = Update::default();
        self.settle(now, &mut update);
        update
    }

    /// When [`Self::on_time`] next has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        let routes = self.routes.values().filter_map(|r| Some(r.staged.as_ref()?.1 + WARMING_TIMEOUT));
        let listeners = self.listeners.values().filter_map(|l| Some(l.staged.as_ref()?.1 + WARMING_TIMEOUT));
        // Listeners are acknowledged when they were tried to be bound, at once when they go live.
        let timed = ResourceType::ALL.into_iter().filter(|kind| *kind != ResourceType::Listener);
        let withheld = timed.filter_map(|kind| Some(self.withheld[kind.index()].front()?.until));
        let lingering = self.lingering.values().map(|(_, until)| *until);
        let waiting = routes.chain(listeners).chain(withheld).chain(self.assignments.next_deadline());
        waiting.chain(lingering).min()
    }

    /// A new stream begins: what to send first. Nothing that is held has to be sent again.
    pub(crate) fn on_connected(&mut self) -> Vec<DeltaDiscoveryRequest> {
        self.connected = true;
        self.withheld = Default::default();
        self.subscribed = Default::default();
        // Another server, another chance.
        self.given_up.clear();
        self.absent.clear();
        self.assignments.forgive();
        let mut requests = Vec::new();
        for kind in ResourceType::ALL {
            let names: Vec<String> = self.wanted(kind).iter().map(ToString::to_string).collect();
            self.subscribed[kind.index()] = self.wanted(kind);
            // Without a name it would be all of them.
            if self.follows_all(kind) || !names.is_empty() {
                // The server was told that a listener is refused, so it is asked for it again.
                let refused = |name: &str| {
                    kind == ResourceType::Listener
                        && self.listeners.get(name).is_some_and(ListenerState::is_refused)
                };
                let held = self.held[kind.index()].iter().filter(|(name, _)| !refused(name));
                let held = held.map(|(name, held)| (name.to_string(), held.version.to_string()));
                requests.push(wire::first(kind, names, held.collect()));
            }
        }
        requests
    }

    /// The stream is over; its nonces mean nothing any more.
    pub(crate) fn on_disconnected(&mut self) {
        self.connected = false;
        self.withheld = Default::default();
    }

    /// Takes in what was saved by an earlier run: all of it goes live without waiting. Resources
    /// that cannot be read any more are left out; their names are returned.
    pub(crate) fn restore(
        &mut self,
        saved: &[(ResourceType, Resource)],
        now: Instant,
    ) -> (Update, Vec<String>) {
        let mut refused = Vec::new();
        // What refers comes before what is referred to, or the latter would not be asked for.
        for wave in [
            ResourceType::Listener,
            ResourceType::Secret,
            ResourceType::RouteConfiguration,
            ResourceType::Cluster,
            ResourceType::LoadAssignment,
            ResourceType::LbEndpoint,
        ] {
            for (kind, resource) in saved.iter().filter(|(kind, _)| *kind == wave) {
                self.heard[kind.index()] = true;
                let label = format!("{kind} `{}`", resource.name);
                match self.accept(*kind, resource.clone(), now) {
                    // It was bound when it was saved: not to be lost if it cannot be just now.
                    Ok(Some(name)) if *kind == ResourceType::Listener => _ = self.keep_listener(&name),
                    Ok(_) => {}
                    Err(reason) => refused.push(format!("{label}: {reason}")),
                }
            }
        }
        let mut update = Update::default();
        let timeouts = self.warming_timeouts;
        self.settle(now + WARMING_TIMEOUT, &mut update);
        self.warming_timeouts = timeouts;
        (update, refused)
    }

    /// What is held of each type, in the order of [`ResourceType::ALL`].
    pub(crate) fn held(&self) -> ByType<HeldMap> {
        self.held.clone()
    }

    /// What to save, in the same order; what is live, if [`Self::settled`].
    pub(crate) fn last_good(&self) -> ByType<HeldMap> {
        self.last_good.clone()
    }

    /// How often something went live before what it needs was there.
    pub(crate) fn warming_timeouts(&self) -> u64 {
        self.warming_timeouts
    }

    /// Whether nothing waits to go live.
    pub(crate) fn settled(&self) -> bool {
        self.waiting().is_empty()
    }

    /// What waits to go live, and for what; for people.
    pub(crate) fn waiting(&self) -> Vec<String> {
        let routes = self.routes.iter().filter_map(|(name, state)| {
            let missing: Vec<&str> = self.missing(&state.staged.as_ref()?.0).take(5).collect();
            Some(format!("routes `{name}` wait for {}", missing.join(", ")))
        });
        let listeners = self.listeners.iter().filter_map(|(name, state)| {
            let staged = &state.staged.as_ref()?.0;
            let routes = format!("routes `{}`", staged.route_config);
            let secrets = self.missing_secrets(staged).map(|name| format!("secret `{name}`"));
            let needs = std::iter::once(routes).chain(secrets.take(5)).collect::<Vec<_>>().join(", ");
            Some(format!("listener `{name}` waits for {needs}"))
        });
        let assignments = self.assignments.waiting().map(|(name, collections)| {
            let missing: Vec<&str> = collections.take(5).map(|name| &**name).collect();
            format!("endpoints of `{name}` wait for {}", missing.join(", "))
        });
        routes.chain(listeners).chain(assignments).collect()
    }

    /// Why the first complete configuration is not live yet; `None` once it is.
    pub(crate) fn not_ready(&self) -> Option<String> {
        if !self.heard[ResourceType::Listener.index()] {
            return Some("no listeners from a server yet".to_owned());
        }
        let waiting = self.waiting();
        if !waiting.is_empty() {
            return Some(waiting.join("; "));
        }
        let without =
            self.listeners.iter().filter_map(|(name, l)| Some((name, l.live.as_ref()?))).find(|(_, l)| {
                self.routes.get(l.route_config.as_str()).is_none_or(|routes| routes.live.is_none())
            });
        without.map(|(name, l)| format!("listener `{name}` has no routes `{}` yet", l.route_config))
    }

    /// Whether something that is asked for has not come yet.
    pub(crate) fn lacks_something(&self) -> bool {
        ResourceType::ALL.into_iter().any(|kind| {
            let i = kind.index();
            let whole = !self.follows_all(kind) || self.heard[i];
            let has = |name: &Arc<str>| match kind {
                ResourceType::LbEndpoint => self.assignments.is_answered(name),
                _ => self.held[i].contains_key(name),
            };
            !whole || !self.subscribed[i].iter().all(has)
        })
    }

    /// Takes in a resource; the name when it counts, `None` when it was not asked for.
    fn accept(
        &mut self,
        kind: ResourceType,
        resource: Resource,
        now: Instant,
    ) -> Result<Option<Arc<str>>, String> {
        // A resource without a body only extends a TTL (xDS protocol, "TTL"), which is not used.
        let Some(any) = resource.resource else { return Ok(None) };
        if any.type_url != kind.type_url() {
            return Err(format!("it is a {}", any.type_url));
        }
        let value = Bytes::from(any.value);
        if kind == ResourceType::LbEndpoint {
            let endpoint = decode_member(&resource.name, &value).map_err(|e| e.to_string())?;
            let name = self.assignments.put_member(&resource.name, &endpoint)?;
            if let Some(name) = &name {
                self.hold(kind, Arc::clone(name), Held { version: resource.version.into(), value });
            }
            return Ok(name);
        }
        let Some(name) = self.stage(kind, &value, now)? else { return Ok(None) };
        if !resource.name.is_empty() && *resource.name != *name {
            // The body decides; a server that names it otherwise could not remove it again.
            tracing::warn!("{kind}: a resource called `{}` contains `{name}`", resource.name);
        }
        self.hold(kind, Arc::clone(&name), Held { version: resource.version.into(), value });
        Ok(Some(name))
    }

    fn hold(&mut self, kind: ResourceType, name: Arc<str>, held: Held) {
        if kind != ResourceType::Listener {
            self.last_good[kind.index()].insert(Arc::clone(&name), held.clone());
        }
        self.held[kind.index()].insert(name, held);
    }

    fn stage(&mut self, kind: ResourceType, value: &[u8], now: Instant) -> Result<Option<Arc<str>>, String> {
        let text = |e: config::xds::DecodeError| e.to_string();
        Ok(match kind {
            ResourceType::Cluster => {
                let config = decode_cluster(value).map_err(text)?;
                self.routed.contains_key(config.name.as_str()).then(|| self.put_cluster(config))
            }
            ResourceType::LoadAssignment => {
                let assignment = decode_assignment(value).map_err(text)?;
                let followed = self.followers.get_key_value(assignment.name.as_str());
                let name = followed.map(|(name, _)| Arc::clone(name));
                if let Some(name) = &name {
                    self.assignments.put(name, assignment, now);
                }
                name
            }
            ResourceType::Listener => {
                let config = decode_listener(value).map_err(text)?;
                self.follows_listener(&config.name).then(|| self.put_listener(config, now))
            }
            ResourceType::RouteConfiguration => {
                self.put_routes(decode_route_config(value).map_err(text)?, now)
            }
            ResourceType::Secret => self.put_secret(value)?,
            // It has its name from its resource, and is taken in on its own.
            ResourceType::LbEndpoint => None,
        })
    }

    /// What is used no longer need not be known any more.
    fn forget(&mut self, kind: ResourceType, name: &str) {
        self.held[kind.index()].remove(name);
        self.last_good[kind.index()].remove(name);
    }

    fn put_cluster(&mut self, config: ClusterConfig) -> Arc<str> {
        let name: Arc<str> = config.name.as_str().into();
        let assignment: Arc<str> = config.assignment.as_str().into();
        let before = self.clusters.get(&name);
        let shown = before.is_some_and(|before| before.shown);
        if before.is_none_or(|before| before.retired || *before.config != config) {
            self.given_up.remove(&name);
        }
        let old =
            before.map(|before| Arc::clone(&before.config)).filter(|old| *old.assignment != *assignment);
        self.followers.entry(Arc::clone(&assignment)).or_default().insert(Arc::clone(&name));
        self.touched_assignments.insert(assignment);
        self.retired.remove(&name);
        self.absent.remove(&name);
        self.clusters
            .insert(Arc::clone(&name), KnownCluster { config: Arc::new(config), retired: false, shown });
        self.touched_clusters.insert(Arc::clone(&name));
        if let Some(old) = old {
            self.unfollow(&old.assignment, &name);
        }
        name
    }

    fn put_routes(&mut self, config: RouteConfig, now: Instant) -> Option<Arc<str>> {
        if !self.wants_routes(&config.name) {
            return None;
        }
        let name: Arc<str> = config.name.as_str().into();
        let state = self.routes.entry(Arc::clone(&name)).or_default();
        let before = state.staged.take();
        let since = before.as_ref().map_or(now, |(_, since)| *since);
        if state.live.as_deref() != Some(&config) {
            let config = Arc::new(config);
            state.staged = Some((Arc::clone(&config), since));
            self.route(&config);
        }
        // Last, so that what both name is not given up in between.
        self.unroute(before.as_ref().map(|(config, _)| &**config));
        self.routes_touched = true;
        Some(name)
    }

    fn remove(&mut self, kind: ResourceType, name: &str) {
        self.held[kind.index()].remove(name);
        match kind {
            ResourceType::Cluster => {
                if let Some(cluster) = self.clusters.get_mut(name) {
                    cluster.retired = true;
                    self.retired.insert(name.into());
                } else if let Some((name, _)) = self.routed.get_key_value(name) {
                    self.absent.insert(Arc::clone(name));
                }
            }
            ResourceType::Listener => {
                if self.gateways.contains(name) && !self.listeners.contains_key(name) {
                    tracing::warn!("the server has no gateway `{name}`");
                }
                self.last_good[kind.index()].remove(name);
                self.listeners_touched |= self.listeners.remove(name).is_some();
            }
            ResourceType::LbEndpoint => self.assignments.remove(name),
            // In use they stay as they were; out of use they are not kept anyway.
            ResourceType::LoadAssignment | ResourceType::RouteConfiguration | ResourceType::Secret => {}
        }
    }
}

#[cfg(test)]
mod tests;
