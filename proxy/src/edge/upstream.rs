//! New connections to endpoints.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

use super::stream::Stream;
use crate::{cluster::Cluster, load::EndpointLoad};

/// How long an endpoint may neither send nor take anything while a request is with it. What Envoy
/// allows a stream to be idle by default.
pub(super) const SILENCE: Duration = Duration::from_mins(5);

/// Connects to an endpoint of `cluster`. The caller bounds the time.
///
/// # Errors
/// When it cannot be connected to, or its certificate is not the one asked for: nothing was sent.
pub(super) async fn connect(cluster: &Cluster, endpoint: &EndpointLoad) -> io::Result<Stream> {
    let Some(tls) = &cluster.tls else {
        return connect_tcp(endpoint.address).await.map(Stream::Tcp);
    };
    let unread = || io::Error::other("the authorities of the cluster could not be read");
    let client = tls.client().ok_or_else(unread)?;
    // On the heap: it is large, and rare on a path that is polled often.
    let handshake = Box::pin(async {
        let tcp = connect_tcp(endpoint.address).await?;
        client.connector().connect(client.server_name(), tcp).await
    });
    let stream = handshake.await?;
    if cluster.config.http2 && stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err(io::Error::other("the endpoint does not speak HTTP/2"));
    }
    Ok(Stream::ClientTls(Box::new(stream)))
}

async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let socket = SockRef::from(&tcp);
    let keep_alive = TcpKeepalive::new().with_time(Duration::from_mins(1));
    let keep_alive = keep_alive.with_interval(Duration::from_secs(5)).with_retries(5);
    socket.set_tcp_keepalive(&keep_alive)?;
    Ok(tcp)
}
