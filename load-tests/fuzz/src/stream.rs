//! A client and a session of the server, and the network between them.

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use xds_server::{
    kind::{Client, Kind},
    snapshot::Snapshot,
    subscription::{ACK_TIMEOUT, RESPONSE_BYTES, Reply, Response, Session, Variant},
};

use crate::{
    client::Following,
    input::Input,
    world::{self, BAD, KINDS, NAMES, OTHERS},
};

/// How many pauses it may take until nothing is sent any more.
const SETTLED: usize = 64;

/// Everything there is.
#[derive(Debug)]
pub struct Stream {
    variant: Variant,
    client: Client,
    kinds: Vec<Kind>,
    /// Whether refusals name what is wrong.
    precise: bool,
    snapshot: Snapshot,
    session: Session,
    /// What the session has been told of the snapshots.
    told: u64,
    applied: u64,
    now: Instant,
    following: BTreeMap<Kind, Following>,
    /// On the way to the client.
    sent: VecDeque<Response>,
    /// The newest nonce of each type that the server has sent.
    nonces: BTreeMap<Kind, String>,
}

impl Stream {
    pub fn new(input: &mut Input<'_>) -> Self {
        let choices = input.byte();
        let is = |bit: u8| choices & (1 << bit) != 0;
        let variant = if is(0) { Variant::Incremental } else { Variant::StateOfTheWorld };
        // The protocol of collections is incremental only.
        let client = Client { grpc: is(1), collections: is(2) && is(0), ttl: is(3) };
        let kinds = if is(4) { vec![input.one_of(&KINDS).clone()] } else { KINDS.to_vec() };
        let snapshot = Snapshot::empty(1);
        Self {
            session: session(kinds.len() == 1, variant, client, &snapshot),
            variant,
            client,
            kinds,
            precise: is(5),
            snapshot,
            told: 1,
            applied: 0,
            now: Instant::now(),
            following: BTreeMap::new(),
            sent: VecDeque::new(),
            nonces: BTreeMap::new(),
        }
    }

    /// Does one thing.
    pub fn step(&mut self, input: &mut Input<'_>) {
        match input.below(16) {
            0..=3 => self.change(input),
            4 => {
                let revision = self.snapshot.revision() + 2;
                self.snapshot = world::forgotten(&self.snapshot, revision);
            }
            5 => self.tell(),
            6 | 7 => _ = self.poll(),
            8 => self.deliver(),
            9 => {
                self.poll();
                self.deliver();
                let (kind, newest) = (self.kind(input), input.yes());
                self.answer(&kind, newest);
            }
            10 => {
                let (kind, newest) = (self.kind(input), input.yes());
                self.answer(&kind, newest);
            }
            11 => self.subscribe(input),
            12 => self.unsubscribe(input),
            13 => self.reconnect(input),
            14 => self.now += Duration::from_millis(100) * u32::from(input.byte()),
            _ => self.stale(input),
        }
        self.check_applied();
    }

    fn kind(&self, input: &mut Input<'_>) -> Kind {
        input.one_of(&self.kinds).clone()
    }

    // ---- the server's side ----

    fn change(&mut self, input: &mut Input<'_>) {
        let choices = input.byte();
        let updates: Vec<_> = (0..=choices % 3)
            .map(|_| {
                let kind = self.kind(input);
                world::update(input, &kind, self.client)
            })
            .collect();
        self.snapshot = self.snapshot.with(self.snapshot.revision() + 1, updates);
        if choices & 0x80 == 0 {
            self.tell();
        }
    }

    fn tell(&mut self) {
        self.session.on_snapshot(self.snapshot.clone());
        self.told = self.snapshot.revision();
    }

    /// Sends what is due; whether anything was.
    fn poll(&mut self) -> bool {
        let Some(response) = self.session.poll(self.now) else {
            let deadline = self.session.deadline(self.now);
            assert!(deadline.is_none_or(|at| at > self.now), "a deadline that has passed is a busy loop");
            return false;
        };
        self.check(&response);
        self.nonces.insert(response.kind.clone(), response.nonce.to_string());
        self.sent.push_back(response);
        true
    }

    fn check(&self, response: &Response) {
        let Response { kind, resources, removed, .. } = response;
        let names: HashSet<&str> = resources.iter().map(|resource| &*resource.name).collect();
        assert_eq!(names.len(), resources.len(), "a resource is sent twice");
        assert!(removed.iter().all(|name| !names.contains(&**name)), "sent and removed");
        assert!(self.client.ttl || response.heartbeats.is_empty(), "signs of life that nobody understands");
        let whole = self.variant == Variant::StateOfTheWorld && kind.is_whole();
        let bytes: usize = resources.iter().map(|resource| resource.size()).sum();
        assert!(whole || resources.len() < 2 || bytes <= RESPONSE_BYTES, "{bytes} bytes");
        match self.variant {
            Variant::Incremental => {
                assert!(response.version_info.is_empty());
                let following = &self.following[kind];
                assert!(names.iter().all(|name| following.wants(name)), "nobody asked for {names:?}");
            }
            Variant::StateOfTheWorld => assert!(removed.is_empty() && !response.version_info.is_empty()),
        }
        assert_ne!(self.nonces.get(kind).map(String::as_str), Some(&*response.nonce), "a nonce again");
    }

    fn check_applied(&mut self) {
        let applied = self.session.applied(self.now);
        assert!((self.applied..=self.told).contains(&applied), "{} to {applied}", self.applied);
        self.applied = applied;
    }

    // ---- the client's side ----

    fn deliver(&mut self) {
        let Some(response) = self.sent.pop_front() else { return };
        let following = self.following.get_mut(&response.kind).expect("only what was asked for is sent");
        following.apply(&response, self.variant, self.precise);
    }

    fn answer(&mut self, kind: &Kind, newest: bool) -> bool {
        let Some(following) = self.following.get_mut(kind) else { return false };
        let Some((nonce, error_detail)) = following.answer(newest) else { return false };
        match self.variant {
            Variant::Incremental => {
                self.incremental(
                    kind,
                    DeltaDiscoveryRequest { response_nonce: nonce, error_detail, ..Default::default() },
                );
            }
            Variant::StateOfTheWorld => {
                let request = following.request(kind, self.client);
                let request = DiscoveryRequest { response_nonce: nonce, error_detail, ..request };
                self.state_of_the_world(kind, request);
            }
        }
        true
    }

    fn subscribe(&mut self, input: &mut Input<'_>) {
        let kind = self.kind(input);
        let named = self.names(input);
        for name in &named {
            self.following.entry(kind.clone()).or_default().add(name);
        }
        self.ask(&kind, named, true);
    }

    fn unsubscribe(&mut self, input: &mut Input<'_>) {
        let kind = self.kind(input);
        let named = self.names(input);
        for name in &named {
            self.following.entry(kind.clone()).or_default().take(name);
        }
        self.ask(&kind, named, false);
    }

    fn names(&self, input: &mut Input<'_>) -> Vec<&'static str> {
        // A state of the world has no collections.
        let others = if self.variant == Variant::Incremental { OTHERS.len() } else { 3 };
        let count = [1, 1, 2, 0][input.below(4)];
        let name = |at: usize| NAMES.get(at).unwrap_or_else(|| &OTHERS[at - NAMES.len()]);
        (0..count).map(|_| *name(input.below(NAMES.len() + others))).collect()
    }

    /// Says that `named` was added or taken away.
    fn ask(&mut self, kind: &Kind, named: Vec<&'static str>, added: bool) {
        let following = self.following.entry(kind.clone()).or_default();
        match self.variant {
            Variant::Incremental if !following.asked => {
                let request = following.first(kind, self.client, false);
                self.incremental(kind, request);
            }
            Variant::Incremental => {
                following.drop_unwanted();
                let names = named.into_iter().map(str::to_owned).collect();
                let request = if added {
                    DeltaDiscoveryRequest { resource_names_subscribe: names, ..Default::default() }
                } else {
                    DeltaDiscoveryRequest { resource_names_unsubscribe: names, ..Default::default() }
                };
                self.incremental(kind, request);
            }
            Variant::StateOfTheWorld => {
                let request = following.request(kind, self.client);
                self.state_of_the_world(kind, request);
            }
        }
    }

    /// A new stream, to this server or to one that is further.
    fn reconnect(&mut self, input: &mut Input<'_>) {
        let choices = input.byte();
        let (remembers, garbled, reversed) = (choices & 3 != 0, choices & 3 == 1, choices & 4 != 0);
        self.session = session(self.kinds.len() == 1, self.variant, self.client, &self.snapshot);
        self.told = self.snapshot.revision();
        self.applied = 0;
        self.sent.clear();
        self.nonces.clear();
        let mut kinds: Vec<Kind> = self.following.keys().cloned().collect();
        if reversed {
            kinds.reverse();
        }
        for following in self.following.values_mut() {
            following.begin(remembers || self.variant == Variant::StateOfTheWorld);
        }
        for kind in kinds {
            let following = self.following.get_mut(&kind).expect("it is one of its keys");
            match self.variant {
                Variant::Incremental => {
                    let request = following.first(&kind, self.client, garbled);
                    self.incremental(&kind, request);
                }
                Variant::StateOfTheWorld => {
                    let request = following.request(&kind, self.client);
                    self.state_of_the_world(&kind, request);
                }
            }
        }
    }

    /// A request with a nonce that means nothing, which changes nothing.
    fn stale(&mut self, input: &mut Input<'_>) {
        let kind = self.kind(input);
        if !self.following.get(&kind).is_some_and(|following| following.asked) {
            return;
        }
        let response_nonce = ["ffff".to_owned(), " ".to_owned()][input.below(2)].clone();
        let reply = match self.variant {
            Variant::Incremental => {
                let request = DeltaDiscoveryRequest { response_nonce, ..Default::default() };
                self.session.on_incremental(&kind, request, self.now)
            }
            Variant::StateOfTheWorld => {
                let resource_names = vec!["stale".to_owned()];
                let request = DiscoveryRequest { response_nonce, resource_names, ..Default::default() };
                self.session.on_state_of_the_world(&kind, request, self.now)
            }
        };
        assert_eq!(reply, Ok(None));
    }

    // ---- between them ----

    fn incremental(&mut self, kind: &Kind, request: DeltaDiscoveryRequest) {
        let refuses = request.error_detail.is_some();
        let reply = self.session.on_incremental(kind, request, self.now).expect("it asks for little");
        check_reply(reply.as_ref(), refuses);
    }

    fn state_of_the_world(&mut self, kind: &Kind, request: DiscoveryRequest) {
        let following = self.following.get_mut(kind).expect("it asks for this type");
        let nonce = &request.response_nonce;
        // A client cannot know, but by what it is sent later: here it drops nothing before it could.
        let accepted = !following.asked || nonce.is_empty() || self.nonces.get(kind) == Some(nonce);
        if accepted {
            following.accepted(request.resource_names.is_empty());
        }
        let refuses = request.error_detail.is_some();
        let reply = self.session.on_state_of_the_world(kind, request, self.now).expect("it asks for little");
        // What is said of an older response counts, though the names beside it do not.
        check_reply(reply.as_ref(), refuses);
    }

    // ---- the end ----

    /// Everything arrives and is answered: then the client holds what it asked for.
    pub fn settle(&mut self) {
        self.tell();
        let mut quiet = 0;
        for pause in 0.. {
            assert!(pause < SETTLED, "it never ends");
            quiet += 1;
            let mut responses = 0;
            while self.poll() {
                responses += 1;
                assert!(responses <= self.kinds.len(), "several responses of one type are on their way");
            }
            // Signs of life never end, be they the state of the world.
            let says = |response: &Response| {
                let lives = response.resources.iter().any(|resource| resource.ttl.is_some());
                let whole = self.variant == Variant::StateOfTheWorld && response.kind.is_whole();
                let alive = whole && lives && self.client.ttl;
                !alive && response.resources.len() + response.removed.len() > 0
            };
            if self.sent.iter().any(says) {
                quiet = 0;
            }
            while !self.sent.is_empty() {
                self.deliver();
            }
            for kind in self.kinds.clone() {
                while self.answer(&kind, false) {}
            }
            if quiet > 3 {
                break;
            }
            self.now += ACK_TIMEOUT;
        }
        self.check_applied();
        for kind in &self.kinds {
            self.check_held(kind);
        }
        let asked = self.following.values().any(|following| following.asked);
        let refused = self.kinds.iter().any(|kind| self.session.is_refused(kind));
        if asked && !refused {
            assert_eq!(self.applied, self.told, "the client has everything");
        }
    }

    fn check_held(&self, kind: &Kind) {
        let Some(following) = self.following.get(kind) else { return };
        let resources = self.snapshot.resources(&(kind.clone(), self.client.view(kind)));
        let mut bad = false;
        for (name, resource) in resources.iter().filter(|(name, _)| following.wants(name)) {
            if resource.value() == BAD {
                bad = true;
            } else {
                let held = following.held.get(name);
                assert_eq!(held, Some(&resource.version), "{kind} {name}: {following:?}");
            }
        }
        // A partial state of the world cannot say that something is gone, and nothing goes while a
        // refusal stands, of which it is not known what the client goes on with.
        let partial = self.variant == Variant::StateOfTheWorld && !kind.is_whole();
        let waits = self.kinds.len() > 1 && self.kinds.iter().any(|kind| self.session.is_refused(kind));
        if !partial && !waits {
            for name in following.held.keys() {
                assert!(resources.contains_key(name), "{kind} {name} is gone: {following:?}");
            }
        }
        assert!(following.held.keys().all(|name| following.wants(name)), "{following:?}");
        let refused = self.session.is_refused(kind);
        assert!(bad || !refused || !self.precise, "{kind}: what was refused is no longer there");
    }
}

fn session(single: bool, variant: Variant, client: Client, snapshot: &Snapshot) -> Session {
    let new = if single { Session::of_one_type } else { Session::new };
    new(variant, client, snapshot.clone())
}

fn check_reply(reply: Option<&Reply>, refuses: bool) {
    match reply {
        None => {}
        Some(Reply::Ack(_)) => assert!(!refuses, "a refusal was taken for an acknowledgement"),
        Some(Reply::Nack(_)) => assert!(refuses, "an acknowledgement was taken for a refusal"),
    }
}
