//! A proxy follows its control plane: what changes there changes where requests go.

mod support;

use config::{Protocol, xds::ResourceType};
use support::{
    Connection, Running,
    backend::{Backend, dead_address},
    control::{Control, cluster, endpoints, listener, routes},
    eventually, get,
};

const ANY: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A control plane with gateway `edge`, all to `shop/v1` with the given endpoints, and a proxy.
async fn world(addresses: &[std::net::SocketAddr]) -> (Control, Running, std::net::SocketAddr) {
    let control = Control::start().await;
    control.set([
        cluster("shop/v1", Protocol::Http),
        endpoints("shop/v1", addresses),
        listener("edge", ANY),
        routes("edge", "shop", &[("v1", 1)]),
    ]);
    let proxy = Running::start(control.servers(), |_| {}).await;
    let edge = proxy.listener("edge").await;
    control.acknowledged().await;
    (control, proxy, edge)
}

#[tokio::test]
async fn an_endpoint_that_is_added_is_served_and_one_that_is_removed_is_not() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let (control, proxy, edge) = world(&[one.address]).await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");
    assert_eq!(get(proxy.admin, "admin", "/readyz").await.unwrap().status, 200);

    control.set([endpoints("shop/v1", &[one.address, two.address])]);
    control.acknowledged().await;
    eventually("the second is served", async || {
        (get(edge, "a.com", "/").await.unwrap().text() == "two").then_some(())
    })
    .await;

    control.set([endpoints("shop/v1", &[two.address])]);
    control.acknowledged().await;
    let before = one.requests();
    let mut connection = Connection::open(edge).await.unwrap();
    for _ in 0..50 {
        assert_eq!(connection.get("a.com", "/").await.unwrap().text(), "two");
    }
    assert_eq!(one.requests(), before, "an acknowledged removal admits no request");
    proxy.stopped().await;
}
