//! How many streams a client may cut before their answer. Each one made work for nothing; a flood of
//! them is an attack (CVE-2023-44487), and a few are what a search field sends while somebody types.

/// So many at once: a page with all its pictures is left.
const MOST: u32 = 200;
/// After so long, in µs, one more is allowed: ten a second are faster than anybody types, and no load.
const REFILL: u64 = 100_000;

/// A bucket of tokens, full at first.
#[derive(Debug)]
pub(super) struct Cancels {
    left: u32,
    /// Up to when time has filled it, in µs.
    filled: u64,
}

impl Cancels {
    /// At `now`, in µs.
    pub(super) fn new(now: u64) -> Self {
        Self { left: MOST, filled: now }
    }

    /// A stream was answered, which makes up for one that was cut.
    pub(super) fn answered(&mut self) {
        self.left = (self.left + 1).min(MOST);
    }

    /// A stream was cut at `now`, in µs. Whether that is too many.
    #[must_use]
    pub(super) fn cancelled(&mut self, now: u64) -> bool {
        let tokens = now.saturating_sub(self.filled) / REFILL;
        self.filled += tokens * REFILL;
        let left = u64::from(self.left).saturating_add(tokens).min(u64::from(MOST));
        self.left = u32::try_from(left).unwrap_or(MOST).saturating_sub(1);
        self.left == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_flood_is_too_many_at_once_and_who_types_may_go_on_for_hours() {
        let start = 77 * SECOND;
        let mut flood = Cancels::new(start);
        let taken = (0..1_000).find(|i| flood.cancelled(start + i * 100)).unwrap();
        assert!(taken <= u64::from(MOST), "{taken}");

        let mut typing = Cancels::new(start);
        let mut now = start;
        for i in 0..100_000 {
            // Eight letters a second, with a rest between words.
            now += if i % 10 == 0 { SECOND } else { SECOND / 8 };
            assert!(!typing.cancelled(now), "{i}");
        }
    }

    #[test]
    fn a_slower_flood_is_too_many_in_the_end_and_time_saves_up_no_more_than_the_bucket_holds() {
        let mut cancels = Cancels::new(0);
        let mut now = 3_600 * SECOND;
        for i in 1..MOST {
            assert!(!cancels.cancelled(now), "{i}");
        }
        assert!(cancels.cancelled(now));
        // At twice the pace of the refill it lasts as long again as the bucket is deep.
        let mut cancels = Cancels::new(now);
        let taken = (1..1_000).find(|_| {
            now += REFILL / 2;
            cancels.cancelled(now)
        });
        assert!(taken.is_some_and(|taken| taken <= 2 * MOST), "{taken:?}");
    }

    #[test]
    fn answers_make_up_for_cuts() {
        let mut cancels = Cancels::new(0);
        for i in 0..10_000 {
            cancels.answered();
            assert!(!cancels.cancelled(0), "{i}");
        }
    }
}
