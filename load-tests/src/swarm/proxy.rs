//! One proxy of the swarm.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use anyhow::{Context, bail};
use bytes::Bytes;
use prost::Message;
use tokio::net::TcpStream;

use super::{
    http2::Connection,
    plan::{self, Plan},
    wire::{self, Assignment, CDS, EDS, Endpoint, LDS, LEDS, Node, RDS, Request, Response},
};

const METHOD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
/// What members of collections of endpoints begin with.
const MEMBERS: &[u8] = b"xdstp:///envoy.config.endpoint.v3.LbEndpoint/";

/// What all of them share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) server: SocketAddr,
    /// Whether they ask for endpoints one by one.
    pub(super) leds: bool,
    pub(super) services: usize,
    /// How many endpoints there are while proxies connect.
    pub(super) endpoints: AtomicUsize,
    pub(super) plan: Plan,
    /// When each that has everything had it, in ns since the swarm began.
    pub(super) synced: Mutex<Vec<u64>>,
    /// Bytes that arrived at all sockets.
    pub(super) received: AtomicU64,
    /// Responses that were acknowledged.
    pub(super) responses: AtomicU64,
    /// Why some are gone.
    pub(super) failures: Mutex<Vec<String>>,
}

struct Proxy {
    shared: Arc<Shared>,
    /// What is to be sent next.
    requests: Vec<Bytes>,
    /// By service.
    known: Vec<Known>,
    /// Probes that are there, by service, where endpoints come one by one.
    probes: HashMap<u32, Vec<u32>>,
    clusters: usize,
    assignments: usize,
    endpoints: usize,
    routes: usize,
    synced: bool,
}

#[derive(Clone, Copy, Default)]
struct Known {
    cluster: bool,
    assignment: bool,
    collection: bool,
    /// Changes of its endpoints that are applied.
    behind: u32,
}

/// Connects, follows, and acknowledges until it is dropped or the server ends it.
pub(super) async fn run(shared: Arc<Shared>, number: usize) {
    if let Err(error) = follow(Arc::clone(&shared), number).await {
        shared.failures.lock().unwrap().push(format!("proxy {number}: {error:#}"));
    }
}

async fn follow(shared: Arc<Shared>, number: usize) -> anyhow::Result<()> {
    let stream = TcpStream::connect(shared.server).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let mut connection = Connection::call(stream, METHOD);
    let services = shared.services;
    let mut proxy = Proxy {
        shared,
        requests: Vec::new(),
        known: vec![Known::default(); services],
        probes: HashMap::new(),
        clusters: 0,
        assignments: 0,
        endpoints: 0,
        routes: 0,
        synced: false,
    };
    proxy.greet(number);
    loop {
        proxy.requests.drain(..).for_each(|request| connection.put(&request));
        connection.flush().await?;
        let content = connection.more().await?;
        let mut responses = 0;
        while let Some(message) = wire::next_message(content) {
            proxy.apply(message)?;
            responses += 1;
        }
        proxy.shared.responses.fetch_add(responses, Ordering::Relaxed);
        proxy.shared.received.fetch_add(connection.arrived(), Ordering::Relaxed);
    }
}

impl Proxy {
    fn send(&mut self, request: &Request) {
        self.requests.push(wire::frame(request));
    }

    fn greet(&mut self, number: usize) {
        let features = if self.shared.leds { vec!["sluicegate.leds".to_owned()] } else { Vec::new() };
        let node = Node {
            id: format!("swarm-{number}"),
            cluster: "swarm".to_owned(),
            user_agent_name: "swarm".to_owned(),
            client_features: features,
        };
        self.send(&Request { node: Some(node), type_url: CDS.to_owned(), ..Default::default() });
        self.send(&Request { type_url: LDS.to_owned(), ..Default::default() });
    }

    fn subscribe(&mut self, type_url: &str, subscribe: Vec<String>) {
        if !subscribe.is_empty() {
            self.send(&Request { type_url: type_url.to_owned(), subscribe, ..Default::default() });
        }
    }

    /// Takes in a response, asks for what it names, acknowledges it, and only then says so.
    fn apply(&mut self, response: Response) -> anyhow::Result<()> {
        let Response { type_url, nonce, resources, removed } = response;
        let mut applied = Vec::new();
        match type_url.as_str() {
            CDS => {
                let mut names = Vec::new();
                for resource in resources {
                    let known = &mut self.known[service_of(&resource.name)? as usize];
                    self.clusters += usize::from(!std::mem::replace(&mut known.cluster, true));
                    if !known.assignment {
                        names.push(String::from_utf8(resource.name.to_vec())?);
                    }
                }
                self.subscribe(EDS, names);
            }
            EDS => {
                let mut collections = Vec::new();
                for resource in resources {
                    let service = service_of(&resource.name)?;
                    applied.extend(self.assignment(service, &resource.value(), &mut collections)?);
                }
                self.subscribe(LEDS, collections);
            }
            LEDS => {
                let mut touched = Vec::new();
                for resource in resources {
                    let (service, id) = member(&resource.name)?;
                    let endpoint = Endpoint::decode(resource.value())?;
                    if let Some(probe) = endpoint.address().and_then(plan::probe_at) {
                        anyhow::ensure!(id == format!("p{probe}").as_bytes(), "{:?}", resource.name);
                        self.probes.entry(service).or_default().push(probe);
                        touched.push(service);
                    }
                    self.endpoints += 1;
                }
                for name in removed {
                    let (service, id) = member(&name)?;
                    let probe: Option<u32> =
                        std::str::from_utf8(id).ok().and_then(|id| id.strip_prefix('p')?.parse().ok());
                    if let Some(probe) = probe {
                        self.probes.entry(service).or_default().retain(|known| *known != probe);
                        touched.push(service);
                    }
                }
                touched.dedup();
                let behind = |service: u32| plan::changes_behind(self.probes[&service].iter().copied());
                applied.extend(touched.into_iter().map(|service| (service, behind(service))));
            }
            LDS => {
                let names = resources.iter().flat_map(|listener| wire::routes_of(listener.value())).collect();
                self.subscribe(RDS, names);
            }
            RDS => self.routes += resources.len(),
            other => bail!("{other} was not asked for"),
        }
        self.send(&Request { type_url, response_nonce: nonce, ..Default::default() });
        for (service, behind) in applied {
            let known = &mut self.known[service as usize];
            if behind > known.behind {
                self.shared.plan.applied(service, known.behind, behind);
                known.behind = behind;
            }
        }
        self.note_synced();
        Ok(())
    }

    /// The changes that a load assignment has behind it, unless its endpoints come one by one.
    fn assignment(
        &mut self,
        service: u32,
        value: &Bytes,
        collections: &mut Vec<String>,
    ) -> anyhow::Result<Option<(u32, u32)>> {
        let assignment = Assignment::decode(value.clone())?;
        let known = &mut self.known[service as usize];
        let first = !std::mem::replace(&mut known.assignment, true);
        self.assignments += usize::from(first);
        if let Some(collection) = assignment.localities.iter().find_map(|locality| locality.leds.as_ref()) {
            if !std::mem::replace(&mut known.collection, true) {
                collections.push(collection.name.clone());
            }
            return Ok(None);
        }
        let endpoints = assignment.localities.iter().flat_map(|locality| &locality.endpoints);
        let mut count = 0;
        let addresses = endpoints.inspect(|_| count += 1).filter_map(Endpoint::address);
        let behind = plan::changes_behind(addresses.filter_map(plan::probe_at));
        self.endpoints += if first { count } else { 0 };
        Ok(Some((service, behind)))
    }

    fn note_synced(&mut self) {
        let services = self.shared.services;
        let all = self.clusters == services
            && self.assignments == services
            && self.endpoints >= self.shared.endpoints.load(Ordering::Relaxed)
            && self.routes > 0;
        if all && !std::mem::replace(&mut self.synced, true) {
            let now = self.shared.plan.now_ns();
            self.shared.synced.lock().unwrap().push(now);
        }
    }
}

/// The number of a service, of a cluster such as `s12/v1`.
fn service_of(cluster: &[u8]) -> anyhow::Result<u32> {
    let name = std::str::from_utf8(cluster)?;
    let number = name.strip_prefix('s').and_then(|rest| rest.strip_suffix("/v1")?.parse().ok());
    number.with_context(|| format!("`{name}` is not a cluster of the swarm"))
}

/// The service and the id of a member of a collection: `…/s12/v1/zone/id`.
fn member(name: &Bytes) -> anyhow::Result<(u32, &[u8])> {
    let mut segments = name.strip_prefix(MEMBERS).unwrap_or_default().splitn(4, |byte| *byte == b'/');
    let service =
        segments.next().and_then(|name| std::str::from_utf8(name).ok()?.strip_prefix('s')?.parse().ok());
    let id = segments.nth(2);
    service.zip(id).with_context(|| format!("{name:?} is not the name of an endpoint"))
}
