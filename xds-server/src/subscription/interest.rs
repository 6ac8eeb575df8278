//! What a client asks for and holds of one type.
//!
//! What it holds is not written down: it is the snapshot of the session, except for the names in
//! `open`, each with what the client has instead. So a client that is up to date costs no more than
//! the names it gave.
//!
//! - here: snapshots and requests in. `super::respond`: responses out.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use imbl::ordmap::DiffItem;

use super::{
    RESPONSE_BYTES, Reply, Variant, Violation,
    fresh::{EVERYTHING, Fresh},
    names::{Names, WILDCARD, canonical, collection, members},
    reply::{Refused, Since, Unanswered},
};
use crate::{
    kind::{Client, Kind},
    resource::{Name, Resource, Version},
    snapshot::{Logged, Shelf, Snapshot},
};

/// How much of the reason of a refusal is kept, in characters.
const MAX_REASON: usize = 1_024;

/// The interest of one client in one type.
#[derive(Debug)]
pub struct Interest {
    pub(super) shelf: Shelf,
    pub(super) variant: Variant,
    pub(super) client: Client,
    /// Whether the client has asked at all.
    pub(super) asked: bool,
    pub(super) names: Names,
    /// What is to be sent although the client says that it holds it, from before it has asked.
    owed: HashSet<Name>,
    /// Names that may differ from the snapshot.
    pub(super) open: BTreeMap<Name, Open>,
    /// What differs because the client has just begun to ask for it. None of it has been sent; what of it is
    /// in `open` as well is only said there if there is none.
    pub(super) fresh: Option<Fresh>,
    /// How large a response may become, in bytes.
    pub(super) budget: usize,
    /// The first request is answered even if there is nothing to say: the client waits for it.
    pub(super) greeting_owed: bool,
    pub(super) unanswered: Unanswered,
    pub(super) last_nonce: Arc<str>,
    pub(super) refused: Refused,
    /// When what was sent with a TTL needs a sign of life, and how often.
    pub(super) heartbeats: BTreeMap<Name, (Instant, Duration)>,
}

/// A name that may differ from the snapshot.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) since: Since,
    pub(super) held: Held,
}

/// What a client was last told about a name.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// Nothing, or it is to be told again.
    Nothing,
    /// That there is none.
    Absent,
    /// It has this version, `None` if it is none of ours; the resource itself when it came over this
    /// stream.
    Version(Option<Version>, Option<Arc<Resource>>),
}

impl Interest {
    pub(super) fn new(shelf: Shelf, variant: Variant, client: Client) -> Self {
        Self {
            shelf,
            variant,
            client,
            asked: false,
            names: Names::default(),
            owed: HashSet::new(),
            open: BTreeMap::new(),
            fresh: None,
            budget: RESPONSE_BYTES,
            greeting_owed: false,
            unanswered: Unanswered::default(),
            last_nonce: Arc::from(""),
            refused: Refused::default(),
            heartbeats: BTreeMap::new(),
        }
    }

    pub(super) fn is_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    // ---- snapshots ----

    /// What the client holds of a name that is not open, when it holds `snapshot`.
    pub(super) fn settled(&self, name: &str, snapshot: &Snapshot) -> Held {
        match snapshot.resource(&self.shelf, name) {
            Some(resource) => Held::Version(Some(resource.version), Some(Arc::clone(resource))),
            None if self.names.has(name) => Held::Absent,
            None => Held::Nothing,
        }
    }

    /// `old` becomes `new`; `changes` are those between them, if they are known.
    pub(super) fn advance(&mut self, old: &Snapshot, new: &Snapshot, changes: Option<&[&Logged]>) {
        if !self.asked {
            return;
        }
        match changes {
            Some(changes) => {
                for change in changes {
                    if change.shelf == self.shelf {
                        self.changed(&change.name, Since::change(change), old);
                    }
                }
            }
            None => {
                let since = Since::revision(old.revision() + 1);
                // What both share is not looked at.
                for difference in old.resources(&self.shelf).diff(new.resources(&self.shelf)) {
                    let (DiffItem::Add(name, _)
                    | DiffItem::Remove(name, _)
                    | DiffItem::Update { new: (name, _), .. }) = difference;
                    self.changed(name, since, old);
                }
            }
        }
    }

    fn changed(&mut self, name: &Name, since: Since, old: &Snapshot) {
        if !self.names.wants(name) {
            return;
        }
        if self.is_fresh(name) {
            // Asked for by its name as well, it has to be said if there is none.
            self.open.remove(name);
            if self.names.has(name) {
                self.open.insert(Arc::clone(name), Open { since, held: Held::Nothing });
            }
        } else if let Some(open) = self.open.get_mut(name) {
            open.since = open.since.older(since);
        } else {
            let held = self.settled(name, old);
            self.open.insert(Arc::clone(name), Open { since, held });
        }
    }

    /// The resource is to be sent though the client holds it, or will say so when it asks.
    pub(super) fn owe(&mut self, name: &Name, snapshot: &Snapshot) {
        if self.asked {
            if self.names.wants(name) {
                self.open_anew(name, Since::revision(snapshot.revision()), true, snapshot);
            }
        } else if self.owed.len() < super::MAX_NAMES {
            self.owed.insert(Arc::clone(name));
        }
    }

    /// The client is to be told about `name` whatever it holds; `wanted` if it may hold anything, because
    /// it has asked for it before.
    fn open_anew(&mut self, name: &Name, since: Since, wanted: bool, snapshot: &Snapshot) {
        if self.is_fresh(name) && snapshot.resource(&self.shelf, name).is_some() {
            return;
        }
        let held = |held: &Held| match held {
            // It is sent though it is held, or its removal is: it must not be forgotten that there is one.
            Held::Version(_, resource) => Held::Version(None, resource.clone()),
            Held::Nothing | Held::Absent => Held::Nothing,
        };
        if let Some(open) = self.open.get_mut(name) {
            *open = Open { since: open.since.older(since), held: held(&open.held) };
            return;
        }
        let held = if wanted { held(&self.settled(name, snapshot)) } else { Held::Nothing };
        self.open.insert(Arc::clone(name), Open { since, held });
    }

    // ---- requests ----

    pub(super) fn on_incremental(
        &mut self,
        request: DeltaDiscoveryRequest,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        let first = !self.asked;
        let since = Since::revision(if first { 1 } else { snapshot.revision() });
        let mut claims = HashMap::new();
        if first {
            let names_nothing =
                request.resource_names_subscribe.is_empty() && request.resource_names_unsubscribe.is_empty();
            self.greet(names_nothing);
            // "initial_resource_versions … will not be populated in any message after the first in a
            // stream (for a given type_url)": honoured in the first only.
            claims = request.initial_resource_versions;
            if self.names.wildcard {
                self.begin_all(claims.is_empty(), snapshot, since);
            }
        }
        let holds_nothing = first && claims.is_empty();
        // Twice in one request is once: what a name costs is not multiplied.
        let mut names = request.resource_names_subscribe;
        names.sort_unstable();
        names.dedup();
        for name in &names {
            self.subscribe(name, snapshot, since, (first, holds_nothing))?;
        }
        if !request.resource_names_unsubscribe.is_empty() {
            self.open_fresh(snapshot);
        }
        for name in &request.resource_names_unsubscribe {
            self.unsubscribe(name, snapshot, since);
        }
        if !names.is_empty() || !request.resource_names_unsubscribe.is_empty() {
            self.names.share();
        }
        if first {
            self.believe(claims, snapshot, since);
        }
        // "The nonce … should not be used to reject stale requests": a stale one acknowledges nothing,
        // but the changes of subscription above count.
        let reason = request.error_detail.map(|status| status.message);
        Ok(self.on_reply(&request.response_nonce, reason, snapshot, now))
    }

    /// What a client that comes back says it holds need not be sent again, but for what is owed.
    fn believe(&mut self, claims: HashMap<String, String>, snapshot: &Snapshot, since: Since) {
        let owed = std::mem::take(&mut self.owed);
        for (name, version) in claims.into_iter().filter(|(name, _)| self.names.wants(name)) {
            let current = snapshot.resource(&self.shelf, &name);
            // With a time to live, that time goes on since the server was lost: the client has to be told
            // that there is somebody again.
            let lives = current.is_some_and(|resource| resource.ttl.is_some()) && self.client.ttl;
            let again = lives || owed.contains(&*name);
            // Whatever it is, it is held: if it goes before it is sent, that has to be told.
            let version = if again { None } else { Version::parse(&version) };
            if version.is_some() && version == current.map(|resource| resource.version) {
                self.open.remove(&*name);
            } else {
                self.open.insert(Name::from(name), Open { since, held: Held::Version(version, None) });
            }
        }
    }

    pub(super) fn on_state_of_the_world(
        &mut self,
        request: DiscoveryRequest,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Result<Option<Reply>, Violation> {
        let first = !self.asked;
        if !first && !request.response_nonce.is_empty() && *request.response_nonce != *self.last_nonce {
            // "The management server should not send a DiscoveryResponse for any DiscoveryRequest that
            // has a stale nonce": the client answers the newer response with all it wants. What it says of
            // the older one counts.
            let reason = request.error_detail.map(|status| status.message);
            return Ok(self.on_reply(&request.response_nonce, reason, snapshot, now));
        }
        let reason = request.error_detail.map(|status| status.message);
        // A nonce "does not survive stream restarts": the first request starts afresh.
        let reply = if first { None } else { self.on_reply(&request.response_nonce, reason, snapshot, now) };
        let names = request.resource_names;
        if names.len() > super::MAX_NAMES {
            return Err(Violation::TooManyNames);
        }
        if first {
            self.greet(names.is_empty());
        } else if names.is_empty() && self.names.named_once {
            // "Clearing the list of subscribed resources is interpreted as an unsubscription."
            self.names.wildcard = false;
        }
        let since = Since::revision(if first { 1 } else { snapshot.revision() });
        if first && self.names.wildcard {
            self.open_all(snapshot, since);
        }
        self.replace_names(&names, since, snapshot)?;
        Ok(reply)
    }

    fn greet(&mut self, names_nothing: bool) {
        self.asked = true;
        self.greeting_owed = true;
        // "If the client sends a request for a given resource type but has never explicitly subscribed
        // to any resource names, … treat that identically to … "*"." gRPC clients never mean it.
        self.names.wildcard = names_nothing && self.shelf.0.is_whole() && !self.client.grpc;
    }

    /// Whether it is still to be sent for the first time.
    pub(super) fn is_fresh(&self, name: &str) -> bool {
        self.fresh.as_ref().is_some_and(|fresh| fresh.covers(name))
    }

    /// Begins to send a scope of which the client holds nothing.
    fn begin(&mut self, scope: Name, since: Since) {
        match &mut self.fresh {
            Some(fresh) => fresh.add(scope, since),
            None => self.fresh = Some(Fresh::new(scope, since)),
        }
    }

    /// The same for everything; name by name if the client may hold some of it.
    fn begin_all(&mut self, holds_nothing: bool, snapshot: &Snapshot, since: Since) {
        if holds_nothing && self.variant == Variant::Incremental {
            self.begin(EVERYTHING.into(), since);
        } else {
            self.open_all(snapshot, since);
        }
    }

    /// Opens what is still to be sent for the first time, name by name: what the client asks for changes
    /// in a way that is not to begin.
    fn open_fresh(&mut self, snapshot: &Snapshot) {
        let resources = snapshot.resources(&self.shelf);
        while let Some(fresh) = self.fresh.take() {
            let since = fresh.since;
            for (name, _) in fresh.rest(resources) {
                self.open.insert(Arc::clone(name), Open { since, held: Held::Nothing });
            }
            if fresh.is_untouched() && !fresh.scope().is_empty() {
                let name = format!("{}*", fresh.scope()).into();
                self.open.insert(name, Open { since, held: Held::Nothing });
            }
            self.fresh = fresh.next();
        }
    }

    /// Opens what the client now asks for and did not before.
    fn open_all(&mut self, snapshot: &Snapshot, since: Since) {
        for name in snapshot.resources(&self.shelf).keys() {
            if !self.names.has(name) && !self.is_fresh(name) && !self.open.contains_key(name) {
                self.open.insert(Arc::clone(name), Open { since, held: Held::Nothing });
            }
        }
    }

    fn subscribe(
        &mut self,
        name: &str,
        snapshot: &Snapshot,
        since: Since,
        (first, holds_nothing): (bool, bool),
    ) -> Result<(), Violation> {
        self.names.named_once = true;
        if name == WILDCARD {
            if !std::mem::replace(&mut self.names.wildcard, true) {
                self.begin_all(holds_nothing, snapshot, since);
            }
            return Ok(());
        }
        let name = self.shared(&canonical(name)?, snapshot);
        if let Some(scope) = collection(&name) {
            let begun = self.fresh.as_ref().is_some_and(|fresh| fresh.covers_all(scope));
            // Its members cannot have been sent by another name.
            let alone = (!first || holds_nothing) && self.names.has_collections_only();
            let begins = alone && !self.names.has_collection(&name);
            if begun || begins {
                self.names.add(Arc::clone(&name))?;
                if !begun {
                    self.begin(scope.into(), since);
                }
                return Ok(());
            }
        }
        // "The server must still provide those resources in the response", held or not. A member of a
        // collection may have been asked for by its name before, and be held.
        let asked = |names: &Names, name: &str| names.wants(name) || names.has_collection(name);
        self.open_named(&name, snapshot, since, |names, name| !first && asked(names, name));
        self.names.add(name)?;
        Ok(())
    }

    /// Opens a name, or a collection and its members.
    fn open_named(
        &mut self,
        name: &Name,
        snapshot: &Snapshot,
        since: Since,
        wanted: impl Fn(&Names, &str) -> bool,
    ) {
        if let Some(prefix) = collection(name) {
            for member in members(snapshot.resources(&self.shelf), prefix) {
                self.open_anew(member, since, wanted(&self.names, member), snapshot);
            }
        }
        self.open_anew(name, since, wanted(&self.names, name), snapshot);
    }

    /// Opens the members of a collection that went with their version, as the client is to get them from
    /// `routed`.
    pub(super) fn open_gone(&mut self, collection_name: &str, snapshot: &Snapshot, routed: &Snapshot) {
        let Some(prefix) = collection(collection_name) else { return };
        let since = Since::revision(snapshot.revision());
        for member in members(routed.resources(&self.shelf), prefix) {
            if !self.open.contains_key(member) && self.went_with_its_version(member, snapshot) {
                self.open.insert(Arc::clone(member), Open { since, held: Held::Nothing });
            }
        }
    }

    /// The name as it is known already, so that streams share it.
    fn shared(&self, name: &str, snapshot: &Snapshot) -> Name {
        let known = snapshot.resources(&self.shelf).get_key_value(name);
        known.map_or_else(|| name.into(), |(name, _)| Arc::clone(name))
    }

    fn unsubscribe(&mut self, name: &str, snapshot: &Snapshot, since: Since) {
        if name == WILDCARD {
            self.names.wildcard = false;
            return self.forget_unwanted();
        }
        // A name that is no name was never subscribed to.
        let Ok(name) = canonical(name) else { return };
        // "It can simply ignore these phantom unsubscriptions."
        if !self.names.take(&name) {
            return;
        }
        if !self.names.wildcard {
            return self.forget_unwanted_of(&name);
        }
        // "The server must send a response that includes the specific resource in either
        // removed_resources … or resources."
        let mut unknown = |name: Name| {
            let since = self.open.get(&name).map_or(since, |open| open.since.older(since));
            self.open.insert(name, Open { since, held: Held::Version(None, None) });
        };
        match collection(&name) {
            Some(prefix) => {
                let members = members(snapshot.resources(&self.shelf), prefix).cloned();
                members.for_each(&mut unknown);
            }
            None => unknown(name.as_ref().into()),
        }
    }

    /// What is no longer asked for is forgotten on both sides.
    fn forget_unwanted(&mut self) {
        let names = &self.names;
        let wanted = |name: &Name| names.wants(name) || names.has_collection(name);
        self.open.retain(|name, _| wanted(name));
        self.heartbeats.retain(|name, _| wanted(name));
        self.refused.retain(wanted);
    }

    /// The same after `name` alone was given up.
    fn forget_unwanted_of(&mut self, name: &str) {
        if collection(name).is_some() {
            return self.forget_unwanted();
        }
        if !self.names.wants(name) {
            self.open.remove(name);
            self.heartbeats.remove(name);
            self.refused.forget(name);
        }
    }

    /// A refusal that comes late may be of what the client has given up meanwhile, or of what is gone
    /// where that cannot be said: nothing that is sent later would end it.
    fn forget_idle_refusals(&mut self, snapshot: &Snapshot) {
        let (names, open, shelf) = (&self.names, &self.open, &self.shelf);
        let silent = self.variant == Variant::StateOfTheWorld;
        let gone = |name: &Name| snapshot.resource(shelf, name).is_none() && !open.contains_key(name);
        self.refused
            .retain(|name| (names.wants(name) || names.has_collection(name)) && !(silent && gone(name)));
    }

    fn replace_names(
        &mut self,
        names: &[String],
        since: Since,
        snapshot: &Snapshot,
    ) -> Result<(), Violation> {
        let everything = names.iter().any(|name| name == WILDCARD);
        let given = names.iter().filter(|name| *name != WILDCARD).map(|name| canonical(name));
        let given = given.collect::<Result<Vec<_>, _>>()?;
        self.names.named_once |= !names.is_empty();
        let wildcard = everything || (self.names.wildcard && !self.names.named_once);
        let was_wildcard = std::mem::replace(&mut self.names.wildcard, wildcard);
        // "The server must resend any newly requested resources, even if it previously sent those
        // resources without having been asked for them."
        // Mostly a request only acknowledges, and repeats the names.
        if !self.names.are(&given) {
            let given = given.iter().map(|name| self.shared(name, snapshot)).collect();
            for name in self.names.replace(given)? {
                self.open_named(&name, snapshot, since, |_, _| was_wildcard);
            }
            self.names.share();
        }
        if wildcard && !was_wildcard {
            self.open_all(snapshot, since);
        }
        if !wildcard {
            self.forget_unwanted();
        }
        Ok(())
    }

    fn on_reply(
        &mut self,
        nonce: &str,
        reason: Option<String>,
        snapshot: &Snapshot,
        now: Instant,
    ) -> Option<Reply> {
        let answered = self.unanswered.take(nonce)?;
        // "NACK … is indicated by the presence of the error_detail field." What a client says may be long;
        // what is kept of it is bounded.
        let reason = reason.map(|reason| reason.chars().take(MAX_REASON).collect::<String>());
        let Some(reason) = reason else {
            if self.is_full_state() {
                self.refused.clear();
            } else {
                self.refused.acknowledged(&answered.names);
            }
            return Some(Reply::Ack(answered.published.map(|at| now.saturating_duration_since(at))));
        };
        // What a client says about a secret may repeat it.
        let told = if self.shelf.0 == Kind::Secret { "it was refused".to_owned() } else { reason.clone() };
        self.refused.add(&answered, &reason, &told, self.is_full_state());
        self.forget_idle_refusals(snapshot);
        Some(Reply::Nack(told))
    }
}
