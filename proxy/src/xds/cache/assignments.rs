//! Load assignments and the collections they name: which endpoints there are.
//!
//! - An assignment goes live when all its collections have been answered, or were waited for in vain; the
//!   one before stays live meanwhile.
//! - A collection is answered when one of its members has come, or the server said that it has none. It is
//!   known, and subscribed to, as long as an assignment names it that is live or is going to be.
//! - At one address is one endpoint. If several members claim it, as when an instance is registered anew,
//!   it is the one with the greatest id, so that the order in which they came does not matter.
//!
//! What one change of a member costs does not depend on how many there are: the addresses it touches are
//! noted, and only those are published ([`Assignments::take_moved`]).

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Instant,
};

use config::xds::{
    assignment::{AssignedCollection, AssignedEndpoint, Assignment},
    leds,
};
use smallvec::SmallVec;

use super::WARMING_TIMEOUT;
use crate::cluster::EndpointChange;

/// Bound on members over all collections. One beyond it is refused.
const MAX_MEMBERS: usize = 1_000_000;

/// The assignments in use.
#[derive(Debug, Default)]
pub(super) struct Assignments {
    live: HashMap<Arc<str>, State>,
    /// What waits for its collections, and since when.
    staged: BTreeMap<Arc<str>, (Arc<Assignment>, Instant)>,
    collections: HashMap<Arc<str>, Collection>,
    members: usize,
    // What a single call gathers.
    whole: BTreeSet<Arc<str>>,
    moved: BTreeMap<Arc<str>, HashSet<SocketAddr>>,
    touched: BTreeSet<Arc<str>>,
    forgotten: Vec<Arc<str>>,
}

#[derive(Debug)]
struct State {
    assignment: Arc<Assignment>,
    /// Who is at each address; empty when the assignment names no collections, and has all in itself.
    claims: HashMap<SocketAddr, SmallVec<[Claim; 1]>>,
}

#[derive(Debug)]
struct Claim {
    endpoint: AssignedEndpoint,
    /// Name of the member; empty for one of the assignment itself.
    member: Arc<str>,
}

#[derive(Debug, Default)]
struct Collection {
    answered: bool,
    /// Waited for in vain, on this stream.
    given_up: bool,
    members: HashMap<Arc<str>, AssignedEndpoint>,
    /// Names of the assignments that name it; hardly ever more than one.
    users: BTreeSet<Arc<str>>,
}

impl Assignments {
    /// Takes in an assignment called `name`; it goes live with [`Self::promote`].
    pub(super) fn put(&mut self, name: &Arc<str>, assignment: Assignment, now: Instant) {
        let since = self.staged.get(name).map_or(now, |(_, since)| *since);
        for AssignedCollection { name: collection, .. } in &assignment.collections {
            let known = self.collections.entry(Arc::clone(collection)).or_default();
            if known.users.insert(Arc::clone(name)) {
                self.touched.insert(Arc::clone(collection));
            }
        }
        let replaced = self.staged.insert(Arc::clone(name), (Arc::new(assignment), since));
        if let Some((replaced, _)) = replaced {
            self.release(name, &replaced);
        }
    }

    /// Nobody follows the assignment any more.
    pub(super) fn drop(&mut self, name: &str) {
        let staged = self.staged.remove(name).map(|(assignment, _)| assignment);
        let live = self.live.remove(name).map(|state| state.assignment);
        self.moved.remove(name);
        self.whole.remove(name);
        for assignment in staged.into_iter().chain(live) {
            self.release(name, &assignment);
        }
    }

    /// What `before` named and `name` names no longer need not be known any more.
    fn release(&mut self, name: &str, before: &Assignment) {
        let live = self.live.get(name).map(|state| &state.assignment);
        let staged = self.staged.get(name).map(|(assignment, _)| assignment);
        let current: SmallVec<[&Arc<Assignment>; 2]> = live.into_iter().chain(staged).collect();
        for collection in &before.collections {
            if current.iter().any(|assignment| names(assignment, &collection.name).is_some()) {
                continue;
            }
            let Some(known) = self.collections.get_mut(&collection.name) else { continue };
            known.users.remove(name);
            if known.users.is_empty() {
                self.members -= known.members.len();
                self.forgotten.extend(known.members.drain().map(|(member, _)| member));
                self.collections.remove(&collection.name);
                self.touched.insert(Arc::clone(&collection.name));
            }
        }
    }

    // ---- members ----

    /// Takes in a member called `name`, which is returned; `None` when nobody asked for it.
    ///
    /// # Errors
    /// When there are too many.
    pub(super) fn put_member(
        &mut self,
        name: &str,
        endpoint: &AssignedEndpoint,
    ) -> Result<Option<Arc<str>>, String> {
        let Some(collection) = leds::collection_of(name) else { return Ok(None) };
        let Some((collection, known)) = entry(&mut self.collections, &collection) else { return Ok(None) };
        known.answered = true;
        let name: Arc<str> = match known.members.get_key_value(name) {
            Some((name, before)) => {
                if before == endpoint {
                    return Ok(Some(Arc::clone(name)));
                }
                Arc::clone(name)
            }
            None if self.members >= MAX_MEMBERS => {
                return Err(format!("at most {MAX_MEMBERS} endpoints are supported"));
            }
            None => {
                self.members += 1;
                name.into()
            }
        };
        let before = known.members.insert(Arc::clone(&name), endpoint.clone());
        for user in &known.users {
            let Some(state) = self.live.get_mut(user) else { continue };
            let Some(named) = names(&state.assignment, &collection) else { continue };
            let claim = Claim { endpoint: in_zone(endpoint, &named.zone), member: Arc::clone(&name) };
            let moved = self.moved.entry(Arc::clone(user)).or_default();
            if let Some(before) = &before {
                state.unclaim(before.address, &name, moved);
            }
            state.claim(claim, moved);
        }
        Ok(Some(name))
    }

    /// A member is gone, or all of a collection if `name` is its.
    pub(super) fn remove(&mut self, name: &str) {
        let whole = leds::is_collection(name);
        let collection = if whole { Some(name.to_owned()) } else { leds::collection_of(name) };
        let known = collection.and_then(|collection| entry(&mut self.collections, &collection));
        let Some((collection, known)) = known else { return };
        known.answered = true;
        let gone: Vec<(Arc<str>, AssignedEndpoint)> = if whole {
            known.members.drain().collect()
        } else {
            known.members.remove_entry(name).into_iter().collect()
        };
        self.members -= gone.len();
        for user in &known.users {
            let Some(state) = self.live.get_mut(user) else { continue };
            if names(&state.assignment, &collection).is_none() {
                continue;
            }
            let moved = self.moved.entry(Arc::clone(user)).or_default();
            for (member, endpoint) in &gone {
                state.unclaim(endpoint.address, member, moved);
            }
        }
        self.forgotten.extend(gone.into_iter().map(|(member, _)| member));
    }

    /// A member was refused: its collection is not empty, but there may be nothing to wait for.
    pub(super) fn refused(&mut self, member: &str) {
        if let Some(collection) = leds::collection_of(member)
            && let Some(known) = self.collections.get_mut(collection.as_str())
        {
            known.answered = true;
        }
    }

    // ---- going live ----

    /// Makes live what waits for nothing, or has waited long enough. Returns how many of the latter.
    pub(super) fn promote(&mut self, now: Instant) -> u64 {
        let due = self.staged.iter().filter_map(|(name, (assignment, since))| {
            let vain: Vec<Arc<str>> = self.unanswered(assignment).cloned().collect();
            (vain.is_empty() || now >= *since + WARMING_TIMEOUT).then(|| (Arc::clone(name), vain))
        });
        let due: Vec<_> = due.collect();
        let mut late = 0;
        for (name, vain) in due {
            late += u64::from(!vain.is_empty());
            for collection in vain {
                if let Some(known) = self.collections.get_mut(&collection) {
                    known.given_up = true;
                }
            }
            if let Some((assignment, _)) = self.staged.remove(&name) {
                self.go_live(&name, assignment);
            }
        }
        late
    }

    fn unanswered<'a>(&'a self, assignment: &'a Assignment) -> impl Iterator<Item = &'a Arc<str>> {
        let names = assignment.collections.iter().map(|collection| &collection.name);
        names.filter(|name| self.collections.get(*name).is_some_and(|c| !c.answered && !c.given_up))
    }

    fn go_live(&mut self, name: &Arc<str>, assignment: Arc<Assignment>) {
        let mut fresh = State { assignment, claims: HashMap::new() };
        let before = self.live.remove(name);
        match before {
            Some(before) if before.is_claimed() && fresh.is_claimed() => {
                let moved = self.moved.entry(Arc::clone(name)).or_default();
                fresh.claims = before.claims;
                fresh.move_from(&before.assignment, &self.collections, moved);
                self.live.insert(Arc::clone(name), fresh);
                self.release(name, &before.assignment);
            }
            before => {
                if fresh.is_claimed() {
                    let nothing = Assignment { name: String::new(), endpoints: vec![], collections: vec![] };
                    fresh.move_from(&nothing, &self.collections, &mut HashSet::new());
                }
                self.live.insert(Arc::clone(name), fresh);
                self.whole.insert(Arc::clone(name));
                self.moved.remove(name);
                if let Some(before) = before {
                    self.release(name, &before.assignment);
                }
            }
        }
    }

    /// When [`Self::promote`] next has something to do without a response.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.staged.values().map(|(_, since)| *since + WARMING_TIMEOUT).min()
    }

    // ---- questions ----

    /// Whether there are endpoints to be had by `name`.
    pub(super) fn is_live(&self, name: &str) -> bool {
        self.live.contains_key(name)
    }

    /// What waits, and for which collections.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&Arc<str>, impl Iterator<Item = &Arc<str>>)> {
        self.staged.iter().map(|(name, (assignment, _))| (name, self.unanswered(assignment)))
    }

    /// Whether `name` waits for collections.
    pub(super) fn is_staged(&self, name: &str) -> bool {
        self.staged.contains_key(name)
    }

    /// Whether a server has said what is in `collection`.
    pub(super) fn is_answered(&self, collection: &str) -> bool {
        self.collections.get(collection).is_none_or(|known| known.answered)
    }

    /// Whether `collection` is to be subscribed to.
    pub(super) fn is_wanted(&self, collection: &str) -> bool {
        self.collections.contains_key(collection)
    }

    /// All collections to be subscribed to.
    pub(super) fn wanted(&self) -> impl Iterator<Item = &Arc<str>> {
        self.collections.keys()
    }

    /// All endpoints of the live assignment `name`, as if it had them in itself.
    pub(super) fn whole(&self, name: &str) -> Option<Arc<Assignment>> {
        let state = self.live.get(name)?;
        if !state.is_claimed() {
            return Some(Arc::clone(&state.assignment));
        }
        let endpoints = state.claims.values().filter_map(|claims| strongest(claims).cloned());
        Some(Arc::new(Assignment {
            name: state.assignment.name.clone(),
            endpoints: endpoints.collect(),
            collections: Vec::new(),
        }))
    }

    /// Another server, another chance.
    pub(super) fn forgive(&mut self) {
        self.collections.values_mut().for_each(|collection| collection.given_up = false);
    }

    // ---- what a call has gathered ----

    /// Assignments all of whose endpoints are to be published.
    pub(super) fn take_whole(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.whole)
    }

    /// Assignments some of whose endpoints are to be published, and those.
    pub(super) fn take_moved(&mut self) -> Vec<(Arc<str>, Arc<[EndpointChange]>)> {
        let moved = std::mem::take(&mut self.moved);
        let changes = moved.into_iter().filter(|(_, addresses)| !addresses.is_empty());
        let changes = changes.filter_map(|(name, addresses)| {
            let claims = &self.live.get(&name)?.claims;
            let now =
                |address: &SocketAddr| claims.get(address).and_then(|claims| strongest(claims)).cloned();
            let changes = addresses.into_iter().map(|address| (address, now(&address))).collect();
            Some((name, changes))
        });
        changes.collect()
    }

    /// Collections that became wanted, or are no longer.
    pub(super) fn take_touched(&mut self) -> BTreeSet<Arc<str>> {
        std::mem::take(&mut self.touched)
    }

    /// Members that are no longer there, or that nobody wants any more.
    pub(super) fn take_forgotten(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.forgotten)
    }
}

impl State {
    fn is_claimed(&self) -> bool {
        !self.assignment.collections.is_empty()
    }

    /// Makes the claims, which are those of `before`, its own.
    fn move_from(
        &mut self,
        before: &Assignment,
        collections: &HashMap<Arc<str>, Collection>,
        moved: &mut HashSet<SocketAddr>,
    ) {
        let assignment = Arc::clone(&self.assignment);
        let inline: Arc<str> = Arc::default();
        let kept: HashSet<SocketAddr> = assignment.endpoints.iter().map(|e| e.address).collect();
        for gone in before.endpoints.iter().filter(|endpoint| !kept.contains(&endpoint.address)) {
            self.unclaim(gone.address, &inline, moved);
        }
        for endpoint in &assignment.endpoints {
            self.claim(Claim { endpoint: endpoint.clone(), member: Arc::clone(&inline) }, moved);
        }
        let members = |collection: &AssignedCollection| {
            collections.get(&collection.name).into_iter().flat_map(|known| &known.members)
        };
        let differs = |in_other: &Assignment, collection: &AssignedCollection| {
            names(in_other, &collection.name).is_none_or(|other| other.zone != collection.zone)
        };
        for gone in before.collections.iter().filter(|gone| names(&assignment, &gone.name).is_none()) {
            for (member, endpoint) in members(gone) {
                self.unclaim(endpoint.address, member, moved);
            }
        }
        for new in assignment.collections.iter().filter(|new| differs(before, new)) {
            for (member, endpoint) in members(new) {
                let endpoint = in_zone(endpoint, &new.zone);
                self.claim(Claim { endpoint, member: Arc::clone(member) }, moved);
            }
        }
    }

    /// In place of the same member's, if it has one there.
    fn claim(&mut self, claim: Claim, moved: &mut HashSet<SocketAddr>) {
        moved.insert(claim.endpoint.address);
        let claims = self.claims.entry(claim.endpoint.address).or_default();
        match claims.iter_mut().find(|known| known.member == claim.member) {
            Some(known) => *known = claim,
            None => claims.push(claim),
        }
    }

    fn unclaim(&mut self, address: SocketAddr, member: &str, moved: &mut HashSet<SocketAddr>) {
        let Some(claims) = self.claims.get_mut(&address) else { return };
        moved.insert(address);
        claims.retain(|claim| *claim.member != *member);
        if claims.is_empty() {
            self.claims.remove(&address);
        }
    }
}

/// Whose address it is.
fn strongest(claims: &[Claim]) -> Option<&AssignedEndpoint> {
    let strongest = claims.iter().max_by(|a, b| {
        let by_id = a.endpoint.id.cmp(&b.endpoint.id);
        by_id.then_with(|| a.member.cmp(&b.member))
    });
    strongest.map(|claim| &claim.endpoint)
}

fn names<'a>(assignment: &'a Assignment, collection: &str) -> Option<&'a AssignedCollection> {
    assignment.collections.iter().find(|named| *named.name == *collection)
}

fn in_zone(endpoint: &AssignedEndpoint, zone: &Arc<str>) -> AssignedEndpoint {
    AssignedEndpoint { zone: Arc::clone(zone), ..endpoint.clone() }
}

/// The collection called `name` with its key, which is shared.
fn entry<'a>(
    collections: &'a mut HashMap<Arc<str>, Collection>,
    name: &str,
) -> Option<(Arc<str>, &'a mut Collection)> {
    let key = Arc::clone(collections.get_key_value(name)?.0);
    Some((key, collections.get_mut(name)?))
}
