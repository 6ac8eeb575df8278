//! Host, path and headers → a split over clusters. Immutable, built once per route configuration.
//!
//! The cost of a lookup does not grow with the number of rules: hosts and paths are found by hash.
//! Prefixes are looked up once for each distinct length that they have; the first rule in the
//! order of the configuration wins among those found.

use std::{borrow::Cow, collections::HashMap};

use config::{
    HeaderPredicate,
    xds::route::{PathRule, RouteConfig, RouteEntry},
};
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::balance::split::Split;

/// The longest host that is looked at; DNS names have at most 253 characters (RFC 1035 §2.3.4).
const MAX_HOST: usize = 260;

type Index<V> = HashMap<Box<str>, V, foldhash::fast::RandomState>;

/// The header fields of a request, whatever protocol they came by.
pub(crate) trait Fields {
    /// The values of the fields called `name`, in order.
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;
}

impl Fields for HeaderMap {
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        self.get_all(name).iter().map(HeaderValue::as_bytes)
    }
}

/// A route configuration, ready to be asked.
#[derive(Debug)]
pub(crate) struct RouteTable {
    ignore_port: bool,
    hosts: Vec<Host>,
    exact: Index<usize>,
    /// `.example.com` for the domain `*.example.com`.
    suffixes: Index<usize>,
    any: Option<usize>,
}

/// So few rules are looked at one after the other, which is faster than to hash.
const FEW: usize = 4;

/// A virtual host. Lists of routes are in their order.
#[derive(Debug, Default)]
struct Host {
    routes: Vec<Route>,
    /// Used only with more than [`FEW`] routes, as are the next two.
    exact: Index<Vec<u32>>,
    prefixes: Prefixes,
    segments: Prefixes,
}

#[derive(Debug, Default)]
struct Prefixes {
    routes: Index<Vec<u32>>,
    /// The lengths that there are, in bytes; each once.
    lengths: Vec<usize>,
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
            table.hosts.push(Host::new(&host.routes));
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
    pub(crate) fn find(&self, host: &str, path: &str, fields: &impl Fields) -> Result<&Split, NoRoute> {
        let host = self.virtual_host(host).ok_or(NoRoute::Host)?;
        self.hosts[host].find(path, fields).ok_or(NoRoute::Path)
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

impl Host {
    fn new(entries: &[RouteEntry]) -> Self {
        let mut host = Self::default();
        for entry in entries {
            let Some(route) = Route::new(entry) else { continue };
            let number = host.routes.len() as u32; // far fewer fit into one xDS message
            host.routes.push(route);
            match &entry.path {
                PathRule::Exact(path) => host.exact.entry(path.as_str().into()).or_default().push(number),
                PathRule::Prefix(path) => host.prefixes.add(path, number),
                PathRule::Segments(path) => host.segments.add(path, number),
            }
        }
        host
    }

    fn find(&self, path: &str, fields: &impl Fields) -> Option<&Split> {
        if self.routes.len() <= FEW {
            let mut matching = self.routes.iter().filter(|route| route.is_for(path));
            return matching.find(|route| route.applies(fields)).map(|route| &route.split);
        }
        let mut best = u32::MAX;
        if !self.exact.is_empty() {
            best = self.first(self.exact.get(path), best, fields);
        }
        for &length in &self.prefixes.lengths {
            let Some(prefix) = path.get(..length) else { continue };
            best = self.first(self.prefixes.routes.get(prefix), best, fields);
        }
        for &length in &self.segments.lengths {
            if matches!(path.as_bytes().get(length), None | Some(b'/')) {
                let Some(prefix) = path.get(..length) else { continue };
                best = self.first(self.segments.routes.get(prefix), best, fields);
            }
        }
        self.routes.get(best as usize).map(|route| &route.split)
    }

    /// The first of `routes` that applies, or else `best`.
    fn first(&self, routes: Option<&Vec<u32>>, best: u32, fields: &impl Fields) -> u32 {
        let earlier = routes.into_iter().flatten().copied().take_while(|&number| number < best);
        let mut applying = earlier.filter(|&number| self.routes[number as usize].applies(fields));
        applying.next().unwrap_or(best)
    }
}

impl Prefixes {
    fn add(&mut self, prefix: &str, number: u32) {
        self.routes.entry(prefix.into()).or_default().push(number);
        if !self.lengths.contains(&prefix.len()) {
            self.lengths.push(prefix.len());
        }
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

    fn is_for(&self, path: &str) -> bool {
        match &self.path {
            PathRule::Exact(exact) => path == exact,
            PathRule::Prefix(prefix) => path.starts_with(prefix.as_str()),
            // Whole segments: `/a` stands for `/a` and `/a/b`, not for `/ab`.
            PathRule::Segments(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
        }
    }

    fn applies(&self, fields: &impl Fields) -> bool {
        self.headers.iter().all(|(name, predicate)| header_matches(fields, name, predicate))
    }
}

/// Several fields of one name count as one value, joined by `,` (RFC 9110 §5.3).
fn header_matches(fields: &impl Fields, name: &HeaderName, predicate: &HeaderPredicate) -> bool {
    let mut values = fields.values(name);
    let Some(first) = values.next() else { return *predicate == HeaderPredicate::Present(false) };
    let value = match values.next() {
        None => Cow::Borrowed(first),
        Some(second) => {
            let all = [first, second].into_iter().chain(values);
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
    fn many_rules_find_what_a_scan_would() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let path = |rng: &mut fastrand::Rng| -> String {
                (0..rng.usize(0..4)).map(|_| ["/a", "/b", "/ab", "/"][rng.usize(0..4)]).collect()
            };
            let rules: Vec<RouteEntry> = (0..rng.usize(0..40))
                .map(|i| {
                    let path = path(&mut rng);
                    let rule = match rng.u8(0..3) {
                        0 => PathRule::Exact(path),
                        1 => PathRule::Prefix(path),
                        _ => PathRule::Segments(path),
                    };
                    let beta = [("x-beta", HeaderPredicate::Present(true))];
                    entry(rule, if rng.bool() { &beta } else { &[] }, &format!("c{i}"))
                })
                .collect();
            let table = table(&[(&["*"], rules.clone())]);
            let scan: Vec<Route> = rules.iter().filter_map(Route::new).collect();
            let mut beta = HeaderMap::new();
            beta.insert("x-beta", "1".parse().unwrap());
            for _ in 0..200 {
                let (path, fields) = (path(&mut rng), if rng.bool() { &beta } else { &HeaderMap::new() });
                let first = scan.iter().find(|route| route.is_for(&path) && route.applies(fields));
                let expected = first.and_then(|r| r.split.draw(&mut rng)).map(ToString::to_string);
                assert_eq!(find(&table, "any", &path, fields).ok(), expected, "seed {seed}: {path}");
            }
        }
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
