//! The thread that writes: tries, commits to the store in groups, publishes, answers.

use std::{sync::Arc, time::Duration};

use config::{ClusterName, EndpointId};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Done, State,
    compile::compile,
    world::World,
    write::{Effect, Refusal, Touched, Write, perform},
};
use crate::{
    lease::{Ended, Holder, Leases},
    metrics::Metrics,
    store::{Operation, Scope, Store, StoreError},
    timeline::Timeline,
};

/// How many waiting writes one commit takes.
const GROUP: usize = 512;

/// A write on its way to the writer.
pub(super) struct Job {
    pub(super) write: Write,
    pub(super) actor: String,
    pub(super) dry_run: bool,
    /// Only if the lease of the endpoint has ended so.
    pub(super) only_if: Option<Ended>,
    /// The connection that keeps the endpoint.
    pub(super) hold: Option<Holder>,
    /// Of an endpoint that is known to live though its lease in the store has ended: put it back,
    /// and leave what keeps it as it is.
    pub(super) revive: bool,
    pub(super) reply: Option<oneshot::Sender<Result<Done, Refusal>>>,
}

impl Job {
    /// The endpoint it writes, if it is about one.
    pub(super) fn endpoint(&self) -> Option<(&ClusterName, &EndpointId)> {
        match &self.write {
            Write::PutEndpoint { cluster, endpoint } => Some((cluster, &endpoint.id)),
            Write::RemoveEndpoint { cluster, id } => Some((cluster, id)),
            _ => None,
        }
    }

    pub(super) fn concerns_endpoint_of(&self, other: &Job) -> bool {
        self.endpoint().is_some() && self.endpoint() == other.endpoint()
    }
}

/// The one that writes.
pub(super) struct Writer {
    pub(super) store: Box<dyn Store>,
    /// Set when a commit failed: some of it may have become durable.
    pub(super) store_unknown: bool,
    pub(super) publish: watch::Sender<Arc<State>>,
    pub(super) timeline: Arc<Timeline>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) leases: Arc<Leases>,
    pub(super) grace: Duration,
}

/// A write that was tried and waits for the commit.
struct Tried {
    job: Job,
    effect: Effect,
    revision: u64,
}

impl Writer {
    /// Does what comes, until nobody can send any more.
    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut group: Vec<Job> = Vec::with_capacity(GROUP);
        let mut next = queue.blocking_recv();
        while let Some(job) = next.take() {
            group.push(job);
            while group.len() < GROUP
                && let Ok(job) = queue.try_recv()
            {
                // Whether a lease has ended is known once the writes before it are done.
                if job.only_if.is_some() && group.iter().any(|before| before.concerns_endpoint_of(&job)) {
                    next = Some(job);
                    break;
                }
                group.push(job);
            }
            self.commit(&mut group);
            if next.is_none() {
                next = queue.blocking_recv();
            }
        }
    }

    /// Tries every write of the group in order, then makes durable, publishes and answers.
    fn commit(&mut self, group: &mut Vec<Job>) {
        let before = Arc::clone(&self.publish.borrow());
        let mut world = before.world.clone();
        let mut revision = before.snapshot.revision();
        let mut tried = Vec::with_capacity(group.len());
        for mut job in group.drain(..) {
            if !self.still_wanted(&job) {
                continue;
            }
            let mut copy = world.clone();
            match perform(&mut copy, &job.write, revision + 1) {
                Err(refusal) => {
                    self.metrics.refused_writes.inc();
                    answer(&mut job, Err(refusal));
                }
                Ok(effect) if job.dry_run => {
                    answer(&mut job, Ok(Done { revision, changes: effect.changes }));
                }
                Ok(effect) => {
                    if effect.is_change() {
                        revision += 1;
                        world = copy;
                    }
                    tried.push(Tried { job, effect, revision });
                }
            }
        }
        if revision == before.snapshot.revision() {
            return self.finish(tried);
        }
        let stored = self.store(&world, revision, &tried);
        self.metrics.store_failing.set(i64::from(stored.is_err()));
        if let Err(error) = stored {
            tracing::error!(%error, "the store failed; the writes of this group were not done");
            self.metrics.store_failures.inc();
            for Tried { mut job, effect, .. } in tried {
                if job.only_if.is_some() {
                    self.restore_leases(&before.world, &effect);
                }
                answer(&mut job, Err(Refusal::Store(error.to_string())));
            }
            return;
        }
        let mut touched = Touched::default();
        for one in &mut tried {
            touched.extend(std::mem::take(&mut one.effect.touched));
        }
        let snapshot = before.snapshot.with(revision, compile(&world, &touched));
        // Known before anybody can acknowledge it.
        for one in &tried {
            self.timeline.changed(one.revision, snapshot.published(), &one.job.actor, &one.effect.changes);
        }
        self.metrics.revision.set(revision.cast_signed());
        self.publish.send_replace(Arc::new(State { world, snapshot }));
        self.finish(tried);
    }

    /// Makes durable what was tried, and all else too if it is not known what the store holds.
    fn store(&mut self, world: &World, revision: u64, tried: &[Tried]) -> Result<(), StoreError> {
        let scope = if self.store_unknown { Scope::Everything } else { Scope::Changes };
        let operations = match scope {
            Scope::Everything => all_operations(world),
            Scope::Changes => operations(world, tried.iter().map(|one| &one.effect)),
        };
        let stored = self.store.commit(revision, &operations?, scope);
        self.store_unknown = stored.is_err();
        stored
    }

    /// Whether a removal's reason still holds, at the one place where writes are in order.
    fn still_wanted(&self, job: &Job) -> bool {
        match (&job.write, job.only_if) {
            (Write::RemoveEndpoint { cluster, id }, Some(ended)) => {
                let key = (cluster.clone(), id.clone());
                let wanted = self.leases.end_if(&key, ended);
                if wanted {
                    self.metrics.expired_leases.inc();
                }
                wanted
            }
            _ => true,
        }
    }

    fn finish(&self, tried: Vec<Tried>) {
        for Tried { mut job, effect, revision } in tried {
            self.settle_leases(&mut job, &effect);
            self.metrics.writes.inc();
            answer(&mut job, Ok(Done { revision, changes: effect.changes }));
        }
    }

    fn settle_leases(&self, job: &mut Job, effect: &Effect) {
        if let Write::PutEndpoint { cluster, endpoint } = &job.write {
            let key = (cluster.clone(), endpoint.id.clone());
            self.leases.start(&key, endpoint.lease, job.hold.take(), self.grace);
            return;
        }
        for key in &effect.endpoints {
            self.leases.end(key);
        }
    }

    /// After a removal that failed, the endpoint whose lease had ended gets a new term.
    fn restore_leases(&self, world: &World, effect: &Effect) {
        for key in &effect.endpoints {
            if let Some(endpoint) = world.endpoint(&key.0, &key.1) {
                self.leases.start(key, endpoint.lease, None, self.grace);
            }
        }
    }
}

/// What the store has to do so that it holds `world`, as far as `effects` changed it.
pub(super) fn operations<'e>(
    world: &World,
    effects: impl Iterator<Item = &'e Effect> + Clone,
) -> Result<Vec<Operation>, StoreError> {
    use config::manifest::{Document, DocumentRef};
    let mut operations = Vec::new();
    for reference in effects.clone().flat_map(|effect| &effect.documents) {
        let current = match reference {
            DocumentRef::Service(name) => {
                world.services.get(name).map(|e| (e.revision, Document::Service((*e.value).clone())))
            }
            DocumentRef::Gateway(name) => {
                world.gateways.get(name).map(|e| (e.revision, Document::Gateway((*e.value).clone())))
            }
            DocumentRef::Route(name) => {
                world.routes.get(name).map(|e| (e.revision, Document::Route((*e.value).clone())))
            }
        };
        operations.push(match current {
            Some((revision, document)) => Operation::put_document(revision, &document)?,
            None => Operation::remove_document(reference),
        });
    }
    for (cluster, id) in effects.clone().flat_map(|effect| &effect.endpoints) {
        operations.push(match world.endpoint(cluster, id) {
            Some(endpoint) => Operation::put_endpoint(cluster, endpoint)?,
            None => Operation::remove_endpoint(cluster, id),
        });
    }
    for key in effects.flat_map(|effect| &effect.raw) {
        operations.push(match world.raw.get(key) {
            Some(entry) => Operation::put_raw(entry.revision, &entry.value)?,
            None => Operation::remove_raw(&key.0, &key.1),
        });
    }
    Ok(operations)
}

/// What an empty store has to do so that it holds `world`.
fn all_operations(world: &World) -> Result<Vec<Operation>, StoreError> {
    use config::manifest::Document;
    let services = world.services().map(|e| (e.revision, Document::Service((*e.value).clone())));
    let gateways = world.gateways().map(|e| (e.revision, Document::Gateway((*e.value).clone())));
    let routes = world.routes().map(|e| (e.revision, Document::Route((*e.value).clone())));
    let documents = services.chain(gateways).chain(routes);
    let documents = documents.map(|(revision, document)| Operation::put_document(revision, &document));
    let endpoints = world.registered().map(|(cluster, endpoint)| Operation::put_endpoint(cluster, endpoint));
    let raw = world.raw().map(|entry| Operation::put_raw(entry.revision, &entry.value));
    documents.chain(endpoints).chain(raw).collect()
}

pub(super) fn answer(job: &mut Job, result: Result<Done, Refusal>) {
    if let Some(reply) = job.reply.take() {
        // An error means that the asker has gone away; the write stands all the same.
        let _ = reply.send(result);
    }
}
