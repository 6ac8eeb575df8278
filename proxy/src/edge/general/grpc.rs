//! What the proxy's own answers are to gRPC: a status in trailers of a response that is 200 in HTTP.

use http::{HeaderMap, StatusCode, header};

/// Of gRPC's codes those that the proxy says.
const UNKNOWN: u8 = 2;
const UNIMPLEMENTED: u8 = 12;
const INTERNAL: u8 = 13;
/// The only one of them that clients try again by default.
pub(super) const UNAVAILABLE: u8 = 14;

/// Whether a request is gRPC's ("gRPC over HTTP2", Requests): `application/grpc`, maybe followed by `+`
/// or `;` and more. `application/grpc-web` is not: it is plain HTTP to a proxy.
pub(super) fn is_grpc(fields: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some(value) = fields.get(header::CONTENT_TYPE) else { return false };
    let value = value.as_bytes();
    let begins = value.get(..TYPE.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(TYPE));
    begins && matches!(value.get(TYPE.len()), None | Some(b'+' | b';'))
}

/// The code for a status of HTTP, as gRPC's own clients would have it ("HTTP to gRPC Status Code
/// Mapping"): also 504 is unavailable, as the deadline that passed is not the client's. 500 is the
/// proxy's own fault here, and not what somebody else may have meant by it.
pub(super) fn code(status: StatusCode) -> u8 {
    match status.as_u16() {
        400 | 500 => INTERNAL,
        404 | 405 | 501 => UNIMPLEMENTED,
        429 | 502..=504 => UNAVAILABLE,
        _ => UNKNOWN,
    }
}

/// `message` as `grpc-message` has it: percent-encoded but for printable ASCII ("gRPC over HTTP2",
/// Responses).
pub(super) fn percent_encoded(message: &str) -> String {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => out.push(byte as char),
            _ => {
                out.push('%');
                out.push(HEX[usize::from(byte >> 4)] as char);
                out.push(HEX[usize::from(byte & 15)] as char);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::edge::policy::Refusal;

    #[test]
    fn a_refusal_has_the_code_that_clients_would_make_of_its_status() {
        let cluster = || "shop/v1".to_owned();
        for (refusal, expected) in [
            (Refusal::UnknownHost("a".into()), 12),
            (Refusal::NoRoute("/".into()), 12),
            (Refusal::NoCluster(cluster()), 14),
            (Refusal::NoEndpoint(cluster()), 14),
            (Refusal::Unreachable { cluster: cluster(), attempts: 3 }, 14),
            (Refusal::Overloaded, 14),
            (Refusal::Broken(cluster()), 14),
            (Refusal::TimedOut(cluster()), 14),
            (Refusal::BadRequest, 13),
            (Refusal::Internal, 13),
            (Refusal::SlowBody, 2),
        ] {
            assert_eq!(code(refusal.status()), expected, "{refusal:?}");
        }
    }

    #[test]
    fn grpc_is_told_by_its_content_type() {
        for (value, expected) in [
            ("application/grpc", true),
            ("Application/gRPC+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grp", false),
            ("application/json", false),
        ] {
            let fields: HeaderMap = [(header::CONTENT_TYPE, value.parse().unwrap())].into_iter().collect();
            assert_eq!(is_grpc(&fields), expected, "{value}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }

    #[test]
    fn a_message_is_printable_ascii() {
        assert_eq!(percent_encoded("no route for 100%\n\u{e9}"), "no route for 100%25%0A%C3%A9");
    }
}
