//! Who may do what: a whole server, and clients that show tokens, certificates, both or nothing.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

#[path = "access/support.rs"]
mod support;

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use xds_server::Server;

use support::{Ask, Authority, NOTHING, Running, Scratch, settings, until, with_tls};

const ADMIN: &str = "admin-0123456789abcdef";
const CI: &str = "ci-0123456789abcdef";
const READER: &str = "reader-0123456789abcdef";

const SERVICES: &str = "kind: Service\nname: checkout\nversions: {v1: {}}\n\
                        ---\nkind: Service\nname: shop\nversions: {v1: {}}\n";

/// Three tokens in files; `more` is the rest of the access file.
fn access(scratch: &Scratch, more: &str) -> std::path::PathBuf {
    for (name, token) in [("admin", ADMIN), ("ci", CI), ("reader", READER)] {
        scratch.put(name, format!("{token}\n"));
    }
    let file = |name: &str| scratch.at(name).display().to_string();
    let text = format!(
        "tokens:\n\
         - {{name: ops, file: {}, roles: [admin]}}\n\
         - {{name: ci, file: {}, roles: [register, shift], services: [checkout]}}\n\
         - {{name: eyes, file: {}, roles: [read]}}\n{more}",
        file("admin"),
        file("ci"),
        file("reader")
    );
    scratch.put("access.yaml", text)
}

#[tokio::test]
async fn without_an_access_file_loopback_needs_nothing_and_nothing_else_is_listened_on() {
    let scratch = Scratch::new("loopback");
    for (api, xds, flag) in
        [("0.0.0.0:0", "127.0.0.1:0", "--api-addr"), ("127.0.0.1:0", "[::]:0", "--xds-addr")]
    {
        let mut settings = settings(&scratch);
        (settings.api_addr, settings.xds_addr) = (api.parse().unwrap(), xds.parse().unwrap());
        let error = Server::bind(settings).await.err().unwrap().to_string();
        assert!(error.starts_with(flag) && error.contains("--tls-cert"), "{error}");
    }
    let server = Running::start(settings(&scratch)).await;
    // A token that nobody asked for is passed over.
    for ask in [NOTHING, Ask::token("anything")] {
        assert_eq!(server.ask(ask, "POST", "/v1/apply", SERVICES).await.unwrap().status, 200);
        assert_eq!(server.status(ask, "PUT", "/v1/services/shop/split").await, 200);
    }
    assert_eq!(server.follow("any", None).await.unwrap(), ["checkout/v1", "shop/v1"]);
    server.stop().await;
}

#[tokio::test]
async fn a_token_may_what_it_was_given_and_no_more() {
    let scratch = Scratch::new("tokens");
    let mut settings = settings(&scratch);
    settings.access = Some(access(&scratch, ""));
    let server = Running::start(settings).await;
    let applied = server.ask(Ask::token(ADMIN), "POST", "/v1/apply", SERVICES).await.unwrap();
    assert_eq!(applied.status, 200, "{applied:?}");

    let endpoint = "/v1/services/checkout/versions/v1/endpoints/a";
    let cases = [
        // Nothing shown.
        (None, "GET", "/healthz", 200),
        (None, "GET", "/readyz", 200),
        (None, "GET", "/metrics", 401),
        (None, "GET", "/v1/services", 401),
        (None, "GET", "/v1/openapi.json", 401),
        (None, "GET", "/nothing/here", 401),
        (None, "POST", "/v1/apply", 401),
        (None, "PUT", "/v1/services/checkout/split", 401),
        (Some("wrong-0123456789abcdef"), "GET", "/v1/services", 401),
        // Reading.
        (Some(READER), "GET", "/metrics", 200),
        (Some(READER), "GET", "/v1/services", 200),
        (Some(READER), "GET", "/v1/events", 200),
        (Some(READER), "GET", "/nothing/here", 404),
        (Some(READER), "PUT", "/v1/services/checkout/split", 403),
        (Some(READER), "DELETE", endpoint, 403),
        (Some(READER), "POST", "/v1/apply", 403),
        (Some(READER), "DELETE", "/v1/services/shop", 403),
        // Somebody's own service and no other, however it is written.
        (Some(CI), "GET", "/v1/services/shop", 200),
        (Some(CI), "PUT", "/v1/services/checkout/split", 200),
        (Some(CI), "PUT", "/v1/services/%63heckout/split", 200),
        (Some(CI), "PUT", "/v1/services/shop/split", 403),
        (Some(CI), "PUT", "/v1/services/sho%70/split", 403),
        (Some(CI), "PUT", "/v1/services/shop/../checkout/split", 404),
        (Some(CI), "DELETE", endpoint, 404),
        (Some(CI), "POST", &format!("{endpoint}/hold"), 400),
        (Some(CI), "DELETE", "/v1/services/shop/versions/v1/endpoints/a", 403),
        (Some(CI), "POST", "/v1/services/shop/versions/v1/endpoints/a/hold", 403),
        (Some(CI), "POST", "/v1/apply", 403),
        (Some(CI), "DELETE", "/v1/services/checkout", 403),
        // Everything.
        (Some(ADMIN), "PUT", "/v1/services/shop/split", 200),
        (Some(ADMIN), "DELETE", "/v1/services/shop", 200),
    ];
    for (token, method, path, expected) in cases {
        let ask = Ask { token, ..NOTHING };
        assert_eq!(server.status(ask, method, path).await, expected, "{token:?} {method} {path}");
    }

    let reader = Ask::token(READER);
    let refused = server.refused(reader, "role").await;
    assert_eq!(refused, cases.iter().filter(|case| case.3 == 403).count() as u64);
    assert_eq!(server.refused(reader, "nobody").await, 6);
    assert_eq!(server.refused(reader, "token").await, 1);
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_says_what_is_missing_and_repeats_no_token() {
    let scratch = Scratch::new("refusals");
    let mut settings = settings(&scratch);
    settings.access = Some(access(&scratch, ""));
    let server = Running::start(settings).await;
    let ask = async |ask| server.ask(ask, "PUT", "/v1/services/shop/split", "{}").await.unwrap();

    let nobody = ask(NOTHING).await;
    assert!(nobody.head.contains("www-authenticate: Bearer realm=\"sluicegate\"\r\n"), "{nobody:?}");
    assert_eq!(nobody.json()["error"]["code"], "unauthenticated");
    assert!(nobody.message().contains("SLUICEGATE_TOKEN"), "{nobody:?}");

    let wrong = ask(Ask::token("wrong-0123456789abcdef")).await;
    assert!(wrong.head.contains("error=\"invalid_token\""), "{wrong:?}");
    assert!(!format!("{wrong:?}").contains("0123456789"), "{wrong:?}");
    let other = ask(Ask { headers: "authorization: Basic YTpi\r\n", ..NOTHING }).await;
    assert!(other.status == 401 && other.message().contains("Bearer"), "{other:?}");
    let two = ask(Ask { token: Some(ADMIN), headers: "authorization: Bearer x\r\n", ..NOTHING }).await;
    assert_eq!(two.status, 401, "which one counts is nobody's guess");

    let forbidden = ask(Ask::token(CI)).await;
    assert_eq!((forbidden.status, &forbidden.json()["error"]["code"]), (403, &"forbidden".into()));
    assert!(forbidden.head.contains("error=\"insufficient_scope\", scope=\"shift\""), "{forbidden:?}");
    let message = forbidden.message();
    assert!(message.starts_with("token ci has the roles: register, shift of checkout; "), "{message}");
    assert!(message.contains("needs the role `shift` of service `shop`"), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn the_timeline_names_who_was_admitted_and_a_header_takes_nobodys_place() {
    let scratch = Scratch::new("actor");
    let mut settings = settings(&scratch);
    settings.access = Some(access(&scratch, "loopback: {roles: [shift], services: [\"*\"]}\n"));
    let server = Running::start(settings).await;
    server.ask(Ask::token(ADMIN), "POST", "/v1/apply", SERVICES).await.unwrap();
    let headers = "x-sluicegate-actor: token ops (10.0.0.1:1)\r\n";
    for (weight, token) in [(2, Some(CI)), (3, None)] {
        let body = format!("{{\"weights\": {{\"v1\": {weight}}}}}");
        let ask = Ask { token, headers, ..NOTHING };
        let path = "/v1/services/checkout/split";
        assert_eq!(server.ask(ask, "PUT", path, &body).await.unwrap().status, 200);
    }
    let events = server.ask(Ask::token(READER), "GET", "/v1/events", "").await.unwrap().json();
    let actors: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|e| e["actor"].as_str().unwrap()).collect();
    let expected = [
        "token ops (127.0.0.1:",
        "token ci as token ops (10.0.0.1:1) (127.0.0.1:",
        "loopback as token ops (",
    ];
    for start in expected {
        assert!(actors.iter().any(|actor| actor.starts_with(start)), "{start}: {actors:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn over_tls_a_certificate_or_a_token_says_who_asks() {
    let scratch = Scratch::new("tls");
    let authority = Authority::new(&scratch, "ca");
    let stranger = Authority::new(&scratch, "stranger");
    let server_pair = authority.issue("server", &["127.0.0.1"]);
    let mut settings = settings(&scratch);
    settings.tls = Some(with_tls(server_pair, Some(&authority.ca)));
    let more = "certificates: [{san: \"spiffe://x.org/ci/*\", roles: [shift], services: [checkout]}]\n";
    settings.access = Some(access(&scratch, more));
    let server = Running::start(settings).await;

    let anonymous = authority.client(None);
    let tls = |tls| Ask { tls: Some(tls), ..NOTHING };
    let admin = Ask { token: Some(ADMIN), ..tls(&anonymous) };
    assert_eq!(server.ask(admin, "POST", "/v1/apply", SERVICES).await.unwrap().status, 200);
    assert_eq!(server.status(tls(&anonymous), "GET", "/v1/services").await, 401);

    let ci = authority.client(Some(authority.issue("ci", &["spiffe://x.org/ci/7", "ci.x.org"])));
    assert_eq!(server.status(tls(&ci), "PUT", "/v1/services/checkout/split").await, 200);
    assert_eq!(server.status(tls(&ci), "PUT", "/v1/services/shop/split").await, 403);
    assert_eq!(server.status(Ask { token: Some("wrong"), ..tls(&ci) }, "GET", "/v1/services").await, 401);
    let unknown = authority.client(Some(authority.issue("unknown", &["shop.x.org"])));
    let refused = server.ask(tls(&unknown), "GET", "/v1/services", "").await.unwrap();
    assert!(refused.status == 403 && refused.message().contains("`shop.x.org`"), "{refused:?}");
    assert_eq!(server.refused(admin, "certificate").await, 1);

    // Who was signed by somebody else does not even get to ask.
    let foreign = authority.client(Some(stranger.issue("foreign", &["spiffe://x.org/ci/7"])));
    assert!(server.ask(tls(&foreign), "GET", "/healthz", "").await.is_err());
    assert!(server.ask(NOTHING, "GET", "/healthz", "").await.is_err(), "no TLS at all");
    let suspicious = stranger.client(None);
    assert!(server.ask(tls(&suspicious), "GET", "/healthz", "").await.is_err());
    until("three handshakes to be counted", async || server.refused(admin, "handshake").await == 3).await;
    server.stop().await;
}

#[tokio::test]
async fn a_proxy_shows_a_certificate_and_is_only_the_node_it_is_for() {
    let scratch = Scratch::new("nodes");
    let authority = Authority::new(&scratch, "ca");
    let stranger = Authority::new(&scratch, "stranger");
    let mut settings = settings(&scratch);
    settings.tls = Some(with_tls(authority.issue("server", &["127.0.0.1"]), Some(&authority.ca)));
    let server = Running::start(settings).await;
    let anonymous = authority.client(None);
    let api = Ask { tls: Some(&anonymous), ..NOTHING };
    // Without an access file, loopback needs nothing to show on the API.
    assert_eq!(server.ask(api, "POST", "/v1/apply", SERVICES).await.unwrap().status, 200);

    let edge = authority.client(Some(authority.issue("edge", &["edge-1.x.org", "spiffe://x.org/edge-1"])));
    for node in ["edge-1.x.org", "spiffe://x.org/edge-1"] {
        assert_eq!(server.follow(node, Some(&edge)).await.unwrap(), ["checkout/v1", "shop/v1"], "{node}");
    }
    for node in ["edge-1", "edge-2.x.org", ""] {
        let status = server.follow(node, Some(&edge)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{node}: {status}");
        assert!(status.message().contains("`edge-1.x.org`"), "{status}");
    }
    assert_eq!(server.refused(api, "node").await, 3);
    let proxies = server.ask(api, "GET", "/v1/proxies", "").await.unwrap().json();
    assert!(!proxies.to_string().contains("edge-2.x.org"), "{proxies}");

    let foreign = authority.client(Some(stranger.issue("foreign", &["edge-1.x.org"])));
    for client in [&anonymous, &foreign] {
        let status = server.follow("edge-1.x.org", Some(client)).await.unwrap_err();
        assert_ne!(status.code(), tonic::Code::PermissionDenied, "it does not get that far: {status}");
    }
    assert!(server.follow("edge-1.x.org", None).await.is_err(), "no TLS at all");
    until("three handshakes to be counted", async || server.refused(api, "handshake").await >= 3).await;
    server.stop().await;
}

#[tokio::test]
async fn rules_say_which_certificates_may_be_which_nodes() {
    let scratch = Scratch::new("rules");
    let authority = Authority::new(&scratch, "ca");
    let mut settings = settings(&scratch);
    settings.tls = Some(with_tls(authority.issue("server", &["127.0.0.1"]), Some(&authority.ca)));
    settings.access = Some(access(&scratch, "proxies: [{san: \"*.edge.x.org\", node: \"edge-*\"}]\n"));
    let server = Running::start(settings).await;
    let edge = authority.client(Some(authority.issue("edge", &["a.edge.x.org"])));
    server.follow("edge-7", Some(&edge)).await.unwrap();
    let checkout = authority.client(Some(authority.issue("checkout", &["checkout.x.org"])));
    for (node, client) in [("gateway-1", &edge), ("a.edge.x.org", &edge), ("checkout.x.org", &checkout)] {
        let status = server.follow(node, Some(client)).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::PermissionDenied, "{node}: {status}");
    }
    server.stop().await;
}

#[tokio::test]
async fn certificates_and_authorities_are_followed_without_a_restart() {
    let scratch = Scratch::new("swap");
    let (old, new) = (Authority::new(&scratch, "old"), Authority::new(&scratch, "new"));
    let clients = scratch.put("clients.pem", std::fs::read(&old.ca).unwrap());
    let mut settings = settings(&scratch);
    settings.tls = Some(with_tls(old.issue("server", &["127.0.0.1"]), Some(&clients)));
    let server = Running::start(settings).await;
    let edge_of = |authority: &Authority<'_>, name: &str| Some(authority.issue(name, &["edge"]));
    let (old_edge, new_edge) = (edge_of(&old, "old-edge"), edge_of(&new, "new-edge"));
    let is_followed = async |tls| server.follow("edge", Some(&tls)).await.is_ok();
    assert!(is_followed(old.client(old_edge.clone())).await);
    assert!(!is_followed(old.client(new_edge.clone())).await);

    // Half of a pair is no pair: the certificate of before goes on.
    let other = new.issue("other", &["127.0.0.1"]);
    scratch.put("server.pem", std::fs::read(&other.cert).unwrap());
    scratch.put("clients.pem", std::fs::read(&new.ca).unwrap());
    let on_old = old.client(None);
    let ask = Ask { tls: Some(&on_old), ..NOTHING };
    until("the half to be noticed", async || server.failing(ask).await == 1).await;
    assert!(is_followed(old.client(old_edge.clone())).await, "nothing changed");
    scratch.put("server.key", std::fs::read(&other.key).unwrap());
    until("the new pair and authority", async || is_followed(new.client(new_edge.clone())).await).await;
    assert!(!is_followed(new.client(old_edge.clone())).await, "no longer trusted");
    let api = new.client(None);
    assert_eq!(server.status(Ask { tls: Some(&api), ..NOTHING }, "GET", "/healthz").await, 200);
    server.stop().await;
}

#[tokio::test]
async fn the_access_file_is_followed_and_a_bad_one_changes_nothing() {
    let scratch = Scratch::new("reload");
    let mut settings = settings(&scratch);
    let path = access(&scratch, "");
    settings.access = Some(path.clone());
    let server = Running::start(settings).await;
    let may = async |token: &str| server.status(Ask::token(token), "GET", "/v1/services").await == 200;
    assert!(may(READER).await);
    let whole = std::fs::read_to_string(&path).unwrap();
    scratch.put("access.yaml", "tokens: [{name: x");
    scratch.put("reader", "another-0123456789abcdef");
    until("the bad file to be noticed", async || server.failing(Ask::token(CI)).await == 1).await;
    assert!(may(READER).await && may(CI).await, "what was in force stays");
    scratch.put("access.yaml", whole);
    until("the new token", async || may("another-0123456789abcdef").await).await;
    assert!(!may(READER).await && may(CI).await);
    until("all to be well", async || server.failing(Ask::token(CI)).await == 0).await;
    server.stop().await;
}

#[tokio::test]
async fn a_bad_start_is_told_with_file_line_and_field() {
    let scratch = Scratch::new("bad");
    let refused = async |settings| Server::bind(settings).await.err().unwrap().to_string();
    let mut bad = settings(&scratch);
    let path = scratch.put("access.yaml", "tokens:\n- {name: ci, sha256: abc, roles: [read]}\n");
    bad.access = Some(path.clone());
    assert!(refused(bad.clone()).await.starts_with(&format!("{}:2: tokens[0].sha256: ", path.display())));
    bad.access = Some(scratch.put("access.yaml", "proxies: []"));
    assert!(refused(bad.clone()).await.contains("--client-ca"));
    bad.access = None;
    bad.tls = Some(with_tls(scratch.pair("none"), None));
    assert!(refused(bad.clone()).await.starts_with("--tls-cert, --tls-key: "));
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stops_halfway_is_given_up() {
    let scratch = Scratch::new("slow");
    let authority = Authority::new(&scratch, "ca");
    let mut settings = settings(&scratch);
    settings.tls = Some(with_tls(authority.issue("server", &["127.0.0.1"]), None));
    let server = Running::start(settings).await;
    let began = tokio::time::Instant::now();
    let mut stream = TcpStream::connect(server.api).await.unwrap();
    // The head of a record that does not come.
    stream.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    let ended = stream.read_to_end(&mut Vec::new()).await;
    assert!(began.elapsed() >= Duration::from_secs(10), "{ended:?} after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    server.stop().await;
}

/// In real time: streams are served on threads with their own clocks.
#[tokio::test]
async fn a_connection_to_xds_that_stops_halfway_is_given_up() {
    let scratch = Scratch::new("half");
    let authority = Authority::new(&scratch, "ca");
    let clear = Running::start(settings(&scratch)).await;
    let mut with = settings(&scratch);
    with.data_dir = with.data_dir.join("secure");
    with.tls = Some(with_tls(authority.issue("server", &["127.0.0.1"]), None));
    let secure = Running::start(with).await;
    let ended = async |address, half: &[u8]| {
        let began = std::time::Instant::now();
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(half).await.unwrap();
        // A reset is as good.
        let _ = stream.read_to_end(&mut Vec::new()).await;
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(9) && took < Duration::from_secs(20), "{took:?}");
    };
    // The head of a record, and half of what HTTP/2 begins with.
    tokio::join!(ended(secure.xds, &[22, 3, 1, 2, 0]), ended(clear.xds, b"PRI * HTTP/2.0"));
    clear.stop().await;
    secure.stop().await;
}

#[tokio::test]
async fn a_page_of_another_site_is_refused_and_counted() {
    let scratch = Scratch::new("page");
    let server = Running::start(settings(&scratch)).await;
    // The second one is a name that leads here for a moment.
    for headers in
        ["origin: https://evil.example\r\n", "origin: http://evil.example\r\nhost: evil.example\r\n"]
    {
        let ask = Ask { headers, ..NOTHING };
        assert_eq!(server.status(ask, "GET", "/v1/services").await, 403, "{headers}");
    }
    let own = format!("origin: http://{}\r\n", server.api);
    assert_eq!(server.status(Ask { headers: &own, ..NOTHING }, "GET", "/v1/services").await, 200);
    assert_eq!(server.refused(NOTHING, "page").await, 2);
    server.stop().await;
}
