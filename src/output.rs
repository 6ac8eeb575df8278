//! Printing what the API says.

use std::io::{self, BufWriter, Write, stdout};

use anyhow::bail;
use serde::Serialize;
use xds_server::api::types::{Action, Applied, WriteAnswer};

use crate::{flags::Output, table::Table};

/// Prints text. Unlike `println!`, a closed pipe is an error that the caller can pass on.
pub(crate) fn print(text: impl std::fmt::Display) -> io::Result<()> {
    let mut out = BufWriter::new(stdout().lock());
    write!(out, "{text}")?;
    out.flush()
}

/// Prints JSON, indented.
pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(format_args!("{}\n", serde_json::to_string_pretty(value)?))?;
    Ok(())
}

/// Prints what the API said: in its own JSON, or as `table` shows it to people.
pub(crate) fn show<T: Serialize>(
    said: &T,
    output: Output,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    match output {
        Output::Json => print_json(said),
        Output::Table => Ok(print(table(said))?),
    }
}

/// Prints the answer to a write; a wait that was in vain is an error.
pub(crate) fn show_write(answer: &WriteAnswer, output: Output) -> anyhow::Result<()> {
    show(answer, output, changes)?;
    applied_by_all(answer)
}

fn changes(answer: &WriteAnswer) -> String {
    let mut table = Table::new(["ACTION", "KIND", "NAME", "DETAIL"]);
    for change in &answer.changes {
        let cells = [
            action(change.action).to_owned(),
            change.kind.clone(),
            change.name.clone(),
            change.detail.clone(),
        ];
        table.row(cells);
    }
    let rows = if table.is_empty() { String::new() } else { table.to_string() };
    format!("{rows}{}\n", revision(answer))
}

/// `revision 12, applied by 3 proxies in 0.80 ms`
pub(crate) fn revision(answer: &WriteAnswer) -> String {
    let rehearsal = if answer.dry_run { "dry run, nothing was written: " } else { "" };
    let applied = answer.applied.as_ref().map(|a| format!(", {}", applied(a))).unwrap_or_default();
    format!("{rehearsal}revision {}{applied}", answer.revision)
}

fn applied(applied: &Applied) -> String {
    let (all, ms) = (applied.proxies, millis(applied.ms));
    let have = all.saturating_sub(applied.missing.len());
    match (applied.complete, all) {
        (true, 0) => "no proxy is connected".to_owned(),
        (true, 1) => format!("applied by the one connected proxy in {ms}"),
        (true, all) => format!("applied by all {all} connected proxies in {ms}"),
        (false, all) => format!("applied by {have} of {all} connected proxies in {ms}"),
    }
}

/// Fails, naming who has not, when a wait was in vain.
pub(crate) fn applied_by_all(answer: &WriteAnswer) -> anyhow::Result<()> {
    let Some(applied) = answer.applied.as_ref().filter(|applied| !applied.complete) else { return Ok(()) };
    let missing: Vec<String> = applied
        .missing
        .iter()
        .map(|m| match &m.nack {
            Some(reason) => format!("{} refused it: {reason}", m.node),
            None => format!("{} is still at revision {}", m.node, m.revision),
        })
        .collect();
    bail!(
        "revision {} is written, but not applied everywhere: {}; `sluicegate proxies` shows when it is",
        answer.revision,
        missing.join("; ")
    )
}

fn action(action: Action) -> &'static str {
    match action {
        Action::Created => "created",
        Action::Updated => "updated",
        Action::Unchanged => "unchanged",
        Action::Renewed => "renewed",
        Action::Deleted => "deleted",
    }
}

/// A time for people: `0.42 ms`, `12 ms`, `3.1 s`, `2 m 5 s`.
pub(crate) fn millis(ms: f64) -> String {
    match ms {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1_000.0 => format!("{ms:.0} ms"),
        ms if ms < 60_000.0 => format!("{:.1} s", ms / 1_000.0),
        ms => {
            let minutes = ms as u64 / 60_000;
            match minutes {
                0..60 => format!("{minutes} m {} s", ms as u64 / 1_000 % 60),
                _ => format!("{} h {} m", minutes / 60, minutes % 60),
            }
        }
    }
}

/// A share for people: `10 %`, `12.5 %`, `0.01 %`.
pub(crate) fn percent(basis_points: u32) -> String {
    match (basis_points / 100, basis_points % 100) {
        (whole, 0) => format!("{whole} %"),
        (whole, part) if part % 10 == 0 => format!("{whole}.{} %", part / 10),
        (whole, part) => format!("{whole}.{part:02} %"),
    }
}

#[cfg(test)]
mod tests {
    use xds_server::api::types::Missing;

    use super::*;

    #[test]
    fn shares_and_times_read_well() {
        let shares = [0, 1, 10, 1_250, 10_000].map(percent);
        assert_eq!(shares, ["0 %", "0.01 %", "0.1 %", "12.5 %", "100 %"]);
        let times = [0.421, 12.3, 3_100.0, 125_000.0, 7_260_000.0].map(millis);
        assert_eq!(times, ["0.42 ms", "12 ms", "3.1 s", "2 m 5 s", "2 h 1 m"]);
    }

    #[test]
    fn a_wait_in_vain_names_who_has_not() {
        let missing = vec![
            Missing { node: "edge-1".to_owned(), revision: 3, nack: None },
            Missing { node: "edge-2".to_owned(), revision: 3, nack: Some("port taken".to_owned()) },
        ];
        let applied = Applied { complete: false, proxies: 5, ms: 2_000.0, missing };
        let answer = WriteAnswer { revision: 4, dry_run: false, changes: Vec::new(), applied: Some(applied) };
        assert_eq!(revision(&answer), "revision 4, applied by 3 of 5 connected proxies in 2.0 s");
        let error = applied_by_all(&answer).unwrap_err().to_string();
        assert!(error.contains("edge-1 is still at revision 3; edge-2 refused it: port taken"), "{error}");
    }
}
