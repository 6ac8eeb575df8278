//! What is where in etcd. Below the prefix:
//!
//! - `documents/Service checkout`: a document. `endpoints/checkout/v1/id`: a registered endpoint, with
//!   its lease.
//! - `written/documents`, `written/endpoints`: who wrote the newest change, put in the same transaction.
//!   Every change of documents also compares the first, so that those happen one after the other; a
//!   change without either is etcd's own, by the end of a lease.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::store::Table;

/// Where things are below one prefix.
pub(crate) struct Keys {
    prefix: String,
}

/// What a key stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// An object, by its table and its key there.
    Object(Table, String),
    /// Who wrote the newest change of this table.
    Written(Table),
}

/// Who wrote the change it is part of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Written {
    /// The server, as its operator calls it.
    pub(crate) server: String,
    /// Drawn anew for each change: one whose answer was lost is known by it.
    pub(crate) commit: u64,
    /// On whose behalf, by key.
    pub(crate) by: BTreeMap<String, String>,
}

impl Keys {
    pub(crate) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// The key of an object.
    pub(crate) fn object(&self, table: Table, key: &str) -> Bytes {
        format!("{}/{}/{key}", self.prefix, directory(table)).into()
    }

    /// The key that says who wrote the newest change of a table.
    pub(crate) fn written(&self, table: Table) -> Bytes {
        format!("{}/written/{}", self.prefix, directory(table)).into()
    }

    /// From and to where both of those are.
    pub(crate) fn all_written(&self) -> (Bytes, Bytes) {
        range(format!("{}/written/", self.prefix))
    }

    /// From and to where everything is.
    pub(crate) fn everything(&self) -> (Bytes, Bytes) {
        range(format!("{}/", self.prefix))
    }

    /// From and to where the registered endpoints of a service are.
    pub(crate) fn endpoints_of(&self, service: &str) -> (Bytes, Bytes) {
        range(format!("{}/{}/{service}/", self.prefix, directory(Table::Endpoints)))
    }

    /// What a key stands for; `None` for one that is none of ours.
    pub(crate) fn place(&self, key: &[u8]) -> Option<Place> {
        let key = std::str::from_utf8(key).ok()?.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        let (first, rest) = key.split_once('/')?;
        match first {
            "documents" => Some(Place::Object(Table::Documents, rest.to_owned())),
            "endpoints" => Some(Place::Object(Table::Endpoints, rest.to_owned())),
            "resources" => Some(Place::Object(Table::Resources, rest.to_owned())),
            "written" => match rest {
                "documents" => Some(Place::Written(Table::Documents)),
                "endpoints" => Some(Place::Written(Table::Endpoints)),
                _ => None,
            },
            _ => None,
        }
    }
}

fn directory(table: Table) -> &'static str {
    match table {
        Table::Documents => "documents",
        Table::Endpoints => "endpoints",
        Table::Resources => "resources",
    }
}

/// From `prefix` to the first key after all that start with it; `prefix` ends with a slash, and `0` is
/// what follows that.
fn range(prefix: String) -> (Bytes, Bytes) {
    let end = format!("{}0", prefix.trim_end_matches('/'));
    (prefix.into(), end.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_that_is_written_is_understood_and_no_other() {
        let keys = Keys::new("/shop");
        let raw = "type.googleapis.com/a.B a/b c";
        let place = keys.place(&keys.object(Table::Resources, raw));
        assert_eq!(place, Some(Place::Object(Table::Resources, raw.to_owned())));
        for (table, key) in [(Table::Documents, "Service a.b"), (Table::Endpoints, "a.b/v1/10.0.0.1:80")] {
            let place = keys.place(&keys.object(table, key));
            assert_eq!(place, Some(Place::Object(table, key.to_owned())));
            assert_eq!(keys.place(&keys.written(table)), Some(Place::Written(table)));
        }
        for foreign in
            ["/shop", "/shop/", "/shopping/documents/Service a", "/shop/other/x", "/shop/written/x"]
        {
            assert_eq!(keys.place(foreign.as_bytes()), None, "{foreign}");
        }
        assert_eq!(keys.place(b"/shop/documents/\xff"), None);
    }

    #[test]
    fn a_range_holds_what_is_below_and_nothing_beside() {
        let keys = Keys::new("/shop");
        let inside =
            |key: &str, (from, to): (Bytes, Bytes)| (from..to).contains(&Bytes::from(key.to_owned()));
        assert!(inside("/shop/endpoints/a/v1/x", keys.endpoints_of("a")));
        assert!(!inside("/shop/endpoints/ab/v1/x", keys.endpoints_of("a")));
        assert!(!inside("/shop/endpoints/a-b/v1/x", keys.endpoints_of("a")));
        assert!(inside("/shop/documents/Service z", keys.everything()));
        assert!(!inside("/shop-2/documents/Service z", keys.everything()));
        assert!(inside("/shop/written/endpoints", keys.all_written()));
    }
}
