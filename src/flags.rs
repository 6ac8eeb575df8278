//! Flags that several subcommands share, and how their values are read.

use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::{client::Client, connection::Connection};

/// Where the API is, and how to print what it says.
#[derive(Args, Clone, Debug)]
pub(crate) struct Api {
    #[command(flatten)]
    connection: Connection,
    /// How to print: a table for people, or the API's JSON
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

impl Api {
    /// A client of that API.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        self.connection.client()
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns.
    Table,
    /// The API's own answer.
    Json,
}

/// Whether a write waits for the proxies.
#[derive(Args, Clone, Debug)]
pub(crate) struct Wait {
    /// Wait until every connected proxy has applied it; fail if one has not in time
    #[arg(long)]
    wait: bool,
    /// How long to wait
    #[arg(long, value_parser = duration, default_value = "2s", value_name = "TIME", requires = "wait")]
    timeout: Duration,
}

impl Wait {
    /// How long to wait, if at all.
    pub(crate) fn limit(&self) -> Option<Duration> {
        self.wait.then_some(self.timeout)
    }
}

/// No wait of this program is longer than a day; a longer one is a slip of the keyboard.
const MAX_DURATION_MS: f64 = 24.0 * 3_600_000.0;

/// Reads `5ms`, `1.5s`, `2m` or `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let rule = || format!("`{text}` is not a time: write for example 500ms, 2s, 1.5s or 1m, at most 24h");
    let split = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(rule)?;
    let (number, unit) = text.split_at(split);
    let ms_per_unit = match unit {
        "ms" => 1.0,
        "s" => 1_000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        _ => return Err(rule()),
    };
    if !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return Err(rule());
    }
    let ms = number.parse::<f64>().map_err(|_| rule())? * ms_per_unit;
    if ms > MAX_DURATION_MS {
        return Err(rule());
    }
    Ok(Duration::from_secs_f64(ms / 1_000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_number_and_a_unit() {
        assert_eq!(duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for bad in ["", "5", "s", "-1s", "1e3s", "1 s", "1.2.3s", "25h", "infs", "5µs", "5S"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
