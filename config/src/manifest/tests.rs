use super::*;
use crate::{Protocol, route::PathMatch};

const EXAMPLE: &str = r#"kind: Service
name: checkout
protocol: http            # http | h2c | grpc | tcp
versions:
  v1: {}
  v2: {}
split:
  weights: {v1: 90, v2: 10}
---
kind: Gateway
name: edge
listen: 0.0.0.0:8080
---
kind: Route
name: shop
gateway: edge
hosts: ["shop.example.com", "*"]
rules:
- match: {path_prefix: /checkout}
  service: checkout
"#;

fn first_error(text: &str) -> String {
    parse("m.yaml", text).unwrap_err()[0].to_string()
}

#[test]
fn the_example_of_the_contract_reads() {
    let documents = parse("m.yaml", EXAMPLE).unwrap();
    assert_eq!(documents.len(), 3);
    let Document::Service(service) = &documents[0].document else { panic!("{:?}", documents[0]) };
    assert_eq!(service.protocol, Protocol::Http);
    assert_eq!(service.split.total(), 100);
    let Document::Route(route) = &documents[2].document else { panic!("{:?}", documents[2]) };
    assert_eq!(route.rules[0].matches.path, PathMatch::Prefix("/checkout".into()));
    assert_eq!(documents[2].line, 14);
}

#[test]
fn what_is_written_as_json_reads_back_the_same() {
    for located in parse("m.yaml", EXAMPLE).unwrap() {
        let json = serde_json::to_value(&located.document).unwrap();
        assert_eq!(from_json("stored", &json).as_ref(), Ok(&located.document));
        let again = parse("json", &json.to_string()).unwrap_or_else(|e| panic!("{json}: {e:?}"));
        assert_eq!(again[0].document, located.document);
    }
}

fn with_header(field: &str, value: &str) -> String {
    // Escaped, so that only the value itself is odd, not the text.
    let value: String =
        value.chars().map(|c| format!("\\u{:04x}", u32::from(c))).collect::<Vec<_>>().concat();
    format!(
        "kind: Route\nname: r\ngateway: g\nrules:\n- match: {{headers: [{{name: x, {field}: \"{value}\"}}]}}\n  service: s\n"
    )
}

#[test]
fn whatever_is_accepted_is_read_back_from_json() {
    let seed = 13;
    let mut rng = fastrand::Rng::with_seed(seed);
    let odd =
        ['a', ' ', '\t', '"', '\'', '\\', ':', '#', '-', '~', '\u{7f}', '\u{0}', 'é', '\u{2028}', '{', '!'];
    let mut accepted = 0;
    for round in 0..3_000 {
        let value: String = (0..rng.usize(0..5)).map(|_| odd[rng.usize(..odd.len())]).collect();
        let field = if rng.bool() { "exact" } else { "prefix" };
        let Ok(documents) = parse("m", &with_header(field, &value)) else { continue };
        accepted += 1;
        let json = serde_json::to_value(&documents[0].document).unwrap();
        let again = from_json("stored", &json);
        assert_eq!(again.as_ref(), Ok(&documents[0].document), "seed {seed}, round {round}: {value:?}");
    }
    assert!(accepted > 300, "only {accepted} of the values were accepted");
}

#[test]
fn json_is_read_by_the_same_rules_and_without_a_line() {
    let value = serde_json::json!({"kind": "Service", "name": "a", "versions": {"v1": null}, "x": 1});
    let errors = from_json("stored", &value).unwrap_err();
    assert!(errors[0].to_string().starts_with("stored: x: is not a field of a Service"), "{}", errors[0]);
}

#[test]
fn a_header_value_is_one_that_a_header_can_have() {
    for (field, good) in [("exact", ""), ("exact", "a b\tc"), ("exact", "\"~!"), ("prefix", "Bearer ")] {
        assert!(parse("m", &with_header(field, good)).is_ok(), "{field}: {good:?}");
    }
    let long = "x".repeat(4_097);
    let bad = ["\u{7f}", "\u{1}", "a\nb", "é", " a", "\ta", long.as_str()];
    let bad = bad.into_iter().flat_map(|value| [("exact", value), ("prefix", value)]);
    for (field, value) in bad.chain([("exact", "a "), ("exact", "a\t")]) {
        let error = first_error(&with_header(field, value));
        assert!(error.starts_with(&format!("m.yaml:5: rules[0].match.headers[0].{field}: ")), "{error}");
    }
}

#[test]
fn a_text_in_which_everything_is_wrong_gets_a_bounded_answer() {
    let endpoints = "x, ".repeat(150);
    let text = format!("kind: Service\nname: a\nversions: {{v1: {{endpoints: [{endpoints}]}}}}\n");
    let errors = parse("m", &text).unwrap_err();
    assert_eq!(errors.len(), MAX_ERRORS + 1);
    assert_eq!(errors[MAX_ERRORS].to_string(), "m: and 50 more errors; correct these first");
}

#[test]
fn what_is_listed_twice_is_found_in_long_lists_too() {
    let many = |item: fn(usize) -> String| (0..20_000).map(item).collect::<Vec<_>>().join(", ");
    let addresses = many(|i| format!("\"10.0.{}.{}:80\"", i / 256, i % 256));
    let hosts = many(|i| format!("h{i}"));
    let rules = many(|i| format!("{{match: {{path: /{i}}}, service: s}}"));
    let route = "kind: Route\nname: r\ngateway: g\n";
    let cases = [
        (
            format!(
                "kind: Service\nname: a\nversions: {{v1: {{endpoints: [{addresses}, \"10.0.0.7:80\"]}}}}\n"
            ),
            "m.yaml:3: versions.v1.endpoints[20000]: 10.0.0.7:80 is listed twice",
        ),
        (
            format!("{route}hosts: [{hosts}, H7]\nrules: [{{service: s}}]\n"),
            "m.yaml:4: hosts[20000]: `h7` is listed twice",
        ),
        (
            format!("{route}rules: [{rules}, {{match: {{path: /7}}, service: t}}]\n"),
            "m.yaml:4: rules[20000]: matches the same requests as rules[7]",
        ),
    ];
    for (text, expected) in cases {
        let error = first_error(&text);
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn a_text_may_hold_many_documents_and_says_when_they_are_too_many() {
    let documents = |n: usize| -> String {
        (0..n)
            .map(|i| format!("---\nkind: Gateway\nname: g{i}\nlisten: 127.0.0.1:0\n"))
            .collect::<Vec<_>>()
            .concat()
    };
    assert_eq!(parse("m", &documents(1_025)).unwrap().len(), 1_025);
    let error = first_error(&"--- a\n".repeat(100_001));
    assert!(error.contains("holds more than 100000 documents"), "{error}");
    assert!(error.contains("apply fewer documents at once"), "{error}");
    let error = first_error(&format!("[{}]", "a,".repeat(2_000_001)));
    assert!(error.contains("holds more than 2000000 values and keys"), "{error}");
}

#[test]
fn an_endpoint_of_a_manifest_is_where_somebody_can_connect() {
    for bad in ["127.0.0.1:0", "0.0.0.0:80", "[fe80::1%1]:80", "224.0.0.1:80"] {
        let text = format!("kind: Service\nname: a\nversions: {{v1: {{endpoints: [\"{bad}\"]}}}}\n");
        let expected = format!("m.yaml:3: versions.v1.endpoints[0]: nobody can connect to `{bad}`");
        assert!(first_error(&text).starts_with(&expected), "{}", first_error(&text));
    }
}

#[test]
fn one_version_needs_no_split() {
    let documents = parse("m", "kind: Service\nname: a\nversions: {v1: }\n").unwrap();
    let Document::Service(service) = &documents[0].document else { panic!() };
    assert_eq!(service.split.total(), 1);
}

#[test]
fn errors_name_file_line_field_and_what_is_allowed() {
    let cases: &[(&str, &str)] = &[
        ("kind: [", "m.yaml:"),
        ("", "m.yaml: holds no document"),
        ("kind: Servce\nname: a\n", "m.yaml:1: kind: is the text `Servce`; allowed: Service, Gateway, Route"),
        ("name: a\n", "m.yaml:1: kind: is missing"),
        ("- a\n", "m.yaml:1: is a list; expected a document"),
        (
            "kind: Service\nname: a\nversions:\n  v1: {}\nsplit:\n  wieghts: {v1: 1}\n",
            "m.yaml:6: split.wieghts: is not a field of a split; allowed: weights",
        ),
        (
            "kind: Service\nname: a\nversions:\n  v1: {}\nsplit:\n  weights: {v1: 1, v3: 2}\n",
            "m.yaml:6: split.weights.v3: is not a version of the service; declared: v1",
        ),
        (
            "kind: Service\nname: a\nversions:\n  v1: {}\nsplit:\n  weights:\n    v1: 0\n",
            "m.yaml:7: split.weights: the weights add up to 0",
        ),
        (
            "kind: Service\nname: a\nversions:\n  v1: {}\nsplit:\n  weights: {v1: 1.5}\n",
            "m.yaml:6: split.weights.v1: is the number 1.5; expected a whole number",
        ),
        (
            "kind: Service\nname: a\nversions:\n  v1:\n    endpoints:\n    - 127.0.0.1:9001\n    - localhost:1\n",
            "m.yaml:7: versions.v1.endpoints[1]: `localhost:1` is not an address; expected an IP address and a port",
        ),
        ("kind: Service\nname: a\nversions: {v1: {}, v2: {}}\n", "m.yaml:1: split: is missing"),
        ("kind: Service\nname: 7\nversions: {v1: {}}\n", "m.yaml:2: name: is the number 7 (put it in quotes"),
        ("kind: Gateway\nname: Edge\nlisten: 1.2.3.4:5\n", "m.yaml:2: name: `Edge` is not a gateway name"),
        ("kind: Gateway\nname: edge\nlisten: 8080\n", "m.yaml:3: listen: is the number 8080"),
        ("kind: Route\nname: r\ngateway: g\nrules: []\n", "m.yaml:4: rules: is empty"),
        (
            "kind: Route\nname: r\ngateway: g\nrules:\n- match: {path_prefix: a}\n  service: s\n",
            "m.yaml:5: rules[0].match.path_prefix: `a` is not a path",
        ),
        (
            "kind: Route\nname: r\ngateway: g\nrules:\n- service: s\n- service: t\n",
            "m.yaml:6: rules[1]: matches the same requests as rules[0]",
        ),
        (
            "kind: Gateway\nname: g\nlisten: 1.2.3.4:5\n---\nkind: Gateway\nname: g\nlisten: 1.2.3.4:6\n",
            "m.yaml:6: name: Gateway g is already defined on line 1",
        ),
    ];
    for (text, expected) in cases {
        let error = first_error(text);
        assert!(error.starts_with(expected), "\n{text}\n→ {error}\n≠ {expected}");
    }
}

#[test]
fn duplicate_keys_are_refused_with_their_line() {
    let error = first_error("kind: Gateway\nname: g\nname: h\nlisten: 1.2.3.4:5\n");
    assert!(error.contains("m.yaml:3") && error.contains("dup"), "{error}");
}

#[test]
fn every_fault_of_a_text_is_reported_at_once() {
    let errors = parse("m", "kind: Gateway\nname: G\nlisten: x\n---\nkind: Route\nname: r\n").unwrap_err();
    let paths: Vec<&str> = errors.iter().map(|e| e.path.as_str()).collect();
    assert_eq!(paths, ["name", "listen", "gateway", "rules"]);
}

#[test]
fn no_text_makes_the_reader_panic() {
    let seed = 11;
    let mut rng = fastrand::Rng::with_seed(seed);
    let bytes = EXAMPLE.as_bytes();
    for round in 0..3_000 {
        let mut text = bytes.to_vec();
        for _ in 0..rng.usize(1..6) {
            let at = rng.usize(0..text.len());
            match rng.u8(0..3) {
                0 => text[at] = *rng.choice(b"{}[]:-'\"\n #&*!|>%@`,?x0").unwrap(),
                1 if text.len() > 1 => drop(text.remove(at)),
                _ => text.truncate(at.max(1)),
            }
        }
        let text = String::from_utf8_lossy(&text).into_owned();
        // Whatever it is, it is either documents or errors with a message.
        if let Err(errors) = parse("m", &text) {
            assert!(errors.iter().all(|e| !e.message.is_empty()), "seed {seed}, round {round}: {text}");
        }
    }
}
