//! Any order of changes, responses, answers, subscriptions and reconnects ends with the client
//! holding the subscribed part of the snapshot, in both variants.

#![no_main]

use fuzz::{input::Input, stream::Stream};
use libfuzzer_sys::fuzz_target;

/// How many things are done in one run.
const STEPS: usize = 400;

fuzz_target!(|bytes: &[u8]| {
    let mut input = Input(bytes);
    let mut stream = Stream::new(&mut input);
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        stream.step(&mut input);
    }
    stream.settle();
});
