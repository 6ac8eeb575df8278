//! The route lookup alone.

use config::xds::route::{PathRule, RouteConfig, RouteEntry, VirtualHost};
use http::HeaderMap;

use crate::{names::Names, route::RouteTable};

/// What the rules of a table differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// A path each, whole segments of it, on one host: `/r000042` and below.
    Paths,
    /// An exact host each, with one rule for all paths: `r000042.example.com`.
    Hosts,
    /// A prefix each on one host, each of another length: what a lookup does grow with.
    Lengths,
}

/// A route table.
#[derive(Debug)]
pub struct Routes {
    table: RouteTable,
    fields: HeaderMap,
}

impl Routes {
    /// With `count` rules.
    pub fn new(rules: Rules, count: usize) -> Self {
        let entry = |path: PathRule, number: usize| RouteEntry {
            path,
            headers: Vec::new(),
            clusters: vec![(format!("r{number}/v1"), 90), (format!("r{number}/v2"), 10)],
        };
        let host = |domain: String, routes: Vec<RouteEntry>| VirtualHost { domains: vec![domain], routes };
        let hosts = match rules {
            Rules::Paths => {
                let routes = (0..count).map(|i| entry(PathRule::Segments(format!("/r{i:06}")), i));
                vec![host("shop.example.com".to_owned(), routes.collect())]
            }
            Rules::Hosts => {
                let all = |i| entry(PathRule::Prefix("/".to_owned()), i);
                (0..count).map(|i| host(format!("r{i:06}.example.com"), vec![all(i)])).collect()
            }
            Rules::Lengths => {
                let routes =
                    (0..count).map(|i| entry(PathRule::Prefix(format!("/{}", "r".repeat(i + 1))), i));
                vec![host("shop.example.com".to_owned(), routes.collect())]
            }
        };
        let config = RouteConfig { name: "edge".to_owned(), ignore_port: true, virtual_hosts: hosts };
        Self { table: RouteTable::new(&config, &mut Names::default()), fields: HeaderMap::new() }
    }

    /// Whether there is a route.
    pub fn find(&self, host: &str, path: &str) -> bool {
        self.table.find(host, path, &self.fields).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_found_and_nothing_else() {
        let (paths, hosts) = (Routes::new(Rules::Paths, 20), Routes::new(Rules::Hosts, 20));
        for i in 0..20 {
            assert!(paths.find("shop.example.com:80", &format!("/r{i:06}/cart")));
            assert!(hosts.find(&format!("r{i:06}.example.com"), "/cart"));
        }
        assert!(!paths.find("shop.example.com", "/r000020"));
        assert!(!hosts.find("r000020.example.com", "/"));
        assert!(Routes::new(Rules::Lengths, 3).find("shop.example.com", "/rrrr"));
    }
}
