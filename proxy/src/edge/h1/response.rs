//! The head of an endpoint's response: what it means, and the head that the client gets for it.

pub(crate) use super::edits::{Connection, FramingEdit, ResponseEdits};
use super::{
    HeadError, Slots, Version,
    field::Field,
    lines::{self, Framed, Lines, Options, Set},
};

/// How the body of a response is framed (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseBody {
    None,
    /// Bytes, maybe 0.
    Length(u64),
    Chunked,
    /// All until the endpoint closes.
    UntilClose,
}

/// The head of a response that was understood whole.
#[derive(Debug)]
pub(crate) struct ResponseHead<'s, 'b> {
    version: Version,
    status: u16,
    body: ResponseBody,
    keep_alive: bool,
    upgrade: Option<&'b str>,
    pub(super) lines: Lines<'s, 'b>,
    found: [Set; Field::COUNT],
    /// Fields that are not copied, whatever the edits.
    dropped: Set,
    /// A length to write in place of the dropped one.
    restated: Option<u64>,
}

/// Reads the head of a response from the beginning of `bytes`; `None` as long as it is not whole. All
/// errors are 502. `to_head` says that the request was HEAD.
#[inline]
pub(crate) fn parse_response<'s, 'b>(
    bytes: &'b [u8],
    slots: &'s mut Slots<'b>,
    to_head: bool,
) -> Result<Option<ResponseHead<'s, 'b>>, HeadError> {
    // RFC 9112 §2.2 allows empty lines before requests only; httparse would skip them.
    if bytes.first().is_some_and(|first| *first != b'H') {
        return Err(HeadError::new(502, "the response does not begin with HTTP"));
    }
    let mut parsed = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let len = match config.parse_response_with_uninit_headers(&mut parsed, bytes, &mut slots.0) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal(error)),
    };
    let (Some(minor), Some(status)) = (parsed.version, parsed.code) else {
        return Err(HeadError::new(502, "the status line is not whole")); // httparse sets both
    };
    let lines = Lines { head: &bytes[..len], fields: parsed.headers };
    ResponseHead::understand(lines, minor, status, to_head).map(Some).map_err(HeadError::gateway)
}

/// A folded line and white space before a colon are among these: RFC 9112 §5.2 lets a gateway refuse the
/// one, and §5.1 would have it mend the other, which nothing that an endpoint honestly sends needs.
#[cold]
fn refusal(error: httparse::Error) -> HeadError {
    use httparse::Error;
    HeadError::new(
        502,
        match error {
            Error::HeaderName => "the name of a field is not valid",
            Error::HeaderValue => "the value of a field is not valid",
            Error::NewLine => "a line does not end with CR LF",
            Error::TooManyHeaders => "too many fields",
            Error::Status | Error::Token | Error::Version => "the status line is not valid",
        },
    )
}

impl<'s, 'b> ResponseHead<'s, 'b> {
    #[inline]
    fn understand(lines: Lines<'s, 'b>, minor: u8, status: u16, to_head: bool) -> Result<Self, HeadError> {
        if status < 100 {
            return Err(HeadError::bad("the status is not valid")); // RFC 9110 §15
        }
        let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        let found = lines.scan()?;
        let of = |field: Field| found[field as usize];
        let framed = Framed::of(&lines, of(Field::ContentLength), of(Field::TransferEncoding))?;
        // RFC 9112 §6.1: with HTTP/1.0, the framing is taken to be faulty.
        if framed == Framed::Chunked && version == Version::Http10 {
            return Err(HeadError::bad("transfer-encoding in HTTP/1.0"));
        }
        let silent = status < 200 || status == 204; // RFC 9112 §6.3: never a body
        let body = match framed {
            _ if silent || status == 304 || to_head => ResponseBody::None,
            Framed::Not => ResponseBody::UntilClose,
            Framed::Length { length, .. } => ResponseBody::Length(length),
            Framed::Chunked => ResponseBody::Chunked,
        };
        let options = Options::of(&lines, of(Field::Connection))?;
        let mut dropped = options.nominated
            | of(Field::Connection)
            | of(Field::Hop)
            | of(Field::Te)
            | of(Field::TransferEncoding)
            | of(Field::Upgrade);
        let mut restated = None;
        match framed {
            // RFC 9110 §8.6: no length in 1xx and 204. With HEAD and 304 it is that of the content
            // which is not sent.
            _ if silent => dropped |= of(Field::ContentLength),
            Framed::Length { length, odd: true } => {
                dropped |= of(Field::ContentLength);
                restated = Some(length);
            }
            _ => {}
        }
        let goes_on = !options.close && (version == Version::Http11 || options.keep_alive);
        let ascii = |value: &'b [u8]| std::str::from_utf8(value).ok().filter(|text| text.is_ascii());
        Ok(Self {
            version,
            status,
            body,
            keep_alive: goes_on && body != ResponseBody::UntilClose && status != 101,
            upgrade: lines.only(of(Field::Upgrade)).and_then(ascii).filter(|_| options.upgrade),
            lines,
            found,
            dropped,
            restated,
        })
    }

    /// 100 to 999.
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    pub(crate) fn body(&self) -> ResponseBody {
        self.body
    }

    /// Whether the endpoint's connection goes on after the body (RFC 9112 §9.3).
    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the endpoint says that it changes to another protocol (RFC 9110 §7.8).
    pub(crate) fn upgrades(&self) -> bool {
        self.status == 101 && self.upgrade.is_some()
    }

    /// Bytes of the head, with the empty line at its end.
    pub(crate) fn len(&self) -> usize {
        self.lines.head.len()
    }

    #[cfg(test)]
    /// All fields as they were sent, white space around the values taken off.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.lines.fields.iter().map(|field| (field.name, field.value))
    }

    #[cfg(test)]
    /// The values of all fields of a name, which is compared without case.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.fields().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Fields that are not copied.
    pub(super) fn left_out(&self, edits: &ResponseEdits<'_>) -> Set {
        let mut out = self.dropped | self.lines.edited(edits.set, edits.remove);
        if edits.framing.is_chunked(self.body) {
            out |= self.found[Field::ContentLength as usize];
        }
        out
    }

    /// A length that is written anew.
    pub(super) fn restated_length(&self) -> Option<u64> {
        self.restated
    }

    /// Appends the head that the client gets: of HTTP/1.1, with the endpoint's reason, without what
    /// belongs to the endpoint's connection (RFC 9110 §7.6.1), and with the edits.
    #[inline]
    pub(crate) fn write_downstream(&self, out: &mut Vec<u8>, edits: &ResponseEdits<'_>) {
        const CODE_END: usize = "HTTP/1.1 200".len();
        out.reserve(self.len() + 128);
        let head = self.lines.head;
        let left_out = self.left_out(edits);
        // RFC 9112 §4: the version is the proxy's own, and a space is there even without a reason.
        let spaced = head.get(CODE_END) == Some(&b' ');
        let from = if self.version == Version::Http11 && spaced {
            0
        } else {
            out.extend_from_slice(b"HTTP/1.1");
            out.extend_from_slice(head.get("HTTP/1.1".len()..CODE_END).unwrap_or_default());
            out.push(b' ');
            CODE_END + usize::from(spaced)
        };
        self.lines.copy(out, from, left_out);
        if edits.framing.is_chunked(self.body) {
            out.extend_from_slice(b"transfer-encoding: chunked\r\n");
        } else if let Some(length) = self.restated {
            lines::write_length(out, length);
        }
        lines::write_set(out, edits.set);
        write_connection(out, edits.connection, self.upgrade);
        out.extend_from_slice(b"\r\n");
    }
}

/// What the client is told of its connection.
pub(super) fn write_connection(out: &mut Vec<u8>, connection: Connection, upgrade: Option<&str>) {
    match connection {
        Connection::Persist => {}
        Connection::Persist10 => out.extend_from_slice(b"connection: keep-alive\r\n"),
        Connection::Close => out.extend_from_slice(b"connection: close\r\n"),
        Connection::Upgrade => {
            out.extend_from_slice(b"connection: upgrade\r\n");
            if let Some(upgrade) = upgrade {
                lines::write_field(out, "upgrade", upgrade.as_bytes());
            }
        }
    }
}
