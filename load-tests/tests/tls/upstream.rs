//! Endpoints with certificates.

use std::sync::{Arc, Mutex};

use serde_json::json;
use tokio::{io::AsyncReadExt, net::TcpListener};

use crate::support::{
    certificates::{Authority, Pair, text},
    nginx::Nginx,
    peer::{Serving, curl, run, script},
    stand::{Settings, Stand},
};

/// nginx with a certificate; says what it saw of the connection.
async fn nginx(pair: &Pair) -> Nginx {
    let (cert, key) = (pair.cert.display(), pair.key.display());
    let body = format!(
        "ssl_certificate {cert}; ssl_certificate_key {key}; ssl_protocols TLSv1.2 TLSv1.3;\n\
         location / {{ return 200 \"$ssl_server_name $ssl_protocol $http_host $uri\"; }}"
    );
    Nginx::start("ssl", &body).await
}

/// A service that speaks TLS to its endpoints, trusting `authority` and expecting `name`.
fn settings(protocol: &'static str, authority: &Authority, name: &str) -> Settings {
    let service_tls = format!("{{ca: {}, sni: {name}}}", text(&authority.ca()));
    Settings { service_tls, ..Settings::new(protocol) }
}

/// The status of a GET over each protocol; one that no answer came for is 0.
async fn statuses(stand: &Stand) -> Vec<u16> {
    let mut statuses = Vec::new();
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let arguments = [version, "-H", "x-secret: word", "-o", "/dev/null", "-w", "%{response_code}"];
        let said = curl(&[&arguments[..], &[&stand.url("/secret-path")]].concat()).await;
        statuses.push(said.text().trim().parse().unwrap_or(0));
    }
    statuses
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verified_endpoint_is_reached_by_its_name() {
    let authority = Authority::new().await;
    let nginx = nginx(&authority.issue("shop", "shop.internal", 10).await).await;
    let stand = Stand::start(&settings("http", &authority, "shop.internal"), Some(nginx.address)).await;
    for version in ["--http1.0", "--http1.1", "--http2-prior-knowledge"] {
        let said = curl(&[version, &stand.url("/path")]).await.ok();
        let seen = String::from_utf8(said).unwrap();
        // The name of the endpoint is for TLS only; Host stays the client's.
        assert_eq!(seen, format!("shop.internal TLSv1.3 {} /path", stand.gateway), "{version}");
    }
    assert_eq!(nginx.requests().matches("/path").count(), 3, "{}", nginx.requests());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_of_another_authority_or_name_gets_no_request() {
    let (authority, other) = (Authority::new().await, Authority::new().await);
    let cases = [
        (other.issue("shop", "shop.internal", 10).await, "another authority"),
        (authority.issue("other", "other.internal", 11).await, "another name"),
        // A name that only ends, or only begins, like the one that is expected.
        (authority.issue("longer", "a.shop.internal", 12).await, "a name below"),
        (authority.issue("prefix", "shop.internal.example", 13).await, "a longer name"),
    ];
    for (pair, what) in cases {
        let nginx = nginx(&pair).await;
        let stand = Stand::start(&settings("http", &authority, "shop.internal"), Some(nginx.address)).await;
        for status in statuses(&stand).await {
            assert!(status == 502 || status == 503, "{what}: {status}");
        }
        assert_eq!(nginx.requests(), "", "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_without_tls_sees_a_handshake_and_never_a_request() {
    let authority = Authority::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let all = Arc::clone(&received);
    let accepting = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut bytes = vec![0; 4_096];
            let n = stream.read(&mut bytes).await.unwrap();
            bytes.truncate(n);
            // What is no TLS, as a server in plain text would answer.
            let _ =
                tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
            let _ = stream.read_to_end(&mut bytes).await;
            all.lock().unwrap().push(bytes);
        }
    });
    let stand = Stand::start(&settings("http", &authority, "shop.internal"), Some(address)).await;
    for status in statuses(&stand).await {
        assert!(status == 502 || status == 503, "{status}");
    }
    load_tests::until("the endpoint to have been tried", crate::support::SOON, async || {
        (!received.lock().unwrap().is_empty()).then_some(())
    })
    .await;
    accepting.abort();
    for bytes in received.lock().unwrap().iter() {
        let text = bytes.escape_ascii().to_string();
        // A handshake record (RFC 8446 §5.1), with the name in it (RFC 6066 §3).
        assert_eq!(bytes[0], 22, "{text}");
        assert!(text.contains("shop.internal"), "{text}");
        assert!(!text.contains("secret") && !text.contains("HTTP/1.1\\r"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpcio_is_an_endpoint_over_tls() {
    let authority = Authority::new().await;
    let pair = authority.issue("grpc", "grpc.internal", 10).await;
    let server = Serving::start_with("grpc_server.py", &[text(&pair.cert), text(&pair.key)]).await;
    let stand = Stand::start(&settings("grpc", &authority, "grpc.internal"), Some(server.address)).await;
    for (case, pointer, value) in [
        ("unary", "/status", json!("OK")),
        ("bidirectional", "/rounds", json!(200)),
        ("large", "/2/length", json!(16 << 20)),
    ] {
        let mut client = script("grpc_client.py");
        client.arg(stand.gateway.to_string()).arg(case);
        let seen = run(client).await.json();
        assert_eq!(seen.pointer(pointer), Some(&value), "{case}: {seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_reaches_an_endpoint_over_tls() {
    let authority = Authority::new().await;
    let pair = authority.issue("ws", "ws.internal", 10).await;
    let server = Serving::start_with("ws_server.mjs", &[text(&pair.cert), text(&pair.key)]).await;
    let stand = Stand::start(&settings("http", &authority, "ws.internal"), Some(server.address)).await;
    let mut client = script("ws_client.mjs");
    client.arg(stand.gateway.to_string()).arg("both");
    assert_eq!(run(client).await.json(), json!({"own": 200, "echoed": 200, "right": true}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_would_verify_nothing_are_refused_when_they_are_applied() {
    let server = load_tests::sluicegate::Server::start().await;
    let authority = Authority::new().await;
    let (ca, garbage) = (authority.ca(), authority.path("garbage"));
    std::fs::write(&garbage, "not a certificate").unwrap();
    let cases = [
        (format!("{{ca: {}, sni: \"\"}}", text(&ca)), "tls.sni"),
        (format!("{{ca: {}, sni: \"not a name\"}}", text(&ca)), "tls.sni"),
        (format!("{{ca: {}, sni: shop.internal}}", text(&garbage)), "tls.ca"),
        (format!("{{ca: {}, sni: shop.internal}}", text(&authority.path("none"))), "tls.ca"),
    ];
    for (service_tls, field) in cases {
        let manifest = Settings { service_tls: service_tls.clone(), ..Settings::new("http") }.manifest();
        let answer = server.api.apply(&manifest).await;
        assert_eq!(answer.status.as_u16(), 400, "{service_tls}: {}", answer.body);
        assert!(answer.message().contains(field), "{service_tls}: {}", answer.body);
    }
}
