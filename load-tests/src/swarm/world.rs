//! Services and endpoints: what the server is to know.

use std::fmt::Write;

use crate::{api::Api, sluicegate::Server};

/// Services of one request, so that a manifest stays below what the server takes.
const SERVICES: usize = 200;
const ENDPOINTS: usize = 20_000;

/// A server with services `s0`, `s1`, …, each with as many endpoints of `v1` as `sizes` says, each
/// reached over a host of its own through one gateway.
pub(super) async fn start(sizes: &[usize]) -> Server {
    let server = Server::start().await;
    server.api.apply("kind: Gateway\nname: edge\nlisten: 127.0.0.1:8080\n").await.ok();
    let (mut manifest, mut services, mut endpoints) = (String::new(), 0, 0);
    for (number, size) in sizes.iter().enumerate() {
        service(&mut manifest, number, *size);
        (services, endpoints) = (services + 1, endpoints + size);
        if services == SERVICES || endpoints >= ENDPOINTS {
            apply(&server.api, &mut manifest).await;
            (services, endpoints) = (0, 0);
        }
    }
    apply(&server.api, &mut manifest).await;
    server
}

async fn apply(api: &Api, manifest: &mut String) {
    let manifest = std::mem::take(manifest);
    if !manifest.is_empty() {
        api.apply(&manifest).await.ok();
    }
}

fn service(manifest: &mut String, number: usize, size: usize) {
    let endpoints: Vec<String> =
        (0..size).map(|i| format!("\"192.168.{}.{}:8080\"", i >> 8, i & 0xff)).collect();
    if !manifest.is_empty() {
        manifest.push_str("---\n");
    }
    write!(
        manifest,
        "kind: Service\nname: s{number}\nversions: {{v1: {{endpoints: [{}]}}}}\n\
         ---\nkind: Route\nname: s{number}\ngateway: edge\nhosts: [s{number}.example.com]\nrules: [{{service: s{number}}}]\n",
        endpoints.join(", ")
    )
    .unwrap();
}
