//! Host, path and headers → a split over clusters. Immutable, built once per route configuration.
//!
//! The cost of a lookup does not grow with the number of rules: hosts and paths are found by hash. What
//! is read on the way lies together, as with many hosts most of it is not in a cache.
//! Prefixes are looked up once for each distinct length that they have; the first rule in the
//! order of the configuration wins among those found.

use std::{borrow::Cow, collections::HashMap};

use config::{
    HeaderPredicate,
    xds::route::{PathRule, RouteConfig, RouteEntry},
};
use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;
use smol_str::SmolStr;

use crate::{balance::split::Split, names::Names};

/// The longest host that is looked at; DNS names have at most 253 characters (RFC 1035 §2.3.4).
const MAX_HOST: usize = 260;

/// Short names are in the index itself, so that to compare one reads no more of memory.
type Index<V> = HashMap<SmolStr, V, foldhash::fast::RandomState>;

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

/// A virtual host. Most have one route.
#[derive(Debug)]
struct Host {
    /// In the order of the configuration.
    routes: SmallVec<[Route; 1]>,
    /// With more than [`FEW`] routes.
    by_path: Option<Box<ByPath>>,
}

/// Routes by their paths, each list in the order of the configuration.
#[derive(Debug, Default)]
struct ByPath {
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
    path: Path,
    headers: Box<[(HeaderName, HeaderPredicate)]>,
    split: Split,
}

/// What a path has to be.
#[derive(Debug)]
enum Path {
    Exact(SmolStr),
    Prefix(SmolStr),
    /// Whole segments: `/a` stands for `/a` and `/a/b`, not for `/ab`.
    Segments(SmolStr),
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
    /// Of a route configuration; `names` has the places of its clusters.
    pub(crate) fn new(config: &RouteConfig, names: &mut Names) -> Self {
        let mut table = Self {
            ignore_port: config.ignore_port,
            hosts: Vec::with_capacity(config.virtual_hosts.len()),
            exact: HashMap::default(),
            suffixes: HashMap::default(),
            any: None,
        };
        for (i, host) in config.virtual_hosts.iter().enumerate() {
            table.hosts.push(Host::new(&host.routes, names));
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
    fn new(entries: &[RouteEntry], names: &mut Names) -> Self {
        let routes: SmallVec<_> = entries.iter().filter_map(|entry| Route::new(entry, names)).collect();
        let by_path = (routes.len() > FEW).then(|| Box::new(ByPath::new(&routes)));
        Self { routes, by_path }
    }

    fn find(&self, path: &str, fields: &impl Fields) -> Option<&Split> {
        let Some(by_path) = &self.by_path else {
            let mut matching = self.routes.iter().filter(|route| route.is_for(path));
            return matching.find(|route| route.applies(fields)).map(|route| &route.split);
        };
        let mut best = u32::MAX;
        if !by_path.exact.is_empty() {
            best = self.first(by_path.exact.get(path), best, fields);
        }
        for &length in &by_path.prefixes.lengths {
            let Some(prefix) = path.get(..length) else { continue };
            best = self.first(by_path.prefixes.routes.get(prefix), best, fields);
        }
        for &length in &by_path.segments.lengths {
            if matches!(path.as_bytes().get(length), None | Some(b'/')) {
                let Some(prefix) = path.get(..length) else { continue };
                best = self.first(by_path.segments.routes.get(prefix), best, fields);
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

impl ByPath {
    fn new(routes: &[Route]) -> Self {
        let mut by_path = Self::default();
        // Far fewer than 2³² fit into one xDS message.
        for (number, route) in (0_u32..).zip(routes) {
            match &route.path {
                Path::Exact(path) => by_path.exact.entry(path.clone()).or_default().push(number),
                Path::Prefix(path) => by_path.prefixes.add(path, number),
                Path::Segments(path) => by_path.segments.add(path, number),
            }
        }
        by_path
    }
}

impl Prefixes {
    fn add(&mut self, prefix: &SmolStr, number: u32) {
        self.routes.entry(prefix.clone()).or_default().push(number);
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
    fn new(entry: &RouteEntry, names: &mut Names) -> Option<Self> {
        let mut headers = Vec::with_capacity(entry.headers.len());
        for header in &entry.headers {
            match HeaderName::from_bytes(header.name.as_bytes()) {
                Ok(name) => headers.push((name, header.predicate.clone())),
                Err(_) if header.predicate == HeaderPredicate::Present(false) => {}
                Err(_) => return None,
            }
        }
        let split = Split::new(entry.clusters.iter().map(|(name, weight)| (names.name(name), *weight)));
        let path = match &entry.path {
            PathRule::Exact(path) => Path::Exact(path.into()),
            PathRule::Prefix(path) => Path::Prefix(path.into()),
            PathRule::Segments(path) => Path::Segments(path.into()),
        };
        Some(Self { path, headers: headers.into(), split })
    }

    fn is_for(&self, path: &str) -> bool {
        match &self.path {
            Path::Exact(exact) => path == exact,
            Path::Prefix(prefix) => path.starts_with(prefix.as_str()),
            Path::Segments(prefix) => path
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
        let config = RouteConfig {
            name: "edge".into(),
            ignore_port: true,
            virtual_hosts: hosts.iter().map(host).collect(),
        };
        RouteTable::new(&config, &mut Names::default())
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
            let mut names = Names::default();
            let scan: Vec<Route> = rules.iter().filter_map(|rule| Route::new(rule, &mut names)).collect();
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
