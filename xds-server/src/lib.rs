//! The control plane of Sluicegate.
pub mod api {
    //! The HTTP API.
    pub mod types;
}
