//! The one provider of cryptography: ring, with its cipher suites in our order.

use std::sync::{Arc, LazyLock};

use rustls::{
    CipherSuite,
    crypto::{CryptoProvider, ring},
};

/// Ring. Of its suites, those with AES-128 come first: two in three of AES-256's rounds, and SHA-256 is
/// in hardware where SHA-384 is not. The order counts where we are the client (RFC 8446 §4.1.2); as a
/// server we follow the client, who knows whether it has AES in hardware.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let mut provider = ring::default_provider();
        if has_aes() {
            provider.cipher_suites.sort_by_key(|suite| !is_aes_128(suite.suite()));
        }
        Arc::new(provider)
    });
    Arc::clone(&PROVIDER)
}

fn is_aes_128(suite: CipherSuite) -> bool {
    matches!(
        suite,
        CipherSuite::TLS13_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
            | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256
    )
}

fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

#[cfg(test)]
mod tests {
    use rustls::ProtocolVersion;

    use super::*;

    #[test]
    fn every_suite_of_ring_is_kept_and_tls_1_3_stays_before_tls_1_2_of_its_kind() {
        let ours = provider();
        assert_eq!(ours.cipher_suites.len(), ring::default_provider().cipher_suites.len());
        let versions: Vec<_> = ours.cipher_suites.iter().map(|suite| suite.version().version).collect();
        assert_eq!(versions[0], ProtocolVersion::TLSv1_3);
    }
}
