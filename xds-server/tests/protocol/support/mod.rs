//! What the themes share.
//!
//! - [`world`]: a whole server and its API.
//! - [`client`]: a client in any of the four variants.
//! - `quiet`: that nothing comes, shown by what comes later in order.
//! - [`raw`]: streams of bytes that need not be messages.

pub mod client;
mod quiet;
pub mod raw;
pub mod world;

use std::time::Duration;

pub use client::{Client, Mode, Received};
pub use world::World;

/// How long anything may take that has to come.
pub const SOON: Duration = Duration::from_secs(10);

pub const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
pub const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
pub const LEDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";
pub const VHDS: &str = "type.googleapis.com/envoy.config.route.v3.VirtualHost";

/// Runs a test in all four variants.
macro_rules! in_every_variant {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use super::super::support::Mode;

            #[tokio::test]
            async fn incremental_aggregated() {
                super::$test(Mode::INCREMENTAL).await;
            }

            #[tokio::test]
            async fn state_of_the_world_aggregated() {
                super::$test(Mode::STATE_OF_THE_WORLD).await;
            }

            #[tokio::test]
            async fn incremental_a_stream_a_type() {
                super::$test(Mode::INCREMENTAL.a_stream_a_type()).await;
            }

            #[tokio::test]
            async fn state_of_the_world_a_stream_a_type() {
                super::$test(Mode::STATE_OF_THE_WORLD.a_stream_a_type()).await;
            }
        }
    )+};
}

/// Runs a test over one aggregated stream, incremental and state of the world.
macro_rules! in_both_aggregated {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use super::super::support::Mode;

            #[tokio::test]
            async fn incremental() {
                super::$test(Mode::INCREMENTAL).await;
            }

            #[tokio::test]
            async fn state_of_the_world() {
                super::$test(Mode::STATE_OF_THE_WORLD).await;
            }
        }
    )+};
}

/// Runs a test of one variant, aggregated and over a stream a type.
macro_rules! aggregated_and_a_stream_a_type {
    ($mode:ident: $($test:ident),+ $(,)?) => {$(
        mod $test {
            use super::super::support::Mode;

            #[tokio::test]
            async fn aggregated() {
                super::$test(Mode::$mode).await;
            }

            #[tokio::test]
            async fn a_stream_a_type() {
                super::$test(Mode::$mode.a_stream_a_type()).await;
            }
        }
    )+};
}
