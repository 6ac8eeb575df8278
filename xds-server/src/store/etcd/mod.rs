//! The store of several servers: an etcd cluster.
//!
//! - `wire`: the messages of etcd's API. `client`: calls with deadlines, member by member.
//! - `keys`: what is where. `feed`: all that changes, in order, without a gap.
//! - `session`: the lease of what is held by connections to this server, and other leases.
//! - `health`: whether it answers, for those who ask and those who would write.
//! - here: loading everything, and a commit as one transaction.
//!
//! What a transaction changes has to be as this server has seen it, so what two servers write at once
//! never mixes: one of them catches up and tries again. The revision of a change is etcd's.

mod client;
pub(crate) mod feed;
pub(crate) mod health;
pub(crate) mod keys;
mod session;
mod wire;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use config::{bootstrap::SharedStore, etcd::EtcdUrl};
use dashmap::DashMap;

use super::{Operation, Table};
use crate::metrics::Metrics;
use client::Client;
pub(crate) use client::Failure;
use feed::Change;
use health::Health;
use keys::{Keys, Written};
use session::Session;
use wire::{
    Compare, CompareResult, CompareTarget, DeleteRangeRequest, Header, PutRequest, RangeRequest, Request,
    RequestOp, TxnRequest,
};

/// How many keys one answer holds while everything is loaded.
const PAGE: i64 = 512;

/// An etcd cluster as this server uses it.
pub(crate) struct Etcd {
    client: Client,
    keys: Keys,
    url: EtcdUrl,
    server: String,
    /// What is known of every key; changed by the registry only.
    marks: DashMap<(Table, String), Mark>,
    session: Session,
    health: Health,
    metrics: Arc<Metrics>,
}

/// What is known of a key that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The revision that last put it.
    pub(crate) revision: u64,
    /// The lease it lives by; 0 for none.
    pub(crate) lease: i64,
}

/// Everything at one revision.
#[derive(Debug)]
pub(crate) struct Everything {
    pub(crate) revision: u64,
    /// Whose history it is.
    pub(crate) history: History,
    /// A put for every key.
    pub(crate) changes: Vec<Change>,
}

#[cfg(test)]
impl Everything {
    /// What a test says there is.
    pub(crate) fn for_test(revision: u64, changes: Vec<Change>) -> Self {
        Self { revision, history: History { cluster: 1, born: 1 }, changes }
    }
}

/// What tells one etcd from another in its place. The cluster's own id alone does not: it is made of its
/// members' names and addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct History {
    cluster: u64,
    /// When the first server wrote its first document; 0 before that.
    born: u64,
}

/// What one transaction does, if all of `guards` hold.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) operations: Vec<Operation>,
    /// The leases of endpoints that are put, by key.
    pub(crate) leases: BTreeMap<String, i64>,
    /// On whose behalf, by key.
    pub(crate) by: BTreeMap<String, String>,
    pub(crate) guards: Vec<Guard>,
}

/// What has to be as this server has seen it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Guard {
    /// An object: changed by nobody since.
    Object(Table, String),
    /// Every document.
    Documents,
    /// The registered endpoints of a service: none was put after `revision`.
    EndpointsOf {
        /// The service.
        service: String,
        /// What this server has seen.
        revision: u64,
    },
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done, at this revision.
    Done(u64),
    /// Somebody else was first; nothing was done.
    Conflict,
}

impl Etcd {
    /// Call within a tokio runtime. Connects when it is first used.
    pub(crate) fn new(settings: &SharedStore, grace: Duration, metrics: Arc<Metrics>) -> Arc<Self> {
        let client = Client::new(settings.etcd.clone());
        let health = Health::new(&settings.etcd);
        Arc::new(Self {
            client,
            keys: Keys::new(settings.etcd.prefix()),
            url: settings.etcd.clone(),
            server: settings.server.clone(),
            marks: DashMap::new(),
            session: Session::new(grace),
            health,
            metrics,
        })
    }

    pub(crate) fn url(&self) -> &EtcdUrl {
        &self.url
    }

    pub(crate) fn health(&self) -> &Health {
        &self.health
    }

    /// What the other servers call this one.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// What is known of an object's key.
    pub(crate) fn mark(&self, table: Table, key: &str) -> Option<Mark> {
        self.marks.get(&(table, key.to_owned())).map(|mark| *mark)
    }

    /// Notes what is known of an object's key from now on; for the registry.
    pub(crate) fn set_mark(&self, table: Table, key: String, mark: Option<Mark>) {
        match mark {
            Some(mark) => drop(self.marks.insert((table, key), mark)),
            None => drop(self.marks.remove(&(table, key))),
        }
    }

    /// The keys that are known.
    pub(crate) fn known(&self) -> Vec<(Table, String)> {
        self.marks.iter().map(|entry| entry.key().clone()).collect()
    }

    /// Everything there is, at one revision: all of it, or an error.
    pub(crate) async fn load(&self) -> Result<Everything, Failure> {
        let (mut key, range_end) = self.keys.everything();
        let mut everything: Option<Everything> = None;
        loop {
            let revision = everything.as_ref().map_or(0, |known| known.revision.cast_signed());
            let range_end = range_end.clone();
            let ask = RangeRequest { key, range_end, limit: PAGE, revision, keys_only: false };
            let page = self.client.range(ask).await?;
            let header = header(page.header)?;
            let everything = everything.get_or_insert_with(|| Everything {
                revision: header.revision.cast_unsigned(),
                history: History { cluster: header.cluster_id, born: 0 },
                changes: Vec::new(),
            });
            everything.history.born = everything.history.born.max(self.born(&page.kvs));
            let last = page.kvs.last().map(|pair| pair.key.clone());
            everything.changes.extend(page.kvs.into_iter().filter_map(|pair| self.put(pair)));
            match last {
                // The first key after this one.
                Some(last) if page.more => key = [&last[..], &[0]].concat().into(),
                _ => break,
            }
        }
        everything.ok_or_else(|| Failure::Unavailable("etcd answered nothing".to_owned()))
    }

    /// A pair as the change that made it.
    fn put(&self, pair: wire::KeyValue) -> Option<Change> {
        let place = self.keys.place(&pair.key)?;
        let revision = pair.mod_revision.cast_unsigned();
        Some(Change { revision, place, value: Some(pair.value), lease: pair.lease })
    }

    /// The newest revision at which a server has written anything, as a majority knows it, and
    /// whether it is still the same etcd.
    async fn newest(&self) -> Result<Newest, Failure> {
        let (key, range_end) = self.keys.all_written();
        let ask = RangeRequest { key, range_end, limit: 0, revision: 0, keys_only: true };
        let answer = self.client.range(ask).await?;
        let header = header(answer.header)?;
        let written = answer.kvs.iter().map(|pair| pair.mod_revision.cast_unsigned()).max().unwrap_or(0);
        let history = History { cluster: header.cluster_id, born: self.born(&answer.kvs) };
        Ok(Newest { written, revision: header.revision.cast_unsigned(), history })
    }

    /// When the key was made that says who wrote documents; it is never removed.
    fn born(&self, pairs: &[wire::KeyValue]) -> u64 {
        let key = self.keys.written(Table::Documents);
        let made = pairs.iter().find(|pair| pair.key == key);
        made.map_or(0, |pair| pair.create_revision.cast_unsigned())
    }

    /// The newest revision at which a server has written anything, as a majority knows it.
    pub(crate) async fn newest_written(&self) -> Result<u64, Failure> {
        self.newest().await.map(|newest| newest.written)
    }

    /// Does all of `plan`, or nothing. `commit` is how its change is known again.
    pub(crate) async fn commit(&self, plan: &Plan, commit: u64) -> Result<Outcome, Failure> {
        let answer = self.client.txn(self.transaction(plan, commit)?).await?;
        let revision = header(answer.header)?.revision.cast_unsigned();
        Ok(if answer.succeeded { Outcome::Done(revision) } else { Outcome::Conflict })
    }

    fn transaction(&self, plan: &Plan, commit: u64) -> Result<TxnRequest, Failure> {
        let mut success: Vec<RequestOp> =
            plan.operations.iter().map(|one| self.operation(one, plan)).collect();
        let written = Written { server: self.server.clone(), commit, by: plan.by.clone() };
        let value: Bytes = serde_json::to_vec(&written)
            .map_err(|e| Failure::Refused(format!("cannot say who writes: {e}")))?
            .into();
        for table in [Table::Documents, Table::Endpoints] {
            // Resources are in one order with documents.
            let order = |operation: &Operation| match operation.table {
                Table::Documents | Table::Resources => Table::Documents,
                Table::Endpoints => Table::Endpoints,
            };
            if plan.operations.iter().any(|operation| order(operation) == table) {
                let (key, value) = (self.keys.written(table), value.clone());
                success.push(RequestOp { request: Some(Request::Put(PutRequest { key, value, lease: 0 })) });
            }
        }
        Ok(TxnRequest { compare: plan.guards.iter().map(|guard| self.compare(guard)).collect(), success })
    }

    fn operation(&self, operation: &Operation, plan: &Plan) -> RequestOp {
        let key = self.keys.object(operation.table, &operation.key);
        let request = match &operation.value {
            Some(value) => {
                let lease = match operation.table {
                    Table::Endpoints => plan.leases.get(&operation.key).copied().unwrap_or(0),
                    Table::Documents | Table::Resources => 0,
                };
                Request::Put(PutRequest { key, value: value.clone().into(), lease })
            }
            None => Request::DeleteRange(DeleteRangeRequest { key }),
        };
        RequestOp { request: Some(request) }
    }

    fn compare(&self, guard: &Guard) -> Compare {
        let (result, key, range_end, revision) = match guard {
            // A key that is not there has mod revision 0.
            Guard::Object(table, key) => {
                let seen = self.mark(*table, key).map_or(0, |mark| mark.revision);
                (CompareResult::Equal, self.keys.object(*table, key), Bytes::new(), seen)
            }
            Guard::Documents => {
                let seen = self.marks.get(&(Table::Documents, WRITTEN.to_owned()));
                let seen = seen.map_or(0, |mark| mark.revision);
                (CompareResult::Equal, self.keys.written(Table::Documents), Bytes::new(), seen)
            }
            Guard::EndpointsOf { service, revision } => {
                let (from, to) = self.keys.endpoints_of(service);
                (CompareResult::Less, from, to, revision + 1)
            }
        };
        Compare {
            result: result.into(),
            target: CompareTarget::Mod.into(),
            key,
            mod_revision: Some(revision.cast_signed()),
            range_end,
        }
    }
}

/// The key of the mark that [`Guard::Documents`] compares; no document is called so.
pub(crate) const WRITTEN: &str = "";

struct Newest {
    written: u64,
    revision: u64,
    history: History,
}

fn header(header: Option<Header>) -> Result<Header, Failure> {
    header.ok_or_else(|| Failure::Unavailable("etcd answered without a header".to_owned()))
}
