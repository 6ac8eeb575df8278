//! TLS ↔ `TransportSocket` of listeners and clusters
//! (`envoy/extensions/transport_sockets/tls/v3/tls.proto` and `common.proto`).
//!
//! Only what is listed here is honoured; whatever else a message says about who may connect, or what
//! is trusted, is refused by name, for leaving it out would weaken what its writer asked for.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use envoy_types::pb::envoy::{
    config::core::v3::{
        ConfigSource, DataSource, TransportSocket, config_source::ConfigSourceSpecifier,
        data_source::Specifier, transport_socket::ConfigType,
    },
    extensions::transport_sockets::tls::v3::{
        CertificateProviderPluginInstance, CertificateValidationContext, CommonTlsContext,
        DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher, TlsCertificate, TlsParameters,
        UpstreamTlsContext, common_tls_context::ValidationContextType, subject_alt_name_matcher::SanType,
        tls_parameters::TlsProtocol,
    },
    r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern},
};
use prost::{Message, Name};

use super::{
    DecodeError, ads, decode,
    listener::{ListenerCertificates, ListenerTls},
    pack,
};
use crate::tls::{CertificateFiles, GATEWAY_ALPN, GatewayTls, UpstreamTls, check_sni};

/// The extension's well-known name.
const TLS: &str = "envoy.transport_sockets.tls";

/// What terminates the TLS of a gateway. Of several certificates Envoy, too, chooses by server name.
pub(super) fn encode_downstream(tls: &GatewayTls) -> TransportSocket {
    let certificates = tls.certificates.files().iter().map(|files| TlsCertificate {
        certificate_chain: Some(file(&files.cert)),
        private_key: Some(file(&files.key)),
        ..Default::default()
    });
    let secrets = tls
        .certificates
        .secrets()
        .map(|name| SdsSecretConfig { name: name.to_string(), sds_config: Some(ads()) });
    socket(&DownstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            tls_certificates: certificates.collect(),
            tls_certificate_sds_secret_configs: secrets.collect(),
            alpn_protocols: GATEWAY_ALPN.map(str::to_owned).to_vec(),
            ..Default::default()
        }),
        ..Default::default()
    })
}

/// The instance of a certificate provider that a gRPC client takes authorities from, in the
/// `certificate_providers` of its bootstrap (gRFC A29): a gRPC client takes no file names from a server.
pub const GRPC_CERTIFICATE_PROVIDER: &str = "default";

/// What connects to the instances of a service over TLS.
pub(super) fn encode_upstream(tls: &UpstreamTls, http2: bool) -> TransportSocket {
    let name = exactly(&tls.sni);
    let validation = CertificateValidationContext {
        trusted_ca: Some(file(&tls.ca)),
        // Without it Envoy takes any certificate of the authority, whomever it is for.
        match_typed_subject_alt_names: vec![SubjectAltNameMatcher {
            san_type: SanType::Dns as i32,
            matcher: Some(name),
            ..Default::default()
        }],
        ..Default::default()
    };
    socket(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            alpn_protocols: vec![if http2 { "h2" } else { "http/1.1" }.to_owned()],
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..Default::default()
        }),
        sni: tls.sni.clone(),
        ..Default::default()
    })
}

/// The same for gRPC clients (gRFC A29), whose channels use it when they have xDS credentials.
pub(super) fn encode_upstream_for_grpc(tls: &UpstreamTls) -> TransportSocket {
    #[expect(deprecated, reason = "gRFC A29 knows no other field for the name of a certificate")]
    let validation = CertificateValidationContext {
        ca_certificate_provider_instance: Some(CertificateProviderPluginInstance {
            instance_name: GRPC_CERTIFICATE_PROVIDER.to_owned(),
            ..Default::default()
        }),
        match_subject_alt_names: vec![exactly(&tls.sni)],
        ..Default::default()
    };
    socket(&UpstreamTlsContext {
        common_tls_context: Some(CommonTlsContext {
            validation_context_type: Some(ValidationContextType::ValidationContext(validation)),
            ..Default::default()
        }),
        sni: tls.sni.clone(),
        ..Default::default()
    })
}

fn exactly(name: &str) -> StringMatcher {
    StringMatcher { match_pattern: Some(MatchPattern::Exact(name.to_owned())), ..Default::default() }
}

fn socket<M: Message + Name>(context: &M) -> TransportSocket {
    TransportSocket { name: TLS.to_owned(), config_type: Some(ConfigType::TypedConfig(pack(context))) }
}

fn file(path: &Path) -> DataSource {
    // Paths come from manifests and xDS, both of which are text.
    let name = path.to_string_lossy().into_owned();
    DataSource { specifier: Some(Specifier::Filename(name)), ..Default::default() }
}

/// Reads what terminates the TLS of a listener; `field` is where it stands.
pub(super) fn decode_downstream(field: &str, socket: &TransportSocket) -> Result<ListenerTls, DecodeError> {
    let context: DownstreamTlsContext = unpack(field, socket)?;
    let at = |name: &str| format!("{field}.{name}");
    let is_set = |flag: Option<envoy_types::pb::google::protobuf::BoolValue>| flag.is_some_and(|f| f.value);
    if is_set(context.require_client_certificate) {
        return Err(DecodeError::new(
            at("require_client_certificate"),
            "client certificates are not supported",
        ));
    }
    if is_set(context.require_sni) {
        return Err(DecodeError::new(
            at("require_sni"),
            "clients without a server name are served, not refused",
        ));
    }
    let field = at("common_tls_context");
    let common = context.common_tls_context.ok_or_else(|| DecodeError::missing(&field))?;
    check_common(&field, &common)?;
    if common.validation_context_type.is_some() {
        let message = "client certificates are not supported, so there is nothing to validate";
        return Err(DecodeError::new(format!("{field}.validation_context"), message));
    }
    let certificates = decode_certificates(&field, &common)?;
    Ok(ListenerTls { certificates, alpn: common.alpn_protocols })
}

fn decode_certificates(field: &str, common: &CommonTlsContext) -> Result<ListenerCertificates, DecodeError> {
    let secrets = format!("{field}.tls_certificate_sds_secret_configs");
    let field = format!("{field}.tls_certificates");
    match (&*common.tls_certificates, &*common.tls_certificate_sds_secret_configs) {
        ([], []) => Err(DecodeError::new(field, "is empty; at least one certificate is needed")),
        (certificates, []) => {
            let certificates = certificates.iter().enumerate();
            let files = certificates.map(|(i, c)| decode_certificate(&format!("{field}[{i}]"), c));
            Ok(ListenerCertificates::Files(files.collect::<Result<_, _>>()?))
        }
        ([], configs) => {
            let configs = configs.iter().enumerate();
            let names = configs.map(|(i, c)| decode_reference(&format!("{secrets}[{i}]"), c));
            Ok(ListenerCertificates::Secrets(names.collect::<Result<_, _>>()?))
        }
        // "If this field is set, tls_certificate_sds_secret_configs is ignored": not what was meant.
        _ => Err(DecodeError::new(secrets, "is set beside tls_certificates; only one of them is supported")),
    }
}

/// The name of a secret that comes on the stream of the listener.
fn decode_reference(field: &str, config: &SdsSecretConfig) -> Result<Arc<str>, DecodeError> {
    if config.name.is_empty() {
        return Err(DecodeError::missing(&format!("{field}.name")));
    }
    match &config.sds_config {
        Some(ConfigSource {
            config_source_specifier: Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)),
            ..
        }) => Ok(config.name.as_str().into()),
        _ => Err(DecodeError::new(format!("{field}.sds_config"), "only ads and self are supported")),
    }
}

fn decode_certificate(field: &str, certificate: &TlsCertificate) -> Result<CertificateFiles, DecodeError> {
    check_certificate(field, certificate)?;
    let path = |name, source: &Option<DataSource>| decode_file(&format!("{field}.{name}"), source.as_ref());
    Ok(CertificateFiles {
        cert: path("certificate_chain", &certificate.certificate_chain)?,
        key: path("private_key", &certificate.private_key)?,
    })
}

/// Reads how endpoints are reached over TLS. Endpoints that are spoken to in HTTP/2 are offered it by
/// ALPN, the others HTTP/1.1, whatever else the message offers.
pub(super) fn decode_upstream(socket: &TransportSocket, http2: bool) -> Result<UpstreamTls, DecodeError> {
    let field = "transport_socket";
    let context: UpstreamTlsContext = unpack(field, socket)?;
    let at = |name: &str| format!("{field}.{name}");
    refuse(
        field,
        [
            ("auto_host_sni", context.auto_host_sni),
            ("auto_sni_san_validation", context.auto_sni_san_validation),
            ("allow_renegotiation", context.allow_renegotiation),
        ],
    )?;
    check_sni(&context.sni).map_err(|e| DecodeError::new(at("sni"), e.to_string()))?;
    let sni = context.sni.to_ascii_lowercase();
    let common_field = at("common_tls_context");
    let common = context.common_tls_context.ok_or_else(|| DecodeError::missing(&common_field))?;
    check_common(&common_field, &common)?;
    let message = "certificates of the proxy's own are not supported";
    for (name, is_set) in [
        ("tls_certificates", !common.tls_certificates.is_empty()),
        ("tls_certificate_sds_secret_configs", !common.tls_certificate_sds_secret_configs.is_empty()),
    ] {
        if is_set {
            return Err(DecodeError::new(format!("{common_field}.{name}"), message));
        }
    }
    let wanted = if http2 { "h2" } else { "http/1.1" };
    if !common.alpn_protocols.is_empty() && !common.alpn_protocols.iter().any(|p| p == wanted) {
        let message = format!("does not offer `{wanted}`, which the cluster's endpoints are spoken to in");
        return Err(DecodeError::new(format!("{common_field}.alpn_protocols"), message));
    }
    let field = format!("{common_field}.validation_context");
    let validation = match common.validation_context_type {
        Some(ValidationContextType::ValidationContext(validation)) => validation,
        None => {
            return Err(DecodeError::new(field, "is missing; without it no certificate would be checked"));
        }
        Some(_) => {
            return Err(DecodeError::new(field, "only one that is written in place is supported, not SDS"));
        }
    };
    Ok(UpstreamTls { ca: decode_validation(&field, &validation, &sni)?, sni })
}

/// The authorities to trust, if all that is asked is that a certificate is theirs and for `sni`.
fn decode_validation(
    field: &str,
    validation: &CertificateValidationContext,
    sni: &str,
) -> Result<PathBuf, DecodeError> {
    let refused = [
        ("ca_certificate_provider_instance", validation.ca_certificate_provider_instance.is_some()),
        ("system_root_certs", validation.system_root_certs.is_some()),
        ("verify_certificate_spki", !validation.verify_certificate_spki.is_empty()),
        ("verify_certificate_hash", !validation.verify_certificate_hash.is_empty()),
        ("match_subject_alt_names", matches_by_old_field(validation)),
        ("require_signed_certificate_timestamp", validation.require_signed_certificate_timestamp.is_some()),
        ("crl", validation.crl.is_some()),
        ("allow_expired_certificate", validation.allow_expired_certificate),
        ("trust_chain_verification", validation.trust_chain_verification != 0),
        ("custom_validator_config", validation.custom_validator_config.is_some()),
        ("only_verify_leaf_cert_crl", validation.only_verify_leaf_cert_crl),
        ("max_verify_depth", validation.max_verify_depth.is_some()),
    ];
    refuse(field, refused)?;
    let is_sni = |matcher: &SubjectAltNameMatcher| match &matcher.matcher {
        Some(StringMatcher { ignore_case: _, match_pattern: Some(MatchPattern::Exact(name)) }) => {
            matcher.san_type() == SanType::Dns && name.eq_ignore_ascii_case(sni)
        }
        _ => false,
    };
    if !matches!(validation.match_typed_subject_alt_names.as_slice(), [only] if is_sni(only)) {
        let message =
            format!("only one is supported, DNS and exact, for the server name that is sent: `{sni}`");
        return Err(DecodeError::new(format!("{field}.match_typed_subject_alt_names"), message));
    }
    decode_file(&format!("{field}.trusted_ca"), validation.trusted_ca.as_ref())
}

#[expect(deprecated, reason = "what Envoy still reads must not be left out silently")]
fn matches_by_old_field(validation: &CertificateValidationContext) -> bool {
    !validation.match_subject_alt_names.is_empty()
}

/// What is refused on either side.
fn check_common(field: &str, common: &CommonTlsContext) -> Result<(), DecodeError> {
    refuse(
        field,
        [
            ("tls_certificate_provider_instance", common.tls_certificate_provider_instance.is_some()),
            ("custom_tls_certificate_selector", common.custom_tls_certificate_selector.is_some()),
            ("custom_handshaker", common.custom_handshaker.is_some()),
            ("key_log", common.key_log.is_some()),
        ],
    )?;
    old_providers(field, common)?;
    common.tls_params.as_ref().map_or(Ok(()), |params| check_params(&format!("{field}.tls_params"), params))
}

#[expect(deprecated, reason = "what Envoy still reads must not be left out silently")]
fn old_providers(field: &str, common: &CommonTlsContext) -> Result<(), DecodeError> {
    refuse(
        field,
        [
            ("tls_certificate_certificate_provider", common.tls_certificate_certificate_provider.is_some()),
            (
                "tls_certificate_certificate_provider_instance",
                common.tls_certificate_certificate_provider_instance.is_some(),
            ),
        ],
    )
}

/// TLS 1.2 and 1.3 with the ciphers of rustls, all of which are safe. A message may say so, or less
/// than that for the minimum, but not narrow it down.
fn check_params(field: &str, params: &TlsParameters) -> Result<(), DecodeError> {
    let narrows = |version| version == TlsProtocol::TlSv13;
    refuse(
        field,
        [
            ("tls_minimum_protocol_version", narrows(params.tls_minimum_protocol_version())),
            (
                "tls_maximum_protocol_version",
                !matches!(params.tls_maximum_protocol_version(), TlsProtocol::TlsAuto | TlsProtocol::TlSv13),
            ),
            ("cipher_suites", !params.cipher_suites.is_empty()),
            ("ecdh_curves", !params.ecdh_curves.is_empty()),
            ("signature_algorithms", !params.signature_algorithms.is_empty()),
            ("compliance_policies", !params.compliance_policies.is_empty()),
        ],
    )
}

/// Refuses what would make of a certificate more than a chain and its key.
pub(super) fn check_certificate(field: &str, certificate: &TlsCertificate) -> Result<(), DecodeError> {
    let refused = [
        ("pkcs12", certificate.pkcs12.is_some()),
        ("private_key_provider", certificate.private_key_provider.is_some()),
        ("password", certificate.password.is_some()),
        ("ocsp_staple", certificate.ocsp_staple.is_some()),
        ("signed_certificate_timestamp", !certificate.signed_certificate_timestamp.is_empty()),
        ("tls_params", certificate.tls_params.is_some()),
    ];
    refuse(field, refused)
}

fn decode_file(field: &str, source: Option<&DataSource>) -> Result<PathBuf, DecodeError> {
    match source.and_then(|source| source.specifier.as_ref()) {
        Some(Specifier::Filename(name)) if !name.is_empty() => Ok(PathBuf::from(name)),
        None => Err(DecodeError::missing(field)),
        Some(_) => Err(DecodeError::new(field, "only a filename is supported")),
    }
}

fn unpack<M: Message + Name + Default>(field: &str, socket: &TransportSocket) -> Result<M, DecodeError> {
    match &socket.config_type {
        Some(ConfigType::TypedConfig(any)) if any.type_url == M::type_url() => decode(&any.value),
        _ => Err(DecodeError::new(field, format!("only {TLS} with a {} is supported", M::NAME))),
    }
}

/// Refuses the first of `set` that is.
fn refuse<const N: usize>(field: &str, set: [(&str, bool); N]) -> Result<(), DecodeError> {
    match set.into_iter().find(|(_, is_set)| *is_set) {
        Some((name, _)) => Err(DecodeError::new(format!("{field}.{name}"), "is not supported")),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
