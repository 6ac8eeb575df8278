//! TLS handshakes: a new connection each time, one request over it, full or resumed.
//!
//! Threads that block: what a handshake costs dwarfs what they do.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, SignatureScheme, StreamOwned,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use serde::{Deserialize, Serialize};

use super::load::{Outcome, say_ready};
use crate::bench::{histogram::Histogram, http1, usage::Usage};

const SOON: Duration = Duration::from_secs(5);
/// States of the window.
const BEFORE: u8 = 0;
const OPEN: u8 = 1;
const CLOSED: u8 = 2;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub target: SocketAddr,
    pub host: String,
    pub resumed: bool,
    /// Connections at a time.
    pub threads: usize,
    pub warm_up: Duration,
    pub window: Duration,
    pub watched: Vec<u32>,
}

/// Shakes hands as `order` says and prints the [`Outcome`] as JSON.
pub fn run(order: &str) -> anyhow::Result<()> {
    let order: Order = serde_json::from_str(order)?;
    let state = Arc::new(AtomicU8::new(BEFORE));
    let threads: Vec<_> = (0..order.threads)
        .map(|_| {
            let (order, state) = (order.clone(), Arc::clone(&state));
            std::thread::spawn(move || connect_again_and_again(&order, &state))
        })
        .collect();
    say_ready()?;
    std::thread::sleep(order.warm_up);
    let before = Usage::of(&order.watched);
    state.store(OPEN, Ordering::SeqCst);
    let opened = Instant::now();
    std::thread::sleep(order.window);
    state.store(CLOSED, Ordering::SeqCst);
    let after = Usage::of(&order.watched);
    let mut outcome = Outcome { seconds: opened.elapsed().as_secs_f64(), ..Outcome::default() };
    outcome.used(before, after);
    let mut histogram = Histogram::new();
    for thread in threads {
        let Ok((own, failures, first)) = thread.join() else { anyhow::bail!("a client thread panicked") };
        histogram.add(&own);
        outcome.failures += failures;
        outcome.first_failure = outcome.first_failure.or(first);
    }
    outcome.requests = histogram.count();
    outcome.latencies(&histogram);
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

fn connect_again_and_again(order: &Order, state: &AtomicU8) -> (Histogram, u64, Option<String>) {
    // Each thread has its own tickets: TLS 1.3 uses each of them once.
    let config = Arc::new(config(order.resumed));
    let (mut histogram, mut failures, mut first, mut connections) = (Histogram::new(), 0, None, 0_u64);
    while state.load(Ordering::SeqCst) != CLOSED {
        let start = Instant::now();
        match connect_once(order, &config) {
            Ok(kind) => {
                let resumed = kind == HandshakeKind::Resumed;
                if resumed != order.resumed && connections > 0 {
                    failures += 1;
                    first.get_or_insert_with(|| format!("the handshake was {kind:?}"));
                } else if state.load(Ordering::SeqCst) == OPEN {
                    histogram.record(start.elapsed().as_nanos() as u64);
                }
            }
            Err(e) => {
                failures += 1;
                first.get_or_insert_with(|| format!("{e:#}"));
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        connections += 1;
    }
    (histogram, failures, first)
}

fn connect_once(order: &Order, config: &Arc<ClientConfig>) -> anyhow::Result<HandshakeKind> {
    let socket = TcpStream::connect_timeout(&order.target, SOON)?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SOON))?;
    let client = ClientConnection::new(Arc::clone(config), ServerName::try_from(order.host.clone())?)?;
    let mut stream = StreamOwned::new(client, socket);
    write!(stream, "GET /b/0 HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", order.host)?;
    let (mut response, mut buffer) = (Vec::new(), [0; 2_048]);
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => response.extend_from_slice(&buffer[..n]),
            // Closed without close_notify, after a response that says its own length.
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(e) => return Err(e.into()),
        }
    }
    let head = http1::head(&response).map_err(anyhow::Error::msg)?;
    let status = head.and_then(|head| http1::status(head.start));
    anyhow::ensure!(status == Some(200), "the response is not 200");
    stream.conn.handshake_kind().ok_or_else(|| anyhow::anyhow!("no handshake"))
}

fn config(resumed: bool) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let trusting = Arc::new(Trusting(Arc::clone(&provider)));
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites of both versions")
        .dangerous()
        .with_custom_certificate_verifier(trusting)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    if !resumed {
        config.resumption = Resumption::disabled();
    }
    config
}

/// Believes everything: the client's work is not what is measured, and the certificate is our own.
#[derive(Debug)]
struct Trusting(Arc<CryptoProvider>);

impl ServerCertVerifier for Trusting {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
