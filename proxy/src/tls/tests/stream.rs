use std::{io, net::Shutdown, sync::Arc};

use rustls::{ClientConfig, HandshakeKind, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf},
    task::JoinHandle,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    super::{ServerStream, ServerTls, Tls, suites},
    support::{Ca, DEADLINE, Scratch, serve},
};

/// How a wire treats the bytes of a client.
#[derive(Clone, Copy)]
enum Wire {
    Whole,
    /// In pieces of up to so many bytes.
    Pieces(usize),
    /// One bit in the client's n-th byte is wrong. The wire ends with what came with it, or the server
    /// might wait for ever for what a wrong length promises.
    Broken(usize),
}

struct Ends {
    client: io::Result<TlsStream<TcpStream>>,
    server: io::Result<ServerStream>,
    wire: JoinHandle<()>,
}

async fn pair() -> (TcpStream, TcpStream) {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (one, other) = tokio::join!(TcpStream::connect(socket.local_addr().unwrap()), socket.accept());
    let (one, other) = (one.unwrap(), other.unwrap().0);
    one.set_nodelay(true).unwrap();
    other.set_nodelay(true).unwrap();
    (one, other)
}

/// A handshake over a wire.
async fn connect(tls: &ServerTls, config: &Arc<ClientConfig>, wire: Wire, seed: u64) -> Ends {
    let (client, near) = pair().await;
    let (far, server) = pair().await;
    let (from_client, to_client) = near.into_split();
    let (from_server, to_server) = far.into_split();
    let wire = tokio::spawn(async move {
        let back = carry(from_server, to_client, Wire::Whole, seed);
        tokio::join!(carry(from_client, to_server, wire, seed), back);
    });
    let name = ServerName::try_from("a.test").unwrap();
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, client);
    // An end that fails lets go of its socket, so that the other learns of it.
    let both = async { tokio::join!(connecting, ServerStream::accept(server, tls.config())) };
    let (client, server) = timeout(DEADLINE, both).await.unwrap();
    Ends { client, server, wire }
}

async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, wire: Wire, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut room = vec![0; 32_768];
    let mut carried = 0;
    while let Ok(n @ 1..) = from.read(&mut room).await {
        let mut broken = false;
        if let Wire::Broken(at) = wire
            && (carried..carried + n).contains(&at)
        {
            room[at - carried] ^= 1 << rng.u8(..8);
            broken = true;
        }
        carried += n;
        let mut rest = &room[..n];
        while !rest.is_empty() {
            let piece = match wire {
                Wire::Pieces(most) => rng.usize(1..=most).min(rest.len()),
                _ => rest.len(),
            };
            if to.write_all(&rest[..piece]).await.is_err() {
                return;
            }
            rest = &rest[piece..];
            tokio::task::yield_now().await;
        }
        if broken {
            break;
        }
    }
    let _ = to.shutdown().await;
}

fn bytes(rng: &mut fastrand::Rng, n: usize) -> Vec<u8> {
    (0..n).map(|_| rng.u8(..)).collect()
}

/// Sends `sent` in writes of random sizes, some of them of two parts, flushing now and then.
async fn send(mut to: impl AsyncWrite + Unpin, sent: &[u8], seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut rest = sent;
    while !rest.is_empty() {
        let n = (1 << rng.u32(0..18)).min(rest.len());
        let (first, second) = rest[..n].split_at(rng.usize(0..=n));
        rest =
            &rest[to.write_vectored(&[io::IoSlice::new(first), io::IoSlice::new(second)]).await.unwrap()..];
        if rng.u8(..4) == 0 {
            to.flush().await.unwrap();
        }
    }
    to.shutdown().await.unwrap();
}

/// Reads to the end, in reads of random sizes.
async fn receive(mut from: impl AsyncRead + Unpin, seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let (mut received, mut room) = (Vec::new(), vec![0; 1 << 17]);
    loop {
        let n = from.read(&mut room[..1 << rng.u32(0..18)]).await.unwrap();
        if n == 0 {
            return received;
        }
        received.extend_from_slice(&room[..n]);
    }
}

fn client(ca: &Ca, version: &'static rustls::SupportedProtocolVersion) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(rustls::pki_types::pem::PemObject::from_pem_slice(ca.pem.as_bytes()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(suites::provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn listener(scratch: &Scratch, ca: &Ca) -> Arc<ServerTls> {
    serve(&Tls::default(), &[scratch.write("a", &ca.issue(&["a.test"]))])
}

#[tokio::test]
async fn bytes_arrive_both_ways_at_once_however_they_are_cut() {
    let (scratch, ca) = (Scratch::new("both-ways"), Ca::new());
    let tls = listener(&scratch, &ca);
    for (round, version) in
        [&rustls::version::TLS13, &rustls::version::TLS12].into_iter().cycle().take(12).enumerate()
    {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let wire = [Wire::Whole, Wire::Pieces(7_000), Wire::Pieces(40)][round / 2 % 3];
        let most = if matches!(wire, Wire::Pieces(40)) { 60_000 } else { 1_500_000 };
        let (up, down) = (rng.usize(..most), rng.usize(..most));
        let (up, down) = (bytes(&mut rng, up), bytes(&mut rng, down));
        let ends = connect(&tls, &client(&ca, version), wire, seed).await;
        let (client, server) = (ends.client.unwrap(), ends.server.unwrap());
        assert_eq!(server.state().protocol_version(), Some(version.version));
        let ((from_client, to_client), (from_server, to_server)) = (split(server), split(client));
        let (up_again, down_again) = (up.clone(), down.clone());
        // Each half in a task of its own: neither may take the other's wake-up.
        let tasks = (
            tokio::spawn(async move { send(to_server, &up_again, seed).await }),
            tokio::spawn(async move { send(to_client, &down_again, !seed).await }),
            tokio::spawn(receive(from_server, seed)),
            tokio::spawn(receive(from_client, !seed)),
        );
        let all = async { tokio::join!(tasks.0, tasks.1, tasks.2, tasks.3) };
        let (sent, sent_back, got_down, got_up) = timeout(DEADLINE, all).await.unwrap();
        sent.unwrap();
        sent_back.unwrap();
        assert!(got_down.unwrap() == down, "seed {seed}");
        assert!(got_up.unwrap() == up, "seed {seed}");
    }
}

#[tokio::test]
async fn an_idle_connection_holds_no_buffer() {
    let (scratch, ca) = (Scratch::new("idle"), Ca::new());
    let ends =
        connect(&listener(&scratch, &ca), &client(&ca, &rustls::version::TLS13), Wire::Pieces(100), 1).await;
    let (mut client, mut server) = (ends.client.unwrap(), ends.server.unwrap());
    for n in [4, 40_000] {
        let (sent, mut received) = (vec![7; n], vec![0; n]);
        let both = async { tokio::join!(client.write_all(&sent), server.read_exact(&mut received)) };
        timeout(DEADLINE, both).await.unwrap().0.unwrap();
        let both = async { tokio::join!(server.write_all(&sent), client.read_exact(&mut received)) };
        timeout(DEADLINE, both).await.unwrap().0.unwrap();
        timeout(DEADLINE, server.flush()).await.unwrap().unwrap();
        assert_eq!(server.held(), 0);
    }
}

#[tokio::test]
async fn a_second_connection_resumes_the_first() {
    let (scratch, ca) = (Scratch::new("resumes"), Ca::new());
    let (tls, config) = (listener(&scratch, &ca), client(&ca, &rustls::version::TLS13));
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        let ends = connect(&tls, &config, Wire::Whole, 1).await;
        let (mut client, mut server) = (ends.client.unwrap(), ends.server.unwrap());
        assert_eq!(server.state().handshake_kind(), Some(expected));
        server.write_all(b"x").await.unwrap();
        assert_eq!(timeout(DEADLINE, client.read_u8()).await.unwrap().unwrap(), b'x'); // and the ticket
    }
}

#[tokio::test]
async fn keys_that_the_client_changes_are_followed() {
    let (scratch, ca) = (Scratch::new("keys"), Ca::new());
    let wire = Wire::Pieces(3);
    let ends = connect(&listener(&scratch, &ca), &client(&ca, &rustls::version::TLS13), wire, 1).await;
    let (mut client, mut server) = (ends.client.unwrap(), ends.server.unwrap());
    for _ in 0..20 {
        client.get_mut().1.refresh_traffic_keys().unwrap();
        client.write_all(b"x").await.unwrap();
        client.flush().await.unwrap();
        assert_eq!(timeout(DEADLINE, server.read_u8()).await.unwrap().unwrap(), b'x');
        server.write_all(b"y").await.unwrap();
        assert_eq!(timeout(DEADLINE, client.read_u8()).await.unwrap().unwrap(), b'y');
    }
}

#[tokio::test]
async fn an_end_that_was_said_is_told_from_one_that_was_not() {
    let (scratch, ca) = (Scratch::new("ends"), Ca::new());
    let (tls, config) = (listener(&scratch, &ca), client(&ca, &rustls::version::TLS13));
    let mut room = [0; 9];

    let ends = connect(&tls, &config, Wire::Whole, 1).await;
    let (mut client, mut server) = (ends.client.unwrap(), ends.server.unwrap());
    client.shutdown().await.unwrap();
    assert_eq!(timeout(DEADLINE, server.read(&mut room)).await.unwrap().unwrap(), 0);
    server.write_all(b"still here").await.unwrap();
    server.shutdown().await.unwrap();
    let mut rest = Vec::new();
    timeout(DEADLINE, client.read_to_end(&mut rest)).await.unwrap().unwrap();
    assert_eq!(rest, b"still here");

    let ends = connect(&tls, &config, Wire::Whole, 1).await;
    let (client, mut server) = (ends.client.unwrap(), ends.server.unwrap());
    let client = client.into_inner().0.into_std().unwrap();
    client.shutdown(Shutdown::Both).unwrap();
    let error = timeout(DEADLINE, server.read(&mut room)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test]
async fn whatever_bit_is_wrong_the_connection_ends_with_an_error_or_without_harm() {
    let (scratch, ca) = (Scratch::new("broken"), Ca::new());
    let tls = listener(&scratch, &ca);
    let mut rng = fastrand::Rng::new();
    println!("seed {}", rng.get_seed());
    for round in 0..400 {
        let version = if round % 2 == 0 { &rustls::version::TLS13 } else { &rustls::version::TLS12 };
        let (at, seed) = (rng.usize(..1_200), rng.u64(..));
        let ends = connect(&tls, &client(&ca, version), Wire::Broken(at), seed).await;
        if let (Ok(mut client), Ok(mut server)) = (ends.client, ends.server) {
            let talking = async {
                let speak = async {
                    let _ = client.write_all(&[7; 600]).await;
                    let _ = client.shutdown().await;
                };
                let mut received = Vec::new();
                let (heard, ()) = tokio::join!(server.read_to_end(&mut received), speak);
                assert!(heard.is_err() || received == [7; 600], "byte {at}");
            };
            timeout(DEADLINE, talking).await.unwrap();
        }
        timeout(DEADLINE, ends.wire).await.unwrap().unwrap(); // both ends let go
    }
}

#[tokio::test]
async fn what_is_not_tls_is_answered_with_an_alert() {
    let (scratch, ca) = (Scratch::new("not-tls"), Ca::new());
    let (mut client, server) = pair().await;
    client.write_all(b"GET / HTTP/1.1\r\nhost: a.test\r\n\r\n").await.unwrap();
    let accepting = ServerStream::accept(server, listener(&scratch, &ca).config());
    let error = timeout(DEADLINE, accepting).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    let mut answer = Vec::new();
    let _ = timeout(DEADLINE, client.read_to_end(&mut answer)).await.unwrap();
    assert_eq!(answer.first(), Some(&21), "an alert (RFC 8446 §5.1): {answer:?}");
}
