//! A server for tests that answers with what the test wrote down, one connection an answer.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use crate::client::Client;

/// What to do with a connection once its request has been read.
pub(crate) enum Reply {
    /// Answer with this status and body, then close.
    Whole(&'static str, String),
    /// Begin an answer with this line, hold it this long, then cut the connection.
    Open(String, Duration),
}

/// Serves one reply a connection, in order; each request (head and body) can be received.
pub(crate) async fn server(replies: Vec<Reply>) -> (Client, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = Client::new(&listener.local_addr().unwrap().to_string()).unwrap();
    let (send, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        for reply in replies {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = send.send(read_request(&mut stream).await);
            match reply {
                Reply::Whole(status, body) => {
                    let length = body.len();
                    let head =
                        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n");
                    stream.write_all(format!("{head}etag: \"7\"\r\n\r\n{body}").as_bytes()).await.unwrap();
                }
                Reply::Open(line, time) => {
                    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
                    let chunk = format!("{:x}\r\n{line}\n\r\n", line.len() + 1);
                    stream.write_all(format!("{head}{chunk}").as_bytes()).await.unwrap();
                    tokio::time::sleep(time).await;
                }
            }
        }
    });
    (client, requests)
}

async fn read_request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "the client closed within a request");
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            return text.into_owned();
        }
    }
}
