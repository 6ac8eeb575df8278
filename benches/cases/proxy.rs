//! The proxy's pieces, without I/O.

use std::{fmt::Write, hint::black_box};

use proxy::hot::{self, Deadline, Follower, HotPath, Routes, Rules, Version};

use super::Case;

/// A browser's request, 10 fields.
const REQUEST: &str = "GET /s7/items?page=2 HTTP/1.1\r\nHost: shop.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0\r\n\
    Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n\
    Accept-Language: en-US,en;q=0.5\r\nAccept-Encoding: gzip, deflate, br\r\n\
    Referer: https://shop.example.com/\r\nConnection: keep-alive\r\n\
    Cookie: session=0123456789abcdef; theme=dark\r\nUpgrade-Insecure-Requests: 1\r\n\
    Sec-Fetch-Mode: navigate\r\n\r\n";

/// A web server's response, 7 fields.
const RESPONSE: &str = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\n\
    Date: Mon, 23 Nov 2026 20:15:51 GMT\r\nContent-Type: text/html; charset=utf-8\r\n\
    Content-Length: 1024\r\nConnection: keep-alive\r\nETag: \"65f0-400\"\r\n\
    Cache-Control: max-age=60\r\n\r\n";

/// Lookups that are made in turn.
const FEW: usize = 64;
const MANY: usize = 4_096;

pub(super) fn cases() -> Vec<Case> {
    let mut cases = vec![
        Case::new("request head", "parse", || {
            || _ = black_box(hot::parsed_request(black_box(REQUEST.as_bytes())).expect("it is valid"))
        }),
        Case::new("request head", "parse, plan and write", || {
            let mut out = Vec::with_capacity(4096);
            move || {
                let bytes = black_box(REQUEST.as_bytes());
                black_box(hot::written_request(bytes, &mut out).expect("it is valid"));
            }
        }),
        Case::new("response head", "parse", || {
            || _ = black_box(hot::parsed_response(black_box(RESPONSE.as_bytes())).expect("it is valid"))
        }),
        Case::new("response head", "parse, plan and write", || {
            let mut out = Vec::with_capacity(4096);
            move || {
                let bytes = black_box(RESPONSE.as_bytes());
                black_box(hot::written_response(bytes, &mut out).expect("it is valid"));
            }
        }),
        Case::new("chunked body", "4 of 4 KB", || {
            let mut body = format!("1000\r\n{}\r\n", "x".repeat(4096)).repeat(4);
            body.push_str("0\r\n\r\n");
            move || _ = black_box(hot::chunks(black_box(body.as_bytes())).expect("it is valid"))
        }),
    ];
    cases.extend(routes());
    cases.extend([
        pick("10 endpoints", 10),
        pick("1000 endpoints", 1_000),
        Case::new("count in and out", "version and endpoint", || {
            let (version, mut now) = (Version::new(10), 0);
            move || {
                now += 1;
                version.count(black_box(3), now).expect("it is far from the bound");
            }
        }),
        Case::new("deadline", "3 moves", || {
            let deadline = Deadline::new();
            move || black_box(&deadline).request()
        }),
        decide("1 service", 1),
        decide("10 services", 10),
        decide("1000 services", 1_000),
        Case::new("exchange", "1000 services", || {
            let (hot, mut out) = (HotPath::new(1_000, 10), Vec::with_capacity(4096));
            move || {
                let (request, response) = (black_box(REQUEST.as_bytes()), black_box(RESPONSE.as_bytes()));
                black_box(hot.exchange(request, response, &mut out).expect("there is a route"));
            }
        }),
        publish("1 service", 1),
        publish("100 services", 100),
        publish("10000 services", 10_000),
    ]);
    cases.extend(changes());
    cases
}

/// The lookup alone. A few routes in turn show the work, which is the same at any size; many show the
/// caches too, which hold less of a larger table. Never one, whose place in the hash table is luck.
fn routes() -> Vec<Case> {
    vec![
        route("path, 10 rules", Rules::Paths, 10, FEW),
        route("path, 1000 rules", Rules::Paths, 1_000, FEW),
        route("path, 100000 rules", Rules::Paths, 100_000, FEW),
        route("many paths, 10 rules", Rules::Paths, 10, MANY),
        route("many paths, 1000 rules", Rules::Paths, 1_000, MANY),
        route("many paths, 100000 rules", Rules::Paths, 100_000, MANY),
        route("host, 10 rules", Rules::Hosts, 10, FEW),
        route("host, 1000 rules", Rules::Hosts, 1_000, FEW),
        route("host, 100000 rules", Rules::Hosts, 100_000, FEW),
        route("prefixes of 1 length", Rules::Lengths, 1, FEW),
        route("prefixes of 8 lengths", Rules::Lengths, 8, FEW),
        route("prefixes of 32 lengths", Rules::Lengths, 32, FEW),
    ]
}

fn route(id: &'static str, rules: Rules, count: usize, lookups: usize) -> Case {
    Case::new("route", id, move || {
        let (routes, mut rng) = (Routes::new(rules, count), fastrand::Rng::with_seed(1));
        // Side by side, so that reading them costs little.
        let mut names = String::new();
        for _ in 0..lookups {
            // Writing to memory does not fail.
            _ = match rules {
                Rules::Paths => write!(names, "/r{:06}/cart", rng.usize(0..count)),
                Rules::Hosts => write!(names, "r{:06}.example.com", rng.usize(0..count)),
                Rules::Lengths => write!(names, "/{}", "r".repeat(63)),
            };
        }
        let (width, mut at) = (names.len() / lookups, 0);
        move || {
            let name = black_box(&names[at..at + width]);
            let (host, path) =
                if rules == Rules::Hosts { (name, "/cart") } else { ("shop.example.com", name) };
            assert!(routes.find(host, path));
            at = (at + width) % names.len();
        }
    })
}

fn pick(id: &'static str, endpoints: u16) -> Case {
    Case::new("pick", id, move || {
        let (version, mut rng) = (Version::new(endpoints), fastrand::Rng::with_seed(1));
        move || _ = black_box(version.pick(&mut rng).expect("there are endpoints"))
    })
}

/// Table load, route, version draw, pick, two clocks, counted in and out; without moving bytes.
fn decide(id: &'static str, services: usize) -> Case {
    Case::new("decide", id, move || {
        let hot = HotPath::new(services, 10);
        let path = format!("/s{}/cart", services - 1);
        move || _ = black_box(hot.decide(black_box(&path)).expect("there is a route"))
    })
}

/// One endpoint change in the proxy, from the bytes of the response to the published table: when the
/// server sends all endpoints of the version, and when it sends the one that changed.
fn changes() -> Vec<Case> {
    let change = |id, make: fn(u32) -> Follower, count| {
        Case::new("endpoint change", id, move || {
            let mut follower = make(count);
            move || _ = black_box(follower.change())
        })
    };
    vec![
        change("all, 10 endpoints", Follower::of_assignments, 10),
        change("all, 100 endpoints", Follower::of_assignments, 100),
        change("all, 1000 endpoints", Follower::of_assignments, 1_000),
        change("all, 10000 endpoints", Follower::of_assignments, 10_000),
        change("one, 10 endpoints", Follower::of_collections, 10),
        change("one, 100 endpoints", Follower::of_collections, 100),
        change("one, 1000 endpoints", Follower::of_collections, 1_000),
        change("one, 10000 endpoints", Follower::of_collections, 10_000),
    ]
}

/// One endpoint change: the table with and without the tenth endpoint of one version.
fn publish(id: &'static str, services: usize) -> Case {
    Case::new("publish", id, move || {
        let (hot, mut endpoints) = (HotPath::new(services, 10), 10);
        move || {
            endpoints = 19 - endpoints;
            hot.publish(0, endpoints);
        }
    })
}
