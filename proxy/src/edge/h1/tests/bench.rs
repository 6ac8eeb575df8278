//! What a head costs; `cargo test --release -- --ignored --nocapture h1::tests::bench`.

use std::{hint::black_box, time::Instant};

use super::*;

/// Best of several rounds, in nanoseconds a call.
fn nanos(mut call: impl FnMut()) -> f64 {
    const CALLS: u32 = 100_000;
    let round = |_| {
        let since = Instant::now();
        for _ in 0..CALLS {
            call();
        }
        since.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    (0..10).map(round).fold(f64::MAX, f64::min)
}

#[test]
#[ignore = "a measurement"]
fn parse_and_write() {
    let mut out = Vec::with_capacity(4096);
    let edits = RequestEdits { client: "203.0.113.9", proto: "http", ..RequestEdits::default() };
    let parse = nanos(|| {
        let mut slots = slots();
        black_box(parse_request(black_box(BROWSER.as_bytes()), &mut slots).unwrap());
    });
    let request = nanos(|| {
        out.clear();
        let mut slots = slots();
        let head = parse_request(black_box(BROWSER.as_bytes()), &mut slots).unwrap().unwrap();
        head.write_upstream(&mut out, &edits);
        black_box(&out);
    });
    let response = nanos(|| {
        out.clear();
        let mut slots = slots();
        let head = parse_response(black_box(ANSWER.as_bytes()), &mut slots, false).unwrap().unwrap();
        head.write_downstream(&mut out, &ResponseEdits::default());
        black_box(&out);
    });
    let bare = nanos(|| {
        let mut fields = [const { std::mem::MaybeUninit::uninit() }; 128];
        let mut head = httparse::Request::new(&mut []);
        black_box(head.parse_with_uninit_headers(black_box(BROWSER.as_bytes()), &mut fields).unwrap());
    });
    println!("request: {parse:.0} ns to parse (httparse alone {bare:.0}), {request:.0} with writing");
    println!("response: {response:.0} ns to parse and write");
}
