//! The access file: a document of its own, beside the manifests and by the same rules.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use super::{
    Errors, ManifestError,
    fields::{Context, Fields},
    node::{self, Node, Value},
};
use crate::access::{Access, CertificateRule, Grant, Pattern, ProxyRule, Role, Secret, TokenRule};

/// How many entries a list of the file may have: each token costs every request a comparison.
const MAX_ENTRIES: usize = 1_000;
/// The longest name of a token, in bytes.
const MAX_NAME: usize = 64;

/// Reads an access file; `source` names it in errors.
///
/// # Errors
/// All that is wrong, in the order of the text, as [`Errors::into_vec`] bounds it; never empty.
pub fn access(source: &str, text: &str) -> Result<Access, Vec<ManifestError>> {
    let mut errors = Errors::default();
    let mut cx = Context::new(source, &mut errors);
    let read = match node::parse(text).as_deref() {
        Ok([document]) => document_of(document, &mut cx),
        Ok(documents) => {
            let line = documents.get(1).map_or(0, |second| second.line);
            let count = documents.len();
            cx.error(
                line,
                format!("holds {count} documents; an access file is one, for example `tokens: []`"),
            )
        }
        Err((line, message)) => cx.error(*line, message.clone()),
    };
    match read {
        Some(access) if errors.is_empty() => Ok(access),
        _ => Err(errors.into_vec()),
    }
}

fn document_of(node: &Node, cx: &mut Context<'_>) -> Option<Access> {
    let fields = cx.fields(node, "an access file", &["loopback", "tokens", "certificates", "proxies"])?;
    let loopback = match fields.optional("loopback") {
        Some(node) => cx.within("loopback", |cx| {
            let fields = cx.fields(node, "loopback", &["roles", "services"])?;
            grant(&fields, cx).map(Some)
        }),
        None => Some(None),
    };
    let tokens = match fields.optional("tokens") {
        Some(node) => list(node, cx, "tokens", token),
        None => Some(Vec::new()),
    };
    let certificates = match fields.optional("certificates") {
        Some(node) => list(node, cx, "certificates", certificate),
        None => Some(Vec::new()),
    };
    let proxies = match fields.optional("proxies") {
        Some(node) => list(node, cx, "proxies", proxy).map(Some),
        None => Some(None),
    };
    if let (Some(tokens), Some(node)) = (&tokens, fields.optional("tokens")) {
        unique(tokens, node, cx);
    }
    Some(Access { loopback: loopback?, tokens: tokens?, certificates: certificates?, proxies: proxies? })
}

/// The entries of `name`.
fn list<T>(
    node: &Node,
    cx: &mut Context<'_>,
    name: &str,
    read: impl Fn(&Node, &mut Context<'_>) -> Option<T>,
) -> Option<Vec<T>> {
    cx.within(name, |cx| {
        let items = cx.list(node, name)?;
        if items.len() > MAX_ENTRIES {
            let count = items.len();
            return cx.error(node.line, format!("lists {count} entries; allowed: at most {MAX_ENTRIES}"));
        }
        let read = |(i, item)| cx.within(format!("[{i}]"), |cx| read(item, cx));
        // All of them, so that all that is wrong is told.
        let entries: Vec<Option<T>> = items.iter().enumerate().map(read).collect();
        entries.into_iter().collect()
    })
}

fn unique(tokens: &[TokenRule], node: &Node, cx: &mut Context<'_>) {
    let mut seen = HashMap::new();
    let lines = match &node.value {
        Value::Sequence(items) => items.as_slice(),
        _ => &[],
    };
    for (i, (token, item)) in tokens.iter().zip(lines).enumerate() {
        if let Some(first) = seen.insert(token.name.as_str(), i) {
            cx.within(format!("tokens[{i}].name"), |cx| {
                let message = format!("`{}` is tokens[{first}] already; give each a name", token.name);
                cx.error::<()>(item.line, message)
            });
        }
    }
}

fn token(node: &Node, cx: &mut Context<'_>) -> Option<TokenRule> {
    let fields = cx.fields(node, "a token", &["name", "sha256", "file", "roles", "services"])?;
    let name = fields.required(cx, "name");
    let name = name.and_then(|node| cx.within("name", |cx| token_name(node, cx)));
    let secret = match (fields.optional("sha256"), fields.optional("file")) {
        (Some(node), None) => cx.within("sha256", |cx| sha256(node, cx)).map(Secret::Sha256),
        (None, Some(node)) => cx.within("file", |cx| absolute(node, cx)).map(Secret::File),
        _ => cx.error(
            fields.line,
            "gives not exactly one of `sha256` and `file`: the SHA-256 of the token as `sha256sum` prints it, or a file that holds the token",
        ),
    };
    let grant = grant(&fields, cx);
    Some(TokenRule { name: name?, secret: secret?, grant: grant? })
}

fn token_name(node: &Node, cx: &mut Context<'_>) -> Option<String> {
    let text = cx.text(node, "a name, for example `ci`")?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
    if text.is_empty() || text.len() > MAX_NAME || !text.bytes().all(plain) {
        let message = format!("is not a name; it has 1 to {MAX_NAME} letters, digits, `-`, `_` and `.`");
        return cx.error(node.line, message);
    }
    Some(text.to_owned())
}

fn sha256(node: &Node, cx: &mut Context<'_>) -> Option<[u8; 32]> {
    // What stands here may be the token itself, by mistake: it is not repeated.
    const RULE: &str = "is not a SHA-256, which has 64 hexadecimal digits; make one with `printf %s \"$TOKEN\" | sha256sum`, and put it in quotes";
    let Value::String(text) = &node.value else { return cx.error(node.line, RULE) };
    let digit = |b: u8| char::from(b).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = text.as_bytes().chunks(2).map(|pair| match pair {
        [high, low] => Some(digit(*high)? << 4 | digit(*low)?),
        _ => None,
    });
    let bytes: Option<Vec<u8>> = bytes.collect();
    match bytes.and_then(|bytes| bytes.try_into().ok()) {
        Some(digest) => Some(digest),
        None => cx.error(node.line, RULE),
    }
}

fn absolute(node: &Node, cx: &mut Context<'_>) -> Option<PathBuf> {
    let text = cx.text(node, "the path of a file")?;
    let path = Path::new(text);
    if path.is_absolute() && text.len() < 4_096 && !text.contains('\0') {
        return Some(path.to_owned());
    }
    cx.error(
        node.line,
        "is not an absolute path; write it from the root, for example `/etc/sluicegate/ci.token`",
    )
}

fn certificate(node: &Node, cx: &mut Context<'_>) -> Option<CertificateRule> {
    let fields = cx.fields(node, "a certificate", &["san", "roles", "services"])?;
    let san = fields.required(cx, "san");
    let san = san.and_then(|node| cx.within("san", |cx| cx.parsed(node, "a name of the certificate")));
    let grant = grant(&fields, cx);
    Some(CertificateRule { san: san?, grant: grant? })
}

fn proxy(node: &Node, cx: &mut Context<'_>) -> Option<ProxyRule> {
    let fields = cx.fields(node, "a proxy", &["san", "node"])?;
    let san = fields.required(cx, "san");
    let san = san.and_then(|node| cx.within("san", |cx| cx.parsed(node, "a name of the certificate")));
    let id = fields.required(cx, "node");
    let id = id.and_then(|node| cx.within("node", |cx| cx.parsed(node, "a node id, for example `edge-*`")));
    Some(ProxyRule { san: san?, node: id? })
}

/// `roles` and `services` of whoever they stand with.
fn grant(fields: &Fields<'_>, cx: &mut Context<'_>) -> Option<Grant> {
    let roles = fields.required(cx, "roles");
    let roles = roles.and_then(|node| cx.within("roles", |cx| self::roles(node, cx)));
    let services = match fields.optional("services") {
        Some(node) => cx.within("services", |cx| services(node, cx)),
        None => Some(Vec::new()),
    };
    let (roles, services) = (roles?, services?);
    let of_services = roles.iter().find(|role| role.is_of_services());
    let line = fields.optional("services").map_or(fields.line, |node| node.line);
    match of_services {
        Some(role) if services.is_empty() => cx.within("services", |cx| {
            cx.error(
                line,
                format!("is missing; `{role}` is of services: name them, for example `services: [checkout]`, or `[\"*\"]` for all"),
            )
        }),
        None if !services.is_empty() => cx.within("services", |cx| {
            cx.error(line, "has no effect: only `register` and `shift` are of services; leave it out")
        }),
        _ => Some(Grant { roles, services }),
    }
}

fn roles(node: &Node, cx: &mut Context<'_>) -> Option<Vec<Role>> {
    let allowed = || Role::ALL.map(|(word, _)| word).join(", ");
    let items = cx.list(node, &format!("roles; allowed: {}", allowed()))?;
    if items.is_empty() {
        return cx.error(node.line, format!("is empty; allowed: {}", allowed()));
    }
    let mut roles = Vec::new();
    for (i, item) in items.iter().enumerate() {
        cx.within(format!("[{i}]"), |cx| {
            let found = match &item.value {
                Value::String(text) => Role::ALL.into_iter().find(|(word, _)| word == text),
                _ => None,
            };
            match found {
                Some((_, role)) if !roles.contains(&role) => roles.push(role),
                Some((word, _)) => drop(cx.error::<()>(item.line, format!("`{word}` is listed twice"))),
                None => {
                    let message = format!("is {}; allowed: {}", item.value.what(), allowed());
                    cx.error::<()>(item.line, message);
                }
            }
        });
    }
    (roles.len() == items.len()).then_some(roles)
}

fn services(node: &Node, cx: &mut Context<'_>) -> Option<Vec<Pattern>> {
    let items = cx.list(node, "services, for example `[checkout]`")?;
    if items.len() > MAX_ENTRIES {
        let count = items.len();
        return cx.error(node.line, format!("lists {count} services; allowed: at most {MAX_ENTRIES}"));
    }
    let mut seen = HashSet::new();
    let mut services = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        cx.within(format!("[{i}]"), |cx| {
            let Some(pattern) = cx.parsed::<Pattern>(item, "a service, for example `checkout`") else {
                return;
            };
            if seen.insert(pattern.to_string()) {
                services.push(pattern);
            } else {
                cx.error::<()>(item.line, format!("`{pattern}` is listed twice"));
            }
        });
    }
    (services.len() == items.len()).then_some(services)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn everything_it_can_say_is_read() {
        let text = format!(
            "loopback: {{roles: [read]}}\n\
             tokens:\n- {{name: ci, sha256: \"{DIGEST}\", roles: [read, shift], services: [checkout]}}\n\
             - {{name: ops, file: /etc/ops.token, roles: [admin]}}\n\
             certificates:\n- {{san: \"spiffe://example.com/ci\", roles: [register], services: [\"*\"]}}\n\
             proxies:\n- {{san: \"*.Edge.example.com\", node: \"edge-*\"}}\n"
        );
        let read = access("a", &text).unwrap();
        assert_eq!(read.loopback.unwrap().roles, [Role::Read]);
        assert!(matches!(&read.tokens[0].secret, Secret::Sha256(digest) if digest[..2] == [0xe3, 0xb0]));
        assert_eq!(read.tokens[0].grant.to_string(), "read, shift of checkout");
        assert_eq!(read.tokens[1].secret, Secret::File("/etc/ops.token".into()));
        assert_eq!(read.certificates[0].san.to_string(), "spiffe://example.com/ci");
        let proxies = read.proxies.unwrap();
        assert_eq!(
            (proxies[0].san.to_string(), proxies[0].node.to_string()),
            ("*.edge.example.com".into(), "edge-*".into())
        );
        // No list of proxies is not an empty one.
        assert_eq!(access("a", "{}").unwrap(), Access::default());
        assert_eq!(access("a", "{\"proxies\": []}").unwrap().proxies, Some(Vec::new()));
    }

    #[test]
    fn errors_name_line_field_and_remedy() {
        let token = |rest: &str| format!("tokens:\n- {{name: ci, sha256: \"{DIGEST}\", {rest}}}\n");
        let cases = [
            (
                "users: []".to_owned(),
                "a:1: users: is not a field of an access file; allowed: loopback, tokens",
            ),
            (String::new(), "a: holds 0 documents"),
            ("{}\n---\n{}".to_owned(), "a:3: holds 2 documents"),
            ("tokens: ci".to_owned(), "a:1: tokens: is the text `ci`; expected a list"),
            (
                "tokens:\n- {name: ci, roles: [read]}".to_owned(),
                "a:2: tokens[0]: gives not exactly one of `sha256`",
            ),
            (
                "tokens:\n- {name: ci, sha256: s3cret, roles: [read]}".to_owned(),
                "a:2: tokens[0].sha256: is not a SHA-256",
            ),
            (
                "tokens:\n- {name: \"a b\", file: /a, roles: [read]}".to_owned(),
                "a:2: tokens[0].name: is not a name",
            ),
            (
                "tokens:\n- {name: a, file: a, roles: [read]}".to_owned(),
                "a:2: tokens[0].file: is not an absolute",
            ),
            (
                token("roles: [write]"),
                "a:2: tokens[0].roles[0]: is the text `write`; allowed: read, register, shift",
            ),
            (token("roles: []"), "a:2: tokens[0].roles: is empty"),
            (token("roles: [read, read]"), "a:2: tokens[0].roles[1]: `read` is listed twice"),
            (token("roles: [shift]"), "a:2: tokens[0].services: is missing; `shift` is of services"),
            (token("roles: [read], services: [x]"), "a:2: tokens[0].services: has no effect"),
            (token("roles: [shift], services: [a*b*]"), "a:2: tokens[0].services[0]: has more than one `*`"),
            (
                format!("{}- {{name: ci, file: /x, roles: [read]}}", token("roles: [read]")),
                "a:3: tokens[1].name: `ci`",
            ),
            ("certificates:\n- {roles: [read]}".to_owned(), "a:2: certificates[0].san: is missing"),
            (
                "certificates: [{san: a b, roles: [read]}]".to_owned(),
                "a:1: certificates[0].san: is not a name of",
            ),
            ("proxies: [{san: a}]".to_owned(), "a:1: proxies[0].node: is missing"),
            ("loopback: {}".to_owned(), "a:1: loopback.roles: is missing"),
        ];
        for (text, expected) in cases {
            let errors = access("a", &text).unwrap_err();
            let first = errors[0].to_string();
            assert!(first.starts_with(expected), "{text}\n→ {first}\n≠ {expected}");
            assert!(errors.iter().all(|error| !error.to_string().contains("s3cret")));
        }
    }
}
