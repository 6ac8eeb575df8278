//! Any bytes as the requests of a client: they are decoded as the xDS server decodes them, and what
//! they say is bounded, whatever it is.

#![no_main]

use std::time::{Duration, Instant};

use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest},
    google::rpc::Status,
};
use fuzz::{
    input::Input,
    world::{self, KINDS, NAMES, OTHERS},
};
use libfuzzer_sys::fuzz_target;
use prost::Message;
use xds_server::{
    kind::{Client, Kind},
    snapshot::Snapshot,
    subscription::{
        MAX_NAME_BYTES, MAX_NAME_LENGTH, MAX_NAMES, MAX_TYPES, Session, Variant, Violation,
    },
};

/// How long the name of a type may be, in bytes: longer ones end a stream before its session sees them.
const MAX_TYPE_URL: usize = 256;
/// How many things are done in one run.
const STEPS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let choices = input.byte();
    let is = |bit: u8| choices & (1 << bit) != 0;
    let variant = if is(0) { Variant::Incremental } else { Variant::StateOfTheWorld };
    let client = Client { grpc: is(1), collections: is(2), ttl: is(3) };
    let only = is(4).then(|| input.one_of(&KINDS).clone());
    let mut snapshot = Snapshot::empty(1);
    for revision in 2..=9 {
        let kind = input.one_of(&KINDS).clone();
        snapshot = snapshot.with(revision, [world::update(&mut input, &kind, client)]);
    }
    let new = if only.is_some() { Session::of_one_type } else { Session::new };
    let mut session = new(variant, client, snapshot.clone());
    let mut now = Instant::now();
    let mut nonce = String::new();
    // Once a run, as it takes as long as thousands of others; and in few runs, whatever was found
    // interesting before: of the changed forms of an input that does it, one in so many does it again.
    let seldom = bytes.iter().fold(0_u8, |hash, byte| hash.wrapping_mul(31).wrapping_add(*byte)) == 0;
    let mut many = (is(5) && seldom).then_some(MAX_NAMES - 1 + input.below(3));
    let mut told = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let request = match input.below(4) {
            0 => {
                let kind = input.one_of(&KINDS).clone();
                let revision = snapshot.revision() + 1;
                snapshot = snapshot.with(revision, [world::update(&mut input, &kind, client)]);
                session.on_snapshot(snapshot.clone());
                None
            }
            1 => {
                now += Duration::from_millis(100) * u32::from(input.byte());
                None
            }
            2 => Some(input.bytes().to_vec()),
            _ => Some(written(&mut input, variant, &nonce, &mut many)),
        };
        if let Some(request) = request {
            told += request.len();
            // Either ends the stream.
            let Some(taken) = take(&mut session, variant, only.as_ref(), &request, now) else { return };
            if let Err(violation) = taken {
                let needed = match violation {
                    Violation::TooManyNames => MAX_NAMES,
                    Violation::NamesTooLong => MAX_NAME_BYTES,
                    Violation::NameTooLong => MAX_NAME_LENGTH,
                };
                assert!(told > needed, "{violation}: after {told} bytes");
                return;
            }
        }
        let mut responses = 0;
        while let Some(response) = session.poll(now) {
            nonce = response.nonce.to_string();
            responses += 1;
            assert!(responses <= KINDS.len() + MAX_TYPES, "more than one response of a type");
        }
        assert!(session.deadline(now).is_none_or(|at| at > now), "a deadline that has passed is a busy loop");
        assert!(session.applied(now) <= snapshot.revision());
    }
    let standings = session.standings();
    let most = (MAX_NAMES + snapshot.revision() as usize) * (KINDS.len() + MAX_TYPES) + bytes.len();
    assert!(standings.len() <= most, "{} names are remembered", standings.len());
    let too_long = |name: &str| name.len() > MAX_NAME_LENGTH.max(bytes.len());
    assert!(!standings.iter().any(|standing| too_long(&standing.name)));
});

/// Takes in a request as the task of a stream does; `None` if it is none.
fn take(
    session: &mut Session,
    variant: Variant,
    only: Option<&Kind>,
    request: &[u8],
    now: Instant,
) -> Option<Result<(), Violation>> {
    let kind = |type_url: &str| match only {
        Some(only) => (type_url.is_empty() || type_url == only.type_url()).then(|| only.clone()),
        None => (1..=MAX_TYPE_URL).contains(&type_url.len()).then(|| Kind::of(type_url)),
    };
    let taken = match variant {
        Variant::Incremental => {
            let request = DeltaDiscoveryRequest::decode(request).ok()?;
            session.on_incremental(&kind(&request.type_url)?, request, now)
        }
        Variant::StateOfTheWorld => {
            let request = DiscoveryRequest::decode(request).ok()?;
            session.on_state_of_the_world(&kind(&request.type_url)?, request, now)
        }
    };
    Some(taken.map(drop))
}

/// A request with something in each of its fields, as bytes.
fn written(input: &mut Input<'_>, variant: Variant, nonce: &str, many: &mut Option<usize>) -> Vec<u8> {
    let choices = input.byte();
    let is = |bit: u8| choices & (1 << bit) != 0;
    let type_url = match input.below(KINDS.len() + 2) {
        at if at < KINDS.len() => KINDS[at].type_url().to_owned(),
        at if at == KINDS.len() => String::new(),
        _ => format!("unknown/{}", input.byte()),
    };
    let mut names = names(input);
    if is(0) {
        names.extend((0..many.take().unwrap_or_default()).map(|name| name.to_string()));
    }
    let response_nonce = if is(1) { nonce.to_owned() } else { text(input) };
    let refusal = |message| Status { message, ..Default::default() };
    let error_detail = is(2).then(|| refusal(self::names(input).join(" ")));
    match variant {
        Variant::Incremental => {
            let held = if is(3) { self::names(input) } else { Vec::new() };
            let version =
                |name: String| (name, if is(4) { "0123456789abcdef".to_owned() } else { String::new() });
            let request = DeltaDiscoveryRequest {
                type_url,
                resource_names_subscribe: names,
                resource_names_unsubscribe: self::names(input),
                initial_resource_versions: held.into_iter().map(version).collect(),
                response_nonce,
                error_detail,
                ..Default::default()
            };
            request.encode_to_vec()
        }
        Variant::StateOfTheWorld => {
            let version_info = text(input);
            let resource_names = names;
            let request = DiscoveryRequest {
                version_info,
                type_url,
                resource_names,
                response_nonce,
                error_detail,
                ..Default::default()
            };
            request.encode_to_vec()
        }
    }
}

fn names(input: &mut Input<'_>) -> Vec<String> {
    (0..input.below(5)).map(|_| text(input)).collect()
}

fn text(input: &mut Input<'_>) -> String {
    match input.below(NAMES.len() + OTHERS.len() + 4) {
        at if at < NAMES.len() => NAMES[at].to_owned(),
        at if at < NAMES.len() + OTHERS.len() => OTHERS[at - NAMES.len()].to_owned(),
        at if at == NAMES.len() + OTHERS.len() => String::from_utf8_lossy(input.bytes()).into_owned(),
        at if at == NAMES.len() + OTHERS.len() + 1 => {
            format!("xdstp:{}", String::from_utf8_lossy(input.bytes()))
        }
        at if at == NAMES.len() + OTHERS.len() + 2 => "x".repeat(MAX_NAME_LENGTH - 1 + input.below(3)),
        _ => format!("xdstp:///t/x?{}", String::from_utf8_lossy(input.bytes())),
    }
}
