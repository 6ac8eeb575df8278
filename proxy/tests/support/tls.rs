//! An authority of a test's own, its certificate for [`NAME`] in files, and both ends of TLS.

use std::{fs, path::PathBuf, sync::Arc};

use config::{CertificateFiles, Certificates, GatewayTls, UpstreamTls, xds::ResourceType};
use prost::Message;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client};

/// Whom the certificate is for.
pub const NAME: &str = "shop.test";

/// An authority and what it signed. Its files go with it.
pub struct Authority {
    directory: PathBuf,
    root: CertificateDer<'static>,
    leaf: CertificateDer<'static>,
    key: String,
}

impl Drop for Authority {
    fn drop(&mut self) {
        _ = fs::remove_dir_all(&self.directory);
    }
}

impl Authority {
    pub fn new() -> Self {
        let directory = std::env::temp_dir().join(format!("sluicegate-edge-tls-{:016x}", fastrand::u64(..)));
        fs::create_dir_all(&directory).unwrap();
        let directory = directory.canonicalize().unwrap();
        let root_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority of a test");
        let root = params.self_signed(&root_key).unwrap();
        let issuer = Issuer::new(params, root_key);
        let key = KeyPair::generate().unwrap();
        let leaf = CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        fs::write(directory.join("ca.pem"), root.pem()).unwrap();
        fs::write(directory.join("leaf.crt"), leaf.pem()).unwrap();
        fs::write(directory.join("leaf.key"), key.serialize_pem()).unwrap();
        Self { directory, root: root.der().clone(), leaf: leaf.der().clone(), key: key.serialize_pem() }
    }

    /// What an endpoint shakes hands with.
    pub fn acceptor(&self) -> TlsAcceptor {
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![self.leaf.clone()], key)
            .unwrap();
        TlsAcceptor::from(Arc::new(config))
    }

    /// Shakes hands as a client that trusts it.
    pub async fn connect(
        &self,
        stream: TcpStream,
        version: &'static SupportedProtocolVersion,
    ) -> client::TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from(NAME).unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    /// A listener that shows the certificate.
    pub fn listener(&self, name: &str, listen: std::net::SocketAddr) -> (ResourceType, String, Vec<u8>) {
        let files =
            CertificateFiles { cert: self.directory.join("leaf.crt"), key: self.directory.join("leaf.key") };
        let tls = Some(GatewayTls { certificates: Certificates::Files(vec![files]) });
        let gateway = config::Gateway { name: name.parse().unwrap(), listen, tls };
        (ResourceType::Listener, name.to_owned(), config::xds::listener::encode(&gateway).encode_to_vec())
    }

    /// A cluster whose endpoints show the certificate.
    pub fn cluster(&self, name: &str, protocol: config::Protocol) -> (ResourceType, String, Vec<u8>) {
        let tls = UpstreamTls { ca: self.directory.join("ca.pem"), sni: NAME.to_owned() };
        let value = config::xds::cluster::encode(&name.parse().unwrap(), protocol, Some(&tls));
        (ResourceType::Cluster, name.to_owned(), value.encode_to_vec())
    }
}
