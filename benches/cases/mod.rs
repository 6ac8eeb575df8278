//! What is measured: one list for wall time (`hot`) and for instruction counts (`instructions`).
//!
//! - [`proxy`]: the request path, and the publication of a change.
//! - [`server`]: what one change costs the xDS server.

mod proxy;
mod server;

/// One call, ready to be repeated.
pub(crate) type Call = Box<dyn FnMut()>;

/// A piece at one size.
pub(crate) struct Case {
    /// What is measured.
    pub(crate) group: &'static str,
    /// Its kind and its size.
    pub(crate) id: &'static str,
    make: Box<dyn Fn() -> Call>,
}

impl Case {
    fn new<F: FnMut() + 'static>(
        group: &'static str,
        id: &'static str,
        make: impl Fn() -> F + 'static,
    ) -> Self {
        Self { group, id, make: Box::new(move || Box::new(make())) }
    }

    /// Prepares it. What that costs belongs to no call.
    pub(crate) fn make(&self) -> Call {
        (self.make)()
    }

    /// Both names.
    #[allow(dead_code, reason = "not every benchmark asks")]
    pub(crate) fn name(&self) -> String {
        format!("{}/{}", self.group, self.id)
    }
}

/// All of them, in groups.
pub(crate) fn all() -> Vec<Case> {
    proxy::cases().into_iter().chain(server::cases()).collect()
}
