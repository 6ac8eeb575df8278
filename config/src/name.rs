//! Validated names. A name that exists obeys its rule, so it can be put in a URL path segment, a
//! metric label or an xDS resource name without escaping.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Why a name was refused. The message says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{value}` is not a {what}: {rule}")]
pub struct NameError {
    what: &'static str,
    rule: &'static str,
    value: String,
}

impl NameError {
    fn new(what: &'static str, rule: &'static str, value: &str) -> Self {
        // What a client sent may be long; an error message stays readable.
        let value = value.chars().take(80).collect();
        Self { what, rule, value }
    }
}

const LABEL_RULE: &str =
    "use 1 to 63 lower-case letters, digits and `-`, starting and ending with a letter or digit";
const VERSION_RULE: &str =
    "use 1 to 63 lower-case letters, digits, `-`, `_` and `.`, starting and ending with a letter or digit";
const ID_RULE: &str = "use 1 to 128 letters, digits, `-`, `_`, `.` and `:`";

/// An RFC 1123 label (RFC 1123 §2.1), lower case, as Kubernetes and the Gateway API use it.
fn is_label(s: &str) -> bool {
    has_shape(s, |b| b == b'-')
}

fn is_version(s: &str) -> bool {
    has_shape(s, |b| matches!(b, b'-' | b'_' | b'.'))
}

fn has_shape(s: &str, inner: impl Fn(u8) -> bool) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes.iter().all(|&b| alnum(b) || inner(b))
        && alnum(bytes[0])
        && alnum(bytes[bytes.len() - 1])
}

fn is_id(s: &str) -> bool {
    matches!(s.len(), 1..=128)
        && s.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b':'))
        // `.` and `..` are dot segments (RFC 3986 §5.2.4): clients would drop them from a URL.
        && s.bytes().any(|b| b != b'.')
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal, $rule:expr, $check:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                if $check(s) { Ok(Self(Arc::from(s))) } else { Err(NameError::new($what, $rule, s)) }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(s: String) -> Result<Self, NameError> {
                s.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.as_str().to_owned()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// What clients call, for example `checkout`. An RFC 1123 label.
    ServiceName, "service name", LABEL_RULE, is_label
);
name!(
    /// An immutable release of a service, for example `v2` or `2026.11.3`.
    VersionName, "version name", VERSION_RULE, is_version
);
name!(
    /// An edge listener. An RFC 1123 label.
    GatewayName, "gateway name", LABEL_RULE, is_label
);
name!(
    /// A set of rules from a gateway to services. An RFC 1123 label.
    RouteName, "route name", LABEL_RULE, is_label
);
name!(
    /// A certificate and its key that clients get over SDS, for example `shop.example.com`.
    SecretName, "secret name", ID_RULE, is_id
);
name!(
    /// One running instance of a version; unique within the version.
    EndpointId, "endpoint id", ID_RULE, is_id
);
name!(
    /// The failure domain an endpoint runs in; the `zone` of an xDS `Locality`.
    Zone, "zone", ID_RULE, is_id
);

/// The xDS cluster of one version, written `service/version`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ClusterName {
    /// The service it belongs to.
    pub service: ServiceName,
    /// The release it stands for.
    pub version: VersionName,
}

impl ClusterName {
    /// The cluster of `version` of `service`.
    pub fn new(service: ServiceName, version: VersionName) -> Self {
        Self { service, version }
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.version)
    }
}

impl FromStr for ClusterName {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let (service, version) =
            s.split_once('/').ok_or_else(|| NameError::new("cluster name", "write `service/version`", s))?;
        Ok(Self::new(service.parse()?, version.parse()?))
    }
}

impl TryFrom<String> for ClusterName {
    type Error = NameError;
    fn try_from(s: String) -> Result<Self, NameError> {
        s.parse()
    }
}

impl From<ClusterName> for String {
    fn from(name: ClusterName) -> String {
        name.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1123() {
        for good in ["a", "checkout", "a-b", "0", &"x".repeat(63)] {
            assert!(good.parse::<ServiceName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a/b", "é", &"x".repeat(64)] {
            assert!(bad.parse::<ServiceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn an_error_names_the_value_and_what_is_allowed() {
        let error = "Check_out".parse::<ServiceName>().unwrap_err().to_string();
        assert!(error.contains("Check_out") && error.contains("lower-case"), "{error}");
    }

    #[test]
    fn a_cluster_name_reads_back_what_it_writes() {
        let name: ClusterName = "checkout/v1.2".parse().unwrap();
        assert_eq!(name.to_string(), "checkout/v1.2");
        assert!("checkout".parse::<ClusterName>().is_err());
        assert!("a/b/c".parse::<ClusterName>().is_err());
    }

    #[test]
    fn an_endpoint_id_survives_a_url_path() {
        assert!("pod-1_a.b:8080".parse::<EndpointId>().is_ok());
        for bad in [".", "..", "a/b", "a b", "%2e"] {
            assert!(bad.parse::<EndpointId>().is_err(), "{bad}");
        }
    }
}
