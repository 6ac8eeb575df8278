//! How a subcommand reaches the API: where it is, who is asking, and over which TLS.

use std::{fmt, fs, net::IpAddr, path::PathBuf};

use clap::Args;
use config::tls::{CertificateFiles, ClientTls};
use hyper::{Uri, header::HeaderValue};

use crate::{client::Client, exit::Invalid};

/// Where a server listens unless told otherwise.
const DEFAULT_API: &str = "http://127.0.0.1:18080";
/// The variable with the token itself. No flag: what is in argv, every process can read.
pub(crate) const TOKEN: &str = "SLUICEGATE_TOKEN";
/// The largest file of a token, in bytes.
const MAX_TOKEN: u64 = 8 << 10;

/// Where the API is, and who asks.
#[derive(Args, Clone, Debug)]
pub(crate) struct Connection {
    /// Address of the server's API
    #[arg(long, env = "SLUICEGATE_API", default_value = DEFAULT_API, value_name = "URL")]
    pub(crate) api: String,
    /// A file with the token to show, unless the environment holds the token itself
    #[arg(long, env = "SLUICEGATE_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The authorities to know an https server by, as a PEM file
    #[arg(long, env = "SLUICEGATE_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// A client certificate to show, as a PEM file
    #[arg(long, env = "SLUICEGATE_CERT", value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its private key, as a PEM file
    #[arg(long, env = "SLUICEGATE_KEY", value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
}

impl Connection {
    /// A client of that API.
    pub(crate) fn client(&self) -> anyhow::Result<Client> {
        let token = match &self.token_file {
            Some(path) => Some(read_token(path)?),
            None => std::env::var(TOKEN).ok().filter(|token| !token.is_empty()),
        };
        let certificate = match (&self.cert, &self.key) {
            (Some(cert), Some(key)) => Some(CertificateFiles { cert: cert.clone(), key: key.clone() }),
            _ => None,
        };
        let tls = self.ca.clone().map(|ca| ClientTls { ca, certificate });
        let token = token.as_deref().map(Token::new).transpose()?;
        Client::secure(&self.api, token, tls.as_ref())
    }
}

fn read_token(path: &std::path::Path) -> anyhow::Result<String> {
    let invalid = |why: String| Invalid(format!("--token-file {}: {why}", path.display()));
    let length = fs::metadata(path).map_err(|e| invalid(e.to_string()))?.len();
    if length > MAX_TOKEN {
        return Err(invalid(format!("has {length} bytes, which is no token; name another file")).into());
    }
    let text = fs::read_to_string(path).map_err(|e| invalid(e.to_string()))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// A token to show. Prints as nothing.
#[derive(Clone)]
pub(crate) struct Token(HeaderValue);

impl Token {
    fn new(token: &str) -> anyhow::Result<Self> {
        let value = HeaderValue::from_str(&format!("Bearer {token}"));
        let mut value = value
            .ok()
            .filter(|_| !token.is_empty() && token.bytes().all(|b| b.is_ascii_graphic()))
            .ok_or_else(|| {
                Invalid(format!(
                    "{TOKEN} or --token-file holds no token: it is one line of letters, digits and -._~+/="
                ))
            })?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// As a request carries it.
    pub(crate) fn header(&self) -> HeaderValue {
        self.0.clone()
    }

    /// Whether it may be sent to `api`: whoever listens on the way would have it (RFC 6750 §5.3).
    pub(crate) fn check(api: &Uri) -> Result<(), String> {
        let host = api.host().unwrap_or_default().trim_matches(['[', ']']);
        let near =
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
        if near || api.scheme_str() == Some("https") {
            return Ok(());
        }
        Err("a token is not sent in the clear to another machine; write https://, and name its authorities with --ca".to_owned())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_tls_or_stays_on_this_machine() {
        for good in ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://10.0.0.1:1"] {
            assert_eq!(Token::check(&good.parse().unwrap()), Ok(()), "{good}");
        }
        for bad in ["http://10.0.0.1:1", "http://api.internal:1", "http://localhost.evil.org:1"] {
            assert!(Token::check(&bad.parse().unwrap()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_token_is_never_printed() {
        let token = Token::new("s3cret").unwrap();
        assert!(!format!("{token:?} {:?}", token.header()).contains("s3cret"));
        for bad in ["", "a b", "a\nb", "é"] {
            let error = Token::new(bad).unwrap_err().to_string();
            assert!(error.contains("--token-file") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
    }
}
