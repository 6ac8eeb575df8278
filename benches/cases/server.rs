//! What one endpoint change costs the xDS server.

use std::{sync::Arc, time::Instant};

use config::{ClusterName, Endpoint, Health, Lease};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use xds_server::{
    kind::{Client, Kind, View},
    registry::{
        compile::compile,
        world::World,
        write::{Write, perform},
    },
    resource::Resource,
    snapshot::Snapshot,
    subscription::{Session, Variant},
};

use super::Case;

pub(super) fn cases() -> Vec<Case> {
    vec![
        change("10 endpoints", 1, 10),
        change("1000 endpoints", 1, 1_000),
        change("10000 endpoints", 1, 10_000),
        change("1000 services of 10 endpoints", 1_000, 10),
        stream("10 clusters", 10),
        stream("10000 clusters", 10_000),
    ]
}

fn endpoint(i: u32) -> Endpoint {
    Endpoint {
        id: format!("e{i}").parse().expect("letters and digits are an id"),
        address: ([127, 0, (i >> 15) as u8, 1], 1 + (i & 0x7fff) as u16).into(),
        weight: 1,
        zone: None,
        health: Health::Ready,
        lease: Lease::Permanent,
    }
}

/// One endpoint comes or goes in a version of so many: the write, its resources, the snapshot.
fn change(id: &'static str, services: u32, endpoints: u32) -> Case {
    Case::new("change", id, move || {
        let text = (0..services).map(|i| format!("---\nkind: Service\nname: s{i}\nversions: {{v1: {{}}}}\n"));
        let text = text.collect::<Vec<_>>().concat();
        let documents = config::manifest::parse("services.yaml", &text).expect("a manifest");
        let mut world = World::default();
        perform(&mut world, &Write::Apply(documents), 1).expect("a manifest that fits");
        let mut snapshot = Snapshot::empty(0);
        let cluster = |i: u32| -> ClusterName { format!("s{i}/v1").parse().expect("a name") };
        for i in 0..services * endpoints {
            let put = Write::PutEndpoint { cluster: cluster(i % services), endpoint: endpoint(i) };
            let effect = perform(&mut world, &put, 2).expect("a version that exists");
            snapshot = snapshot.with(snapshot.revision() + 1, compile(&world, &effect.touched));
        }
        let mut there = false;
        move || {
            let (cluster, endpoint) = (cluster(0), endpoint(services * endpoints));
            let write = if there {
                Write::RemoveEndpoint { cluster, id: endpoint.id }
            } else {
                Write::PutEndpoint { cluster, endpoint }
            };
            there = !there;
            let mut copy = world.clone();
            let effect = perform(&mut copy, &write, 3).expect("a version that exists");
            snapshot = snapshot.with(snapshot.revision() + 1, compile(&copy, &effect.touched));
            world = copy;
        }
    })
}

/// What one stream does for it: take in the snapshot, respond, take in the acknowledgement.
fn stream(id: &'static str, clusters: usize) -> Case {
    Case::new("stream", id, move || {
        let resource = |i: usize, content: u64| {
            let name = format!("s{i}/v1");
            let resource = Resource::new(Kind::Cluster, name.as_str(), &content.to_be_bytes());
            ((Kind::Cluster, View::Common), name.as_str().into(), Some(Arc::new(resource)))
        };
        let mut snapshot = Snapshot::empty(0).with(1, (0..clusters).map(|i| resource(i, 0)));
        let mut session = Session::new(Variant::Incremental, Client::default(), snapshot.clone());
        let mut request = DeltaDiscoveryRequest::default();
        let now = Instant::now();
        move || {
            let _ = session.on_incremental(&Kind::Cluster, std::mem::take(&mut request), now);
            while let Some(response) = session.poll(now) {
                request.response_nonce = response.nonce.to_string();
            }
            snapshot = snapshot.with(snapshot.revision() + 1, [resource(0, snapshot.revision())]);
            session.on_snapshot(snapshot.clone());
        }
    })
}
