//! The head of a request: what it means, and the head that an endpoint gets for it.

use httparse::Error;

pub(crate) use super::edits::RequestEdits;
use super::{
    HeadError, Slots, Version,
    field::Field,
    lines::{self, Framed, Lines, Options, Set},
    target::{Target, is_host},
};

/// How the body of a request is framed (RFC 9112 §6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestBody {
    None,
    /// Bytes, maybe 0.
    Length(u64),
    Chunked,
}

/// The head of a request that was understood whole.
#[derive(Debug)]
pub(crate) struct RequestHead<'s, 'b> {
    version: Version,
    body: RequestBody,
    keep_alive: bool,
    expects_continue: bool,
    te_trailers: bool,
    upgrade: Option<&'b str>,
    method: &'b str,
    text: &'b str,
    target: Target<'b>,
    host: &'b str,
    pub(super) lines: Lines<'s, 'b>,
    /// Where the request line begins.
    begin: usize,
    found: [Set; Field::COUNT],
    /// Fields that are not copied, whatever the edits.
    dropped: Set,
    /// A length to write in place of the dropped one.
    restated: bool,
}

/// Reads the head of a request from the beginning of `bytes`; `None` as long as it is not whole. Whoever
/// collects the bytes bounds them.
#[inline]
pub(crate) fn parse_request<'s, 'b>(
    bytes: &'b [u8],
    slots: &'s mut Slots<'b>,
) -> Result<Option<RequestHead<'s, 'b>>, HeadError> {
    // RFC 9112 §2.2: one empty line before the request line is ignored; httparse would skip any
    // number, and bare LFs too.
    let begin = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    match bytes.get(begin) {
        Some(b'\r') if bytes.len() == 1 => return Ok(None),
        Some(b'\r' | b'\n') => return Err(HeadError::bad("empty lines before the request line")),
        _ => {}
    }
    let mut parsed = httparse::Request::new(&mut []);
    let len = match parsed.parse_with_uninit_headers(&bytes[begin..], &mut slots.0) {
        Ok(httparse::Status::Complete(len)) => begin + len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(refusal(error, &bytes[begin..])),
    };
    let (Some(method), Some(text), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(HeadError::bad("the request line is not whole")); // httparse sets all three
    };
    let lines = Lines { head: &bytes[..len], fields: parsed.headers };
    RequestHead::understand(lines, begin, method, text, minor).map(Some)
}

#[cold]
fn refusal(error: Error, bytes: &[u8]) -> HeadError {
    match error {
        Error::HeaderName => HeadError::bad("the name of a field is not valid"),
        Error::HeaderValue => HeadError::bad("the value of a field is not valid"),
        Error::NewLine => HeadError::bad("a line does not end with CR LF"),
        Error::TooManyHeaders => HeadError::new(431, "too many fields"),
        Error::Version => {
            // RFC 9110 §15.6.6: 505 only for what is a version; RFC 9113 §3.4: PRI is the
            // beginning of HTTP/2, which is not HTTP/1 of another version.
            let line = bytes.split(|byte| *byte == b'\r' || *byte == b'\n').next().unwrap_or_default();
            let mut words = line.split(|byte| *byte == b' ');
            let (method, version) = (words.next(), words.nth(1));
            let is_version = version.and_then(|version| version.strip_prefix(b"HTTP/")).is_some_and(
                |number| matches!(number, [major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit()),
            );
            if is_version && words.next().is_none() && method != Some(b"PRI") {
                return HeadError::new(505, "the version of HTTP is not supported");
            }
            HeadError::bad("the request line is not valid")
        }
        Error::Status | Error::Token => HeadError::bad("the request line is not valid"),
    }
}

impl<'s, 'b> RequestHead<'s, 'b> {
    #[inline]
    fn understand(
        lines: Lines<'s, 'b>,
        begin: usize,
        method: &'b str,
        text: &'b str,
        minor: u8,
    ) -> Result<Self, HeadError> {
        let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
        let found = lines.scan()?;
        let of = |field: Field| found[field as usize];
        let target = Target::parse(method, text)?;
        let host = host(&lines, of(Field::Host), version, &target)?;

        let framed = Framed::of(&lines, of(Field::ContentLength), of(Field::TransferEncoding))?;
        let body = match framed {
            Framed::Not => RequestBody::None, // RFC 9112 §6.3: a request without either has no body
            Framed::Length { length, .. } => RequestBody::Length(length),
            // RFC 9112 §6.1: with HTTP/1.0, the framing is taken to be faulty.
            Framed::Chunked if version == Version::Http10 => {
                return Err(HeadError::bad("transfer-encoding in HTTP/1.0"));
            }
            Framed::Chunked => RequestBody::Chunked,
        };
        let options = Options::of(&lines, of(Field::Connection))?;
        let mut dropped = options.nominated
            | of(Field::Connection)
            | of(Field::Hop)
            | of(Field::Te)
            | of(Field::TransferEncoding)
            | of(Field::Upgrade);
        let restated = matches!(framed, Framed::Length { odd: true, .. });
        if restated {
            dropped |= of(Field::ContentLength);
        }

        let mut expects_continue = false;
        if of(Field::Expect) != 0 {
            // RFC 9110 §10.1.1: 417 for what is not known; ignored from HTTP/1.0, so not passed on.
            if !lines.values(of(Field::Expect)).all(|value| value.eq_ignore_ascii_case(b"100-continue")) {
                return Err(HeadError::new(417, "an expectation other than 100-continue"));
            }
            expects_continue = version == Version::Http11;
            if !expects_continue {
                dropped |= of(Field::Expect);
            }
        }
        // RFC 9110 §7.8: only with the connection option, and ignored from HTTP/1.0.
        let asked = options.upgrade && version == Version::Http11;
        let upgrade = if asked { lines.only(of(Field::Upgrade)).and_then(upgrade) } else { None };
        Ok(Self {
            version,
            body,
            // RFC 9112 §9.3: close wins; HTTP/1.0 goes on only if asked.
            keep_alive: !options.close && (version == Version::Http11 || options.keep_alive),
            expects_continue,
            te_trailers: of(Field::Te) != 0 && takes_trailers(&lines, of(Field::Te)),
            upgrade,
            method,
            text,
            target,
            host,
            lines,
            begin,
            found,
            dropped,
            restated,
        })
    }

    /// Bytes of the head, with the empty line at its end.
    pub(crate) fn len(&self) -> usize {
        self.lines.head.len()
    }

    pub(crate) fn is_http10(&self) -> bool {
        self.version == Version::Http10
    }

    pub(crate) fn body(&self) -> RequestBody {
        self.body
    }

    /// Whether the client's connection goes on after the response (RFC 9112 §9.3).
    pub(crate) fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    /// Whether the client waits for `100 (Continue)` (RFC 9110 §10.1.1).
    pub(crate) fn expects_continue(&self) -> bool {
        self.expects_continue
    }

    /// Whether the client takes trailers (RFC 9110 §10.1.4).
    pub(crate) fn te_trailers(&self) -> bool {
        self.te_trailers
    }

    /// What the client would rather speak (RFC 9110 §7.8); never h2c.
    pub(crate) fn upgrade(&self) -> Option<&'b str> {
        self.upgrade
    }

    pub(crate) fn method(&self) -> &'b str {
        self.method
    }

    pub(crate) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    /// The target as it was sent, in whichever form.
    pub(crate) fn target(&self) -> &'b str {
        self.text
    }

    /// The path without the query, of any form of target.
    pub(crate) fn path(&self) -> &'b str {
        self.target.path()
    }

    /// Host and port the request is for; of the target if that has one (RFC 9112 §3.2.2). Empty only
    /// with HTTP/1.0.
    pub(crate) fn host(&self) -> &'b str {
        self.host
    }

    /// All fields as they were sent, white space around the values taken off.
    pub(crate) fn fields(&self) -> impl Iterator<Item = (&'b str, &'b [u8])> {
        self.lines.fields.iter().map(|field| (field.name, field.value))
    }

    /// The values of all fields of a name, which is compared without case.
    pub(crate) fn values(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        self.fields().filter(move |(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    pub(super) fn found(&self, field: Field) -> Set {
        self.found[field as usize]
    }

    /// Whether the length is written anew.
    pub(super) fn restates_length(&self) -> bool {
        self.restated
    }

    /// The host an endpoint is told, if it is not in the copied lines.
    fn new_host<'a>(&self, edits: &RequestEdits<'a>) -> Option<&'a str>
    where
        'b: 'a,
    {
        // RFC 9112 §3.2.2: the authority of the target replaces the field. §3.2: HTTP/1.1 has the
        // field, if only an empty one.
        let missing = (self.found(Field::Host) == 0).then_some("");
        edits.host.or(self.target.authority).or(missing)
    }

    /// Fields that are not copied.
    pub(super) fn left_out(&self, edits: &RequestEdits<'_>) -> Set {
        let mut out = self.dropped | self.lines.edited(edits.set, edits.remove);
        if !edits.client.is_empty() {
            out |= self.found(Field::ForwardedFor);
        }
        if !edits.proto.is_empty() {
            out |= self.found(Field::ForwardedProto);
        }
        if edits.drop_expect {
            out |= self.found(Field::Expect);
        }
        if self.new_host(edits).is_some() {
            out |= self.found(Field::Host);
        }
        out
    }

    /// The client's chain of addresses with the client's own at the end.
    pub(super) fn write_forwarded_for(&self, out: &mut Vec<u8>, client: &str) {
        for value in self.lines.values(self.found(Field::ForwardedFor)).filter(|value| !value.is_empty()) {
            out.extend_from_slice(value);
            out.extend_from_slice(b", ");
        }
        out.extend_from_slice(client.as_bytes());
    }

    /// Appends path and query, as the origin-form has them (RFC 9112 §3.2.1).
    pub(super) fn write_origin(&self, out: &mut Vec<u8>) {
        if self.target.slash {
            out.push(b'/');
        }
        out.extend_from_slice(self.target.origin.as_bytes());
    }

    /// Appends the head that an endpoint gets: of HTTP/1.1, in origin-form, without what belongs to the
    /// client's connection (RFC 9110 §7.6.1), and with the edits.
    #[inline]
    pub(crate) fn write_upstream(&self, out: &mut Vec<u8>, edits: &RequestEdits<'_>) {
        out.reserve(self.len() + 256);
        let host = self.new_host(edits);
        let left_out = self.left_out(edits);
        let plain = self.version == Version::Http11 && self.target.authority.is_none();
        if plain && edits.target.is_none() && host.is_none() {
            self.lines.copy(out, self.begin, left_out);
        } else {
            out.extend_from_slice(self.method.as_bytes());
            out.push(b' ');
            match edits.target {
                Some(target) => out.extend_from_slice(target.as_bytes()),
                None => self.write_origin(out),
            }
            out.extend_from_slice(b" HTTP/1.1\r\n"); // RFC 9110 §2.5: the proxy's own version
            if let Some(host) = host {
                lines::write_field(out, "host", host.as_bytes()); // §7.2: best as the first field
            }
            self.lines.copy(out, self.lines.start(0), left_out);
        }
        match self.body {
            RequestBody::Chunked => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
            RequestBody::Length(length) if self.restated => lines::write_length(out, length),
            RequestBody::Length(_) | RequestBody::None => {}
        }
        self.write_added(out, edits);
        out.extend_from_slice(b"\r\n");
    }

    fn write_added(&self, out: &mut Vec<u8>, edits: &RequestEdits<'_>) {
        if edits.says_client() {
            out.extend_from_slice(b"x-forwarded-for: ");
            self.write_forwarded_for(out, edits.client);
            out.extend_from_slice(b"\r\n");
        }
        if edits.says_proto() {
            lines::write_field(out, "x-forwarded-proto", edits.proto.as_bytes());
        }
        lines::write_set(out, edits.set);
        // RFC 9110 §7.8, §10.1.4: either comes with its connection option.
        let te = edits.te_trailers && self.te_trailers;
        match (self.upgrade.filter(|_| edits.upgrade), te) {
            (Some(upgrade), te) => {
                out.extend_from_slice(b"connection: upgrade");
                out.extend_from_slice(if te { b", te\r\nte: trailers\r\n" } else { b"\r\n" });
                lines::write_field(out, "upgrade", upgrade.as_bytes());
            }
            (None, true) => out.extend_from_slice(b"connection: te\r\nte: trailers\r\n"),
            (None, false) => {}
        }
    }
}

/// The host a request is for (RFC 9112 §3.2).
fn host<'b>(
    lines: &Lines<'_, 'b>,
    field: Set,
    version: Version,
    target: &Target<'b>,
) -> Result<&'b str, HeadError> {
    let host = match field.count_ones() {
        0 if version == Version::Http10 => "",
        0 => return Err(HeadError::bad("the request names no host")),
        1 => {
            let text = std::str::from_utf8(lines.fields[field.trailing_zeros() as usize].value);
            let valid = |text: &&str| is_host(text) || (text.is_empty() && version == Version::Http10);
            text.ok().filter(valid).ok_or(HeadError::bad("the host is not valid"))?
        }
        _ => return Err(HeadError::bad("more than one host")),
    };
    Ok(target.authority.unwrap_or(host))
}

/// The protocols a client asks for. Not with h2c among them: an endpoint that took it would speak what
/// the proxy does not follow, and RFC 9113 §3.1 has given it up.
fn upgrade(value: &[u8]) -> Option<&str> {
    let h2c = |name: &[u8]| name.get(..2).is_some_and(|h2| h2.eq_ignore_ascii_case(b"h2"));
    let text = std::str::from_utf8(value).ok().filter(|text| text.is_ascii() && !text.is_empty())?;
    (!lines::list(value).any(h2c)).then_some(text)
}

/// Whether `te` lists `trailers` (RFC 9110 §10.1.4).
fn takes_trailers(lines: &Lines<'_, '_>, te: Set) -> bool {
    lines.values(te).flat_map(lines::list).any(|element| element.eq_ignore_ascii_case(b"trailers"))
}
