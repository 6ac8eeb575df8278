use std::sync::Arc;

use rustls::HandshakeKind;

use super::{
    super::{Alpn, Tls, read::TlsError},
    support::{Ca, Scratch, connect, serve, until},
};

#[tokio::test]
async fn an_endpoint_is_verified_by_the_clusters_name_and_authorities() {
    let (scratch, ca, tls) = (Scratch::new("upstream"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["checkout.internal"]))]);
    let named = async |sni: &str| {
        let client = tls.client(&ca.upstream(&scratch, sni), Alpn::Http2).unwrap();
        assert_eq!(client.server_name().to_str(), sni);
        connect(&server, &client.config(), sni).await
    };
    let good = named("checkout.internal").await.unwrap();
    assert_eq!(good.alpn(), Some(Alpn::Http2.protocol()));
    assert_eq!(good.server.get_ref().1.server_name(), Some("checkout.internal"));
    let wrong = named("cart.internal").await.err().unwrap();
    assert!(wrong.contains("NotValidForName") || wrong.contains("not valid for name"), "{wrong}");

    let stranger = Ca::new().upstream(&Scratch::new("stranger"), "checkout.internal");
    let error = tls.client(&stranger, Alpn::Http2).err();
    assert!(matches!(error, Some(TlsError::File(_))), "its directory is gone: {error:?}");
    let elsewhere = Scratch::new("elsewhere");
    let stranger = tls.client(&Ca::new().upstream(&elsewhere, "checkout.internal"), Alpn::Http1).unwrap();
    let unknown = connect(&server, &stranger.config(), "checkout.internal").await.err().unwrap();
    assert!(unknown.contains("UnknownIssuer") || unknown.contains("issuer"), "{unknown}");
}

#[test]
fn a_name_that_nothing_can_be_verified_by_is_refused() {
    let (scratch, ca, tls) = (Scratch::new("names-refused"), Ca::new(), Tls::default());
    for sni in ["", "127.0.0.1", "a b"] {
        let error = tls.client(&ca.upstream(&scratch, sni), Alpn::Http1).unwrap_err();
        assert!(matches!(error, TlsError::Sni(_)), "{sni:?}: {error}");
    }
}

#[tokio::test]
async fn connections_to_an_endpoint_resume_each_other() {
    let (scratch, ca, tls) = (Scratch::new("upstream-resumption"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.internal"]))]);
    let client = tls.client(&ca.upstream(&scratch, "a.internal"), Alpn::Http1).unwrap();
    let kind = async || connect(&server, &client.config(), "a.internal").await.unwrap().kind();
    assert_eq!(kind().await, HandshakeKind::Full);
    assert_eq!(kind().await, HandshakeKind::Resumed);
}

#[test]
fn clusters_that_want_the_same_share_it() {
    let (scratch, ca, tls) = (Scratch::new("shared"), Ca::new(), Tls::default());
    let wanted = ca.upstream(&scratch, "a.internal");
    let one = tls.client(&wanted, Alpn::Http1).unwrap();
    assert!(Arc::ptr_eq(&one, &tls.client(&wanted, Alpn::Http1).unwrap()));
    assert!(Arc::ptr_eq(&one.config(), &one.config()));
    assert!(!Arc::ptr_eq(&one, &tls.client(&wanted, Alpn::Http2).unwrap()));
    assert_eq!(tls.authorities().len(), 1);
    drop(one);
    assert_eq!(tls.authorities(), []);
}

#[tokio::test]
async fn other_authorities_are_trusted_by_the_next_connection_and_no_old_session_is_resumed() {
    let (scratch, ca, tls) = (Scratch::new("ca-swap"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.internal"]))]);
    let client = tls.client(&ca.upstream(&scratch, "a.internal"), Alpn::Http1).unwrap();
    let mut old = connect(&server, &client.config(), "a.internal").await.unwrap();
    let _watcher = tls.watch();

    let file = scratch.path("ca.pem");
    scratch.replace(&file, &Ca::new().pem);
    until(true, async || connect(&server, &client.config(), "a.internal").await.is_err()).await;
    until(1, async || tls.certificate_swaps()).await;

    scratch.replace(&file, "nothing");
    until(true, async || tls.authorities()[0].error.as_ref().is_some_and(|e| e.contains("ca.pem"))).await;
    assert_eq!(tls.certificate_errors(), 1);

    scratch.replace(&file, &ca.pem);
    until(true, async || connect(&server, &client.config(), "a.internal").await.is_ok()).await;
    until(None, async || tls.authorities()[0].error.clone()).await;
    old.greet().await;
}
