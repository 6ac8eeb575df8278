//! Certificates replaced while requests run.

use std::time::Duration;

use load_tests::until;
use tokio::sync::watch;

use crate::{
    Secure, serial,
    support::{
        SOON,
        h2load::{Outcome, h2load},
        nginx::Nginx,
    },
};

const SWAPS: u32 = 100;
/// After so many the new certificate has to be served before the next one comes; between them a swap
/// may overtake the one before.
const CHECK_EVERY: u32 = 10;

/// No request failed.
fn whole(outcome: &Outcome) {
    assert!(outcome.done > 0 && outcome.good == outcome.done && outcome.lost == 0, "{}", outcome.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_certificates_are_swapped_under_load_without_one_failed_request() {
    let nginx = Nginx::start("", "keepalive_requests 1000000; location / { return 200 ok; }").await;
    let secure = Secure::start("http", nginx.address).await;
    let served = secure.authority.pair("a");
    let mut pairs = Vec::new();
    for n in 1..=SWAPS {
        pairs.push(secure.authority.issue(&format!("swap{n}"), "a.example", 1_000 + n).await);
    }

    let (url, to) = (secure.url("a.example", "/").0, format!("--connect-to={}", secure.stand.gateway));
    // Connections that live through many swaps, and new ones all the time, whose handshakes meet the
    // moments at which the certificate is new and the key is not.
    let long = {
        let (url, to) = (url.clone(), to.clone());
        tokio::spawn(async move { h2load(&["-D", "15", "-c4", "-m10", &to, &url]).await })
    };
    let (stop, stopped) = watch::channel(false);
    let short = tokio::spawn(async move {
        let mut done = 0;
        while !*stopped.borrow() {
            let outcome = h2load(&["-n", "100", "-c", "20", "-m", "5", &to, &url]).await;
            whole(&outcome);
            done += outcome.done;
        }
        done
    });
    let shown = async |expected: u32| {
        until("the new certificate to be served", SOON, async || {
            (serial(&secure.handshake("a.example", &[]).await).await == Some(expected)).then_some(())
        })
        .await;
    };
    for (n, pair) in (1..=SWAPS).zip(&pairs) {
        pair.replace(&served);
        if n % CHECK_EVERY == 0 {
            shown(1_000 + n).await;
        } else {
            // Some requests between any two swaps.
            secure.curl("a.example", "/", &["--fail"]).await.ok();
        }
    }
    stop.send_replace(true);
    assert!(short.await.unwrap() > 0);
    whole(&tokio::time::timeout(Duration::from_mins(1), long).await.unwrap().unwrap());
    // The last one stays, also for those who ask for it anew, and the other name keeps its own.
    shown(1_000 + SWAPS).await;
    assert_eq!(serial(&secure.handshake("b.example", &[]).await).await, Some(11));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pair_that_is_replaced_by_garbage_keeps_its_last_good_certificate() {
    let nginx = Nginx::start("", "location / { return 200 ok; }").await;
    let secure = Secure::start("http", nginx.address).await;
    let (cert, beside) = (secure.authority.path("a.pem"), secure.authority.path("beside"));
    std::fs::write(&beside, "not a certificate").unwrap();
    std::fs::rename(&beside, &cert).unwrap();
    // A change of the other pair is seen after it, so the garbage has been seen too.
    secure.authority.issue("new", "b.example", 12).await.replace(&secure.authority.pair("b"));
    until("the other certificate to be served", SOON, async || {
        (serial(&secure.handshake("b.example", &[]).await).await == Some(12)).then_some(())
    })
    .await;
    assert_eq!(serial(&secure.handshake("a.example", &[]).await).await, Some(10));
    assert_eq!(secure.curl("a.example", "/", &[]).await.text(), "ok");
    // And it is taken up again when it is whole.
    secure.authority.issue("good", "a.example", 13).await.replace(&secure.authority.pair("a"));
    until("the repaired certificate to be served", SOON, async || {
        (serial(&secure.handshake("a.example", &[]).await).await == Some(13)).then_some(())
    })
    .await;
}
