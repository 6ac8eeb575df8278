//! Request targets (RFC 9112 §3.2) and hosts (RFC 9110 §7.2).

use std::net::Ipv6Addr;

use memchr::{memchr, memchr2};

use super::HeadError;

/// A request target that was understood.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'b> {
    /// The authority of an absolute-form target.
    pub(super) authority: Option<&'b str>,
    /// The target of the origin-form, but for the slash below.
    pub(super) origin: &'b str,
    /// An absolute-form target had a query but no path, so the origin-form needs a slash before it.
    pub(super) slash: bool,
}

impl<'b> Target<'b> {
    pub(super) fn parse(method: &str, text: &'b str) -> Result<Self, HeadError> {
        // RFC 9110 §9.3.6: CONNECT makes a tunnel, which a gateway before origin servers does for
        // nobody. 501, as it is so for any resource; 405 would have to list what the resource allows
        // (RFC 9110 §15.6.2, §15.5.6).
        if method == "CONNECT" {
            return Err(HeadError::new(501, "CONNECT is not supported"));
        }
        // RFC 9112 §3.2: 400 for an invalid target. httparse has refused spaces and controls.
        // RFC 9110 §7.1: a fragment is not sent.
        if !text.is_ascii() || memchr(b'#', text.as_bytes()).is_some() {
            return Err(HeadError::bad("the request target has invalid characters"));
        }
        if text.starts_with('/') {
            return Ok(Self { authority: None, origin: text, slash: false }); // §3.2.1
        }
        // RFC 9112 §3.2.4: the asterisk is for OPTIONS only.
        if text == "*" {
            return match method {
                "OPTIONS" => Ok(Self { authority: None, origin: text, slash: false }),
                _ => Err(HeadError::bad("the request target * is for OPTIONS only")),
            };
        }
        Self::absolute(method, text)
    }

    /// Absolute-form (RFC 9112 §3.2.2).
    fn absolute(method: &str, text: &'b str) -> Result<Self, HeadError> {
        const FORM: HeadError = HeadError::bad("the request target has none of the known forms");
        let rest = match text.split_once("://") {
            // RFC 3986 §3.1: schemes are compared without case.
            Some((scheme, rest))
                if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") =>
            {
                rest
            }
            _ => return Err(FORM),
        };
        let end = memchr2(b'/', b'?', rest.as_bytes()).unwrap_or(rest.len());
        let (authority, origin) = rest.split_at(end);
        // RFC 9110 §4.2.1: a host that is not empty; §4.2.4: user information is an error.
        if !is_host(authority) {
            return Err(HeadError::bad("the host of the request target is not valid"));
        }
        let (origin, slash) = match origin.as_bytes().first() {
            // RFC 9112 §3.2.4: an absolute-form target for OPTIONS without a path means the asterisk.
            None if method == "OPTIONS" => ("*", false),
            None => ("/", false), // §3.2.1: an empty path is sent as "/"
            Some(first) => (origin, *first == b'?'),
        };
        Ok(Self { authority: Some(authority), origin, slash })
    }

    /// The path, without the query.
    pub(super) fn path(&self) -> &'b str {
        match memchr(b'?', self.origin.as_bytes()) {
            _ if self.slash => "/",
            Some(query) => &self.origin[..query],
            None => self.origin,
        }
    }
}

/// What a registered name is made of (RFC 3986 §3.2.2), but for the comma: a list is never one host.
const NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+;=%";
    let mut i = 0;
    while i < others.len() {
        table[others[i] as usize] = true;
        i += 1;
    }
    table
};

/// Whether a text is `host [":" port]` with a host that is not empty (RFC 9110 §7.2, RFC 3986 §3.2).
#[inline]
pub(super) fn is_host(text: &str) -> bool {
    let bytes = text.as_bytes();
    if bytes.first() == Some(&b'[') {
        let Some((address, port)) = text[1..].split_once(']') else { return false };
        let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
        return address.parse::<Ipv6Addr>().is_ok() && port.is_some_and(is_port);
    }
    let end = bytes.iter().position(|byte| !NAME[usize::from(*byte)]).unwrap_or(bytes.len());
    let port = match bytes.get(end) {
        None => "",
        Some(b':') => &text[end + 1..],
        Some(_) => return false,
    };
    end > 0 && is_port(port) && are_escapes_whole(&bytes[..end])
}

/// Digits up to 65535, or nothing (RFC 3986 §3.2.3).
fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && (text.is_empty() || text.parse::<u16>().is_ok())
}

/// Whether two hexadecimal digits follow each percent sign (RFC 3986 §2.1).
fn are_escapes_whole(name: &[u8]) -> bool {
    memchr::memchr_iter(b'%', name)
        .all(|at| name.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)))
}
