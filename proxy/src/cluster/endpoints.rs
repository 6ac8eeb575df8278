//! The endpoints of a cluster, by address and ready to be picked. Copying them is cheap, and a change of
//! one costs the same however many there are.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use config::{Health, xds::assignment::AssignedEndpoint};

use crate::{
    balance::{
        bag::{Bag, Weighed},
        p2c,
    },
    load::EndpointLoad,
};

/// Up to so many are searched one by one: a map would cost more memory than they do.
const SEARCHED: u32 = 64;
/// With so few the map goes again.
const FEW: u32 = 32;

type Hasher = foldhash::fast::RandomState;

/// One endpoint of a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Endpoint {
    pub(crate) weight: u32,
    pub(crate) zone: Arc<str>,
    pub(crate) health: Health,
    pub(crate) load: Arc<EndpointLoad>,
}

impl Weighed for Endpoint {
    fn weight(&self) -> u32 {
        self.weight
    }
}

impl Endpoint {
    fn is_ready(&self) -> bool {
        self.health == Health::Ready
    }

    fn is(&self, assigned: &AssignedEndpoint) -> bool {
        *self.load.id == *assigned.id
            && self.weight == assigned.weight
            && self.health == assigned.health
            && *self.zone == *assigned.zone
    }
}

/// All endpoints of a cluster; addresses are unique.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    ready: Bag<Endpoint>,
    /// Those that take no requests.
    others: Bag<Endpoint>,
    /// Where each is; empty while there are few.
    places: imbl::GenericHashMap<SocketAddr, Place, Hasher, imbl::shared_ptr::DefaultSharedPtr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    ready: bool,
    at: u32,
}

/// Records of endpoints that are no longer there.
pub(crate) type Left = Vec<Arc<EndpointLoad>>;

impl Endpoints {
    /// How many there are.
    pub(crate) fn len(&self) -> u32 {
        self.ready.len() + self.others.len()
    }

    /// Those that take requests.
    pub(crate) fn ready(&self) -> &Bag<Endpoint> {
        &self.ready
    }

    /// All, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Endpoint> {
        self.ready.iter().chain(self.others.iter())
    }

    /// Picks a ready endpoint whose generation is not in `tried`; returns its place in
    /// [`Self::ready`].
    pub(crate) fn pick(&self, tried: &[u64], rng: &mut fastrand::Rng) -> Option<u32> {
        let in_flight = |endpoint: &Endpoint| endpoint.load.concurrency.in_flight();
        if tried.is_empty() {
            return p2c::pick(&self.ready, in_flight, rng);
        }
        let tried = |endpoint: &Endpoint| tried.contains(&endpoint.load.generation);
        p2c::pick_except(&self.ready, tried, in_flight, rng)
    }

    /// Makes them what is assigned, whose addresses are unique. Those that stay keep their record; the
    /// records of the others are added to `left`.
    pub(crate) fn replace(&mut self, assigned: &[AssignedEndpoint], left: &mut Left) {
        let mut before: HashMap<SocketAddr, &Endpoint, Hasher> =
            self.iter().map(|endpoint| (endpoint.load.address, endpoint)).collect();
        let differs = |assigned: &&AssignedEndpoint| {
            before.remove(&assigned.address).is_none_or(|endpoint| !endpoint.is(assigned))
        };
        let different: Vec<&AssignedEndpoint> = assigned.iter().filter(differs).collect();
        let gone: Vec<SocketAddr> = before.into_keys().collect();
        for address in gone {
            self.remove(address, left);
        }
        for endpoint in different {
            self.put(endpoint, left);
        }
    }

    /// Adds an endpoint, or changes the one at its address. It is another one if its id is another:
    /// the record of the one before is added to `left` then.
    pub(crate) fn put(&mut self, assigned: &AssignedEndpoint, left: &mut Left) {
        let before = self.find(assigned.address);
        let known = before.map(|place| self.bag(place.ready).at(place.at).clone());
        let load = match known {
            Some(known) if *known.load.id == *assigned.id => known.load,
            known => {
                left.extend(known.map(|known| known.load));
                Arc::new(EndpointLoad::new(Arc::clone(&assigned.id), assigned.address))
            }
        };
        let endpoint = Endpoint {
            weight: assigned.weight,
            zone: Arc::clone(&assigned.zone),
            health: assigned.health,
            load,
        };
        match before {
            Some(place) if place.ready == endpoint.is_ready() => {
                self.bag_mut(place.ready).set(place.at, endpoint);
            }
            before => {
                if let Some(place) = before {
                    self.take(place);
                }
                self.add(endpoint);
            }
        }
    }

    /// Takes out the endpoint at `address`, if there is one; its record is added to `left`.
    pub(crate) fn remove(&mut self, address: SocketAddr, left: &mut Left) {
        let Some(place) = self.find(address) else { return };
        left.extend(self.take(place).map(|endpoint| endpoint.load));
        self.places.remove(&address);
        if self.len() <= FEW {
            self.places.clear();
        }
    }

    fn bag(&self, ready: bool) -> &Bag<Endpoint> {
        if ready { &self.ready } else { &self.others }
    }

    fn bag_mut(&mut self, ready: bool) -> &mut Bag<Endpoint> {
        if ready { &mut self.ready } else { &mut self.others }
    }

    fn find(&self, address: SocketAddr) -> Option<Place> {
        if !self.places.is_empty() {
            return self.places.get(&address).copied();
        }
        let place = |ready: bool| {
            let at = self.bag(ready).iter().position(|endpoint| endpoint.load.address == address);
            at.map(|at| Place { ready, at: at as u32 })
        };
        place(true).or_else(|| place(false))
    }

    fn add(&mut self, endpoint: Endpoint) {
        if self.places.is_empty() && self.len() >= SEARCHED {
            for ready in [true, false] {
                let addresses: Vec<SocketAddr> = self.bag(ready).iter().map(|e| e.load.address).collect();
                let places = (0..).zip(addresses).map(|(at, address)| (address, Place { ready, at }));
                self.places.extend(places);
            }
        }
        let (ready, address) = (endpoint.is_ready(), endpoint.load.address);
        let bag = self.bag_mut(ready);
        let at = bag.len();
        bag.push(endpoint);
        if !self.places.is_empty() {
            self.places.insert(address, Place { ready, at });
        }
    }

    /// Takes out the one at `place`; its address is still in the map.
    fn take(&mut self, place: Place) -> Option<Endpoint> {
        let bag = self.bag_mut(place.ready);
        let taken = bag.swap_remove(place.at);
        if place.at < bag.len() && !self.places.is_empty() {
            let moved = self.bag(place.ready).at(place.at).load.address;
            self.places.insert(moved, place);
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn random(rng: &mut fastrand::Rng, ports: u16) -> AssignedEndpoint {
        let port = rng.u16(1..ports);
        AssignedEndpoint {
            id: format!("e{}", rng.u8(0..2)).into(),
            address: ([127, 0, 0, 1], port).into(),
            weight: rng.u32(1..4),
            zone: ["", "a", "b"][rng.usize(0..3)].into(),
            health: [Health::Ready, Health::Ready, Health::Draining][rng.usize(0..3)],
        }
    }

    /// What is there, but for records.
    fn seen(endpoints: &Endpoints) -> BTreeMap<SocketAddr, AssignedEndpoint> {
        let seen = endpoints.iter().map(|e| {
            let Endpoint { weight, zone, health, load } = e;
            let (id, address) = (Arc::clone(&load.id), load.address);
            (address, AssignedEndpoint { id, address, weight: *weight, zone: zone.clone(), health: *health })
        });
        seen.collect()
    }

    fn records(endpoints: &Endpoints) -> BTreeMap<SocketAddr, Arc<EndpointLoad>> {
        endpoints.iter().map(|e| (e.load.address, Arc::clone(&e.load))).collect()
    }

    #[test]
    fn changes_one_by_one_end_where_the_whole_would_and_reset_no_record_that_stays() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let ports = [8, 60, 150, 400][rng.usize(0..4)];
            let mut endpoints = Endpoints::default();
            let mut model = BTreeMap::new();
            for step in 0..600 {
                let context = format!("seed {seed}, step {step}");
                let before = records(&endpoints);
                let mut left = Left::new();
                if rng.u8(0..40) == 0 {
                    let count = rng.usize(0..usize::from(ports));
                    let next = (0..count).map(|_| random(&mut rng, ports)).map(|e| (e.address, e));
                    model = next.collect();
                    let mut assigned: Vec<_> = model.values().cloned().collect();
                    rng.shuffle(&mut assigned);
                    endpoints.replace(&assigned, &mut left);
                } else if (step / 200) % 2 == 1 && rng.bool() {
                    let address = random(&mut rng, ports).address;
                    model.remove(&address);
                    endpoints.remove(address, &mut left);
                } else {
                    let endpoint = random(&mut rng, ports);
                    endpoints.put(&endpoint, &mut left);
                    model.insert(endpoint.address, endpoint);
                }
                assert_eq!(seen(&endpoints), model, "{context}");
                assert_eq!(endpoints.len() as usize, model.len(), "{context}");
                let ready = model.values().filter(|e| e.health == Health::Ready).count();
                assert_eq!(endpoints.ready().len() as usize, ready, "{context}");
                for address in model.keys() {
                    let place = endpoints.find(*address).unwrap();
                    let found = endpoints.bag(place.ready).at(place.at).load.address;
                    assert_eq!(found, *address, "{context}");
                }
                let after = records(&endpoints);
                let stays = |address: &SocketAddr, load: &Arc<EndpointLoad>| {
                    after.get(address).is_some_and(|now| Arc::ptr_eq(now, load))
                };
                for (address, load) in &before {
                    let same = model.get(address).is_some_and(|e| e.id == load.id);
                    assert_eq!(stays(address, load), same, "{context}: {address}");
                    let noted = left.iter().filter(|gone| Arc::ptr_eq(gone, load)).count();
                    assert_eq!(noted, usize::from(!same), "{context}: {address}");
                }
            }
        }
    }
}
