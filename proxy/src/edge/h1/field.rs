//! The names of fields that mean something to a proxy; the only list of them.

/// What a field is to a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    /// Forwarded, and otherwise none of the proxy's business.
    Other,
    Connection,
    ContentLength,
    Expect,
    ForwardedFor,
    ForwardedProto,
    Host,
    /// The connection's own, with nothing in it that the proxy acts on.
    Hop,
    Te,
    TransferEncoding,
    Upgrade,
}

impl Field {
    /// How many there are.
    pub(super) const COUNT: usize = Self::Upgrade as usize + 1;

    /// What a name means. Length and first byte decide whether letters are compared at all.
    #[inline]
    pub(super) fn of(name: &str) -> Self {
        let Some(first) = name.as_bytes().first() else { return Self::Other };
        let (known, field) = match (name.len(), first | 0x20) {
            (2, b't') => ("te", Self::Te),
            (4, b'h') => ("host", Self::Host),
            (6, b'e') => ("expect", Self::Expect),
            (7, b'u') => ("upgrade", Self::Upgrade),
            (10, b'c') => ("connection", Self::Connection),
            // RFC 9110 §7.6.1: these two were used before `Connection` could name them.
            (10, b'k') => ("keep-alive", Self::Hop),
            (16, b'p') => ("proxy-connection", Self::Hop),
            (14, b'c') => ("content-length", Self::ContentLength),
            // RFC 7540 §3.2.1: part of the upgrade to h2c, which is never forwarded.
            (14, b'h') => ("http2-settings", Self::Hop),
            (15, b'x') => ("x-forwarded-for", Self::ForwardedFor),
            (17, b'x') => ("x-forwarded-proto", Self::ForwardedProto),
            (17, b't') => ("transfer-encoding", Self::TransferEncoding),
            // RFC 9110 §11.7: between a client and its forward proxy. This proxy stands before origin
            // servers and asks for no credentials, so an endpoint neither gets them nor may ask.
            (18, b'p') => ("proxy-authenticate", Self::Hop),
            (19, b'p') => ("proxy-authorization", Self::Hop),
            (25, b'p') => ("proxy-authentication-info", Self::Hop),
            _ => return Self::Other,
        };
        if name.eq_ignore_ascii_case(known) { field } else { Self::Other }
    }

    /// Whether it belongs to one connection and is never copied to another (RFC 9110 §7.6.1). What the
    /// other connection needs of it is written anew.
    #[inline]
    pub(super) const fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::Hop | Self::Te | Self::TransferEncoding | Self::Upgrade)
    }

    /// Whether route filters may set or remove it: not what frames a message or names the connection.
    #[inline]
    pub(super) const fn is_editable(self) -> bool {
        !self.is_hop_by_hop() && !matches!(self, Self::ContentLength | Self::Host)
    }

    /// Whether `Connection` must not name it: it is meant for the recipient of the content (RFC 9110
    /// §7.6.1), and dropping it on a client's word would change where the message goes, how long it is
    /// or who it is said to come from.
    pub(super) const fn is_end_to_end(self) -> bool {
        matches!(
            self,
            Self::ContentLength | Self::Expect | Self::ForwardedFor | Self::ForwardedProto | Self::Host
        )
    }
}

/// Whether a field may come after the content. Not what frames or routes a message, changes how it is
/// processed, proves who sent it, or says what the content is (RFC 9110 §6.5.1).
pub(super) fn may_be_trailer(name: &str) -> bool {
    const NOT: [&str; 17] = [
        "authorization",
        "cache-control",
        "content-encoding",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expires",
        "location",
        "max-forwards",
        "pragma",
        "range",
        "retry-after",
        "set-cookie",
        "trailer",
        "vary",
        "www-authenticate",
    ];
    Field::of(name) == Field::Other && !NOT.iter().any(|not| name.eq_ignore_ascii_case(not))
}
