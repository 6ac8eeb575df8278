//! Changes through the API, over connections that are kept: paced, or as fast as answers come.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use super::{
    plan::{Change, Step, probe_address, step},
    proxy::Shared,
};

/// Writes every change, those of one service in order. At `rate` a second, whether or not answers keep
/// up; without one, each connection sends the next when the last is answered.
pub(super) async fn write(
    api: SocketAddr,
    connections: usize,
    rate: Option<u32>,
    shared: &Arc<Shared>,
    changes: &Arc<Vec<Change>>,
) -> anyhow::Result<()> {
    let mut writers = JoinSet::new();
    // A moment for all connections to be there.
    let first = tokio::time::Instant::now() + Duration::from_millis(20);
    for number in 0..connections {
        let (shared, changes) = (Arc::clone(shared), Arc::clone(changes));
        writers.spawn(async move {
            let mut connection = Connection::open(api).await?;
            for (place, change) in changes.iter().enumerate() {
                if change.service as usize % connections != number {
                    continue;
                }
                if let Some(rate) = rate {
                    tokio::time::sleep_until(first + Duration::from_secs(1) * place as u32 / rate).await;
                }
                change.began.store(shared.plan.now_ns(), Ordering::Relaxed);
                connection.send(change).await?;
                change.answered.store(shared.plan.now_ns(), Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(written) = writers.join_next().await {
        written??;
    }
    Ok(())
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(api: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(api).await.context("cannot connect to the API")?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: vec![0; 8_192] })
    }

    async fn send(&mut self, change: &Change) -> anyhow::Result<()> {
        let path = |probe| format!("/v1/services/s{}/versions/v1/endpoints/p{probe}", change.service);
        let head = "host: sluicegate\r\ncontent-type: application/json\r\ncontent-length:";
        let request = match step(change.number) {
            Step::Put(probe) => {
                let body = format!("{{\"address\":\"{}\"}}", probe_address(probe));
                format!("PUT {} HTTP/1.1\r\n{head} {}\r\n\r\n{body}", path(probe), body.len())
            }
            Step::Remove(probe) => format!("DELETE {} HTTP/1.1\r\n{head} 0\r\n\r\n", path(probe)),
        };
        self.stream.write_all(request.as_bytes()).await?;
        self.answered().await.with_context(|| format!("change {} of s{}", change.number, change.service))
    }

    /// Reads one answer, which has to say yes.
    async fn answered(&mut self) -> anyhow::Result<()> {
        let mut filled = 0;
        loop {
            ensure!(filled < self.buffer.len(), "the answer is too long");
            let read = self.stream.read(&mut self.buffer[filled..]).await?;
            ensure!(read > 0, "the server closed the connection");
            filled += read;
            let mut headers = [httparse::EMPTY_HEADER; 32];
            let mut response = httparse::Response::new(&mut headers);
            let httparse::Status::Complete(head) = response.parse(&self.buffer[..filled])? else { continue };
            let length = response.headers.iter().find(|h| h.name.eq_ignore_ascii_case("content-length"));
            let length: usize =
                std::str::from_utf8(length.context("an answer without a length")?.value)?.parse()?;
            if filled < head + length {
                continue;
            }
            if response.code != Some(200) {
                bail!("{}", String::from_utf8_lossy(&self.buffer[..filled]));
            }
            return Ok(());
        }
    }
}
