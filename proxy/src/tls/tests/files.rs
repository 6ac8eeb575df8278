use std::{fs, os::unix::fs::symlink, sync::Arc, time::Duration};

use watch::{Followed, Pace};

use super::{
    super::{ServerTls, Tls},
    support::{Ca, Pair, Scratch, connect, serve, until},
};

/// Waits until a new client is shown `pair`.
async fn until_shown(server: &ServerTls, ca: &Ca, pair: &Pair) {
    until(pair.der.clone(), async || shown(server, ca).await).await;
}

async fn shown(server: &ServerTls, ca: &Ca) -> Vec<u8> {
    connect(server, &Arc::new(ca.client(&[])), "a.test").await.unwrap().shown().to_vec()
}

#[tokio::test]
async fn a_pair_that_is_replaced_is_shown_next_while_old_connections_go_on() {
    let (scratch, ca, tls) = (Scratch::new("replaced"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.test"]))]);
    let _watcher = tls.watch();
    let mut old = connect(&server, &Arc::new(ca.client(&[])), "a.test").await.unwrap();

    let in_place = ca.issue(&["a.test"]);
    scratch.write("a", &in_place);
    until_shown(&server, &ca, &in_place).await;
    old.greet().await;

    let renamed = ca.issue(&["a.test"]);
    let (to, from) = (scratch.files("a"), scratch.write("next", &renamed));
    fs::rename(from.cert, to.cert).unwrap();
    fs::rename(from.key, to.key).unwrap();
    until_shown(&server, &ca, &renamed).await;
    old.greet().await;
    until(true, async || tls.certificate_swaps() >= 2).await;
}

#[tokio::test]
async fn half_a_pair_keeps_the_old_one_and_is_counted_once() {
    let (scratch, ca, tls) = (Scratch::new("half"), Ca::new(), Tls::default());
    let (old, new) = (ca.issue(&["a.test"]), ca.issue(&["a.test"]));
    let files = scratch.write("a", &old);
    let server = serve(&tls, std::slice::from_ref(&files));
    let _watcher = tls.watch();

    let wrong_with = async |file: &str, times| {
        let error = async || tls.certificates()[0].error.clone().unwrap_or_default();
        until(true, async || error().await.contains(file)).await;
        assert_eq!(shown(&server, &ca).await, old.der);
        // Compared again without a change: nothing new to count.
        assert!(tls.0.compare());
        assert_eq!(tls.certificate_errors(), times);
    };
    scratch.replace(&files.cert, &new.cert[..new.cert.len() / 2]);
    wrong_with("a.crt", 1).await;
    scratch.replace(&files.cert, &new.cert); // whole, but the key is the old one
    wrong_with("a.key", 2).await;

    scratch.replace(&files.key, &new.key);
    until_shown(&server, &ca, &new).await;
    until((1, None), async || (tls.certificate_swaps(), tls.certificates()[0].error.clone())).await;
}

#[tokio::test]
async fn files_that_go_and_come_back_change_nothing() {
    let (scratch, ca, tls) = (Scratch::new("gone"), Ca::new(), Tls::default());
    let pair = ca.issue(&["a.test"]);
    let files = scratch.write("a", &pair);
    let server = serve(&tls, std::slice::from_ref(&files));
    let _watcher = tls.watch();
    fs::remove_file(&files.key).unwrap();
    until(1, async || tls.certificate_errors()).await;
    assert_eq!(shown(&server, &ca).await, pair.der);
    scratch.write("a", &pair);
    until(None, async || tls.certificates()[0].error.clone()).await;
    assert_eq!(tls.certificate_swaps(), 0);
}

#[tokio::test]
async fn a_mounted_secret_that_is_switched_is_shown_next() {
    let (scratch, ca, tls) = (Scratch::new("secret"), Ca::new(), Tls::default());
    let version = |name: &str, pair: &Pair| {
        fs::create_dir(scratch.path(name)).unwrap();
        fs::write(scratch.path(name).join("a.crt"), &pair.cert).unwrap();
        fs::write(scratch.path(name).join("a.key"), &pair.key).unwrap();
        // As the kubelet does: a new link, renamed over the old one.
        symlink(name, scratch.path("..data_tmp")).unwrap();
        fs::rename(scratch.path("..data_tmp"), scratch.path("..data")).unwrap();
    };
    let pairs = [ca.issue(&["a.test"]), ca.issue(&["a.test"]), ca.issue(&["a.test"])];
    version("..1", &pairs[0]);
    symlink("..data/a.crt", scratch.path("a.crt")).unwrap();
    symlink("..data/a.key", scratch.path("a.key")).unwrap();
    let server = serve(&tls, &[scratch.files("a")]);
    let _watcher = tls.watch();
    assert_eq!(shown(&server, &ca).await, pairs[0].der);
    // Twice: the second is seen through the links of the first.
    for (i, pair) in pairs.iter().enumerate().skip(1) {
        version(&format!("..{}", i + 1), pair);
        fs::remove_dir_all(scratch.path(&format!("..{i}"))).unwrap();
        until_shown(&server, &ca, pair).await;
    }
    // Both files changed at once: no moment with half a pair was seen.
    until((2, 0), async || (tls.certificate_swaps(), tls.certificate_errors())).await;
}

#[tokio::test]
async fn a_directory_that_is_replaced_is_watched_anew() {
    let (scratch, ca, tls) = (Scratch::new("directory"), Ca::new(), Tls::default());
    let at = |name: &str| {
        fs::create_dir(scratch.path(name)).unwrap();
        format!("{name}/a")
    };
    let pairs = [ca.issue(&["a.test"]), ca.issue(&["a.test"]), ca.issue(&["a.test"])];
    let server = serve(&tls, &[scratch.write(&at("live"), &pairs[0])]);
    let _watcher = tls.watch();
    scratch.write(&at("next"), &pairs[1]);
    fs::rename(scratch.path("live"), scratch.path("former")).unwrap();
    fs::rename(scratch.path("next"), scratch.path("live")).unwrap();
    until_shown(&server, &ca, &pairs[1]).await;
    scratch.write("live/a", &pairs[2]);
    until_shown(&server, &ca, &pairs[2]).await;
}

#[tokio::test]
async fn without_news_files_are_compared_now_and_then() {
    let (scratch, ca, tls) = (Scratch::new("blind"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.test"]))]);
    let _watcher =
        watch::follow_blind(Arc::clone(&tls.0), Pace { blind: Duration::from_millis(20), ..Pace::default() });
    let new = ca.issue(&["a.test"]);
    scratch.write("a", &new);
    until_shown(&server, &ca, &new).await;
}

#[tokio::test]
async fn watching_ends_with_its_handle_and_leaves_with_the_last_listener() {
    let (scratch, ca, tls) = (Scratch::new("ends"), Ca::new(), Tls::default());
    let server = serve(&tls, &[scratch.write("a", &ca.issue(&["a.test"]))]);
    assert_eq!(tls.0.files().len(), 2);
    let owners = Arc::strong_count(&tls.0);
    let watcher = tls.watch();
    drop(watcher);
    // The task's own references go with it.
    until(owners, async || Arc::strong_count(&tls.0)).await;
    drop(server);
    assert_eq!(tls.0.files().len(), 0);
}
