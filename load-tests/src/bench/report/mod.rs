//! What was measured, for people, for programs, as a picture, and against the targets.

mod picture;
mod row;
mod table;
mod targets;

pub use picture::picture;
pub use row::{Report, Row, Spread};
pub use table::table;
pub use targets::{Verdict, verdicts};
