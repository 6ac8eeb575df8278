//! Connections that have asked once and now do nothing: what does each cost in memory?

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::load::{Outcome, say_ready};
use crate::bench::usage::Usage;

/// Requests over one connection before memory is read, for what a subject allocates only once.
const FIRST: usize = 200;
/// Time for a subject to let buffers go.
const SETTLE: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(10);

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub target: SocketAddr,
    pub host: String,
    pub connections: usize,
    pub watched: Vec<u32>,
}

/// Opens the connections, and prints an [`Outcome`] as JSON.
pub fn run(order: &str) -> anyhow::Result<()> {
    let order: Order = serde_json::from_str(order)?;
    let request = format!("GET /b/1024 HTTP/1.1\r\nHost: {}\r\n\r\n", order.host);
    let mut first = connect(order.target)?;
    for _ in 0..FIRST {
        ask(&mut first, &request)?;
    }
    say_ready()?;
    let before = Usage::of(&order.watched);
    let mut connections = Vec::with_capacity(order.connections);
    let mut outcome = Outcome::default();
    for _ in 0..order.connections {
        let asked = connect(order.target).and_then(|mut stream| {
            ask(&mut stream, &request)?;
            Ok(stream)
        });
        match asked {
            Ok(stream) => connections.push(stream),
            Err(e) => {
                outcome.failures += 1;
                outcome.first_failure.get_or_insert_with(|| format!("{e:#}"));
            }
        }
    }
    std::thread::sleep(SETTLE);
    let after = Usage::of(&order.watched);
    // Who closes idle connections early saves their memory, and has not done what was asked.
    let closed = connections.iter_mut().filter_map(|stream| is_closed(stream).then_some(())).count();
    if closed > 0 {
        outcome.failures += closed as u64;
        outcome.first_failure.get_or_insert_with(|| "an idle connection was closed".to_owned());
    }
    outcome.requests = connections.len() as u64;
    outcome.rss_bytes = after.rss_bytes;
    let grown = after.rss_bytes.saturating_sub(before.rss_bytes);
    outcome.idle_bytes = Some(grown as f64 / connections.len().max(1) as f64);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn connect(target: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, SOON)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, request: &str) -> anyhow::Result<()> {
    stream.write_all(request.as_bytes())?;
    let (mut response, mut buffer) = (Vec::new(), [0; 4_096]);
    loop {
        let n = stream.read(&mut buffer)?;
        anyhow::ensure!(n > 0, "closed before the response");
        response.extend_from_slice(&buffer[..n]);
        let head = crate::bench::http1::head(&response).map_err(anyhow::Error::msg)?;
        let Some(head) = head else { continue };
        let status = crate::bench::http1::status(head.start).context("no status")?;
        anyhow::ensure!(status == 200, "status {status}");
        if response.len() >= head.length + 1_024 {
            return Ok(());
        }
    }
}

fn is_closed(stream: &mut TcpStream) -> bool {
    let would_block = |e: &std::io::Error| e.kind() == std::io::ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_err() || !matches!(stream.read(&mut [0; 1]), Err(e) if would_block(&e))
}
