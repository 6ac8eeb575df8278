//! h2load, curl and nghttpd: HTTP/2 to HTTP/1.1, HTTP/1.1 to HTTP/2, and HTTP/2 to HTTP/2.

use load_tests::temp::TempDir;

use crate::support::{
    h2load::h2load,
    nginx::Nginx,
    peer::{Nghttpd, Serving, curl, nghttp},
    stand::{Settings, Stand},
};

/// Larger than one frame and than the window a stream starts with (RFC 9113 §6.5.2).
const SIZE: usize = 100_000;

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i % 251) as u8).collect()
}

/// Every request is answered, with all of its body.
async fn loads(stand: &Stand, arguments: &[&str], path: &str, requests: u64, size: usize) {
    let url = stand.url(path);
    let number = requests.to_string();
    let outcome = h2load(&[arguments, &["-n", &number, &url]].concat()).await;
    assert_eq!((outcome.done, outcome.good, outcome.lost), (requests, requests, 0), "{}", outcome.text);
    assert_eq!(outcome.data, requests * size as u64, "{}", outcome.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_reaches_nginx_over_http_1_1() {
    let nginx = Nginx::start("", "keepalive_requests 1000000;").await;
    std::fs::write(nginx.root("file"), content()).unwrap();
    std::fs::write(nginx.root("empty"), "").unwrap();
    let stand = Stand::start(&Settings::new("http"), Some(nginx.address)).await;
    // One stream at a time, many at a time, and more than most servers allow at a time.
    loads(&stand, &["-c1", "-m1"], "/file", 200, SIZE).await;
    loads(&stand, &["-c4", "-m10"], "/file", 2_000, SIZE).await;
    loads(&stand, &["-c2", "-m300"], "/empty", 5_000, 0).await;
    // The same client in HTTP/1.1.
    loads(&stand, &["--h1", "-c8"], "/file", 2_000, SIZE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h2load_reaches_nghttpd_over_h2c() {
    let nghttpd = Nghttpd::start(&content()).await;
    let stand = Stand::start(&Settings::new("h2c"), Some(nghttpd.address)).await;
    loads(&stand, &["-c1", "-m1"], "/file", 200, SIZE).await;
    loads(&stand, &["-c4", "-m10"], "/file", 2_000, SIZE).await;
    // nghttpd allows 100 streams a connection, so some have to wait or take another connection.
    loads(&stand, &["-c2", "-m300"], "/file", 2_000, SIZE).await;
    loads(&stand, &["--h1", "-c8"], "/file", 1_000, SIZE).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_h2load_come_back_from_nghttpd() {
    let nghttpd = Nghttpd::start(b"").await;
    let stand = Stand::start(&Settings::new("h2c"), Some(nghttpd.address)).await;
    let (directory, size) = (TempDir::new(), 200_000);
    let file = directory.join("data");
    std::fs::write(&file, vec![b'x'; size]).unwrap();
    let data = format!("--data={}", file.display());
    loads(&stand, &["-c2", "-m4", &data], "/upload", 200, size).await;
    loads(&stand, &["--h1", "-c4", &data], "/upload", 200, size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_of_h2load_come_back_from_node() {
    let node = Serving::start("http_server.mjs").await;
    let stand = Stand::start(&Settings::new("http"), Some(node.address)).await;
    let (directory, size) = (TempDir::new(), 200_000);
    let file = directory.join("data");
    std::fs::write(&file, vec![b'x'; size]).unwrap();
    let data = format!("--data={}", file.display());
    loads(&stand, &["-c2", "-m4", &data], "/echo", 200, size).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn curl_in_either_protocol_gets_nghttpd_s_file_and_its_trailer() {
    let nghttpd = Nghttpd::start(&content()).await;
    let stand = Stand::start(&Settings::new("h2c"), Some(nghttpd.address)).await;
    let (file, missing) = (stand.url("/file"), stand.url("/missing"));
    for version in ["--http1.1", "--http2-prior-knowledge"] {
        let said = curl(&[version, "-H", "te: trailers", "-D", "/dev/stderr", &file]).await;
        let head = said.err.to_lowercase();
        assert!(said.ok() == content(), "{version}: {head}");
        assert!(
            head.contains("nghttpd") && head.contains("cache-control: max-age=3600"),
            "{version}: {head}"
        );
        let said = curl(&[version, "-o", "/dev/null", "-w", "%{response_code}", &missing]).await;
        assert_eq!(said.text(), "404", "{version}");

        // What was uploaded comes back in chunks or frames, then the trailer.
        let upload = stand.url("/upload");
        let arguments = [version, "-H", "te: trailers", "-D", "/dev/stderr", "--data-binary", "some body"];
        let said = curl(&[&arguments[..], &[&upload]].concat()).await;
        assert_eq!(said.text(), "some body", "{version}: {said:?}");
        let head = said.err.to_lowercase();
        // In HTTP/1.1 a trailer needs chunks (RFC 9112 §7.1.2); a response of known length has none.
        // What curl gets over HTTP/2 it does not tell.
        let chunked = head.contains("transfer-encoding: chunked");
        assert_eq!(head.contains("x-trailer: from nghttpd"), chunked, "{version}: {head}");
    }
    let told = nghttp(&["-H", "te: trailers", &file]).await;
    assert!(told.contains(&format!("content-length: {SIZE}")), "{told}");
    assert!(told.contains("x-trailer: from nghttpd"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_of_unknown_length_goes_from_http_1_1_to_h2c() {
    let nghttpd = Nghttpd::start(b"").await;
    let stand = Stand::start(&Settings::new("h2c"), Some(nghttpd.address)).await;
    let (directory, url) = (TempDir::new(), stand.url("/upload"));
    let file = directory.join("data");
    std::fs::write(&file, content()).unwrap();
    let data = format!("@{}", file.display());
    for version in ["--http1.1", "--http1.0"] {
        let chunked = ["-H", "transfer-encoding: chunked"];
        let chunked = if version == "--http1.1" { &chunked[..] } else { &[] };
        let said = curl(&[&[version, "--data-binary", &data], chunked, &[&url]].concat()).await;
        assert!(said.out == content(), "{version}: {} bytes: {}", said.out.len(), said.err);
    }
}
