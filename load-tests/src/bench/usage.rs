//! What processes use: CPU time of all their threads, and resident memory.

use std::{fs, path::Path};

/// Of a set of processes, all threads together.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// CPU time in ns, from `schedstat` of each thread.
    pub cpu_ns: u64,
    /// Clock ticks in user mode and in the kernel (proc(5), `stat`). Coarse: they tell the two apart only.
    pub user_ticks: u64,
    pub system_ticks: u64,
    /// Resident memory in bytes (`VmRSS`).
    pub rss_bytes: u64,
}

impl Usage {
    pub fn of(pids: &[u32]) -> Self {
        let mut sum = Self::default();
        for pid in pids {
            sum.cpu_ns += cpu_ns(*pid);
            if let Some(stat) = Stat::of(*pid) {
                sum.user_ticks += stat.user_ticks;
                sum.system_ticks += stat.system_ticks;
            }
            sum.rss_bytes += rss_bytes(*pid);
        }
        sum
    }
}

/// CPU time of all threads of a process in ns; 0 if it is gone.
pub fn cpu_ns(pid: u32) -> u64 {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return 0 };
    tasks.flatten().filter_map(|task| first_number(&task.path().join("schedstat"))).sum()
}

fn first_number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}

fn rss_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    kib.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1_024
}

/// Fields of `/proc/<pid>/stat`.
pub struct Stat {
    pub parent: u32,
    pub user_ticks: u64,
    pub system_ticks: u64,
    /// Of children that were waited for.
    pub children_ticks: u64,
}

impl Stat {
    pub fn of(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // A name may hold spaces and parentheses; what follows the last one are numbers.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(1)?).ok()?,
            user_ticks: number(11)?,
            system_ticks: number(12)?,
            children_ticks: number(13)? + number(14)?,
        })
    }
}

/// The numbers of all processes.
pub fn processes() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// A process and all that descend from it.
pub fn family(pid: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> =
        processes().into_iter().filter_map(|pid| Some((pid, Stat::of(pid)?.parent))).collect();
    let mut family = vec![pid];
    let mut at = 0;
    while at < family.len() {
        let parent = family[at];
        family.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        at += 1;
    }
    family
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_is_no_obstacle() {
        let stat = Stat::parse("7 (a) b) S 3 7 7 0 -1 0 1 2 3 4 50 60 7 8 20 0 1 0").unwrap();
        assert_eq!((stat.parent, stat.user_ticks, stat.system_ticks, stat.children_ticks), (3, 50, 60, 15));
    }

    #[test]
    fn this_process_uses_cpu_and_memory() {
        let usage = Usage::of(&[std::process::id()]);
        assert!(usage.rss_bytes > 0);
        assert!(family(std::process::id()).contains(&std::process::id()));
    }
}
