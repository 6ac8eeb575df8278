//! curl as the client, nginx and Node's HTTP server as the endpoints.

use std::{fmt::Write as _, path::Path};

use load_tests::temp::TempDir;
use serde_json::Value;

use crate::support::{
    nginx::Nginx,
    peer::{Serving, curl, nghttp},
    stand::{Settings, Stand},
};

const MIB: usize = 1 << 20;
/// The ways curl asks, of which only the last can leave out the length of a body.
const ALL: [&str; 3] = ["--http1.0", "--http1.1", "--http2-prior-knowledge"];

/// Bytes that no two places share, so that a lost or repeated part shows.
fn content(length: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(7);
    std::iter::repeat_with(|| rng.u8(..)).take(length).collect()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// As the `openssl` command and Node say it.
async fn sha256(bytes: &[u8]) -> String {
    let said = crate::support::certificates::openssl(&["dgst", "-sha256", "-r"], bytes).await;
    String::from_utf8(said.ok()).unwrap().split(' ').next().unwrap().to_owned()
}

async fn node() -> (Serving, Stand) {
    let node = Serving::start("http_server.mjs").await;
    let stand = Stand::start(&Settings::new("http"), Some(node.address)).await;
    (node, stand)
}

/// What curl prints after a response, beside its body.
const REPORT: &str = "%{stderr}%{http_version} %{response_code} %{num_connects}\\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_reaches_node_as_it_was_sent() {
    let (_node, stand) = node().await;
    let url = stand.url("/describe?a=1&b=%2F");
    for version in ALL {
        for method in ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
            let mut arguments = vec![version, "-X", method, "-H", "x-custom: Value, with comma", &url];
            let body = matches!(method, "POST" | "PUT" | "PATCH");
            if body {
                arguments.extend(["--data-binary", "some body"]);
            }
            let seen: Value = curl(&arguments).await.json();
            assert_eq!(seen["method"], method, "{version}: {seen}");
            assert_eq!(seen["target"], "/describe?a=1&b=%2F", "{version}: {seen}");
            assert_eq!(seen["headers"]["x-custom"], "Value, with comma", "{version}: {seen}");
            assert_eq!(seen["headers"]["host"], stand.gateway.to_string(), "{version}: {seen}");
            assert_eq!(seen["length"], if body { 9 } else { 0 }, "{version} {method}: {seen}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_response_has_the_length_and_no_body() {
    let nginx = Nginx::start("", "").await;
    std::fs::write(nginx.root("file"), content(1_234)).unwrap();
    let stand = Stand::start(&Settings::new("http"), Some(nginx.address)).await;
    let url = stand.url("/file");
    for version in ALL {
        // Twice over one connection: a body that was made up would be taken for the next response.
        let urls = if version == "--http1.1" { vec![url.as_str(); 2] } else { vec![url.as_str()] };
        let said = curl(&[&[version, "--head", "-w", REPORT], &urls[..]].concat()).await;
        let (head, report) = (said.text().to_lowercase(), said.err.clone());
        said.ok();
        assert_eq!(head.matches("content-length: 1234").count(), urls.len(), "{version}: {head}");
        let connects: Vec<_> = report.lines().map(|l| l.split_once(' ').unwrap().1).collect();
        assert_eq!(connects, &["200 1", "200 0"][..urls.len()], "{version}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_20_mib_goes_down_and_up_whole() {
    let nginx = Nginx::start("", "dav_methods PUT; create_full_put_path on;").await;
    let (directory, bytes) = (TempDir::new(), content(20 * MIB));
    let local = directory.join("local");
    std::fs::write(&local, &bytes).unwrap();
    std::fs::write(nginx.root("large"), &bytes).unwrap();
    let stand = Stand::start(&Settings::new("http"), Some(nginx.address)).await;
    let expected = sha256(&bytes).await;
    for version in ALL {
        let down = curl(&[version, &stand.url("/large")]).await.ok();
        assert_eq!(sha256(&down).await, expected, "{version}: {} bytes", down.len());

        // A file has a length; what comes from a pipe has none, and is sent in chunks or until the end.
        let mut ways = vec![text(&local)];
        if version != "--http1.0" {
            ways.push("-");
        }
        for (number, way) in ways.into_iter().enumerate() {
            let name = format!("up{version}-{number}");
            let url = stand.url(&format!("/{name}"));
            let mut command = tokio::process::Command::new(crate::support::peer::find("curl"));
            command.args(["--disable", "-sS", "--noproxy", "*", "--max-time", "30", version]);
            command.args(["-w", "%{response_code}", "--upload-file", way, &url]);
            let said = crate::support::peer::run_with(command, if way == "-" { &bytes } else { b"" }).await;
            assert_eq!(String::from_utf8(said.ok()).unwrap(), "201", "{version} {way}");
            let up = std::fs::read(nginx.root(&name)).unwrap();
            assert_eq!(sha256(&up).await, expected, "{version} {way}: {} bytes", up.len());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_in_chunks_reaches_node_as_the_same_bytes() {
    let (_node, stand) = node().await;
    let (directory, bytes) = (TempDir::new(), content(3 * MIB + 17));
    let local = directory.join("local");
    std::fs::write(&local, &bytes).unwrap();
    let (data, expected) = (format!("@{}", text(&local)), sha256(&bytes).await);
    for version in &ALL[1..] {
        for chunked in [false, true] {
            let url = stand.url("/describe");
            let mut arguments = vec![*version, "--data-binary", &data, &url];
            if chunked && *version == "--http1.1" {
                arguments.extend(["-H", "transfer-encoding: chunked"]);
            }
            let seen: Value = curl(&arguments).await.json();
            assert_eq!(seen["length"], bytes.len(), "{version} {chunked}: {seen}");
            assert_eq!(seen["sha256"], expected.as_str(), "{version} {chunked}");
            let framing = (&seen["headers"]["content-length"], &seen["headers"]["transfer-encoding"]);
            assert!(framing.0.is_null() != framing.1.is_null(), "{version} {chunked}: {seen}");
        }
        let echo = curl(&[version, "--data-binary", &data, &stand.url("/echo")]).await.ok();
        assert_eq!(sha256(&echo).await, expected, "{version}: {} bytes came back", echo.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expect_100_continue_is_answered_before_the_body_and_a_refusal_comes_without_it() {
    let (_node, stand) = node().await;
    let (directory, bytes) = (TempDir::new(), content(2 * MIB));
    let local = directory.join("local");
    std::fs::write(&local, &bytes).unwrap();
    let data = format!("@{}", text(&local));
    // Without the answer curl would wait for longer than it may run.
    let expecting = ["--http1.1", "-H", "expect: 100-continue", "--expect100-timeout", "60", "--data-binary"];
    let with =
        |path: &str| [&expecting[..], &[&data, "-v", path]].concat().into_iter().map(str::to_owned).collect();
    let run = async |path: &str| {
        let arguments: Vec<String> = with(&stand.url(path));
        curl(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).await
    };
    let said = run("/describe").await;
    assert!(said.err.contains("< HTTP/1.1 100"), "{}", said.err);
    let seen = said.json();
    assert_eq!(seen["length"], bytes.len(), "{seen}");

    let said = run("/refuse").await;
    assert!(said.err.contains("< HTTP/1.1 413"), "{}", said.err);
    assert_eq!(said.text(), "too large");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_before_the_body_was_read_reaches_a_client_that_is_still_sending() {
    let (_node, stand) = node().await;
    let (directory, bytes) = (TempDir::new(), content(8 * MIB));
    let local = directory.join("local");
    std::fs::write(&local, &bytes).unwrap();
    let (data, url) = (format!("@{}", text(&local)), stand.url("/refuse"));
    for version in &ALL[1..] {
        let said = curl(&[version, "-H", "expect:", "--data-binary", &data, "-w", REPORT, &url]).await;
        // curl may say that it could not send the rest; the answer is what counts.
        assert!(said.err.contains(" 413 "), "{version}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_1_0_is_answered_in_its_own_terms_with_and_without_keep_alive() {
    let (_node, stand) = node().await;
    for keep_alive in [false, true] {
        for (path, body) in [("/chunked", "first second"), ("/until-close", "until the end")] {
            let (first, second) = (stand.url(path), stand.url(path));
            let mut arguments = vec!["--http1.0", "-i", "-w", REPORT, &first, &second];
            if keep_alive {
                arguments.extend(["-H", "connection: keep-alive"]);
            }
            let said = curl(&arguments).await;
            let (answer, report) = (said.text().to_lowercase(), said.err.clone());
            said.ok();
            // RFC 9112 §6.1: no transfer coding to a client of HTTP/1.0.
            assert!(!answer.contains("transfer-encoding"), "{keep_alive} {path}: {answer}");
            assert_eq!(answer.matches(body).count(), 2, "{keep_alive} {path}: {answer}");
            let connects: Vec<_> = report.lines().filter_map(|l| l.rsplit(' ').next()).collect();
            // With keep-alive a connection may go on, but nothing has to (RFC 9112 §9.3).
            assert!(connects == ["1", "1"] || keep_alive && connects == ["1", "0"], "{path}: {connects:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_connection_carries_many_requests_and_close_ends_it() {
    let (_node, stand) = node().await;
    // Not over HTTP/2, for curl before 8.0 cannot (its issue 10634); h2load does.
    let url = stand.url("/describe");
    let many = format!("{url}?[1-50]");
    let said = curl(&["--http1.1", "-o", "/dev/null", "-w", REPORT, &many]).await;
    let report = said.err.clone();
    said.ok();
    let connects = report.lines().filter(|l| l.ends_with(" 200 1")).count();
    assert_eq!((report.lines().count(), connects), (50, 1), "{report}");
    let closing = ["--http1.1", "-H", "connection: close", "-w", REPORT, &url, &url];
    let said = curl(&closing).await;
    let report = said.err.clone();
    assert_eq!(report.matches(" 200 1\n").count(), 2, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn responses_without_a_body_leave_the_connection_in_step() {
    let (_node, stand) = node().await;
    for version in &ALL[1..] {
        for (path, status) in [("/no-content", 204), ("/not-modified", 304)] {
            let (first, second) = (stand.url(path), stand.url("/chunked"));
            let mut arguments = vec![*version, "-i", "-w", REPORT, &first];
            if *version == "--http1.1" {
                arguments.push(&second);
            }
            let said = curl(&arguments).await;
            let (answer, report) = (said.text().to_lowercase(), said.err.clone());
            said.ok();
            assert!(report.contains(&format!(" {status} 1\n")), "{version} {path}: {report}");
            if *version == "--http1.1" {
                assert!(report.contains(" 200 0\n"), "{path}: {report}");
                assert!(answer.ends_with("first second"), "{path}: {answer}");
            }
            // RFC 9110 §8.6: no content-length on 204; RFC 9112 §6.1: no transfer coding on either.
            let head = answer.split("\r\n\r\n").next().unwrap();
            assert!(!head.contains("transfer-encoding"), "{version} {path}: {head}");
            assert!(status != 204 || !head.contains("content-length"), "{version} {path}: {head}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conditions_and_ranges_are_nginx_s_to_answer() {
    let nginx = Nginx::start("", "if_modified_since before; location = /empty { return 204; }").await;
    let bytes = content(10_000);
    std::fs::write(nginx.root("file"), &bytes).unwrap();
    let stand = Stand::start(&Settings::new("http"), Some(nginx.address)).await;
    let url = stand.url("/file");
    for version in ALL {
        let part = curl(&[version, "--range", "100-299", &url]).await.ok();
        assert!(part == bytes[100..300], "{version}: {} bytes", part.len());
        let fresh = "if-modified-since: Thu, 31 Dec 2099 23:59:59 GMT";
        let said = curl(&[version, "-H", fresh, "-w", REPORT, &url]).await;
        assert!(said.err.contains(" 304 ") && said.out.is_empty(), "{version}: {said:?}");
        let said = curl(&[version, "-w", REPORT, &stand.url("/empty")]).await;
        assert!(said.err.contains(" 204 ") && said.out.is_empty(), "{version}: {said:?}");
        let said = curl(&[version, "-w", REPORT, "-o", "/dev/null", &stand.url("/missing")]).await;
        assert!(said.err.contains(" 404 "), "{version}: {said:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trailers_of_node_reach_curl_and_nghttp() {
    let (_node, stand) = node().await;
    let url = stand.url("/trailers");
    // curl writes trailers where it writes headers, but not those of HTTP/2.
    let said = curl(&["--http1.1", "-H", "te: trailers", "-D", "/dev/stderr", &url]).await;
    assert_eq!(said.text(), "body", "{said:?}");
    assert!(said.err.to_lowercase().contains("x-checksum: abc"), "{said:?}");
    let told = nghttp(&["-H", "te: trailers", &url]).await;
    assert!(told.contains("x-checksum: abc"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn early_hints_come_before_the_response_and_never_to_http_1_0() {
    let (_node, stand) = node().await;
    let url = stand.url("/early-hints");
    for version in ALL {
        let said = curl(&[version, "-D", "/dev/stderr", &url]).await;
        assert_eq!(said.text(), "after the hints", "{version}: {}", said.err);
        // RFC 9110 §15.2: a proxy forwards 1xx, but a client of HTTP/1.0 gets none.
        let hints = said.err.contains(" 103");
        assert_eq!(hints, version != "--http1.0", "{version}: {}", said.err);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_headers_and_8_kib_of_one_come_through_in_order() {
    let (_node, stand) = node().await;
    let (directory, mut config) = (TempDir::new(), String::new());
    for n in 0..80 {
        writeln!(config, "header = \"x-h{n}: value {n}\"").unwrap();
    }
    let long = "l".repeat(8 << 10);
    writeln!(config, "header = \"x-long: {long}\"").unwrap();
    let file = directory.join("curl.conf");
    std::fs::write(&file, config).unwrap();
    for version in ALL {
        let said = curl(&[version, "--config", text(&file), &stand.url("/describe")]).await;
        let seen = said.json();
        for n in 0..80 {
            assert_eq!(seen["headers"][format!("x-h{n}")], format!("value {n}"), "{version}");
        }
        assert_eq!(seen["headers"]["x-long"], long.as_str(), "{version}");
    }
}
