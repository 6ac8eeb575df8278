//! Changes that are about to come, and who has applied each.
//!
//! Change `j` of a service, counted from 1, puts a probe when `j` is even or 1, and takes the older of
//! two out otherwise: `{1} {1 2} {2} {2 3} {3} …`. So the least and the greatest probe of a set add up
//! to one more than the number of changes behind it, and no two sets are the same.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::{
        RwLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Instant,
};

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Put(u32),
    Remove(u32),
}

pub(super) fn step(change: u32) -> Step {
    match change {
        1 => Step::Put(1),
        even if even % 2 == 0 => Step::Put(even / 2 + 1),
        odd => Step::Remove((odd - 1) / 2),
    }
}

/// How many changes a set of probes has behind it.
pub(super) fn changes_behind(probes: impl Iterator<Item = u32>) -> u32 {
    let ends = probes.fold(None, |ends: Option<(u32, u32)>, probe| {
        Some(ends.map_or((probe, probe), |(least, most)| (least.min(probe), most.max(probe))))
    });
    ends.map_or(0, |(least, most)| least + most - 1)
}

/// Where a probe is said to listen: nobody does, and no other endpoint is in this network.
pub(super) fn probe_address(probe: u32) -> SocketAddr {
    let [_, b, c, d] = probe.to_be_bytes();
    (Ipv4Addr::new(10, b, c, d), 80).into()
}

/// The probe whose address this is.
pub(super) fn probe_at(address: &[u8]) -> Option<u32> {
    let address: Ipv4Addr = std::str::from_utf8(address).ok()?.parse().ok()?;
    let [first, b, c, d] = address.octets();
    (first == 10).then(|| u32::from_be_bytes([0, b, c, d]))
}

/// One change.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) service: u32,
    /// The number among the changes of its service.
    pub(super) number: u32,
    /// When its write began and was answered, in ns since the swarm began; 0 before.
    pub(super) began: AtomicU64,
    pub(super) answered: AtomicU64,
    /// Proxies that have not applied it.
    missing: AtomicU32,
    /// When the last one had.
    pub(super) applied: AtomicU64,
}

/// The changes of one run.
#[derive(Debug, Default)]
struct Run {
    changes: std::sync::Arc<Vec<Change>>,
    /// By service: the changes before this run, and the places of those in it.
    services: Vec<(u32, Vec<u32>)>,
    open: AtomicU32,
}

/// What is to come, seen by every proxy.
#[derive(Debug)]
pub(super) struct Plan {
    start: Instant,
    run: RwLock<Run>,
}

impl Plan {
    pub(super) fn new() -> Self {
        Self { start: Instant::now(), run: RwLock::default() }
    }

    /// Time since the swarm began.
    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap()
    }

    /// Begins a run of changes to these services, in order, of each of which `before` were made already;
    /// `proxies` have to apply them. All of the run before have to be applied.
    pub(super) fn begin(
        &self,
        services: impl IntoIterator<Item = u32>,
        before: &mut [u32],
        proxies: usize,
    ) -> std::sync::Arc<Vec<Change>> {
        let mut places: Vec<(u32, Vec<u32>)> = before.iter().map(|made| (*made, Vec::new())).collect();
        let changes = services.into_iter().enumerate().map(|(place, service)| {
            places[service as usize].1.push(u32::try_from(place).unwrap());
            let made = &mut before[service as usize];
            *made += 1;
            Change {
                service,
                number: *made,
                began: AtomicU64::new(0),
                answered: AtomicU64::new(0),
                missing: AtomicU32::new(u32::try_from(proxies).unwrap()),
                applied: AtomicU64::new(0),
            }
        });
        let changes = std::sync::Arc::new(changes.collect::<Vec<_>>());
        let open = AtomicU32::new(u32::try_from(changes.len()).unwrap());
        *self.run.write().unwrap() = Run { changes: std::sync::Arc::clone(&changes), services: places, open };
        changes
    }

    /// A proxy that had `before` changes of a service behind it now has `after`.
    pub(super) fn applied(&self, service: u32, before: u32, after: u32) {
        let run = self.run.read().unwrap();
        let Some((first, places)) = run.services.get(service as usize) else { return };
        let from = before.saturating_sub(*first) as usize;
        let to = (after.saturating_sub(*first) as usize).min(places.len());
        for place in places.get(from..to).unwrap_or_default() {
            let change = &run.changes[*place as usize];
            if change.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
                change.applied.store(self.now_ns(), Ordering::Relaxed);
                run.open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// How many changes are not applied everywhere.
    pub(super) fn open(&self) -> u32 {
        self.run.read().unwrap().open.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_set_of_probes_tells_how_many_changes_are_behind_it() {
        let mut probes = BTreeSet::new();
        assert_eq!(changes_behind(probes.iter().copied()), 0);
        for change in 1..1_000 {
            match step(change) {
                Step::Put(probe) => assert!(probes.insert(probe)),
                Step::Remove(probe) => assert!(probes.remove(&probe)),
            }
            assert!((1..=2).contains(&probes.len()));
            assert_eq!(changes_behind(probes.iter().copied()), change);
        }
    }

    #[test]
    fn a_probe_is_known_by_its_address() {
        for probe in [0, 1, 255, 256, 70_000, 0xff_ffff] {
            assert_eq!(probe_at(probe_address(probe).ip().to_string().as_bytes()), Some(probe));
        }
        assert_eq!(probe_at(b"192.168.0.1"), None);
    }

    #[test]
    fn a_change_is_applied_when_the_last_proxy_has_it_or_a_later_one() {
        let plan = Plan::new();
        let mut made = vec![0, 4];
        let changes = plan.begin([1, 0, 1], &mut made, 2);
        assert_eq!((made, plan.open()), (vec![1, 6], 3));
        plan.applied(1, 4, 6);
        plan.applied(0, 0, 1);
        assert_eq!(plan.open(), 3);
        plan.applied(1, 4, 5);
        assert_eq!(plan.open(), 2);
        assert!(changes[0].applied.load(Ordering::Relaxed) > 0);
        plan.applied(1, 5, 6);
        plan.applied(0, 0, 1);
        assert_eq!(plan.open(), 0);
    }
}
