//! Who may do what: the access file of a server, as it is written. Read by
//! [`manifest::access`](crate::manifest::access); whether somebody may is the server's to decide.

use std::{fmt, path::PathBuf};

/// What an access file says. What it does not mention, nobody may.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// What those may who come from the same machine and show nothing.
    pub loopback: Option<Grant>,
    /// Bearer tokens; their names are unique.
    pub tokens: Vec<TokenRule>,
    /// Client certificates of the API.
    pub certificates: Vec<CertificateRule>,
    /// Which client certificates may be which nodes on xDS; without it, a node id has to be one of the
    /// names of its certificate.
    pub proxies: Option<Vec<ProxyRule>>,
}

/// Something a client of the API may do. Whoever may do anything may read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// See everything, metrics and the timeline included.
    Read,
    /// Register and remove endpoints of named services.
    Register,
    /// Divide the traffic of named services.
    Shift,
    /// Everything.
    Admin,
}

impl Role {
    /// Each with the word it is written as.
    pub const ALL: [(&'static str, Self); 4] =
        [("read", Self::Read), ("register", Self::Register), ("shift", Self::Shift), ("admin", Self::Admin)];

    /// Whether it is about named services.
    pub fn is_of_services(self) -> bool {
        matches!(self, Self::Register | Self::Shift)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = Self::ALL.iter().find(|(_, role)| role == self).map_or("", |(word, _)| word);
        f.write_str(word)
    }
}

/// Roles, and the services that [`Role::Register`] and [`Role::Shift`] are for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Never empty, each once.
    pub roles: Vec<Role>,
    /// Not empty when a role is of services.
    pub services: Vec<Pattern>,
}

impl Grant {
    /// Whether `role` is granted, of `service` where the role is of services.
    pub fn allows(&self, role: Role, service: Option<&str>) -> bool {
        let named = || service.is_some_and(|name| self.services.iter().any(|pattern| pattern.matches(name)));
        match role {
            _ if self.roles.contains(&Role::Admin) => true,
            Role::Read => !self.roles.is_empty(),
            Role::Register | Role::Shift => self.roles.contains(&role) && named(),
            Role::Admin => false,
        }
    }
}

/// `read, shift of checkout`
impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, role) in self.roles.iter().enumerate() {
            write!(f, "{}{role}", if i > 0 { ", " } else { "" })?;
        }
        for (i, service) in self.services.iter().enumerate() {
            write!(f, "{}{service}", if i > 0 { ", " } else { " of " })?;
        }
        Ok(())
    }
}

/// A bearer token (RFC 6750) and what its holder may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRule {
    /// What its holder is called in the timeline and the log.
    pub name: String,
    /// How it is known.
    pub secret: Secret,
    /// What its holder may.
    pub grant: Grant,
}

/// How a token is known without being written in the access file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// By its SHA-256.
    Sha256([u8; 32]),
    /// By a file that holds it and nothing else; an absolute path.
    File(PathBuf),
}

/// Client certificates of a name, and what their holders may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRule {
    /// The name.
    pub san: SanPattern,
    /// What its holder may.
    pub grant: Grant,
}

/// Which nodes the holder of a client certificate may be on xDS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRule {
    /// A name of the certificate.
    pub san: SanPattern,
    /// The node ids.
    pub node: Pattern,
}

/// A text in which one `*` may stand for one or more characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    before: String,
    /// What follows the `*`; `None` without one.
    after: Option<String>,
}

/// The longest pattern, in bytes.
const MAX_PATTERN: usize = 2_048;

/// Why a pattern was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is empty or too long.
    #[error("is not a pattern; it has 1 to {MAX_PATTERN} bytes, for example `edge-*`")]
    Length,
    /// It has more than one `*`.
    #[error("has more than one `*`; write one at most, for example `edge-*`")]
    Stars,
    /// It is neither a DNS name nor a URI.
    #[error(
        "is not a name of a certificate; write a DNS name such as `edge-1.example.com`, or a URI such as `spiffe://example.com/edge`"
    )]
    NotAName,
}

impl std::str::FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() || text.len() > MAX_PATTERN {
            return Err(PatternError::Length);
        }
        match text.split_once('*') {
            None => Ok(Self { before: text.to_owned(), after: None }),
            Some((_, after)) if after.contains('*') => Err(PatternError::Stars),
            Some((before, after)) => Ok(Self { before: before.to_owned(), after: Some(after.to_owned()) }),
        }
    }
}

impl Pattern {
    /// Whether `text` is like it.
    pub fn matches(&self, text: &str) -> bool {
        self.star(text).is_some()
    }

    /// What the `*` stands for in `text`, empty without one; `None` when it does not match.
    fn star<'t>(&self, text: &'t str) -> Option<&'t str> {
        let rest = text.strip_prefix(self.before.as_str())?;
        match &self.after {
            None => rest.is_empty().then_some(""),
            Some(after) => rest.strip_suffix(after.as_str()).filter(|star| !star.is_empty()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.before)?;
        self.after.as_ref().map_or(Ok(()), |after| write!(f, "*{after}"))
    }
}

/// A name in a certificate's `subjectAltName` (RFC 5280 §4.2.1.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum San {
    /// A DNS name, in lower case.
    Dns(String),
    /// A URI, as it stands there: the identities of SPIFFE have one spelling.
    Uri(String),
}

impl San {
    /// As it is written.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Dns(name) | Self::Uri(name) => name,
        }
    }
}

/// A pattern for names of certificates. Its `*` crosses neither a dot nor a slash: who is given names
/// under one domain or path speaks for no other. A DNS name never matches a pattern of URIs, nor the
/// other way round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SanPattern {
    pattern: Pattern,
    is_uri: bool,
}

impl std::str::FromStr for SanPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let is_uri = text.contains("://");
        let dns = |b: u8| b.is_ascii_alphanumeric() || b"-_.*".contains(&b);
        if !is_uri && !text.bytes().all(dns) || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(PatternError::NotAName);
        }
        let pattern = if is_uri { text.parse()? } else { text.to_ascii_lowercase().parse()? };
        Ok(Self { pattern, is_uri })
    }
}

impl SanPattern {
    /// Whether `san` is like it.
    pub fn matches(&self, san: &San) -> bool {
        let (text, is_uri) = match san {
            San::Dns(name) => (name, false),
            San::Uri(uri) => (uri, true),
        };
        // A wildcard in a certificate is for servers; it speaks for nobody in particular.
        is_uri == self.is_uri
            && self.pattern.star(text).is_some_and(|star| !star.contains(['.', '/', '*']))
            && !text.contains('*')
    }
}

impl fmt::Display for SanPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pattern.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(text: &str) -> Pattern {
        text.parse().unwrap()
    }

    #[test]
    fn a_star_stands_for_at_least_one_character() {
        assert!(pattern("edge-*").matches("edge-1") && !pattern("edge-*").matches("edge-"));
        assert!(pattern("*").matches("x") && !pattern("*").matches(""));
        assert!(
            pattern("a*a").matches("aba") && !pattern("a*a").matches("aa") && !pattern("a*a").matches("a")
        );
        assert!(pattern("edge").matches("edge") && !pattern("edge").matches("edge-1"));
        assert_eq!("a*b*".parse::<Pattern>(), Err(PatternError::Stars));
        assert_eq!("".parse::<Pattern>(), Err(PatternError::Length));
        assert_eq!(pattern("a*b").to_string(), "a*b");
    }

    #[test]
    fn a_star_in_a_name_crosses_neither_a_dot_nor_a_slash() {
        let dns = |pattern: &str, name: &str| {
            pattern.parse::<SanPattern>().unwrap().matches(&San::Dns(name.to_owned()))
        };
        assert!(
            dns("*.edge.example.com", "a.edge.example.com")
                && dns("*.EDGE.example.com", "a.edge.example.com")
        );
        assert!(!dns("*.edge.example.com", "a.b.edge.example.com"));
        assert!(!dns("*.edge.example.com", "edge.example.com"));
        assert!(!dns("*.edge.example.com", "*.edge.example.com"), "a wildcard certificate is nobody");
        let uri = |pattern: &str, name: &str| {
            pattern.parse::<SanPattern>().unwrap().matches(&San::Uri(name.to_owned()))
        };
        assert!(uri("spiffe://x.org/edge/*", "spiffe://x.org/edge/1"));
        assert!(!uri("spiffe://x.org/edge/*", "spiffe://x.org/edge/1/2"));
        assert!(!uri("spiffe://*/edge", "spiffe://evil.org/x.org/edge"));
    }

    #[test]
    fn a_dns_name_is_no_uri() {
        let uri: SanPattern = "spiffe://x/y".parse().unwrap();
        assert!(!uri.matches(&San::Dns("spiffe://x/y".to_owned())));
        let dns: SanPattern = "edge".parse().unwrap();
        assert!(!dns.matches(&San::Uri("edge".to_owned())));
        for bad in ["a b", "a/b", "é", "spiffe://a b"] {
            assert_eq!(bad.parse::<SanPattern>(), Err(PatternError::NotAName), "{bad}");
        }
    }

    #[test]
    fn who_may_do_anything_may_read_and_only_an_admin_may_do_everything() {
        let grant = |roles: &[Role], services: &[&str]| Grant {
            roles: roles.to_vec(),
            services: services.iter().map(|text| pattern(text)).collect(),
        };
        let shift = grant(&[Role::Shift], &["checkout", "team-*"]);
        assert!(shift.allows(Role::Read, None) && shift.allows(Role::Shift, Some("checkout")));
        assert!(shift.allows(Role::Shift, Some("team-a")));
        for (role, service) in [
            (Role::Shift, Some("shop")),
            (Role::Shift, None),
            (Role::Register, Some("checkout")),
            (Role::Admin, Some("checkout")),
        ] {
            assert!(!shift.allows(role, service), "{role} {service:?}");
        }
        let admin = grant(&[Role::Admin], &[]);
        assert!(Role::ALL.iter().all(|(_, role)| admin.allows(*role, None)));
        assert!(Role::ALL.iter().all(|(_, role)| !Grant::default().allows(*role, Some("x"))));
        assert_eq!(shift.to_string(), "shift of checkout, team-*");
    }
}
