//! Who a client says it is, and what it can do (`envoy.config.core.v3.Node`).

use std::net::SocketAddr;

use config::xds::{ClientKind, client_kind};
use envoy_types::pb::{
    envoy::config::core::v3::{Node, node::UserAgentVersionType},
    google::protobuf::value::Kind,
};

use crate::{fleet::Identity, kind::Client, subscription::Variant};

/// How clients say that they follow endpoints one by one: a client feature, or metadata that is true.
const COLLECTIONS: &str = "sluicegate.leds";
/// The features of clients that know what a TTL is ("TTL", "`SotW` TTL").
const TTL: &str = "xds.config.supports-resource-ttl";
const TTL_IN_STATE_OF_THE_WORLD: &str = "xds.config.supports-resource-in-sotw";

/// Who a client says it is, in bounded length.
pub(super) fn identity(node: &Node, variant: Variant, peer: Option<SocketAddr>) -> Identity {
    let short = |text: &str| text.chars().take(128).collect::<String>();
    let version = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(version)) => version.clone(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    };
    let id = if node.id.is_empty() { "(no node id)" } else { &node.id };
    Identity {
        node: short(id),
        cluster: short(&node.cluster),
        agent: short(format!("{} {version}", node.user_agent_name).trim()),
        variant: match variant {
            Variant::Incremental => "incremental",
            Variant::StateOfTheWorld => "state-of-the-world",
        },
        peer,
    }
}

/// What a client is, as far as it matters for what it is sent.
pub(super) fn client(node: &Node, variant: Variant) -> Client {
    let has = |feature: &str| node.client_features.iter().any(|f| f == feature);
    let says = |key: &str| {
        let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
        matches!(value.and_then(|value| value.kind.as_ref()), Some(Kind::BoolValue(true)))
    };
    let incremental = variant == Variant::Incremental;
    Client {
        grpc: client_kind(&node.user_agent_name) == ClientKind::Grpc,
        // The protocol of collections is incremental only.
        collections: incremental && (has(COLLECTIONS) || says(COLLECTIONS)),
        ttl: has(TTL) && (incremental || has(TTL_IN_STATE_OF_THE_WORLD)),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use envoy_types::pb::google::protobuf::{Struct, Value};

    use super::*;

    #[test]
    fn a_client_is_what_its_node_says() {
        let mut node = Node { user_agent_name: "gRPC Go".to_owned(), ..Node::default() };
        assert!(client(&node, Variant::StateOfTheWorld).grpc);
        node.user_agent_name = "envoy".to_owned();
        assert_eq!(client(&node, Variant::Incremental), Client::default());
        node.client_features = vec![TTL.to_owned()];
        assert!(client(&node, Variant::Incremental).ttl);
        assert!(!client(&node, Variant::StateOfTheWorld).ttl);
        let yes = Value { kind: Some(Kind::BoolValue(true)) };
        node.metadata = Some(Struct { fields: HashMap::from([(COLLECTIONS.to_owned(), yes)]) });
        assert!(client(&node, Variant::Incremental).collections);
        assert!(!client(&node, Variant::StateOfTheWorld).collections);
    }
}
