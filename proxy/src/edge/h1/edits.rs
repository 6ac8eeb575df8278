//! What the proxy changes in a head on its way. Empty is free.

use super::{lines::is_named, response::ResponseBody};

/// Changes to a request. By default it is forwarded without a word of the proxy's.
///
/// `set` and `remove` name fields in any case; those that frame the message or belong to the connection
/// are left alone (RFC 9110 §7.6.1), and the host has its own place here. Whoever makes the lists
/// has checked that names are tokens and values have no control characters.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RequestEdits<'a> {
    /// The client's address as text, appended to `x-forwarded-for`; empty leaves the field as it is.
    pub(crate) client: &'a str,
    /// `http` or `https`, the one value of `x-forwarded-proto`; empty leaves the field as it is.
    pub(crate) proto: &'a str,
    /// Takes the place of the host.
    pub(crate) host: Option<&'a str>,
    /// Takes the place of path and query.
    pub(crate) target: Option<&'a str>,
    /// Ask the endpoint for the upgrade that the client asks for.
    pub(crate) upgrade: bool,
    /// Tell the endpoint that the client takes trailers, when it said so (RFC 9110 §10.1.4).
    pub(crate) te_trailers: bool,
    /// Leave `expect` out: the proxy has answered it (RFC 9110 §10.1.1).
    pub(crate) drop_expect: bool,
    /// Fields that take the place of all of that name.
    pub(crate) set: &'a [(&'a str, &'a str)],
    /// Names of fields that are left out.
    pub(crate) remove: &'a [&'a str],
}

impl RequestEdits<'_> {
    /// Whether a filter has its say on a field.
    pub(super) fn names(&self, name: &str) -> bool {
        is_named(name, self.set, self.remove)
    }

    /// Whether the proxy adds the client's address; a filter goes before.
    pub(super) fn says_client(&self) -> bool {
        !self.client.is_empty() && !self.names("x-forwarded-for")
    }

    /// Whether the proxy adds the client's protocol; a filter goes before.
    pub(super) fn says_proto(&self) -> bool {
        !self.proto.is_empty() && !self.names("x-forwarded-proto")
    }
}

/// Changes to a response.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ResponseEdits<'a> {
    pub(crate) framing: FramingEdit,
    pub(crate) connection: Connection,
    /// As in [`RequestEdits`].
    pub(crate) set: &'a [(&'a str, &'a str)],
    pub(crate) remove: &'a [&'a str],
}

/// How the client learns where a body ends. A response without a body gets none of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FramingEdit {
    /// As the endpoint framed it: its length, or chunked.
    #[default]
    AsIs,
    /// Chunked, although the endpoint ended it by closing.
    Chunk,
    /// By closing: the client's HTTP/1.0 knows no chunks (RFC 9112 §6.1). A known length is kept.
    UntilClose,
}

impl FramingEdit {
    pub(super) fn is_chunked(self, body: ResponseBody) -> bool {
        match self {
            Self::AsIs => body == ResponseBody::Chunked,
            Self::Chunk => body != ResponseBody::None,
            Self::UntilClose => false,
        }
    }
}

/// What the client is told of its connection (RFC 9112 §9.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Connection {
    /// Goes on, to a client of HTTP/1.1: nothing to say.
    #[default]
    Persist,
    /// Goes on, to a client of HTTP/1.0: `connection: keep-alive`.
    Persist10,
    /// `connection: close`.
    Close,
    /// `connection: upgrade`, with the endpoint's `upgrade` field.
    Upgrade,
}
