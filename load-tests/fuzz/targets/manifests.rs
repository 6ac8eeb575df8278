//! Any text as a manifest: it is read or refused in bounded time and memory, and what is read is the
//! same after it was stored.

#![no_main]

use config::manifest::{self, MAX_ERRORS};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match manifest::parse("m.yaml", text) {
        Ok(documents) => {
            assert!(!documents.is_empty(), "nothing was read, and nothing was wrong");
            for located in documents {
                let stored = serde_json::to_value(&located.document).expect("a document is plain data");
                let again = manifest::from_json("stored", &stored);
                assert_eq!(again.as_ref(), Ok(&located.document), "{stored}");
                // Later checks point at fields, those that were left out included.
                let error = located.error("rules[0].match.headers[1].name", "is wrong").to_string();
                assert!(error.starts_with("m.yaml:"), "{error}");
            }
        }
        Err(errors) => {
            // One more says how many were left out.
            assert!((1..=MAX_ERRORS + 1).contains(&errors.len()), "{} errors", errors.len());
            assert!(errors.iter().all(|error| error.to_string().starts_with("m.yaml")));
        }
    }
});
