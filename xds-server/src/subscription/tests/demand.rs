//! A client that asks for what its routes name, after it has seen them.

use super::*;

const MEMBER: &str = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/1";
const MEMBERS: &str = "xdstp:///envoy.config.endpoint.v3.LbEndpoint/a/v1/-/*";

/// A client with listeners and routes to `a/v1`, which it has not acknowledged, and what came then.
fn routed() -> (Wire, Response, Snapshot) {
    let one = Snapshot::empty(0).with(
        1,
        [
            put(CDS, "a/v1", "1"),
            put(EDS, "a/v1", "1"),
            put(LEDS, MEMBER, "1"),
            put(LDS, "l", "1"),
            put(RDS, "r", "→a/v1"),
        ],
    );
    let mut wire = Wire::new(Variant::Incremental, &one);
    wire.delta(&LDS, &[], &[]);
    let listeners = wire.poll().unwrap();
    wire.ack(&listeners);
    wire.delta(&RDS, &["r"], &[]);
    let routes = wire.poll().unwrap();
    assert_eq!(shape(Some(&routes)), "RDS +r");
    let two = one.with(
        2,
        [
            put(RDS, "r", "→b/v1"),
            put(CDS, "b/v1", "1"),
            gone(CDS, "a/v1"),
            gone(EDS, "a/v1"),
            gone(LEDS, MEMBER),
        ],
    );
    (wire, routes, two)
}

#[test]
fn what_routes_name_that_are_on_their_way_is_there_until_newer_ones_are_acknowledged() {
    let (mut wire, routes, two) = routed();
    wire.session.on_snapshot(two);
    for (kind, name, answer) in [
        (&CDS, "a/v1", "CDS +a/v1".to_owned()),
        (&EDS, "a/v1", "EDS +a/v1".to_owned()),
        (&LEDS, MEMBERS, format!("LEDS +{MEMBER}")),
    ] {
        wire.delta(kind, &[name], &[]);
        let response = wire.poll().unwrap();
        assert_eq!(shape(Some(&response)), answer);
        wire.ack(&response);
    }
    wire.ack(&routes);
    let newer = wire.poll().unwrap();
    assert_eq!(shape(Some(&newer)), "RDS +r");
    assert_eq!(shape(wire.poll().as_ref()), "nothing", "removals wait for the routes");
    wire.ack(&newer);
    let mut removals = Vec::new();
    while let Some(response) = wire.poll() {
        removals.push(shape(Some(&response)));
        wire.ack(&response);
    }
    removals.sort();
    assert_eq!(removals, ["CDS -a/v1".to_owned(), "EDS -a/v1".to_owned(), format!("LEDS -{MEMBER}")]);
}

#[test]
fn what_is_gone_before_the_routes_are_sent_does_not_exist() {
    let (mut wire, routes, two) = routed();
    wire.ack(&routes);
    wire.session.on_snapshot(two);
    let newer = wire.poll().unwrap();
    assert_eq!(shape(Some(&newer)), "RDS +r");
    wire.delta(&CDS, &["a/v1"], &[]);
    assert_eq!(shape(wire.poll().as_ref()), "CDS -a/v1");
    wire.delta(&LEDS, &[MEMBERS], &[]);
    assert_eq!(shape(wire.poll().as_ref()), format!("LEDS -{MEMBERS}"));
}
