//! ws (npm) as client and server, through upgrades of HTTP/1.1.

use serde_json::{Value, json};

use crate::support::{
    SOON,
    peer::{Serving, curl, run, script},
    stand::{Settings, Stand},
};

async fn stand() -> (Serving, Stand) {
    let server = Serving::start("ws_server.mjs").await;
    let stand = Stand::start(&Settings::new("http"), Some(server.address)).await;
    (server, stand)
}

/// What the client saw in one of its cases.
async fn case(stand: &Stand, name: &str) -> Value {
    let mut client = script("ws_client.mjs");
    client.arg(stand.gateway.to_string()).arg(name);
    run(client).await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_of_every_length_form_and_a_binary_mebibyte_come_back() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "echo").await;
    assert_eq!(seen, json!({"seen": vec![true; 6], "protocol": "chat", "code": 1005}));
    assert_eq!(case(&stand, "binary").await, json!({"length": 1 << 20, "same": true}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_server_sends_behind_its_101_is_not_lost() {
    let (_server, stand) = stand().await;
    for _ in 0..5 {
        assert_eq!(case(&stand, "greeting").await, json!({"first": "first word"}));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pings_of_either_side_are_answered_by_the_other() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "ping").await;
    assert_eq!(seen, json!({"fromServer": "pong from the server", "fromClient": "from the client"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn close_codes_and_cut_connections_are_seen_as_what_they_are() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "codes").await;
    assert_eq!(seen, json!(["1000 as asked", "1001 as asked", "1011 as asked", "4321 as asked"]));
    assert_eq!(case(&stand, "dropped").await, json!({"code": 1006}));
    // And at the server, of a client that closes and of one that vanishes.
    assert_eq!(case(&stand, "fates").await, json!({"first": "4001 done", "second": "1006 "}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_flow_at_once() {
    let (_server, stand) = stand().await;
    assert_eq!(case(&stand, "both").await, json!({"own": 200, "echoed": 200, "right": true}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_upgrade_is_an_ordinary_response() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "refused").await;
    assert_eq!(seen, json!({"status": 403, "reason": "refused", "body": "no"}));
    let said = curl(&["--http1.1", &stand.url("/")]).await;
    assert_eq!(said.text(), "not a WebSocket");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_after_silence_comes_through() {
    let (_server, stand) = stand().await;
    assert_eq!(case(&stand, "idle").await, json!({"back": "still there"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_handshake_reaches_the_server_with_its_headers() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "headers").await;
    assert_eq!((&seen["x-custom"], &seen["cookie"]), (&json!("value"), &json!("a=b")), "{seen}");
    assert_eq!(
        (&seen["upgrade"], &seen["sec-websocket-version"]),
        (&json!("websocket"), &json!("13")),
        "{seen}"
    );
    assert_eq!(seen["host"], stand.gateway.to_string(), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_connections_at_once_do_not_mix_and_end_where_they_are_counted() {
    let (_server, stand) = stand().await;
    assert_eq!(case(&stand, "many").await, json!({"right": 100}));
    // An upgraded connection counts as in flight until it ends, and no longer.
    load_tests::until("nothing to be in flight", SOON, async || {
        let clusters = stand.edge.admin.text("/clusters").await.ok()?;
        let clusters: Value = serde_json::from_str(&clusters).unwrap_or_else(|e| panic!("{e}: {clusters}"));
        let text = clusters.to_string();
        (text.contains("\"in_flight\":0") && !text.contains("\"in_flight\":1")).then_some(())
    })
    .await;
}
