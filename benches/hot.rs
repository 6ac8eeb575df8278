//! The hot pieces, each at several sizes, so that what grows with the mesh shows.
//!
//! `cargo bench --bench hot`; `-- --test` runs each once.

use std::{hint::black_box, sync::Arc, time::Instant};

use config::{ClusterName, Endpoint, Health, Lease, xds::ResourceType};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use envoy_types::pb::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use prost::Message;
use proxy::hot::HotPath;
use xds_server::{
    snapshot::{Resource, Snapshot},
    subscription::{Session, Variant},
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Table load, route, version draw, P2C pick, counted in and out; without moving bytes.
fn decide(c: &mut Criterion) {
    let mut group = c.benchmark_group("decide");
    for services in [1, 10, 1_000] {
        let hot = HotPath::new(services, 10);
        let path = format!("/s{}/cart", services - 1);
        let mut rng = fastrand::Rng::with_seed(1);
        group.bench_with_input(BenchmarkId::new("services", services), &path, |b, path| {
            b.iter(|| black_box(hot.decide(black_box(path), &mut rng)));
        });
    }
    group.finish();
}

/// One endpoint change in the proxy: its table with and without the tenth endpoint of one version.
fn publish(c: &mut Criterion) {
    let mut group = c.benchmark_group("publish");
    for services in [1, 100, 10_000] {
        let hot = HotPath::new(services, 10);
        let mut endpoints = 10;
        group.bench_function(BenchmarkId::new("services", services), |b| {
            b.iter(|| {
                endpoints = 19 - endpoints;
                hot.publish(0, endpoints);
            });
        });
    }
    group.finish();
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

/// One endpoint change in the server: encode the assignment, make the snapshot.
fn snapshot(c: &mut Criterion) {
    let mut group = c.benchmark_group("snapshot");
    let cluster: ClusterName = "checkout/v1".parse().expect("a name");
    for (others, endpoints) in [(10, 10), (10_000, 10), (10, 1_000)] {
        let all = (0..others).map(|i| {
            let name = format!("s{i}/v1");
            let resource = Resource::new(ResourceType::LoadAssignment, &name, name.as_bytes());
            (ResourceType::LoadAssignment, name.as_str().into(), Some(Arc::new(resource)))
        });
        let mut snapshot = Snapshot::empty(0).with(1, all);
        let mut extra = 0;
        let id = BenchmarkId::new("others, endpoints", format!("{others}, {endpoints}"));
        group.bench_function(id, |b| {
            b.iter(|| {
                extra = 1 - extra;
                let value = assignment(&cluster, endpoints + extra);
                let resource = Resource::new(ResourceType::LoadAssignment, "checkout/v1", &value);
                let update = (ResourceType::LoadAssignment, "checkout/v1".into(), Some(Arc::new(resource)));
                snapshot = snapshot.with(snapshot.revision() + 1, [update]);
            });
        });
    }
    group.finish();
}

/// What one stream does for one change: take in the snapshot, respond, take in the acknowledgement.
fn stream(c: &mut Criterion) {
    let mut group = c.benchmark_group("stream");
    for clusters in [10, 10_000] {
        let resource = |i: usize, content: u64| {
            let name = format!("s{i}/v1");
            let resource = Resource::new(ResourceType::Cluster, &name, &content.to_be_bytes());
            (ResourceType::Cluster, name.as_str().into(), Some(Arc::new(resource)))
        };
        let mut snapshot = Snapshot::empty(0).with(1, (0..clusters).map(|i| resource(i, 0)));
        let mut session = Session::new(Variant::Incremental, snapshot.clone());
        let mut request = DeltaDiscoveryRequest::default();
        let now = Instant::now();
        group.bench_function(BenchmarkId::new("clusters", clusters), |b| {
            b.iter(|| {
                let _ = session.on_incremental(ResourceType::Cluster, std::mem::take(&mut request), now);
                while let Some(response) = session.poll(now) {
                    request.response_nonce = response.nonce.to_string();
                }
                snapshot = snapshot.with(snapshot.revision() + 1, [resource(0, snapshot.revision())]);
                session.on_snapshot(snapshot.clone());
            });
        });
    }
    group.finish();
}

criterion_group!(benches, decide, publish, snapshot, stream);
criterion_main!(benches);
