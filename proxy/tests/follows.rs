//! A proxy follows its control plane: what changes there changes where requests go.

mod support;

use std::net::SocketAddr;

use config::{Protocol, xds::ResourceType};
use support::{
    ANY, Connection, Running, World,
    backend::{Backend, Dead, free_address},
    control::{Control, cluster, endpoints, listener, routes},
    eventually, get,
};
use tokio::net::TcpListener;

#[tokio::test]
async fn an_endpoint_that_is_added_is_served_and_one_that_is_removed_is_not() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let World { control, proxy, edge } = World::start(&[one.address]).await;
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
        assert_eq!(connection.get_soon("a.com", "/").await.unwrap().text(), "two");
    }
    assert_eq!(one.requests(), before, "an acknowledged removal admits no request");
    proxy.stopped().await;
}

#[tokio::test]
async fn a_split_shifts_traffic_with_the_acknowledgement() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    control.set([
        cluster("shop/v2", Protocol::Http),
        endpoints("shop/v2", &[two.address]),
        routes("edge", "shop", &[("v1", 1), ("v2", 0)]),
    ]);
    control.acknowledged().await;
    let mut connection = Connection::open(edge).await.unwrap();
    for (weights, range) in [([1, 0], 0..1), ([1, 1], 60..140), ([0, 1], 200..201), ([9, 1], 5..45)] {
        control.set([routes("edge", "shop", &[("v1", weights[0]), ("v2", weights[1])])]);
        control.acknowledged().await;
        let mut second = 0;
        for _ in 0..200 {
            second += usize::from(connection.get_soon("a.com", "/").await.unwrap().text() == "two");
        }
        assert!(range.contains(&second), "{weights:?}: {second} of 200");
    }
    proxy.stopped().await;
}

#[tokio::test]
async fn listeners_are_added_moved_and_removed_while_running() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    let mut kept = Connection::open(edge).await.unwrap();
    kept.get_soon("a.com", "/").await.unwrap();

    control.set([listener("second", ANY), routes("second", "shop", &[("v1", 1)])]);
    let second = proxy.listener("second").await;
    assert_eq!(get(second, "a.com", "/").await.unwrap().text(), "one");

    // Moved: the new address serves, the old one no longer accepts, an idle connection is closed.
    let free = free_address();
    control.set([listener("edge", free)]);
    eventually("it has moved", async || (proxy.listener_now("edge").await? == free).then_some(())).await;
    assert_eq!(get(free, "a.com", "/").await.unwrap().text(), "one");
    eventually("the old address is closed", async || get(edge, "a.com", "/").await.is_err().then_some(()))
        .await;
    eventually("the idle connection is closed", async || kept.is_closed().then_some(())).await;

    // Another listener takes over the address in the same change.
    control.remove([(ResourceType::Listener, "edge"), (ResourceType::RouteConfiguration, "edge")]);
    control.set([listener("heir", free), routes("heir", "shop", &[("v1", 1)])]);
    eventually("it was taken over", async || (proxy.listener_now("heir").await? == free).then_some(())).await;
    assert_eq!(get(free, "a.com", "/").await.unwrap().text(), "one");

    control.remove([(ResourceType::Listener, "second")]);
    control.acknowledged().await;
    eventually("it is removed", async || get(second, "a.com", "/").await.is_err().then_some(())).await;
    assert_eq!(proxy.listener_now("second").await, None);
    proxy.stopped().await;
}

#[tokio::test]
async fn an_address_in_use_is_refused_by_name_and_taken_when_it_is_free() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    control.set([listener("second", address), routes("second", "shop", &[("v1", 1)])]);
    let reason = control.nack(ResourceType::Listener).await;
    assert!(reason.contains("`second`") && reason.contains(&address.to_string()), "{reason}");
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one", "the rest goes on");

    drop(taken);
    assert_eq!(proxy.listener("second").await, address);
    assert_eq!(get(address, "a.com", "/").await.unwrap().text(), "one");
    proxy.stopped().await;
}

#[tokio::test]
async fn a_listener_whose_new_address_overlaps_its_old_one_moves() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    let everywhere = SocketAddr::from(([0, 0, 0, 0], free_address().port()));
    let narrow = SocketAddr::from(([127, 0, 0, 1], everywhere.port()));
    for address in [everywhere, narrow] {
        control.set([listener("edge", address)]);
        eventually("it has moved", async || (proxy.listener_now("edge").await? == address).then_some(()))
            .await;
        assert_eq!(get(narrow, "a.com", "/").await.unwrap().text(), "one");
    }
    assert_ne!(edge, narrow);
    proxy.stopped().await;
}

#[tokio::test]
async fn traffic_goes_on_without_a_server_and_nothing_held_is_sent_again() {
    let one = Backend::start("one").await;
    let World { control, proxy, edge } = World::start(&[one.address]).await;
    let address = control.kill().await;
    eventually("it notices", async || (proxy.metric("xds_connected").await < 0.5).then_some(())).await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");

    let back = Control::start_on(address).await;
    back.set([
        cluster("shop/v1", Protocol::Http),
        endpoints("shop/v1", &[one.address]),
        listener("edge", ANY),
        routes("edge", "shop", &[("v1", 1)]),
    ]);
    eventually("it is back", async || (proxy.metric("xds_connected").await > 0.5).then_some(())).await;
    eventually("it asked for all types", async || (back.requests().len() >= 4).then_some(())).await;
    assert_eq!(back.sent(), 0);
    assert_eq!(proxy.listener("edge").await, edge);

    back.set([
        cluster("shop/v2", Protocol::Http),
        endpoints("shop/v2", &[one.address]),
        routes("edge", "shop", &[("v1", 1), ("v2", 1)]),
    ]);
    eventually("it has what is new", async || (back.sent() >= 3).then_some(())).await;
    back.acknowledged().await;
    assert_eq!(back.sent(), 3, "only what is new");
    proxy.stopped().await;
}

#[tokio::test]
async fn the_next_server_is_used_when_the_first_is_away() {
    let one = Backend::start("one").await;
    let dead = Dead::new();
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let servers = vec![dead.address.to_string(), control.address.to_string()];
    let proxy = Running::start(servers, |_| {}).await;
    let edge: SocketAddr = proxy.listener("edge").await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");
    proxy.stopped().await;
}

#[tokio::test]
async fn the_last_good_configuration_serves_when_no_server_answers() {
    let one = Backend::start("one").await;
    let file = support::temporary("last-good");
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let with_file = |s: &mut config::bootstrap::ProxySettings| s.last_good = Some(file.path.clone());
    let proxy = Running::start(control.servers(), with_file).await;
    proxy.listener("edge").await;
    control.acknowledged().await;
    eventually("it is saved", async || (proxy.metric("last_good_writes").await > 0.0).then_some(())).await;
    proxy.stopped().await;
    let address = control.kill().await;

    let proxy = Running::start(vec![address.to_string()], with_file).await;
    let edge = proxy.listener("edge").await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");
    assert!(proxy.metric("on_last_good").await > 0.5);
    assert_eq!(get(proxy.admin, "admin", "/readyz").await.unwrap().status, 200);

    // A server that comes back is told what is held, and takes over.
    let two = Backend::start("two").await;
    let back = Control::start_on(address).await;
    back.set(support::shop(&[two.address]));
    eventually("the change arrives", async || {
        (get(edge, "a.com", "/").await.unwrap().text() == "two").then_some(())
    })
    .await;
    assert_eq!(back.sent(), 1, "only the assignment has changed");
    assert!(proxy.metric("on_last_good").await < 0.5);
    proxy.stopped().await;
}

#[tokio::test]
async fn the_last_good_configuration_serves_when_a_server_accepts_but_never_answers() {
    let one = Backend::start("one").await;
    let file = support::temporary("silent");
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let with_file = |s: &mut config::bootstrap::ProxySettings| s.last_good = Some(file.path.clone());
    let proxy = Running::start(control.servers(), with_file).await;
    proxy.listener("edge").await;
    eventually("it is saved", async || (proxy.metric("last_good_writes").await > 0.0).then_some(())).await;
    proxy.stopped().await;

    let silent = Control::start().await;
    silent.silence();
    let proxy = Running::start(silent.servers(), with_file).await;
    let edge = proxy.listener("edge").await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");
    eventually("it says what it holds", async || {
        silent.requests().iter().any(|r| r.initial_resource_versions.contains_key("shop/v1")).then_some(())
    })
    .await;
    proxy.stopped().await;
}

#[tokio::test]
async fn a_gateway_that_moved_to_an_address_that_became_free_is_there_after_a_restart_without_a_server() {
    let one = Backend::start("one").await;
    let file = support::temporary("moved");
    let control = Control::start().await;
    control.set(support::shop(&[one.address]));
    let with_file = |s: &mut config::bootstrap::ProxySettings| s.last_good = Some(file.path.clone());
    let proxy = Running::start(control.servers(), with_file).await;
    proxy.listener("edge").await;
    control.acknowledged().await;

    let taken = free_address();
    let holder = TcpListener::bind(taken).await.unwrap();
    control.set([listener("edge", taken)]);
    control.nack(ResourceType::Listener).await;
    drop(holder);
    eventually("it has moved", async || (proxy.listener_now("edge").await? == taken).then_some(())).await;
    let address = control.kill().await;
    proxy.stopped().await; // the last state is written

    let proxy = Running::start(vec![address.to_string()], with_file).await;
    assert_eq!(proxy.listener("edge").await, taken);
    assert_eq!(get(taken, "a.com", "/").await.unwrap().text(), "one");
    proxy.stopped().await;
}

#[tokio::test]
async fn the_last_good_configuration_serves_when_the_servers_answer_is_cut_short() {
    let one = Backend::start("one").await;
    let file = saved_shop(&[one.address]).await;
    let partial = Control::start().await;
    partial.mute([ResourceType::RouteConfiguration]);
    partial.set(support::shop(&[one.address]));
    let proxy = Running::start(partial.servers(), |s| s.last_good = Some(file.path.clone())).await;
    eventually("a part has come", async || (proxy.metric("xds_updates").await > 0.0).then_some(())).await;
    partial.kill().await;
    let edge = proxy.listener("edge").await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");
    proxy.stopped().await;
}

#[tokio::test]
async fn the_last_good_configuration_serves_when_the_servers_answer_stops_in_the_middle() {
    let one = Backend::start("one").await;
    let file = saved_shop(&[one.address]).await;
    let partial = Control::start().await;
    partial.mute([ResourceType::RouteConfiguration]);
    partial.set(support::shop(&[one.address]));
    let proxy = Running::start(partial.servers(), |s| s.last_good = Some(file.path.clone())).await;
    let edge = proxy.listener("edge").await;
    // It listens a moment before, as its routes have been waited for in vain.
    eventually("the saved routes", async || {
        (get(edge, "a.com", "/").await.unwrap().text() == "one").then_some(())
    })
    .await;
    proxy.stopped().await;
}

#[tokio::test]
async fn the_next_server_is_used_when_the_first_is_silent() {
    let one = Backend::start("one").await;
    let (silent, control) = (Control::start().await, Control::start().await);
    silent.silence();
    control.set(support::shop(&[one.address]));
    let servers = vec![silent.address.to_string(), control.address.to_string()];
    let proxy = Running::start(servers, |_| {}).await;
    let edge = proxy.listener("edge").await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().text(), "one");
    proxy.stopped().await;
}

#[tokio::test]
async fn the_next_server_is_used_after_the_first_was_silent_and_the_file_stood_in() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let file = saved_shop(&[one.address]).await;
    let (silent, control) = (Control::start().await, Control::start().await);
    silent.silence();
    control.set(support::shop(&[two.address]));
    let servers = vec![silent.address.to_string(), control.address.to_string()];
    let proxy = Running::start(servers, |s| s.last_good = Some(file.path.clone())).await;
    let edge = proxy.listener("edge").await;
    eventually("the second server's configuration", async || {
        (get(edge, "a.com", "/").await.unwrap().text() == "two").then_some(())
    })
    .await;
    assert_eq!(silent.streams(), 1);
    proxy.stopped().await;
}

#[tokio::test]
async fn the_next_server_is_used_when_the_first_answers_and_closes_again_and_again() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let (flapping, control) = (Control::start().await, Control::start().await);
    flapping.flap();
    flapping.set(support::shop(&[one.address]));
    control.set(support::shop(&[two.address]));
    let servers = vec![flapping.address.to_string(), control.address.to_string()];
    let proxy = Running::start(servers, |_| {}).await;
    let edge = proxy.listener("edge").await;
    eventually("the second server's configuration", async || {
        (get(edge, "a.com", "/").await.unwrap().text() == "two").then_some(())
    })
    .await;
    proxy.stopped().await;
}

/// The file that a proxy leaves which has followed [`support::shop`].
async fn saved_shop(addresses: &[SocketAddr]) -> support::Temporary {
    let file = support::temporary("saved");
    let control = Control::start().await;
    control.set(support::shop(addresses));
    let proxy = Running::start(control.servers(), |s| s.last_good = Some(file.path.clone())).await;
    proxy.listener("edge").await;
    control.acknowledged().await;
    proxy.stopped().await; // the last state is written
    file
}

#[tokio::test]
async fn a_damaged_file_is_ignored() {
    let file = support::temporary("damaged");
    std::fs::write(&file.path, b"sluicegate-last-good 1\n0123456789abcdef\nnonsense").unwrap();
    let dead = Dead::new();
    let proxy =
        Running::start(vec![dead.address.to_string()], |s| s.last_good = Some(file.path.clone())).await;
    let answer = get(proxy.admin, "admin", "/readyz").await.unwrap();
    assert_eq!((answer.status, answer.text().trim()), (503, "no listeners from a server yet"));
    proxy.stopped().await;
}
