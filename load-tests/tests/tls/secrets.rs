//! Certificates that come over SDS: put through the API, followed by our proxy and by Envoy at once.

use std::{net::SocketAddr, time::Duration};

use hyper::Method;
use load_tests::{
    api::{Answer, Api},
    peers::envoy::{Envoy, Variant},
    sluicegate::{Edge, Server},
    until,
};
use serde_json::json;

use crate::{
    serial,
    support::{
        SOON,
        certificates::{Authority, Pair, openssl, text},
        h2load::h2load,
        nginx::Nginx,
        peer::Said,
        stand::Settings,
    },
};

const SDS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
const ROTATIONS: u32 = 20;

fn read(path: &std::path::Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

/// The secret `shop` is from now on `cert` with `key`.
async fn put(server: &Server, query: &str, cert: &str, key: &str) -> Answer {
    let json = json!({"name": "shop", "tls_certificate": {
        "certificate_chain": {"inline_string": cert}, "private_key": {"inline_string": key},
    }});
    let body = json!({"put": [{"type_url": SDS, "name": "shop", "json": json}]});
    server.api.json(Method::POST, &format!("/v1/xds/resources{query}"), &body).await
}

async fn handshake(authority: &Authority, gateway: SocketAddr) -> Said {
    let (ca, address) = (authority.ca(), gateway.to_string());
    let arguments = ["s_client", "-connect", &address, "-CAfile", text(&ca), "-verify_return_error"];
    openssl(&[&arguments[..], &["-servername", "a.example"]].concat(), b"").await
}

async fn shown(authority: &Authority, gateway: SocketAddr, expected: u32) {
    until("the certificate to be shown", SOON, async || {
        (serial(&handshake(authority, gateway).await).await == Some(expected)).then_some(())
    })
    .await;
}

/// Every line of base64 of a key, which nobody is to show.
fn lines(pair: &Pair) -> Vec<String> {
    read(&pair.key).lines().filter(|line| !line.starts_with("-----")).map(str::to_owned).collect()
}

async fn pages(api: &Api, paths: &[&str]) -> Vec<(String, String)> {
    let mut pages = Vec::new();
    for path in paths {
        pages.push(((*path).to_owned(), api.text(path).await.unwrap()));
    }
    pages
}

async fn rotated_under_load(variant: Variant) {
    let nginx = Nginx::start("", "keepalive_requests 1000000; location / { return 200 ok; }").await;
    let authority = Authority::new().await;
    let first = authority.issue("first", "a.example", 100).await;
    let mut pairs = vec![first.clone()];
    for n in 1..=ROTATIONS {
        pairs.push(authority.issue(&format!("next{n}"), "a.example", 100 + n).await);
    }
    let server = Server::start().await;
    let edge = Edge::start("edge-1", server.xds).await;
    let envoy = Envoy::start("envoy-1", server.xds, variant).await;
    let settings =
        Settings { gateway_tls: "{certificates: [{secret: shop}]}".to_owned(), ..Settings::new("http") };
    let manifest = settings.manifest();
    server.api.apply(manifest.split("---\n").next().unwrap()).await.ok();
    server.api.register("shop/v1", "a", nginx.address).await.ok();
    // The gateway is there before its secret, and waits for it.
    server.api.apply(&manifest).await.ok();
    put(&server, "", &read(&first.cert), &read(&first.key)).await.ok();
    let (ours, theirs) = (edge.gateway("edge").await, envoy.gateway("edge").await);
    shown(&authority, ours, 100).await;
    shown(&authority, theirs, 100).await;

    // Connections that live through all rotations.
    let (url, to) = (format!("https://a.example:{}/", ours.port()), format!("--connect-to={ours}"));
    let long = {
        let (url, to) = (url.clone(), to.clone());
        tokio::spawn(async move { h2load(&["-D", "8", "-c4", "-m10", &to, &url]).await })
    };
    for (n, pair) in (1..=ROTATIONS).zip(&pairs[1..]) {
        put(&server, "", &read(&pair.cert), &read(&pair.key)).await.ok();
        // New connections all the time.
        let outcome = h2load(&["-n", "50", "-c", "10", "-m", "5", &to, &url]).await;
        assert!(outcome.good == 50 && outcome.lost == 0, "{}", outcome.text);
        if n % 10 == 0 {
            shown(&authority, ours, 100 + n).await;
            shown(&authority, theirs, 100 + n).await;
        }
    }
    let long = tokio::time::timeout(Duration::from_mins(1), long).await.unwrap().unwrap();
    assert!(long.done > 0 && long.good == long.done && long.lost == 0, "{}", long.text);

    // A key of another certificate is refused by the proxy, which keeps what it has.
    put(&server, "", &read(&pairs[1].cert), &read(&pairs[2].key)).await.ok();
    until("the refusal", SOON, async || {
        let proxies = server.api.get("/v1/proxies").await;
        let refused = |p: &serde_json::Value| p["node"] == "edge-1" && p["nacks"].as_u64() > Some(0);
        proxies["proxies"].as_array()?.iter().any(refused).then_some(())
    })
    .await;
    shown(&authority, ours, 100 + ROTATIONS).await;

    // Nobody shows a key: not the server, not the proxy, not even when one was refused.
    let mut seen = pages(
        &server.api,
        &[
            "/v1/xds/resources",
            "/v1/proxies",
            "/v1/proxies/edge-1/resources",
            "/v1/proxies/envoy-1/resources",
            "/v1/gateways",
            "/v1/events",
            "/metrics",
        ],
    )
    .await;
    seen.extend(pages(&edge.admin, &["/config_dump", "/listeners", "/certificates", "/metrics"]).await);
    seen.push(("the server's log".to_owned(), server.log()));
    seen.push(("the proxy's log".to_owned(), edge.log()));
    seen.push((
        "the refused answer".to_owned(),
        put(&server, "", "no", &read(&first.key)).await.ok().to_string(),
    ));
    let all = seen.iter().map(|(_, page)| page.as_str()).collect::<String>();
    assert!(all.contains("shop"), "the scan has nothing to look at");
    for line in pairs.iter().flat_map(lines) {
        for (place, page) in &seen {
            assert!(!page.contains(&line), "{place} shows a key");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_rotated_under_load_and_its_key_never_shown_incremental() {
    rotated_under_load(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_rotated_under_load_and_its_key_never_shown_state_of_the_world() {
    rotated_under_load(Variant::StateOfTheWorld).await;
}
