//! A client that sends bytes as they are, and reads what comes back.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout_at},
};

/// What came back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// Of the final responses, in order; 0 for bytes that are no response of HTTP/1.
    pub(crate) statuses: Vec<u16>,
    /// The other side has closed the connection.
    pub(crate) closed: bool,
}

/// How the bytes are handed to the kernel.
#[derive(Clone, Debug)]
pub(crate) enum Pieces {
    Whole,
    /// In pieces of 1 to 8 bytes, by this seed.
    Small(u64),
}

/// How long to listen for more than the expected responses.
const MORE: Duration = Duration::from_millis(100);

/// Sends `bytes`, and reads until the connection is closed, or `expected` responses have come and no
/// other follows, or `patience` is over.
pub(crate) async fn exchange(
    to: SocketAddr,
    bytes: &[u8],
    pieces: &Pieces,
    expected: usize,
    patience: Duration,
) -> Answers {
    let stream = TcpStream::connect(to).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reading, mut writing) = stream.into_split();
    let sending = async {
        // A proxy may refuse, and close, before it has read everything.
        match pieces {
            Pieces::Whole => drop(writing.write_all(bytes).await),
            Pieces::Small(seed) => {
                let mut rng = fastrand::Rng::with_seed(*seed);
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (piece, after) = rest.split_at(rng.usize(1..=8).min(rest.len()));
                    if writing.write_all(piece).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                    rest = after;
                }
            }
        }
        // Kept open: a half-closed connection is one that the client has given up on, for some.
        writing
    };
    let receiving = async {
        let mut received = Vec::new();
        let (mut buffer, mut deadline, mut complete) = (vec![0; 16 << 10], Instant::now() + patience, false);
        loop {
            match timeout_at(deadline, reading.read(&mut buffer)).await {
                Ok(Ok(n @ 1..)) => received.extend_from_slice(&buffer[..n]),
                Ok(_) => return Answers { statuses: statuses(&received), closed: true },
                Err(_) => return Answers { statuses: statuses(&received), closed: false },
            }
            if !complete && statuses(&received).len() >= expected {
                (complete, deadline) = (true, Instant::now() + MORE);
            }
        }
    };
    tokio::pin!(sending);
    tokio::select! {
        answers = receiving => answers,
        // Never first: sending goes on beside receiving, and ends nothing.
        () = async { let _open = sending.await; std::future::pending().await } => unreachable!(),
    }
}

/// The statuses of the complete final responses in `bytes`.
fn statuses(mut bytes: &[u8]) -> Vec<u16> {
    let mut statuses = Vec::new();
    while !bytes.is_empty() {
        if !bytes.starts_with(b"HTTP/1.") {
            statuses.push(0);
            break;
        }
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else { break };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let body = &bytes[end + 4..];
        let status = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        let length = head.lines().find_map(|l| l.strip_prefix("content-length:"));
        let length = match length.and_then(|l| l.trim().parse::<usize>().ok()) {
            _ if status < 200 => 0,
            Some(length) => length,
            // In chunks, of which none here holds these bytes in its data; or until the end.
            None if head.contains("transfer-encoding: chunked") => {
                let Some(last) = body.windows(5).position(|w| w == b"0\r\n\r\n") else { break };
                last + 5
            }
            None => body.len(),
        };
        let Some(rest) = body.get(length..) else { break };
        if status >= 200 {
            statuses.push(status);
        }
        bytes = rest;
    }
    statuses
}
