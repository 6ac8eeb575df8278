//! A proxy follows endpoints one by one (LEDS).

mod support;

use std::net::SocketAddr;

use config::{
    Protocol,
    xds::{ResourceType, leds},
};
use prost::Message;
use support::{
    ANY, Connection, Running,
    backend::Backend,
    control::{Control, cluster, collections, endpoints, listener, member, routes},
    eventually, get,
};

type Resource = (ResourceType, String, Vec<u8>);

/// Most bytes that one change of an endpoint may take to a proxy and back.
const BYTES: usize = 300;

/// Gateway `edge` on `shop/v1`, whose endpoints are in a collection without a zone.
fn shop(members: &[(&str, SocketAddr)]) -> Vec<Resource> {
    let members = members.iter().map(|(id, address)| member("shop/v1", "", id, *address));
    let others = [
        cluster("shop/v1", Protocol::Http),
        collections("shop/v1", &[""]),
        listener("edge", ANY),
        routes("edge", "shop", &[("v1", 1)]),
    ];
    others.into_iter().chain(members).collect()
}

async fn start(control: &Control, members: &[(&str, SocketAddr)]) -> (Running, SocketAddr) {
    control.set(shop(members));
    let proxy = Running::start(control.servers(), |_| {}).await;
    let edge = proxy.listener("edge").await;
    control.acknowledged().await;
    (proxy, edge)
}

/// Who answers, out of several requests over one connection; none may fail.
async fn answers(connection: &mut Connection) -> Vec<String> {
    let mut answers = Vec::new();
    for _ in 0..30 {
        let answer = connection.get_soon("a.com", "/").await.expect("an answer");
        assert_eq!(answer.status, 200);
        answers.push(answer.text());
    }
    answers.sort();
    answers.dedup();
    answers
}

#[tokio::test]
async fn a_member_that_is_added_is_served_and_one_that_is_removed_is_not() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    let (proxy, edge) = start(&control, &[("one", one.address)]).await;
    assert_eq!(control.requests()[0].node.as_ref().unwrap().client_features, [leds::CLIENT_FEATURE]);
    let mut connection = Connection::open(edge).await.unwrap();
    assert_eq!(answers(&mut connection).await, ["one"]);

    let sent = control.sent();
    control.set([member("shop/v1", "", "two", two.address)]);
    control.acknowledged().await;
    let acknowledgement = control.requests().last().unwrap().encoded_len();
    assert!(control.size() + acknowledgement <= BYTES, "{} and {acknowledgement}", control.size());
    assert_eq!(control.sent(), sent + 1);
    assert_eq!(answers(&mut connection).await, ["one", "two"]);

    let gone = member("shop/v1", "", "one", one.address).1;
    control.remove([(ResourceType::LbEndpoint, gone.as_str())]);
    control.acknowledged().await;
    let before = one.requests();
    assert_eq!(answers(&mut connection).await, ["two"]);
    assert_eq!(one.requests(), before, "an acknowledged removal admits no request");
    assert!(control.size() <= BYTES, "{}", control.size());
    proxy.stopped().await;
}

#[tokio::test]
async fn a_member_that_moves_is_found_at_its_new_address_and_one_that_is_refused_stays_where_it_was() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    let (proxy, edge) = start(&control, &[("a", one.address)]).await;
    let mut connection = Connection::open(edge).await.unwrap();
    control.set([member("shop/v1", "", "a", two.address)]);
    control.acknowledged().await;
    assert_eq!(answers(&mut connection).await, ["two"]);

    let (kind, name, _) = member("shop/v1", "", "a", one.address);
    control.set([(kind, name.clone(), vec![0xff]), member("shop/v1", "", "b", one.address)]);
    let reason = control.nack(ResourceType::LbEndpoint).await;
    assert!(reason.contains(&name), "{reason}");
    assert_eq!(answers(&mut connection).await, ["one", "two"], "the rest is applied");
    proxy.stopped().await;
}

#[tokio::test]
async fn no_request_fails_while_endpoints_go_to_other_zones_and_to_assignments_and_back() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    let (proxy, edge) = start(&control, &[("any", one.address)]).await;
    let mut connection = Connection::open(edge).await.unwrap();
    let zones = ["x", "y", ""];
    for round in 0..9 {
        let (from, to) = (zones[(round + 2) % 3], zones[round % 3]);
        let at = if round % 2 == 0 { two.address } else { one.address };
        control.set([collections("shop/v1", &[to]), member("shop/v1", to, "any", at)]);
        assert!(!answers(&mut connection).await.is_empty());
        control.acknowledged().await;
        let gone = member("shop/v1", from, "any", at).1;
        control.remove([(ResourceType::LbEndpoint, gone.as_str())]);
        assert_eq!(answers(&mut connection).await, [if round % 2 == 0 { "two" } else { "one" }]);
        if round % 4 == 3 {
            control.set([endpoints("shop/v1", &[one.address, two.address])]);
            control.acknowledged().await;
            assert_eq!(answers(&mut connection).await, ["one", "two"]);
        }
    }
    assert!(proxy.metric("warming_timeouts").await < 0.5);
    proxy.stopped().await;
}

#[tokio::test]
async fn what_is_in_flight_stays_counted_while_other_members_come_and_go() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    let (proxy, edge) = start(&control, &[("one", one.address)]).await;
    let waiting = tokio::spawn(async move { get(edge, "a.com", "/wait").await.unwrap().text() });
    let in_flight = async || {
        let clusters = proxy.json("/clusters").await;
        let endpoints = clusters[0]["endpoints"].as_array().unwrap().clone();
        let one =
            endpoints.iter().find(|e| e["id"] == "one").map(|e| (e["state"].clone(), e["in_flight"].clone()));
        one.map(|(state, count)| (state.as_str().unwrap().to_owned(), count.as_u64().unwrap()))
    };
    let becomes = async |state: &str, count: u64| {
        let wanted = Some((state.to_owned(), count));
        eventually("in flight", async || (in_flight().await == wanted).then_some(())).await;
    };
    becomes("ready", 1).await;
    let other = member("shop/v1", "", "two", two.address);
    control.set([other.clone()]);
    control.acknowledged().await;
    control.remove([(ResourceType::LbEndpoint, other.1.as_str())]);
    control.acknowledged().await;
    assert_eq!(in_flight().await, Some(("ready".to_owned(), 1)));

    control.set([other]);
    let own = member("shop/v1", "", "one", one.address).1;
    control.remove([(ResourceType::LbEndpoint, own.as_str())]);
    control.acknowledged().await;
    assert_eq!(in_flight().await, Some(("removed".to_owned(), 1)), "it finishes what it has");
    one.release.send_replace(true);
    assert_eq!(waiting.await.unwrap(), "one");
    proxy.idle("shop/v1").await;
    assert_eq!(in_flight().await, None);
    proxy.stopped().await;
}

#[tokio::test]
async fn a_new_stream_brings_the_difference_only_and_an_empty_collection_is_told() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let control = Control::start().await;
    let (proxy, edge) = start(&control, &[("one", one.address), ("two", two.address)]).await;
    let address = control.kill().await;
    eventually("it notices", async || (proxy.metric("xds_connected").await < 0.5).then_some(())).await;
    let mut connection = Connection::open(edge).await.unwrap();
    assert_eq!(answers(&mut connection).await, ["one", "two"]);

    let back = Control::start_on(address).await;
    back.set(shop(&[("two", two.address)]));
    eventually("it is back", async || (proxy.metric("xds_connected").await > 0.5).then_some(())).await;
    eventually("the first has gone", async || (answers(&mut connection).await == ["two"]).then_some(()))
        .await;
    assert_eq!(back.sent(), 0, "only the removal");

    let last = member("shop/v1", "", "two", two.address).1;
    back.remove([(ResourceType::LbEndpoint, last.as_str())]);
    back.acknowledged().await;
    assert_eq!(get(edge, "a.com", "/").await.unwrap().status, 503);
    proxy.stopped().await;
}

#[tokio::test]
async fn the_last_good_configuration_has_the_members() {
    let (one, two) = (Backend::start("one").await, Backend::start("two").await);
    let file = support::temporary("leds");
    let control = Control::start().await;
    control.set(shop(&[("one", one.address), ("two", two.address)]));
    let with_file = |s: &mut config::bootstrap::ProxySettings| s.last_good = Some(file.path.clone());
    let proxy = Running::start(control.servers(), with_file).await;
    proxy.listener("edge").await;
    control.acknowledged().await;
    let address = control.kill().await;
    proxy.stopped().await; // the last state is written

    let proxy = Running::start(vec![address.to_string()], with_file).await;
    let edge = proxy.listener("edge").await;
    let mut connection = Connection::open(edge).await.unwrap();
    assert_eq!(answers(&mut connection).await, ["one", "two"]);
    proxy.stopped().await;
}
