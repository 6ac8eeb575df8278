//! grpcio (`PyPI`) as client and server, and the gRPC statuses of our own errors.

use serde_json::{Value, json};

use crate::support::{
    peer::{Serving, run, script},
    stand::{Settings, Stand},
};

async fn stand() -> (Serving, Stand) {
    let server = Serving::start("grpc_server.py").await;
    let stand = Stand::start(&Settings::new("grpc"), Some(server.address)).await;
    (server, stand)
}

/// What the client saw in one of its cases.
async fn case(stand: &Stand, name: &str) -> Value {
    let mut client = script("grpc_client.py");
    client.arg(stand.gateway.to_string()).arg(name);
    run(client).await.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_unary_call_carries_metadata_both_ways_before_and_after() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "unary").await;
    assert_eq!((&seen["status"], &seen["length"]), (&json!("OK"), &json!(5)), "{seen}");
    assert_eq!(seen["initial"]["x-initial"], "value", "{seen}");
    assert_eq!(seen["trailing"]["x-trailing"], "after", "{seen}");
    assert_eq!(seen["trailing"]["x-binary-bin"], "00ff", "{seen}");
    let seen = case(&stand, "empty").await;
    assert_eq!((&seen["status"], &seen["length"]), (&json!("OK"), &json!(0)), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_status_of_the_server_reaches_the_client_with_its_message_and_trailers() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "failing").await;
    assert_eq!(seen["status"], "FAILED_PRECONDITION", "{seen}");
    assert_eq!(seen["details"], "as asked: 100 % änders", "{seen}");
    assert_eq!(seen["trailing"]["x-trailing"], "after", "{seen}");
    // Only trailers: the status comes with the head of the response.
    let seen = case(&stand, "missing").await;
    assert_eq!((&seen["status"], &seen["details"]), (&json!("UNIMPLEMENTED"), &json!("Method not found!")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_4_and_16_mib_come_back_whole() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "large").await;
    for (call, length) in seen.as_array().unwrap().iter().zip([4 << 20, (4 << 20) + 1, 16 << 20]) {
        assert_eq!((&call["status"], &call["length"]), (&json!("OK"), &json!(length)), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_streams_in_order_and_a_client_streams_to_a_total() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "server_stream").await;
    assert_eq!(seen, json!({"in_order": true, "wide": vec![100_004; 20], "none": 0}));
    let seen = case(&stand, "client_stream").await;
    assert_eq!(seen, json!({"many": "1000 1000000", "none": "0 0"}));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_of_a_bidirectional_stream_is_passed_on_at_once() {
    let (_server, stand) = stand().await;
    let expected = json!({"rounds": 200, "left": 0, "status": "OK"});
    assert_eq!(case(&stand, "bidirectional").await, expected);
    let seen = case(&stand, "parallel_streams").await;
    assert_eq!(seen, json!(vec![expected; 8]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_reaches_the_server_and_ends_the_call_there() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "deadline").await;
    let left = seen["left"].as_f64().unwrap();
    assert!(left > 10.0 && left <= 20.0, "{seen}");
    assert_eq!(
        (&seen["none"], &seen["late"]["status"]),
        (&json!("none"), &json!("DEADLINE_EXCEEDED")),
        "{seen}"
    );
    assert_eq!(seen["told"], "yes", "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_that_the_client_cancels_ends_at_the_server() {
    let (_server, stand) = stand().await;
    let seen = case(&stand, "cancel").await;
    assert_eq!(seen, json!({"first": "first", "status": "CANCELLED", "told": "yes"}));
}

/// Without a grpc-status a client has to guess from the HTTP status, and guesses UNAVAILABLE for 503
/// and UNIMPLEMENTED for 404 by itself, so the details are what shows that the status is ours.
fn is_ours(seen: &Value, status: &str) {
    assert_eq!(seen["status"], status, "{seen}");
    let details = seen["details"].as_str().unwrap_or_default();
    assert!(!details.is_empty() && !details.contains("Received http2 header with status"), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_without_endpoints_is_unavailable_in_grpc_s_own_words() {
    let stand = Stand::start(&Settings::new("grpc"), None).await;
    is_ours(&case(&stand, "unary").await, "UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_refuses_connections_is_unavailable_in_grpc_s_own_words() {
    // Bound and not listening, so that nobody else can have it meanwhile.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let stand = Stand::start(&Settings::new("grpc"), Some(socket.local_addr().unwrap())).await;
    is_ours(&case(&stand, "unary").await, "UNAVAILABLE");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_without_a_route_is_unimplemented_in_grpc_s_own_words() {
    let settings = Settings { matches: "{path_prefix: /other.Service}", ..Settings::new("grpc") };
    let stand = Stand::start(&settings, None).await;
    is_ours(&case(&stand, "unary").await, "UNIMPLEMENTED");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_dies_in_the_middle_of_a_stream_ends_the_call_with_a_status() {
    let (mut server, stand) = stand().await;
    let mut client = script("grpc_client.py");
    client.arg(stand.gateway.to_string()).arg("cut");
    client.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut client = client.spawn().unwrap();
    let mut lines = tokio::io::BufReader::new(client.stdout.take().unwrap());
    let mut line = String::new();
    let read = async |lines: &mut tokio::io::BufReader<_>, line: &mut String| {
        line.clear();
        let reading = tokio::io::AsyncBufReadExt::read_line(lines, line);
        tokio::time::timeout(crate::support::SOON, reading).await.unwrap().unwrap();
        line.trim().to_owned()
    };
    assert_eq!(read(&mut lines, &mut line).await, "\"first\"");
    server.process.kill().await;
    let seen: Value = serde_json::from_str(&read(&mut lines, &mut line).await).unwrap();
    // A stream that broke must not look like one that was complete.
    let status = seen["status"].as_str().unwrap();
    assert!(["UNAVAILABLE", "INTERNAL", "CANCELLED", "UNKNOWN"].contains(&status), "{seen}");
}
