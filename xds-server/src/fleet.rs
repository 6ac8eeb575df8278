//! The connected xDS clients, and how far each has come.
//!
//! The lowest applied revision of all is kept as a count by revision, so that an acknowledgement
//! costs the same however many proxies there are.

use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    api::types::{Applied, Missing, Nack, ProxyView},
    kind::Kind,
    subscription::view::Standing,
};

/// How far every connected client has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Floor {
    /// Connected clients.
    pub proxies: usize,
    /// The newest revision that all of them have applied; meaningless without clients.
    pub revision: u64,
}

/// How long a client whose stream ended still counts as one that has to apply what is written: it
/// goes on with what it had, and most likely comes back.
pub const LOST_GRACE: Duration = Duration::from_secs(10);

/// Every connected client.
#[derive(Debug)]
pub struct Fleet {
    inner: Mutex<Inner>,
    floor: watch::Sender<Floor>,
}

#[derive(Debug, Default)]
struct Inner {
    members: HashMap<u64, Member>,
    /// How many members, those lost a moment ago included, have applied each revision.
    applied: BTreeMap<u64, usize>,
    /// Members whose stream ended a moment ago: a proxy without its server goes on with what it has.
    lost: HashMap<u64, (String, u64)>,
    next: u64,
}

#[derive(Debug)]
struct Member {
    identity: Identity,
    since: Instant,
    applied: u64,
    lag: Duration,
    nacks: u64,
    /// By type; a client has few, and refuses fewer.
    refused: BTreeMap<Kind, (String, Instant)>,
    inquiries: mpsc::Sender<Inquiry>,
}

/// Asks a stream where every resource stands with its client.
pub type Inquiry = oneshot::Sender<Vec<Standing>>;

/// How many may ask one stream at once.
const INQUIRIES: usize = 4;
/// How long a stream may take to answer.
const INQUIRY_TIMEOUT: Duration = Duration::from_secs(2);

/// Who a client says it is.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    /// Its node id.
    pub node: String,
    /// Its node cluster.
    pub cluster: String,
    /// Program and version.
    pub agent: String,
    /// `incremental` or `state-of-the-world`.
    pub variant: &'static str,
    /// Where it connects from.
    pub peer: Option<SocketAddr>,
}

impl Default for Fleet {
    fn default() -> Self {
        Self { inner: Mutex::default(), floor: watch::channel(Floor::default()).0 }
    }
}

impl Fleet {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a client that has applied nothing yet, for as long as the membership lives.
    pub fn join(self: &Arc<Self>, identity: Identity) -> Membership {
        let mut inner = self.lock();
        inner.next += 1;
        let id = inner.next;
        inner.forget_lost(|node, _| *node == identity.node);
        let (ask, inquiries) = mpsc::channel(INQUIRIES);
        let member = Member {
            identity,
            since: Instant::now(),
            applied: 0,
            lag: Duration::ZERO,
            nacks: 0,
            refused: BTreeMap::new(),
            inquiries: ask,
        };
        inner.members.insert(id, member);
        *inner.applied.entry(0).or_default() += 1;
        self.publish(&inner);
        Membership { fleet: Arc::clone(self), id, inquiries }
    }

    fn publish(&self, inner: &Inner) {
        let floor = Floor {
            proxies: inner.members.len() + inner.lost.len(),
            revision: inner.applied.first_key_value().map_or(0, |(revision, _)| *revision),
        };
        self.floor.send_if_modified(|current| std::mem::replace(current, floor) != floor);
    }

    /// Follows how far every client has come.
    pub fn follow(&self) -> watch::Receiver<Floor> {
        self.floor.subscribe()
    }

    /// Waits until every client has applied `revision`, at most `timeout`.
    pub async fn applied(&self, revision: u64, timeout: Duration) -> Applied {
        let began = Instant::now();
        let mut floor = self.follow();
        let reached = floor.wait_for(|f| f.proxies == 0 || f.revision >= revision);
        let complete = tokio::time::timeout(timeout, reached).await.is_ok();
        let ms = began.elapsed().as_secs_f64() * 1e3;
        let inner = self.lock();
        let behind = inner.members.values().filter(|m| !complete && m.applied < revision);
        let mut missing: Vec<Missing> = behind
            .map(|member| Missing {
                node: member.identity.node.clone(),
                revision: member.applied,
                nack: member.refused.values().map(|(reason, _)| reason.clone()).next(),
            })
            .collect();
        let lost = inner.lost.values().filter(|(_, applied)| !complete && *applied < revision);
        missing.extend(lost.map(|(node, applied)| Missing {
            node: node.clone(),
            revision: *applied,
            nack: Some("not connected any more".to_owned()),
        }));
        missing.sort_by(|a, b| a.node.cmp(&b.node));
        Applied { complete, proxies: inner.members.len() + inner.lost.len(), ms, missing }
    }

    /// The streams of clients whose node is `wanted`, by node, to be asked one after the other: what one
    /// answers may be large.
    pub fn streams(&self, wanted: impl Fn(&str) -> bool) -> Vec<StreamHandle> {
        let inner = self.lock();
        let members = inner.members.values().filter(|member| wanted(&member.identity.node));
        let handle = |member: &Member| StreamHandle {
            identity: member.identity.clone(),
            inquiries: member.inquiries.clone(),
        };
        let mut streams: Vec<StreamHandle> = members.map(handle).collect();
        drop(inner);
        let order = |stream: &StreamHandle| (stream.identity.node.clone(), stream.identity.peer);
        streams.sort_by_cached_key(order);
        streams
    }

    /// Every client, by node; `newest` is the newest revision.
    pub fn view(&self, newest: u64) -> Vec<ProxyView> {
        let inner = self.lock();
        let mut views: Vec<ProxyView> = inner.members.values().map(|m| m.view(newest)).collect();
        drop(inner);
        views.sort_by(|a, b| (&a.node, &a.peer).cmp(&(&b.node, &b.peer)));
        views
    }
}

impl Member {
    fn view(&self, newest: u64) -> ProxyView {
        let refused = self.refused.iter().map(|(kind, (reason, at))| {
            let age_ms = at.elapsed().as_millis() as u64;
            Nack { resource_type: kind.to_string(), reason: reason.clone(), age_ms }
        });
        let mut refused: Vec<Nack> = refused.collect();
        refused.sort_by_key(|nack| nack.age_ms);
        ProxyView {
            node: self.identity.node.clone(),
            cluster: self.identity.cluster.clone(),
            agent: self.identity.agent.clone(),
            variant: self.identity.variant.to_owned(),
            peer: self.identity.peer.map(|p| p.to_string()).unwrap_or_default(),
            age_ms: self.since.elapsed().as_millis() as u64,
            revision: self.applied,
            lag_ms: self.lag.as_secs_f64() * 1e3,
            synced: self.applied >= newest,
            nacks: self.nacks,
            refused,
        }
    }
}

/// A stream that can be asked.
#[derive(Debug)]
pub struct StreamHandle {
    /// Whose it is.
    pub identity: Identity,
    inquiries: mpsc::Sender<Inquiry>,
}

impl StreamHandle {
    /// Where every resource stands with the client; `None` when the stream has ended, or does not answer
    /// in time.
    pub async fn standings(&self) -> Option<Vec<Standing>> {
        let (inquiry, answer) = oneshot::channel();
        let asking = async {
            self.inquiries.send(inquiry).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(INQUIRY_TIMEOUT, asking).await.ok().flatten()
    }
}

/// A client's place in the fleet; dropping it takes the client out.
#[derive(Debug)]
pub struct Membership {
    fleet: Arc<Fleet>,
    id: u64,
    inquiries: mpsc::Receiver<Inquiry>,
}

impl Membership {
    /// Whoever asks where the resources stand; nobody until the context is woken.
    pub fn poll_inquiry(&mut self, context: &mut Context<'_>) -> Poll<Option<Inquiry>> {
        self.inquiries.poll_recv(context)
    }

    /// The client has applied everything up to `revision`.
    pub fn applied(&self, revision: u64) {
        let mut inner = self.fleet.lock();
        let Some(member) = inner.members.get_mut(&self.id) else { return };
        let before = std::mem::replace(&mut member.applied, revision);
        if before != revision {
            inner.move_count(before, Some(revision));
            self.fleet.publish(&inner);
        }
    }

    /// The client acknowledged a response of this type, `lag` after its oldest change was published.
    pub fn acknowledged(&self, kind: &Kind, lag: Option<Duration>) {
        if let Some(member) = self.fleet.lock().members.get_mut(&self.id) {
            member.refused.remove(kind);
            if let Some(lag) = lag {
                member.lag = lag;
            }
        }
    }

    /// The client refused a response of this type.
    pub fn refused(&self, kind: &Kind, reason: String) {
        if let Some(member) = self.fleet.lock().members.get_mut(&self.id) {
            member.nacks += 1;
            member.refused.insert(kind.clone(), (reason, Instant::now()));
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut inner = self.fleet.lock();
        let Some(member) = inner.members.remove(&self.id) else { return };
        inner.lost.insert(self.id, (member.identity.node, member.applied));
        self.fleet.publish(&inner);
        let (fleet, id) = (Arc::clone(&self.fleet), self.id);
        let forget = move || {
            let mut inner = fleet.lock();
            inner.forget_lost(|_, lost| lost == id);
            fleet.publish(&inner);
        };
        // Outside a runtime the server is going, and nobody waits any more.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            drop(inner);
            runtime.spawn(async move {
                tokio::time::sleep(LOST_GRACE).await;
                forget();
            });
        }
    }
}

impl Inner {
    /// Stops counting lost members: they are back, or their time is up.
    fn forget_lost(&mut self, which: impl Fn(&String, u64) -> bool) {
        let ids: Vec<u64> =
            self.lost.iter().filter(|(id, (node, _))| which(node, **id)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some((_, applied)) = self.lost.remove(&id) {
                self.move_count(applied, None);
            }
        }
    }

    fn move_count(&mut self, from: u64, to: Option<u64>) {
        if let Some(count) = self.applied.get_mut(&from) {
            *count -= 1;
            if *count == 0 {
                self.applied.remove(&from);
            }
        }
        if let Some(to) = to {
            *self.applied.entry(to).or_default() += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn join(fleet: &Arc<Fleet>, node: &str) -> Membership {
        fleet.join(Identity { node: node.into(), ..Identity::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_ends_when_the_last_proxy_has_it() {
        let fleet = Arc::new(Fleet::default());
        let (a, b) = (join(&fleet, "a"), join(&fleet, "b"));
        a.applied(7);
        let waiting = tokio::spawn({
            let fleet = Arc::clone(&fleet);
            async move { fleet.applied(7, Duration::from_secs(2)).await }
        });
        tokio::task::yield_now().await;
        b.applied(8);
        let applied = waiting.await.unwrap();
        assert!(applied.complete);
        assert_eq!((applied.proxies, applied.missing.len()), (2, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_names_who_has_not_applied_it_and_why() {
        let fleet = Arc::new(Fleet::default());
        let (a, b) = (join(&fleet, "a"), join(&fleet, "b"));
        a.applied(7);
        b.refused(&Kind::Cluster, "no such thing".into());
        let applied = fleet.applied(7, Duration::from_secs(2)).await;
        assert!(!applied.complete);
        assert_eq!(applied.missing.len(), 1);
        assert_eq!(applied.missing[0].node, "b");
        assert_eq!(applied.missing[0].nack.as_deref(), Some("no such thing"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_left_is_waited_for_a_while_and_then_holds_nobody_up() {
        let fleet = Arc::new(Fleet::default());
        let (a, b) = (join(&fleet, "a"), join(&fleet, "b"));
        a.applied(7);
        drop(b);
        let applied = fleet.applied(7, Duration::from_secs(1)).await;
        assert_eq!((applied.complete, applied.missing[0].node.as_str()), (false, "b"));
        assert!(fleet.applied(7, LOST_GRACE).await.complete);
        drop(a);
        tokio::time::sleep(LOST_GRACE * 2).await;
        assert_eq!(*fleet.follow().borrow(), Floor { proxies: 0, revision: 0 });
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_comes_back_counts_once() {
        let fleet = Arc::new(Fleet::default());
        drop(join(&fleet, "a"));
        let back = join(&fleet, "a");
        back.applied(3);
        assert_eq!(*fleet.follow().borrow(), Floor { proxies: 1, revision: 3 });
    }
}
