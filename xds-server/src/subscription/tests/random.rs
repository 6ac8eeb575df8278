//! What any interleaving of changes, answers, subscriptions and reconnects ends with.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::resource::Version;

/// A client that applies what it is sent, like any real one.
#[derive(Default)]
struct Model {
    held: BTreeMap<String, Version>,
    names: BTreeSet<String>,
    wildcard: bool,
    unanswered: Option<Response>,
}

impl Model {
    fn apply(&mut self, response: &Response, variant: Variant) {
        if variant == Variant::StateOfTheWorld {
            self.held.clear();
        }
        for resource in &response.resources {
            self.held.insert(resource.name.to_string(), resource.version);
        }
        for name in &response.removed {
            self.held.remove(&**name);
        }
    }

    fn request(&self) -> DeltaDiscoveryRequest {
        let mut names: Vec<String> = self.names.iter().cloned().collect();
        if self.wildcard {
            names.push("*".to_owned());
        }
        DeltaDiscoveryRequest {
            resource_names_subscribe: names,
            initial_resource_versions: self.held.iter().map(|(n, v)| (n.clone(), v.to_string())).collect(),
            ..Default::default()
        }
    }

    fn wants(&self, name: &str) -> bool {
        let collection = name.rfind('/').map(|slash| format!("{}*", &name[..=slash]));
        self.wildcard || self.names.contains(name) || collection.is_some_and(|c| self.names.contains(&c))
    }

    /// What is given up is forgotten.
    fn give_up(&mut self, name: &str) {
        if self.names.remove(name) {
            let held = std::mem::take(&mut self.held);
            self.held = held.into_iter().filter(|(name, _)| self.wants(name)).collect();
        }
    }
}

/// What a client may ask for, and what there may be.
struct World {
    kind: Kind,
    asked: Vec<String>,
    there: Vec<String>,
}

/// Design invariant 3: deltas in order give exactly the subscribed part of the snapshot, under any
/// order of changes, acknowledgements, subscriptions and reconnects, however much fits into a response.
#[test]
fn any_interleaving_ends_with_the_subscribed_part_of_the_snapshot() {
    let names: Vec<String> = (0..8).map(|n| n.to_string()).collect();
    incremental(&World { kind: CDS, asked: names.clone(), there: names }, 42);
}

#[test]
fn any_interleaving_over_collections_ends_with_the_same() {
    let below = |leaf: &[&str]| -> Vec<String> {
        let both = ["a", "b", "b/c"].iter().flat_map(|dir| leaf.iter().map(move |leaf| (dir, leaf)));
        both.map(|(dir, leaf)| format!("xdstp://authority/type/{dir}/{leaf}")).collect()
    };
    // One comes before the `*`, most behind it.
    let (asked, there) = (below(&["*", "*", "!", "2"]), below(&["!", "1", "2", "3"]));
    incremental(&World { kind: Kind::LbEndpoint, asked, there }, 44);
}

fn incremental(world: &World, seed: u64) {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(seed);
    let mut rng = fastrand::Rng::with_seed(seed);
    let shelf = on(world.kind.clone());
    let pick = |rng: &mut fastrand::Rng, names: &[String]| names[rng.usize(..names.len())].clone();
    for round in 0..800 {
        let mut snapshot = Snapshot::empty(0);
        let mut revision = 0;
        let mut now = Instant::now();
        let mut client = Model { wildcard: rng.bool(), ..Model::default() };
        // Much, little or nothing but one resource fits into a response.
        let budget = [1_000, 100, 1][rng.usize(..3)];
        let begin = |client: &mut Model, rng: &mut fastrand::Rng, snapshot: &Snapshot, now| {
            if client.names.is_empty() && !client.wildcard {
                // A first request without names would be a wildcard by the legacy rule.
                client.names.insert(pick(rng, &world.asked));
            }
            let mut session = Session::new(Variant::Incremental, Client::default(), snapshot.clone());
            session.on_incremental(&world.kind, client.request(), now).unwrap();
            session.interests.iter_mut().for_each(|interest| interest.budget = budget);
            session
        };
        let mut session = begin(&mut client, &mut rng, &snapshot, now);
        for _ in 0..rng.usize(1..120) {
            match rng.u8(0..12) {
                0..=3 => {
                    revision += 1;
                    let updates: Vec<Update> = (0..rng.usize(1..4))
                        .map(|_| {
                            let name = pick(&mut rng, &world.there);
                            if rng.u8(0..3) == 0 {
                                gone(world.kind.clone(), &name)
                            } else {
                                put(world.kind.clone(), &name, &rng.u8(0..4).to_string())
                            }
                        })
                        .collect();
                    snapshot = snapshot.with(revision, updates);
                    if rng.u8(0..4) == 0 {
                        snapshot = snapshot.without_log();
                    }
                    if rng.bool() {
                        session.on_snapshot(snapshot.clone());
                    }
                }
                4..=6 => {
                    if let Some(response) = session.poll(now) {
                        client.apply(&response, Variant::Incremental);
                        client.unanswered = Some(response);
                    }
                }
                7..=8 => {
                    if let Some(response) = client.unanswered.take() {
                        let response_nonce = response.nonce.to_string();
                        let request = DeltaDiscoveryRequest { response_nonce, ..Default::default() };
                        session.on_incremental(&world.kind, request, now).unwrap();
                    }
                }
                9 => {
                    let name = pick(&mut rng, &world.asked);
                    let mut request = DeltaDiscoveryRequest::default();
                    if rng.bool() {
                        client.names.insert(name.clone());
                        request.resource_names_subscribe.push(name);
                    } else {
                        client.give_up(&name);
                        request.resource_names_unsubscribe.push(name);
                    }
                    session.on_incremental(&world.kind, request, now).unwrap();
                }
                10 => {
                    client.unanswered = None;
                    if rng.bool() {
                        // A new process holds nothing.
                        client.held.clear();
                    }
                    session = begin(&mut client, &mut rng, &snapshot, now);
                }
                _ => now += Duration::from_secs(rng.u64(0..5)),
            }
        }
        session.on_snapshot(snapshot.clone());
        for _ in 0..40 {
            now += ACK_TIMEOUT;
            while let Some(response) = session.poll(now) {
                client.apply(&response, Variant::Incremental);
                let response_nonce = response.nonce.to_string();
                let ack = DeltaDiscoveryRequest { response_nonce, ..Default::default() };
                session.on_incremental(&world.kind, ack, now).unwrap();
            }
        }
        let all = snapshot.resources(&shelf).iter().filter(|(name, _)| client.wants(name));
        let expected: BTreeMap<String, Version> =
            all.map(|(name, resource)| (name.to_string(), resource.version)).collect();
        assert_eq!(client.held, expected, "SEED={seed}, round {round}");
    }
}

#[test]
fn state_of_the_world_ends_with_the_same() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(43);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..300 {
        let mut snapshot = Snapshot::empty(0);
        let now = Instant::now();
        let mut client = Model::default();
        let mut session = Session::new(Variant::StateOfTheWorld, Client::default(), snapshot.clone());
        session.on_state_of_the_world(&CDS, DiscoveryRequest::default(), now).unwrap();
        for revision in 1..rng.u64(2..60) {
            let name = rng.u8(0..8).to_string();
            let update =
                if rng.u8(0..3) == 0 { gone(CDS, &name) } else { put(CDS, &name, &rng.u8(0..4).to_string()) };
            snapshot = snapshot.with(revision, [update]);
            session.on_snapshot(snapshot.clone());
            if rng.bool()
                && let Some(response) = session.poll(now)
            {
                client.apply(&response, Variant::StateOfTheWorld);
                client.unanswered = Some(response);
            }
            if rng.bool()
                && let Some(response) = client.unanswered.take()
            {
                let ack =
                    DiscoveryRequest { response_nonce: response.nonce.to_string(), ..Default::default() };
                session.on_state_of_the_world(&CDS, ack, now).unwrap();
            }
        }
        let later = now + ACK_TIMEOUT;
        while let Some(response) = session.poll(later) {
            client.apply(&response, Variant::StateOfTheWorld);
            let ack = DiscoveryRequest { response_nonce: response.nonce.to_string(), ..Default::default() };
            session.on_state_of_the_world(&CDS, ack, later).unwrap();
        }
        let all = snapshot.resources(&on(CDS)).iter();
        let expected: BTreeMap<String, Version> =
            all.map(|(name, resource)| (name.to_string(), resource.version)).collect();
        assert_eq!(client.held, expected, "SEED={seed}, round {round}");
    }
}
