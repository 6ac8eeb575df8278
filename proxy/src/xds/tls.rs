//! How a server is reached over TLS. Files are read for every connection, so that the next one has
//! what replaced them.

use std::time::Duration;

use config::tls::ClientTls;
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use rustls::pki_types::ServerName;

/// Makes connections with TLS and HTTP/2, to servers whose certificates are for `name`, or else for
/// the host they are called by.
///
/// # Errors
/// When a file cannot be used or the name is none; the text says which.
pub(super) async fn connector(
    tls: ClientTls,
    name: Option<String>,
    timeout: Duration,
) -> Result<HttpsConnector<HttpConnector>, String> {
    let reading = tokio::task::spawn_blocking(move || tls.read());
    let config = reading.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(timeout));
    tcp.set_nodelay(true);
    tcp.enforce_http(false);
    let builder = HttpsConnectorBuilder::new().with_tls_config(config).https_only();
    let builder = match name {
        None => builder,
        Some(name) => {
            let fixed = ServerName::try_from(name.clone()).map_err(|_| {
                format!("--xds-name {name}: is neither a DNS name nor an IP address; give what the server's certificate is for")
            })?;
            builder.with_server_name_resolver(FixedServerNameResolver::new(fixed))
        }
    };
    Ok(builder.enable_http2().wrap_connector(tcp))
}
