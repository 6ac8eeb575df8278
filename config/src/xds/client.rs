//! Whom a resource is for: the same names mean other resources to a gRPC client than to a proxy.

/// What kind of client a stream belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ClientKind {
    /// A gRPC client: its listeners and routes are those of services
    /// ([`api_listener`](super::api_listener)), its clusters those of
    /// [`encode_for_grpc`](super::cluster::encode_for_grpc), and it never means all of a type.
    Grpc,
    /// A proxy, or whatever else.
    #[default]
    Other,
}

/// The kind of the client whose node says that `user_agent_name`
/// (envoy/config/core/v3/base.proto, `Node`).
pub fn client_kind(user_agent_name: &str) -> ClientKind {
    // A word of its own, so that `gRPCurl` or the like is no client of this kind.
    match user_agent_name.strip_prefix("gRPC") {
        Some(rest) if rest.is_empty() || rest.starts_with(' ') => ClientKind::Grpc,
        _ => ClientKind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_clients_are_known_by_their_user_agent() {
        let grpc = [
            // C core, and Python, C++, Ruby and PHP on it: the platform follows.
            "gRPC C-core linux",
            "gRPC C-core windows",
            "gRPC C-core osx",
            // grpc-go, grpc-java, @grpc/grpc-js-xds.
            "gRPC Go",
            "gRPC Java",
            "gRPC Node Pure JS",
        ];
        for name in grpc {
            assert_eq!(client_kind(name), ClientKind::Grpc, "{name}");
        }
        for name in ["", "envoy", "sluicegate", "gRPCurl", "grpc", "my gRPC Go"] {
            assert_eq!(client_kind(name), ClientKind::Other, "{name}");
        }
    }
}
