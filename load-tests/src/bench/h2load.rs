//! TLS and HTTP/2 clients: h2load (Debian's `nghttp2-client`), and nghttpd (`nghttp2-server`) as the
//! upstream that speaks HTTP/2.

use std::{
    net::SocketAddr,
    path::Path,
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context;

use super::{histogram::Histogram, pinned, program::load::Outcome, scenario::Tls, usage::Usage};
use crate::{peers, peers::haproxy::free_port, process::Process, temp::TempDir};

const CONNECTIONS: usize = 32;
/// After the window, so that it closes under load.
const MARGIN: Duration = Duration::from_millis(300);
/// A gRPC message: not compressed, 100 bytes long.
const MESSAGE: usize = 100;

#[derive(Clone, Debug)]
pub struct Order {
    pub target: SocketAddr,
    pub host: String,
    pub tls: Tls,
    pub warm_up: Duration,
    pub window: Duration,
    pub watched: Vec<u32>,
    pub cores: Vec<usize>,
}

/// Runs h2load and reads the subject's CPU time when the window opens and closes.
///
/// Its log has each request's start and duration, so that those of the window can be told.
pub async fn run(order: &Order) -> anyhow::Result<Outcome> {
    let binary = peers::find("h2load").context("h2load is not installed (nghttp2-client)")?;
    let directory = TempDir::new();
    let log = directory.join("requests");
    let duration = order.warm_up + order.window + MARGIN;
    let mut command = pinned::command(&order.cores, binary);
    command.args(["-t", "1", "-c", &CONNECTIONS.to_string()]);
    command.args(["-D", &format!("{}ms", duration.as_millis())]).arg("--log-file").arg(&log);
    command.arg(format!("--connect-to={}", order.target));
    match order.tls {
        Tls::Http1 => drop(command.args(["--h1", "-m", "1"])),
        Tls::Http2(streams) => drop(command.args(["-m", &streams.to_string()])),
        Tls::Grpc(streams) => {
            let message = directory.join("message");
            std::fs::write(&message, grpc_message())?;
            command.args(["-m", &streams.to_string(), "-H", "content-type: application/grpc"]);
            command.args(["-H", "te: trailers", "-d"]).arg(message);
        }
    }
    let path = if matches!(order.tls, Tls::Grpc(_)) { "echo" } else { "b/1024" };
    command.arg(format!("https://{}/{path}", order.host));
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    if let Tls::Grpc(_) = order.tls {
        check_grpc(order, &directory.join("message")).await?;
    }
    let child = command.spawn()?;

    tokio::time::sleep(order.warm_up).await;
    let before = Usage::of(&order.watched);
    let opened = now_us();
    tokio::time::sleep(order.window).await;
    let after = Usage::of(&order.watched);
    let closed = now_us();
    let output = child.wait_with_output().await?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(output.status.success(), "h2load: {text}{}", String::from_utf8_lossy(&output.stderr));

    let mut outcome = Outcome { seconds: (closed - opened) as f64 / 1e6, ..Outcome::default() };
    outcome.used(before, after);
    read_log(&std::fs::read_to_string(&log)?, opened..closed, &mut outcome);
    if outcome.requests == 0 && outcome.failures == 0 {
        outcome.failures = 1;
        outcome.first_failure = Some("h2load could not make one".to_owned());
    }
    Ok(outcome)
}

/// A proxy's own refusal of a gRPC request is a 200 too, and h2load sees no trailers: nghttp looks once.
async fn check_grpc(order: &Order, message: &Path) -> anyhow::Result<()> {
    let binary = peers::find("nghttp").context("nghttp is not installed (nghttp2-client)")?;
    let mut command = tokio::process::Command::new(binary);
    command.args(["-v", "-H", "content-type: application/grpc", "-H", "te: trailers", "-H"]);
    command.arg(format!(":authority: {}", order.host)).arg("-d").arg(message);
    command.arg(format!("https://{}/echo", order.target)).stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(5), command.output()).await??;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(text.contains("grpc-status: 0"), "the gRPC call did not succeed");
    Ok(())
}

/// Lines of start in µs since 1970, status, and duration in µs.
fn read_log(log: &str, window: std::ops::Range<u64>, outcome: &mut Outcome) {
    let mut histogram = Histogram::new();
    for line in log.lines() {
        let fields: Vec<i64> = line.split('\t').filter_map(|field| field.parse().ok()).collect();
        let [start, status, duration] = fields[..] else { continue };
        if status != 200 {
            outcome.failures += 1;
            outcome.first_failure.get_or_insert_with(|| format!("status {status}"));
        } else if window.contains(&((start + duration) as u64)) {
            histogram.record(duration as u64 * 1_000);
        }
    }
    outcome.requests = histogram.count();
    outcome.latencies(&histogram);
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// Length-prefixed, as gRPC frames its messages.
fn grpc_message() -> Vec<u8> {
    let mut message = vec![0];
    message.extend_from_slice(&(MESSAGE as u32).to_be_bytes());
    message.resize(5 + MESSAGE, b'm');
    message
}

/// An upstream that speaks HTTP/2 without TLS and ends each response with `grpc-status: 0`.
pub struct GrpcUpstream {
    pub addresses: Vec<SocketAddr>,
    pub processes: Vec<Process>,
    _directory: TempDir,
}

impl GrpcUpstream {
    /// Several ports, each a process; a subject that uses one does not pay for the others.
    pub async fn start(ports: usize, cores: &[usize]) -> anyhow::Result<Self> {
        let binary = peers::find("nghttpd").context("nghttpd is not installed (nghttp2-server)")?;
        let directory = TempDir::new();
        std::fs::write(directory.join("echo"), grpc_message())?;
        let (mut addresses, mut processes) = (Vec::new(), Vec::new());
        for _ in 0..ports {
            let address = free_port().await;
            let mut command = pinned::command(cores, &binary);
            command.args(["--no-tls", "--address=127.0.0.1", "--trailer=grpc-status: 0", "-d"]);
            command.arg(directory.path()).arg(address.port().to_string());
            let process = Process::start(command, Path::new("/dev/null"));
            crate::until("nghttpd to listen", Duration::from_secs(10), async || {
                tokio::net::TcpStream::connect(address).await.ok()
            })
            .await;
            addresses.push(address);
            processes.push(process);
        }
        Ok(Self { addresses, processes, _directory: directory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_windows_requests_count_and_every_failure() {
        let mut outcome = Outcome::default();
        let log = "90\t200\t5\n95\t200\t10\n100\t200\t50\n190\t200\t20\n10\t502\t1\n20\t-1\t1\n";
        read_log(log, 100..200, &mut outcome);
        assert_eq!((outcome.requests, outcome.failures), (2, 2));
    }
}
