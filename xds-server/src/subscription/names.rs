//! Which resources of one type a client asks for.

use std::{borrow::Cow, ops::Bound};

use super::{MAX_NAME_LENGTH, MAX_NAMES, Violation, set::NameSet};
use crate::{resource::Name, snapshot::Resources};

/// The name that stands for every resource ("How the client specifies what resources to return").
pub(super) const WILDCARD: &str = "*";

/// What a client asks for.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Everything.
    pub(super) wildcard: bool,
    /// Whether a name was ever given: from then on, no names means nothing instead of everything.
    pub(super) named_once: bool,
    single: NameSet,
    /// Collections (xDS TP1, "Glob collections"), by what comes before the `*`.
    collections: NameSet,
    /// How long all of them are together, in bytes.
    bytes: usize,
}

impl Names {
    /// Whether the client asks for `name`, by itself or with others.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.wildcard || self.has(name) || self.is_member(name)
    }

    /// Whether the client gave this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.single.contains(name)
    }

    fn is_member(&self, name: &str) -> bool {
        let directory = || name.rfind('/').map(|slash| &name[..=slash]);
        !self.collections.is_empty() && directory().is_some_and(|d| self.collections.contains(d))
    }

    /// Whether `name` is that of a collection the client asks for.
    pub(super) fn has_collection(&self, name: &str) -> bool {
        collection(name).is_some_and(|prefix| self.collections.contains(prefix))
    }

    /// Whether nothing is asked for but collections.
    pub(super) fn has_collections_only(&self) -> bool {
        !self.wildcard && self.single.is_empty()
    }

    /// The names that were given.
    pub(super) fn single(&self) -> impl Iterator<Item = &Name> {
        self.single.iter()
    }

    /// Adds a name or a collection; whether it was not there.
    pub(super) fn add(&mut self, name: Name) -> Result<bool, Violation> {
        let length = name.len();
        let new = match collection(&name) {
            Some(prefix) => self.collections.insert(prefix.into()),
            None => self.single.insert(name),
        };
        self.bytes += if new { length } else { 0 };
        if self.single.len() + self.collections.len() > MAX_NAMES {
            return Err(Violation::TooManyNames);
        }
        Ok(new)
    }

    /// Takes a name or a collection away; whether it was there.
    pub(super) fn take(&mut self, name: &str) -> bool {
        let taken = match collection(name) {
            Some(prefix) => self.collections.remove(prefix),
            None => self.single.remove(name),
        };
        self.bytes -= if taken { name.len() } else { 0 };
        taken
    }

    /// Keeps the names of another stream instead, if they are the same.
    pub(super) fn share(&mut self) {
        self.single.share();
        self.collections.share();
    }

    /// How long all names are together, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Whether these are the names, each once.
    pub(super) fn are(&self, names: &[Cow<'_, str>]) -> bool {
        let single = names.iter().filter(|name| collection(name).is_none()).map(|name| &**name);
        let collections = names.iter().filter_map(|name| collection(name));
        self.single.is_exactly(single) && self.collections.is_exactly(collections)
    }

    /// Replaces all names; those that are new.
    pub(super) fn replace(&mut self, names: Vec<Name>) -> Result<Vec<Name>, Violation> {
        let before = std::mem::take(self);
        (self.wildcard, self.named_once) = (before.wildcard, before.named_once);
        let mut new = Vec::new();
        for name in names {
            let known = match collection(&name) {
                Some(prefix) => before.collections.contains(prefix),
                None => before.single.contains(&name),
            };
            if self.add(Name::clone(&name))? && !known {
                new.push(name);
            }
        }
        Ok(new)
    }
}

/// What comes before the `*` in the name of a collection.
pub(super) fn collection(name: &str) -> Option<&str> {
    let prefix = name.strip_suffix('*')?;
    // `xdstp://<authority>/<type>/`: all of every type is nobody's collection.
    let (_authority, path) = prefix.strip_prefix("xdstp://")?.split_once('/')?;
    (path.len() > 1 && path.ends_with('/') && !path.starts_with('/')).then_some(prefix)
}

/// The members of a collection.
pub(super) fn members<'a>(resources: &'a Resources, prefix: &'a str) -> impl Iterator<Item = &'a Name> {
    let from = (Bound::Included(prefix), Bound::Unbounded);
    let below = resources.range::<_, str>(from).map(|(name, _)| name);
    let below = below.take_while(move |name| name.starts_with(prefix));
    below.filter(move |name| !name[prefix.len()..].contains('/'))
}

/// A name in the form in which equal names are equal: the context parameters of an `xdstp:` name are
/// in order (xDS TP1, "Normalization").
pub(super) fn canonical(name: &str) -> Result<Cow<'_, str>, Violation> {
    if name.len() > MAX_NAME_LENGTH {
        return Err(Violation::NameTooLong);
    }
    match name.split_once('?') {
        Some((path, context)) if name.starts_with("xdstp:") => {
            let (context, fragment) = context.split_once('#').map_or((context, None), |(c, f)| (c, Some(f)));
            let mut parameters: Vec<&str> = context.split('&').collect();
            parameters.sort_unstable();
            let mut sorted = format!("{path}?{}", parameters.join("&"));
            if let Some(fragment) = fragment {
                sorted.push('#');
                sorted.push_str(fragment);
            }
            Ok(Cow::Owned(sorted))
        }
        _ => Ok(Cow::Borrowed(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{kind::Kind, resource::Resource};

    #[test]
    fn a_collection_is_what_is_directly_below_it() {
        let names = ["xdstp:///t/a/1", "xdstp:///t/a/2", "xdstp:///t/a/b/3", "xdstp:///t/ab/4"];
        let resources: Resources = names
            .iter()
            .map(|&name| (Name::from(name), Arc::new(Resource::new(Kind::LbEndpoint, name, b""))))
            .collect();
        let mut asked = Names::default();
        assert!(asked.add("xdstp:///t/a/*".into()).unwrap());
        assert!(!asked.add("xdstp:///t/a/*".into()).unwrap());
        let wanted: Vec<_> = names.iter().filter(|name| asked.wants(name)).collect();
        assert_eq!(wanted, [&names[0], &names[1]]);
        let found: Vec<_> = members(&resources, "xdstp:///t/a/").map(|name| &**name).collect();
        assert_eq!(found, names[..2]);
        assert!(asked.take("xdstp:///t/a/*") && !asked.wants(names[0]));
    }

    #[test]
    fn an_asterisk_elsewhere_is_a_name() {
        for name in ["*", "a/*", "*.example.com", "xdstp:///t/a*", "xdstp:/*", "xdstp://a/*", "xdstp:///*"] {
            assert_eq!(collection(name), None, "{name}");
        }
    }

    #[test]
    fn context_parameters_are_in_order() {
        assert_eq!(canonical("xdstp://a/t/x?b=2&a=1#e").unwrap(), "xdstp://a/t/x?a=1&b=2#e");
        assert_eq!(canonical("plain?b&a").unwrap(), "plain?b&a");
        assert_eq!(canonical(&"x".repeat(MAX_NAME_LENGTH + 1)), Err(Violation::NameTooLong));
    }
}
