//! The types of messages that are known: those of the version of Envoy that `envoy-types` has.

use std::sync::LazyLock;

use prost_reflect::{DescriptorPool, MessageDescriptor};

use super::{Fault, short};

/// Made by `examples/descriptors.rs`.
static DESCRIPTORS: &[u8] = include_bytes!("descriptors.bin");

/// Read when they are first needed: most servers are never sent JSON.
static POOL: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(DESCRIPTORS).expect("its maker reads it too, and a test reads it as it is")
});

/// The type that a type URL names: what comes after its last slash.
pub(super) fn of(type_url: &str) -> Result<MessageDescriptor, Fault> {
    let name = type_url.rsplit_once('/').map(|(_, name)| name);
    name.and_then(|name| POOL.get_message_by_name(name)).ok_or_else(|| {
        Fault::new(format!(
            "`{}` is no type that this server knows; json is for types of the Envoy API, send value instead",
            short(type_url)
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kind::Kind;

    #[test]
    fn descriptors_are_of_the_version_of_envoy_types_that_is_used() {
        let lock = include_str!("../../../Cargo.lock");
        let (_, after) = lock.split_once("name = \"envoy-types\"\nversion = \"").unwrap();
        let (version, _) = after.split_once('"').unwrap();
        let mark = format!("envoy-types-{version}");
        assert!(
            POOL.get_file_by_name(&mark).is_some(),
            "descriptors.bin is not of {mark}: cargo run -p xds-server --example descriptors"
        );
    }

    #[test]
    fn every_kind_of_resource_and_common_extensions_are_known() {
        for kind in Kind::KNOWN {
            assert!(of(kind.type_url()).is_ok(), "{kind}");
        }
        for name in [
            "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "envoy.extensions.filters.http.router.v3.Router",
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "envoy.extensions.access_loggers.file.v3.FileAccessLog",
            "google.protobuf.Struct",
            "google.protobuf.Empty",
            "xds.type.v3.TypedStruct",
            "udpa.type.v1.TypedStruct",
        ] {
            assert!(of(&format!("type.googleapis.com/{name}")).is_ok(), "{name}");
        }
        for unknown in ["envoy.config.cluster.v3.Cluster", "type.googleapis.com/my.Own", "a/", ""] {
            let fault = of(unknown).unwrap_err();
            assert!(fault.reason.contains("send value instead"), "{fault}");
        }
    }
}
