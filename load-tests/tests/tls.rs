//! TLS with clients and servers that are not ours: at the gateway, and to the endpoints.
//!
//! - [`gateway`]: curl, openssl, h2load, grpcio and ws as clients of a gateway with certificates.
//! - [`upstream`]: nginx and grpcio as endpoints with certificates, right ones and wrong ones.
//! - [`secrets`]: certificates that come over SDS, to our proxy and to Envoy.
//! - [`swap`]: certificates replaced while requests run.
//!
//! Certificates are made by the openssl command, for each test its own.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

#[path = "tls/gateway.rs"]
mod gateway;
#[path = "tls/secrets.rs"]
mod secrets;
mod support;
#[path = "tls/swap.rs"]
mod swap;
#[path = "tls/upstream.rs"]
mod upstream;

use std::net::SocketAddr;

use support::{
    certificates::{Authority, openssl, text},
    peer::{Said, curl},
    stand::{Settings, Stand},
};

/// A gateway with certificates for `a.example` (serial 10) and `b.example` (serial 11).
struct Secure {
    authority: Authority,
    stand: Stand,
}

impl Secure {
    async fn start(protocol: &'static str, endpoint: SocketAddr) -> Self {
        let authority = Authority::new().await;
        let (a, b) =
            (authority.issue("a", "a.example", 10).await, authority.issue("b", "b.example", 11).await);
        let gateway_tls = format!("{{certificates: [{}, {}]}}", a.yaml(), b.yaml());
        let settings = Settings { gateway_tls, ..Settings::new(protocol) };
        let stand = Stand::start(&settings, Some(endpoint)).await;
        Self { authority, stand }
    }

    /// An `https` URL of the gateway by a name, and what makes curl find it.
    fn url(&self, name: &str, path: &str) -> (String, String) {
        let port = self.stand.gateway.port();
        (format!("https://{name}:{port}{path}"), format!("{name}:{port}:127.0.0.1"))
    }

    async fn curl(&self, name: &str, path: &str, arguments: &[&str]) -> Said {
        let ((url, resolve), ca) = (self.url(name, path), self.authority.ca());
        let fixed = ["--cacert", text(&ca), "--resolve", &resolve];
        curl(&[&fixed, arguments, &[&url]].concat()).await
    }

    /// A handshake by the openssl command, which checks the certificate, and one request over it.
    async fn handshake(&self, name: &str, arguments: &[&str]) -> Said {
        let (ca, address) = (self.authority.ca(), self.stand.gateway.to_string());
        let fixed =
            ["s_client", "-connect", &address, "-CAfile", text(&ca), "-verify_return_error", "-ign_eof"];
        let name_of = ["-servername", name];
        let name_of: &[&str] = if name.is_empty() { &["-noservername"] } else { &name_of };
        let request = format!("GET /describe HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        // In HTTP/2 this is no request: the gateway closes, which is all that is needed.
        openssl(&[&fixed, name_of, arguments].concat(), request.as_bytes()).await
    }
}

/// The serial number of the certificate in what `openssl s_client` says; `None` without one.
async fn serial(said: &Said) -> Option<u32> {
    let said = openssl(&["x509", "-noout", "-serial"], &said.out).await;
    u32::from_str_radix(said.text().trim().strip_prefix("serial=")?, 16).ok()
}
