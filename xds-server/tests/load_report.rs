//! Load reports over real sockets: a whole server, and a client that speaks byte-true LRS.

#![allow(clippy::unwrap_used, reason = "in a test an unwrap is an assertion")]

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use config::{
    bootstrap::ServerSettings,
    xds::load::{Mark, NUMBERED, SENDS_ALL_CLUSTERS},
};
use envoy_types::pb::{
    envoy::{
        config::{
            core::v3::{
                Address, Locality, Node, SocketAddress, address::Address as AddressKind,
                socket_address::PortSpecifier,
            },
            endpoint::v3::{
                ClusterStats, EndpointLoadMetricStats, UpstreamEndpointStats, UpstreamLocalityStats,
                cluster_stats::DroppedRequests,
            },
        },
        service::load_stats::v3::{
            LoadStatsRequest, LoadStatsResponse, load_reporting_service_client::LoadReportingServiceClient,
        },
    },
    google::protobuf,
};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Endpoint};
use xds_server::{Server, StartError};

/// A server that runs until it is stopped.
struct Running {
    api: SocketAddr,
    xds: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), StartError>>,
    data: PathBuf,
}

impl Running {
    async fn start(name: &str) -> Self {
        let data = std::env::temp_dir().join(format!("sluicegate-load-{name}-{}", std::process::id()));
        let mut settings = ServerSettings::new(&data);
        settings.api_addr = "127.0.0.1:0".parse().unwrap();
        settings.xds_addr = settings.api_addr;
        settings.load_interval = Duration::from_millis(250);
        let server = Server::bind(settings).await.unwrap();
        let (api, xds) = (server.api_addr(), server.xds_addr());
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(server.serve(async {
            let _ = stopped.await;
        }));
        let running = Self { api, xds, stop, served, data };
        let versions = "{v1: {endpoints: [\"127.0.0.1:9\"]}, v2: {}}";
        let text =
            format!("kind: Service\nname: shop\nversions: {versions}\nsplit: {{weights: {{v1: 1}}}}\n");
        running.apply(&text).await;
        running
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.served.await.unwrap().unwrap();
        let _ = std::fs::remove_dir_all(&self.data);
    }

    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.api).await.unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            self.api,
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn apply(&self, text: &str) {
        let (status, answer) = self.call("POST", "/v1/apply", text).await;
        assert_eq!(status, 200, "{answer}");
    }

    async fn load(&self) -> Value {
        serde_json::from_str(&self.call("GET", "/v1/load", "").await.1).unwrap()
    }

    /// Waits until `/v1/load` is as asked.
    async fn until(&self, what: &str, is: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let load = self.load().await;
            if is(&load) {
                return load;
            }
            assert!(Instant::now() < deadline, "waited for {what}: {load:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn metric(&self, name: &str) -> u64 {
        let metrics = self.call("GET", "/metrics", "").await.1;
        let line = metrics.lines().find(|line| line.starts_with(&format!("sluicegate_xds_{name} ")));
        let line = line.unwrap_or_else(|| panic!("no {name} in {metrics}"));
        line.rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

/// One stream of a client.
struct Client {
    requests: mpsc::Sender<LoadStatsRequest>,
    responses: Streaming<LoadStatsResponse>,
    numbered: bool,
}

impl Client {
    async fn open(xds: SocketAddr, node: Node) -> Self {
        let channel = Endpoint::from_shared(format!("http://{xds}")).unwrap().connect().await.unwrap();
        let (requests, receiver) = mpsc::channel(16);
        requests.try_send(LoadStatsRequest { node: Some(node), cluster_stats: Vec::new() }).unwrap();
        let mut client = LoadReportingServiceClient::new(channel);
        let opened = client.stream_load_stats(ReceiverStream::new(receiver)).await.unwrap();
        let numbered = opened.metadata().contains_key(NUMBERED);
        Self { requests, responses: opened.into_inner(), numbered }
    }

    async fn send(&self, cluster_stats: Vec<ClusterStats>) {
        self.requests.send(LoadStatsRequest { node: None, cluster_stats }).await.unwrap();
    }

    async fn send_numbered(&self, boot: &str, sequence: u64, cluster_stats: Vec<ClusterStats>) {
        let node = Some(marked(boot, sequence));
        self.requests.send(LoadStatsRequest { node, cluster_stats }).await.unwrap();
    }

    async fn next(&mut self) -> Result<Option<LoadStatsResponse>, Status> {
        tokio::time::timeout(Duration::from_secs(10), self.responses.message()).await.expect("a response")
    }

    async fn response(&mut self) -> LoadStatsResponse {
        self.next().await.unwrap().unwrap()
    }
}

fn named(id: &str) -> Node {
    let client_features = vec![SENDS_ALL_CLUSTERS.to_owned()];
    Node { id: id.to_owned(), client_features, ..Node::default() }
}

fn marked(boot: &str, sequence: u64) -> Node {
    let mark = Mark { boot: boot.to_owned(), sequence, more: false };
    Node { metadata: Some(mark.encode()), ..named("edge-1") }
}

fn stats(cluster: &str, issued: u64, in_progress: u64) -> ClusterStats {
    let address = AddressKind::SocketAddress(SocketAddress {
        address: "127.0.0.1".to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(9)),
        ..SocketAddress::default()
    });
    let endpoint = UpstreamEndpointStats {
        address: Some(Address { address: Some(address) }),
        total_issued_requests: issued,
        total_successful_requests: issued,
        total_requests_in_progress: in_progress,
        ..UpstreamEndpointStats::default()
    };
    let locality = UpstreamLocalityStats {
        locality: Some(Locality { zone: "z1".to_owned(), ..Locality::default() }),
        total_issued_requests: issued,
        total_successful_requests: issued,
        total_requests_in_progress: in_progress,
        load_metric_stats: vec![EndpointLoadMetricStats {
            metric_name: "queue".to_owned(),
            num_requests_finished_with_metric: issued,
            total_metric_value: issued as f64 * 1.5,
        }],
        upstream_endpoint_stats: vec![endpoint],
        ..UpstreamLocalityStats::default()
    };
    ClusterStats {
        cluster_name: cluster.to_owned(),
        upstream_locality_stats: vec![locality],
        total_dropped_requests: 1,
        dropped_requests: vec![DroppedRequests { category: "overload".to_owned(), dropped_count: 1 }],
        load_report_interval: Some(protobuf::Duration { seconds: 0, nanos: 500_000_000 }),
        ..ClusterStats::default()
    }
}

#[tokio::test]
async fn a_report_is_shown_by_version_locality_endpoint_and_proxy_and_outlives_its_reporter() {
    let server = Running::start("shown").await;
    let mut client = Client::open(server.xds, named("envoy-1")).await;
    let first = client.response().await;
    assert!(first.send_all_clusters && first.report_endpoint_granularity && first.clusters.is_empty());
    assert_eq!(first.load_reporting_interval.unwrap().nanos, 250_000_000);
    client.send(vec![stats("shop/v1", 10, 4), stats("xds", 3, 0)]).await;
    let load = server.until("the report", |load| load["versions"][0]["requests"] == 10).await;
    let version = &load["versions"][0];
    assert_eq!((&version["in_progress"], &version["rps"]), (&4.into(), &20.0.into()), "{load:#}");
    assert_eq!((&version["dropped"], &version["dropped_for"]["overload"]), (&1.into(), &1.into()));
    assert_eq!(version["localities"][0]["locality"], "z1");
    assert_eq!(version["endpoints"][0]["id"], "static-127.0.0.1:9");
    assert_eq!(
        (&version["endpoints"][0]["requests"], &version["endpoints"][0]["in_progress"]),
        (&10.into(), &4.into())
    );
    assert_eq!(version["metrics"]["queue"]["average"], 1.5);
    assert_eq!(
        (&version["proxies"][0]["node"], &version["proxies"][0]["requests"]),
        (&"envoy-1".into(), &10.into())
    );
    assert_eq!(load["unknown"]["requests"], 3);
    let (_, metrics) = server.call("GET", "/metrics", "").await;
    let series = "sluicegate_xds_load_requests_total{service=\"shop\",version=\"v1\"} 10\n";
    assert!(metrics.contains(series), "{metrics}");

    // Its last report, and it leaves at once.
    client.send(vec![stats("shop/v1", 5, 0)]).await;
    drop(client.requests);
    while client.responses.message().await.unwrap().is_some() {}
    let load = server.until("it to leave", |load| load["reporters"][0]["streams"] == 0).await;
    let version = &load["versions"][0];
    assert_eq!((&version["requests"], &version["in_progress"]), (&15.into(), &0.into()), "{load:#}");
    server.stop().await;
}

#[tokio::test]
async fn a_numbered_report_is_acknowledged_and_counted_once_on_whichever_stream_it_comes() {
    let server = Running::start("numbered").await;
    let mut first = Client::open(server.xds, marked("run-1", 0)).await;
    assert!(first.numbered);
    first.response().await;
    first.send_numbered("run-1", 1, vec![stats("shop/v1", 10, 4)]).await;
    first.response().await;
    // The acknowledgement was lost, so it thinks; the first stream is not closed.
    let mut second = Client::open(server.xds, marked("run-1", 0)).await;
    second.response().await;
    second.send_numbered("run-1", 1, vec![stats("shop/v1", 10, 4)]).await;
    second.response().await;
    second.send_numbered("run-1", 2, vec![stats("shop/v1", 7, 2)]).await;
    second.response().await;
    let load = server.load().await;
    let version = &load["versions"][0];
    assert_eq!((&version["requests"], &version["in_progress"]), (&17.into(), &2.into()), "{load:#}");
    assert_eq!(server.metric("load_reports_repeated_total").await, 1);
    // Another run of it begins anew.
    let mut other = Client::open(server.xds, marked("run-2", 0)).await;
    other.response().await;
    other.send_numbered("run-2", 1, vec![stats("shop/v1", 3, 0)]).await;
    other.response().await;
    assert_eq!(server.load().await["versions"][0]["requests"], 20);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_cannot_report_all_is_told_the_names_and_told_again_when_they_change() {
    let server = Running::start("names").await;
    let mut client = Client::open(server.xds, Node { id: "old".to_owned(), ..Node::default() }).await;
    let first = client.response().await;
    assert_eq!(
        (first.send_all_clusters, first.clusters),
        (false, vec!["shop/v1".to_owned(), "shop/v2".to_owned()])
    );
    server.apply("kind: Service\nname: cart\nversions: {v1: {}}\n").await;
    let next = client.response().await;
    assert_eq!(next.clusters, ["cart/v1", "shop/v1", "shop/v2"]);
    server.stop().await;
}

#[tokio::test]
async fn a_report_beyond_the_bound_ends_its_stream_and_no_other() {
    let server = Running::start("bound").await;
    let mut good = Client::open(server.xds, named("good")).await;
    good.response().await;
    let mut bad = Client::open(server.xds, named("bad")).await;
    bad.response().await;
    let many = (0..20_000).map(|i| stats(&format!("stranger-{i}/v1"), 1, 0)).collect();
    bad.send(many).await;
    let status = loop {
        match bad.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the stream ended without a reason"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
    good.send(vec![stats("shop/v2", 2, 0)]).await;
    server.until("the good one's report", |load| load["versions"][0]["requests"] == 2).await;
    assert_eq!(server.metric("load_streams_refused_total").await, 1);
    assert_eq!(server.metric("load_requests_unknown_total").await, 0);
    server.stop().await;
}

#[tokio::test]
async fn a_query_for_what_does_not_exist_says_so() {
    let server = Running::start("query").await;
    for (query, status) in [
        ("service=shop", 200),
        ("service=shop&version=v1", 200),
        ("service=none", 404),
        ("service=shop&version=v9", 404),
        ("version=v1", 400),
        ("service=No", 400),
        ("x=1", 400),
    ] {
        let answer = server.call("GET", &format!("/v1/load?{query}"), "").await;
        assert_eq!(answer.0, status, "{query}: {}", answer.1);
    }
    server.stop().await;
}
