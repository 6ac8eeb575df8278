//! What is summed up. Sums stop at the largest number there is; they never go back.

use std::collections::BTreeMap;

/// How many metrics one row keeps apart; more are refused.
pub(super) const MAX_METRICS: usize = 64;

/// Requests since a row began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    /// Given to an endpoint, retries included.
    pub(super) issued: u64,
    /// Over, and not because of an error of the endpoint.
    pub(super) successful: u64,
    /// Failed by the endpoint: 5xx, no connection, or no whole answer.
    pub(super) errors: u64,
    /// Deliberately not sent.
    pub(super) dropped: u64,
}

impl Counts {
    /// Adds what happened since.
    pub(super) fn add(&mut self, more: Self) {
        self.issued = self.issued.saturating_add(more.issued);
        self.successful = self.successful.saturating_add(more.successful);
        self.errors = self.errors.saturating_add(more.errors);
        self.dropped = self.dropped.saturating_add(more.dropped);
    }

    /// Whether nothing happened.
    pub(super) fn is_zero(self) -> bool {
        self == Self::default()
    }
}

/// A metric that endpoints report with their responses (ORCA).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Metric {
    /// Requests that came back with it.
    pub(super) finished: u64,
    /// The sum of its values. Finite, and not below 0.
    pub(super) total: f64,
}

impl Metric {
    /// Its average over all requests that came back with it; 0 without any.
    pub(super) fn average(self) -> f64 {
        if self.finished == 0 { 0.0 } else { self.total / self.finished as f64 }
    }
}

/// Metrics by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Metrics(BTreeMap<Box<str>, Metric>);

impl Metrics {
    /// Adds to the metric called `name`; `false` if it is not kept, for [`MAX_METRICS`] others are.
    pub(super) fn add(&mut self, name: &str, more: Metric) -> bool {
        if !self.0.contains_key(name) && self.0.len() >= MAX_METRICS {
            return false;
        }
        let metric = match self.0.get_mut(name) {
            Some(metric) => metric,
            None => self.0.entry(name.into()).or_default(),
        };
        metric.finished = metric.finished.saturating_add(more.finished);
        metric.total = (metric.total + more.total).min(f64::MAX);
        true
    }

    /// Every metric by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, Metric)> {
        self.0.iter().map(|(name, metric)| (&**name, *metric))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stop_at_the_largest_number() {
        let much = Counts { issued: u64::MAX - 1, successful: u64::MAX, errors: 1, dropped: 0 };
        let mut counts = much;
        counts.add(much);
        assert_eq!((counts.issued, counts.successful, counts.errors), (u64::MAX, u64::MAX, 2));
        let mut metrics = Metrics::default();
        for _ in 0..2 {
            assert!(metrics.add("cpu", Metric { finished: u64::MAX, total: f64::MAX }));
        }
        let metric = metrics.iter().next().unwrap().1;
        assert_eq!((metric.finished, metric.total.to_bits()), (u64::MAX, f64::MAX.to_bits()));
    }

    #[test]
    fn metrics_beyond_the_bound_are_refused_and_those_before_go_on() {
        let mut metrics = Metrics::default();
        let one = Metric { finished: 1, total: 2.0 };
        for i in 0..MAX_METRICS {
            assert!(metrics.add(&i.to_string(), one));
        }
        assert!(!metrics.add("one more", one));
        assert!(metrics.add("0", one));
        let zero = metrics.iter().find(|(name, _)| *name == "0").unwrap().1;
        assert_eq!((metrics.iter().count(), zero.finished, zero.average()), (MAX_METRICS, 2, 2.0));
    }
}
