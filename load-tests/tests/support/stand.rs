//! A server, a proxy that follows it, and one service behind one gateway.

use std::net::SocketAddr;

use load_tests::{
    sluicegate::{Edge, Server},
    until,
};

use super::SOON;

pub(crate) struct Stand {
    pub(crate) server: Server,
    pub(crate) edge: Edge,
    /// Where gateway `edge` listens.
    pub(crate) gateway: SocketAddr,
}

/// What the one service and the one gateway say beyond their names, in YAML's flow style.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settings {
    /// `http`, `h2c` or `grpc`.
    pub(crate) protocol: &'static str,
    /// For example `{ca: /ca.pem, sni: shop.internal}`; empty for none.
    pub(crate) service_tls: String,
    /// For example `{certificates: [{cert: /cert.pem, key: /key.pem}]}`; empty for none.
    pub(crate) gateway_tls: String,
    /// The condition of the one rule; empty for every request.
    pub(crate) matches: &'static str,
}

impl Settings {
    pub(crate) fn new(protocol: &'static str) -> Self {
        Self { protocol, ..Self::default() }
    }

    pub(crate) fn manifest(&self) -> String {
        let tls = |tls: &str| if tls.is_empty() { String::new() } else { format!("tls: {tls}\n") };
        let matches =
            if self.matches.is_empty() { String::new() } else { format!("match: {}, ", self.matches) };
        let (protocol, service_tls, gateway_tls) =
            (self.protocol, tls(&self.service_tls), tls(&self.gateway_tls));
        format!(
            "kind: Service\nname: shop\nprotocol: {protocol}\nversions: {{v1: {{}}}}\n{service_tls}\
             ---\nkind: Gateway\nname: edge\nlisten: 127.0.0.1:0\n{gateway_tls}\
             ---\nkind: Route\nname: all\ngateway: edge\nrules: [{{{matches}service: shop}}]\n"
        )
    }
}

impl Stand {
    /// Returns once the proxy has acknowledged everything, so that no test has to try until it works.
    pub(crate) async fn start(settings: &Settings, endpoint: Option<SocketAddr>) -> Self {
        let server = Server::start().await;
        let edge = Edge::start("edge-1", server.xds).await;
        until("the proxy to follow", SOON, async || {
            let proxies = server.api.get("/v1/proxies").await;
            proxies["proxies"].as_array()?.iter().any(|p| p["node"] == "edge-1").then_some(())
        })
        .await;
        if let Some(endpoint) = endpoint {
            // Known before the gateway is, so that the gateway has it from its first request on.
            let service = settings.manifest();
            let service = service.split("---\n").next().unwrap();
            server.api.apply(service).await.ok();
            server.api.register("shop/v1", "a", endpoint).await.ok();
        }
        let path = "/v1/apply?wait=applied&timeout=20s";
        let answer = server.api.apply_to(path, &settings.manifest()).await.ok();
        assert_eq!(answer["applied"]["complete"], true, "{answer}\n{}", edge.log());
        let gateway = edge.gateway("edge").await;
        Self { server, edge, gateway }
    }

    /// An `http` URL of the gateway.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.gateway)
    }
}
