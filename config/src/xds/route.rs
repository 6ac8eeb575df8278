//! The routes of a gateway ↔ `RouteConfiguration` (envoy/config/route/v3/route.proto).

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::{
    envoy::{
        config::route::v3::{
            HeaderMatcher, RetryPolicy, Route as XdsRoute, RouteAction, RouteConfiguration,
            RouteMatch as XdsMatch, VirtualHost as XdsHost, WeightedCluster,
            header_matcher::HeaderMatchSpecifier,
            retry_policy::{RetryHostPredicate, retry_host_predicate},
            route::Action,
            route_action::ClusterSpecifier,
            route_match::PathSpecifier,
            weighted_cluster::ClusterWeight,
        },
        extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate,
        r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::{Duration, UInt32Value},
};

use super::{DecodeError, decode, pack};
use crate::{
    name::{ClusterName, GatewayName, ServiceName, VersionName},
    route::{HeaderMatch, HeaderPredicate, PathMatch, Route, RouteMatch, Rule},
    split::Split,
};

/// How many other endpoints of the same version are tried when one cannot be connected to.
pub const CONNECT_RETRIES: u32 = 3;

/// What a proxy needs to know of a route configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// Its resource name.
    pub name: String,
    /// Whether a port in the Host header is left out of host matching.
    pub ignore_port: bool,
    /// Its virtual hosts; domains are unique across them.
    pub virtual_hosts: Vec<VirtualHost>,
}

impl RouteConfig {
    /// The names of every cluster it may send requests to.
    pub fn clusters(&self) -> BTreeSet<&str> {
        let routes = self.virtual_hosts.iter().flat_map(|host| &host.routes);
        routes.flat_map(|route| route.clusters.iter().map(|(name, _)| name.as_str())).collect()
    }
}

/// Routes for some domains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtualHost {
    /// Exact names, `*.suffix`, or `*`; in lower case.
    pub domains: Vec<String>,
    /// In order; the first that matches applies.
    pub routes: Vec<RouteEntry>,
}

/// One route: what matches goes to one of the clusters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// On the path.
    pub path: PathRule,
    /// On headers: all of them.
    pub headers: Vec<HeaderMatch>,
    /// Clusters and their weights; never empty, the sum is 1 to `u32::MAX`.
    pub clusters: Vec<(String, u32)>,
}

/// A match on the path, without the query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRule {
    /// The whole path.
    Exact(String),
    /// Leading characters.
    Prefix(String),
    /// Leading path segments: `/a` matches `/a` and `/a/b`, not `/ab`.
    Segments(String),
}

/// The route configuration of `gateway`: its `routes` in any order, and the split of each service
/// they name, through `split_of`. Rules come out from the most to the least specific.
///
/// A service that `split_of` does not know is left out; the registry never lets that happen.
pub fn encode<'a>(
    gateway: &GatewayName,
    routes: impl IntoIterator<Item = &'a Route>,
    split_of: impl Fn(&ServiceName) -> Option<&'a Split>,
) -> RouteConfiguration {
    let mut by_host: BTreeMap<&str, Vec<&Rule>> = BTreeMap::new();
    for route in routes {
        for host in &route.hosts {
            by_host.entry(host.as_str()).or_default().extend(&route.rules);
        }
    }
    let virtual_hosts = by_host.into_iter().map(|(host, mut rules)| {
        rules.sort_by_key(|rule| rule.matches.specificity());
        let routes = rules.into_iter().filter_map(|rule| Some(encode_rule(rule, split_of(&rule.service)?)));
        XdsHost {
            name: host.to_owned(),
            domains: vec![host.to_owned()],
            routes: routes.collect(),
            retry_policy: Some(connect_retry()),
            ..Default::default()
        }
    });
    RouteConfiguration {
        name: gateway.to_string(),
        virtual_hosts: virtual_hosts.collect(),
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

fn encode_rule(rule: &Rule, split: &Split) -> XdsRoute {
    XdsRoute {
        r#match: Some(encode_match(&rule.matches)),
        action: Some(Action::Route(divide(&rule.service, split.weights()))),
        ..Default::default()
    }
}

/// What sends the requests of `service` to its versions by weight; the weights add up to 1 to `u32::MAX`.
pub(super) fn divide<'a>(
    service: &ServiceName,
    weights: impl IntoIterator<Item = (&'a VersionName, &'a u32)>,
) -> RouteAction {
    let clusters = weights.into_iter().map(|(version, weight)| ClusterWeight {
        name: ClusterName::new(service.clone(), version.clone()).to_string(),
        weight: Some(UInt32Value { value: *weight }),
        ..Default::default()
    });
    let weighted = WeightedCluster { clusters: clusters.collect(), ..Default::default() };
    RouteAction {
        cluster_specifier: Some(ClusterSpecifier::WeightedClusters(weighted)),
        // 0 is "no limit": long responses are the service's business.
        timeout: Some(Duration::default()),
        ..Default::default()
    }
}

fn encode_match(matches: &RouteMatch) -> XdsMatch {
    let path = match &matches.path {
        PathMatch::Exact(path) => PathSpecifier::Path(path.clone()),
        // Envoy refuses a separated prefix that ends in `/`; for the root both mean the same.
        PathMatch::Prefix(path) if path == "/" => PathSpecifier::Prefix(path.clone()),
        PathMatch::Prefix(path) => PathSpecifier::PathSeparatedPrefix(path.clone()),
    };
    XdsMatch {
        path_specifier: Some(path),
        headers: matches.headers.iter().map(encode_header).collect(),
        ..Default::default()
    }
}

fn encode_header(header: &HeaderMatch) -> HeaderMatcher {
    let string = |pattern| {
        HeaderMatchSpecifier::StringMatch(StringMatcher {
            match_pattern: Some(pattern),
            ..Default::default()
        })
    };
    let specifier = match &header.predicate {
        HeaderPredicate::Exact(value) => string(MatchPattern::Exact(value.clone())),
        HeaderPredicate::Prefix(value) if value.is_empty() => HeaderMatchSpecifier::PresentMatch(true),
        HeaderPredicate::Prefix(value) => string(MatchPattern::Prefix(value.clone())),
        HeaderPredicate::Present(present) => HeaderMatchSpecifier::PresentMatch(*present),
    };
    HeaderMatcher { name: header.name.clone(), header_match_specifier: Some(specifier), ..Default::default() }
}

/// A request that was never sent may go to another endpoint of the same version.
fn connect_retry() -> RetryPolicy {
    let previous_hosts = RetryHostPredicate {
        name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
        config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack(&PreviousHostsPredicate {}))),
    };
    RetryPolicy {
        retry_on: "connect-failure,refused-stream".to_owned(),
        num_retries: Some(UInt32Value { value: CONNECT_RETRIES }),
        retry_host_predicate: vec![previous_hosts],
        host_selection_retry_max_attempts: i64::from(CONNECT_RETRIES),
        ..Default::default()
    }
}

/// Reads a route configuration.
///
/// # Errors
/// When a route matches or acts in a way that is not supported: leaving out a condition would send
/// requests where they were not meant to go.
pub fn decode_route_config(value: &[u8]) -> Result<RouteConfig, DecodeError> {
    let config: RouteConfiguration = decode(value)?;
    if config.name.is_empty() {
        return Err(DecodeError::missing("name"));
    }
    let mut domains = BTreeSet::new();
    let mut virtual_hosts = Vec::with_capacity(config.virtual_hosts.len());
    for (i, host) in config.virtual_hosts.iter().enumerate() {
        let field = format!("virtual_hosts[{i}]");
        let mut own = Vec::with_capacity(host.domains.len());
        for domain in &host.domains {
            let domain = domain.to_ascii_lowercase();
            let starred = domain.matches('*').count();
            if !(starred == 0 || domain == "*" || (starred == 1 && domain.starts_with("*."))) {
                let message = format!("`{domain}`: only names, `*.name` and `*` are supported");
                return Err(DecodeError::new(format!("{field}.domains"), message));
            }
            if !domains.insert(domain.clone()) {
                return Err(DecodeError::new(
                    format!("{field}.domains"),
                    format!("`{domain}` is there twice"),
                ));
            }
            own.push(domain);
        }
        let routes = host.routes.iter().enumerate();
        let routes = routes.map(|(j, route)| decode_route(&format!("{field}.routes[{j}]"), route));
        virtual_hosts.push(VirtualHost { domains: own, routes: routes.collect::<Result<_, _>>()? });
    }
    Ok(RouteConfig { name: config.name, ignore_port: config.ignore_port_in_host_matching, virtual_hosts })
}

fn decode_route(field: &str, route: &XdsRoute) -> Result<RouteEntry, DecodeError> {
    let matches =
        route.r#match.as_ref().ok_or_else(|| DecodeError::new(format!("{field}.match"), "is missing"))?;
    let (path, headers) = decode_match(&format!("{field}.match"), matches)?;
    let Some(Action::Route(action)) = &route.action else {
        return Err(DecodeError::new(format!("{field}.action"), "only route is supported"));
    };
    let clusters = match &action.cluster_specifier {
        Some(ClusterSpecifier::Cluster(name)) => vec![(name.clone(), 1)],
        Some(ClusterSpecifier::WeightedClusters(weighted)) => {
            weighted.clusters.iter().map(|c| (c.name.clone(), c.weight.map_or(0, |w| w.value))).collect()
        }
        _ => {
            let message = "only cluster and weighted_clusters are supported";
            return Err(DecodeError::new(format!("{field}.route.cluster_specifier"), message));
        }
    };
    let total: u64 = clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 || total > u64::from(u32::MAX) || clusters.iter().any(|(name, _)| name.is_empty()) {
        let message = "clusters have names, and weights that add up to 1 to 4294967295";
        return Err(DecodeError::new(format!("{field}.route.weighted_clusters"), message));
    }
    Ok(RouteEntry { path, headers, clusters })
}

fn decode_match(field: &str, matches: &XdsMatch) -> Result<(PathRule, Vec<HeaderMatch>), DecodeError> {
    let unsupported = !matches.query_parameters.is_empty()
        || !matches.cookies.is_empty()
        || matches.grpc.is_some()
        || matches.tls_context.is_some()
        || matches.runtime_fraction.is_some()
        || !matches.dynamic_metadata.is_empty()
        || !matches.filter_state.is_empty()
        || matches.case_sensitive.is_some_and(|c| !c.value);
    if unsupported {
        return Err(DecodeError::new(
            field,
            "only matches on path (case-sensitive) and headers are supported",
        ));
    }
    let path = match &matches.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => PathRule::Prefix(prefix.clone()),
        Some(PathSpecifier::Path(path)) => PathRule::Exact(path.clone()),
        Some(PathSpecifier::PathSeparatedPrefix(prefix)) => PathRule::Segments(prefix.clone()),
        _ => {
            let message = "only prefix, path and path_separated_prefix are supported";
            return Err(DecodeError::new(format!("{field}.path_specifier"), message));
        }
    };
    let headers = matches.headers.iter().enumerate();
    let headers = headers.map(|(i, header)| decode_header(&format!("{field}.headers[{i}]"), header));
    Ok((path, headers.collect::<Result<_, _>>()?))
}

fn decode_header(field: &str, header: &HeaderMatcher) -> Result<HeaderMatch, DecodeError> {
    let unsupported = |message: &str| Err(DecodeError::new(field, message));
    let predicate = match &header.header_match_specifier {
        None => HeaderPredicate::Present(!header.invert_match),
        Some(HeaderMatchSpecifier::PresentMatch(present)) => {
            HeaderPredicate::Present(*present != header.invert_match)
        }
        Some(_) if header.invert_match => {
            return unsupported("invert_match is supported with present_match only");
        }
        Some(HeaderMatchSpecifier::StringMatch(StringMatcher { ignore_case: false, match_pattern })) => {
            match match_pattern {
                Some(MatchPattern::Exact(value)) => HeaderPredicate::Exact(value.clone()),
                Some(MatchPattern::Prefix(value)) => HeaderPredicate::Prefix(value.clone()),
                _ => return unsupported("only exact and prefix string_match are supported"),
            }
        }
        Some(_) => return unsupported("only present_match and case-sensitive string_match are supported"),
    };
    if header.treat_missing_header_as_empty {
        return unsupported("treat_missing_header_as_empty is not supported");
    }
    Ok(HeaderMatch { name: header.name.to_ascii_lowercase(), predicate })
}
