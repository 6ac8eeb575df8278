//! Min, median, p99 and max of many measurements.

use serde::Serialize;

#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    pub count: usize,
    pub min_ms: f64,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

impl Figures {
    /// Of measurements in ns.
    ///
    /// # Panics
    /// Without a measurement.
    pub fn of(mut ns: Vec<u64>) -> Self {
        assert!(!ns.is_empty(), "nothing was measured");
        ns.sort_unstable();
        let at = |share: f64| ns[((ns.len() - 1) as f64 * share).round() as usize] as f64 / 1e6;
        Self { count: ns.len(), min_ms: at(0.0), p50_ms: at(0.5), p99_ms: at(0.99), max_ms: at(1.0) }
    }

    /// As a row of a table.
    pub fn row(&self) -> String {
        let Self { count, min_ms, p50_ms, p99_ms, max_ms } = self;
        format!("{count:>6} {min_ms:>9.3} {p50_ms:>9.3} {p99_ms:>9.3} {max_ms:>9.3}")
    }
}
