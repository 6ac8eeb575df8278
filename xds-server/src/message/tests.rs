//! What JSON means is compared with what the library reads, and with messages built as Rust types.

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                Cluster,
                cluster::{ClusterDiscoveryType, DiscoveryType, LbPolicy},
            },
            listener::v3::{Listener, filter::ConfigType},
            route::v3::{RouteConfiguration, route::Action, route_match::PathSpecifier},
        },
        extensions::{
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, http_connection_manager::RouteSpecifier,
            },
            transport_sockets::tls::v3::{Secret, secret::Type as SecretType},
        },
        service::runtime::v3::Runtime,
    },
    google::protobuf::value::Kind as ValueKind,
};
use prost::Message;
use prost_reflect::DynamicMessage;
use serde_json::{json, value::to_raw_value};

use super::*;
use crate::kind::Kind;

fn read(type_url: &str, json: &Value) -> Result<Bytes, Fault> {
    from_json(type_url, &to_raw_value(json).unwrap())
}

/// Reads it, and checks that it means what the library says it means.
fn message<M: Message + Default>(kind: &Kind, json: &Value) -> M {
    let bytes = read(kind.type_url(), json).unwrap_or_else(|fault| panic!("{fault}"));
    let desc = types::of(kind.type_url()).unwrap();
    let library = DynamicMessage::deserialize(desc.clone(), json).unwrap();
    assert_eq!(DynamicMessage::decode(desc, &*bytes).unwrap(), library, "{json}");
    M::decode(bytes).unwrap()
}

fn fault(kind: &Kind, json: &Value) -> String {
    read(kind.type_url(), json).expect_err(&json.to_string()).to_string()
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";

fn cluster() -> Value {
    json!({
        "name": "own",
        "type": "STRICT_DNS",
        "connect_timeout": "0.25s",
        "perConnectionBufferLimitBytes": 32768,
        "lb_policy": 1,
        "typed_extension_protocol_options": {
            HTTP_OPTIONS: {
                "@type": format!("type.googleapis.com/{HTTP_OPTIONS}"),
                "explicit_http_config": {"http2_protocol_options": {"max_concurrent_streams": 100}},
            },
        },
    })
}

#[test]
fn a_cluster_has_durations_wrappers_enums_by_name_and_number_and_options_of_extensions() {
    let read: Cluster = message(&Kind::Cluster, &cluster());
    assert_eq!(
        read.cluster_discovery_type,
        Some(ClusterDiscoveryType::Type(DiscoveryType::StrictDns.into()))
    );
    let timeout = read.connect_timeout.as_ref().unwrap();
    assert_eq!((timeout.seconds, timeout.nanos), (0, 250_000_000));
    assert_eq!(read.per_connection_buffer_limit_bytes.as_ref().unwrap().value, 32_768);
    assert_eq!(read.lb_policy(), LbPolicy::LeastRequest);
    let options = &read.typed_extension_protocol_options[HTTP_OPTIONS];
    assert_eq!(options.type_url, format!("type.googleapis.com/{HTTP_OPTIONS}"));
    let options =
        envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions::decode(&*options.value);
    assert!(options.unwrap().upstream_protocol_options.is_some());
}

#[test]
fn a_message_is_the_bytes_that_others_make_of_it() {
    let read_again: Cluster = message(&Kind::Cluster, &cluster());
    assert_eq!(read(Kind::Cluster.type_url(), &cluster()).unwrap(), read_again.encode_to_vec());
}

#[test]
fn a_listener_has_a_connection_manager_with_its_routes_and_filters() {
    let listener = json!({
        "@type": Kind::Listener.type_url(),
        "name": "edge",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
        "filter_chains": [{"filters": [{
            "name": "envoy.filters.network.http_connection_manager",
            "typed_config": {
                "stat_prefix": "edge",
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "routeConfig": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{
                    "match": {"prefix": ""},
                    "direct_response": {"status": 200, "body": {"inline_bytes": "aGVsbG8="}},
                }]}]},
                "http_filters": [{
                    "name": "router",
                    "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router",
                        "suppress_envoy_headers": true,
                    },
                }],
            },
        }]}],
    });
    let bytes = read(Kind::Listener.type_url(), &listener).unwrap();
    let listener = Listener::decode(bytes).unwrap();
    let Some(ConfigType::TypedConfig(any)) = &listener.filter_chains[0].filters[0].config_type else {
        panic!("{listener:?}")
    };
    let manager = HttpConnectionManager::decode(&*any.value).unwrap();
    let Some(RouteSpecifier::RouteConfig(routes)) = &manager.route_specifier else { panic!("{manager:?}") };
    let route = &routes.virtual_hosts[0].routes[0];
    let path = route.r#match.as_ref().unwrap().path_specifier.as_ref();
    assert_eq!(path, Some(&PathSpecifier::Prefix(String::new())), "an empty one is set all the same");
    assert!(matches!(&route.action, Some(Action::DirectResponse(direct)) if direct.status == 200));
    assert_eq!(manager.http_filters.len(), 1);
}

#[test]
fn a_runtime_has_a_struct_and_an_any_may_have_one() {
    let layer = json!({"a": {"b": [1, "two", null, true, 2.5]}, "c": 18_446_744_073_709_551_615_u64});
    let runtime: Runtime = message(&Kind::Runtime, &json!({"name": "r", "layer": layer}));
    let fields = runtime.layer.unwrap().fields;
    assert_eq!(fields["c"].kind, Some(ValueKind::NumberValue(18_446_744_073_709_551_615.0)));
    let extension = |value: Value| {
        let any = json!({"@type": "type.googleapis.com/google.protobuf.Struct", "value": value});
        json!({"name": "x", "typed_config": any})
    };
    let bytes = read(Kind::ExtensionConfig.type_url(), &extension(layer.clone())).unwrap();
    let same = read(Kind::Runtime.type_url(), &json!({"layer": layer})).unwrap();
    assert!(bytes.ends_with(&same[2..]), "a Struct is the same wherever it is");
    assert!(read(Kind::ExtensionConfig.type_url(), &extension(json!(1))).is_err());
}

#[test]
fn a_secret_has_bytes_in_base64() {
    let secret = json!({"name": "s", "generic_secret": {"secret": {"inline_bytes": "_-8"}}});
    let secret: Secret = message(&Kind::Secret, &secret);
    let Some(SecretType::GenericSecret(generic)) = secret.r#type else { panic!("{secret:?}") };
    let bytes = generic.secret.unwrap().specifier;
    use envoy_types::pb::envoy::config::core::v3::data_source::Specifier;
    assert_eq!(bytes, Some(Specifier::InlineBytes(vec![0xff, 0xef])));
}

#[test]
fn null_is_a_field_that_is_not_there() {
    let cluster: Cluster =
        message(&Kind::Cluster, &json!({"name": "a", "connect_timeout": null, "lb_subset_config": null}));
    assert_eq!(cluster, Cluster { name: "a".to_owned(), ..Cluster::default() });
}

#[test]
fn equal_json_gives_equal_bytes_whatever_the_order_it_is_written_in() {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let metadata = |keys: &[u32]| {
        let members: Vec<String> = keys.iter().map(|key| format!("\"k{key}\": {key}")).collect();
        let members = members.join(",");
        let options = r#"{"@type": "type.googleapis.com/google.protobuf.Struct", "value": {MEMBERS}}"#;
        let typed: Vec<String> =
            keys.iter().map(|key| format!("\"t{key}\": {}", options.replace("MEMBERS", &members))).collect();
        let text = format!(
            r#"{{"typed_extension_protocol_options": {{{}}}, "metadata": {{"filter_metadata": {{"x": {{{members}}}}}}}}}"#,
            typed.join(",")
        );
        let raw: Box<RawValue> = serde_json::from_str(&text).unwrap();
        from_json(Kind::Cluster.type_url(), &raw).unwrap()
    };
    let mut keys: Vec<u32> = (0..40).collect();
    let first = metadata(&keys);
    for _ in 0..10 {
        random.shuffle(&mut keys);
        assert_eq!(metadata(&keys), first);
    }
    let position = |key: &str| first.windows(key.len()).position(|window| window == key.as_bytes()).unwrap();
    assert!(position("t10") < position("t11") && position("t11") < position("t2"), "sorted by key");
}

#[test]
fn a_fault_says_where_it_is_and_what_would_be_right() {
    for (json, what) in [
        (json!({"nme": "a"}), ".nme: is no field of envoy.config.cluster.v3.Cluster"),
        (json!({"name": 1}), ".name: is not a string"),
        (json!([]), ": is not an envoy.config.cluster.v3.Cluster: an object"),
        (
            json!({"connect_timeout": 1}),
            ".connect_timeout: is not a google.protobuf.Duration: seconds in a string",
        ),
        (json!({"connect_timeout": "1m"}), ".connect_timeout: is not a google.protobuf.Duration"),
        (
            json!({"lb_policy": "BEST"}),
            ".lb_policy: is not of envoy.config.cluster.v3.Cluster.LbPolicy: ROUND_ROBIN, ",
        ),
        (
            json!({"per_connection_buffer_limit_bytes": -1}),
            ".per_connection_buffer_limit_bytes: is not a google",
        ),
        (json!({"health_checks": {}}), ".health_checks: is not a list of envoy.config.core.v3.HealthCheck"),
        (
            json!({"health_checks": [{}, null]}),
            ".health_checks[1]: is not an envoy.config.core.v3.HealthCheck",
        ),
        (
            json!({"health_checks": [{}, {"http_health_check": {"pth": "/"}}]}),
            ".health_checks[1].http_health_check.pth: is no",
        ),
        (json!({"altStatName": "a", "alt_stat_name": "b"}), "cannot be beside `alt_stat_name`"),
        (json!({"type": "EDS", "cluster_type": {"name": "x"}}), ": cannot be beside `"),
        (json!({"@type": "type.googleapis.com/google.protobuf.Struct"}), ".@type: is not the type_url"),
        (
            json!({"metadata": {"filter_metadata": {"a": 1}}}),
            ".metadata.filter_metadata[\"a\"]: is not a google.protobuf.Struct",
        ),
        (
            json!({"metadata": {"filter_metadata": {"a": null}}}),
            ".metadata.filter_metadata[\"a\"]: is not a google.protobuf.Struct",
        ),
        (json!({"metadata": {"filter_metadata": []}}), ".metadata.filter_metadata: is not an object of"),
        (
            json!({"typed_extension_protocol_options": {"x": {"@type": "type.googleapis.com/my.Own", "a": 1}}}),
            ".typed_extension_protocol_options[\"x\"].@type: `type.googleapis.com/my.Own` is no type",
        ),
        (
            json!({"typed_extension_protocol_options": {"x": {"a": 1}}}),
            "[\"x\"].@type: is not a type URL in a string",
        ),
        (
            json!({"typed_extension_protocol_options": {"x": {"@type": format!("a/{HTTP_OPTIONS}"), "oops": 1}}}),
            &format!(".typed_extension_protocol_options[\"x\"].oops: is no field of {HTTP_OPTIONS}"),
        ),
        (
            json!({"typed_extension_protocol_options": {"x": {"@type": "a/google.protobuf.Duration", "value": 1}}}),
            "[\"x\"].value: is not a google.protobuf.Duration",
        ),
        (
            json!({"typed_extension_protocol_options": {"x": {"@type": "a/google.protobuf.Duration", "v": "1s"}}}),
            "[\"x\"].v: is no member of an Any",
        ),
    ] {
        let told = fault(&Kind::Cluster, &json);
        assert!(told.contains(what), "{json}: {told}");
        let library = DynamicMessage::deserialize(types::of(Kind::Cluster.type_url()).unwrap(), &json);
        // Of these the library keeps the last, or knows no member of that name.
        let laxer = json.get("altStatName").is_some();
        assert!(library.is_err() || laxer, "{json}");
    }
    let routes = json!({"virtual_hosts": [{"name": "a", "domains": ["a", 1]}]});
    assert_eq!(fault(&Kind::RouteConfiguration, &routes), ".virtual_hosts[0].domains[1]: is not a string");
    let routes = json!({"virtual_hosts": [{"name": "a", "domains": "a"}]});
    assert_eq!(
        fault(&Kind::RouteConfiguration, &routes),
        ".virtual_hosts[0].domains: is not a list, each a string"
    );
    let name = "n".repeat(10_000);
    assert!(fault(&Kind::Cluster, &json!({name: 1})).len() < 300);
}

#[test]
fn no_fault_shows_a_value() {
    let hush = "hush-hush";
    for json in [
        json!({"generic_secret": {"secret": {"inline_bytes": hush}}}),
        json!({"generic_secret": hush}),
        json!({"tls_certificate": {"private_key": {"inline_string": [hush]}}}),
        json!([hush]),
    ] {
        let told = fault(&Kind::Secret, &json);
        assert!(!told.contains(hush), "{told}");
    }
}

#[test]
fn depth_is_bounded_and_so_is_the_stack() {
    let nested = |levels: usize, open: &str, close: &str, inner: &str| {
        let text = format!("{}{inner}{}", open.repeat(levels), close.repeat(levels));
        serde_json::from_str::<Box<RawValue>>(&text).unwrap()
    };
    let any =
        r#"{"@type": "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig", "typed_config": "#;
    for levels in [20, 60, 100_000] {
        let whole = nested(levels, any, "}", r#"{"@type": "a/google.protobuf.Empty"}"#);
        let bytes = from_json(Kind::ExtensionConfig.type_url(), &whole);
        assert_eq!(bytes.is_ok(), levels == 20, "{levels}: {bytes:?}");
        let object = nested(levels, r#"{"a":"#, "}", "{}");
        let runtime: Box<RawValue> =
            serde_json::from_str(&format!(r#"{{"name": "r", "layer": {object}}}"#)).unwrap();
        let bytes = from_json(Kind::Runtime.type_url(), &runtime);
        assert_eq!(bytes.is_ok(), levels == 20, "{levels}: {bytes:?}");
        if let Ok(bytes) = bytes {
            assert!(Runtime::decode(bytes).is_ok(), "what is taken can be read");
        }
    }
}

#[test]
fn an_empty_message_is_one() {
    let routes: RouteConfiguration = message(&Kind::RouteConfiguration, &json!({}));
    assert_eq!(routes, RouteConfiguration::default());
}
