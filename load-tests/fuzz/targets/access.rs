//! Any text as an access file, and as the URL of a store: read or refused, without the secrets in it.

#![no_main]

use config::{etcd::EtcdUrl, manifest};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(access) = manifest::access("access.yaml", text) {
        let mut names: Vec<&str> = access.tokens.iter().map(|token| token.name.as_str()).collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two tokens of one name: {names:?}");
        for token in &access.tokens {
            assert!(!token.grant.roles.is_empty(), "{token:?}");
        }
    }
    url(text);
    // The mutations of a file seldom are URLs.
    url(&format!("etcd://{text}"));
});

fn url(text: &str) {
    let Ok(url) = text.parse::<EtcdUrl>() else { return };
    assert!(!url.members().is_empty() && !url.prefix().ends_with('/'), "{url:?}");
    // What is shown is the same cluster, and nothing of who logs on.
    let shown = url.to_string();
    let again: EtcdUrl = shown.parse().expect("what is shown is a URL");
    assert_eq!((again.members(), again.prefix()), (url.members(), url.prefix()), "{shown}");
    assert_eq!(again.login(), None, "{shown}");
}
