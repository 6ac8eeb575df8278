//! What runs as a process of its own: started by the measurement as a hidden subcommand of itself.

pub mod handshakes;
pub mod idle;
pub mod load;
pub mod relay;
pub mod upstream;
