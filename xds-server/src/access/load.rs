//! The access file and the tokens it names → a policy. Blocking.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use config::access::Secret;

use super::{
    policy::{Policy, Token, digest_of},
    text,
};

/// How long a token in a file may be, in bytes. A short one could be guessed.
const TOKEN: std::ops::RangeInclusive<usize> = 16..=4_096;

/// Reads the policy, and returns the files it came from.
///
/// `has_certificates` is whether clients can show certificates at all: rules about them would
/// otherwise be words.
pub(super) fn policy(path: &Path, has_certificates: bool) -> Result<(Policy, Vec<PathBuf>), String> {
    let source = path.display().to_string();
    let access = config::manifest::access(&source, &text(path)?)
        .map_err(|errors| errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))?;
    for (field, is_there) in
        [("certificates", !access.certificates.is_empty()), ("proxies", access.proxies.is_some())]
    {
        if is_there && !has_certificates {
            return Err(format!(
                "{source}: {field}: is about client certificates, which nobody is asked for; give --client-ca, or leave it out"
            ));
        }
    }
    let mut files = vec![path.to_owned()];
    let mut tokens = Vec::with_capacity(access.tokens.len());
    let mut known = HashMap::new();
    for (i, rule) in access.tokens.into_iter().enumerate() {
        let digest = match rule.secret {
            Secret::Sha256(digest) => digest,
            Secret::File(file) => {
                let digest = token(&file).map_err(|why| format!("{source}: tokens[{i}].file: {why}"))?;
                files.push(file);
                digest
            }
        };
        if let Some(first) = known.insert(digest, i) {
            return Err(format!("{source}: tokens[{i}]: is the token of tokens[{first}]; give each its own"));
        }
        tokens.push(Token { name: rule.name.into(), digest, grant: rule.grant });
    }
    let (loopback, certificates, proxies) = (access.loopback, access.certificates, access.proxies);
    Ok((Policy { loopback, tokens, certificates, proxies }, files))
}

/// The digest of the token in `file`.
fn token(file: &Path) -> Result<[u8; 32], String> {
    let content = text(file)?;
    let token = content.trim_end_matches(['\r', '\n']);
    if !TOKEN.contains(&token.len()) || !is_token(token) {
        // Nothing of the file is repeated: it is a secret.
        return Err(format!(
            "{}: holds no token of {} to {} letters, digits and -._~+/= (RFC 6750 §2.1); make one with `openssl rand -hex 32`",
            file.display(),
            TOKEN.start(),
            TOKEN.end()
        ));
    }
    Ok(digest_of(token))
}

/// What can be sent as a bearer token: `b64token` of RFC 6750 §2.1.
pub(crate) fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~+/".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("sluicegate-access-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory
    }

    #[test]
    fn tokens_are_read_from_their_files_and_no_secret_is_repeated() {
        let directory = scratch("load");
        let (path, file) = (directory.join("access.yaml"), directory.join("ci.token"));
        let entry = format!("{{name: ci, file: {}, roles: [read]}}", file.display());
        std::fs::write(&path, format!("tokens: [{entry}]")).unwrap();
        let load = || policy(&path, false).map(|(policy, files)| (policy.tokens[0].digest, files));
        assert!(load().unwrap_err().contains("tokens[0].file: "), "it is missing");

        std::fs::write(&file, "0123456789abcdef\n").unwrap();
        assert_eq!(load().unwrap(), (digest_of("0123456789abcdef"), vec![path.clone(), file.clone()]));
        for bad in ["tooshort", "", "with a space inside", "0123456789abcdef\n0123456789abcdef"] {
            std::fs::write(&file, bad).unwrap();
            let error = load().unwrap_err();
            assert!(error.contains("holds no token") && (bad.is_empty() || !error.contains(bad)), "{error}");
        }
        std::fs::write(&file, "0123456789abcdef").unwrap();
        let twice = format!("tokens: [{entry}, {}]", entry.replace("ci,", "other,"));
        std::fs::write(&path, twice).unwrap();
        assert!(load().unwrap_err().contains("tokens[1]: is the token of tokens[0]"));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn rules_about_certificates_need_somebody_to_ask_for_them() {
        let directory = scratch("rules");
        let path = directory.join("access.yaml");
        for text in ["proxies: []", "certificates: [{san: a, roles: [read]}]"] {
            std::fs::write(&path, text).unwrap();
            assert!(policy(&path, true).is_ok());
            assert!(policy(&path, false).is_err_and(|e| e.contains("--client-ca")));
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
