use config::{
    Certificates, GatewayTls,
    tls::{CertificatePem, SecretRef},
};

use super::*;

/// A listener on `port` that shows `secrets`.
fn secure(name: &str, port: u16, secrets: &[&str]) -> Encoded {
    let references = secrets.iter().map(|name| SecretRef { secret: name.parse().unwrap() }).collect();
    let tls = Some(GatewayTls { certificates: Certificates::Secrets(references) });
    let gateway = Gateway { name: name.parse().unwrap(), listen: ([127, 0, 0, 1], port).into(), tls };
    (ResourceType::Listener, name.into(), config::xds::listener::encode(&gateway).encode_to_vec())
}

/// The routes of a gateway that leads nowhere, so that nothing but secrets is waited for.
fn no_routes(name: &str) -> Encoded {
    let value = config::xds::route::encode(&name.parse().unwrap(), [], |_| None).encode_to_vec();
    (ResourceType::RouteConfiguration, name.into(), value)
}

/// A secret that is made anew each time.
fn secret(name: &str) -> (Encoded, String) {
    let made = rcgen::generate_simple_self_signed(["a.example".to_owned()]).unwrap();
    let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
    let pem = CertificatePem::read(cert.as_bytes(), key.as_bytes()).unwrap();
    let value = config::xds::secret::encode(name, &pem).encode_to_vec();
    ((ResourceType::Secret, name.into(), value), pem.chain)
}

fn asked(requests: &[DeltaDiscoveryRequest]) -> (Vec<&str>, Vec<&str>) {
    let kind = ResourceType::Secret.type_url();
    let mine = || requests.iter().filter(|request| request.type_url == kind);
    (
        mine().flat_map(|r| &r.resource_names_subscribe).map(String::as_str).collect(),
        mine().flat_map(|r| &r.resource_names_unsubscribe).map(String::as_str).collect(),
    )
}

#[test]
fn a_listener_waits_for_its_secrets_and_gives_them_back() {
    let now = Instant::now();
    let mut world = World::connected();
    let sent = world.respond(now, &[secure("edge", 1, &["a", "b"])], &[]);
    assert_eq!(asked(&sent), (vec!["a", "b"], vec![]));
    world.respond(now, &[no_routes("edge")], &[]);
    let (a, chain) = secret("a");
    let sent = world.respond(now, &[a], &[]);
    assert_eq!(
        (acks(&sent), world.listeners.len()),
        (vec!["3"], 0),
        "the secret is there, the listener is not"
    );
    assert!(world.cache.waiting()[0].contains("secret `b`"), "{:?}", world.cache.waiting());
    let sent = world.respond(now, &[secret("b").0], &[]);
    assert_eq!(world.listeners.len(), 1);
    assert_eq!(acks(&sent), ["4", "1"], "the listener is acknowledged when it is bound");
    assert_eq!(world.secrets["a"], chain);

    // What no listener names any more goes, when the listener without it is bound.
    let sent = world.respond(now, &[secure("edge", 1, &["b"])], &[]);
    assert_eq!(asked(&sent), (vec![], vec!["a"]));
    assert_eq!(world.secrets.keys().collect::<Vec<_>>(), ["b"]);
    let i = ResourceType::Secret.index();
    assert_eq!((world.cache.held()[i].len(), world.cache.last_good()[i].len()), (1, 1));
    world.respond(now, &[], &[(ResourceType::Listener, "edge")]);
    assert!(world.secrets.is_empty());
}

#[test]
fn a_secret_changes_without_its_listener_and_stays_when_it_is_removed_or_bad() {
    let now = Instant::now();
    let mut world = World::connected();
    world.respond(now, &[secure("edge", 1, &["a"])], &[]);
    world.respond(now, &[no_routes("edge")], &[]);
    world.respond(now, &[secret("a").0], &[]);
    let bound = world.listeners.clone();
    assert_eq!(bound.len(), 1);

    let (next, chain) = secret("a");
    assert_eq!(acks(&world.respond(now, &[next], &[])), ["4"]);
    assert_eq!(world.secrets["a"], chain);

    let mut bad = secret("a").0;
    bad.2 = config::xds::secret::encode(
        "a",
        &CertificatePem {
            key: String::from_utf8_lossy(&secret("x").0.2).into_owned(),
            ..config::xds::secret::decode_secret(&bad.2).unwrap().certificate
        },
    )
    .encode_to_vec();
    let sent = world.respond(now, &[bad], &[]);
    let reason = &sent[0].error_detail.as_ref().unwrap().message;
    assert!(reason.starts_with("SDS `a`: tls_certificate.private_key: "), "{reason}");
    assert_eq!(world.secrets["a"], chain);

    world.respond(now, &[], &[(ResourceType::Secret, "a")]);
    assert_eq!((world.secrets["a"].as_str(), &world.listeners), (chain.as_str(), &bound));
    assert_eq!(world.cache.held()[ResourceType::Secret.index()].len(), 0);
    assert_eq!(world.cache.last_good()[ResourceType::Secret.index()].len(), 1);
    // A secret that nobody asked for is none.
    world.respond(now, &[secret("z").0], &[]);
    assert_eq!(world.secrets.len(), 1);
}

#[test]
fn a_listener_whose_secret_never_comes_is_tried_in_the_end_and_says_so() {
    let now = Instant::now();
    let mut world = World::connected();
    world.respond(now, &[secure("edge", 1, &["a"])], &[]);
    world.respond(now, &[no_routes("edge")], &[]);
    world.pass(now + WARMING_TIMEOUT / 2);
    assert!(world.listeners.is_empty());
    world.unbindable.push("edge".to_owned());
    let sent = world.pass(now + WARMING_TIMEOUT);
    assert!(sent.iter().any(|request| request.error_detail.is_some()), "{sent:?}");
}

#[test]
fn a_secret_is_restored_with_its_listener() {
    let now = Instant::now();
    let mut world = World::default();
    let (a, chain) = secret("a");
    let saved = [secure("edge", 1, &["a"]), no_routes("edge"), a];
    let saved: Vec<_> = saved.iter().map(|encoded| (encoded.0, resource(encoded))).collect();
    let (update, refused) = world.cache.restore(&saved, now);
    assert_eq!(refused, Vec::<String>::new());
    world.carry_out(update, now);
    assert_eq!((world.listeners.len(), world.secrets.get("a")), (1, Some(&chain)));
}
