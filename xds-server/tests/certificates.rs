//! Certificates at `apply`: a whole server, its HTTP API, and files on disk.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use config::bootstrap::ServerSettings;
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};
use xds_server::{Server, StartError};

/// A directory that is removed with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn at(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// Writes `name.pem` and `name.key`.
    fn pair(&self, name: &str, dns: &[&str]) {
        let names: Vec<String> = dns.iter().map(|&name| name.to_owned()).collect();
        self.made(name, &CertificateParams::new(names).unwrap());
    }

    fn made(&self, name: &str, params: &CertificateParams) {
        let key = KeyPair::generate().unwrap();
        std::fs::write(self.at(&format!("{name}.pem")), params.self_signed(&key).unwrap().pem()).unwrap();
        std::fs::write(self.at(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    /// A gateway that shows `pairs`, a file name for each certificate and each key, one a line.
    fn gateway(&self, pairs: &[(&str, &str)]) -> String {
        let mut text =
            "kind: Gateway\nname: edge\nlisten: 127.0.0.1:8443\ntls:\n  certificates:\n".to_owned();
        for (cert, key) in pairs {
            text += &format!("  - cert: {}\n    key: {}\n", self.at(cert), self.at(key));
        }
        text
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A server that runs until it is stopped.
struct Running {
    api: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), StartError>>,
}

async fn bound(data: &Path) -> Server {
    let mut settings = ServerSettings::new(data);
    settings.api_addr = "127.0.0.1:0".parse().unwrap();
    settings.xds_addr = settings.api_addr;
    // A server that was stopped closes its store on its own thread.
    for _ in 0..200 {
        match Server::bind(settings.clone()).await {
            Err(StartError::Store(_)) => tokio::time::sleep(Duration::from_millis(10)).await,
            bound => return bound.unwrap(),
        }
    }
    panic!("the store stays in use");
}

impl Running {
    async fn start(scratch: &Scratch) -> Self {
        Self::serve(bound(&scratch.0.join("data")).await)
    }

    fn serve(server: Server) -> Self {
        let (stop, stopped) = oneshot::channel();
        let api = server.api_addr();
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        Self { api, stop, served }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.api).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\nx-sluicegate-source: edge.yaml\r\ncontent-length: {}\r\n\r\n{body}",
            self.api,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_else(|e| panic!("{e}: {answer}")))
    }

    async fn applied(&self, text: &str) -> Value {
        let (status, answer) = self.call("POST", "/v1/apply", text).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// What is wrong with `text`, each as people see it.
    async fn refused(&self, text: &str) -> Vec<String> {
        let (status, answer) = self.call("POST", "/v1/apply", text).await;
        assert_eq!(status, 400, "{answer}");
        let text = |error: &Value| {
            let error: config::manifest::ManifestError = serde_json::from_value(error.clone()).unwrap();
            error.to_string()
        };
        answer["error"]["details"].as_array().unwrap().iter().map(text).collect()
    }

    async fn gateways(&self) -> Value {
        self.call("GET", "/v1/gateways", "").await.1["gateways"].take()
    }
}

#[tokio::test]
async fn a_gateway_is_shown_as_it_was_applied() {
    let scratch = Scratch::new("tls-shown");
    let server = Running::start(&scratch).await;
    scratch.pair("a", &["a.example", "*.a.example"]);
    scratch.pair("b", &["b.example", "c.a.example"]);
    let text = scratch.gateway(&[("a.pem", "a.key"), ("b.pem", "b.key")]);
    assert_eq!(server.applied(&text).await["changes"][0]["action"], "created");
    assert_eq!(server.applied(&text).await["changes"][0]["action"], "unchanged");
    let certificate = |name: &str| json!({"cert": scratch.at(&format!("{name}.pem")), "key": scratch.at(&format!("{name}.key"))});
    let shown = server.gateways().await;
    assert_eq!(shown[0]["tls"], json!({"certificates": [certificate("a"), certificate("b")]}));

    let clear = "kind: Gateway\nname: edge\nlisten: 127.0.0.1:8443\n";
    assert_eq!(server.applied(clear).await["changes"][0]["action"], "updated");
    assert_eq!(server.gateways().await[0].get("tls"), None);
    server.stop().await;
}

#[tokio::test]
async fn a_bad_pair_is_refused_with_its_file_line_and_field_and_nothing_is_written() {
    let scratch = Scratch::new("tls-bad");
    let server = Running::start(&scratch).await;
    scratch.pair("a", &["a.example"]);
    scratch.pair("b", &["b.example"]);
    scratch.pair("again", &["z.example", "A.example"]);
    scratch.pair("nobody", &[]);
    scratch.pair("address", &["127.0.0.1"]);
    let mut old = CertificateParams::new(["old.example".to_owned()]).unwrap();
    old.not_after = rcgen::date_time_ymd(2020, 2, 29);
    scratch.made("old", &old);
    let mut young = CertificateParams::new(["young.example".to_owned()]).unwrap();
    young.not_before = rcgen::date_time_ymd(2200, 1, 1);
    young.not_after = rcgen::date_time_ymd(2201, 1, 1);
    scratch.made("young", &young);

    let ok = ("a.pem", "a.key");
    let second = |name: &str, fault: &str| format!("{}: {fault}", scratch.at(name));
    let cases = [
        (("b.pem", "a.key"), "9: tls.certificates[1].key", second("a.key", "its key does not belong")),
        (("a.key", "b.key"), "8: tls.certificates[1].cert", second("a.key", "holds no certificate")),
        (("b.pem", "none"), "9: tls.certificates[1].key", second("none", "cannot be read (No such file")),
        (("old.pem", "old.key"), "8: tls.certificates[1].cert", second("old.pem", "expired on 2020-02-29")),
        (
            ("young.pem", "young.key"),
            "8: tls.certificates[1].cert",
            second("young.pem", "is valid from 2200-01-01"),
        ),
        (("nobody.pem", "nobody.key"), "8: tls.certificates[1].cert", second("nobody.pem", "names nobody")),
        (
            ("address.pem", "address.key"),
            "8: tls.certificates[1].cert",
            second("address.pem", "has no DNS name"),
        ),
        (
            ("again.pem", "again.key"),
            "8: tls.certificates[1].cert",
            second("again.pem", "is for `a.example`, as certificates[0] is"),
        ),
    ];
    for (pair, place, expected) in &cases {
        // A document that is in order beside it is not written either.
        let text = format!(
            "{}---\nkind: Gateway\nname: other\nlisten: 127.0.0.1:1\n",
            scratch.gateway(&[ok, *pair])
        );
        let errors = server.refused(&text).await;
        let expected = format!("edge.yaml:{place}: {expected}");
        assert!(errors.len() == 1 && errors[0].starts_with(&expected), "{errors:?}\n≠ {expected}");
        assert_eq!(server.gateways().await, json!([]));
        assert_eq!(server.call("POST", "/v1/apply?dry_run=true", &text).await.0, 400);
    }
    let all = server.refused(&scratch.gateway(&[("none", "a.key"), ("old.pem", "old.key")])).await;
    assert_eq!(all.len(), 2, "every fault is told at once: {all:?}");
    let relative = scratch.gateway(&[ok]).replace(&scratch.at("a.key"), "a.key");
    let errors = server.refused(&relative).await;
    assert!(
        errors[0].starts_with("edge.yaml:7: tls.certificates[0].key: `a.key` is not an absolute"),
        "{errors:?}"
    );
    // For clients that connect to an address: they name no host.
    server.applied(&scratch.gateway(&[("address.pem", "address.key"), ok])).await;
    server.stop().await;
}

#[tokio::test]
async fn the_authority_of_a_service_is_read_too() {
    let scratch = Scratch::new("tls-authority");
    let server = Running::start(&scratch).await;
    scratch.pair("ca", &["ca.example"]);
    let service = |ca: &str| {
        let ca = scratch.at(ca);
        format!("kind: Service\nname: shop\nversions: {{v1: {{}}}}\ntls: {{ca: {ca}, sni: shop.internal}}\n")
    };
    for (ca, fault) in [("none", "cannot be read (No such file"), ("ca.key", "holds no certificate")] {
        let errors = server.refused(&service(ca)).await;
        let expected = format!("edge.yaml:4: tls.ca: {}: {fault}", scratch.at(ca));
        assert!(errors.len() == 1 && errors[0].starts_with(&expected), "{errors:?}");
    }
    server.applied(&service("ca.pem")).await;
    let (_, shown) = server.call("GET", "/v1/services/shop", "").await;
    assert_eq!(shown["tls"], json!({"ca": scratch.at("ca.pem"), "sni": "shop.internal"}));
    server.stop().await;
}

#[tokio::test]
async fn a_file_that_is_lost_later_stops_neither_other_writes_nor_a_restart() {
    let scratch = Scratch::new("tls-lost");
    let server = Running::start(&scratch).await;
    scratch.pair("a", &["a.example"]);
    scratch.pair("ca", &["ca.example"]);
    let gateway = scratch.gateway(&[("a.pem", "a.key")]);
    let service = format!(
        "kind: Service\nname: shop\nversions: {{v1: {{}}}}\ntls: {{ca: {}, sni: shop.internal}}\n",
        scratch.at("ca.pem")
    );
    let both = format!("{gateway}---\n{service}");
    server.applied(&both).await;
    std::fs::remove_file(scratch.at("a.key")).unwrap();
    std::fs::write(scratch.at("ca.pem"), "not a certificate").unwrap();

    // Neither names a file.
    server.applied("kind: Service\nname: other\nversions: {v1: {}}\n").await;
    let route = "kind: Route\nname: shop\ngateway: edge\nrules: [{service: shop}]\n";
    server.applied(route).await;
    let (status, answer) = server.call("PUT", "/v1/services/shop/split", r#"{"weights": {"v1": 7}}"#).await;
    assert_eq!(status, 200, "{answer}");
    // Whoever asks for it again learns of it.
    assert_eq!(server.refused(&both).await.len(), 2);
    server.stop().await;

    let server = bound(&scratch.0.join("data")).await;
    let files = |text: &str| vec![("edge.yaml".to_owned(), text.to_owned())];
    server.apply(files(&both), "serve -f").await.unwrap();
    scratch.pair("b", &["b.example"]);
    let changed = scratch.gateway(&[("a.pem", "a.key"), ("b.pem", "b.key")]);
    let refused = server.apply(files(&changed), "serve -f").await.unwrap_err();
    assert!(refused.message.starts_with("edge.yaml:7: tls.certificates[0].key: "), "{}", refused.message);
    let server = Running::serve(server);
    assert_eq!(server.gateways().await[0]["tls"]["certificates"].as_array().unwrap().len(), 1);
    server.stop().await;
}
