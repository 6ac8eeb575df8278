//! What is asked for, and what is acknowledged: an ACK means *applied*.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use config::xds::ResourceType;
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;

use super::{Cache, ListenerState, MAX_WITHHELD, Update};
use crate::xds::wire;

impl Cache {
    pub(super) fn wants_routes(&self, name: &str) -> bool {
        self.listeners.values().flat_map(ListenerState::route_configs).any(|wanted| wanted == name)
    }

    /// Whether all of a type is followed, which is asked for without a name.
    pub(super) fn follows_all(&self, kind: ResourceType) -> bool {
        kind == ResourceType::Listener && self.gateways.is_empty()
    }

    pub(super) fn follows_listener(&self, name: &str) -> bool {
        self.gateways.is_empty() || self.gateways.contains(name)
    }

    /// The names to be subscribed to; none for types that are followed as a whole.
    pub(super) fn wanted(&self, kind: ResourceType) -> BTreeSet<Arc<str>> {
        match kind {
            ResourceType::Listener => self.gateways.clone(),
            ResourceType::Cluster => self.routed.keys().cloned().collect(),
            ResourceType::LbEndpoint => self.assignments.wanted().cloned().collect(),
            ResourceType::LoadAssignment => self.followers.keys().cloned().collect(),
            ResourceType::RouteConfiguration => {
                self.listeners.values().flat_map(ListenerState::route_configs).map(Arc::from).collect()
            }
            ResourceType::Secret => {
                self.listeners.values().flat_map(ListenerState::secrets).cloned().collect()
            }
        }
    }

    /// Asks for what became needed, and no longer for what is not, which is forgotten.
    pub(super) fn resubscribe(&mut self, update: &mut Update) {
        for member in self.assignments.take_forgotten() {
            self.forget(ResourceType::LbEndpoint, &member);
        }
        let named = std::mem::take(&mut self.touched_names);
        let touched = std::mem::take(&mut self.touched_assignments);
        let collections = self.assignments.take_touched();
        if !self.connected {
            return;
        }
        let wanted = |name: &str| self.routed.contains_key(name);
        let kind = ResourceType::Cluster;
        update.requests.extend(difference(kind, &mut self.subscribed[kind.index()], named, wanted));
        let wanted = |name: &str| self.followers.contains_key(name);
        let kind = ResourceType::LoadAssignment;
        update.requests.extend(difference(kind, &mut self.subscribed[kind.index()], touched, wanted));
        let wanted = |name: &str| self.assignments.is_wanted(name);
        let kind = ResourceType::LbEndpoint;
        update.requests.extend(difference(kind, &mut self.subscribed[kind.index()], collections, wanted));
        for kind in [ResourceType::RouteConfiguration, ResourceType::Secret] {
            let wanted = self.wanted(kind);
            let known = &mut self.subscribed[kind.index()];
            if *known != wanted {
                let more = wanted.difference(known).map(ToString::to_string).collect();
                let less = known.difference(&wanted).map(ToString::to_string).collect();
                update.requests.push(wire::subscribe(kind, more, less));
                *known = wanted;
            }
        }
    }

    /// Sends the acknowledgements whose resources are applied, in the order of the responses.
    pub(super) fn release(&mut self, now: Instant, update: &mut Update) {
        for kind in ResourceType::ALL {
            let mut queue = std::mem::take(&mut self.withheld[kind.index()]);
            while let Some(front) = queue.front_mut() {
                if kind == ResourceType::Listener {
                    let failed = front.names.iter().filter_map(|name| {
                        let listener = self.listeners.get(name).filter(|l| l.is_refused())?;
                        let reason = listener.bound.as_ref()?.as_ref().err()?;
                        Some(format!("{kind} `{name}`: {reason}"))
                    });
                    let failed: Vec<String> = failed.collect();
                    if !failed.is_empty() {
                        let nonce = std::mem::take(&mut front.nonce);
                        update.requests.push(wire::nack(kind, nonce, failed.join("; ")));
                        queue.pop_front();
                        continue;
                    }
                }
                // A listener is not acknowledged before an attempt to bind it, unless too many wait.
                let late = now >= front.until && kind != ResourceType::Listener;
                let crowded = queue.len() > MAX_WITHHELD;
                let Some(front) = queue.front_mut() else { break };
                front.names.retain(|name| self.is_pending(kind, name));
                if !front.names.is_empty() {
                    if !late && !crowded {
                        break;
                    }
                    self.warming_timeouts += 1;
                }
                if late && kind == ResourceType::Cluster {
                    self.give_up(std::mem::take(&mut front.names));
                }
                let nonce = std::mem::take(&mut front.nonce);
                update.requests.push(wire::ack(kind, nonce));
                queue.pop_front();
            }
            self.withheld[kind.index()] = queue;
        }
    }

    /// Whether a resource that was accepted is not applied yet.
    pub(super) fn is_pending(&self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::Cluster => {
                self.clusters.get(name).is_some_and(|cluster| !cluster.retired) && !self.needs_no_wait(name)
            }
            ResourceType::LoadAssignment => self.assignments.is_staged(name),
            // Whoever waits for it is not acknowledged. A server that sends one response at a time would
            // hold back the rest of what is waited for.
            // A secret is shown before it is acknowledged.
            ResourceType::LbEndpoint | ResourceType::Secret => false,
            ResourceType::RouteConfiguration => {
                let staged = self.routes.get(name).and_then(|routes| routes.staged.as_ref());
                staged.is_some_and(|(config, _)| !self.missing(config).any(|name| self.absent.contains(name)))
            }
            ResourceType::Listener => {
                self.listeners.get(name).is_some_and(|l| l.staged.is_some() || l.bound.is_none())
            }
        }
    }
}

/// Which of the names `touched` are to be asked for from now on, and which no longer; `known` are those
/// that the server was told of.
fn difference(
    kind: ResourceType,
    known: &mut BTreeSet<Arc<str>>,
    touched: BTreeSet<Arc<str>>,
    wanted: impl Fn(&str) -> bool,
) -> Option<DeltaDiscoveryRequest> {
    let (mut more, mut less) = (Vec::new(), Vec::new());
    for name in touched {
        let text = name.to_string();
        if wanted(&name) {
            more.extend(known.insert(name).then_some(text));
        } else {
            less.extend(known.remove(&name).then_some(text));
        }
    }
    (!more.is_empty() || !less.is_empty()).then(|| wire::subscribe(kind, more, less))
}
