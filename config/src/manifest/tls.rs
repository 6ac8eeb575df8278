//! `tls` of a Gateway and of a Service.

use std::{collections::HashMap, path::PathBuf};

use super::{
    fields::{Context, Fields},
    node::Node,
};
use crate::tls::{
    self, CertificateFiles, Certificates, GatewayTls, MAX_CERTIFICATES, SecretRef, UpstreamTls,
};

/// How a gateway terminates TLS.
pub(super) fn gateway(node: &Node, cx: &mut Context<'_>) -> Option<GatewayTls> {
    let fields = cx.fields(node, "the tls of a Gateway", &["certificates"])?;
    let list = fields.required(cx, "certificates")?;
    cx.within("certificates", |cx| certificates(list, cx)).map(|certificates| GatewayTls { certificates })
}

fn certificates(node: &Node, cx: &mut Context<'_>) -> Option<Certificates> {
    const EXAMPLE: &str = "for example `[{cert: /etc/edge.pem, key: /etc/edge.key}]` or `[{secret: shop}]`";
    let items = cx.list(node, &format!("certificates, {EXAMPLE}"))?;
    if items.is_empty() {
        let message = format!("is empty; a gateway with TLS has at least one certificate, {EXAMPLE}");
        return cx.error(node.line, message);
    }
    if items.len() > MAX_CERTIFICATES {
        let message = format!("lists {} certificates; allowed: at most {MAX_CERTIFICATES}", items.len());
        return cx.error(node.line, message);
    }
    let (mut files, mut secrets) = (Vec::new(), Vec::new());
    let mut seen = HashMap::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        cx.within(format!("[{i}]"), |cx| {
            let Some(certificate) = certificate(item, cx) else { return };
            let (field, shown) = match &certificate {
                One::Files(files) => ("cert", files.cert.display().to_string()),
                One::Secret(reference) => ("secret", reference.secret.to_string()),
            };
            let first = *seen.entry((field, shown.clone())).or_insert(i);
            if first < i {
                let message = format!("`{shown}` is certificates[{first}] already; list it once");
                return cx.within(field, |cx| cx.error(item.line, message)).unwrap_or_default();
            }
            match certificate {
                One::Files(pair) => files.push(pair),
                One::Secret(reference) => secrets.push(reference),
            }
        });
    }
    if files.len() + secrets.len() < items.len() {
        return None;
    }
    match (files.is_empty(), secrets.is_empty()) {
        (false, false) => cx.error(
            node.line,
            "has both files and secrets; a gateway takes all its certificates from files, or all from secrets",
        ),
        (false, true) => Some(Certificates::Files(files)),
        _ => Some(Certificates::Secrets(secrets)),
    }
}

/// One entry of a gateway's certificates.
enum One {
    Files(CertificateFiles),
    Secret(SecretRef),
}

fn certificate(node: &Node, cx: &mut Context<'_>) -> Option<One> {
    let fields = cx.fields(node, "a certificate", &["cert", "key", "secret"])?;
    let Some(name) = fields.optional("secret") else { return files(&fields, cx).map(One::Files) };
    if fields.optional("cert").or(fields.optional("key")).is_some() {
        return cx.error(fields.line, "has both files and a secret; give `cert` and `key`, or `secret`");
    }
    let secret = cx.within("secret", |cx| cx.parsed(name, "the name of a secret"))?;
    Some(One::Secret(SecretRef { secret }))
}

/// The files of a certificate and its key.
fn files(fields: &Fields<'_>, cx: &mut Context<'_>) -> Option<CertificateFiles> {
    let (cert, key) = (path(fields, cx, "cert"), path(fields, cx, "key"));
    Some(CertificateFiles { cert: cert?, key: key? })
}

/// How the instances of a service are reached over TLS.
pub(super) fn upstream(node: &Node, cx: &mut Context<'_>) -> Option<UpstreamTls> {
    let fields = cx.fields(node, "the tls of a Service", &["ca", "sni"])?;
    let ca = path(&fields, cx, "ca");
    let sni = fields.required(cx, "sni").and_then(|node| {
        cx.within("sni", |cx| {
            let text = cx.text(node, "the DNS name that the certificates of instances are for")?;
            match tls::check_sni(text) {
                Ok(()) => Some(text.to_ascii_lowercase()),
                Err(error) => cx.error(node.line, error.to_string()),
            }
        })
    });
    Some(UpstreamTls { ca: ca?, sni: sni? })
}

fn path(fields: &Fields<'_>, cx: &mut Context<'_>, name: &str) -> Option<PathBuf> {
    let node = fields.required(cx, name)?;
    cx.within(name, |cx| {
        let text = cx.text(node, "the absolute path of a PEM file")?;
        if text.contains("-----BEGIN") {
            // Not shown: it may be a key.
            return cx
                .error(node.line, "is PEM itself; put it in a file, and give the absolute path of that");
        }
        match tls::check_path(text) {
            Ok(()) => Some(PathBuf::from(text)),
            Err(error) => {
                let shown = text.chars().take(80).collect::<String>().replace('\0', "\\0");
                cx.error(node.line, format!("`{shown}` {error}"))
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use crate::manifest::{Document, from_json, parse};

    const GATEWAY: &str = "kind: Gateway\nname: edge\nlisten: 127.0.0.1:443\n";
    const SERVICE: &str = "kind: Service\nname: shop\nversions: {v1: {}}\n";

    fn document(text: &str) -> Document {
        parse("m", text).unwrap().remove(0).document
    }

    fn error(text: &str) -> String {
        parse("m", text).unwrap_err()[0].to_string()
    }

    #[test]
    fn what_is_written_as_json_reads_back_the_same() {
        let gateway = "tls: {certificates: [{cert: /a.pem, key: /a.key}, {cert: /b.pem, key: /a.key}]}\n";
        let service = "protocol: grpc\ntls: {ca: /ca.pem, sni: Shop.Internal}\n";
        let secrets = "tls: {certificates: [{secret: a.example}, {secret: b}]}\n";
        for text in [
            GATEWAY.to_owned(),
            format!("{GATEWAY}{gateway}"),
            format!("{GATEWAY}{secrets}"),
            format!("{SERVICE}{service}"),
        ] {
            let read = document(&text);
            let json = serde_json::to_value(&read).unwrap();
            assert_eq!(from_json("stored", &json).as_ref(), Ok(&read));
            assert_eq!(json.get("tls").is_some(), text.contains("tls"), "{json}");
        }
        let Document::Service(service) = document(&format!("{SERVICE}{service}")) else { panic!() };
        assert_eq!(service.tls.unwrap().sni, "shop.internal");
    }

    #[test]
    fn errors_name_line_field_and_remedy() {
        let many = "{cert: /a, key: /b}, ".repeat(1_001);
        let cases = [
            (GATEWAY, "tls: {}", "m:4: tls.certificates: is missing"),
            (GATEWAY, "tls: {certificates: []}", "m:4: tls.certificates: is empty; a gateway with TLS has"),
            (
                GATEWAY,
                "tls: {certificates: /a.pem}",
                "m:4: tls.certificates: is the text `/a.pem`; expected a list",
            ),
            (
                GATEWAY,
                &format!("tls: {{certificates: [{many}]}}"),
                "m:4: tls.certificates: lists 1001 certificates",
            ),
            (GATEWAY, "tls:\n  certificates:\n  - cert: /a", "m:6: tls.certificates[0].key: is missing"),
            (
                GATEWAY,
                "tls:\n  certificates:\n  - cert: a.pem\n    key: /k",
                "m:6: tls.certificates[0].cert: `a.pem` is not an absolute path",
            ),
            (
                GATEWAY,
                "tls:\n  certificates:\n  - {cert: /a, key: /k}\n  - {cert: /a, key: /l}",
                "m:7: tls.certificates[1].cert: `/a` is certificates[0] already",
            ),
            (
                GATEWAY,
                "tls:\n  certificates:\n  - {cert: /a, key: /k}\n  - {secret: a}",
                "m:6: tls.certificates: has both files and secrets",
            ),
            (
                GATEWAY,
                "tls:\n  certificates:\n  - {secret: a}\n  - {secret: a}",
                "m:7: tls.certificates[1].secret: `a` is certificates[0] already",
            ),
            (
                GATEWAY,
                "tls:\n  certificates:\n  - {secret: a, key: /k}",
                "m:6: tls.certificates[0]: has both files and a secret",
            ),
            (
                GATEWAY,
                "tls: {certificates: [{secret: a/b}]}",
                "m:4: tls.certificates[0].secret: `a/b` is not a secret name",
            ),
            (
                GATEWAY,
                "tls:\n  certificates:\n  - cert: /a\n    key: |\n      -----BEGIN PRIVATE KEY-----\n      abc",
                "m:8: tls.certificates[0].key: is PEM itself",
            ),
            (GATEWAY, "tls: {sni: a}", "m:4: tls.sni: is not a field of the tls of a Gateway"),
            (SERVICE, "tls: {ca: /ca}", "m:4: tls.sni: is missing"),
            (SERVICE, "tls: {sni: a}", "m:4: tls.ca: is missing"),
            (
                SERVICE,
                "tls: {ca: /ca, sni: \"\"}",
                "m:4: tls.sni: is empty; without a name the certificate of an instance could not be checked",
            ),
            (SERVICE, "tls: {ca: /ca, sni: 10.0.0.1}", "m:4: tls.sni: is not a DNS name"),
            (SERVICE, "tls: {ca: ca, sni: a}", "m:4: tls.ca: `ca` is not an absolute path"),
            (SERVICE, "protocol: tcp\ntls: {ca: /ca, sni: a}", "m:5: tls: does not go with `protocol: tcp`"),
        ];
        for (before, text, expected) in cases {
            let error = error(&format!("{before}{text}\n"));
            assert!(error.starts_with(expected), "{text}\n→ {error}\n≠ {expected}");
        }
    }
}
