use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::KeyPair;
use rustls::{HandshakeKind, ProtocolVersion, client::Resumption};

use super::{
    super::{Tls, read::TlsError, suites},
    support::{Ca, Scratch, connect, listener, serve},
};

#[tokio::test]
async fn a_client_is_shown_the_certificate_for_the_name_it_asks_for() {
    let (scratch, ca, tls) = (Scratch::new("names"), Ca::new(), Tls::default());
    let everything = ["first.test", "a.wild.test", "other.test", "wild.test", "a.b.wild.test"];
    let pairs = [
        ("first", ca.issue(&everything)),
        ("exact", ca.issue(&["Exact.Wild.test", "second.test"])),
        ("wild", ca.issue(&["*.wild.test"])),
        ("late", ca.issue(&["second.test"])),
    ];
    let files: Vec<_> = pairs.iter().map(|(name, pair)| scratch.write(name, pair)).collect();
    let server = serve(&tls, &files);
    let client = Arc::new(ca.client(&[]));
    for (asked, expected) in [
        ("first.test", "first"),
        ("exact.wild.test", "exact"),
        ("EXACT.wild.test", "exact"),
        ("a.wild.test", "first"), // exactly, before the wildcard
        ("b.wild.test", "wild"),
        ("second.test", "exact"), // the first of two
        ("other.test", "first"),
        ("wild.test", "first"),     // a wildcard stands for a label
        ("a.b.wild.test", "first"), // and for one only
    ] {
        let pairing = connect(&server, &client, asked).await.unwrap();
        let shown = pairs.iter().find(|(_, pair)| pair.der == pairing.shown()).unwrap().0;
        assert_eq!(shown, expected, "{asked}");
    }
}

#[tokio::test]
async fn a_client_without_a_name_is_shown_the_first() {
    let (scratch, ca, tls) = (Scratch::new("nameless"), Ca::new(), Tls::default());
    let (first, second) = (ca.issue(&["127.0.0.1"]), ca.issue(&["second.test"]));
    let server = serve(&tls, &[scratch.write("first", &first), scratch.write("second", &second)]);
    let mut client = ca.client(&[]);
    client.enable_sni = false;
    let pairing = connect(&server, &Arc::new(client), "127.0.0.1").await.unwrap();
    assert_eq!(pairing.server.get_ref().1.server_name(), None);
    assert_eq!(pairing.shown(), first.der);
}

#[tokio::test]
async fn of_two_kinds_of_key_for_a_name_the_client_gets_the_one_it_can_verify() {
    let (scratch, ca, tls) = (Scratch::new("kinds"), Ca::new(), Tls::default());
    let end = SystemTime::now() + Duration::from_hours(24 * 365);
    let key = |algorithm| KeyPair::generate_for(algorithm).unwrap();
    let ed25519 = ca.issue_with(&["a.test"], end, &key(&rcgen::PKCS_ED25519));
    let p256 = ca.issue_with(&["a.test"], end, &key(&rcgen::PKCS_ECDSA_P256_SHA256));
    let server = serve(&tls, &[scratch.write("ed25519", &ed25519), scratch.write("p256", &p256)]);

    let able = Arc::new(ca.client(&[]));
    assert_eq!(connect(&server, &able, "a.test").await.unwrap().shown(), ed25519.der);

    let mut provider = rustls::crypto::CryptoProvider::clone(&suites::provider());
    let mapping = provider.signature_verification_algorithms.mapping;
    let without = mapping.iter().filter(|(scheme, _)| *scheme != rustls::SignatureScheme::ED25519);
    provider.signature_verification_algorithms.mapping = without.copied().collect::<Vec<_>>().leak();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let unable = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    assert_eq!(connect(&server, &Arc::new(unable), "a.test").await.unwrap().shown(), p256.der);
}

#[tokio::test]
async fn the_listeners_order_decides_which_protocol_is_spoken() {
    let (scratch, ca, tls) = (Scratch::new("alpn"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.test"]))]);
    let spoken = async |offered: &[&str]| {
        let pairing = connect(&server, &Arc::new(ca.client(offered)), "a.test").await;
        pairing.map(|pairing| pairing.alpn().map(|name| String::from_utf8(name.to_vec()).unwrap()))
    };
    assert_eq!(spoken(&["http/1.1", "h2"]).await.unwrap().as_deref(), Some("h2"));
    assert_eq!(spoken(&["http/1.1"]).await.unwrap().as_deref(), Some("http/1.1"));
    assert_eq!(spoken(&[]).await.unwrap(), None);
    // RFC 7301 §3.2: no_application_protocol.
    assert!(spoken(&["spdy/3"]).await.is_err());
}

#[tokio::test]
async fn a_second_connection_resumes_the_first_in_both_versions() {
    let (scratch, ca, tls) = (Scratch::new("resumption"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.test"]))]);
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut client = rustls::ClientConfig::builder_with_provider(suites::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates({
                let mut roots = rustls::RootCertStore::empty();
                roots
                    .add(rustls::pki_types::pem::PemObject::from_pem_slice(ca.pem.as_bytes()).unwrap())
                    .unwrap();
                roots
            })
            .with_no_client_auth();
        client.resumption = Resumption::in_memory_sessions(8);
        let client = Arc::new(client);
        let first = connect(&server, &client, "a.test").await.unwrap();
        assert_eq!(first.server.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(first.kind(), HandshakeKind::Full);
        for _ in 0..3 {
            let next = connect(&server, &client, "a.test").await.unwrap();
            assert_eq!(next.kind(), HandshakeKind::Resumed, "{:?}", version.version);
        }
    }
    assert_eq!(suites::provider().cipher_suites[0].version().version, ProtocolVersion::TLSv1_3);
}

#[tokio::test]
async fn a_session_goes_on_after_other_certificates_and_protocols_are_published() {
    let (scratch, ca, tls) = (Scratch::new("publish"), Ca::new(), Tls::default());
    let (old, new) = (ca.issue(&["a.test"]), ca.issue(&["a.test"]));
    let server = serve(&tls, &[scratch.write("old", &old)]);
    let remembering = Arc::new(ca.client(&["http/1.1", "h2"]));
    let mut before = connect(&server, &remembering, "a.test").await.unwrap();
    assert_eq!(before.alpn(), Some(&b"h2"[..]));

    let other = listener(&[scratch.write("new", &new)], &["http/1.1"]);
    server.publish(tls.prepare(&other).unwrap());

    before.greet().await;
    let resumed = connect(&server, &remembering, "a.test").await.unwrap();
    assert_eq!((resumed.kind(), resumed.alpn()), (HandshakeKind::Resumed, Some(&b"http/1.1"[..])));
    let fresh = connect(&server, &Arc::new(ca.client(&[])), "a.test").await.unwrap();
    assert_eq!((fresh.kind(), fresh.shown()), (HandshakeKind::Full, &new.der[..]));
}

#[tokio::test]
async fn a_session_is_not_resumed_at_another_listener() {
    let (scratch, ca, tls) = (Scratch::new("own-tickets"), Ca::new(), Tls::default());
    let files = scratch.write("a", &ca.issue(&["a.test"]));
    let (one, other) = (serve(&tls, std::slice::from_ref(&files)), serve(&tls, &[files]));
    let client = Arc::new(ca.client(&[]));
    assert_eq!(connect(&one, &client, "a.test").await.unwrap().kind(), HandshakeKind::Full);
    assert_eq!(connect(&other, &client, "a.test").await.unwrap().kind(), HandshakeKind::Full);
}

#[test]
fn a_bad_pair_is_refused_with_the_file_at_fault() {
    let (scratch, ca, tls) = (Scratch::new("bad-pair"), Ca::new(), Tls::default());
    let good = scratch.write("good", &ca.issue(&["a.test"]));
    let mut mixed = ca.issue(&["a.test"]);
    mixed.key = ca.issue(&["a.test"]).key;
    let mixed = scratch.write("mixed", &mixed);
    let missing = scratch.files("missing");
    for (bad, at_fault) in [(&mixed, &mixed.key), (&missing, &missing.cert)] {
        let error = tls.prepare(&listener(&[good.clone(), bad.clone()], &["h2"])).unwrap_err();
        assert!(error.to_string().contains(at_fault.to_str().unwrap()), "{error}");
    }
    assert!(matches!(tls.prepare(&listener(&[], &[])), Err(TlsError::NoCertificate)));
    assert!(matches!(tls.prepare(&listener(&[good], &[""])), Err(TlsError::Alpn(_))));
}

#[tokio::test]
async fn an_expired_certificate_is_loaded_and_shown_with_its_end() {
    let (scratch, ca, tls) = (Scratch::new("expired"), Ca::new(), Tls::default());
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let files = scratch.write("old", &ca.issue_until(&["a.test"], end));
    let server = serve(&tls, std::slice::from_ref(&files));
    let views = tls.certificates();
    assert_eq!(views.len(), 1);
    assert_eq!((views[0].not_after, views[0].names.as_slice()), (1_700_000_000, &["a.test".to_owned()][..]));
    assert_eq!((&views[0].files, &views[0].secret), (&Some(files), &None));
    assert!(!views[0].serial.is_empty());
    let refused = connect(&server, &Arc::new(ca.client(&[])), "a.test").await.err().unwrap();
    assert!(refused.contains("xpired"), "{refused}");
    drop(server);
    assert_eq!(tls.certificates(), []);
}
