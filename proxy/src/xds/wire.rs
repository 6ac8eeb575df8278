//! The messages of the incremental variant (xDS protocol, "Incremental xDS").

use std::collections::HashMap;

use config::xds::ResourceType;
use envoy_types::pb::{envoy::service::discovery::v3::DeltaDiscoveryRequest, google::rpc};

/// `INVALID_ARGUMENT` of google.rpc.Code.
const INVALID_ARGUMENT: i32 = 3;
/// Bound on the reason of a NACK, in bytes: gRPC peers limit what they accept, people what they read.
const MAX_REASON: usize = 4_096;

/// Everything before it is applied.
pub(super) fn ack(kind: ResourceType, nonce: String) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        response_nonce: nonce,
        ..Default::default()
    }
}

/// The response with `nonce` was refused, in whole or in part, because of `reason`.
pub(super) fn nack(kind: ResourceType, nonce: String, mut reason: String) -> DeltaDiscoveryRequest {
    if reason.len() > MAX_REASON {
        let cut = (0..=MAX_REASON).rev().find(|&i| reason.is_char_boundary(i)).unwrap_or(0);
        reason.truncate(cut);
        reason.push('…');
    }
    DeltaDiscoveryRequest {
        error_detail: Some(rpc::Status { code: INVALID_ARGUMENT, message: reason, details: vec![] }),
        ..ack(kind, nonce)
    }
}

/// A change of subscription; carries no nonce, so it acknowledges nothing.
pub(super) fn subscribe(
    kind: ResourceType,
    subscribe: Vec<String>,
    unsubscribe: Vec<String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: kind.type_url().to_owned(),
        resource_names_subscribe: subscribe,
        resource_names_unsubscribe: unsubscribe,
        ..Default::default()
    }
}

/// The first request of a type on a stream. No names means all, for types that have a legacy
/// wildcard; `held` are the versions of what need not be sent again.
pub(super) fn first(
    kind: ResourceType,
    names: Vec<String>,
    held: HashMap<String, String>,
) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { initial_resource_versions: held, ..subscribe(kind, names, vec![]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let nack = nack(ResourceType::Cluster, "1".into(), "é".repeat(5_000));
        let message = nack.error_detail.unwrap().message;
        assert!(message.len() <= MAX_REASON + 3 && message.ends_with('…'));
    }
}
