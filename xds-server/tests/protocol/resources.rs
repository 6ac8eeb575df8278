//! Resources as they are: written in one transaction, served by the same rules, and never shown when
//! they are secret.

use envoy_types::pb::envoy::{
    config::cluster::v3::Cluster,
    extensions::{
        transport_sockets::tls::v3::{GenericSecret, Secret, secret::Type as SecretType},
        upstreams::http::v3::HttpProtocolOptions,
    },
    service::status::v3::{
        ClientStatusRequest, ConfigStatus,
        client_status_discovery_service_client::ClientStatusDiscoveryServiceClient,
    },
};
use prost::Message;
use serde_json::{Value, json};

use super::support::{CDS, EDS, Mode, SDS, World};

const PATH: &str = "/v1/xds/resources";
const OWN: &str = "type.googleapis.com/my.own.Type";

fn base64(bytes: &[u8]) -> String {
    use base64::{Engine, engine::general_purpose::STANDARD};
    STANDARD.encode(bytes)
}

fn cluster(name: &str, stat_name: &str) -> Value {
    let cluster =
        Cluster { name: name.to_owned(), alt_stat_name: stat_name.to_owned(), ..Cluster::default() };
    json!({"type_url": CDS, "name": name, "value": base64(&cluster.encode_to_vec())})
}

in_every_variant!(
    a_resource_that_was_put_is_served_beside_those_of_services,
    a_resource_in_json_is_served_as_its_message,
    a_type_of_ones_own_is_served,
);

async fn a_resource_that_was_put_is_served_beside_those_of_services(mode: Mode) {
    let mut world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["own", "cart/v1"]).await;
    world.done("POST", PATH, &json!({"put": [cluster("own", "a")]}).to_string()).await;
    let first = client.accept(CDS).await;
    assert!(first.shape().contains("+own"), "{}", first.shape());
    world.restart().await;
    let mut client = world.client(mode).await;
    let again = client.follow(CDS, &["own"]).await;
    assert_eq!(again.resource("own").value, first.resource("own").value, "it outlives the process");
    let remove = json!({"remove": [{"type_url": CDS, "name": "own"}]}).to_string();
    world.done("POST", PATH, &remove).await;
    let gone = client.accept(CDS).await;
    assert_eq!(gone.shape(), if mode.is_incremental() { "-own" } else { "" });
}

async fn a_resource_in_json_is_served_as_its_message(mode: Mode) {
    const OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
    let world = World::start().await;
    let mut client = world.client(mode).await;
    client.follow(CDS, &["own", "cart/v1"]).await;
    let json = json!({
        "name": "own",
        "type": "STATIC",
        "connect_timeout": "0.5s",
        "typed_extension_protocol_options": {OPTIONS: {
            "@type": format!("type.googleapis.com/{OPTIONS}"),
            "explicit_http_config": {"http2_protocol_options": {}},
        }},
    });
    let put = |field: &str, message: Value| {
        json!({"put": [{"type_url": CDS, "name": "own", field: message}]}).to_string()
    };
    world.done("POST", PATH, &put("json", json)).await;
    let received = client.accept(CDS).await;
    let bytes = received.resource("own").value.clone();
    let cluster = Cluster::decode(&*bytes).unwrap();
    assert_eq!((cluster.name.as_str(), cluster.connect_timeout.unwrap().nanos), ("own", 500_000_000));
    let options = HttpProtocolOptions::decode(&*cluster.typed_extension_protocol_options[OPTIONS].value);
    assert!(options.unwrap().upstream_protocol_options.is_some());
    // Its bytes are the same resource, of the same version.
    let version = async || world.get(&format!("{PATH}?raw=true")).await["resources"][0]["version"].clone();
    let first = version().await;
    world.done("POST", PATH, &put("value", json!(base64(&bytes)))).await;
    assert_eq!(version().await, first);
}

async fn a_type_of_ones_own_is_served(mode: Mode) {
    // No service is of it, and in the state of the world names are in the messages.
    if mode != Mode::INCREMENTAL {
        return;
    }
    let world = World::start().await;
    let mut client = world.client(mode).await;
    let put = |name: &str| json!({"type_url": OWN, "name": name, "value": base64(b"anything")});
    world.done("POST", PATH, &json!({"put": [put("a"), put("b")]}).to_string()).await;
    let received = client.follow(OWN, &["a"]).await;
    assert_eq!(
        (received.shape().as_str(), received.resource("a").value.as_slice()),
        ("+a", &b"anything"[..])
    );
}

#[tokio::test]
async fn a_write_is_done_whole_or_not_at_all() {
    let world = World::start().await;
    let good = cluster("own", "a");
    for (bad, why) in [
        (json!({"put": [good, cluster("cart/v1", "a")]}), "is that of version cart/v1"),
        (json!({"put": [good, {"type_url": CDS, "name": "x", "value": "!"}]}), "put[1].value: is not base64"),
        (
            json!({"put": [good, {"type_url": CDS, "name": "x", "value": base64(b"\xff")}]}),
            "put[1].value: is not a",
        ),
        (json!({"put": [good, {"type_url": "Cluster", "name": "x", "value": ""}]}), "put[1].type_url"),
        (json!({"put": [good, {"type_url": CDS, "name": "x"}]}), "put[1]: has no message"),
        (
            json!({"put": [good, {"type_url": CDS, "name": "x", "value": "", "json": {}}]}),
            "put[1]: has value and json",
        ),
        (
            json!({"put": [good, {"type_url": CDS, "name": "x", "json": {"name": "y"}}]}),
            "put[1].name: is `x`",
        ),
        (
            json!({"put": [good, {"type_url": CDS, "name": "x", "json": {"eds_cluster_config": {"a": 1}}}]}),
            "put[1].json.eds_cluster_config.a: is no field of envoy.config.cluster.v3.Cluster.EdsClusterConfig",
        ),
        (json!({"put": [good, {"type_url": OWN, "name": "x", "json": {}}]}), "put[1].json: `type.googleapis"),
        (
            json!({"put": [good, {"type_url": CDS, "name": "x", "json": {"alt_stat_name": "x".repeat(2 << 20)}}]}),
            "put[1].json: makes a message of more than 1048576 bytes",
        ),
        (json!({"put": [good, good]}), "put[1].is in the request twice"),
        (json!({"put": [good], "remove": [{"type_url": CDS, "name": "nobody"}]}), "remove[0]"),
        (json!({"put": [good], "extra": 1}), "unknown field `extra`"),
        (json!({}), "both empty"),
    ] {
        let (status, answer) = world.call("POST", PATH, &bad.to_string()).await;
        assert_eq!(status, 400, "{bad}: {answer}");
        assert!(answer.contains(why), "{bad}: {answer}");
        let raw = world.get(&format!("{PATH}?raw=true")).await;
        assert_eq!(raw["resources"], json!([]), "{bad}");
    }
    // And the other way round: a service cannot take a name that is taken.
    world.done("POST", PATH, &json!({"put": [cluster("news/v1", "a")]}).to_string()).await;
    let manifest = "kind: Service\nname: news\nversions: {v1: {}}\n";
    let (status, answer) = world.call("POST", "/v1/apply", manifest).await;
    assert_eq!(status, 400, "{answer}");
    assert!(answer.contains("news/v1") && answer.contains(PATH), "{answer}");
}

#[tokio::test]
async fn where_each_resource_stands_is_told_and_no_secret_is() {
    let world = World::start().await;
    let inline = envoy_types::pb::envoy::config::core::v3::DataSource {
        specifier: Some(envoy_types::pb::envoy::config::core::v3::data_source::Specifier::InlineString(
            "hush-hush".into(),
        )),
        ..Default::default()
    };
    let secret = Secret {
        name: "token".to_owned(),
        r#type: Some(SecretType::GenericSecret(GenericSecret { secret: Some(inline), ..Default::default() })),
    };
    let secret = json!({"type_url": SDS, "name": "token", "value": base64(&secret.encode_to_vec())});
    world.done("POST", PATH, &json!({"put": [secret]}).to_string()).await;
    let mut client = world.client(Mode::INCREMENTAL).await;
    assert_eq!(client.follow(SDS, &["token"]).await.shape(), "+token");
    let refused = {
        client.subscribe(CDS, &["cart/v1", "nobody"]).await;
        client.expect(CDS).await
    };
    client.nack(&refused, "cart/v1: no").await;
    client.subscribe(EDS, &["shop/v1"]).await;
    let _unanswered = client.expect(EDS).await;

    let mut csds = ClientStatusDiscoveryServiceClient::new(world.channel().await);
    let told = csds.fetch_client_status(ClientStatusRequest::default()).await.unwrap().into_inner();
    let [config] = told.config.as_slice() else { panic!("{told:?}") };
    assert_eq!(config.node.as_ref().unwrap().id, "client");
    let status = |name: &str| {
        let found = config.generic_xds_configs.iter().find(|config| config.name == name);
        let found = found.unwrap_or_else(|| panic!("{name}: {config:?}"));
        (found.config_status(), found.xds_config.is_some(), found.error_state.is_some())
    };
    assert_eq!(status("token"), (ConfigStatus::Synced, false, false));
    assert_eq!(status("cart/v1"), (ConfigStatus::Error, true, true));
    assert_eq!(status("nobody"), (ConfigStatus::NotSent, false, false));
    assert_eq!(status("shop/v1"), (ConfigStatus::Stale, true, false));

    let of_proxy = world.get("/v1/proxies/client/resources").await;
    let resources = of_proxy["streams"][0]["resources"].as_array().unwrap();
    let row = |name: &str| resources.iter().find(|row| row["name"] == name).unwrap();
    assert_eq!((&row("token")["status"], &row("token")["version"]), (&json!("SYNCED"), &Value::Null));
    assert_eq!(row("cart/v1")["reason"], "cart/v1: no");
    for path in [PATH, "/v1/proxies/client/resources", "/v1/proxies", "/v1/events", "/metrics"] {
        let (_, answer) = world.call("GET", path, "").await;
        assert!(!answer.contains("hush-hush") && !answer.contains(&base64(b"hush-hush")), "{path}");
    }
}
