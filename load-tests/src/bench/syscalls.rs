//! System calls of a subject, counted for a moment under steady load: with perf, or else with strace.

use std::{process::Stdio, time::Duration};

use tokio::process::Command;

use crate::peers;

/// Per second, or `None` when neither program is there or allowed to.
pub async fn per_second(pids: &[u32], length: Duration) -> Option<f64> {
    match with_perf(pids, length).await {
        Some(rate) => Some(rate),
        None => with_strace(pids, length).await,
    }
}

async fn with_perf(pids: &[u32], length: Duration) -> Option<f64> {
    let pids: Vec<String> = pids.iter().map(ToString::to_string).collect();
    let mut command = Command::new(peers::find("perf")?);
    command.args(["stat", "-x,", "-e", "raw_syscalls:sys_enter", "-p", &pids.join(",")]);
    command.args(["--timeout", &length.as_millis().to_string()]);
    let output = command.stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    let count = perf_count(&String::from_utf8_lossy(&output.stderr))?;
    Some(count / length.as_secs_f64())
}

/// The first field of the line that names the event.
fn perf_count(output: &str) -> Option<f64> {
    let line = output.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

async fn with_strace(pids: &[u32], length: Duration) -> Option<f64> {
    let mut command = Command::new(peers::find("strace")?);
    command.args(["-c", "-f"]);
    for pid in pids {
        command.args(["-p", &pid.to_string()]);
    }
    let child = command.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true).spawn().ok()?;
    tokio::time::sleep(length).await;
    let pid = i32::try_from(child.id()?).ok().and_then(rustix::process::Pid::from_raw)?;
    rustix::process::kill_process(pid, rustix::process::Signal::INT).ok()?;
    let output = child.wait_with_output().await.ok()?;
    Some(strace_total(&String::from_utf8_lossy(&output.stderr))? / length.as_secs_f64())
}

/// The number of calls in the line of totals: `100.00 0.1 2 12345 67 total`.
fn strace_total(output: &str) -> Option<f64> {
    let line = output.lines().rev().find(|line| line.trim_end().ends_with("total"))?;
    line.split_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_found_in_what_the_programs_print() {
        assert_eq!(perf_count("12345,,raw_syscalls:sys_enter,300000,100.00,,\n"), Some(12_345.0));
        assert_eq!(perf_count("<not supported>,,raw_syscalls:sys_enter,0,0,,\n"), None);
        assert_eq!(perf_count("Error: no permission"), None);
        let table = "% time seconds\n 60.0 0.1 1 10 read\n100.00 0.2 2 12345 67 total\n";
        assert_eq!(strace_total(table), Some(12_345.0));
    }
}
