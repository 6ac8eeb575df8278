//! An ADS server (incremental variant) that serves what the test sets.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
};

use config::xds::{ResourceType, content_version, leds};
use envoy_types::pb::{
    envoy::service::discovery::v3::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
        aggregated_discovery_service_server::{AggregatedDiscoveryService, AggregatedDiscoveryServiceServer},
    },
    google::protobuf::Any,
};
use prost::Message;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

use super::eventually;

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The server's state, and what clients said.
#[derive(Default)]
struct State {
    resources: BTreeMap<(ResourceType, String), Vec<u8>>,
    requests: Vec<DeltaDiscoveryRequest>,
    /// Resources sent, with the nonce they went by.
    sent: Vec<(ResourceType, String, String)>,
    /// Of the last response, in bytes.
    size: usize,
    streams: usize,
    /// Rises with every change, and the one a stream has seen last.
    revision: u64,
    served: u64,
    nonce: u64,
    /// Types it has no answer for.
    muted: HashSet<ResourceType>,
    /// Ends each stream after its first responses.
    flaps: bool,
}

/// A server that runs until it is dropped.
pub struct Control {
    pub address: SocketAddr,
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
    server: JoinHandle<()>,
    /// Dropping it ends all streams.
    alive: Option<watch::Sender<()>>,
}

impl Control {
    pub async fn start() -> Self {
        Self::start_on(([127, 0, 0, 1], 0).into()).await
    }

    pub async fn start_on(address: SocketAddr) -> Self {
        let listener =
            eventually("the control plane's address", async || TcpListener::bind(address).await.ok()).await;
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let (changed, changes) = watch::channel(0);
        let (alive, dead) = watch::channel(());
        let service = Service { state: Arc::clone(&state), changes, dead };
        let server = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        let server = tokio::spawn(async move { _ = server.await });
        Self { address, state, changed, server, alive: Some(alive) }
    }

    pub fn servers(&self) -> Vec<String> {
        vec![self.address.to_string()]
    }

    /// Accepts streams but never answers.
    pub fn silence(&self) {
        self.mute(ResourceType::ALL);
    }

    /// Never answers for these types.
    pub fn mute(&self, kinds: impl IntoIterator<Item = ResourceType>) {
        self.state.lock().unwrap().muted.extend(kinds);
    }

    /// Ends each stream after its first responses.
    pub fn flap(&self) {
        self.state.lock().unwrap().flaps = true;
    }

    /// Sets several resources at once.
    pub fn set(&self, resources: impl IntoIterator<Item = (ResourceType, String, Vec<u8>)>) {
        let mut state = self.state.lock().unwrap();
        for (kind, name, value) in resources {
            state.resources.insert((kind, name), value);
        }
        state.revision += 1;
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    pub fn remove<'a>(&self, names: impl IntoIterator<Item = (ResourceType, &'a str)>) {
        let mut state = self.state.lock().unwrap();
        for (kind, name) in names {
            state.resources.remove(&(kind, name.to_owned()));
        }
        state.revision += 1;
        drop(state);
        self.changed.send_modify(|n| *n += 1);
    }

    /// Waits until everything sent so far has been acknowledged.
    pub async fn acknowledged(&self) {
        eventually("everything acknowledged", async || {
            let state = self.state.lock().unwrap();
            let acks: HashSet<&str> = state.requests.iter().map(|r| r.response_nonce.as_str()).collect();
            let all = state.sent.iter().all(|(.., nonce)| acks.contains(nonce.as_str()));
            (all && state.served == state.revision).then_some(())
        })
        .await;
    }

    /// Waits for a NACK and returns its reason.
    pub async fn nack(&self, kind: ResourceType) -> String {
        eventually("a NACK", async || {
            let state = self.state.lock().unwrap();
            let nacks = state.requests.iter().filter(|r| r.type_url == kind.type_url());
            nacks.filter_map(|r| r.error_detail.as_ref()).next_back().map(|e| e.message.clone())
        })
        .await
    }

    pub fn requests(&self) -> Vec<DeltaDiscoveryRequest> {
        self.state.lock().unwrap().requests.clone()
    }

    /// How many resources were sent.
    pub fn sent(&self) -> usize {
        self.state.lock().unwrap().sent.len()
    }

    /// How large the last response was, in bytes.
    pub fn size(&self) -> usize {
        self.state.lock().unwrap().size
    }

    pub fn streams(&self) -> usize {
        self.state.lock().unwrap().streams
    }

    /// Ends all streams and stops listening.
    pub async fn kill(mut self) -> SocketAddr {
        self.alive.take();
        self.server.abort();
        _ = (&mut self.server).await;
        self.address
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.server.abort();
    }
}

struct Service {
    state: Arc<Mutex<State>>,
    changes: watch::Receiver<u64>,
    dead: watch::Receiver<()>,
}

/// What one stream asked for of one type, and what it has.
#[derive(Default)]
struct Subscription {
    asked: bool,
    /// Whether a name was ever given; without one it is all of a type, where that can be asked for.
    named: bool,
    names: HashSet<String>,
    has: HashMap<String, String>,
    /// Collections without members that the client was told of.
    empty: HashSet<String>,
}

impl Subscription {
    fn wants(&self, kind: ResourceType, name: &str) -> bool {
        match kind {
            ResourceType::LbEndpoint => leds::collection_of(name).is_some_and(|c| self.names.contains(&c)),
            _ => (kind.legacy_wildcard() && !self.named) || self.names.contains(name),
        }
    }

    /// Collections of which the client is to be told that they have no members.
    fn emptied(&mut self, members: &[&String]) -> Vec<String> {
        let filled: HashSet<String> = members.iter().filter_map(|name| leds::collection_of(name)).collect();
        self.empty.retain(|glob| self.names.contains(glob) && !filled.contains(glob));
        let empty = self.names.iter().filter(|glob| !filled.contains(*glob)).cloned();
        empty.filter(|glob| self.empty.insert(glob.clone())).collect()
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Service {
    type StreamAggregatedResourcesStream = Out<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Out<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("the proxy uses the incremental variant"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let mut inbound = request.into_inner();
        let (out, responses) = tokio::sync::mpsc::channel(64);
        let (state, mut changes, mut dead) =
            (Arc::clone(&self.state), self.changes.clone(), self.dead.clone());
        state.lock().unwrap().streams += 1;
        tokio::spawn(async move {
            let mut subscriptions: HashMap<ResourceType, Subscription> = HashMap::new();
            loop {
                let responses = difference(&mut state.lock().unwrap(), &mut subscriptions);
                let last = state.lock().unwrap().flaps && !responses.is_empty();
                for response in responses {
                    _ = out.send(Ok(response)).await;
                }
                if last {
                    return;
                }
                tokio::select! {
                    message = inbound.message() => match message {
                        Ok(Some(request)) => note(&mut state.lock().unwrap(), &mut subscriptions, request),
                        _ => return,
                    },
                    _ = changes.changed() => {}
                    _ = dead.changed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(responses))))
    }
}

fn note(
    state: &mut State,
    subscriptions: &mut HashMap<ResourceType, Subscription>,
    request: DeltaDiscoveryRequest,
) {
    let kind = ResourceType::from_type_url(&request.type_url).expect("a known type");
    let subscription = subscriptions.entry(kind).or_default();
    subscription.asked = true;
    subscription.named |= !request.resource_names_subscribe.is_empty();
    subscription.names.extend(request.resource_names_subscribe.iter().cloned());
    for name in &request.resource_names_unsubscribe {
        subscription.names.remove(name);
        subscription.has.remove(name);
        subscription.has.retain(|has, _| leds::collection_of(has).as_ref() != Some(name));
    }
    subscription.has.extend(request.initial_resource_versions.clone());
    state.requests.push(request);
}

/// What the stream lacks, one response a type, in make-before-break order.
fn difference(
    state: &mut State,
    subscriptions: &mut HashMap<ResourceType, Subscription>,
) -> Vec<DeltaDiscoveryResponse> {
    let mut responses = Vec::new();
    state.served = state.revision;
    for kind in ResourceType::ALL.into_iter().filter(|kind| !state.muted.contains(kind)).collect::<Vec<_>>() {
        let Some(subscription) = subscriptions.get_mut(&kind).filter(|s| s.asked) else { continue };
        let now: BTreeMap<&String, (String, &Vec<u8>)> = state
            .resources
            .iter()
            .filter(|((k, name), _)| *k == kind && subscription.wants(kind, name))
            .map(|((_, name), value)| (name, (content_version(value), value)))
            .collect();
        let changed: Vec<Resource> = now
            .iter()
            .filter(|(name, (version, _))| subscription.has.get(**name) != Some(version))
            .map(|(name, (version, value))| Resource {
                name: (*name).clone(),
                version: version.clone(),
                resource: Some(Any { type_url: kind.type_url().to_owned(), value: (*value).clone() }),
                ..Default::default()
            })
            .collect();
        let mut removed: Vec<String> =
            subscription.has.keys().filter(|name| !now.contains_key(name)).cloned().collect();
        if kind == ResourceType::LbEndpoint {
            removed.extend(subscription.emptied(&now.keys().copied().collect::<Vec<_>>()));
        }
        if changed.is_empty() && removed.is_empty() {
            continue;
        }
        state.nonce += 1;
        let nonce = state.nonce.to_string();
        subscription.has =
            now.iter().map(|(name, (version, _))| ((*name).clone(), version.clone())).collect();
        state.sent.extend(changed.iter().map(|r| (kind, r.name.clone(), nonce.clone())));
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources: changed,
            removed_resources: removed,
            nonce,
            ..Default::default()
        };
        state.size = response.encoded_len();
        responses.push(response);
    }
    responses
}

// ---- resources ----

pub fn cluster(name: &str, protocol: config::Protocol) -> (ResourceType, String, Vec<u8>) {
    let value = config::xds::cluster::encode(&name.parse().unwrap(), protocol, None).encode_to_vec();
    (ResourceType::Cluster, name.to_owned(), value)
}

pub fn endpoints(name: &str, addresses: &[SocketAddr]) -> (ResourceType, String, Vec<u8>) {
    let endpoints: Vec<config::Endpoint> = addresses
        .iter()
        .map(|address| config::Endpoint {
            id: format!("e{}", address.port()).parse().unwrap(),
            address: *address,
            weight: 1,
            zone: None,
            health: config::Health::Ready,
            lease: config::Lease::Permanent,
        })
        .collect();
    let value = config::xds::assignment::encode(&name.parse().unwrap(), &endpoints).encode_to_vec();
    (ResourceType::LoadAssignment, name.to_owned(), value)
}

/// The assignment of `cluster`, with a collection for each zone; "" is none.
pub fn collections(cluster: &str, zones: &[&str]) -> (ResourceType, String, Vec<u8>) {
    let zones: Vec<Option<config::Zone>> = zones.iter().map(|zone| zone.parse().ok()).collect();
    let value = leds::encode_assignment(&cluster.parse().unwrap(), zones.iter().map(Option::as_ref));
    (ResourceType::LoadAssignment, cluster.to_owned(), value.encode_to_vec())
}

/// An endpoint in one of those.
pub fn member(cluster: &str, zone: &str, id: &str, address: SocketAddr) -> (ResourceType, String, Vec<u8>) {
    let endpoint = config::Endpoint {
        id: id.parse().unwrap(),
        address,
        weight: 1,
        zone: zone.parse().ok(),
        health: config::Health::Ready,
        lease: config::Lease::Permanent,
    };
    let name = leds::member_name(&cluster.parse().unwrap(), endpoint.zone.as_ref(), &endpoint.id);
    (ResourceType::LbEndpoint, name, leds::encode_member(&endpoint).encode_to_vec())
}

pub fn listener(name: &str, listen: SocketAddr) -> (ResourceType, String, Vec<u8>) {
    let gateway = config::Gateway { name: name.parse().unwrap(), listen, tls: None };
    (ResourceType::Listener, name.to_owned(), config::xds::listener::encode(&gateway).encode_to_vec())
}

/// Routes of gateway `name`: everything of every host goes to `service`, split by `weights`.
pub fn routes(name: &str, service: &str, weights: &[(&str, u32)]) -> (ResourceType, String, Vec<u8>) {
    let split = config::Split::new(weights.iter().map(|(v, w)| (v.parse().unwrap(), *w)).collect()).unwrap();
    let route = config::Route {
        name: "all".parse().unwrap(),
        gateway: name.parse().unwrap(),
        hosts: vec!["*".parse().unwrap()],
        rules: vec![config::Rule {
            matches: config::RouteMatch { path: config::PathMatch::Prefix("/".into()), headers: vec![] },
            service: service.parse().unwrap(),
        }],
    };
    let value =
        config::xds::route::encode(&name.parse().unwrap(), [&route], |_| Some(&split)).encode_to_vec();
    (ResourceType::RouteConfiguration, name.to_owned(), value)
}
