//! What one endpoint change costs the xDS server.

use std::{sync::Arc, time::Instant};

use config::{ClusterName, Endpoint, Health, Lease, xds::ResourceType};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use xds_server::{
    snapshot::{Resource, Snapshot},
    subscription::{Session, Variant},
};

use super::Case;

pub(super) fn cases() -> Vec<Case> {
    vec![
        snapshot("10 others, 10 endpoints", 10, 10),
        snapshot("10000 others, 10 endpoints", 10_000, 10),
        snapshot("10 others, 1000 endpoints", 10, 1_000),
        stream("10 clusters", 10),
        stream("10000 clusters", 10_000),
    ]
}

fn assignment(cluster: &ClusterName, endpoints: u16) -> Vec<u8> {
    let endpoints: Vec<Endpoint> = (1..=endpoints)
        .map(|port| Endpoint {
            id: format!("e{port}").parse().expect("letters and digits are an id"),
            address: ([127, 0, 0, 1], port).into(),
            weight: 1,
            zone: None,
            health: Health::Ready,
            lease: Lease::Permanent,
        })
        .collect();
    config::xds::assignment::encode(cluster, &endpoints).encode_to_vec()
}

/// Encode the assignment, make the snapshot.
fn snapshot(id: &'static str, others: usize, endpoints: u16) -> Case {
    Case::new("snapshot", id, move || {
        let cluster: ClusterName = "checkout/v1".parse().expect("a name");
        let all = (0..others).map(|i| {
            let name = format!("s{i}/v1");
            let resource = Resource::new(ResourceType::LoadAssignment, &name, name.as_bytes());
            (ResourceType::LoadAssignment, name.as_str().into(), Some(Arc::new(resource)))
        });
        let (mut snapshot, mut extra) = (Snapshot::empty(0).with(1, all), 0);
        move || {
            extra = 1 - extra;
            let value = assignment(&cluster, endpoints + extra);
            let resource = Resource::new(ResourceType::LoadAssignment, "checkout/v1", &value);
            let update = (ResourceType::LoadAssignment, "checkout/v1".into(), Some(Arc::new(resource)));
            snapshot = snapshot.with(snapshot.revision() + 1, [update]);
        }
    })
}

/// What one stream does for it: take in the snapshot, respond, take in the acknowledgement.
fn stream(id: &'static str, clusters: usize) -> Case {
    Case::new("stream", id, move || {
        let resource = |i: usize, content: u64| {
            let name = format!("s{i}/v1");
            let resource = Resource::new(ResourceType::Cluster, &name, &content.to_be_bytes());
            (ResourceType::Cluster, name.as_str().into(), Some(Arc::new(resource)))
        };
        let mut snapshot = Snapshot::empty(0).with(1, (0..clusters).map(|i| resource(i, 0)));
        let mut session = Session::new(Variant::Incremental, snapshot.clone());
        let mut request = DeltaDiscoveryRequest::default();
        let now = Instant::now();
        move || {
            let _ = session.on_incremental(ResourceType::Cluster, std::mem::take(&mut request), now);
            while let Some(response) = session.poll(now) {
                request.response_nonce = response.nonce.to_string();
            }
            snapshot = snapshot.with(snapshot.revision() + 1, [resource(0, snapshot.revision())]);
            session.on_snapshot(snapshot.clone());
        }
    })
}
