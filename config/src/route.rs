//! Gateways, and routes from a gateway to services.

use std::{fmt, net::SocketAddr, str::FromStr};

use serde::{Serialize, Serializer};

use crate::{
    name::{GatewayName, RouteName, ServiceName},
    tls::GatewayTls,
};

/// An edge listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// Its name, unique.
    pub name: GatewayName,
    /// Where every proxy listens. Port 0 lets each proxy choose a free port, which its admin shows.
    pub listen: SocketAddr,
    /// How it terminates TLS; without it, it speaks HTTP in the clear.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<GatewayTls>,
}

/// Rules from a gateway to services, for some hosts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Its name, unique.
    pub name: RouteName,
    /// The gateway it is attached to.
    pub gateway: GatewayName,
    /// Hosts it answers for; never empty, no duplicates.
    pub hosts: Vec<HostPattern>,
    /// Its rules; never empty. The most specific rule wins, whatever their order.
    pub rules: Vec<Rule>,
}

/// One rule: what matches goes to the service, whose split chooses the version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// What a request must look like.
    #[serde(rename = "match")]
    pub matches: RouteMatch,
    /// Where it goes.
    pub service: ServiceName,
}

/// What a request must look like for a rule to apply: all of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct RouteMatch {
    /// On the path.
    #[serde(flatten)]
    pub path: PathMatch,
    /// On headers, sorted by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderMatch>,
}

impl RouteMatch {
    /// Orders rules from the most to the least specific: exact path before prefix, longer prefix
    /// before shorter, more headers before fewer (Gateway API, `HTTPRouteRule` precedence).
    pub fn specificity(&self) -> impl Ord + use<> {
        let (exact, length) = match &self.path {
            PathMatch::Exact(path) => (true, path.len()),
            PathMatch::Prefix(path) => (false, path.len()),
        };
        std::cmp::Reverse((exact, length, self.headers.len()))
    }
}

/// A match on the path, without the query.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum PathMatch {
    /// The whole path.
    #[serde(rename = "path")]
    Exact(String),
    /// Leading path segments: `/a` matches `/a` and `/a/b`, not `/ab` (Gateway API `PathPrefix`).
    /// Never ends in `/`, except for `/` itself.
    #[serde(rename = "path_prefix")]
    Prefix(String),
}

/// A match on one header.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct HeaderMatch {
    /// The field name, in lower case.
    pub name: String,
    /// What its value must be.
    #[serde(flatten)]
    pub predicate: HeaderPredicate,
}

/// What a header's value must be.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum HeaderPredicate {
    /// Exactly this.
    Exact(String),
    /// Starting with this.
    Prefix(String),
    /// There (`true`) or not there (`false`).
    Present(bool),
}

/// A host a route answers for: `shop.example.com`, `*.example.com` or `*`, in lower case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPattern(String);

/// Why a host pattern was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a host; use a DNS name, `*.` and a DNS name, an IP address, or `*`, without a port")]
pub struct HostError(String);

impl HostPattern {
    /// The pattern as xDS writes it in a virtual host's domains.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for HostPattern {
    type Err = HostError;

    fn from_str(s: &str) -> Result<Self, HostError> {
        let lower = s.to_ascii_lowercase();
        let rest = lower.strip_prefix("*.").unwrap_or(&lower);
        let label = |l: &str| {
            matches!(l.len(), 1..=63)
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        let ipv6 = || {
            let inner = lower.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
            inner.is_some_and(|h| h.parse::<std::net::Ipv6Addr>().is_ok())
        };
        let valid = lower == "*" || ipv6() || (rest.len() <= 253 && rest.split('.').all(label));
        if valid { Ok(Self(lower)) } else { Err(HostError(s.chars().take(80).collect())) }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostPattern {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_wildcards_or_addresses() {
        for good in ["*", "*.example.com", "Shop.Example.com", "localhost", "127.0.0.1", "[::1]"] {
            assert!(good.parse::<HostPattern>().is_ok(), "{good}");
        }
        for bad in ["", "a..b", "*x.com", "a.*.b", "http://a", "a:80", "-a.b", "a b"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
        assert_eq!("Shop.Example.com".parse::<HostPattern>().unwrap().as_str(), "shop.example.com");
    }

    #[test]
    fn the_most_specific_match_comes_first() {
        let prefix = |p: &str, headers: usize| RouteMatch {
            path: PathMatch::Prefix(p.into()),
            headers: (0..headers)
                .map(|i| HeaderMatch { name: format!("x-{i}"), predicate: HeaderPredicate::Present(true) })
                .collect(),
        };
        let exact = RouteMatch { path: PathMatch::Exact("/a".into()), headers: vec![] };
        let mut rules = vec![prefix("/", 0), prefix("/a", 0), exact.clone(), prefix("/a", 1)];
        rules.sort_by_key(RouteMatch::specificity);
        assert_eq!(rules, [exact, prefix("/a", 1), prefix("/a", 0), prefix("/", 0)]);
    }
}
