//! A client in any of the four variants.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::Cluster, core::v3::Node, endpoint::v3::ClusterLoadAssignment,
            listener::v3::Listener, route::v3::RouteConfiguration,
        },
        extensions::transport_sockets::tls::v3::Secret,
        service::{
            cluster::v3::cluster_discovery_service_client::ClusterDiscoveryServiceClient,
            discovery::v3::{
                DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
                Resource as Wrapped, aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
            },
            endpoint::v3::endpoint_discovery_service_client::EndpointDiscoveryServiceClient,
            listener::v3::listener_discovery_service_client::ListenerDiscoveryServiceClient,
            route::v3::route_discovery_service_client::RouteDiscoveryServiceClient,
            secret::v3::secret_discovery_service_client::SecretDiscoveryServiceClient,
        },
    },
    google::{protobuf::Any, rpc},
};
use prost::Message;
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming, transport::Channel};

use super::{CDS, EDS, LDS, RDS, SDS, SOON};

/// "SotW TTL": "the relevant resources must be wrapped in a Resource".
const WRAPPER: &str = "type.googleapis.com/envoy.service.discovery.v3.Resource";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Incremental,
    StateOfTheWorld,
}

/// One of the "Four Variants".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mode {
    pub variant: Variant,
    pub aggregated: bool,
}

impl Mode {
    pub const INCREMENTAL: Self = Self { variant: Variant::Incremental, aggregated: true };
    pub const STATE_OF_THE_WORLD: Self = Self { variant: Variant::StateOfTheWorld, aggregated: true };

    pub const fn a_stream_a_type(self) -> Self {
        Self { aggregated: false, ..self }
    }

    pub fn is_incremental(self) -> bool {
        self.variant == Variant::Incremental
    }
}

/// One gRPC stream.
enum Line {
    Incremental(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>),
    StateOfTheWorld(mpsc::Sender<DiscoveryRequest>, Streaming<DiscoveryResponse>),
}

impl Line {
    async fn open(channel: Channel, mode: Mode, kind: &str) -> Result<Self, Status> {
        let (aggregated, kind) = (mode.aggregated, if mode.aggregated { "" } else { kind });
        // Each client is a type of its own, with methods of its own names.
        macro_rules! call {
            ($requests:expr, $ads:ident $cds:ident $eds:ident $lds:ident $rds:ident $sds:ident) => {
                match kind {
                    _ if aggregated => AggregatedDiscoveryServiceClient::new(channel).$ads($requests).await,
                    CDS => ClusterDiscoveryServiceClient::new(channel).$cds($requests).await,
                    EDS => EndpointDiscoveryServiceClient::new(channel).$eds($requests).await,
                    LDS => ListenerDiscoveryServiceClient::new(channel).$lds($requests).await,
                    RDS => RouteDiscoveryServiceClient::new(channel).$rds($requests).await,
                    SDS => SecretDiscoveryServiceClient::new(channel).$sds($requests).await,
                    other => panic!("no service of its own here: {other}"),
                }
            };
        }
        match mode.variant {
            Variant::Incremental => {
                let (requests, queue) = mpsc::channel(16);
                let queue = ReceiverStream::new(queue);
                let responses = call!(
                    queue,
                    delta_aggregated_resources delta_clusters delta_endpoints delta_listeners delta_routes delta_secrets
                )?;
                Ok(Self::Incremental(requests, responses.into_inner()))
            }
            Variant::StateOfTheWorld => {
                let (requests, queue) = mpsc::channel(16);
                let queue = ReceiverStream::new(queue);
                let responses = call!(
                    queue,
                    stream_aggregated_resources stream_clusters stream_endpoints stream_listeners stream_routes stream_secrets
                )?;
                Ok(Self::StateOfTheWorld(requests, responses.into_inner()))
            }
        }
    }

    async fn next(&mut self) -> Result<Option<Received>, Status> {
        Ok(match self {
            Self::Incremental(_, responses) => responses.message().await?.map(Received::from),
            Self::StateOfTheWorld(_, responses) => responses.message().await?.map(Received::from),
        })
    }
}

/// A response of either variant.
#[derive(Clone, Debug)]
pub struct Received {
    pub kind: String,
    pub nonce: String,
    /// Of all resources in state of the world; for debugging in the incremental variant.
    pub version: String,
    pub resources: Vec<Resource>,
    pub removed: Vec<String>,
}

#[derive(Clone, Debug)]
pub struct Resource {
    pub name: String,
    /// Incremental only, and in state of the world where it is wrapped.
    pub version: String,
    pub value: Vec<u8>,
    /// In s.
    pub ttl: Option<i64>,
    /// A TTL that begins anew, of a resource that the client has.
    pub is_heartbeat: bool,
}

impl From<Wrapped> for Resource {
    fn from(wrapped: Wrapped) -> Self {
        Self {
            name: wrapped.name,
            version: wrapped.version,
            ttl: wrapped.ttl.map(|ttl| ttl.seconds),
            is_heartbeat: wrapped.resource.is_none(),
            value: wrapped.resource.unwrap_or_default().value,
        }
    }
}

impl Received {
    /// `+a +b -c`, to compare in one line.
    pub fn shape(&self) -> String {
        let sent = self.resources.iter().map(|resource| format!("+{}", resource.name));
        let removed = self.removed.iter().map(|name| format!("-{name}"));
        let (mut sent, mut removed): (Vec<_>, Vec<_>) = (sent.collect(), removed.collect());
        sent.sort();
        removed.sort();
        [sent, removed].concat().join(" ")
    }

    pub fn resource(&self, name: &str) -> &Resource {
        let found = self.resources.iter().find(|resource| resource.name == name);
        found.unwrap_or_else(|| panic!("no {name} in {}", self.shape()))
    }

    /// Name and version of every resource, as a reconnect says them. Incremental only.
    pub fn versions(&self) -> BTreeMap<String, String> {
        self.resources.iter().map(|r| (r.name.clone(), r.version.clone())).collect()
    }

    /// How many endpoints an assignment has.
    pub fn endpoints(&self, name: &str) -> usize {
        let assignment = ClusterLoadAssignment::decode(self.resource(name).value.as_slice()).unwrap();
        assignment.endpoints.iter().map(|locality| locality.lb_endpoints.len()).sum()
    }
}

impl From<DeltaDiscoveryResponse> for Received {
    fn from(response: DeltaDiscoveryResponse) -> Self {
        let resource = |wrapped: Wrapped| {
            let found = wrapped.resource.as_ref().map_or("", |any| &any.type_url);
            assert!(wrapped.resource.is_none() || found == response.type_url, "{found}");
            Resource::from(wrapped)
        };
        Self {
            nonce: response.nonce,
            version: response.system_version_info,
            resources: response.resources.into_iter().map(resource).collect(),
            removed: response.removed_resources,
            kind: response.type_url,
        }
    }
}

impl From<DiscoveryResponse> for Received {
    fn from(response: DiscoveryResponse) -> Self {
        let resource = |any: Any| {
            if any.type_url == WRAPPER {
                return Wrapped::decode(any.value.as_slice()).unwrap().into();
            }
            assert_eq!(any.type_url, response.type_url);
            let (name, version, value) = (name_in(&any), String::new(), any.value);
            Resource { name, version, value, ttl: None, is_heartbeat: false }
        };
        Self {
            nonce: response.nonce,
            version: response.version_info,
            resources: response.resources.into_iter().map(resource).collect(),
            removed: Vec::new(),
            kind: response.type_url,
        }
    }
}

/// In state of the world the name is in the resource itself.
fn name_in(any: &Any) -> String {
    let value = any.value.as_slice();
    match any.type_url.as_str() {
        CDS => Cluster::decode(value).unwrap().name,
        EDS => ClusterLoadAssignment::decode(value).unwrap().cluster_name,
        LDS => Listener::decode(value).unwrap().name,
        RDS => RouteConfiguration::decode(value).unwrap().name,
        SDS => Secret::decode(value).unwrap().name,
        // The tests of other types have one resource.
        _ => "?".to_owned(),
    }
}

/// What the client has asked for of a type, and was told last.
#[derive(Debug, Default)]
pub(super) struct Asked {
    pub(super) names: BTreeSet<String>,
    pub(super) named: bool,
    nonce: String,
    /// The newest version that was accepted.
    version: String,
}

impl Asked {
    pub(super) fn is_wildcard(&self) -> bool {
        !self.named || self.names.contains("*")
    }
}

/// A client that does as the protocol says, and no more than it is told to.
pub struct Client {
    pub(super) mode: Mode,
    channel: Channel,
    pub node: Node,
    /// By type; one under `""` when aggregated.
    lines: BTreeMap<&'static str, Line>,
    pub(super) asked: BTreeMap<&'static str, Asked>,
}

impl Client {
    pub fn new(channel: Channel, mode: Mode, node: &str) -> Self {
        let node = Node {
            id: node.to_owned(),
            cluster: "tests".to_owned(),
            user_agent_name: "tests".to_owned(),
            ..Default::default()
        };
        Self { mode, channel, node, lines: BTreeMap::new(), asked: BTreeMap::new() }
    }

    /// The stream of a type, and the node if this is its first message ("Basic Protocol Overview").
    async fn line(&mut self, kind: &'static str) -> (&mut Line, Option<Node>) {
        let key = if self.mode.aggregated { "" } else { kind };
        let mut node = None;
        if !self.lines.contains_key(key) {
            let opened = timeout(SOON, Line::open(self.channel.clone(), self.mode, kind)).await;
            self.lines.insert(key, opened.expect("the stream opens soon").unwrap());
            node = Some(self.node.clone());
        }
        (self.lines.get_mut(key).unwrap(), node)
    }

    /// Sends an incremental request as it is, with the node if it is the first and has none.
    pub async fn send_incremental(&mut self, mut request: DeltaDiscoveryRequest, kind: &'static str) {
        let (line, node) = self.line(kind).await;
        request.node = request.node.or(node);
        let Line::Incremental(requests, _) = line else { panic!("a client of state of the world") };
        requests.send(request).await.expect("the stream takes requests");
    }

    /// Sends a request of state of the world as it is, with the node if it is the first and has none.
    pub async fn send_state_of_the_world(&mut self, mut request: DiscoveryRequest, kind: &'static str) {
        let (line, node) = self.line(kind).await;
        request.node = request.node.or(node);
        let Line::StateOfTheWorld(requests, _) = line else { panic!("an incremental client") };
        requests.send(request).await.expect("the stream takes requests");
    }

    /// The state of the world that is wanted of a type, as an answer to what came last.
    pub fn request(&self, kind: &str) -> DiscoveryRequest {
        let asked = &self.asked[kind];
        DiscoveryRequest {
            type_url: kind.to_owned(),
            resource_names: asked.names.iter().cloned().collect(),
            version_info: asked.version.clone(),
            response_nonce: asked.nonce.clone(),
            ..Default::default()
        }
    }

    /// Asks for more names of a type; for none, in a first request, as old clients ask for everything.
    pub async fn subscribe(&mut self, kind: &'static str, names: &[&str]) {
        let asked = self.asked.entry(kind).or_default();
        asked.named |= !names.is_empty();
        asked.names.extend(names.iter().map(ToString::to_string));
        if self.mode.is_incremental() {
            let request = DeltaDiscoveryRequest {
                type_url: kind.to_owned(),
                resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            self.send_incremental(request, kind).await;
        } else {
            self.send_state_of_the_world(self.request(kind), kind).await;
        }
    }

    /// Asks for names no longer.
    pub async fn unsubscribe(&mut self, kind: &'static str, names: &[&str]) {
        let asked = self.asked.entry(kind).or_default();
        asked.names.retain(|name| !names.contains(&name.as_str()));
        if self.mode.is_incremental() {
            let request = DeltaDiscoveryRequest {
                type_url: kind.to_owned(),
                resource_names_unsubscribe: names.iter().map(ToString::to_string).collect(),
                ..Default::default()
            };
            self.send_incremental(request, kind).await;
        } else {
            self.send_state_of_the_world(self.request(kind), kind).await;
        }
    }

    /// Asks anew on a new stream, holding `versions`. Incremental only.
    pub async fn resume(&mut self, kind: &'static str, names: &[&str], versions: &BTreeMap<String, String>) {
        let asked = self.asked.entry(kind).or_default();
        asked.named |= !names.is_empty();
        asked.names.extend(names.iter().map(ToString::to_string));
        let request = DeltaDiscoveryRequest {
            type_url: kind.to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            initial_resource_versions: versions.clone().into_iter().collect(),
            ..Default::default()
        };
        self.send_incremental(request, kind).await;
    }

    pub async fn ack(&mut self, response: &Received) {
        self.answer(response, None).await;
    }

    pub async fn nack(&mut self, response: &Received, reason: &str) {
        self.answer(response, Some(reason)).await;
    }

    async fn answer(&mut self, response: &Received, refused: Option<&str>) {
        let kind = *self.asked.keys().find(|kind| **kind == response.kind).unwrap();
        let error_detail =
            refused.map(|reason| rpc::Status { code: 3, message: reason.to_owned(), ..Default::default() });
        if self.mode.is_incremental() {
            let request = DeltaDiscoveryRequest {
                type_url: kind.to_owned(),
                response_nonce: response.nonce.clone(),
                error_detail,
                ..Default::default()
            };
            return self.send_incremental(request, kind).await;
        }
        if refused.is_none() {
            self.asked.get_mut(kind).unwrap().version.clone_from(&response.version);
        }
        let response_nonce = response.nonce.clone();
        let request = DiscoveryRequest { error_detail, response_nonce, ..self.request(kind) };
        self.send_state_of_the_world(request, kind).await;
    }

    /// The next response, which has to be of this type.
    pub async fn expect(&mut self, kind: &'static str) -> Received {
        let received = self.next(kind).await;
        let received = received.unwrap().expect("the stream goes on");
        assert_eq!(received.kind, kind, "{}", received.shape());
        assert!(!received.nonce.is_empty(), "{}", received.shape());
        // "Duplicate Resource Names": no response has a name twice.
        let names: BTreeSet<&String> = received.resources.iter().map(|resource| &resource.name).collect();
        assert_eq!(names.len(), received.resources.len(), "{}", received.shape());
        self.asked.entry(kind).or_default().nonce.clone_from(&received.nonce);
        received
    }

    /// The next response, of one of two types that share a stream.
    pub async fn either(&mut self, one: &'static str, other: &'static str) -> Received {
        let received = self.next(one).await.unwrap().expect("the stream goes on");
        let kind = [one, other].into_iter().find(|kind| received.kind == *kind);
        let kind = kind.unwrap_or_else(|| panic!("{}: {}", received.kind, received.shape()));
        self.asked.entry(kind).or_default().nonce.clone_from(&received.nonce);
        received
    }

    /// The next response, accepted.
    pub async fn accept(&mut self, kind: &'static str) -> Received {
        let received = self.expect(kind).await;
        self.ack(&received).await;
        received
    }

    /// Asks for names and accepts the answer.
    pub async fn follow(&mut self, kind: &'static str, names: &[&str]) -> Received {
        self.subscribe(kind, names).await;
        self.accept(kind).await
    }

    /// Whatever comes next on the stream of a type.
    async fn next(&mut self, kind: &'static str) -> Result<Option<Received>, Status> {
        let key = if self.mode.aggregated { "" } else { kind };
        let line = self.lines.get_mut(key).expect("something was asked for");
        timeout(SOON, line.next()).await.unwrap_or_else(|_| panic!("no {kind} within {SOON:?}"))
    }

    /// How the stream of a type ends, which it has to, soon.
    pub async fn ended(&mut self, kind: &'static str) -> Status {
        loop {
            match self.next(kind).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}
