//! The three kinds of document.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
    net::SocketAddr,
};

use serde::Serialize;

use super::{
    fields::{Context, Fields},
    node::{Node, Value},
    tls,
};
use crate::{
    endpoint::check_address,
    name::{GatewayName, RouteName, ServiceName, VersionName},
    route::{Gateway, HeaderMatch, HeaderPredicate, HostPattern, PathMatch, Route, RouteMatch, Rule},
    service::{Protocol, Service, Version},
    split::Split,
};

/// One document of a manifest. Serialises in the shape it is written in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind")]
pub enum Document {
    /// `kind: Service`
    Service(Service),
    /// `kind: Gateway`
    Gateway(Gateway),
    /// `kind: Route`
    Route(Route),
}

/// The kind and name of a document, which identify it. Displays as `Service checkout`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentRef {
    /// A service.
    Service(ServiceName),
    /// A gateway.
    Gateway(GatewayName),
    /// A route.
    Route(RouteName),
}

impl Document {
    /// Its kind and name.
    pub fn reference(&self) -> DocumentRef {
        match self {
            Document::Service(service) => DocumentRef::Service(service.name.clone()),
            Document::Gateway(gateway) => DocumentRef::Gateway(gateway.name.clone()),
            Document::Route(route) => DocumentRef::Route(route.name.clone()),
        }
    }
}

impl fmt::Display for DocumentRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DocumentRef::Service(name) => write!(f, "Service {name}"),
            DocumentRef::Gateway(name) => write!(f, "Gateway {name}"),
            DocumentRef::Route(name) => write!(f, "Route {name}"),
        }
    }
}

/// Reads one document; `None` when `cx` has errors.
pub(super) fn read(node: &Node, cx: &mut Context<'_>) -> Option<Document> {
    let entries = cx.mapping(node, "a document that starts with `kind: Service`, `Gateway` or `Route`")?;
    let Some((_, kind)) = entries.iter().find(|(key, _)| key.text == "kind") else {
        return cx.within("kind", |cx| cx.error(node.line, "is missing; allowed: Service, Gateway, Route"));
    };
    match &kind.value {
        Value::String(kind) if kind == "Service" => service(node, cx).map(Document::Service),
        Value::String(kind) if kind == "Gateway" => gateway(node, cx).map(Document::Gateway),
        Value::String(kind) if kind == "Route" => route(node, cx).map(Document::Route),
        other => {
            let what = other.what();
            cx.within("kind", |cx| {
                cx.error(kind.line, format!("is {what}; allowed: Service, Gateway, Route"))
            })
        }
    }
}

fn service(node: &Node, cx: &mut Context<'_>) -> Option<Service> {
    let fields = cx.fields(node, "a Service", &["kind", "name", "protocol", "tls", "versions", "split"])?;
    let name = name::<ServiceName>(&fields, cx, "name");
    let protocol = match fields.optional("protocol") {
        Some(node) => cx.within("protocol", |cx| protocol(node, cx)),
        None => Some(Protocol::default()),
    };
    let tls = match fields.optional("tls") {
        Some(node) => cx.within("tls", |cx| match protocol {
            Some(Protocol::Tcp) => {
                cx.error(node.line, "does not go with `protocol: tcp`, whose bytes are not looked into; leave it out, or set the protocol")
            }
            _ => tls::upstream(node, cx).map(Some),
        }),
        None => Some(None),
    };
    let versions = fields.required(cx, "versions");
    let versions = versions.and_then(|node| cx.within("versions", |cx| self::versions(node, cx)))?;
    let split = cx.within("split", |cx| split(fields.optional("split"), fields.line, &versions, cx));
    Some(Service { name: name?, protocol: protocol?, tls: tls?, versions, split: split? })
}

fn protocol(node: &Node, cx: &mut Context<'_>) -> Option<Protocol> {
    let allowed = || Protocol::ALL.map(|(word, _)| word).join(", ");
    let found = match &node.value {
        Value::String(text) => Protocol::ALL.into_iter().find(|(word, _)| word == text),
        _ => None,
    };
    match found {
        Some((_, protocol)) => Some(protocol),
        None => cx.error(node.line, format!("is {}; allowed: {}", node.value.what(), allowed())),
    }
}

fn versions(node: &Node, cx: &mut Context<'_>) -> Option<BTreeMap<VersionName, Version>> {
    let entries = cx.mapping(node, "a mapping of version names, for example `v1: {}`")?;
    if entries.is_empty() {
        return cx.error(node.line, "is empty; a service has at least one version, for example `v1: {}`");
    }
    let mut versions = BTreeMap::new();
    for (key, node) in entries {
        cx.within(key.text.clone(), |cx| {
            if let (Some(name), Some(version)) = (cx.key::<VersionName>(key), version(node, cx)) {
                versions.insert(name, version);
            }
        });
    }
    (versions.len() == entries.len()).then_some(versions)
}

fn version(node: &Node, cx: &mut Context<'_>) -> Option<Version> {
    if matches!(node.value, Value::Null) {
        return Some(Version::default());
    }
    let fields = cx.fields(node, "a version", &["endpoints"])?;
    let Some(list) = fields.optional("endpoints") else { return Some(Version::default()) };
    cx.within("endpoints", |cx| {
        let items = cx.list(list, "addresses, for example `127.0.0.1:9001`")?;
        let mut endpoints: Vec<SocketAddr> = Vec::with_capacity(items.len());
        let mut seen = HashSet::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            cx.within(format!("[{i}]"), |cx| {
                let Some(address) = address(item, cx) else { return };
                if seen.insert(address) {
                    endpoints.push(address);
                } else {
                    cx.error::<()>(item.line, format!("{address} is listed twice"));
                }
            });
        }
        (endpoints.len() == items.len()).then_some(Version { endpoints })
    })
}

/// An address to connect to.
fn address(node: &Node, cx: &mut Context<'_>) -> Option<SocketAddr> {
    let address = socket_address(node, cx)?;
    match check_address(address) {
        Ok(()) => Some(address),
        Err(why) => cx.error(node.line, why),
    }
}

fn socket_address(node: &Node, cx: &mut Context<'_>) -> Option<SocketAddr> {
    let expected = "an IP address and a port, for example `127.0.0.1:9001` or `[::1]:9001`";
    let text = cx.text(node, expected)?;
    match text.parse() {
        Ok(address) => Some(address),
        Err(_) => {
            let text = text.chars().take(80).collect::<String>();
            cx.error(node.line, format!("`{text}` is not an address; expected {expected}"))
        }
    }
}

fn split(
    node: Option<&Node>,
    line: u32,
    versions: &BTreeMap<VersionName, Version>,
    cx: &mut Context<'_>,
) -> Option<Split> {
    let declared = || versions.keys().map(VersionName::as_str).collect::<Vec<_>>().join(", ");
    let Some(node) = node else {
        return match versions.keys().next() {
            Some(only) if versions.len() == 1 => Some(Split::all_to(only.clone())),
            _ => cx.error(
                line,
                format!("is missing; a service with several versions ({}) says how they share traffic, for example `split: {{weights: {{{}: 100}}}}`", declared(), versions.keys().next()?),
            ),
        };
    };
    let fields = cx.fields(node, "a split", &["weights"])?;
    let list = fields.required(cx, "weights")?;
    cx.within("weights", |cx| {
        let entries = cx.mapping(list, "a mapping of versions to weights, for example `{v1: 90, v2: 10}`")?;
        let mut weights = BTreeMap::new();
        for (key, node) in entries {
            cx.within(key.text.clone(), |cx| {
                let (Some(version), Some(weight)) = (cx.key::<VersionName>(key), cx.whole(node)) else {
                    return;
                };
                if versions.contains_key(&version) {
                    weights.insert(version, weight);
                } else {
                    let message = format!("is not a version of the service; declared: {}", declared());
                    cx.error::<()>(key.line, message);
                }
            });
        }
        if weights.len() < entries.len() {
            return None;
        }
        Split::new(weights).map_or_else(|error| cx.error(list.line, error.to_string()), Some)
    })
}

fn gateway(node: &Node, cx: &mut Context<'_>) -> Option<Gateway> {
    let fields = cx.fields(node, "a Gateway", &["kind", "name", "listen", "tls"])?;
    let name = name::<GatewayName>(&fields, cx, "name");
    let listen = fields.required(cx, "listen");
    let listen = listen.and_then(|node| cx.within("listen", |cx| socket_address(node, cx)));
    let tls = match fields.optional("tls") {
        Some(node) => cx.within("tls", |cx| tls::gateway(node, cx).map(Some)),
        None => Some(None),
    };
    Some(Gateway { name: name?, listen: listen?, tls: tls? })
}

fn route(node: &Node, cx: &mut Context<'_>) -> Option<Route> {
    let fields = cx.fields(node, "a Route", &["kind", "name", "gateway", "hosts", "rules"])?;
    let route_name = name::<RouteName>(&fields, cx, "name");
    let gateway = name::<GatewayName>(&fields, cx, "gateway");
    let hosts = match fields.optional("hosts") {
        Some(node) => cx.within("hosts", |cx| hosts(node, cx)),
        None => Some(vec!["*".parse().expect("`*` is a host pattern")]),
    };
    let rules = fields.required(cx, "rules");
    let rules = rules.and_then(|node| cx.within("rules", |cx| self::rules(node, cx)));
    Some(Route { name: route_name?, gateway: gateway?, hosts: hosts?, rules: rules? })
}

fn hosts(node: &Node, cx: &mut Context<'_>) -> Option<Vec<HostPattern>> {
    let items = cx.list(node, "hosts, for example `[\"shop.example.com\"]`")?;
    if items.is_empty() {
        return cx.error(node.line, "is empty; leave it out to answer for every host");
    }
    let mut hosts: Vec<HostPattern> = Vec::with_capacity(items.len());
    let mut seen = HashSet::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        cx.within(format!("[{i}]"), |cx| {
            let Some(host) = cx.parsed::<HostPattern>(item, "a host") else { return };
            if seen.insert(host.clone()) {
                hosts.push(host);
            } else {
                cx.error::<()>(item.line, format!("`{host}` is listed twice"));
            }
        });
    }
    (hosts.len() == items.len()).then_some(hosts)
}

fn rules(node: &Node, cx: &mut Context<'_>) -> Option<Vec<Rule>> {
    let items = cx.list(node, "rules")?;
    if items.is_empty() {
        return cx
            .error(node.line, "is empty; a route has at least one rule, for example `- service: checkout`");
    }
    let mut rules: Vec<Rule> = Vec::with_capacity(items.len());
    let mut seen = HashMap::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        cx.within(format!("[{i}]"), |cx| {
            let Some(rule) = rule(item, cx) else { return };
            let first = *seen.entry(rule.matches.clone()).or_insert(i);
            if first == i {
                rules.push(rule);
            } else {
                let message =
                    format!("matches the same requests as rules[{first}]; only one of them could ever apply");
                cx.error::<()>(item.line, message);
            }
        });
    }
    (rules.len() == items.len()).then_some(rules)
}

fn rule(node: &Node, cx: &mut Context<'_>) -> Option<Rule> {
    let fields = cx.fields(node, "a rule", &["match", "service"])?;
    let matches = match fields.optional("match") {
        Some(node) => cx.within("match", |cx| route_match(node, cx)),
        None => Some(RouteMatch { path: PathMatch::Prefix("/".to_owned()), headers: Vec::new() }),
    };
    let service = name::<ServiceName>(&fields, cx, "service");
    Some(Rule { matches: matches?, service: service? })
}

fn route_match(node: &Node, cx: &mut Context<'_>) -> Option<RouteMatch> {
    let fields = cx.fields(node, "a match", &["path", "path_prefix", "headers"])?;
    let path = match (fields.optional("path"), fields.optional("path_prefix")) {
        (Some(_), Some(_)) => {
            return cx.error(fields.line, "has both `path` and `path_prefix`; give one of them");
        }
        (Some(node), None) => cx.within("path", |cx| path(node, cx)).map(PathMatch::Exact),
        (None, Some(node)) => cx.within("path_prefix", |cx| path(node, cx)).map(|p| {
            let trimmed = p.trim_end_matches('/');
            PathMatch::Prefix(if trimmed.is_empty() { "/".to_owned() } else { trimmed.to_owned() })
        }),
        (None, None) => Some(PathMatch::Prefix("/".to_owned())),
    };
    let headers = match fields.optional("headers") {
        Some(node) => cx.within("headers", |cx| headers(node, cx)),
        None => Some(Vec::new()),
    };
    Some(RouteMatch { path: path?, headers: headers? })
}

/// A path as a request target carries it (RFC 3986 §3.3), without query or fragment.
fn path(node: &Node, cx: &mut Context<'_>) -> Option<String> {
    let text = cx.text(node, "a path that starts with `/`")?;
    let clean = |b: u8| b.is_ascii_graphic() && b != b'?' && b != b'#';
    if !text.starts_with('/') || !text.bytes().all(clean) || text.len() > 2_048 {
        let shown = text.chars().take(80).collect::<String>();
        return cx.error(
            node.line,
            format!("`{shown}` is not a path; it starts with `/`, has at most 2048 printable ASCII characters, and no `?`, `#` or space (percent-encode them)"),
        );
    }
    Some(text.to_owned())
}

fn headers(node: &Node, cx: &mut Context<'_>) -> Option<Vec<HeaderMatch>> {
    let items = cx.list(node, "header matches, for example `[{name: x-beta, exact: \"1\"}]`")?;
    let mut headers = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        cx.within(format!("[{i}]"), |cx| headers.extend(header(item, cx)));
    }
    if headers.len() < items.len() {
        return None;
    }
    headers.sort_by(|a: &HeaderMatch, b| a.name.cmp(&b.name));
    Some(headers)
}

fn header(node: &Node, cx: &mut Context<'_>) -> Option<HeaderMatch> {
    let fields = cx.fields(node, "a header match", &["name", "exact", "prefix", "present"])?;
    let name = fields.required(cx, "name")?;
    let name = cx.within("name", |cx| {
        let text = cx.text(name, "a header name")?;
        let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
        if text.is_empty() || text.len() > 256 || !text.bytes().all(token) {
            return cx.error(name.line, "is not a header name (RFC 9110 §5.1)");
        }
        Some(text.to_ascii_lowercase())
    })?;
    let predicate = match (fields.optional("exact"), fields.optional("prefix"), fields.optional("present")) {
        (Some(node), None, None) => {
            HeaderPredicate::Exact(cx.within("exact", |cx| header_value(node, "the header's value", cx))?)
        }
        (None, Some(node), None) => {
            let what = "the start of the header's value";
            HeaderPredicate::Prefix(cx.within("prefix", |cx| header_start(node, what, cx))?)
        }
        (None, None, Some(node)) => HeaderPredicate::Present(cx.within("present", |cx| cx.boolean(node))?),
        _ => return cx.error(fields.line, "gives not exactly one of `exact`, `prefix` and `present`"),
    };
    Some(HeaderMatch { name, predicate })
}

/// The longest header value that can be matched, in bytes.
const MAX_HEADER_VALUE: usize = 4_096;

/// A whole header value (RFC 9110 §5.5, of which visible ASCII, and space and tab inside).
fn header_value(node: &Node, what: &str, cx: &mut Context<'_>) -> Option<String> {
    let text = header_start(node, what, cx)?;
    if text.ends_with([' ', '\t']) {
        return cx.error(node.line, "ends with a space or tab, which no header value does (RFC 9110 §5.5)");
    }
    Some(text)
}

/// How a header value may start. Unlike a whole value, it may end with a space: `Bearer `.
fn header_start(node: &Node, what: &str, cx: &mut Context<'_>) -> Option<String> {
    let text = cx.text(node, what)?;
    if text.len() > MAX_HEADER_VALUE {
        let length = text.len();
        return cx.error(node.line, format!("has {length} bytes; allowed: at most {MAX_HEADER_VALUE}"));
    }
    if text.starts_with([' ', '\t']) {
        return cx.error(node.line, "starts with a space or tab, which no header value does (RFC 9110 §5.5)");
    }
    let allowed = |c: char| c.is_ascii_graphic() || c == ' ' || c == '\t';
    if let Some(other) = text.chars().find(|&c| !allowed(c)) {
        let other = other.escape_default();
        let message =
            format!("holds `{other}`; allowed: visible ASCII, and space and tab inside (RFC 9110 §5.5)");
        return cx.error(node.line, message);
    }
    Some(text.to_owned())
}

fn name<T: std::str::FromStr<Err: fmt::Display>>(
    fields: &Fields<'_>,
    cx: &mut Context<'_>,
    field: &str,
) -> Option<T> {
    let node = fields.required(cx, field)?;
    cx.within(field, |cx| cx.parsed(node, "a name"))
}
