//! The few fields of xDS that a proxy of the swarm reads and writes, and gRPC's framing. Everything
//! else in a message is walked over, as any decoder does; names and addresses stay in the buffer.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

pub(super) const CDS: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";
pub(super) const EDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment";
pub(super) const LEDS: &str = "type.googleapis.com/envoy.config.endpoint.v3.LbEndpoint";
pub(super) const LDS: &str = "type.googleapis.com/envoy.config.listener.v3.Listener";
pub(super) const RDS: &str = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";

/// `envoy.service.discovery.v3.DeltaDiscoveryRequest`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Request {
    #[prost(message, optional, tag = "1")]
    pub(super) node: Option<Node>,
    #[prost(string, tag = "2")]
    pub(super) type_url: String,
    #[prost(string, repeated, tag = "3")]
    pub(super) subscribe: Vec<String>,
    #[prost(string, repeated, tag = "4")]
    pub(super) unsubscribe: Vec<String>,
    #[prost(string, tag = "6")]
    pub(super) response_nonce: String,
}

/// `envoy.config.core.v3.Node`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Node {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(string, tag = "2")]
    pub(super) cluster: String,
    #[prost(string, tag = "6")]
    pub(super) user_agent_name: String,
    #[prost(string, repeated, tag = "10")]
    pub(super) client_features: Vec<String>,
}

/// `envoy.service.discovery.v3.DeltaDiscoveryResponse`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Response {
    #[prost(message, repeated, tag = "2")]
    pub(super) resources: Vec<Resource>,
    #[prost(string, tag = "4")]
    pub(super) type_url: String,
    #[prost(string, tag = "5")]
    pub(super) nonce: String,
    #[prost(bytes = "bytes", repeated, tag = "6")]
    pub(super) removed: Vec<Bytes>,
}

/// `envoy.service.discovery.v3.Resource`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Resource {
    #[prost(message, optional, tag = "2")]
    pub(super) resource: Option<Any>,
    #[prost(bytes = "bytes", tag = "3")]
    pub(super) name: Bytes,
}

impl Resource {
    pub(super) fn value(&self) -> Bytes {
        self.resource.as_ref().map(|any| any.value.clone()).unwrap_or_default()
    }
}

/// `google.protobuf.Any`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Any {
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) value: Bytes,
}

/// `envoy.config.endpoint.v3.ClusterLoadAssignment`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Assignment {
    #[prost(message, repeated, tag = "2")]
    pub(super) localities: Vec<Locality>,
}

/// `envoy.config.endpoint.v3.LocalityLbEndpoints`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Locality {
    #[prost(message, repeated, tag = "2")]
    pub(super) endpoints: Vec<Endpoint>,
    #[prost(message, optional, tag = "8")]
    pub(super) leds: Option<Collection>,
}

/// `envoy.config.endpoint.v3.LedsClusterLocalityConfig`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Collection {
    #[prost(string, tag = "2")]
    pub(super) name: String,
}

/// `envoy.config.endpoint.v3.LbEndpoint`
#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(message, optional, tag = "1")]
    host: Option<Host>,
}

impl Endpoint {
    pub(super) fn address(&self) -> Option<&[u8]> {
        Some(&self.host.as_ref()?.address.as_ref()?.socket.as_ref()?.address)
    }
}

/// `envoy.config.endpoint.v3.Endpoint`
#[derive(Clone, PartialEq, Message)]
struct Host {
    #[prost(message, optional, tag = "1")]
    address: Option<Address>,
}

/// `envoy.config.core.v3.Address`
#[derive(Clone, PartialEq, Message)]
struct Address {
    #[prost(message, optional, tag = "1")]
    socket: Option<SocketAddress>,
}

/// `envoy.config.core.v3.SocketAddress`
#[derive(Clone, PartialEq, Message)]
struct SocketAddress {
    #[prost(bytes = "bytes", tag = "2")]
    address: Bytes,
    #[prost(uint32, tag = "3")]
    port: u32,
}

/// `envoy.config.listener.v3.Listener`
#[derive(Clone, PartialEq, Message)]
struct Listener {
    #[prost(message, repeated, tag = "3")]
    chains: Vec<Chain>,
}

/// `envoy.config.listener.v3.FilterChain`
#[derive(Clone, PartialEq, Message)]
struct Chain {
    #[prost(message, repeated, tag = "3")]
    filters: Vec<Filter>,
}

/// `envoy.config.listener.v3.Filter`
#[derive(Clone, PartialEq, Message)]
struct Filter {
    #[prost(message, optional, tag = "4")]
    config: Option<Any>,
}

/// `envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager`
#[derive(Clone, PartialEq, Message)]
struct ConnectionManager {
    #[prost(message, optional, tag = "3")]
    rds: Option<Rds>,
}

/// `envoy.extensions.filters.network.http_connection_manager.v3.Rds`
#[derive(Clone, PartialEq, Message)]
struct Rds {
    #[prost(string, tag = "2")]
    name: String,
}

/// The route configurations that a listener asks for.
pub(super) fn routes_of(listener: Bytes) -> Vec<String> {
    let listener = Listener::decode(listener).unwrap();
    let filters = listener.chains.into_iter().flat_map(|chain| chain.filters);
    let managers = filters.filter_map(|filter| ConnectionManager::decode(filter.config?.value).ok());
    managers.filter_map(|manager| Some(manager.rds?.name)).filter(|name| !name.is_empty()).collect()
}

/// A message in a frame: a byte that says it is not compressed, its length, itself (gRPC over HTTP/2).
pub(super) fn frame(request: &Request) -> Bytes {
    let mut frame = BytesMut::with_capacity(5 + request.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(request.encoded_len()).unwrap());
    request.encode(&mut frame).unwrap();
    frame.freeze()
}

/// Takes the next whole message out of what was received.
pub(super) fn next_message(received: &mut BytesMut) -> Option<Response> {
    let mut head = received.get(..5)?;
    assert_eq!(head.get_u8(), 0, "a compressed message, which was not asked for");
    let length = head.get_u32() as usize;
    if received.len() < 5 + length {
        received.reserve(5 + length - received.len());
        return None;
    }
    received.advance(5);
    Some(Response::decode(received.split_to(length).freeze()).unwrap())
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::{
        config::{
            core::v3::{self as core, address::Address as Kind, socket_address::PortSpecifier},
            endpoint::v3::{
                ClusterLoadAssignment, Endpoint as Host, LbEndpoint, LedsClusterLocalityConfig,
                LocalityLbEndpoints, lb_endpoint::HostIdentifier, locality_lb_endpoints::LbConfig,
            },
        },
        service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse},
    };

    use super::*;

    #[test]
    fn the_fields_are_those_of_the_whole_messages() {
        let socket = core::SocketAddress {
            address: "10.1.2.3".to_owned(),
            port_specifier: Some(PortSpecifier::PortValue(7)),
            ..Default::default()
        };
        let address = core::Address { address: Some(Kind::SocketAddress(socket)) };
        let host = Host { address: Some(address), ..Default::default() };
        let endpoint =
            LbEndpoint { host_identifier: Some(HostIdentifier::Endpoint(host)), ..Default::default() };
        let leds = LedsClusterLocalityConfig { leds_collection_name: "a/*".to_owned(), ..Default::default() };
        let locality = LocalityLbEndpoints {
            lb_endpoints: vec![endpoint],
            lb_config: Some(LbConfig::LedsClusterLocalityConfig(leds)),
            ..Default::default()
        };
        let whole = ClusterLoadAssignment { endpoints: vec![locality], ..Default::default() };
        let read = Assignment::decode(Bytes::from(whole.encode_to_vec())).unwrap();
        assert_eq!(read.localities[0].endpoints[0].address(), Some(&b"10.1.2.3"[..]));
        assert_eq!(read.localities[0].leds.as_ref().unwrap().name, "a/*");

        let response = DeltaDiscoveryResponse {
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["gone".to_owned()],
            ..Default::default()
        };
        let mut received = BytesMut::new();
        let message = response.encode_to_vec();
        received.put_u8(0);
        received.put_u32(u32::try_from(message.len()).unwrap());
        received.put_slice(&message[..3]);
        assert_eq!(next_message(&mut received), None);
        received.put_slice(&message[3..]);
        let read = next_message(&mut received).unwrap();
        assert_eq!(
            (read.type_url.as_str(), read.nonce.as_str(), &read.removed[0][..]),
            ("t", "n", &b"gone"[..])
        );
        assert!(received.is_empty());

        let node = Node { id: "i".into(), client_features: vec!["f".into()], ..Default::default() };
        let request = Request {
            node: Some(node),
            type_url: "t".into(),
            subscribe: vec!["s".into()],
            unsubscribe: vec!["u".into()],
            response_nonce: "n".into(),
        };
        let read = DeltaDiscoveryRequest::decode(&frame(&request)[5..]).unwrap();
        assert_eq!(read.node.unwrap().client_features, ["f"]);
        assert_eq!(read.resource_names_subscribe, ["s"]);
        assert_eq!(read.resource_names_unsubscribe, ["u"]);
        assert_eq!((read.type_url.as_str(), read.response_nonce.as_str()), ("t", "n"));
    }
}
