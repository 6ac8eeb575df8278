//! The one writer of what is declared and registered.
//!
//! - [`world`]: the domain as one immutable value.
//! - [`mod@write`]: what a write does to it; pure.
//! - `compile`: the world as xDS resources.
//! - here: the thread that tries writes, commits them to the store in groups, and publishes.
//!
//! A write is tried on a copy, made durable, published, and only then answered. Writes that wait
//! while the store syncs are committed together.

mod compile;
pub mod world;
pub mod write;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use config::{ClusterName, EndpointId, Lease};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    api::types::Change,
    lease::{Displaced, Ended, HoldToken, Holder, Key, Leases},
    metrics::Metrics,
    snapshot::Snapshot,
    store::{Operation, Scope, Store, StoreError},
    timeline::Timeline,
};
use compile::compile;
use world::World;
use write::{Effect, Refusal, Touched, Write, perform};

/// How many writes may wait for the writer; more are refused as busy.
const QUEUE: usize = 4_096;
/// How many waiting writes one commit takes.
const GROUP: usize = 512;
/// How long a write may wait for a place in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// The world and what proxies are to know of it, at one revision.
#[derive(Debug)]
pub struct State {
    /// What is declared and registered.
    pub world: World,
    /// What proxies are to know.
    pub snapshot: Snapshot,
}

/// What a write did.
#[derive(Clone, Debug)]
pub struct Done {
    /// The revision it made, or the current one when nothing changed.
    pub revision: u64,
    /// What changed.
    pub changes: Vec<Change>,
}

/// A handle on the registry. Cheap to clone; the writer ends when the last one is gone.
#[derive(Clone)]
pub struct Registry {
    jobs: mpsc::Sender<Job>,
    state: watch::Receiver<Arc<State>>,
    leases: Arc<Leases>,
    /// Set when the server stops: connections that close from then on say nothing about instances.
    stopping: Arc<AtomicBool>,
}

struct Job {
    write: Write,
    actor: String,
    dry_run: bool,
    /// Only if the lease of the endpoint has ended so.
    only_if: Option<Ended>,
    /// The connection that keeps the endpoint.
    hold: Option<Holder>,
    reply: Option<oneshot::Sender<Result<Done, Refusal>>>,
}

impl Job {
    /// The endpoint it writes, if it is about one.
    fn endpoint(&self) -> Option<(&ClusterName, &EndpointId)> {
        match &self.write {
            Write::PutEndpoint { cluster, endpoint } => Some((cluster, &endpoint.id)),
            Write::RemoveEndpoint { cluster, id } => Some((cluster, id)),
            _ => None,
        }
    }

    fn concerns_endpoint_of(&self, other: &Job) -> bool {
        self.endpoint().is_some() && self.endpoint() == other.endpoint()
    }
}

impl Registry {
    /// Loads `store` and starts the writer. Leased endpoints get a full term, those held by a
    /// connection `grace`, so that a restart removes nothing by itself.
    pub fn start(
        mut store: Box<dyn Store>,
        timeline: Arc<Timeline>,
        metrics: Arc<Metrics>,
        grace: Duration,
    ) -> Result<Self, StoreError> {
        let stored = store.load()?;
        let leases = Arc::new(Leases::default());
        let mut world = World::default();
        for (revision, document) in stored.documents {
            world.put(document, revision);
        }
        for (cluster, endpoint) in stored.endpoints {
            let key = (cluster.clone(), endpoint.id.clone());
            leases.start(&key, endpoint.lease, None, grace);
            world.put_endpoint(cluster, Arc::new(endpoint));
        }
        let updates = compile(&world, &Touched::everything(&world));
        let snapshot = Snapshot::empty(0).with(stored.revision, updates);
        metrics.revision.set(stored.revision.cast_signed());

        let (publish, state) = watch::channel(Arc::new(State { world, snapshot }));
        let (jobs, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            store,
            store_unknown: false,
            publish,
            timeline,
            metrics,
            leases: Arc::clone(&leases),
            grace,
        };
        thread::Builder::new()
            .name("registry".to_owned())
            .spawn(move || writer.run(queue))
            .map_err(|e| StoreError(format!("cannot start the registry's thread: {e}")))?;
        Ok(Self { jobs, state, leases, stopping: Arc::default() })
    }

    /// The state now.
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// Follows the state; a follower that is slow sees only the newest.
    pub fn follow(&self) -> watch::Receiver<Arc<State>> {
        self.state.clone()
    }

    /// Does `write`, or only tries it.
    pub async fn write(&self, write: Write, actor: &str, dry_run: bool) -> Result<Done, Refusal> {
        self.submit(write, actor, dry_run, None).await
    }

    /// Renews the lease of an endpoint that is registered just so; `false` when it has to be
    /// written instead.
    pub fn renew(&self, cluster: &ClusterName, endpoint: &config::Endpoint) -> bool {
        let state = self.state();
        let same = state.world.endpoint(cluster, &endpoint.id).is_some_and(|known| **known == *endpoint);
        same && matches!(endpoint.lease, Lease::Ttl(_))
            && self.leases.renew(&(cluster.clone(), endpoint.id.clone()))
    }

    /// Registers an endpoint that lives as long as the returned [`Hold`].
    pub async fn hold(
        &self,
        cluster: ClusterName,
        endpoint: config::Endpoint,
        actor: &str,
    ) -> Result<(Done, Hold), Refusal> {
        let (holder, token, displaced) = self.leases.holder();
        let key = (cluster.clone(), endpoint.id.clone());
        // Made first: should the request be dropped while it waits, its removal follows it.
        let hold = Hold { registry: self.clone(), key, token, actor: actor.to_owned(), displaced };
        let done = self.submit(Write::PutEndpoint { cluster, endpoint }, actor, false, Some(holder)).await?;
        Ok((done, hold))
    }

    async fn submit(
        &self,
        write: Write,
        actor: &str,
        dry_run: bool,
        hold: Option<Holder>,
    ) -> Result<Done, Refusal> {
        let (reply, answer) = oneshot::channel();
        let job = Job { write, actor: actor.to_owned(), dry_run, only_if: None, hold, reply: Some(reply) };
        let sent = tokio::time::timeout(QUEUE_TIMEOUT, self.jobs.send(job)).await;
        let gone = |_| Refusal::Store("the registry has stopped".to_owned());
        match sent {
            Err(_) => {
                Err(Refusal::Busy(format!("{QUEUE} writes are waiting already; try again in a second")))
            }
            Ok(Err(_)) => Err(Refusal::Store("the registry has stopped".to_owned())),
            Ok(Ok(())) => answer.await.map_err(gone)?,
        }
    }

    async fn remove_if(&self, key: Key, ended: Ended, actor: String) {
        let (cluster, id) = key;
        let write = Write::RemoveEndpoint { cluster, id };
        let job = Job { write, actor, dry_run: false, only_if: Some(ended), hold: None, reply: None };
        // An error means that the registry has stopped; there is nothing left to remove from.
        let _ = self.jobs.send(job).await;
    }

    /// Removes endpoints whose term has passed, for as long as it is polled.
    pub async fn expire(self) {
        loop {
            let key = self.leases.expired().await;
            self.remove_if(key, Ended::Expired, "lease".to_owned()).await;
        }
    }

    /// Waits until the writer has ended, which it does only by a fault of this program.
    pub async fn ended(&self) {
        self.jobs.closed().await;
    }

    /// From now on a connection that closes removes nothing: it is the server that goes.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }
}

/// Keeps an endpoint registered; dropping it removes the endpoint, unless a later one took over.
pub struct Hold {
    registry: Registry,
    key: Key,
    token: HoldToken,
    actor: String,
    displaced: oneshot::Receiver<Displaced>,
}

impl Hold {
    /// Waits until the endpoint is no longer this connection's.
    pub async fn displaced(&mut self) -> Displaced {
        // The sender goes without a word only when this connection is seen to have closed.
        (&mut self.displaced).await.unwrap_or(Displaced::Deleted)
    }

    /// The endpoint, as `service/version/id`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.key.0, self.key.1)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.registry.stopping.load(Ordering::SeqCst) {
            return;
        }
        let (registry, key, ended) = (self.registry.clone(), self.key.clone(), Ended::Closed(self.token));
        let actor = std::mem::take(&mut self.actor);
        // Outside a runtime the server is shutting down, and the endpoint gets its grace.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { registry.remove_if(key, ended, actor).await });
        }
    }
}

struct Writer {
    store: Box<dyn Store>,
    /// Set when a commit failed: some of it may have become durable.
    store_unknown: bool,
    publish: watch::Sender<Arc<State>>,
    timeline: Arc<Timeline>,
    metrics: Arc<Metrics>,
    leases: Arc<Leases>,
    grace: Duration,
}

/// A write that was tried and waits for the commit.
struct Tried {
    job: Job,
    effect: Effect,
    revision: u64,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Job>) {
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
            Scope::Changes => operations(world, tried),
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

/// What the store has to do so that it holds `world`, as far as `tried` changed it.
fn operations(world: &World, tried: &[Tried]) -> Result<Vec<Operation>, StoreError> {
    use config::manifest::{Document, DocumentRef};
    let mut operations = Vec::new();
    for reference in tried.iter().flat_map(|one| &one.effect.documents) {
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
    for (cluster, id) in tried.iter().flat_map(|one| &one.effect.endpoints) {
        operations.push(match world.endpoint(cluster, id) {
            Some(endpoint) => Operation::put_endpoint(cluster, endpoint)?,
            None => Operation::remove_endpoint(cluster, id),
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
    documents.chain(endpoints).collect()
}

fn answer(job: &mut Job, result: Result<Done, Refusal>) {
    if let Some(reply) = job.reply.take() {
        // An error means that the asker has gone away; the write stands all the same.
        let _ = reply.send(result);
    }
}
