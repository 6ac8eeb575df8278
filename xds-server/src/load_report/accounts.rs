//! The sums of everything reported: by version, and by who reported it. Pure; time is passed in.
//!
//! Counts are added once and stay: to the totals of the version, and to the row of the node. What is in
//! progress, and rates, are as of the last report of each open stream, and go with the stream.
//!
//! # What becomes of counts that have no row
//! - Of clusters that are not declared: summed up together, as [`Elsewhere::unknown`].
//! - Of versions that are not declared any more: kept for [`KEEP_REMOVED`], for reports on their way,
//!   then summed up together, as [`Elsewhere::removed`].
//!
//! So the sum over all versions and elsewhere is always what was reported.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use config::ClusterName;

use super::{
    count::Counts,
    read::{OfCluster, Report},
    version::{Members, Version},
};

/// How many streams of reports there may be.
pub(super) const MAX_STREAMS: usize = 16_384;
/// How many of them one node may have: a process may have one a target.
pub(super) const MAX_STREAMS_A_NODE: usize = 64;
/// How many nodes are remembered, those that have left included.
const MAX_NODES: usize = 2 * MAX_STREAMS;
/// How many rows there may be of one node for one version, over all. What is beyond is in the sums
/// of the version only.
const MAX_ROWS: usize = 1 << 18;
/// How many runs of one node are remembered: two processes may share its name by mistake.
const MAX_BOOTS: usize = 8;
/// How long a version that is not declared any more keeps its totals.
pub(super) const KEEP_REMOVED: Duration = Duration::from_mins(1);
/// How long a node without a stream keeps its rows, and the number of its last report: it may come
/// back and repeat it.
pub(super) const KEEP_LEFT: Duration = Duration::from_mins(10);
/// How often what has to go is looked for.
const PRUNE_EVERY: Duration = Duration::from_secs(1);

/// Looks up what is declared of a cluster.
pub(super) type Look<'a> = &'a dyn Fn(&ClusterName) -> Option<Members>;

#[derive(Debug, Default)]
pub(super) struct Accounts {
    pub(super) versions: HashMap<ClusterName, Version>,
    pub(super) nodes: HashMap<Arc<str>, Node>,
    pub(super) streams: HashMap<u64, Stream>,
    pub(super) elsewhere: Elsewhere,
    next: u64,
    rows: usize,
    pruned: Option<Instant>,
}

/// Counts without a version.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Elsewhere {
    pub(super) unknown: Counts,
    pub(super) removed: Counts,
}

/// Whoever reports under one node id.
#[derive(Debug, Default)]
pub(super) struct Node {
    pub(super) rows: HashMap<ClusterName, Counts>,
    pub(super) streams: usize,
    pub(super) reports: u64,
    /// When the last of its streams ended.
    left: Option<Instant>,
    /// The number of the last report taken of each run, the newest run last.
    taken: Vec<(String, u64)>,
}

#[derive(Debug)]
pub(super) struct Stream {
    pub(super) node: Arc<str>,
    boot: Option<String>,
    /// When it last reported, or began.
    pub(super) heard: Instant,
    /// As of its last whole report.
    pub(super) shares: HashMap<ClusterName, Share>,
    /// Of a report of which more is to come.
    coming: HashMap<ClusterName, Share>,
    /// Its run has a newer stream, which says what is in progress.
    superseded: bool,
}

/// What one stream last said of one version.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) in_progress: u64,
    pub(super) endpoints: HashMap<SocketAddr, u64>,
    issued: u64,
    interval: Duration,
}

impl Share {
    /// Requests a second; 0 if that was long ago.
    pub(super) fn rate(&self, age: Duration) -> f64 {
        let fresh = age <= 3 * self.interval.max(Duration::from_secs(1));
        if fresh && !self.interval.is_zero() { self.issued as f64 / self.interval.as_secs_f64() } else { 0.0 }
    }
}

/// What became of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Taken {
    /// It had been taken before, and was not counted again.
    pub(super) repeated: bool,
    /// Values that were left out at a bound.
    pub(super) refused: u64,
}

/// There are too many streams, of the node or over all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many streams of load reports are open")]
pub(super) struct TooMany;

impl Accounts {
    /// A stream of `node` begins; `boot` tells its runs apart.
    pub(super) fn open(&mut self, node: &str, boot: Option<String>, now: Instant) -> Result<u64, TooMany> {
        let node: Arc<str> = node.into();
        let of_node = self.nodes.get(&node).map_or(0, |node| node.streams);
        if self.streams.len() >= MAX_STREAMS || of_node >= MAX_STREAMS_A_NODE {
            return Err(TooMany);
        }
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(&node) {
            self.forget_longest_gone();
        }
        if boot.is_some() {
            let same = |stream: &&mut Stream| stream.node == node && stream.boot == boot;
            for stream in self.streams.values_mut().filter(same) {
                // It is lost, and the server does not know yet.
                stream.superseded = true;
                stream.shares.clear();
                stream.coming.clear();
            }
        }
        let entry = self.nodes.entry(Arc::clone(&node)).or_default();
        entry.streams += 1;
        entry.left = None;
        self.next += 1;
        let stream = Stream {
            node,
            boot,
            heard: now,
            shares: HashMap::new(),
            coming: HashMap::new(),
            superseded: false,
        };
        self.streams.insert(self.next, stream);
        Ok(self.next)
    }

    /// A stream ends: what it said is in progress is not any more, what it counted stays.
    pub(super) fn close(&mut self, stream: u64, now: Instant) {
        let Some(stream) = self.streams.remove(&stream) else { return };
        let Some(node) = self.nodes.get_mut(&stream.node) else { return };
        node.streams = node.streams.saturating_sub(1);
        if node.streams == 0 {
            node.left = Some(now);
        }
    }

    /// Takes a report of a stream.
    pub(super) fn take(&mut self, stream: u64, report: &Report, look: Look<'_>, now: Instant) -> Taken {
        self.prune(look, now);
        let Self { versions, nodes, streams, elsewhere, rows, .. } = self;
        let mut taken = Taken::default();
        let Some(stream) = streams.get_mut(&stream) else { return taken };
        let Some(node) = nodes.get_mut(&stream.node) else { return taken };
        taken.repeated = node.has_taken(report);
        node.reports = node.reports.saturating_add(1);
        // A client that does not say over how long: since its last report.
        let since = now.saturating_duration_since(std::mem::replace(&mut stream.heard, now));
        for reported in &report.clusters {
            let version = reported.cluster.as_ref().and_then(|name| version(versions, name, look));
            let (Some(name), Some(version)) = (&reported.cluster, version) else {
                if !taken.repeated {
                    elsewhere.unknown.add(reported.counts());
                }
                continue;
            };
            if !taken.repeated {
                taken.refused += version.take(reported);
                node.count(name, reported.counts(), rows);
            }
            let says = reported.in_progress() > 0 || !reported.counts().is_zero();
            if says && !stream.superseded {
                let share = stream.coming.entry(name.clone()).or_default();
                share.add(reported, since, |address| version.id(address).is_some());
            }
        }
        if !report.mark.as_ref().is_some_and(|mark| mark.more) {
            // What a whole report does not mention is not in progress.
            stream.shares = std::mem::take(&mut stream.coming);
        }
        taken
    }

    /// Follows what is declared, and forgets what has been gone for long enough. Costs something, so
    /// it is done at most once a second.
    pub(super) fn prune(&mut self, look: Look<'_>, now: Instant) {
        if self.pruned.is_some_and(|at| now.saturating_duration_since(at) < PRUNE_EVERY) {
            return;
        }
        self.pruned = Some(now);
        let long_gone = |since: Instant, keep| now.saturating_duration_since(since) >= keep;
        let (elsewhere, nodes, rows) = (&mut self.elsewhere, &mut self.nodes, &mut self.rows);
        self.versions.retain(|name, version| {
            if let Some(members) = look(name) {
                version.follow(&name.version, members);
                return true;
            }
            let gone = *version.gone.get_or_insert(now);
            if long_gone(gone, KEEP_REMOVED) {
                elsewhere.removed.add(version.counts);
                let had = nodes.values_mut().filter_map(|node| node.rows.remove(name)).count();
                *rows = rows.saturating_sub(had);
                return false;
            }
            true
        });
        nodes.retain(|_, node| {
            let keep = !node.left.is_some_and(|left| long_gone(left, KEEP_LEFT));
            if !keep {
                *rows = rows.saturating_sub(node.rows.len());
            }
            keep
        });
    }

    fn forget_longest_gone(&mut self) {
        let gone = self.nodes.iter().filter_map(|(name, node)| Some((node.left?, name)));
        let longest = gone.min_by_key(|(left, _)| *left).map(|(_, name)| Arc::clone(name));
        if let Some(node) = longest.and_then(|name| self.nodes.remove(&name)) {
            self.rows = self.rows.saturating_sub(node.rows.len());
        }
    }
}

/// The totals of a cluster, if it is declared or was a moment ago.
fn version<'a>(
    versions: &'a mut HashMap<ClusterName, Version>,
    name: &ClusterName,
    look: Look<'_>,
) -> Option<&'a mut Version> {
    if let Some(members) = look(name) {
        if !versions.contains_key(name) {
            versions.insert(name.clone(), Version::new(&name.version, members));
        } else if let Some(version) = versions.get_mut(name) {
            version.follow(&name.version, members);
        }
    }
    versions.get_mut(name)
}

impl Node {
    /// Whether a numbered report was taken before; if not, notes that it is now.
    fn has_taken(&mut self, report: &Report) -> bool {
        let Some(mark) = report.mark.as_ref().filter(|mark| mark.sequence > 0) else { return false };
        match self.taken.iter().position(|(boot, _)| *boot == mark.boot) {
            Some(at) if self.taken[at].1 >= mark.sequence => true,
            Some(at) => {
                self.taken[at].1 = mark.sequence;
                false
            }
            None => {
                if self.taken.len() >= MAX_BOOTS {
                    self.taken.remove(0);
                }
                self.taken.push((mark.boot.clone(), mark.sequence));
                false
            }
        }
    }

    fn count(&mut self, cluster: &ClusterName, counts: Counts, rows: &mut usize) {
        if counts.is_zero() {
            return;
        }
        if let Some(row) = self.rows.get_mut(cluster) {
            row.add(counts);
        } else if *rows < MAX_ROWS {
            *rows += 1;
            self.rows.insert(cluster.clone(), counts);
        }
    }
}

impl Share {
    /// `since` stands in for an interval that the client does not say.
    fn add(&mut self, reported: &OfCluster, since: Duration, is_registered: impl Fn(SocketAddr) -> bool) {
        self.in_progress = self.in_progress.saturating_add(reported.in_progress());
        self.issued = self.issued.saturating_add(reported.counts().issued);
        self.interval = self.interval.max(reported.interval.unwrap_or(since));
        for endpoint in reported.localities.iter().flat_map(|locality| &locality.endpoints) {
            // A client may name any address; only those registered are kept.
            if endpoint.in_progress > 0 && is_registered(endpoint.address) {
                let sum = self.endpoints.entry(endpoint.address).or_default();
                *sum = sum.saturating_add(endpoint.in_progress);
            }
        }
    }
}
