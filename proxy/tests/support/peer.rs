//! One side of a conversation, byte by byte.

use std::time::Duration;

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::DEADLINE;

/// One side of a conversation.
pub struct Peer<S> {
    pub stream: S,
    pub seen: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Peer<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, seen: Vec::new() }
    }

    pub async fn say(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    /// Everything up to and with `end`, which is then forgotten.
    pub async fn hears(&mut self, end: &str) -> String {
        let end = end.as_bytes();
        timeout(DEADLINE, async {
            loop {
                if let Some(at) = self.seen.windows(end.len()).position(|window| window == end) {
                    let rest = self.seen.split_off(at + end.len());
                    return String::from_utf8(std::mem::replace(&mut self.seen, rest)).unwrap();
                }
                let n = self.stream.read_buf(&mut self.seen).await.unwrap();
                assert!(n > 0, "closed after {:?}", String::from_utf8_lossy(&self.seen));
            }
        })
        .await
        .unwrap_or_else(|_| panic!("no {:?} in time", String::from_utf8_lossy(end)))
    }

    pub async fn head(&mut self) -> String {
        self.hears("\r\n\r\n").await.to_ascii_lowercase()
    }

    /// So many bytes of a body.
    pub async fn takes(&mut self, length: usize) -> Vec<u8> {
        let mut body = std::mem::take(&mut self.seen);
        timeout(DEADLINE, async {
            while body.len() < length {
                assert!(self.stream.read_buf(&mut body).await.unwrap() > 0, "closed after {}", body.len());
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{length} bytes do not come"));
        self.seen = body.split_off(length);
        body
    }

    /// Everything up to the end of the connection; whether that was a reset.
    pub async fn end(&mut self) -> (Vec<u8>, bool) {
        // Well before any time of the proxy's own has passed.
        self.end_within(Duration::from_secs(5)).await
    }

    /// The same as text, whenever it comes.
    pub async fn ends(&mut self) -> (String, bool) {
        let (rest, reset) = self.end_within(DEADLINE).await;
        (String::from_utf8_lossy(&rest).into_owned(), reset)
    }

    async fn end_within(&mut self, time: Duration) -> (Vec<u8>, bool) {
        let mut rest = std::mem::take(&mut self.seen);
        let read = timeout(time, self.stream.read_to_end(&mut rest)).await;
        let read = read.unwrap_or_else(|_| panic!("open after {:?}", String::from_utf8_lossy(&rest)));
        (rest, read.is_err())
    }
}
