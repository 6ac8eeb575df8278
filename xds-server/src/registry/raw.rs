//! Resources that somebody writes as they go on the wire, beside those compiled from services: what a
//! name and a value may be. Pure.

use std::time::Duration;

use bytes::Bytes;
use envoy_types::pb::envoy::{
    config::{
        cluster::v3::Cluster,
        core::v3::TypedExtensionConfig,
        endpoint::v3::{ClusterLoadAssignment, LbEndpoint},
        listener::v3::Listener,
        route::v3::{RouteConfiguration, ScopedRouteConfiguration, VirtualHost},
    },
    extensions::transport_sockets::tls::v3::Secret,
    service::runtime::v3::Runtime,
};
use prost::Message;

use super::world::World;
use crate::{
    kind::Kind,
    resource::{Name, Resource},
};

/// How large the value of a resource may be, in bytes.
pub const MAX_VALUE: usize = 1 << 20;
/// How many such resources there may be.
pub const MAX_RESOURCES: usize = 65_536;
/// How large all their values may be together, in bytes.
pub const MAX_BYTES: usize = 256 << 20;
/// How long a name may be, in bytes; as long as one that can be asked for.
pub const MAX_NAME: usize = crate::subscription::MAX_NAME_LENGTH;
/// How long a type URL may be, in bytes.
pub const MAX_TYPE_URL: usize = 256;
/// The shortest time to live: below it, signs of life would be most of what is sent.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// The longest time to live.
pub const MAX_TTL: Duration = Duration::from_hours(24);

/// A resource as it was written.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw {
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: Name,
    /// Its message.
    pub value: Bytes,
    /// How long clients keep it without a sign of life from a server.
    pub ttl: Option<Duration>,
}

impl std::fmt::Debug for Raw {
    /// Without its value, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} ({} bytes)", self.kind, self.name, self.value.len())
    }
}

impl Raw {
    /// What clients are sent.
    pub(super) fn resource(&self) -> Resource {
        Resource::new(self.kind.clone(), std::sync::Arc::clone(&self.name), &self.value).with_ttl(self.ttl)
    }

    /// Why it cannot be served, as `field: reason`.
    pub fn fault(&self) -> Option<String> {
        name_fault(&self.kind, &self.name).or_else(|| self.value_fault()).or_else(|| self.ttl_fault())
    }

    fn ttl_fault(&self) -> Option<String> {
        let ttl = self.ttl?;
        (!(MIN_TTL..=MAX_TTL).contains(&ttl)).then(|| format!("ttl: is not from {MIN_TTL:?} to 24h"))
    }

    /// A value that is no message of its type, or of another name, would be refused by every client.
    fn value_fault(&self) -> Option<String> {
        if self.value.len() > MAX_VALUE {
            return Some(format!("value: has more than {MAX_VALUE} bytes"));
        }
        let (name, field) = match self.named()? {
            Err(error) => return Some(format!("value: is not a {}: {error}", self.kind.type_url())),
            Ok(named) => named?,
        };
        (name != *self.name)
            .then(|| format!("name: is `{}`, but {field} in the value is `{name}`", self.name))
    }

    /// The name that the message has inside, and in which field; `None` for types that are not known.
    fn named(&self) -> Option<Result<Option<(String, &'static str)>, prost::DecodeError>> {
        let value = &*self.value;
        let name = |name| Some((name, "name"));
        Some(match self.kind {
            Kind::Cluster => Cluster::decode(value).map(|m| name(m.name)),
            Kind::LoadAssignment => {
                ClusterLoadAssignment::decode(value).map(|m| Some((m.cluster_name, "cluster_name")))
            }
            Kind::Listener => Listener::decode(value).map(|m| name(m.name)),
            Kind::RouteConfiguration => RouteConfiguration::decode(value).map(|m| name(m.name)),
            Kind::ScopedRouteConfiguration => ScopedRouteConfiguration::decode(value).map(|m| name(m.name)),
            Kind::Secret => Secret::decode(value).map(|m| name(m.name)),
            Kind::ExtensionConfig => TypedExtensionConfig::decode(value).map(|m| name(m.name)),
            Kind::Runtime => Runtime::decode(value).map(|m| name(m.name)),
            // The names of these say more than their messages do.
            Kind::LbEndpoint => LbEndpoint::decode(value).map(|_| None),
            Kind::VirtualHost => VirtualHost::decode(value).map(|_| None),
            Kind::Other(_) => return None,
        })
    }
}

/// Why a resource cannot be called so, as `field: reason`.
pub fn name_fault(kind: &Kind, name: &str) -> Option<String> {
    let type_url = kind.type_url();
    let type_ok = type_url.split_once('/').is_some_and(|(host, name)| !host.is_empty() && !name.is_empty());
    if !type_ok || type_url.len() > MAX_TYPE_URL || type_url.contains(|c: char| !c.is_ascii_graphic()) {
        let example = Kind::Cluster;
        return Some(format!("type_url: is not a type URL such as {}", example.type_url()));
    }
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
        return Some(format!("name: is not 1 to {MAX_NAME} bytes without control characters"));
    }
    if crate::subscription::canonical_name(name).as_deref() != Some(name) {
        return Some("name: has context parameters that are not in order".to_owned());
    }
    if *kind == Kind::LbEndpoint && config::xds::leds::parse_member(name).is_some() {
        return Some("name: is one of those that registered endpoints have".to_owned());
    }
    // `*` stands for all of a type, and so does the last segment of a collection's name.
    (name == "*" || name.ends_with("/*")).then(|| "name: ends in *, which stands for many".to_owned())
}

/// What `world` has compiled under this name, if anything: there is one resource of a type and a name.
pub fn compiled(world: &World, kind: &Kind, name: &str) -> Option<String> {
    let version = |name: &str| {
        let cluster = name.parse().ok()?;
        world.service_of(&cluster).map(|_| format!("version {cluster}"))
    };
    match kind {
        Kind::Cluster | Kind::LoadAssignment => version(name),
        Kind::Listener | Kind::RouteConfiguration => {
            let gateway = || world.gateway(&name.parse().ok()?).map(|_| format!("gateway {name}"));
            let service = || world.service(&name.parse().ok()?).map(|_| format!("service {name}"));
            gateway().or_else(service)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(kind: Kind, name: &str, value: &impl Message) -> Raw {
        Raw { kind, name: name.into(), value: value.encode_to_vec().into(), ttl: None }
    }

    #[test]
    fn a_value_is_of_its_type_and_name() {
        let cluster = Cluster { name: "a".to_owned(), ..Cluster::default() };
        assert_eq!(raw(Kind::Cluster, "a", &cluster).fault(), None);
        let other = raw(Kind::Cluster, "b", &cluster).fault().unwrap();
        assert!(other.contains("name in the value is `a`"), "{other}");
        let garbage = Raw { value: b"\xff\xff\xff".as_slice().into(), ..raw(Kind::Cluster, "a", &cluster) };
        assert!(garbage.fault().unwrap().starts_with("value: is not a type.googleapis.com/envoy"));
        let own = Kind::of("type.example.com/my.Own");
        assert_eq!(Raw { kind: own, ..garbage }.fault(), None);
    }

    #[test]
    fn names_and_types_are_bounded() {
        for (type_url, name) in [
            ("Cluster", "a"),
            ("type.googleapis.com/", "a"),
            ("a/b", ""),
            ("a/b", "*"),
            ("a/b", "xdstp:///b/*"),
            ("a/b", "new\nline"),
            ("a/b c", "a"),
        ] {
            assert!(name_fault(&Kind::of(type_url), name).is_some(), "{type_url} {name}");
        }
        let ttl = |ttl| Raw { ttl: Some(ttl), ..raw(Kind::of("a/b"), "a", &()) };
        assert!(ttl(Duration::from_millis(10)).fault().is_some());
        assert!(ttl(Duration::from_secs(10)).fault().is_none());
    }
}
