//! What may go live, and when: make before break.

use std::{sync::Arc, time::Instant};

use config::xds::{ResourceType, listener::ListenerConfig, route::RouteConfig};

use super::{Cache, RouteState, Update, WARMING_TIMEOUT};
use crate::table::Change;

impl Cache {
    /// Promotes what is ready, retires what nothing names, and gathers what is to be done.
    pub(super) fn settle(&mut self, now: Instant, update: &mut Update) {
        update.secrets.append(&mut self.secrets_given);
        self.end_lingering(now, update);
        if self.listeners_touched {
            self.drop_unwanted_routes(now, update);
            self.drop_unwanted_secrets(update);
        }
        self.promote_assignments(now);
        self.promote_routes(now, update);
        self.promote_listeners(now, update);
        self.drop_retired_clusters(update);
        // Clusters before the routes that name them.
        let routes = std::mem::take(&mut update.upserts);
        let touched = std::mem::take(&mut self.touched_clusters);
        for name in &touched {
            let Some(cluster) = self.clusters.get_mut(name) else { continue };
            let assignment = self.assignments.whole(&cluster.config.assignment);
            // A live cluster that moves to another assignment keeps its endpoints until that comes.
            if assignment.is_some() || !cluster.shown {
                cluster.shown = true;
                if assignment.is_some() {
                    self.given_up.remove(name);
                }
                update.upserts.push(Change::Cluster(Arc::clone(&cluster.config), assignment));
            }
        }
        for (assignment, changes) in self.assignments.take_moved() {
            let followers = self.followers.get(&assignment).into_iter().flatten();
            let changed = followers.filter(|cluster| !touched.contains(*cluster));
            let change = |cluster: &Arc<str>| Change::Endpoints(Arc::clone(cluster), Arc::clone(&changes));
            update.upserts.extend(changed.map(change));
        }
        update.upserts.extend(routes);
        self.resubscribe(update);
        self.release(now, update);
    }

    fn promote_assignments(&mut self, now: Instant) {
        self.warming_timeouts += self.assignments.promote(now);
        for name in self.assignments.take_whole() {
            self.touched_clusters.extend(self.followers.get(&name).into_iter().flatten().cloned());
        }
    }

    pub(super) fn promote_routes(&mut self, now: Instant, update: &mut Update) {
        let staged =
            self.routes.iter().filter_map(|(name, s)| s.staged.as_ref().map(|staged| (name, staged)));
        let mut due = Vec::new();
        for (name, (config, since)) in staged {
            let missing: Vec<Arc<str>> = self.missing(config).map(Arc::from).collect();
            if missing.is_empty() || now >= *since + WARMING_TIMEOUT {
                due.push((Arc::clone(name), missing));
            }
        }
        for (name, missing) in due {
            self.warming_timeouts += u64::from(!missing.is_empty());
            self.give_up(missing);
            let Some(state) = self.routes.get_mut(&name) else { continue };
            let Some((config, _)) = state.staged.take() else { continue };
            let before = state.live.replace(Arc::clone(&config));
            self.unroute(before.as_deref());
            update.upserts.push(Change::Routes(config));
            self.routes_touched = true;
        }
    }

    pub(super) fn promote_listeners(&mut self, now: Instant, update: &mut Update) {
        if !self.listeners_touched
            && !self.routes_touched
            && self.listeners.values().all(|l| l.staged.is_none())
        {
            return;
        }
        let mut changed = self.listeners_touched;
        for state in self.listeners.values_mut() {
            let Some((config, since)) = &state.staged else { continue };
            let warm = self.routes.get(config.route_config.as_str()).is_some_and(|r| r.live.is_some());
            // Live without these routes already: they were waited for once.
            let in_vain = state.live.as_ref().is_some_and(|live| live.route_config == config.route_config);
            // Without a certificate nobody is served, so these are waited for in any case.
            let shown = config.secrets().iter().all(|name| self.secrets.contains(name));
            let (warm, in_vain) = (warm && shown, in_vain && shown);
            if warm || in_vain || now >= *since + WARMING_TIMEOUT {
                self.warming_timeouts += u64::from(!warm && !in_vain);
                state.live = state.staged.take().map(|(config, _)| config);
                state.bound = None;
                changed = true;
            }
        }
        self.listeners_touched = false;
        self.routes_touched = false;
        if changed {
            // A listener that moved to other routes no longer needs the ones before.
            self.drop_unwanted_routes(now, update);
            self.drop_unwanted_secrets(update);
            update.listeners = Some(self.live_listeners());
        }
    }

    /// The listeners as they should be.
    pub(crate) fn live_listeners(&self) -> Vec<ListenerConfig> {
        self.listeners.values().filter_map(|l| l.live.clone()).collect()
    }

    pub(super) fn drop_unwanted_routes(&mut self, now: Instant, update: &mut Update) {
        let unwanted: Vec<Arc<str>> =
            self.routes.keys().filter(|name| !self.wants_routes(name)).cloned().collect();
        for name in unwanted {
            self.forget(ResourceType::RouteConfiguration, &name);
            let Some(RouteState { live, staged }) = self.routes.remove(&name) else { continue };
            self.unroute(staged.as_ref().map(|(config, _)| &**config));
            let Some(live) = live else { continue };
            update.removals.push(Change::RoutesGone(Arc::clone(&name)));
            if self.linger.is_zero() {
                self.unroute(Some(&live));
            } else if let Some((before, _)) = self.lingering.insert(name, (live, now + self.linger)) {
                self.unroute(Some(&before));
            }
        }
    }

    /// Gives up what the last connections of listeners that went have had their time to use.
    fn end_lingering(&mut self, now: Instant, update: &mut Update) {
        let over = self.lingering.iter().filter(|(_, (_, until))| now >= *until);
        for name in over.map(|(name, _)| Arc::clone(name)).collect::<Vec<_>>() {
            let Some((config, _)) = self.lingering.remove(&name) else { continue };
            self.unroute(Some(&config));
            update.changed = true;
        }
    }

    pub(super) fn drop_retired_clusters(&mut self, update: &mut Update) {
        let gone: Vec<Arc<str>> =
            self.retired.iter().filter(|name| !self.routed.contains_key(*name)).cloned().collect();
        for name in gone {
            self.retired.remove(&name);
            self.given_up.remove(&name);
            self.forget(ResourceType::Cluster, &name);
            self.touched_clusters.remove(&name);
            if let Some(cluster) = self.clusters.remove(&name) {
                self.unfollow(&cluster.config.assignment, &name);
            }
            update.removals.push(Change::ClusterGone(name));
        }
    }

    /// `config` is staged: what it names is needed.
    pub(super) fn route(&mut self, config: &RouteConfig) {
        for cluster in config.clusters() {
            if let Some(count) = self.routed.get_mut(cluster) {
                *count += 1;
                continue;
            }
            let name: Arc<str> = cluster.into();
            self.routed.insert(Arc::clone(&name), 1);
            self.touched_names.insert(name);
        }
    }

    /// `config` is neither live nor staged any more: what nothing else names is not needed.
    pub(super) fn unroute(&mut self, config: Option<&RouteConfig>) {
        for cluster in config.map(RouteConfig::clusters).unwrap_or_default() {
            let Some(count) = self.routed.get_mut(cluster) else { continue };
            *count -= 1;
            if *count > 0 {
                continue;
            }
            let Some((name, _)) = self.routed.remove_entry(cluster) else { continue };
            self.given_up.remove(&name);
            self.absent.remove(&name);
            if self.clusters.contains_key(&name) {
                self.retired.insert(Arc::clone(&name));
            }
            self.touched_names.insert(name);
        }
    }

    pub(super) fn unfollow(&mut self, assignment: &str, cluster: &str) {
        let Some(followers) = self.followers.get_mut(assignment) else { return };
        followers.remove(cluster);
        if followers.is_empty() {
            self.followers.remove(assignment);
            self.assignments.drop(assignment);
            self.forget(ResourceType::LoadAssignment, assignment);
            self.touched_assignments.insert(assignment.into());
        }
    }

    /// The clusters of `config` that are to be waited for.
    pub(super) fn missing<'a>(&'a self, config: &'a RouteConfig) -> impl Iterator<Item = &'a str> {
        config.clusters().into_iter().filter(|name| !self.needs_no_wait(name))
    }

    /// Whether a cluster is there with its assignment, or will not be.
    pub(super) fn needs_no_wait(&self, cluster: &str) -> bool {
        self.is_warm(cluster) || self.given_up.contains(cluster)
    }

    /// These were waited for in vain.
    pub(super) fn give_up(&mut self, clusters: impl IntoIterator<Item = Arc<str>>) {
        // What nothing names is not waited for anyway.
        let named = clusters.into_iter().filter(|cluster| self.routed.contains_key(cluster));
        self.given_up.extend(named);
    }

    /// A resource was refused: a cluster that lacks it will not become warm.
    pub(super) fn give_up_refused(&mut self, kind: ResourceType, name: &str) {
        match kind {
            ResourceType::Cluster => self.give_up([name.into()]),
            ResourceType::LoadAssignment => {
                self.give_up(self.followers.get(name).cloned().unwrap_or_default());
            }
            ResourceType::LbEndpoint => self.assignments.refused(name),
            ResourceType::Listener | ResourceType::RouteConfiguration | ResourceType::Secret => {}
        }
    }

    pub(super) fn is_warm(&self, cluster: &str) -> bool {
        let cluster = self.clusters.get(cluster);
        cluster.is_some_and(|c| self.assignments.is_live(&c.config.assignment))
    }
}
