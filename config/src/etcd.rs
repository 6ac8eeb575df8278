//! Where an etcd cluster is and what in it is ours: `etcd://[user:password@]host:port[,host:port…][/prefix]`.

use std::{fmt, str::FromStr};

/// The prefix of keys unless a URL says otherwise.
const DEFAULT_PREFIX: &str = "/sluicegate";
/// How many members one URL may name.
const MAX_MEMBERS: usize = 16;
/// How long a prefix may be, in bytes.
const MAX_PREFIX: usize = 256;

/// An etcd cluster: at least one member, and the prefix of the keys in it.
#[derive(Clone, PartialEq, Eq)]
pub struct EtcdUrl {
    members: Vec<String>,
    prefix: String,
    login: Option<(String, String)>,
}

/// Why a text is no [`EtcdUrl`], with the remedy. Never repeats a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; write etcd://host:port[,host:port…][/prefix], for example etcd://10.0.0.1:2379,10.0.0.2:2379/shop"
)]
pub struct EtcdUrlError(String);

impl EtcdUrl {
    /// The members, as `host:port`.
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// What every key starts with, without a slash at its end.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// User and password, if the cluster wants them.
    pub fn login(&self) -> Option<(&str, &str)> {
        self.login.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }
}

impl FromStr for EtcdUrl {
    type Err = EtcdUrlError;

    fn from_str(text: &str) -> Result<Self, EtcdUrlError> {
        let wrong = |why: String| Err(EtcdUrlError(why));
        let Some(rest) = text.strip_prefix("etcd://") else {
            // What is before `://` is no secret; what follows may be.
            let shown = text.split_once("://").map_or(text, |(scheme, _)| scheme);
            let shown: String = shown.chars().take(40).collect();
            return match text.split_once("://") {
                Some(_) => wrong(format!("`{shown}` is no store that this server has")),
                None => wrong(format!("`{shown}` is not the URL of a store")),
            };
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (login, hosts) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((login, hosts)) => match login.split_once(':') {
                Some((user, password)) if !user.is_empty() => {
                    (Some((user.to_owned(), password.to_owned())), hosts)
                }
                _ => return wrong("what is before `@` is not user:password".to_owned()),
            },
        };
        let members: Vec<String> = hosts.split(',').map(str::to_owned).collect();
        if let Some(bad) = members.iter().find(|member| !is_host_and_port(member)) {
            return wrong(match bad.as_str() {
                "" => "it names no host and port".to_owned(),
                bad => format!("`{bad}` is not host:port"),
            });
        }
        if members.len() > MAX_MEMBERS {
            return wrong(format!("it names {} members, at most {MAX_MEMBERS} are used", members.len()));
        }
        let path = path.trim_end_matches('/');
        if path.len() > MAX_PREFIX || path.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return wrong(format!("its prefix has spaces, or more than {MAX_PREFIX} bytes"));
        }
        let prefix = if path.is_empty() { DEFAULT_PREFIX.to_owned() } else { format!("/{path}") };
        Ok(Self { members, prefix, login })
    }
}

fn is_host_and_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        let bracketed = host.starts_with('[') && host.ends_with(']');
        let plain = !host.contains([':', '/', '?', '#', '@']) && !host.contains(char::is_whitespace);
        !host.is_empty() && (bracketed || plain) && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

/// Without user and password.
impl fmt::Display for EtcdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}{}", self.members.join(","), self.prefix)
    }
}

/// Without user and password.
impl fmt::Debug for EtcdUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EtcdUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_members_and_a_prefix() {
        let url: EtcdUrl = "etcd://a:2379,[::1]:2380/shop/eu/".parse().unwrap();
        assert_eq!(url.members(), ["a:2379", "[::1]:2380"]);
        assert_eq!((url.prefix(), url.login()), ("/shop/eu", None));
        let plain: EtcdUrl = "etcd://127.0.0.1:2379".parse().unwrap();
        assert_eq!(plain.prefix(), "/sluicegate");
        assert_eq!("etcd://a:1/".parse::<EtcdUrl>().unwrap().prefix(), "/sluicegate");
    }

    #[test]
    fn a_password_is_read_and_never_shown() {
        let url: EtcdUrl = "etcd://root:se:c@ret@a:2379".parse().unwrap();
        assert_eq!(url.login(), Some(("root", "se:c@ret")));
        assert_eq!(format!("{url} {url:?}"), "etcd://a:2379/sluicegate EtcdUrl(etcd://a:2379/sluicegate)");
        let error = "http://root:secret@a:2379".parse::<EtcdUrl>().unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_bad_url_is_an_error_with_the_form_and_an_example() {
        let cases = [
            ("127.0.0.1:2379", "`127.0.0.1:2379` is not the URL of a store"),
            ("redis://a:1", "`redis` is no store that this server has"),
            ("etcd://", "it names no host and port"),
            ("etcd:///shop", "it names no host and port"),
            ("etcd://a", "`a` is not host:port"),
            ("etcd://a:0", "`a:0` is not host:port"),
            ("etcd://a:1,", "it names no host and port"),
            ("etcd://a:1,b", "`b` is not host:port"),
            ("etcd://http://a:1", "`http:` is not host:port"),
            ("etcd://root@a:1", "what is before `@` is not user:password"),
            ("etcd://a:1/x y", "its prefix has spaces, or more than 256 bytes"),
        ];
        for (text, why) in cases {
            let error = text.parse::<EtcdUrl>().unwrap_err().to_string();
            assert!(error.starts_with(why), "{text}: {error}");
            assert!(error.contains("; write etcd://host:port[,host:port…][/prefix]"), "{error}");
        }
    }
}
