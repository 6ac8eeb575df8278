//! Why an attempt ended without a response, as either engine finds it and the policy answers it.

use super::policy::{Journey, Refusal};

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The endpoint sent no valid response.
    Broken,
    /// The endpoint was silent.
    TimedOut,
    /// The client's body is no valid body.
    BadBody,
    /// The client's body did not come.
    SlowBody,
}

impl Fault {
    /// What the client is told. A silent endpoint is counted.
    pub(crate) fn refusal(self, journey: &Journey, gateway: &std::sync::Arc<str>) -> Refusal {
        match self {
            Self::Broken => journey.broken(),
            Self::TimedOut => journey.timed_out(gateway),
            Self::BadBody => Refusal::BadRequest,
            Self::SlowBody => Refusal::SlowBody,
        }
    }
}
