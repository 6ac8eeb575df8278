//! The one writer of what is declared and registered.
//!
//! - [`world`]: the domain as one immutable value.
//! - [`mod@write`]: what a write does to it; pure.
//! - [`fit`]: whether documents fit together and with what is there; pure.
//! - [`raw`]: resources that somebody writes as they are; pure.
//! - [`mod@compile`]: the world as xDS resources.
//! - `writer`: the thread that tries writes, commits them to the store in groups, and publishes.
//! - `shared`: the same where several servers share a store. `replay`: what the others wrote; pure.
//! - here: the handle that everybody else has on it.
//!
//! A write is tried on a copy, made durable, published, and only then answered. Writes that wait
//! while the store syncs are committed together.

pub mod compile;
pub mod fit;
pub mod raw;
mod replay;
mod shared;
pub mod world;
pub mod write;
mod writer;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use config::{ClusterName, Lease, bootstrap::SharedStore};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    api::types::Change,
    lease::{Displaced, Ended, HoldToken, Holder, Key, Leases},
    metrics::Metrics,
    snapshot::Snapshot,
    store::{
        Object, Store, StoreError, endpoint_key,
        etcd::{Etcd, Everything, Failure, Mark, WRITTEN, feed, keys::Place},
    },
    timeline::Timeline,
};
use compile::compile;
use shared::{Draft, SharedWriter};
use world::World;
use write::{Refusal, Touched, Write};
use writer::{Job, Writer};

/// How many writes may wait for the writer; more are refused as busy.
const QUEUE: usize = 4_096;
/// How long a write may wait for a place in the queue.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

/// How soon a server that starts asks etcd again.
const LOAD_AGAIN: Duration = Duration::from_millis(500);

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
    grace: Duration,
    /// The store, if several servers share it.
    etcd: Option<Arc<Etcd>>,
    /// Set when the server stops: connections that close from then on say nothing about instances.
    stopping: Arc<AtomicBool>,
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
            world.put_endpoint(&cluster, Arc::new(endpoint));
        }
        for (revision, raw) in stored.raw {
            world.put_raw(raw, revision);
        }
        let (publish, state) = first_state(world, stored.revision, &metrics);
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
        Ok(Self { jobs, state, leases, grace, etcd: None, stopping: Arc::default() })
    }

    /// Joins the servers that share a store. Waits for etcd as long as it has to: a server that does
    /// not know the world yet must not serve an empty one. Call within a tokio runtime.
    ///
    /// What connections to this server hold outlives it by `grace`.
    pub async fn join(
        settings: &SharedStore,
        timeline: Arc<Timeline>,
        metrics: Arc<Metrics>,
        grace: Duration,
    ) -> Result<Self, StoreError> {
        let etcd = Etcd::new(settings, grace, Arc::clone(&metrics));
        let everything = first_load(&etcd).await?;
        let (world, seen) = (world_of(&etcd, &everything)?, everything.revision);
        let (publish, state) = first_state(world.clone(), seen, &metrics);
        let (jobs, queue) = mpsc::channel(QUEUE);
        let leases = Arc::new(Leases::default());
        let feed = feed::follow(Arc::clone(&etcd), &everything);
        tracing::info!(revision = seen, objects = everything.changes.len(), "loaded {}", etcd.url());
        let writer = SharedWriter {
            etcd: Arc::clone(&etcd),
            feed,
            publish,
            timeline,
            metrics,
            leases: Arc::clone(&leases),
            grace,
            draft: Draft::new(world, seen),
            revivals: VecDeque::new(),
            doubted: Default::default(),
            in_flight: BTreeMap::new(),
        };
        tokio::spawn(writer.run(queue));
        Ok(Self { jobs, state, leases, grace, etcd: Some(etcd), stopping: Arc::default() })
    }

    /// Why nothing can be written now, if the store is known not to answer.
    pub fn trouble(&self) -> Option<String> {
        self.etcd.as_ref().and_then(|etcd| etcd.health().trouble())
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
    pub async fn renew(&self, cluster: &ClusterName, endpoint: &config::Endpoint) -> Result<bool, Refusal> {
        let state = self.state();
        let same = state.world.endpoint(cluster, &endpoint.id).is_some_and(|known| **known == *endpoint);
        if !same || !matches!(endpoint.lease, Lease::Ttl(_)) {
            return Ok(false);
        }
        let key = (cluster.clone(), endpoint.id.clone());
        let Some(etcd) = &self.etcd else { return Ok(self.leases.renew(&key)) };
        // It lives, whatever becomes of its lease meanwhile.
        self.leases.start(&key, endpoint.lease, None, self.grace);
        if let Some(trouble) = etcd.health().trouble() {
            return Err(Refusal::Unavailable(trouble));
        }
        etcd.renew(&endpoint_key(cluster, &endpoint.id)).await.map_err(|failure| match failure {
            Failure::Unavailable(why) => Refusal::Unavailable(etcd.health().unanswered(&why)),
            Failure::Refused(why) => Refusal::Store(etcd.health().refused(&why)),
        })
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
        let job = Job {
            write,
            actor: actor.to_owned(),
            dry_run,
            only_if: None,
            hold,
            revive: false,
            reply: Some(reply),
        };
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
        let job = Job {
            write,
            actor,
            dry_run: false,
            only_if: Some(ended),
            hold: None,
            revive: false,
            reply: None,
        };
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

/// What is there when the writer starts.
fn first_state(
    world: World,
    revision: u64,
    metrics: &Metrics,
) -> (watch::Sender<Arc<State>>, watch::Receiver<Arc<State>>) {
    let updates = compile(&world, &Touched::everything(&world));
    let snapshot = Snapshot::empty(0).with(revision, updates);
    metrics.revision.set(revision.cast_signed());
    watch::channel(Arc::new(State { world, snapshot }))
}

/// Everything that etcd has, once it answers.
async fn first_load(etcd: &Etcd) -> Result<Everything, StoreError> {
    let mut told = false;
    loop {
        match etcd.load().await {
            Ok(everything) => return Ok(everything),
            // While this server read, etcd compacted; what is there now can be read.
            Err(Failure::Refused(why)) if why.contains("compacted") => {}
            Err(Failure::Refused(why)) => return Err(StoreError(etcd.health().refused(&why))),
            Err(Failure::Unavailable(why)) => {
                if !std::mem::replace(&mut told, true) {
                    let url = etcd.url();
                    tracing::warn!(
                        why,
                        "{url} does not answer; nothing is served until it does. Is etcd running there?"
                    );
                }
            }
        }
        tokio::time::sleep(LOAD_AGAIN).await;
    }
}

/// The world as it was loaded. An object that cannot be read is an error: leaving it out would be a
/// removal that nobody asked for.
fn world_of(etcd: &Etcd, everything: &Everything) -> Result<World, StoreError> {
    let mut world = World::default();
    for change in &everything.changes {
        let mark = Some(Mark { revision: change.revision, lease: change.lease });
        match (&change.place, &change.value) {
            (Place::Object(table, key), Some(value)) => {
                match Object::read(*table, key, value)? {
                    Object::Document(_, document) => world.put(*document, change.revision),
                    Object::Endpoint(cluster, endpoint) => {
                        world.put_endpoint(&cluster, Arc::new(endpoint));
                    }
                    Object::Raw(_, raw) => world.put_raw(raw, change.revision),
                }
                etcd.set_mark(*table, key.clone(), mark);
            }
            (Place::Written(table), _) => etcd.set_mark(*table, WRITTEN.to_owned(), mark),
            (Place::Object(..), None) => {}
        }
    }
    Ok(world)
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
