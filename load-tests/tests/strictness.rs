//! What is forwarded is re-framed from what was understood: a table of raw requests, of which each is
//! refused or arrives at the endpoint as what it meant. nginx and HAProxy get the same bytes.
//!
//! - [`framing`], [`syntax`], [`hops`]: the table. [`case`]: a line of it, and its judge.
//! - [`client`]: sends the bytes as they are. [`upstream`]: an endpoint that writes down what it gets.
//! - [`message`]: a strict reading of that, without the benefit of any doubt.
//! - [`h2`]: the same for requests in HTTP/2. [`responses`]: for what an endpoint answers.
//! - [`peers`]: nginx and HAProxy.
//!
//! `cargo test -p load-tests --test strictness -- --nocapture` prints the comparison. `→1` says that one
//! request arrived, `!` that something ambiguous did, `~` a part, `…` that nobody answered. `CASE=chunk`
//! runs the cases whose names contain that.

#![allow(clippy::unwrap_used, clippy::format_push_string, reason = "in a test an unwrap is an assertion")]

#[path = "strictness/case.rs"]
mod case;
#[path = "strictness/client.rs"]
mod client;
#[path = "strictness/framing.rs"]
mod framing;
#[path = "strictness/h2.rs"]
mod h2;
#[path = "strictness/hops.rs"]
mod hops;
#[path = "strictness/message.rs"]
mod message;
#[path = "strictness/peers.rs"]
mod peers;
#[path = "strictness/responses.rs"]
mod responses;
mod support;
#[path = "strictness/syntax.rs"]
mod syntax;
#[path = "strictness/upstream.rs"]
mod upstream;

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use case::{Case, Outcome};
use client::{Pieces, exchange};
use support::stand::{Settings, Stand};
use upstream::{Upstream, marked};

/// How long an answer of Sluicegate may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a peer may take: what it does not answer by then counts as not refused.
const PEERS_PATIENCE: Duration = Duration::from_millis(700);
/// How long to listen where no answer is due.
const SILENCE: Duration = Duration::from_millis(500);

fn table() -> Vec<Case> {
    let all = [
        framing::lengths(),
        framing::codings(),
        framing::chunks(),
        syntax::lines(),
        syntax::targets(),
        hops::nominated(),
        hops::boundaries(),
    ];
    let cases: Vec<Case> = all.into_iter().flatten().collect();
    let names: BTreeSet<_> = cases.iter().map(|c| (c.name, &c.bytes)).collect();
    assert_eq!(names.len(), cases.len(), "a case is there twice");
    let wanted = std::env::var("CASE").unwrap_or_default();
    cases.into_iter().filter(|c| c.name.contains(&wanted)).collect()
}

/// What became of each case at the proxy at `address`, which forwards to `upstream`.
async fn outcomes(
    cases: &[Case],
    address: SocketAddr,
    upstream: &mut Upstream,
    pieces: Pieces,
    patience: Duration,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (number, case) in cases.iter().enumerate() {
        let bytes = marked(&case.bytes, number);
        let patience = if case.waits { SILENCE } else { patience };
        let pieces = if bytes.len() > 4_096 { &Pieces::Whole } else { &pieces };
        let answers = exchange(address, &bytes, pieces, case.responses(), patience).await;
        let received = upstream.take(number, SILENCE).await;
        outcomes.push(Outcome { answers, received });
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_arrives_as_it_was_meant_or_is_refused_and_no_peer_is_stricter() {
    let cases = table();
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(5);
    let mut upstreams = [Upstream::start().await, Upstream::start().await, Upstream::start().await];
    let [at_nginx, at_haproxy, own] = &mut upstreams;
    let (nginx, haproxy) = (peers::nginx(at_nginx.address).await, peers::haproxy(at_haproxy.address).await);
    let stand = Stand::start(&Settings::new("http"), Some(own.address)).await;

    let (theirs, others, ours) = tokio::join!(
        outcomes(&cases, nginx.address, at_nginx, Pieces::Whole, PEERS_PATIENCE),
        outcomes(&cases, haproxy.address, at_haproxy, Pieces::Whole, PEERS_PATIENCE),
        outcomes(&cases, stand.gateway, own, Pieces::Whole, PATIENCE),
    );
    let pieces = outcomes(&cases, stand.gateway, own, Pieces::Small(seed), PATIENCE).await;

    let mut wrong = Vec::new();
    println!("SEED={seed}; {} cases", cases.len());
    println!("| case | rule | nginx | HAProxy | Sluicegate | right | |\n|---|---|---|---|---|---|---|");
    for (i, case) in cases.iter().enumerate() {
        let mut found = Vec::new();
        if let Err(why) = case.judge(&ours[i]) {
            found.push(why);
        } else if let Err(why) = case.judge(&pieces[i]) {
            found.push(format!("in small pieces: {why}"));
        }
        let peers_refuse = theirs[i].refused() && others[i].refused();
        if peers_refuse && !ours[i].refused() && case.exception.is_none() {
            found.push("nginx and HAProxy refuse it".to_owned());
        }
        let [nginx, haproxy, ours] = [&theirs[i], &others[i], &ours[i]].map(Outcome::short);
        let (name, rule, right) = (case.name, case.rule, case.expected());
        let mark = if found.is_empty() { "" } else { "✗" };
        println!("| {name} | {rule} | {nginx} | {haproxy} | {ours} | {right} | {mark} |");
        wrong.extend(found.into_iter().map(|why| format!("{name} ({rule}; right: {right}): {why}")));
    }
    assert!(wrong.is_empty(), "{} faults in {} cases:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(!stand.edge.log().contains("panicked"), "{}", stand.edge.log());
}
