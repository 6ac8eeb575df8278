//! How long a client has to close its connection after the last stream. Whatever it still says, pings
//! for one, gives it no more time.

use std::time::{Duration, Instant};

use super::super::exchange::SLOWNESS;

/// How long a client may take to say good-bye once it has everything.
const GOODBYE: Duration = Duration::from_secs(5);

/// Since the last stream ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Farewell {
    began: Instant,
    /// Since when the client is owed nothing.
    settled: Option<Instant>,
}

impl Farewell {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, settled: None }
    }

    /// Notes whether bytes still wait for the client. Whether that is news.
    pub(super) fn note(&mut self, owes: bool, now: Instant) -> bool {
        if owes == self.settled.is_none() {
            return false;
        }
        self.settled = (!owes).then_some(now);
        true
    }

    /// By when it has to have closed.
    pub(super) fn by(&self) -> Instant {
        let most = self.began + SLOWNESS;
        self.settled.map_or(most, |settled| most.min(settled + GOODBYE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_owed_has_its_time_and_nothing_else_gets_any() {
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut farewell = Farewell::new(began);
        assert!(!farewell.note(true, began) && farewell.by() == after(60));
        assert!(farewell.note(false, after(1)) && farewell.by() == after(6));
        assert!(!farewell.note(false, after(4)) && farewell.by() == after(6), "it is told nothing new");
        assert!(farewell.note(true, after(5)) && farewell.by() == after(60), "there was more to send");
        assert!(farewell.note(false, after(58)) && farewell.by() == after(60));
    }
}
