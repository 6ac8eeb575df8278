use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use super::*;

/// A certificate for `names`, and its key.
fn pair(names: &[&str]) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let certificate = CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
    (certificate.pem(), key.serialize_pem())
}

fn read(cert: &str, key: &str) -> Result<Certificate, PairError> {
    certified_key(cert.as_bytes(), key.as_bytes())
}

/// A PEM block (RFC 7468 §3), in one line.
fn block(label: &str, der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(three.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let letter = char::from(ALPHABET[bits >> (18 - 6 * i) & 63]);
            text.push(if i <= three.len() { letter } else { '=' });
        }
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n")
}

#[test]
fn a_pair_reads_with_its_names_in_order() {
    let (cert, key) = pair(&["*.Shop.example.com", "shop.example.com", "127.0.0.1", "::1"]);
    let read = read(&cert, &key).unwrap();
    assert_eq!(read.names, ["*.shop.example.com", "shop.example.com"]);
    let addresses: [IpAddr; 2] = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    assert_eq!(read.addresses, addresses);
    assert_eq!(read.key.cert.len(), 1);
}

#[test]
fn the_certificate_comes_first_and_its_intermediates_are_kept() {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(["a.example".to_owned()]).unwrap().signed_by(&key, &authority).unwrap();
    let chain = format!("{}{}", leaf.pem(), authority.pem());
    let served = read(&chain, &key.serialize_pem()).unwrap();
    assert_eq!((served.key.cert.len(), served.names.as_slice()), (2, ["a.example".to_owned()].as_slice()));
    // In the wrong order the authority is what the key is compared with.
    let turned = format!("{}{}", authority.pem(), leaf.pem());
    assert_eq!(read(&turned, &key.serialize_pem()).unwrap_err(), PairError::Mismatch);
    assert_eq!(authorities(chain.as_bytes()).unwrap().len(), 2);
}

#[test]
fn both_may_be_one_file() {
    let (cert, key) = pair(&["a.example"]);
    for file in [format!("{cert}{key}"), format!("# a note\n{key}\n{cert}")] {
        assert!(read(&file, &file).is_ok());
    }
}

#[test]
fn a_key_may_be_sec1_or_of_another_kind() {
    let key = KeyPair::generate().unwrap();
    let cert = CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    // RFC 5958 §2: what P-256 wraps into PKCS#8 begins after 29 bytes.
    let sec1 = &key.serialized_der()[29..];
    assert_eq!(sec1[0], 0x30, "a sequence");
    let parameters = block("EC PARAMETERS", &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7]);
    assert!(read(&cert, &(parameters + &block("EC PRIVATE KEY", sec1))).is_ok());

    for algorithm in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        let key = KeyPair::generate_for(algorithm).unwrap();
        let cert = CertificateParams::new(["a.example".to_owned()]).unwrap().self_signed(&key).unwrap();
        assert!(read(&cert.pem(), &key.serialize_pem()).is_ok(), "{algorithm:?}");
    }
}

#[test]
fn each_fault_is_told_from_the_others() {
    let (cert, key) = pair(&["a.example"]);
    let (_, other) = pair(&["a.example"]);
    let encrypted = block("ENCRYPTED PRIVATE KEY", &[0x30, 0]);
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let (no_cert, no_key) = (PairError::NoCertificate, PairError::NoKey);
    let cases: &[(&str, &str, PairError)] = &[
        ("", &key, no_cert),
        (&key, &key, no_cert),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            &key,
            PairError::BadCertificate(1),
        ),
        ("-----BEGIN CERTIFICATE-----\nAAAA\n", &key, PairError::BadCertificate(1)),
        (&format!("{cert}{}", block("CERTIFICATE", &[0x30, 0])), &key, PairError::BadCertificate(2)),
        (&cert, "", no_key),
        (&cert, &cert, no_key),
        (&cert, &encrypted, PairError::EncryptedKey),
        (&cert, old, PairError::EncryptedKey),
        (&cert, &block("PRIVATE KEY", &[0x30, 0]), PairError::BadKey),
        (&cert, &other, PairError::Mismatch),
    ];
    for (i, (cert, key, expected)) in cases.iter().enumerate() {
        assert_eq!(read(cert, key).unwrap_err(), *expected, "case {i}");
    }
    assert_eq!(authorities(key.as_bytes()).unwrap_err(), no_cert);
}

#[test]
fn an_expired_certificate_reads_and_says_so() {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["a.example".to_owned()]).unwrap();
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2020, 1, 2);
    let cert = params.self_signed(&key).unwrap().pem();
    let read = read(&cert, &key.serialize_pem()).unwrap();
    let at = |seconds: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let (first, last) = (1_577_836_800, 1_577_923_200);
    for (seconds, expected) in [
        (first - 1, Validity::NotYet),
        (first, Validity::Valid),
        (last, Validity::Valid),
        (last + 1, Validity::Expired),
    ] {
        assert_eq!(read.validity(at(seconds)), expected, "{seconds}");
    }
}

#[test]
fn a_certificate_may_be_for_nobody() {
    let (cert, key) = pair(&[]);
    let read = read(&cert, &key).unwrap();
    assert!(read.names.is_empty() && read.addresses.is_empty());
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let (cert, key) = pair(&["a.example", "127.0.0.1"]);
    let seed = 5;
    let mut rng = fastrand::Rng::with_seed(seed);
    let der = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap().to_vec();
    for _ in 0..3_000 {
        let mut der = der.clone();
        for _ in 0..rng.usize(1..4) {
            let at = rng.usize(0..der.len());
            der[at] = rng.u8(..);
        }
        // Whatever it is, it is read or refused.
        let _ = read(&block("CERTIFICATE", &der), &key);
        let _ = authorities(block("CERTIFICATE", &der).as_bytes());
        let mut text = format!("{cert}{key}").into_bytes();
        let at = rng.usize(0..text.len());
        text[at] = rng.u8(..);
        let _ = certified_key(&text, &text);
    }
}
