//! Which addresses may be listened on without anybody saying who they are. Pure.

use std::net::{IpAddr, SocketAddr};

use config::bootstrap::ServerSettings;

/// Whether only this machine reaches `ip`.
pub(super) fn is_loopback(ip: IpAddr) -> bool {
    ip.to_canonical().is_loopback()
}

/// Refuses to be open to other machines by mistake.
pub(super) fn check(settings: &ServerSettings) -> Result<(), String> {
    let beyond = |address: SocketAddr| !is_loopback(address.ip());
    let api = beyond(settings.api_addr) && !(settings.access.is_some() && settings.tls.is_some());
    let knows_proxies = settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let xds = beyond(settings.xds_addr) && !knows_proxies;
    if settings.insecure {
        if api || xds {
            tracing::warn!(
                "--insecure: other machines may reach what does not ask who they are, or sends it in the clear"
            );
        }
        return Ok(());
    }
    if api {
        return Err(format!(
            "--api-addr {} is reached by other machines: give --access, which says who may do what, and --tls-cert with --tls-key, so that no token travels in the clear; or listen on 127.0.0.1; or, where something else sees to both, say --insecure",
            settings.api_addr
        ));
    }
    if xds {
        return Err(format!(
            "--xds-addr {} is reached by other machines: give --tls-cert, --tls-key and --client-ca, so that proxies show who they are; or listen on 127.0.0.1; or, where something else sees to it, say --insecure",
            settings.xds_addr
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use config::{CertificateFiles, bootstrap::ServerTls};

    use super::*;

    fn settings(api: &str, xds: &str) -> ServerSettings {
        let mut settings = ServerSettings::new("/nowhere");
        (settings.api_addr, settings.xds_addr) = (api.parse().unwrap(), xds.parse().unwrap());
        settings
    }

    fn tls(client_ca: bool) -> ServerTls {
        let certificate = CertificateFiles { cert: "/c".into(), key: "/k".into() };
        ServerTls { certificate, client_ca: client_ca.then(|| "/ca".into()) }
    }

    #[test]
    fn loopback_needs_nothing() {
        for address in ["127.0.0.1:0", "127.9.9.9:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(check(&settings(address, address)), Ok(()), "{address}");
        }
    }

    #[test]
    fn other_machines_need_tls_and_names() {
        let near = "127.0.0.1:1";
        for far in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            let mut api = settings(far, near);
            assert!(check(&api).unwrap_err().starts_with(&format!("--api-addr {far} is reached")));
            api.access = Some("/access".into());
            assert!(check(&api).is_err(), "tokens in the clear");
            api.tls = Some(tls(false));
            assert_eq!(check(&api), Ok(()));
            api.access = None;
            assert!(check(&api).is_err());

            let mut xds = settings(near, far);
            assert!(check(&xds).unwrap_err().starts_with(&format!("--xds-addr {far} is reached")));
            xds.access = Some("/access".into());
            xds.tls = Some(tls(false));
            assert!(check(&xds).is_err(), "proxies without names");
            xds.tls = Some(tls(true));
            assert_eq!(check(&xds), Ok(()));

            let mut open = settings(far, far);
            open.insecure = true;
            assert_eq!(check(&open), Ok(()));
        }
    }
}
