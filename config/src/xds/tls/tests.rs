use envoy_types::pb::{
    envoy::{
        config::{cluster::v3::Cluster, listener::v3::Listener},
        extensions::transport_sockets::tls::v3::SdsSecretConfig,
    },
    google::protobuf::BoolValue,
};

use super::*;
use crate::{
    name::ClusterName,
    route::Gateway,
    service::Protocol,
    tls::{Certificates, SecretRef},
    xds::{
        cluster::{self, ClusterConfig},
        content_version,
        listener::{self, ListenerConfig},
    },
};

fn files(name: &str) -> CertificateFiles {
    CertificateFiles { cert: format!("/tls/{name}.pem").into(), key: format!("/tls/{name}.key").into() }
}

fn gateway() -> Gateway {
    let tls = GatewayTls { certificates: Certificates::Files(vec![files("a"), files("b")]) };
    Gateway { name: "edge".parse().unwrap(), listen: ([127, 0, 0, 1], 443).into(), tls: Some(tls) }
}

fn upstream() -> UpstreamTls {
    UpstreamTls { ca: "/tls/ca.pem".into(), sni: "shop.internal".to_owned() }
}

fn encoded(protocol: Protocol) -> Cluster {
    let name: ClusterName = "shop/v1".parse().unwrap();
    cluster::encode(&name, protocol, Some(&upstream()))
}

/// What is read of the gateway's listener once `edit` has changed its context.
fn downstream(edit: impl FnOnce(&mut DownstreamTlsContext)) -> Result<ListenerConfig, DecodeError> {
    let mut listener: Listener = listener::encode(&gateway());
    let socket = listener.filter_chains[0].transport_socket.as_mut().unwrap();
    edited(socket, edit);
    listener::decode_listener(&listener.encode_to_vec())
}

/// What is read of a cluster once `edit` has changed its context.
fn cluster(edit: impl FnOnce(&mut UpstreamTlsContext)) -> Result<ClusterConfig, DecodeError> {
    let mut cluster = encoded(Protocol::Http);
    edited(cluster.transport_socket.as_mut().unwrap(), edit);
    cluster::decode_cluster(&cluster.encode_to_vec())
}

fn edited<M: Message + Name + Default>(socket: &mut TransportSocket, edit: impl FnOnce(&mut M)) {
    let Some(ConfigType::TypedConfig(any)) = &mut socket.config_type else { panic!("{socket:?}") };
    assert_eq!(any.type_url, M::type_url());
    let mut context = M::decode(any.value.as_slice()).unwrap();
    edit(&mut context);
    any.value = context.encode_to_vec();
}

fn common(context: &mut DownstreamTlsContext) -> &mut CommonTlsContext {
    context.common_tls_context.as_mut().unwrap()
}

fn validation(context: &mut UpstreamTlsContext) -> &mut CertificateValidationContext {
    match &mut context.common_tls_context.as_mut().unwrap().validation_context_type {
        Some(ValidationContextType::ValidationContext(validation)) => validation,
        other => panic!("{other:?}"),
    }
}

fn with_secrets() -> Gateway {
    let reference = |name: &str| SecretRef { secret: name.parse().unwrap() };
    let tls =
        GatewayTls { certificates: Certificates::Secrets(vec![reference("a"), reference("b.example")]) };
    Gateway { tls: Some(tls), ..gateway() }
}

#[test]
fn the_secrets_of_a_gateway_are_asked_for_on_the_same_stream() {
    let mut listener: Listener = listener::encode(&with_secrets());
    let read = listener::decode_listener(&listener.encode_to_vec()).unwrap();
    assert_eq!(read.secrets().iter().map(|name| &**name).collect::<Vec<_>>(), ["a", "b.example"]);

    let socket = listener.filter_chains[0].transport_socket.as_mut().unwrap();
    edited(socket, |context: &mut DownstreamTlsContext| {
        let configs = &mut common(context).tls_certificate_sds_secret_configs;
        assert!(configs.iter().all(|config| config.sds_config == Some(ads())));
        // A secret of Envoy's bootstrap.
        configs[1].sds_config = None;
    });
    let refused = listener::decode_listener(&listener.encode_to_vec()).unwrap_err();
    assert!(refused.field.ends_with("tls_certificate_sds_secret_configs[1].sds_config"), "{refused}");
}

#[test]
fn the_certificates_of_a_gateway_read_back_in_order() {
    let read = downstream(|_| {}).unwrap();
    let expected = ListenerTls {
        certificates: ListenerCertificates::Files(vec![files("a"), files("b")]),
        alpn: vec!["h2".to_owned(), "http/1.1".to_owned()],
    };
    assert_eq!(read.tls, Some(expected));
    let clear = Gateway { tls: None, ..gateway() };
    assert_eq!(listener::decode_listener(&listener::encode(&clear).encode_to_vec()).unwrap().tls, None);
}

#[test]
fn the_tls_of_a_service_reads_back_with_the_protocol_it_negotiates() {
    for (protocol, alpn) in [(Protocol::Http, "http/1.1"), (Protocol::H2c, "h2"), (Protocol::Grpc, "h2")] {
        let mut cluster = encoded(protocol);
        let read = cluster::decode_cluster(&cluster.encode_to_vec()).unwrap();
        assert_eq!((read.tls, read.http2), (Some(upstream()), protocol.is_http2()));
        edited(cluster.transport_socket.as_mut().unwrap(), |context: &mut UpstreamTlsContext| {
            assert_eq!(context.common_tls_context.as_ref().unwrap().alpn_protocols, [alpn]);
            assert_eq!(context.sni, "shop.internal");
            assert_eq!(validation(context).match_typed_subject_alt_names.len(), 1);
        });
    }
}

#[test]
fn equal_tls_has_equal_versions_and_other_files_another() {
    let bytes = |gateway: &Gateway| content_version(&listener::encode(gateway).encode_to_vec());
    let mut other = gateway();
    assert_eq!(bytes(&gateway()), bytes(&other));
    other.tls.as_mut().unwrap().certificates = Certificates::Files(vec![files("b"), files("a")]);
    assert_ne!(bytes(&gateway()), bytes(&other));
}

#[test]
fn what_a_listener_asks_beyond_is_refused_by_name() {
    type Edit = fn(&mut DownstreamTlsContext);
    let cases: &[(&str, Edit)] = &[
        ("require_client_certificate", |c| c.require_client_certificate = Some(BoolValue { value: true })),
        ("require_sni", |c| c.require_sni = Some(BoolValue { value: true })),
        ("common_tls_context", |c| c.common_tls_context = None),
        ("common_tls_context.tls_certificate_sds_secret_configs", |c| {
            common(c).tls_certificate_sds_secret_configs = vec![SdsSecretConfig::default()];
        }),
        ("common_tls_context.validation_context", |c| {
            let validation = CertificateValidationContext::default();
            common(c).validation_context_type = Some(ValidationContextType::ValidationContext(validation));
        }),
        ("common_tls_context.tls_certificates", |c| common(c).tls_certificates.clear()),
        ("common_tls_context.tls_certificates[1].private_key", |c| {
            let inline = Specifier::InlineString("secret".to_owned());
            let source = DataSource { specifier: Some(inline), ..Default::default() };
            common(c).tls_certificates[1].private_key = Some(source);
        }),
        ("common_tls_context.tls_certificates[0].certificate_chain", |c| {
            common(c).tls_certificates[0].certificate_chain = None;
        }),
        ("common_tls_context.tls_certificates[0].password", |c| {
            common(c).tls_certificates[0].password = Some(file(Path::new("/p")));
        }),
        ("common_tls_context.tls_params.tls_minimum_protocol_version", |c| {
            let minimum = TlsProtocol::TlSv13 as i32;
            common(c).tls_params =
                Some(TlsParameters { tls_minimum_protocol_version: minimum, ..Default::default() });
        }),
    ];
    for (field, edit) in cases {
        let error = downstream(edit).unwrap_err();
        assert_eq!(error.field, format!("filter_chains[0].transport_socket.{field}"), "{error}");
        assert!(!error.message.contains("secret"), "{error}");
    }
    let only_said = downstream(|c| {
        c.require_client_certificate = Some(BoolValue { value: false });
        common(c).tls_params = Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv12 as i32,
            tls_maximum_protocol_version: TlsProtocol::TlSv13 as i32,
            ..Default::default()
        });
        common(c).alpn_protocols = vec!["http/1.1".to_owned()];
    });
    assert_eq!(only_said.unwrap().tls.unwrap().alpn, ["http/1.1"]);
}

#[test]
fn what_a_cluster_leaves_unchecked_is_refused_by_name() {
    const VALIDATION: &str = "transport_socket.common_tls_context.validation_context";
    type Edit = fn(&mut UpstreamTlsContext);
    let cases: &[(String, Edit)] = &[
        ("transport_socket.sni".to_owned(), |c| c.sni.clear()),
        ("transport_socket.sni".to_owned(), |c| c.sni = "10.0.0.1".to_owned()),
        ("transport_socket.auto_host_sni".to_owned(), |c| c.auto_host_sni = true),
        (VALIDATION.to_owned(), |c| c.common_tls_context.as_mut().unwrap().validation_context_type = None),
        (VALIDATION.to_owned(), |c| {
            let secret = ValidationContextType::ValidationContextSdsSecretConfig(SdsSecretConfig::default());
            c.common_tls_context.as_mut().unwrap().validation_context_type = Some(secret);
        }),
        (format!("{VALIDATION}.trusted_ca"), |c| validation(c).trusted_ca = None),
        (format!("{VALIDATION}.crl"), |c| validation(c).crl = Some(file(Path::new("/crl")))),
        (format!("{VALIDATION}.trust_chain_verification"), |c| validation(c).trust_chain_verification = 1),
        (format!("{VALIDATION}.match_typed_subject_alt_names"), |c| {
            validation(c).match_typed_subject_alt_names.clear();
        }),
        (format!("{VALIDATION}.match_typed_subject_alt_names"), |c| c.sni = "other.internal".to_owned()),
        (format!("{VALIDATION}.match_typed_subject_alt_names"), |c| {
            validation(c).match_typed_subject_alt_names[0].san_type = SanType::Uri as i32;
        }),
        ("transport_socket.common_tls_context.alpn_protocols".to_owned(), |c| {
            c.common_tls_context.as_mut().unwrap().alpn_protocols = vec!["h2".to_owned()];
        }),
        ("transport_socket.common_tls_context.tls_certificates".to_owned(), |c| {
            c.common_tls_context.as_mut().unwrap().tls_certificates = vec![TlsCertificate::default()];
        }),
    ];
    for (field, edit) in cases {
        let error = cluster(edit).unwrap_err();
        assert_eq!(error.field, *field, "{error}");
    }
    assert_eq!(cluster(|c| c.sni = "SHOP.internal".to_owned()).unwrap().tls, Some(upstream()));
}

#[test]
fn another_kind_of_socket_is_refused() {
    let mut listener = listener::encode(&gateway());
    let raw = TransportSocket { name: "envoy.transport_sockets.raw_buffer".to_owned(), config_type: None };
    listener.filter_chains[0].transport_socket = Some(raw);
    let error = listener::decode_listener(&listener.encode_to_vec()).unwrap_err();
    assert_eq!(error.field, "filter_chains[0].transport_socket");
}

#[test]
fn no_bytes_make_a_decoder_panic() {
    let good = [listener::encode(&gateway()).encode_to_vec(), encoded(Protocol::Grpc).encode_to_vec()];
    let seed = 7;
    let mut rng = fastrand::Rng::with_seed(seed);
    for _ in 0..20_000 {
        let mut bytes = rng.choice(&good).unwrap().clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..bytes.len());
            bytes[at] = rng.u8(..);
        }
        let _ = listener::decode_listener(&bytes);
        let _ = cluster::decode_cluster(&bytes);
    }
}
