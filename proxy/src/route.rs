//! Host, path and headers → a split over clusters. Immutable, built once per route configuration.

use std::{borrow::Cow, collections::HashMap};

use config::{
    HeaderPredicate,
    xds::route::{PathRule, RouteConfig, RouteEntry},
};
use http::{HeaderMap, HeaderName};

use crate::balance::split::Split;

/// The longest host that is looked at; DNS names have at most 253 characters (RFC 1035 §2.3.4).
const MAX_HOST: usize = 260;

/// A route configuration, ready to be asked.
#[derive(Debug)]
pub(crate) struct RouteTable {
    ignore_port: bool,
    hosts: Vec<Vec<Route>>,
    exact: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    /// `.example.com` for the domain `*.example.com`.
    suffixes: HashMap<Box<str>, usize, foldhash::fast::RandomState>,
    any: Option<usize>,
}

#[derive(Debug)]
struct Route {
    path: PathRule,
    headers: Vec<(HeaderName, HeaderPredicate)>,
    split: Split,
}

/// Why no route was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NoRoute {
    /// No virtual host answers for the host.
    Host,
    /// The virtual host has no route that matches.
    Path,
}

impl RouteTable {
    /// Of a route configuration.
    pub(crate) fn new(config: &RouteConfig) -> Self {
        let mut table = Self {
            ignore_port: config.ignore_port,
            hosts: Vec::with_capacity(config.virtual_hosts.len()),
            exact: HashMap::default(),
            suffixes: HashMap::default(),
            any: None,
        };
        for (i, host) in config.virtual_hosts.iter().enumerate() {
            table.hosts.push(host.routes.iter().filter_map(Route::new).collect());
            for domain in &host.domains {
                match domain.strip_prefix('*') {
                    Some("") => table.any = Some(i),
                    Some(suffix) => _ = table.suffixes.insert(suffix.into(), i),
                    None => _ = table.exact.insert(domain.as_str().into(), i),
                }
            }
        }
        table
    }

    /// The split for a request. `host` may have a port; `path` has no query.
    ///
    /// The virtual host is the exact one, else the one with the longest matching suffix, else `*`
    /// (envoy/config/route/v3: `VirtualHost.domains`); in it the first route that matches applies.
    pub(crate) fn find(&self, host: &str, path: &str, headers: &HeaderMap) -> Result<&Split, NoRoute> {
        let host = self.virtual_host(host).ok_or(NoRoute::Host)?;
        let route = self.hosts[host].iter().find(|route| route.matches(path, headers));
        route.map(|route| &route.split).ok_or(NoRoute::Path)
    }

    fn virtual_host(&self, host: &str) -> Option<usize> {
        let host = if self.ignore_port { without_port(host) } else { host };
        if host.len() > MAX_HOST {
            return self.any;
        }
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        if let Some(&found) = self.exact.get(&*host) {
            return Some(found);
        }
        if !self.suffixes.is_empty() {
            // From the first dot to the last, so that the longest suffix is found first. A suffix
            // stands for at least one character (`*.a.com` is not `.a.com`).
            let dots = host.bytes().enumerate().filter(|&(i, b)| b == b'.' && i > 0);
            let found = dots.map(|(i, _)| &host[i..]).find_map(|suffix| self.suffixes.get(suffix));
            if let Some(&found) = found {
                return Some(found);
            }
        }
        self.any
    }
}

/// A host without its `:port`; brackets of IPv6 stay.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) && !name.is_empty() => {
            // `::1` without brackets is not a host and a port.
            if name.contains(':') && !name.ends_with(']') { host } else { name }
        }
        _ => host,
    }
}

impl Route {
    /// `None` when a header name is not one that a request can have: it never matches, or (asked to
    /// be absent) always does.
    fn new(entry: &RouteEntry) -> Option<Self> {
        let mut headers = Vec::with_capacity(entry.headers.len());
        for header in &entry.headers {
            match HeaderName::from_bytes(header.name.as_bytes()) {
                Ok(name) => headers.push((name, header.predicate.clone())),
                Err(_) if header.predicate == HeaderPredicate::Present(false) => {}
                Err(_) => return None,
            }
        }
        let split = Split::new(entry.clusters.iter().map(|(name, weight)| (name.as_str(), *weight)));
        Some(Self { path: entry.path.clone(), headers, split })
    }

    fn matches(&self, path: &str, headers: &HeaderMap) -> bool {
        let on_path = match &self.path {
            PathRule::Exact(exact) => path == exact,
            PathRule::Prefix(prefix) => path.starts_with(prefix.as_str()),
            PathRule::Segments(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        };
        on_path && self.headers.iter().all(|(name, predicate)| header_matches(headers, name, predicate))
    }
}

/// Several fields of one name count as one value, joined by `,` (RFC 9110 §5.3).
fn header_matches(headers: &HeaderMap, name: &HeaderName, predicate: &HeaderPredicate) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return *predicate == HeaderPredicate::Present(false) };
    let value = match values.next() {
        None => Cow::Borrowed(first.as_bytes()),
        Some(second) => {
            let all = [first, second].into_iter().chain(values).map(http::HeaderValue::as_bytes);
            Cow::Owned(all.collect::<Vec<_>>().join(&b','))
        }
    };
    match predicate {
        HeaderPredicate::Present(present) => *present,
        HeaderPredicate::Exact(exact) => *value == *exact.as_bytes(),
        HeaderPredicate::Prefix(prefix) => value.starts_with(prefix.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use config::{HeaderMatch, xds::route::VirtualHost};

    use super::*;

    fn entry(path: PathRule, headers: &[(&str, HeaderPredicate)], cluster: &str) -> RouteEntry {
        let header = |(name, predicate): &(&str, HeaderPredicate)| HeaderMatch {
            name: (*name).into(),
            predicate: predicate.clone(),
        };
        RouteEntry {
            path,
            headers: headers.iter().map(header).collect(),
            clusters: vec![(cluster.into(), 1)],
        }
    }

    fn table(hosts: &[(&[&str], Vec<RouteEntry>)]) -> RouteTable {
        let host = |(domains, routes): &(&[&str], Vec<RouteEntry>)| VirtualHost {
            domains: domains.iter().map(|d| (*d).to_owned()).collect(),
            routes: routes.clone(),
        };
        RouteTable::new(&RouteConfig {
            name: "edge".into(),
            ignore_port: true,
            virtual_hosts: hosts.iter().map(host).collect(),
        })
    }

    fn all(cluster: &str) -> Vec<RouteEntry> {
        vec![entry(PathRule::Prefix("/".into()), &[], cluster)]
    }

    fn find(table: &RouteTable, host: &str, path: &str, headers: &HeaderMap) -> Result<String, NoRoute> {
        let split = table.find(host, path, headers)?;
        Ok(split.draw(&mut fastrand::Rng::with_seed(1)).unwrap().to_string())
    }

    #[test]
    fn exact_hosts_come_before_the_longest_suffix_before_any() {
        let table = table(&[
            (&["*"], all("any")),
            (&["*.example.com"], all("wild")),
            (&["*.eu.example.com"], all("wild-eu")),
            (&["shop.example.com", "[::1]"], all("shop")),
        ]);
        for (host, want) in [
            ("shop.example.com", "shop"),
            ("SHOP.Example.com:8080", "shop"),
            ("[::1]:80", "shop"),
            ("[::1]", "shop"),
            ("a.example.com", "wild"),
            ("b.a.example.com", "wild"),
            ("a.eu.example.com", "wild-eu"),
            ("example.com", "any"),
            (".example.com", "any"),
            ("", "any"),
            ("other:x", "any"),
            (&"a.".repeat(4_000), "any"),
        ] {
            assert_eq!(find(&table, host, "/", &HeaderMap::new()), Ok(want.into()), "{host}");
        }
    }

    #[test]
    fn the_first_matching_route_applies() {
        let exact = HeaderPredicate::Exact("1".into());
        let table = table(&[(
            &["a"],
            vec![
                entry(PathRule::Exact("/exact".into()), &[], "exact"),
                entry(PathRule::Segments("/shop".into()), &[("x-beta", exact)], "beta"),
                entry(PathRule::Segments("/shop".into()), &[], "shop"),
                entry(PathRule::Prefix("/img".into()), &[("x-no", HeaderPredicate::Present(false))], "img"),
            ],
        )]);
        let mut beta = HeaderMap::new();
        beta.insert("x-beta", "1".parse().unwrap());
        let mut no = HeaderMap::new();
        no.insert("x-no", "".parse().unwrap());
        let none = HeaderMap::new();
        for (path, headers, want) in [
            ("/exact", &none, Ok("exact")),
            ("/exact/", &none, Err(NoRoute::Path)),
            ("/shop", &none, Ok("shop")),
            ("/shop/1", &none, Ok("shop")),
            ("/shopping", &none, Err(NoRoute::Path)),
            ("/shop/1", &beta, Ok("beta")),
            ("/images", &none, Err(NoRoute::Path)),
            ("/img2", &none, Ok("img")),
            ("/img2", &no, Err(NoRoute::Path)),
        ] {
            assert_eq!(find(&table, "a", path, headers), want.map(str::to_owned), "{path}");
        }
        assert_eq!(find(&table, "b", "/", &none), Err(NoRoute::Host));
    }

    #[test]
    fn repeated_headers_are_one_value() {
        let predicate = HeaderPredicate::Exact("1,2".into());
        let table =
            table(&[(&["*"], vec![entry(PathRule::Prefix("/".into()), &[("x-a", predicate)], "both")])]);
        let mut headers = HeaderMap::new();
        headers.append("x-a", "1".parse().unwrap());
        assert!(find(&table, "a", "/", &headers).is_err());
        headers.append("x-a", "2".parse().unwrap());
        assert!(find(&table, "a", "/", &headers).is_ok());
    }
}
