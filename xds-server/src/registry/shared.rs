//! The one that writes where several servers share a store.
//!
//! What the store says happened is what happened, this server's own writes included: they are tried on
//! a copy, sent as one transaction, and done to the world when the store tells of them, between what the
//! others did before and after. So each revision is the same world on every server.
//!
//! - `absorb`: what the store tells, done to the world.

mod absorb;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use config::{ClusterName, Endpoint, Lease, manifest::DocumentRef};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout_at},
};

use super::{
    Done, State,
    compile::compile,
    world::World,
    write::{Effect, Refusal, Touched, Write, perform},
    writer::{Job, answer, operations},
};
use crate::{
    api::types,
    lease::{Displaced, Ended, Holder, Key, Leases},
    metrics::Metrics,
    store::{
        Operation, StoreError, Table, endpoint_key,
        etcd::{
            Etcd, Failure, Guard, Mark, Outcome, Plan,
            feed::{Change, Feed},
            keys::{Place, Written},
        },
        raw_key,
    },
    timeline::Timeline,
};

/// How many waiting writes are looked at together.
const GROUP: usize = 512;
/// How much one transaction does: each write weighs one, and an apply all of it. With what it compares
/// this stays within the 128 operations that etcd takes by default.
const WEIGHT: usize = 60;
/// How long a write may take, from the first attempt to its answer: longer than etcd's members take to
/// elect another leader.
const COMMIT: Duration = Duration::from_secs(5);
/// How often a write is tried again because others were faster.
const ATTEMPTS: usize = 64;
/// How long one waits for what the others did before it tries again.
const CATCH_UP: Duration = Duration::from_millis(50);
/// How soon the endpoint of a closed connection that could not be removed is tried again.
const REMOVE_AGAIN: Lease = Lease::Ttl(1_000);
/// How long what ended by a lease is still shown, so that a server that knows better can say so.
const DOUBT: Duration = Duration::from_millis(300);
/// How soon endpoints that could not be put back are tried again.
const REVIVE_AGAIN: Duration = Duration::from_millis(500);

/// The one that writes.
pub(super) struct SharedWriter {
    pub(super) etcd: Arc<Etcd>,
    pub(super) feed: mpsc::Receiver<Feed>,
    pub(super) publish: watch::Sender<Arc<State>>,
    pub(super) timeline: Arc<Timeline>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) leases: Arc<Leases>,
    pub(super) grace: Duration,
    pub(super) draft: Draft,
    /// Endpoints that live though their lease in the store has ended.
    pub(super) revivals: VecDeque<(Key, Endpoint)>,
    /// Endpoints whose leases have ended, unless another server knows better, and until when that is
    /// waited for before anything is published.
    pub(super) doubted: (BTreeSet<Key>, Option<Instant>),
    /// Transactions of this server whose changes it waits for, and those that have come.
    pub(super) in_flight: BTreeMap<u64, Option<u64>>,
}

/// What has happened, of which a part is not published yet.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) world: World,
    /// The newest revision whose changes are in `world`.
    pub(super) seen: u64,
    touched: Touched,
    noted: Vec<(u64, String, Vec<types::Change>)>,
}

impl Draft {
    pub(super) fn new(world: World, seen: u64) -> Self {
        Self { world, seen, ..Self::default() }
    }
}

/// What writes would do to the world as it is.
struct Attempt {
    /// In the order of the jobs.
    results: Vec<Result<Effect, Refusal>>,
    plan: Plan,
    /// The endpoints that are put, by key.
    puts: BTreeMap<String, Lease>,
}

/// How a group ended.
enum Fate {
    /// Nothing had to be written.
    Nothing,
    /// It was written at this revision.
    Written(u64),
    /// It was not, as far as is known.
    Failed(Refusal),
}

impl SharedWriter {
    /// Does what comes, until nobody can send any more.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut waiting: VecDeque<Job> = VecDeque::new();
        let mut revive_at = Instant::now();
        loop {
            if !self.revivals.is_empty() && revive_at <= Instant::now() {
                self.revive().await;
                if !self.revivals.is_empty() {
                    revive_at = Instant::now() + REVIVE_AGAIN;
                }
            }
            let doubt = self.doubted.1.filter(|until| *until > Instant::now());
            if doubt.is_none() || self.doubted.0.is_empty() {
                self.publish();
            }
            tokio::select! {
                fed = self.feed.recv() => match fed {
                    Some(fed) => {
                        self.absorb(fed);
                        self.absorb_what_is_there();
                    }
                    None => return,
                },
                job = queue.recv() => {
                    let Some(job) = job else { return };
                    waiting.push_back(job);
                    while waiting.len() < GROUP && let Ok(job) = queue.try_recv() {
                        waiting.push_back(job);
                    }
                    while !waiting.is_empty() {
                        let group = self.group(&mut waiting);
                        self.write(group).await;
                    }
                }
                () = sleep_until(revive_at), if !self.revivals.is_empty() => {}
                () = sleep_until(doubt.unwrap_or(revive_at)), if doubt.is_some() => {}
            }
        }
    }

    /// As many of `waiting` as go into one transaction.
    fn group(&self, waiting: &mut VecDeque<Job>) -> Vec<Job> {
        let mut group: Vec<Job> = Vec::new();
        let mut weight = 0;
        while let Some(job) = waiting.front() {
            weight += match &job.write {
                Write::Apply(_) | Write::Resources { .. } => WEIGHT,
                _ => 1,
            };
            // Whether a lease has ended is known once the writes before it are done.
            let too_early = job.only_if.is_some() && group.iter().any(|one| one.concerns_endpoint_of(job));
            if !group.is_empty() && (weight > WEIGHT || too_early) {
                break;
            }
            group.extend(waiting.pop_front().filter(|job| self.still_wanted(job)));
        }
        group
    }

    /// Whether a removal's reason still holds.
    fn still_wanted(&self, job: &Job) -> bool {
        let (Write::RemoveEndpoint { cluster, id }, Some(ended)) = (&job.write, job.only_if) else {
            return true;
        };
        let key = (cluster.clone(), id.clone());
        // The terms of others end in the store; here they only tell who was heard of.
        let wanted = self.leases.end_if(&key, ended) && self.is_held_here(&key);
        if wanted {
            self.metrics.expired_leases.inc();
        }
        wanted
    }

    /// Whether an endpoint lives by a connection to this server.
    fn is_held_here(&self, key: &Key) -> bool {
        let mark = self.etcd.mark(Table::Endpoints, &endpoint_key(&key.0, &key.1));
        mark.is_some_and(|mark| self.etcd.is_session(mark.lease))
    }

    /// Tries, commits, publishes and answers a group.
    async fn write(&mut self, mut jobs: Vec<Job>) {
        let (results, fate) = self.try_to_write(&jobs).await;
        self.publish();
        for (job, result) in jobs.iter_mut().zip(results) {
            let result = match (result, &fate) {
                (Err(refusal), _) => {
                    self.metrics.refused_writes.inc();
                    Err(refusal)
                }
                (Ok(effect), _) if job.dry_run => {
                    Ok(Done { revision: self.draft.seen, changes: effect.changes })
                }
                (Ok(_), Fate::Failed(refusal)) => {
                    self.restore(job);
                    Err(refusal.clone())
                }
                (Ok(effect), Fate::Nothing) => {
                    self.settle(job, &effect, self.draft.seen);
                    Ok(Done { revision: self.draft.seen, changes: effect.changes })
                }
                (Ok(effect), Fate::Written(revision)) => {
                    self.settle(job, &effect, *revision);
                    Ok(Done { revision: *revision, changes: effect.changes })
                }
            };
            if result.is_ok() && !job.dry_run {
                self.metrics.writes.inc();
            }
            answer(job, result);
        }
    }

    async fn try_to_write(&mut self, jobs: &[Job]) -> (Vec<Result<Effect, Refusal>>, Fate) {
        let deadline = Instant::now() + COMMIT;
        let mut leases = BTreeMap::new();
        let mut is_current = false;
        // Attempts whose answer was lost, by how they are known again.
        let mut unanswered: Vec<(u64, Vec<Result<Effect, Refusal>>)> = Vec::new();
        let mut last = Refusal::Busy("others write the same objects all the time; try again".to_owned());
        for _ in 0..ATTEMPTS {
            self.absorb_what_is_there();
            if let Some((results, revision)) = self.arrived(&mut unanswered) {
                return (results, Fate::Written(revision));
            }
            let mut attempt = self.attempt(jobs);
            let trouble = self.etcd.health().trouble();
            // What another server did may not have come here yet: who was told so is not refused for it.
            if trouble.is_none() && !is_current && attempt.results.iter().any(Result::is_err) {
                is_current = true;
                self.catch_up(deadline).await;
                continue;
            }
            if attempt.plan.operations.is_empty() {
                return (attempt.results, Fate::Nothing);
            }
            if let Some(trouble) = trouble {
                // Said when it began, and counted; not for each write that meets it.
                self.metrics.store_failures.inc();
                self.in_flight.clear();
                return (attempt.results, Fate::Failed(Refusal::Unavailable(trouble)));
            }
            if deadline <= Instant::now() {
                return (attempt.results, self.failed(last));
            }
            let outcome = match self.take_leases(&mut attempt, &mut leases).await {
                Ok(()) => {
                    let commit = fastrand::u64(..);
                    self.in_flight.insert(commit, None);
                    let outcome = timeout_at(deadline, self.etcd.commit(&attempt.plan, commit)).await;
                    let outcome = outcome.unwrap_or_else(|_| Err(Failure::late(COMMIT)));
                    match &outcome {
                        Err(Failure::Unavailable(_)) => {
                            unanswered.push((commit, std::mem::take(&mut attempt.results)));
                        }
                        Ok(Outcome::Done(revision)) => {
                            self.done(&attempt.plan, commit, *revision, deadline).await;
                            self.in_flight.clear();
                            return (attempt.results, Fate::Written(*revision));
                        }
                        _ => drop(self.in_flight.remove(&commit)),
                    }
                    outcome
                }
                Err(failure) => Err(failure),
            };
            match outcome {
                Ok(_) => {
                    self.metrics.store_conflicts.inc();
                    self.wait_for_news(CATCH_UP).await;
                }
                Err(Failure::Refused(why)) if why.contains("lease not found") => {
                    for id in std::mem::take(&mut leases).into_values() {
                        self.etcd.end_session(id);
                    }
                }
                Err(Failure::Refused(why)) => {
                    tracing::warn!(why, "the store refused a write");
                    self.metrics.store_failures.inc();
                    let refusal = Refusal::Store(self.etcd.health().refused(&why));
                    self.in_flight.clear();
                    return (attempt.results, Fate::Failed(refusal));
                }
                Err(Failure::Unavailable(why)) => {
                    last = Refusal::Unavailable(self.etcd.health().unanswered(&why));
                    self.wait_for_news(CATCH_UP).await;
                }
            }
        }
        let results = self.attempt(jobs).results;
        (results, self.failed(last))
    }

    /// A group that was not written.
    fn failed(&mut self, refusal: Refusal) -> Fate {
        tracing::warn!(%refusal, "a write failed");
        self.metrics.store_failures.inc();
        self.in_flight.clear();
        Fate::Failed(refusal)
    }

    /// The attempt that was done though its answer was lost, if there is one.
    fn arrived(
        &mut self,
        unanswered: &mut Vec<(u64, Vec<Result<Effect, Refusal>>)>,
    ) -> Option<(Vec<Result<Effect, Refusal>>, u64)> {
        let arrived = |commit: &u64| self.in_flight.get(commit).copied().flatten();
        let (at, revision) = unanswered.iter().enumerate().find_map(|(i, (c, _))| Some((i, arrived(c)?)))?;
        self.in_flight.clear();
        Some((unanswered.swap_remove(at).1, revision))
    }

    /// Tries every write in order on a copy of the world.
    fn attempt(&self, jobs: &[Job]) -> Attempt {
        let mut world = self.draft.world.clone();
        let revision = self.draft.seen + 1;
        let mut results = Vec::with_capacity(jobs.len());
        for job in jobs {
            let mut copy = world.clone();
            let mut result = perform(&mut copy, &job.write, revision);
            if let Ok(effect) = &mut result
                && !job.dry_run
            {
                renew_by_writing(job, effect);
                if effect.is_change() {
                    world = copy;
                }
            }
            results.push(result);
        }
        let written = jobs.iter().zip(&results).filter(|(job, _)| !job.dry_run);
        let written = written.filter_map(|(job, result)| Some((job, result.as_ref().ok()?)));
        let mut attempt = Attempt { plan: Plan::default(), puts: BTreeMap::new(), results: Vec::new() };
        match self.plan(&world, written.clone()) {
            Ok((plan, puts)) => (attempt.plan, attempt.puts) = (plan, puts),
            Err(error) => {
                let refusal = Refusal::Store(error.to_string());
                results = results.into_iter().map(|result| result.and(Err(refusal.clone()))).collect();
            }
        }
        attempt.results = results;
        attempt
    }

    /// The transaction that makes `world` of what is there, on behalf of `written`.
    fn plan<'j>(
        &self,
        world: &World,
        written: impl Iterator<Item = (&'j Job, &'j Effect)> + Clone,
    ) -> Result<(Plan, BTreeMap<String, Lease>), StoreError> {
        let mut operations_by_key: BTreeMap<(Table, String), Operation> = BTreeMap::new();
        for operation in operations(world, written.clone().map(|(_, effect)| effect))? {
            // Of several writes of one object the last is what counts.
            operations_by_key.insert((operation.table, operation.key.clone()), operation);
        }
        let mut plan = Plan::default();
        let (mut puts, mut guards) = (BTreeMap::new(), BTreeSet::new());
        // Resources that are written as they are share their names with what documents compile to.
        let has_documents =
            operations_by_key.keys().any(|(table, _)| matches!(table, Table::Documents | Table::Resources));
        if has_documents {
            guards.insert(Guard::Documents);
        }
        for (job, effect) in written {
            for reference in &effect.documents {
                plan.by.insert(reference.to_string(), job.actor.clone());
                if let DocumentRef::Service(name) = reference
                    && loses_versions(&self.draft.world, world, reference)
                {
                    let (service, revision) = (name.to_string(), self.draft.seen);
                    guards.insert(Guard::EndpointsOf { service, revision });
                }
            }
            for (kind, name) in &effect.raw {
                plan.by.insert(raw_key(kind, name), job.actor.clone());
            }
            for (cluster, id) in &effect.endpoints {
                let key = endpoint_key(cluster, id);
                guards.insert(Guard::Object(Table::Endpoints, key.clone()));
                if !has_documents {
                    let service = DocumentRef::Service(cluster.service.clone()).to_string();
                    guards.insert(Guard::Object(Table::Documents, service));
                }
                if let Some(endpoint) = world.endpoint(cluster, id) {
                    puts.insert(key.clone(), endpoint.lease);
                }
                plan.by.insert(key, job.actor.clone());
            }
        }
        plan.guards = guards.into_iter().collect();
        plan.operations = operations_by_key.into_values().collect();
        Ok((plan, puts))
    }

    /// Leases for the endpoints that are put; those that were taken for an earlier attempt are `taken`.
    async fn take_leases(
        &self,
        attempt: &mut Attempt,
        taken: &mut BTreeMap<String, i64>,
    ) -> Result<(), Failure> {
        taken.retain(|key, _| attempt.puts.contains_key(key));
        let missing: Vec<_> = attempt.puts.iter().filter(|(key, _)| !taken.contains_key(*key)).collect();
        let mut grants = Vec::new();
        for (key, lease) in missing {
            match lease {
                Lease::Static | Lease::Permanent => {}
                Lease::Connection => drop(taken.insert(key.clone(), self.etcd.session().await?)),
                Lease::Ttl(ms) => {
                    let term = Duration::from_millis(*ms);
                    grants.push(async move { Ok::<_, Failure>((key.clone(), self.etcd.grant(term).await?)) });
                }
            }
        }
        for granted in futures_util::future::join_all(grants).await {
            let (key, lease) = granted?;
            taken.insert(key, lease);
        }
        attempt.plan.leases.clone_from(taken);
        Ok(())
    }

    /// Waits until what was committed at `revision` is in the world.
    async fn done(&mut self, plan: &Plan, commit: u64, revision: u64, deadline: Instant) {
        if revision == self.draft.seen + 1 {
            // Nobody did anything in between, so there is nothing to wait for.
            let changes = self.changes(plan, commit, revision);
            self.absorb(Feed::Changes(changes));
            return;
        }
        while self.draft.seen < revision
            && let Ok(Some(fed)) = timeout_at(deadline, self.feed.recv()).await
        {
            self.absorb(fed);
        }
    }

    /// What the store will tell of a transaction.
    fn changes(&self, plan: &Plan, commit: u64, revision: u64) -> Vec<Change> {
        let written = Written { server: self.etcd.server().to_owned(), commit, by: plan.by.clone() };
        let value = serde_json::to_vec(&written).unwrap_or_default();
        let tables: BTreeSet<Table> = plan.operations.iter().map(|operation| operation.table).collect();
        let written = tables.into_iter().map(|table| Change {
            revision,
            place: Place::Written(table),
            value: Some(value.clone().into()),
            lease: 0,
        });
        let objects = plan.operations.iter().map(|operation| Change {
            revision,
            place: Place::Object(operation.table, operation.key.clone()),
            value: operation.value.clone().map(Into::into),
            lease: plan.leases.get(&operation.key).copied().unwrap_or(0),
        });
        written.chain(objects).collect()
    }

    /// Waits until all that any server had written by now is in the world, if etcd answers.
    async fn catch_up(&mut self, deadline: Instant) {
        let Ok(newest) = self.etcd.newest_written().await else { return };
        while self.draft.seen < newest
            && let Ok(Some(fed)) = timeout_at(deadline, self.feed.recv()).await
        {
            self.absorb(fed);
        }
    }

    async fn wait_for_news(&mut self, at_most: Duration) {
        if let Ok(Some(fed)) = timeout_at(Instant::now() + at_most, self.feed.recv()).await {
            self.absorb(fed);
        }
    }

    /// Publishes what has happened.
    fn publish(&mut self) {
        self.doubted = Default::default();
        let before = Arc::clone(&self.publish.borrow());
        let seen = self.draft.seen;
        if seen <= before.snapshot.revision() {
            return;
        }
        let touched = std::mem::take(&mut self.draft.touched);
        let snapshot = before.snapshot.with(seen, compile(&self.draft.world, &touched));
        // Known before anybody can acknowledge it.
        for (revision, actor, changes) in self.draft.noted.drain(..) {
            self.timeline.changed(revision, snapshot.published(), &actor, &changes);
        }
        self.metrics.revision.set(seen.cast_signed());
        self.publish.send_replace(Arc::new(State { world: self.draft.world.clone(), snapshot }));
    }

    /// What a write that was done means to what keeps its endpoint.
    fn settle(&self, job: &mut Job, effect: &Effect, revision: u64) {
        if let Write::PutEndpoint { cluster, endpoint } = &job.write {
            let key = (cluster.clone(), endpoint.id.clone());
            if !job.revive {
                self.settle_put(&key, endpoint.lease, job.hold.take(), revision);
            }
            return;
        }
        for key in &effect.endpoints {
            self.leases.end(key);
        }
    }

    fn settle_put(&self, key: &Key, lease: Lease, hold: Option<Holder>, revision: u64) {
        let mark = self.etcd.mark(Table::Endpoints, &endpoint_key(&key.0, &key.1));
        let newer = |mark: Option<Mark>| mark.is_none_or(|mark| mark.revision > revision);
        match hold {
            // Somebody took it over between the commit and here.
            Some(hold) if self.draft.seen > revision && newer(mark) => hold.displace(match mark {
                Some(_) => Displaced::Replaced,
                None => Displaced::Deleted,
            }),
            hold => self.leases.start(key, lease, hold, self.grace),
        }
    }

    /// After a removal that failed, its reason comes up again.
    fn restore(&self, job: &Job) {
        if let (Write::RemoveEndpoint { cluster, id }, Some(Ended::Closed(_) | Ended::Expired)) =
            (&job.write, job.only_if)
        {
            self.leases.start(&(cluster.clone(), id.clone()), REMOVE_AGAIN, None, self.grace);
        }
    }

    /// Puts back the endpoints that are known to live though their leases have ended.
    async fn revive(&mut self) {
        if self.etcd.health().trouble().is_some() {
            return;
        }
        let lives = |key: &Key| {
            let gone = self.etcd.mark(Table::Endpoints, &endpoint_key(&key.0, &key.1)).is_none();
            gone && self.leases.is_alive(key)
        };
        let due: Vec<(Key, Endpoint)> = self.revivals.drain(..).filter(|(key, _)| lives(key)).collect();
        for due in due.chunks(WEIGHT) {
            let jobs: Vec<Job> =
                due.iter().cloned().map(|(key, endpoint)| revival(key.0, endpoint)).collect();
            let (results, fate) = self.try_to_write(&jobs).await;
            let revived = results.iter().filter(|result| result.is_ok()).count();
            match fate {
                Fate::Failed(_) => self.revivals.extend(due.iter().cloned()),
                Fate::Nothing | Fate::Written(_) => {
                    self.metrics.store_revivals.inc_by(revived as u64);
                    tracing::warn!(revived, "endpoints outlived their lease in the store, and were put back");
                }
            }
        }
    }
}

fn revival(cluster: ClusterName, endpoint: Endpoint) -> Job {
    Job {
        write: Write::PutEndpoint { cluster, endpoint },
        actor: "lease".to_owned(),
        dry_run: false,
        only_if: None,
        hold: None,
        revive: true,
        reply: None,
    }
}

/// An endpoint that lives by a lease is put even if it is there just so: it gets a new one.
fn renew_by_writing(job: &Job, effect: &mut Effect) {
    if let Write::PutEndpoint { cluster, endpoint } = &job.write
        && matches!(endpoint.lease, Lease::Ttl(_) | Lease::Connection)
        && effect.endpoints.is_empty()
    {
        effect.endpoints.push((cluster.clone(), endpoint.id.clone()));
    }
}

/// Whether a service has fewer versions after a write than before.
fn loses_versions(before: &World, after: &World, reference: &DocumentRef) -> bool {
    let DocumentRef::Service(name) = reference else { return false };
    let Some(old) = before.service(name) else { return false };
    let new = after.service(name);
    old.value.versions.keys().any(|version| new.is_none_or(|new| !new.value.versions.contains_key(version)))
}

#[cfg(test)]
#[path = "shared/tests.rs"]
mod tests;
