//! Who may do what, end to end: the real server with certificates and tokens, its proxies, Envoy, the
//! command, and curl.
//!
//! Certificates are made by the openssl command, for each test its own.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

mod support;

use std::{path::Path, time::Duration};

use load_tests::{
    backend::Backend,
    peers::envoy::{Envoy, Variant},
    sluicegate::{Edge, Server, binary, manifest},
    temp::TempDir,
    traffic::{Client, Traffic},
    until,
};
use serde_json::json;
use support::{
    SOON,
    certificates::{Authority, Pair, openssl, text},
    peer::{Said, curl, run},
};
use tokio::process::Command;

const ADMIN: &str = "admin-0123456789abcdef";
const CI: &str = "ci-0123456789abcdef";

/// A server that asks everybody who they are, and what it knows them by.
struct Guarded {
    authority: Authority,
    server: Server,
    flags: Vec<String>,
    directory: TempDir,
}

impl Guarded {
    async fn start() -> Self {
        let authority = Authority::new().await;
        let directory = TempDir::new();
        let pair =
            authority.issue_for("server", "IP:127.0.0.1,DNS:sluicegate.example", "serverAuth", 1).await;
        std::fs::write(directory.join("ci.token"), format!("{CI}\n")).unwrap();
        let digest = openssl(&["dgst", "-sha256", "-r"], ADMIN.as_bytes()).await.text();
        let access = format!(
            "tokens:\n- {{name: ops, sha256: \"{}\", roles: [admin]}}\n\
             - {{name: ci, file: {}, roles: [register, shift], services: [shop]}}\n\
             certificates:\n- {{san: \"spiffe://x.org/eyes\", roles: [read]}}\n\
             proxies:\n- {{san: \"*.edge.x.org\", node: \"edge-*\"}}\n",
            digest.split(' ').next().unwrap(),
            directory.join("ci.token").display(),
        );
        std::fs::write(directory.join("access.yaml"), access).unwrap();
        let access = directory.join("access.yaml");
        let flags = [
            ("--access", access.as_path()),
            ("--tls-cert", &pair.cert),
            ("--tls-key", &pair.key),
            ("--client-ca", &authority.ca()),
        ];
        let flags: Vec<String> =
            flags.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.display().to_string()]).collect();
        let server = Server::start_with(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
        Self { authority, server, flags, directory }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.server.api.address())
    }

    /// `sluicegate` with the address of the API, its authority, and perhaps a token, not in its arguments.
    async fn command(&self, token: Option<&str>, arguments: &[&str]) -> Said {
        let mut command = Command::new(binary());
        command.args(arguments).args(["--api", &self.url(""), "--ca", text(&self.authority.ca())]);
        for name in ["SLUICEGATE_TOKEN", "SLUICEGATE_TOKEN_FILE", "SLUICEGATE_API", "SLUICEGATE_CA"] {
            command.env_remove(name);
        }
        if let Some(token) = token {
            command.env("SLUICEGATE_TOKEN", token);
        }
        run(command).await
    }

    async fn curl(&self, path: &str, arguments: &[&str]) -> Said {
        let (ca, url) = (self.authority.ca(), self.url(path));
        let status = "\n%{http_code}";
        curl(&[&["--cacert", text(&ca), "--write-out", status], arguments, &[&url]].concat()).await
    }

    /// Applies the manifest of one service behind one gateway, and registers `backend`.
    async fn shop(&self, backend: &Backend) {
        std::fs::write(self.directory.join("shop.yaml"), manifest("127.0.0.1:0", &[("v1", 1), ("v2", 0)]))
            .unwrap();
        let file = self.directory.join("shop.yaml");
        self.command(Some(ADMIN), &["apply", "-f", text(&file)]).await.ok();
        let body = json!({"address": backend.address.to_string()}).to_string();
        let bearer = format!("authorization: Bearer {CI}");
        let said = self
            .curl("/v1/services/shop/versions/v1/endpoints/a", &["-X", "PUT", "-H", &bearer, "-d", &body])
            .await;
        assert!(said.text().ends_with("\n200"), "{said:?}");
    }

    fn proxy_flags(&self, pair: &Pair) -> [String; 6] {
        let shown = |path: &Path| path.display().to_string();
        let files = [shown(&self.authority.ca()), shown(&pair.cert), shown(&pair.key)];
        let [ca, cert, key] = files;
        ["--xds-ca".to_owned(), ca, "--xds-cert".to_owned(), cert, "--xds-key".to_owned(), key]
    }

    async fn edge(&self, node: &str, pair: &Pair) -> Edge {
        let flags = self.proxy_flags(pair);
        Edge::start_with(node, self.server.xds, &flags.each_ref().map(String::as_str)).await
    }

    async fn refused(&self, by: &str) -> u64 {
        let said = self.curl("/metrics", &["-H", &format!("authorization: Bearer {ADMIN}")]).await.text();
        let series = format!("sluicegate_xds_requests_refused_total{{by=\"{by}\"}} ");
        said.lines().find_map(|line| line.strip_prefix(&series)).unwrap().parse().unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_follow_over_mtls_as_the_nodes_they_are_and_no_others() {
    let guarded = Guarded::start().await;
    let backend = Backend::start("v1").await;
    guarded.shop(&backend).await;
    let pair = guarded.authority.issue_for("edge", "DNS:a.edge.x.org", "clientAuth", 2).await;
    let edge = guarded.edge("edge-1", &pair).await;
    let gateway = edge.gateway("edge").await;
    until("the gateway to answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let outcome = Traffic::run(gateway, 2, 200).await;
    assert_eq!((outcome.failures, outcome.share("v1")), (0, 100.0), "{outcome:?}");

    // The same certificate as another node, another certificate as this node, and none.
    let service = guarded.authority.issue_for("shop", "DNS:shop.x.org", "clientAuth", 3).await;
    let others = [guarded.edge("gateway-1", &pair).await, guarded.edge("edge-1", &service).await];
    for (other, expected) in others.iter().zip(["`gateway-1`", "`edge-1`"]) {
        until("the refusal in the proxy's log", SOON, async || {
            let log = other.log();
            (log.contains("may not be node") && log.contains(expected)).then_some(())
        })
        .await;
    }
    let ca = guarded.authority.ca();
    let anonymous = Edge::start_with("edge-1", guarded.server.xds, &["--xds-ca", text(&ca)]).await;
    until("the server to count them", SOON, async || {
        (guarded.refused("node").await >= 2 && guarded.refused("handshake").await >= 1).then_some(())
    })
    .await;
    let proxies = guarded.command(Some(ADMIN), &["proxies", "-o", "json"]).await.json();
    assert_eq!(proxies["proxies"].as_array().unwrap().len(), 1, "{proxies}");
    let log = guarded.server.log();
    assert!(log.contains("refused xDS from") && log.contains("`shop.x.org`"), "{log}");
    drop((others, anonymous));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_and_curl_say_who_they_are_and_what_is_missing_is_told() {
    let guarded = Guarded::start().await;
    let backend = Backend::start("v1").await;
    guarded.shop(&backend).await;

    let refused = guarded.command(None, &["get", "services"]).await;
    assert!(refused.code == 1 && refused.err.contains("SLUICEGATE_TOKEN"), "{refused:?}");
    let wrong = guarded.command(Some("wrong-0123456789"), &["get", "services"]).await;
    assert!(wrong.code == 1 && wrong.err.contains("the token is none of this server's"), "{wrong:?}");
    guarded.command(Some(CI), &["shift", "shop", "v2=50%"]).await.ok();
    let file = guarded.directory.join("shop.yaml");
    let forbidden = guarded.command(Some(CI), &["apply", "-f", text(&file)]).await;
    assert!(forbidden.code == 1 && forbidden.err.contains("needs the role `admin`"), "{forbidden:?}");
    let token_file = guarded.directory.join("ci.token");
    guarded.command(None, &["get", "services", "--token-file", text(&token_file)]).await.ok();
    let events = guarded.command(Some(CI), &["events"]).await.text();
    assert!(events.contains("token ci as ") && events.contains("token ops"), "{events}");

    // A certificate in place of a token; one of the server's own kind is none for clients.
    let eyes = guarded.authority.issue_for("eyes", "URI:spiffe://x.org/eyes", "clientAuth", 4).await;
    let shown = ["--cert", text(&eyes.cert), "--key", text(&eyes.key)];
    guarded.command(None, &[&["get", "services"][..], &shown].concat()).await.ok();
    let reading = guarded.curl("/v1/services", &shown).await.text();
    assert!(reading.ends_with("\n200"), "{reading}");
    let writing = guarded.curl("/v1/services/shop", &[&shown[..], &["-X", "DELETE"]].concat()).await.text();
    assert!(writing.contains("certificate spiffe://x.org/eyes") && writing.ends_with("\n403"), "{writing}");
    let other = guarded.authority.issue_for("other", "URI:spiffe://x.org/eyes", "serverAuth", 5).await;
    let said = guarded.curl("/v1/services", &["--cert", text(&other.cert), "--key", text(&other.key)]).await;
    assert_ne!(said.code, 0, "{said:?}");

    let nobody = guarded.curl("/v1/services", &["--dump-header", "-"]).await.text();
    assert!(nobody.contains("Bearer realm=\"sluicegate\"") && nobody.ends_with("\n401"), "{nobody}");
    assert!(guarded.curl("/healthz", &[]).await.text().ends_with("\n200"));

    // An instance that holds its registration by a token, and the app it starts, which is not given it.
    let mut echo = Command::new(binary());
    let address = backend.address.to_string();
    echo.args(["register", "shop", "v1", "--id", "held", "--address", &address, "--api", &guarded.url("")]);
    echo.args([
        "--ca",
        text(&guarded.authority.ca()),
        "--",
        "sh",
        "-c",
        "echo token=$SLUICEGATE_TOKEN; sleep 60",
    ]);
    echo.env("SLUICEGATE_TOKEN", CI);
    let log = guarded.directory.join("register.log");
    let held = load_tests::process::Process::start(echo, &log);
    until("the instance to be registered", SOON, async || {
        let services = guarded.command(Some(CI), &["get", "services", "-o", "json"]).await.text();
        services.contains("\"held\"").then_some(())
    })
    .await;
    assert!(std::fs::read_to_string(&log).unwrap().contains("token=\n"));
    held.signal("TERM").await;

    // What the server knows and logs has no token in it.
    let log = guarded.server.log();
    assert!(log.contains("refused GET /v1/services from"), "{log}");
    assert!(!log.contains("0123456789"), "{log}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_takes_up_a_new_certificate_and_authority_when_it_comes_back() {
    let guarded = Guarded::start().await;
    let backend = Backend::start("v1").await;
    guarded.shop(&backend).await;
    let pair = guarded.authority.issue_for("edge", "DNS:a.edge.x.org", "clientAuth", 2).await;
    let edge = guarded.edge("edge-1", &pair).await;
    let gateway = edge.gateway("edge").await;
    until("the gateway to answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let traffic = Traffic::start(gateway, 2);

    // Everything that is trusted and shown becomes another's, file by file.
    let next = Authority::new().await;
    let server = next.issue_for("server", "IP:127.0.0.1", "serverAuth", 7).await;
    let client = next.issue_for("edge", "DNS:a.edge.x.org", "clientAuth", 8).await;
    server.replace(&guarded.authority.pair("server"));
    client.replace(&guarded.authority.pair("edge"));
    let beside = guarded.authority.path("beside");
    std::fs::copy(next.ca(), &beside).unwrap();
    std::fs::rename(&beside, guarded.authority.ca()).unwrap();

    let Guarded { authority, server, flags, directory } = guarded;
    let mut server = server;
    server.process.kill().await;
    let server = server.restart_with(&flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let guarded = Guarded { authority, server, flags, directory };
    until("the proxy to be back", SOON, async || {
        let proxies = guarded.command(Some(ADMIN), &["proxies", "-o", "json"]).await;
        let proxies: serde_json::Value = serde_json::from_slice(&proxies.out).ok()?;
        (proxies["proxies"].as_array()?.len() == 1 && proxies["proxies"][0]["synced"] == true).then_some(())
    })
    .await;
    let outcome = traffic.stop().await;
    assert_eq!(outcome.failures, 0, "of {}: {:?}", outcome.requests(), outcome.reasons);
}

/// How Envoy reaches the server: TLS with a certificate, and HTTP/2.
fn socket(authority: &Authority, pair: &Pair) -> serde_json::Value {
    let file = |path: &Path| json!({"filename": path});
    json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "sni": "sluicegate.example",
            "common_tls_context": {
                "alpn_protocols": ["h2"],
                "tls_certificates": [{"certificate_chain": file(&pair.cert), "private_key": file(&pair.key)}],
                "validation_context": {
                    "trusted_ca": file(&authority.ca()),
                    "match_typed_subject_alt_names": [
                        {"san_type": "DNS", "matcher": {"exact": "sluicegate.example"}}
                    ]
                }
            }
        }
    })
}

async fn envoy_follows_over_mtls(variant: Variant) {
    let guarded = Guarded::start().await;
    let backend = Backend::start("v1").await;
    guarded.shop(&backend).await;
    let pair = guarded.authority.issue_for("envoy", "DNS:b.edge.x.org", "clientAuth", 2).await;
    let socket = socket(&guarded.authority, &pair);
    let stranger = Envoy::start_with("other-1", guarded.server.xds, variant, Some(socket.clone())).await;
    let envoy = Envoy::start_with("edge-2", guarded.server.xds, variant, Some(socket)).await;
    let gateway = envoy.gateway("edge").await;
    until("Envoy to answer", SOON, async || Client::new(gateway).get("/").await.ok()).await;
    let outcome = Traffic::run(gateway, 2, 200).await;
    assert_eq!((outcome.failures, outcome.share("v1")), (0, 100.0), "{outcome:?}");
    until("the other one to be refused", SOON, async || (guarded.refused("node").await > 0).then_some(()))
        .await;
    let proxies = guarded.command(Some(ADMIN), &["proxies", "-o", "json"]).await.json();
    let nodes: Vec<_> = proxies["proxies"].as_array().unwrap().iter().map(|p| p["node"].clone()).collect();
    assert_eq!(nodes, [json!("edge-2")], "{}", stranger.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_over_mtls_incrementally() {
    envoy_follows_over_mtls(Variant::Incremental).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn envoy_follows_over_mtls_by_state_of_the_world() {
    envoy_follows_over_mtls(Variant::StateOfTheWorld).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn serve_runs_both_sides_over_mtls_and_opens_nothing_by_mistake() {
    let authority = Authority::new().await;
    let server = authority.issue_for("server", "IP:127.0.0.1", "serverAuth", 1).await;
    let edge = authority.issue_for("edge", "DNS:edge-1", "clientAuth", 2).await;
    let directory = TempDir::new();
    let (ca, data, ready) = (authority.ca(), directory.join("data"), directory.join("ready"));
    let addresses = ["--api-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0"];
    let tls = ["--tls-cert", text(&server.cert), "--tls-key", text(&server.key), "--client-ca", text(&ca)];
    let serve = |flags: &[&str]| {
        let mut command = Command::new(binary());
        command.args(["serve", "--data-dir", text(&data), "--node", "edge-1"]).args(flags);
        command.args(["--ready-file", text(&ready)]);
        command
    };
    for (flags, expected) in [
        (
            &["--api-addr", "0.0.0.0:0"][..],
            "--api-addr 0.0.0.0:0 is reached by other machines: give --access",
        ),
        (
            &["--api-addr", "127.0.0.1:0", "--xds-addr", "0.0.0.0:0"],
            "give --tls-cert, --tls-key and --client-ca",
        ),
        (&tls, "give --xds-ca"),
        (&["--tls-cert", "/x"], "--tls-key"),
        (&["--access", "/does/not/exist", "--api-addr", "127.0.0.1:0"], "/does/not/exist: cannot be read"),
    ] {
        let said = tokio::time::timeout(Duration::from_secs(20), run(serve(flags))).await.unwrap();
        assert!(said.code > 0 && said.err.contains(expected), "{said:?}\n≠ {expected}");
    }
    let client = ["--xds-ca", text(&ca), "--xds-cert", text(&edge.cert), "--xds-key", text(&edge.key)];
    let log = directory.join("serve.log");
    let mut both =
        load_tests::process::Process::start(serve(&[&addresses[..], &tls, &client].concat()), &log);
    let ready: serde_json::Value = both.ready(&ready, &log).await;
    assert_eq!(ready["tls"], true, "{ready}");
    let url = format!("https://{}/v1/proxies", ready["api"].as_str().unwrap());
    until("the proxy to be connected", SOON, async || {
        let said = curl(&["--cacert", text(&ca), &url]).await.text();
        said.contains("\"edge-1\"").then_some(())
    })
    .await;
}
