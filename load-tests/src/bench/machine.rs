//! Work on the machine that is not ours, and what the host takes away.

use std::{collections::HashMap, time::Instant};

use rustix::thread::CpuSet;

use super::usage::{Stat, processes};

/// Length of a clock tick (`USER_HZ`, 100 a second on every Linux of today).
const TICK_NS: u64 = 10_000_000;
/// The parent of all kernel threads. They work for the subjects too, so they are not counted.
const KERNEL: u32 = 2;

/// CPU time at one moment.
pub struct Moment {
    at: Instant,
    /// Of all processes but ours, in clock ticks: these include threads that have ended.
    foreign: HashMap<u32, Ticks>,
    /// Time that the host gave to others, from all cores.
    steal: u64,
}

#[derive(Clone, Copy, Default)]
struct Ticks {
    own: u64,
    /// Of children that have ended and were waited for.
    children: u64,
}

impl Moment {
    pub fn now(ours: &[u32]) -> Self {
        let foreign = processes().into_iter().filter(|pid| *pid != KERNEL && !ours.contains(pid));
        let foreign = foreign.filter_map(|pid| Some((pid, Stat::of(pid)?)));
        let foreign = foreign.filter(|(_, stat)| stat.parent != KERNEL).map(|(pid, stat)| {
            (pid, Ticks { own: stat.user_ticks + stat.system_ticks, children: stat.children_ticks })
        });
        Self { at: Instant::now(), foreign: foreign.collect(), steal: steal_ticks() }
    }

    /// The share of one core that foreign work and the host have taken since.
    pub fn disturbance(&self, ours: &[u32]) -> f64 {
        let now = Self::now(ours);
        let ticks = foreign_between(&self.foreign, &now.foreign) + now.steal.saturating_sub(self.steal);
        (ticks * TICK_NS) as f64 / (now.at - self.at).as_nanos().max(1) as f64
    }
}

/// What those that live have used, and what children that came and went have: the time of a process that
/// was there before and has ended since is its parent's now, if its parent waited for it.
fn foreign_between(before: &HashMap<u32, Ticks>, after: &HashMap<u32, Ticks>) -> u64 {
    let (mut own, mut children) = (0, 0);
    for (pid, now) in after {
        let then = before.get(pid).copied().unwrap_or_default();
        own += now.own.saturating_sub(then.own);
        children += now.children.saturating_sub(then.children);
    }
    let ended = before.iter().filter(|(pid, _)| !after.contains_key(pid));
    let known: u64 = ended.map(|(_, then)| then.own + then.children).sum();
    own + children.saturating_sub(known)
}

fn steal_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    // cpu user nice system idle iowait irq softirq steal …
    stat.lines().next().and_then(|line| line.split_whitespace().nth(8)?.parse().ok()).unwrap_or(0)
}

/// The numbers of the cores that this process may use; there is at least one.
pub fn cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap_or_default();
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect();
    if cores.is_empty() { vec![0] } else { cores }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(processes: &[(u32, u64, u64)]) -> HashMap<u32, Ticks> {
        processes
            .iter()
            .map(|(pid, own, children)| (*pid, Ticks { own: *own, children: *children }))
            .collect()
    }

    #[test]
    fn work_counts_whether_its_process_lives_or_has_come_and_gone() {
        // 1 works; 2 is new; 3 waited for one that came and went.
        let (before, after) = (at(&[(1, 100, 0), (3, 5, 50)]), at(&[(1, 107, 0), (2, 4, 0), (3, 5, 56)]));
        assert_eq!(foreign_between(&before, &after), 7 + 4 + 6);
    }

    #[test]
    fn the_end_of_an_old_process_neither_counts_as_work_nor_hides_that_of_others() {
        let before = at(&[(1, 10, 0), (2, 9_000, 0), (3, 1_000, 0)]);
        // 2 was waited for by 1; nobody waited for 3; 4 works.
        let after = at(&[(1, 10, 9_001), (4, 30, 0)]);
        assert_eq!(foreign_between(&before, &after), 30);
    }
}
