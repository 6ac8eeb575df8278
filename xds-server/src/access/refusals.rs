//! Counts every refusal, and logs within a bound: whoever knocks a million times fills no disk.

use std::{
    fmt::Display,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};

/// How many refusals a second are logged; the others are counted.
const LINES: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// What was wrong with who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// Nothing was shown.
    Nobody,
    /// The token is none, or unknown.
    Token,
    /// The certificate has no role.
    Certificate,
    /// TLS did not come about: no certificate, a wrong one, no TLS at all, or too slow.
    Handshake,
    /// Known, and not allowed.
    Role,
    /// A client of xDS may not be the node it says it is.
    Node,
    /// A page of another site.
    Page,
}

impl By {
    /// Each with the word it is counted as.
    const ALL: [(&str, Self); 7] = [
        ("nobody", Self::Nobody),
        ("token", Self::Token),
        ("certificate", Self::Certificate),
        ("handshake", Self::Handshake),
        ("role", Self::Role),
        ("node", Self::Node),
        ("page", Self::Page),
    ];

    fn label(self) -> Refused {
        let word = Self::ALL.iter().find(|(_, by)| *by == self).map_or("", |(word, _)| word);
        Refused { by: word }
    }
}

/// The label of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refused {
    /// What was wrong, in one of a few words.
    pub by: &'static str,
}

/// Refusals by what was wrong.
pub(super) struct Refusals {
    counted: Family<Refused, Counter>,
    log: Mutex<Log>,
}

struct Log {
    since: Instant,
    lines: u32,
    left_out: u64,
}

impl Refusals {
    pub(super) fn new(counted: &Family<Refused, Counter>) -> Self {
        for (_, by) in By::ALL {
            // Zero is worth showing: an alert needs the series before its first step.
            drop(counted.get_or_create(&by.label()));
        }
        Self {
            counted: counted.clone(),
            log: Mutex::new(Log { since: Instant::now(), lines: 0, left_out: 0 }),
        }
    }

    /// Counts a refusal and logs it, unless there were many this second.
    pub(super) fn note(&self, by: By, what: impl Display) {
        let label = by.label();
        self.counted.get_or_create(&label).inc();
        let turn = self.log.lock().unwrap_or_else(PoisonError::into_inner).turn(Instant::now());
        let Some(left_out) = turn else { return };
        if left_out > 0 {
            tracing::warn!("{left_out} more refusals were counted and not logged");
        }
        tracing::warn!(by = label.by, "refused {what}");
    }
}

impl Log {
    /// Whether this one is logged, and how many before it were not.
    fn turn(&mut self, now: Instant) -> Option<u64> {
        if now.saturating_duration_since(self.since) >= SECOND {
            (self.since, self.lines) = (now, 0);
        }
        if self.lines >= LINES {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_has_ten_lines_and_the_next_says_how_many_it_left_out() {
        let began = Instant::now();
        let mut log = Log { since: began, lines: 0, left_out: 0 };
        let mut said = (0..1_000).filter(|_| log.turn(began).is_some()).count();
        assert_eq!(said, 10);
        assert_eq!(log.turn(began + SECOND), Some(990));
        said = (0..1_000).filter(|_| log.turn(began + SECOND) == Some(0)).count();
        assert_eq!(said, 9);
    }

    #[test]
    fn every_refusal_is_counted_and_its_labels_are_known_beforehand() {
        let counted = Family::default();
        let refusals = Refusals::new(&counted);
        for _ in 0..100 {
            refusals.note(By::Token, "x");
        }
        assert_eq!(counted.get_or_create(&By::Token.label()).get(), 100);
        assert_eq!(counted.get_or_create(&By::Node.label()).get(), 0);
    }
}
