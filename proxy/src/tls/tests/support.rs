//! Certificates made on the spot, a directory for them, and both ends of a connection.

use std::{
    fmt::Debug,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use config::{
    tls::{CertificateFiles, UpstreamTls},
    xds::listener::{ListenerCertificates, ListenerTls},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client, server};

use super::super::{ServerTls, Tls, suites};

/// How long anything may take before a test fails; only failures wait for it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that goes with its handle.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("sluicegate-tls-{name}-{:016x}", fastrand::u64(..)));
        fs::create_dir_all(&path).unwrap();
        Self(path.canonicalize().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where `<name>.crt` and `<name>.key` are.
    pub(crate) fn files(&self, name: &str) -> CertificateFiles {
        CertificateFiles { cert: self.path(&format!("{name}.crt")), key: self.path(&format!("{name}.key")) }
    }

    /// Puts `text` in the place of a file, all of it at once.
    pub(crate) fn replace(&self, path: &Path, text: &str) {
        let new = self.path(".new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Writes `pair` to `<name>.crt` and `<name>.key`, over what is there.
    pub(crate) fn write(&self, name: &str, pair: &Pair) -> CertificateFiles {
        let files = self.files(name);
        fs::write(&files.cert, &pair.cert).unwrap();
        fs::write(&files.key, &pair.key).unwrap();
        files
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// An authority of a test's own.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub(crate) struct Pair {
    pub(crate) cert: String,
    pub(crate) key: String,
    pub(crate) der: Vec<u8>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let name = format!("authority {:016x}", fastrand::u64(..));
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Pair {
        self.issue_until(names, SystemTime::now() + Duration::from_hours(24 * 365))
    }

    pub(crate) fn issue_until(&self, names: &[&str], end: SystemTime) -> Pair {
        self.issue_with(names, end, &KeyPair::generate().unwrap())
    }

    pub(crate) fn issue_with(&self, names: &[&str], end: SystemTime, key: &KeyPair) -> Pair {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = (end - Duration::from_hours(24 * 366)).into();
        params.not_after = end.into();
        let cert = params.signed_by(key, &self.issuer).unwrap();
        Pair { cert: cert.pem(), key: key.serialize_pem(), der: cert.der().to_vec() }
    }

    /// A client that trusts this authority, offers `alpn` and remembers sessions.
    pub(crate) fn client(&self, alpn: &[&str]) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        for certificate in rustls::pki_types::pem::PemObject::pem_slice_iter(self.pem.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let mut config = ClientConfig::builder_with_provider(suites::provider())
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        config
    }

    /// The same with its file, as a cluster's.
    pub(crate) fn upstream(&self, scratch: &Scratch, sni: &str) -> UpstreamTls {
        let ca = scratch.path("ca.pem");
        fs::write(&ca, &self.pem).unwrap();
        UpstreamTls { ca, sni: sni.to_owned() }
    }
}

pub(crate) fn listener(certificates: &[CertificateFiles], alpn: &[&str]) -> ListenerTls {
    ListenerTls {
        certificates: ListenerCertificates::Files(certificates.to_vec()),
        alpn: alpn.iter().map(|&name| name.to_owned()).collect(),
    }
}

/// What `tls` has a listener with `certificates` serve with.
pub(crate) fn serve(tls: &Tls, certificates: &[CertificateFiles]) -> Arc<ServerTls> {
    let prepared = tls.prepare(&listener(certificates, &["h2", "http/1.1"])).unwrap();
    tls.server(prepared).unwrap()
}

/// Both ends of a connection that has been greeted on.
pub(crate) struct Pairing {
    pub(crate) client: client::TlsStream<TcpStream>,
    pub(crate) server: server::TlsStream<TcpStream>,
}

impl Pairing {
    /// The certificate the client was shown, or remembers when it resumed.
    pub(crate) fn shown(&self) -> &[u8] {
        self.client.get_ref().1.peer_certificates().unwrap()[0].as_ref()
    }

    pub(crate) fn kind(&self) -> HandshakeKind {
        self.server.get_ref().1.handshake_kind().unwrap()
    }

    pub(crate) fn alpn(&self) -> Option<&[u8]> {
        self.client.get_ref().1.alpn_protocol()
    }

    /// One word each way. What the server sent after the handshake, tickets among it, is read then.
    pub(crate) async fn greet(&mut self) {
        let mut word = [0; 4];
        let both = async {
            self.client.write_all(b"ping").await.unwrap();
            self.server.read_exact(&mut word).await.unwrap();
            self.server.write_all(b"pong").await.unwrap();
            self.client.read_exact(&mut word).await.unwrap();
        };
        timeout(DEADLINE, both).await.unwrap();
        assert_eq!(&word, b"pong");
    }
}

/// A handshake over loopback with `name` asked for; what went wrong on either side otherwise.
pub(crate) async fn connect(
    server: &ServerTls,
    client: &Arc<ClientConfig>,
    name: &str,
) -> Result<Pairing, String> {
    let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    let accepting = async {
        let (stream, _) = socket.accept().await.unwrap();
        tokio_rustls::TlsAcceptor::from(server.config()).accept(stream).await
    };
    let connecting = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        TlsConnector::from(Arc::clone(client)).connect(name, stream).await
    };
    let (server, client) = timeout(DEADLINE, async { tokio::join!(accepting, connecting) }).await.unwrap();
    let client = client.map_err(|error| format!("client: {error}"))?;
    let server = server.map_err(|error| format!("server: {error}"))?;
    let mut pairing = Pairing { client, server };
    pairing.greet().await;
    Ok(pairing)
}

/// Waits until `value` gives what is expected.
pub(crate) async fn until<T: Debug + PartialEq>(expected: T, mut value: impl AsyncFnMut() -> T) {
    let mut last = None;
    let waiting = async {
        loop {
            let now = value().await;
            if now == expected {
                return;
            }
            last = Some(now);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let ended = timeout(DEADLINE, waiting).await;
    assert!(ended.is_ok(), "expected {expected:?}, last was {last:?}");
}
