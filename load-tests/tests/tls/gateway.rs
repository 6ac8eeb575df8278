//! Clients of a gateway with certificates.

use load_tests::temp::TempDir;
use serde_json::{Value, json};

use crate::{
    Secure, serial,
    support::{
        certificates::{Authority, openssl, text},
        h2load::h2load,
        nginx::Nginx,
        peer::{Serving, curl, run, script},
        stand::Settings,
    },
};

async fn node() -> (Serving, Secure) {
    let node = Serving::start("http_server.mjs").await;
    let secure = Secure::start("http", node.address).await;
    (node, secure)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_reaches_node_over_tls_1_2_and_1_3_in_http_1_1_and_2() {
    let (_node, secure) = node().await;
    for tls in [&["--tlsv1.2", "--tls-max", "1.2"][..], &["--tlsv1.3"]] {
        for (http, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let report = ["-w", "%{stderr}%{http_version}", "--data-binary", "some body", http];
            let said = secure.curl("a.example", "/describe?x=1", &[tls, &report].concat()).await;
            assert_eq!(said.err, version, "{tls:?} {http}: {said:?}");
            let seen: Value = said.json();
            assert_eq!(
                (&seen["method"], &seen["target"]),
                (&json!("POST"), &json!("/describe?x=1")),
                "{seen}"
            );
            assert_eq!(seen["length"], 9, "{seen}");
            assert_eq!(seen["headers"]["x-forwarded-proto"], "https", "{seen}");
            let host = format!("a.example:{}", secure.stand.gateway.port());
            assert_eq!(seen["headers"]["host"], host, "{tls:?} {http}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_name_that_a_client_asks_for_picks_the_certificate() {
    let (_node, secure) = node().await;
    for (name, expected) in [("a.example", 10), ("b.example", 11), ("A.EXAMPLE", 10)] {
        for version in ["-tls1_2", "-tls1_3"] {
            let said = secure.handshake(name, &[version]).await;
            assert_eq!(serial(&said).await, Some(expected), "{name} {version}: {said:?}");
            assert!(said.text().contains("Verify return code: 0 (ok)"), "{name} {version}: {said:?}");
            assert!(said.text().contains("HTTP/1.1 200"), "{name} {version}: {said:?}");
        }
        // curl checks the name as well.
        secure.curl(&name.to_lowercase(), "/describe", &[]).await.ok();
    }
    // Without a name, or with one of nobody, there may be a certificate or none, but never that of
    // the second for the first.
    for name in ["", "c.example"] {
        let said = secure.handshake(name, &[]).await;
        assert!(matches!(serial(&said).await, None | Some(10)), "{name:?}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alpn_chooses_between_http_2_and_http_1_1() {
    let (_node, secure) = node().await;
    let cases = [
        (&["-alpn", "h2,http/1.1"][..], "ALPN protocol: h2"),
        (&["-alpn", "h2"], "ALPN protocol: h2"),
        (&["-alpn", "http/1.1"], "ALPN protocol: http/1.1"),
        (&[], "No ALPN negotiated"),
    ];
    for (arguments, expected) in cases {
        let said = secure.handshake("a.example", arguments).await;
        assert!(said.text().contains(expected), "{arguments:?}: {said:?}");
        // The request is one of HTTP/1.1, which is what is spoken unless HTTP/2 was chosen.
        let answered = said.text().contains("HTTP/1.1 200");
        assert_eq!(answered, !expected.ends_with("h2"), "{arguments:?}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_resumed() {
    let (_node, secure) = node().await;
    for version in ["-tls1_2", "-tls1_3"] {
        let file = secure.authority.path(&format!("session{version}"));
        let said = secure.handshake("a.example", &[version, "-sess_out", text(&file)]).await;
        assert!(said.text().contains("New, TLSv1."), "{version}: {said:?}");
        let said = secure.handshake("a.example", &[version, "-sess_in", text(&file)]).await;
        assert!(said.text().contains("Reused, TLSv1."), "{version}: {said:?}");
        assert!(said.text().contains("HTTP/1.1 200"), "{version}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_without_tls_is_refused_and_reaches_nobody() {
    let nginx = Nginx::start("", "location / { return 200 reached; }").await;
    let secure = Secure::start("http", nginx.address).await;
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let said = curl(&[version, &secure.stand.url("/")]).await;
        assert!(said.code != 0 && !said.text().contains("reached"), "{version}: {said:?}");
    }
    assert_eq!(secure.curl("a.example", "/", &[]).await.text(), "reached");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_20_mib_goes_down_and_up_over_tls() {
    let nginx = Nginx::start("", "dav_methods PUT;").await;
    let secure = Secure::start("http", nginx.address).await;
    let (directory, mut rng) = (TempDir::new(), fastrand::Rng::with_seed(7));
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.u8(..)).take(20 << 20).collect();
    let local = directory.join("local");
    std::fs::write(&local, &bytes).unwrap();
    std::fs::write(nginx.root("large"), &bytes).unwrap();
    for version in ["--http1.1", "--http2"] {
        let down = secure.curl("a.example", "/large", &[version]).await.ok();
        assert!(down == bytes, "{version}: {} bytes", down.len());
        let name = format!("/up{version}");
        secure.curl("a.example", &name, &[version, "--fail", "--upload-file", text(&local)]).await.ok();
        let up = std::fs::read(nginx.root(&name[1..])).unwrap();
        assert!(up == bytes, "{version}: {} bytes", up.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_loses_nothing_over_tls() {
    let nginx = Nginx::start("", "keepalive_requests 1000000;").await;
    std::fs::write(nginx.root("file"), vec![b'x'; 10_000]).unwrap();
    let secure = Secure::start("http", nginx.address).await;
    let ((url, _), to) = (secure.url("a.example", "/file"), secure.stand.gateway.to_string());
    let to = format!("--connect-to={to}");
    // HTTP/2 with one stream and with many, HTTP/1.1, and a new connection for every few requests.
    let ways = [
        &["-c1", "-m1", "-n500"][..],
        &["-c4", "-m10", "-n4000"],
        &["--h1", "-c8", "-n2000"],
        &["-c100", "-n200"],
    ];
    for way in ways {
        let outcome = h2load(&[way, &[&to, &url]].concat()).await;
        assert!(outcome.done > 0 && outcome.good == outcome.done && outcome.lost == 0, "{}", outcome.text);
        assert_eq!(outcome.data, outcome.done * 10_000, "{}", outcome.text);
        let protocol = if way[0] == "--h1" { "protocol: http/1.1" } else { "protocol: h2" };
        assert!(outcome.text.contains(protocol), "{}", outcome.text);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcio_calls_in_every_way_over_tls() {
    let server = Serving::start("grpc_server.py").await;
    let secure = Secure::start("grpc", server.address).await;
    let ca = secure.authority.ca();
    let expected = [
        ("unary", "/status", json!("OK")),
        ("failing", "/status", json!("FAILED_PRECONDITION")),
        ("server_stream", "/in_order", json!(true)),
        ("client_stream", "/many", json!("1000 1000000")),
        ("bidirectional", "/rounds", json!(200)),
        ("large", "/2/length", json!(16 << 20)),
        ("cancel", "/told", json!("yes")),
    ];
    for (case, pointer, value) in expected {
        let mut client = script("grpc_client.py");
        client.arg(secure.stand.gateway.to_string()).arg(case).arg(&ca).arg("a.example");
        let seen = run(client).await.json();
        assert_eq!(seen.pointer(pointer), Some(&value), "{case}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_over_tls_carries_both_directions() {
    let server = Serving::start("ws_server.mjs").await;
    let secure = Secure::start("http", server.address).await;
    let ca = secure.authority.ca();
    let expected = [
        ("binary", json!({"length": 1 << 20, "same": true})),
        ("both", json!({"own": 200, "echoed": 200, "right": true})),
        ("ping", json!({"fromServer": "pong from the server", "fromClient": "from the client"})),
        ("refused", json!({"status": 403, "reason": "refused", "body": "no"})),
        ("dropped", json!({"code": 1006})),
    ];
    for (case, value) in expected {
        let mut client = script("ws_client.mjs");
        client.arg(secure.stand.gateway.to_string()).arg(case).arg(&ca).arg("a.example");
        assert_eq!(run(client).await.json(), value, "{case}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_that_cannot_be_served_is_refused_when_it_is_applied() {
    let server = load_tests::sluicegate::Server::start().await;
    let authority = Authority::new().await;
    let (a, b) = (authority.issue("a", "a.example", 10).await, authority.issue("b", "b.example", 11).await);
    let (garbage, none) = (authority.path("garbage"), authority.path("none"));
    std::fs::write(&garbage, "not a certificate").unwrap();
    let (a_cert, a_key, b_key) = (text(&a.cert), text(&a.key), text(&b.key));
    let encrypted = authority.path("encrypted.key");
    openssl(&["ec", "-aes256", "-passout", "pass:x", "-in", a_key, "-out", text(&encrypted)], b"").await.ok();
    let pairs = [
        (a_cert, b_key, "a key of another certificate"),
        (text(&none), a_key, "no file"),
        (a_cert, text(&none), "no key's file"),
        (text(&garbage), a_key, "not a certificate"),
        (a_cert, text(&garbage), "not a key"),
        (a_cert, text(&encrypted), "an encrypted key"),
        (a_key, a_cert, "the two swapped"),
    ];
    for (cert, key, what) in pairs {
        // A good one before it: the error has to name the one that is bad.
        let gateway_tls = format!("{{certificates: [{}, {{cert: {cert}, key: {key}}}]}}", b.yaml());
        let manifest = Settings { gateway_tls, ..Settings::new("http") }.manifest();
        let answer = server.api.apply(&manifest).await;
        assert_eq!(answer.status.as_u16(), 400, "{what}: {}", answer.body);
        assert!(answer.message().contains("tls.certificates[1]"), "{what}: {}", answer.body);
        let secret = std::fs::read_to_string(a_key).unwrap();
        let secret = secret.lines().nth(1).unwrap();
        assert!(!answer.body.to_string().contains(secret), "{what}: {}", answer.body);
    }
    let empty = Settings { gateway_tls: "{certificates: []}".into(), ..Settings::new("http") }.manifest();
    let answer = server.api.apply(&empty).await;
    assert_eq!(answer.status.as_u16(), 400, "{}", answer.body);
    assert!(answer.message().contains("tls.certificates"), "{}", answer.body);
}
