//! One run of h2load, and what became of its requests.

use tokio::process::Command;

use super::peer;

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) done: u64,
    /// Answered with 2xx.
    pub(crate) good: u64,
    /// Failed, errored or timed out.
    pub(crate) lost: u64,
    /// Bytes of response bodies.
    pub(crate) data: u64,
    /// All that it said.
    pub(crate) text: String,
}

/// Runs h2load with these arguments.
pub(crate) async fn h2load(arguments: &[&str]) -> Outcome {
    let mut command = Command::new(peer::find("h2load"));
    command.args(arguments);
    let said = peer::run(command).await;
    let text = format!("{}{}", said.text(), said.err);
    assert_eq!(said.code, 0, "{text}");
    Outcome {
        done: number(&text, "requests: ", " done"),
        good: number(&text, "status codes: ", " 2xx"),
        lost: number(&text, "requests: ", " failed")
            + number(&text, "requests: ", " errored")
            + number(&text, "requests: ", " timeout"),
        data: number(&text, "traffic: ", ") data"),
        text,
    }
}

/// The number before `unit` on the line that starts with or contains `line`.
fn number(text: &str, line: &str, unit: &str) -> u64 {
    let before =
        text.lines().find(|l| l.contains(line)).and_then(|l| l.split(unit).next()).unwrap_or_default();
    let digits = before.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}
