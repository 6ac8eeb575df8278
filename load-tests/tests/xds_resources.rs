//! Resources put as they are, in JSON, with real Envoy as their client.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::time::Duration;

use hyper::Method;
use load_tests::{
    peers::envoy::{Envoy, Variant},
    sluicegate::Server,
    traffic::Client,
    until,
};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(20);
const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// A listener whose routes come by their name.
fn listener() -> Value {
    const FILTERS: &str = "type.googleapis.com/envoy.extensions.filters";
    json!({
        "name": "own",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "filter_chains": [{"filters": [{
            "name": "http",
            "typed_config": {
                "@type": format!("{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager"),
                "stat_prefix": "own",
                "rds": {"route_config_name": "own", "config_source": {"ads": {}, "resource_api_version": "V3"}},
                "http_filters": [{
                    "name": "router",
                    "typed_config": {"@type": format!("{FILTERS}.http.router.v3.Router")},
                }],
            },
        }]}],
    })
}

/// Routes that answer by themselves.
fn routes(version: &str) -> Value {
    json!({
        "name": "own",
        "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
            "match": {"prefix": "/"},
            "direct_response": {"status": 200, "body": {"inline_string": version}},
            "response_headers_to_add": [{"header": {"key": "x-version", "value": version}}],
        }]}],
    })
}

async fn write(server: &Server, envoy: &Envoy, body: Value) {
    let path = "/v1/xds/resources?wait=applied&timeout=20s";
    let answer = server.api.json(Method::POST, path, &body).await.ok();
    assert_eq!(answer["applied"]["complete"], true, "{answer}\n{}", envoy.log());
}

async fn envoy_serves_what_was_put(variant: Variant) {
    let server = Server::start().await;
    let envoy = Envoy::start("envoy-1", server.xds, variant).await;
    until("Envoy to be connected", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        (proxies["proxies"].as_array()?.len() == 1).then_some(())
    })
    .await;
    let put = |type_url: &str, json: Value| json!({"type_url": type_url, "name": "own", "json": json});
    write(&server, &envoy, json!({"put": [put(LDS, listener()), put(RDS, routes("v1"))]})).await;
    let address = envoy.gateway("own").await;
    let mut client = Client::new(address);
    // Envoy acknowledges when its main thread has a change; its workers follow a moment later.
    let answers = async |client: &mut Client, version: &str| {
        until(version, SOON, async || client.get("/").await.ok().filter(|answer| answer == version)).await
    };
    answers(&mut client, "v1").await;
    write(&server, &envoy, json!({"put": [put(RDS, routes("v2"))]})).await;
    answers(&mut client, "v2").await;
    let remove = |type_url: &str| json!({"type_url": type_url, "name": "own"});
    write(&server, &envoy, json!({"remove": [remove(LDS), remove(RDS)]})).await;
    until("the listener to be gone", SOON, async || tokio::net::TcpStream::connect(address).await.err())
        .await;
    let proxies = server.api.get("/v1/proxies").await;
    assert_eq!(proxies["proxies"][0]["nacks"], 0, "{proxies}\n{}", envoy.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_in_json_is_served_changed_and_removed_incremental() {
    envoy_serves_what_was_put(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listener_in_json_is_served_changed_and_removed_state_of_the_world() {
    envoy_serves_what_was_put(Variant::StateOfTheWorld).await;
}
