//! Who somebody is by what they show, and whether they may. Pure.

use std::{fmt, sync::Arc};

use config::access::{CertificateRule, Grant, ProxyRule, Role, San};
use ring::digest::{SHA256, digest};
use subtle::ConstantTimeEq;

use super::{By, Peer};

/// How much of a name that a client sent is repeated, in characters.
const MAX_SHOWN: usize = 128;

/// Who was admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    /// Nobody had to say who they are.
    Anybody,
    /// Somebody on this machine.
    Loopback,
    /// The holder of a token.
    Token(Arc<str>),
    /// The holder of a certificate.
    Certificate(Arc<str>),
}

impl Who {
    /// Whether it has shown something that a browser does not send by itself to wherever a name leads.
    pub(crate) fn is_known(&self) -> bool {
        matches!(self, Self::Token(_) | Self::Certificate(_))
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => f.write_str("anybody"),
            Self::Loopback => f.write_str("loopback"),
            Self::Token(name) => write!(f, "token {name}"),
            Self::Certificate(name) => write!(f, "certificate {name}"),
        }
    }
}

/// What a request shows of who sent it.
pub(crate) struct Shown<'a> {
    /// The other end of its connection.
    pub(crate) peer: Option<&'a Peer>,
    /// The token in its `Authorization` header: `None` without the header, an error when it holds
    /// no bearer token.
    pub(crate) token: Option<Result<&'a str, NoToken>>,
}

/// An `Authorization` header that holds no bearer token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NoToken;

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need<'a> {
    /// Nothing: whoever reaches it may.
    Nothing,
    /// A role, of a service where the role is of services.
    Role(Role, Option<&'a str>),
}

/// Why somebody may not. Displays for the one who asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) by: By,
    /// The role that is missing.
    pub(crate) scope: Option<Role>,
    message: String,
}

impl Refusal {
    fn new(by: By, message: impl Into<String>) -> Self {
        Self { by, scope: None, message: message.into() }
    }

    /// Whether the server does not know who asks.
    pub(crate) fn is_unauthenticated(&self) -> bool {
        matches!(self.by, By::Nobody | By::Token)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// A token as it is kept.
pub(super) struct Token {
    pub(super) name: Arc<str>,
    pub(super) digest: [u8; 32],
    pub(super) grant: Grant,
}

/// The SHA-256 of a token.
pub(super) fn digest_of(token: &str) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest(&SHA256, token.as_bytes()).as_ref());
    bytes
}

/// Who may do what. The default is that nobody may do anything.
#[derive(Default)]
pub(super) struct Policy {
    pub(super) loopback: Option<Grant>,
    pub(super) tokens: Vec<Token>,
    pub(super) certificates: Vec<CertificateRule>,
    pub(super) proxies: Option<Vec<ProxyRule>>,
}

impl Policy {
    /// Whether who shows `shown` may do what needs `need`.
    pub(super) fn admit(&self, shown: &Shown<'_>, need: &Need<'_>) -> Result<Who, Refusal> {
        let Need::Role(role, service) = *need else { return Ok(Who::Anybody) };
        let (who, grants) = self.identify(shown)?;
        if grants.iter().any(|grant| grant.allows(role, service)) {
            return Ok(who);
        }
        let has = grants.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let of = match service {
            Some(service) if role.is_of_services() => format!(" of service `{}`", shortened(service)),
            _ => String::new(),
        };
        let message = format!(
            "{who} has the roles: {has}; this needs the role `{role}`{of}, which the server's access file can give"
        );
        Err(Refusal { scope: Some(role), ..Refusal::new(By::Role, message) })
    }

    /// A token counts before a certificate, and either before being on this machine: who shows one
    /// wants to be taken for it, and is not taken for somebody else when it is wrong.
    fn identify(&self, shown: &Shown<'_>) -> Result<(Who, Vec<&Grant>), Refusal> {
        match shown.token {
            Some(Ok(token)) => return self.holder(token),
            Some(Err(NoToken)) => {
                let message =
                    "the Authorization header holds no bearer token; send `Authorization: Bearer <token>`";
                return Err(Refusal::new(By::Token, message));
            }
            None => {}
        }
        let names = shown.peer.and_then(Peer::certificate);
        let mut matching = names.into_iter().flatten().filter_map(|san| {
            let grants: Vec<_> = self.certificates.iter().filter(|rule| rule.san.matches(san)).collect();
            (!grants.is_empty()).then_some((san, grants))
        });
        if let Some((san, rules)) = matching.next() {
            let rules = rules.into_iter().chain(matching.flat_map(|(_, rules)| rules));
            let name = shortened(san.as_str()).into();
            return Ok((Who::Certificate(name), rules.map(|rule| &rule.grant).collect()));
        }
        match (&self.loopback, names) {
            (Some(grant), _) if shown.peer.is_some_and(Peer::is_loopback) => Ok((Who::Loopback, vec![grant])),
            (_, Some(names)) => {
                let message = format!(
                    "the certificate is for {}, which the server's access file gives no role; add it there, or send a token",
                    listed(names)
                );
                Err(Refusal::new(By::Certificate, message))
            }
            (_, None) => Err(Refusal::new(
                By::Nobody,
                "this server has to know who asks; send `Authorization: Bearer <token>` (the sluicegate command: SLUICEGATE_TOKEN or --token-file), or connect with a client certificate that its access file names",
            )),
        }
    }

    /// Compares with every token, so that the time it takes does not tell which one is near.
    fn holder(&self, token: &str) -> Result<(Who, Vec<&Grant>), Refusal> {
        let digest = digest_of(token);
        let mut found = None;
        for known in &self.tokens {
            if bool::from(known.digest.ct_eq(&digest)) {
                found = Some(known);
            }
        }
        match found {
            Some(known) => Ok((Who::Token(Arc::clone(&known.name)), vec![&known.grant])),
            None => {
                Err(Refusal::new(By::Token, "the token is none of this server's; it may have been replaced"))
            }
        }
    }

    /// Whether the holder of a certificate may be `node`.
    pub(super) fn may_be_node(&self, peer: Option<&Peer>, node: &str) -> Result<(), Refusal> {
        let Some(names) = peer.and_then(Peer::certificate) else {
            return Err(Refusal::new(By::Node, "no certificate was shown, which says what node this may be"));
        };
        let may = match &self.proxies {
            // Without rules there is no other sign of whether a certificate is a proxy's at all.
            None => names.iter().any(|san| san.as_str() == node),
            Some(rules) => {
                let is_for = |rule: &ProxyRule| names.iter().any(|san| rule.san.matches(san));
                rules.iter().any(|rule| rule.node.matches(node) && is_for(rule))
            }
        };
        if may {
            return Ok(());
        }
        let (node, names) = (shortened(node), listed(names));
        let rule = match &self.proxies {
            None => {
                "without `proxies` in the server's access file, a node id is one of the names of its certificate"
            }
            Some(_) => "`proxies` of the server's access file says which certificates may be which nodes",
        };
        Err(Refusal::new(
            By::Node,
            format!("the certificate is for {names} and may not be node `{node}`; {rule}"),
        ))
    }
}

/// The names of a certificate for people, the first few of them.
fn listed(names: &[San]) -> String {
    const MOST: usize = 4;
    let mut shown: Vec<String> =
        names.iter().take(MOST).map(|san| format!("`{}`", shortened(san.as_str()))).collect();
    if names.len() > MOST {
        shown.push(format!("{} more", names.len() - MOST));
    }
    if shown.is_empty() { "no DNS name or URI".to_owned() } else { shown.join(", ") }
}

/// What a client sent, without what could break a line of the log.
fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        let access = config::manifest::access("a", text).unwrap();
        let token = |rule: &config::access::TokenRule| {
            let config::access::Secret::Sha256(digest) = rule.secret else { panic!() };
            Token { name: rule.name.as_str().into(), digest, grant: rule.grant.clone() }
        };
        Policy {
            tokens: access.tokens.iter().map(token).collect(),
            loopback: access.loopback,
            certificates: access.certificates,
            proxies: access.proxies,
        }
    }

    fn hex(token: &str) -> String {
        digest_of(token).iter().fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
    }

    fn peer(address: &str, names: Option<&[&str]>) -> Peer {
        let san = |name: &&str| {
            if name.contains("://") { San::Uri((*name).to_owned()) } else { San::Dns((*name).to_owned()) }
        };
        Peer::new(address.parse().unwrap(), names.map(|names| names.iter().map(san).collect()))
    }

    const FAR: &str = "192.0.2.1:4711";
    const NEAR: &str = "127.0.0.1:4711";
    const READ: Need<'static> = Need::Role(Role::Read, None);
    const SHIFT: Need<'static> = Need::Role(Role::Shift, Some("checkout"));

    fn file() -> Policy {
        policy(&format!(
            "loopback: {{roles: [read]}}\n\
             tokens:\n- {{name: ci, sha256: \"{}\", roles: [shift], services: [checkout]}}\n\
             - {{name: ops, sha256: \"{}\", roles: [admin]}}\n\
             certificates:\n- {{san: \"spiffe://x.org/*\", roles: [read]}}\n\
             - {{san: ci.x.org, roles: [shift], services: [\"*\"]}}\n",
            hex("ci-token"),
            hex("ops-token")
        ))
    }

    fn ask(peer: &Peer, token: Option<&str>, need: Need<'_>) -> Result<Who, (By, bool)> {
        let shown = Shown { peer: Some(peer), token: token.map(Ok) };
        file().admit(&shown, &need).map_err(|r| (r.by, r.is_unauthenticated()))
    }

    #[test]
    fn a_token_is_known_by_its_digest_and_may_what_it_was_given() {
        let far = peer(FAR, None);
        assert_eq!(digest_of("")[..2], [0xe3, 0xb0], "FIPS 180-4");
        assert_eq!(ask(&far, Some("ci-token"), SHIFT), Ok(Who::Token("ci".into())));
        assert_eq!(ask(&far, Some("ci-token"), READ), Ok(Who::Token("ci".into())));
        let other = Need::Role(Role::Shift, Some("shop"));
        assert_eq!(ask(&far, Some("ci-token"), other), Err((By::Role, false)));
        assert_eq!(ask(&far, Some("ops-token"), other), Ok(Who::Token("ops".into())));
        for wrong in ["", "ci-toke", "ci-token ", "CI-TOKEN"] {
            assert_eq!(ask(&far, Some(wrong), READ), Err((By::Token, true)), "{wrong}");
        }
        assert_eq!(ask(&far, None, READ), Err((By::Nobody, true)));
        assert_eq!(ask(&far, None, Need::Nothing), Ok(Who::Anybody));
    }

    #[test]
    fn who_shows_a_wrong_token_is_not_taken_for_somebody_else() {
        let near = peer(NEAR, Some(&["ci.x.org"]));
        assert_eq!(ask(&near, Some("wrong"), READ), Err((By::Token, true)));
        let shown = Shown { peer: Some(&near), token: Some(Err(NoToken)) };
        assert_eq!(file().admit(&shown, &READ).unwrap_err().by, By::Token);
        // Nor does a weak token borrow the roles of a certificate.
        let other = Need::Role(Role::Shift, Some("shop"));
        assert_eq!(ask(&near, None, other), Ok(Who::Certificate("ci.x.org".into())));
        assert_eq!(ask(&near, Some("ci-token"), other), Err((By::Role, false)));
    }

    #[test]
    fn a_certificate_has_the_roles_of_all_its_names() {
        let both = peer(FAR, Some(&["spiffe://x.org/ci", "ci.x.org"]));
        assert_eq!(ask(&both, None, SHIFT), Ok(Who::Certificate("spiffe://x.org/ci".into())));
        let reader = peer(FAR, Some(&["spiffe://x.org/someone"]));
        assert_eq!(ask(&reader, None, READ), Ok(Who::Certificate("spiffe://x.org/someone".into())));
        assert_eq!(ask(&reader, None, SHIFT), Err((By::Role, false)));
        let stranger = peer(FAR, Some(&["x.org"]));
        assert_eq!(ask(&stranger, None, READ), Err((By::Certificate, false)));
        // On this machine it is at least somebody on this machine.
        assert_eq!(ask(&peer(NEAR, Some(&["x.org"])), None, READ), Ok(Who::Loopback));
    }

    #[test]
    fn loopback_may_only_what_the_file_gives_it() {
        for near in [NEAR, "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(ask(&peer(near, None), None, READ), Ok(Who::Loopback), "{near}");
            assert_eq!(ask(&peer(near, None), None, SHIFT), Err((By::Role, false)));
        }
        let near = peer(NEAR, None);
        let shown = Shown { peer: Some(&near), token: None };
        assert_eq!(policy("{}").admit(&shown, &READ).unwrap_err().by, By::Nobody);
    }

    #[test]
    fn a_node_id_is_a_name_of_its_certificate_unless_rules_say_otherwise() {
        let edge = peer(FAR, Some(&["edge-1.edge.x.org", "spiffe://x.org/edge-1"]));
        let default = Policy::default();
        assert!(default.may_be_node(Some(&edge), "edge-1.edge.x.org").is_ok());
        assert!(default.may_be_node(Some(&edge), "spiffe://x.org/edge-1").is_ok());
        for other in ["edge-1", "edge-2.edge.x.org", "", "EDGE-1.edge.x.org"] {
            let refused = default.may_be_node(Some(&edge), other).unwrap_err();
            assert_eq!(refused.by, By::Node, "{other}");
        }
        let rules = policy("proxies: [{san: \"*.edge.x.org\", node: \"edge-*\"}]");
        assert!(rules.may_be_node(Some(&edge), "edge-7").is_ok());
        assert!(rules.may_be_node(Some(&edge), "edge-1.edge.x.org").is_ok(), "it is like `edge-*`");
        assert!(rules.may_be_node(Some(&edge), "gateway-1").is_err());
        // With rules, a name alone makes nobody a proxy.
        let service = peer(FAR, Some(&["checkout.x.org"]));
        assert!(rules.may_be_node(Some(&service), "checkout.x.org").is_err());
        assert!(rules.may_be_node(Some(&peer(NEAR, None)), "edge-7").is_err());
        assert!(rules.may_be_node(None, "edge-7").is_err());
        assert!(policy("proxies: []").may_be_node(Some(&edge), "edge-1.edge.x.org").is_err());
    }

    #[test]
    fn what_a_client_sent_is_repeated_in_bounds_and_breaks_no_line() {
        let edge = peer(FAR, Some(&["a"; 100]));
        let refused = Policy::default().may_be_node(Some(&edge), &format!("x\n{}", "y".repeat(9_999)));
        let text = refused.unwrap_err().to_string();
        assert!(text.len() < 600 && !text.contains('\n') && text.contains("96 more"), "{text}");
    }
}
