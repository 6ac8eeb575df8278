//! What is on its way to a client, and what the client made of it.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::Instant,
};

use crate::{
    resource::{Name, Version},
    snapshot::Logged,
};

/// How many responses of one type may go unanswered before the oldest is merged into the next.
const UNANSWERED: usize = 8;

/// Since when a name is open.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since {
    pub(super) revision: u64,
    /// When the change was published; `None` when it is the client that asked.
    published: Option<Instant>,
}

impl Since {
    pub(super) fn change(change: &Logged) -> Self {
        Self { revision: change.revision, published: Some(change.published) }
    }

    pub(super) fn revision(revision: u64) -> Self {
        Self { revision, published: None }
    }

    pub(super) fn older(self, other: Self) -> Self {
        if other.revision < self.revision { other } else { self }
    }
}

/// A resource, or its removal, in a response.
#[derive(Debug)]
pub(super) struct Sent {
    pub(super) name: Name,
    pub(super) since: Since,
    /// What the client had before.
    pub(super) before: Option<Version>,
}

/// A response that was sent.
#[derive(Debug)]
pub(super) struct InFlight {
    nonce: Arc<str>,
    sent: Instant,
    pub(super) names: Vec<Sent>,
    /// When the oldest change in it was published; `None` when it only answers the client.
    pub(super) published: Option<Instant>,
    /// The oldest revision that is open until this is acknowledged.
    oldest: u64,
}

impl InFlight {
    pub(super) fn new(nonce: Arc<str>, sent: Instant, names: Vec<Sent>, greeting: bool) -> Self {
        let oldest = names.iter().map(|sent| sent.since.revision).chain(greeting.then_some(1)).min();
        let published = names.iter().filter_map(|sent| sent.since.published).min().filter(|_| !greeting);
        // Without a name there is nothing to wait for but the answer itself.
        Self { nonce, sent, names, published, oldest: oldest.unwrap_or(u64::MAX) }
    }
}

/// Responses without an answer, oldest first. More than one when an answer is overdue.
#[derive(Debug, Default)]
pub(super) struct Unanswered(VecDeque<InFlight>);

impl Unanswered {
    pub(super) fn push(&mut self, mut response: InFlight) {
        if self.0.len() >= UNANSWERED
            && let Some(oldest) = self.0.pop_front()
        {
            response.oldest = response.oldest.min(oldest.oldest);
        }
        self.0.push_back(response);
    }

    /// The response that `nonce` answers. Answers come in order, so those before it, which were
    /// passed over, will not be answered.
    pub(super) fn take(&mut self, nonce: &str) -> Option<InFlight> {
        let at = self.0.iter().position(|response| &*response.nonce == nonce)?;
        self.0.drain(..=at).next_back()
    }

    /// When the newest was sent.
    pub(super) fn newest(&self) -> Option<Instant> {
        self.0.back().map(|response| response.sent)
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.0.iter().map(|response| response.oldest).min()
    }

    /// How each name was last sent that is not answered.
    pub(super) fn by_name(&self) -> HashMap<&str, &Sent> {
        self.0.iter().flat_map(|response| &response.names).map(|sent| (&*sent.name, sent)).collect()
    }
}

/// Names whose newest form the client refused.
#[derive(Debug, Default)]
pub(super) struct Refused {
    names: BTreeMap<Name, Refusal>,
    refusals: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Refusal {
    revision: u64,
    /// Set when the reason named no resource: all of the response stand for the one that is wrong.
    vague: Option<u64>,
    /// What the client goes on with, as far as it is known.
    pub(super) before: Option<Version>,
    pub(super) reason: Arc<str>,
}

impl Refused {
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn oldest(&self) -> Option<u64> {
        self.names.values().map(|refusal| refusal.revision).min()
    }

    /// Notes why `response` was refused; `whole` if it had all there is, what was refused before included.
    /// `told` is what is kept of the reason.
    pub(super) fn add(&mut self, response: &InFlight, reason: &str, told: &str, whole: bool) {
        self.refusals += 1;
        let (blamed, others): (Vec<_>, Vec<_>) =
            response.names.iter().partition(|sent| mentions(reason, &sent.name));
        if whole && blamed.is_empty() && self.names.keys().any(|name| mentions(reason, name)) {
            // It is still the same that is wrong.
            return;
        }
        let vague = blamed.is_empty().then_some(self.refusals);
        let blamed = if blamed.is_empty() {
            others
        } else {
            // What a refusal does not name it does not refuse.
            self.acknowledged(others);
            blamed
        };
        let reason: Arc<str> = told.into();
        for sent in blamed {
            // A client that refuses twice still has what it had before the first.
            let before = self.names.get(&sent.name).map_or(sent.before, |refusal| refusal.before);
            let (revision, reason) = (sent.since.revision, Arc::clone(&reason));
            self.names.insert(Arc::clone(&sent.name), Refusal { revision, vague, before, reason });
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<&Refusal> {
        self.names.get(name)
    }

    /// A later form of these names was accepted. Of a refusal that named none, one is enough.
    pub(super) fn acknowledged<'a>(&mut self, names: impl IntoIterator<Item = &'a Sent>) {
        for sent in names {
            if let Some(Refusal { vague: Some(refusal), .. }) = self.names.remove(&sent.name) {
                self.names.retain(|_, other| other.vague != Some(refusal));
            }
        }
    }

    /// Everything there is was accepted.
    pub(super) fn clear(&mut self) {
        self.names.clear();
    }

    /// The client does not want it any more, or it is gone.
    pub(super) fn forget(&mut self, name: &str) {
        self.names.remove(name);
    }

    pub(super) fn retain(&mut self, wanted: impl Fn(&Name) -> bool) {
        self.names.retain(|name, _| wanted(name));
    }
}

/// Whether `reason` names `name` as a whole, not as part of a longer name.
fn mentions(reason: &str, name: &str) -> bool {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '/');
    reason.match_indices(name).any(|(at, _)| {
        let mut after = reason[at + name.len()..].chars();
        let goes_on = match after.next() {
            Some('.') => after.next().is_some_and(|c| c.is_ascii_alphanumeric()),
            Some(c) => part(c),
            None => false,
        };
        let before = reason[..at].chars().next_back();
        !goes_on && !before.is_some_and(|c| part(c) || c == '.')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_mentioned_by_a_longer_one() {
        assert!(mentions("cluster shop/v1: bad", "shop/v1"));
        assert!(mentions("'shop/v1'. And more", "shop/v1"));
        assert!(mentions("shop/v1", "shop/v1"));
        for longer in ["shop/v10: bad", "shop/v1.2: bad", "webshop/v1", "edge-tls: bad", "my.edge"] {
            assert!(!mentions(longer, "shop/v1") && !mentions(longer, "edge"), "{longer}");
        }
    }
}
