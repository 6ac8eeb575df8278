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
        if self.wildcard && !names.is_empty() {
            names.push("*".to_owned());
        }
        DeltaDiscoveryRequest {
            resource_names_subscribe: names,
            initial_resource_versions: self.held.iter().map(|(n, v)| (n.clone(), v.to_string())).collect(),
            ..Default::default()
        }
    }
}

/// Design invariant 3: deltas in order give exactly the subscribed part of the snapshot, under any
/// order of changes, acknowledgements, subscriptions and reconnects.
#[test]
fn any_interleaving_ends_with_the_subscribed_part_of_the_snapshot() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(42);
    let mut rng = fastrand::Rng::with_seed(seed);
    for round in 0..400 {
        let mut snapshot = Snapshot::empty(0);
        let mut revision = 0;
        let mut now = Instant::now();
        let mut client = Model { wildcard: rng.bool(), ..Model::default() };
        if !client.wildcard {
            // A first request without names would be a wildcard by the legacy rule.
            client.names.insert("0".to_owned());
        }
        let mut session = Session::new(Variant::Incremental, Client::default(), snapshot.clone());
        session.on_incremental(&CDS, client.request(), now).unwrap();
        for _ in 0..rng.usize(1..120) {
            match rng.u8(0..12) {
                0..=3 => {
                    revision += 1;
                    let updates: Vec<Update> = (0..rng.usize(1..4))
                        .map(|_| {
                            let name = rng.u8(0..8).to_string();
                            if rng.u8(0..3) == 0 {
                                gone(CDS, &name)
                            } else {
                                put(CDS, &name, &rng.u8(0..4).to_string())
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
                        let request = DeltaDiscoveryRequest {
                            response_nonce: response.nonce.to_string(),
                            ..Default::default()
                        };
                        session.on_incremental(&CDS, request, now).unwrap();
                    }
                }
                9 => {
                    let name = rng.u8(0..8).to_string();
                    let add = rng.bool();
                    let request = if add {
                        client.names.insert(name.clone());
                        DeltaDiscoveryRequest { resource_names_subscribe: vec![name], ..Default::default() }
                    } else {
                        if client.names.remove(&name) && !client.wildcard {
                            client.held.remove(&name);
                        }
                        DeltaDiscoveryRequest { resource_names_unsubscribe: vec![name], ..Default::default() }
                    };
                    session.on_incremental(&CDS, request, now).unwrap();
                }
                10 => {
                    session = Session::new(Variant::Incremental, Client::default(), snapshot.clone());
                    client.unanswered = None;
                    if !client.wildcard && client.names.is_empty() {
                        client.names.insert("0".to_owned());
                    }
                    session.on_incremental(&CDS, client.request(), now).unwrap();
                }
                _ => now += Duration::from_secs(rng.u64(0..5)),
            }
        }
        session.on_snapshot(snapshot.clone());
        for _ in 0..8 {
            now += ACK_TIMEOUT;
            while let Some(response) = session.poll(now) {
                client.apply(&response, Variant::Incremental);
                let ack = DeltaDiscoveryRequest {
                    response_nonce: response.nonce.to_string(),
                    ..Default::default()
                };
                session.on_incremental(&CDS, ack, now).unwrap();
            }
        }
        let expected: BTreeMap<String, Version> = snapshot
            .resources(&on(CDS))
            .iter()
            .filter(|(name, _)| client.wildcard || client.names.contains(&***name))
            .map(|(name, resource)| (name.to_string(), resource.version))
            .collect();
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
