//! A gateway ↔ `Listener` (envoy/config/listener/v3/listener.proto).

use std::{net::SocketAddr, sync::Arc};

use envoy_types::pb::{
    envoy::{
        config::listener::v3::{Filter, FilterChain, Listener, filter::ConfigType},
        extensions::filters::{
            http::router::v3::Router,
            network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, Rds,
                http_connection_manager::{RouteSpecifier, ServerHeaderTransformation},
                http_filter,
            },
        },
    },
    google::protobuf::BoolValue,
};
use prost::Name;

use super::{DecodeError, ads, decode, decode_address, encode_address, pack, tls};
use crate::{route::Gateway, tls::CertificateFiles};

/// What a proxy needs to know of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Its resource name.
    pub name: String,
    /// Where to listen; port 0 lets the proxy choose.
    pub address: SocketAddr,
    /// The `RouteConfiguration` that decides about its requests.
    pub route_config: String,
    /// How it terminates TLS; `None` for HTTP in the clear.
    pub tls: Option<ListenerTls>,
}

/// What a proxy needs to know to terminate TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// What it can show; never empty. The first is for clients whose name no other is for.
    pub certificates: ListenerCertificates,
    /// The protocols it offers, best first (RFC 7301); empty when nothing is negotiated.
    pub alpn: Vec<String>,
}

/// Where the certificates of a listener come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenerCertificates {
    /// Files of the proxy.
    Files(Vec<CertificateFiles>),
    /// Secrets, by name, on the same stream.
    Secrets(Vec<Arc<str>>),
}

impl ListenerConfig {
    /// The names of the secrets that it needs.
    pub fn secrets(&self) -> &[Arc<str>] {
        match self.tls.as_ref().map(|tls| &tls.certificates) {
            Some(ListenerCertificates::Secrets(names)) => names,
            _ => &[],
        }
    }
}

/// The listener of `gateway`. Its route configuration has the gateway's name.
pub fn encode(gateway: &Gateway) -> Listener {
    let name = gateway.name.to_string();
    let manager = HttpConnectionManager {
        stat_prefix: name.clone(),
        http_filters: vec![router()],
        route_specifier: Some(rds(&name)),
        // An edge: the peer is the client, and its address is what X-Forwarded-For gains.
        use_remote_address: Some(BoolValue { value: true }),
        server_header_transformation: ServerHeaderTransformation::PassThrough as i32,
        ..Default::default()
    };
    let filter = Filter {
        name: "envoy.filters.network.http_connection_manager".to_owned(),
        config_type: Some(ConfigType::TypedConfig(pack(&manager))),
    };
    Listener {
        name,
        address: Some(encode_address(gateway.listen)),
        filter_chains: vec![FilterChain {
            filters: vec![filter],
            transport_socket: gateway.tls.as_ref().map(tls::encode_downstream),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// The filter that sends a request where its route says; it is the last one.
pub(super) fn router() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack(&Router {
            // Clients see the responses of services, not Envoy's notes about them.
            suppress_envoy_headers: true,
            ..Default::default()
        }))),
        ..Default::default()
    }
}

/// Routes from the route configuration of that name, on the same stream.
pub(super) fn rds(name: &str) -> RouteSpecifier {
    RouteSpecifier::Rds(Rds { config_source: Some(ads()), route_config_name: name.to_owned() })
}

/// Reads a listener.
///
/// # Errors
/// When it is not an HTTP listener whose routes come from RDS, or asks of TLS what is not supported.
pub fn decode_listener(value: &[u8]) -> Result<ListenerConfig, DecodeError> {
    let listener: Listener = decode(value)?;
    if listener.name.is_empty() {
        return Err(DecodeError::missing("name"));
    }
    let address = decode_address("address", listener.address.as_ref())?;
    let [chain] = listener.filter_chains.as_slice() else {
        return Err(DecodeError::new("filter_chains", "exactly one filter chain is supported"));
    };
    let socket = chain.transport_socket.as_ref();
    let tls = socket.map(|s| tls::decode_downstream("filter_chains[0].transport_socket", s)).transpose()?;
    let managers = chain.filters.iter().filter_map(|f| match &f.config_type {
        Some(ConfigType::TypedConfig(any)) if any.type_url == HttpConnectionManager::type_url() => Some(any),
        _ => None,
    });
    let [manager] = managers.collect::<Vec<_>>()[..] else {
        return Err(DecodeError::new(
            "filter_chains[0].filters",
            "exactly one envoy.filters.network.http_connection_manager is supported",
        ));
    };
    let manager: HttpConnectionManager = decode(&manager.value)?;
    match manager.route_specifier {
        Some(RouteSpecifier::Rds(rds)) if !rds.route_config_name.is_empty() => {
            Ok(ListenerConfig { name: listener.name, address, route_config: rds.route_config_name, tls })
        }
        _ => Err(DecodeError::new(
            "http_connection_manager.route_specifier",
            "only rds with a name is supported",
        )),
    }
}
