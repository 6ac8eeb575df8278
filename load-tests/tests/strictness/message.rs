//! A strict reading of requests: what an endpoint that gives no benefit of the doubt understands.

/// Names in lower case, and values, in their order.
pub(crate) type Fields = Vec<(String, String)>;

/// A request, as it has to be understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) minor: u8,
    pub(crate) headers: Fields,
    pub(crate) body: Vec<u8>,
    pub(crate) trailers: Fields,
}

impl Message {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// The target without scheme and authority.
    pub(crate) fn path(&self) -> &str {
        let Some(rest) = self.target.strip_prefix("http://") else { return &self.target };
        rest.find('/').map_or("/", |start| &rest[start..])
    }
}

/// Why bytes are not a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They may become one.
    Incomplete,
    /// They could be understood in more than one way, or in none.
    Ambiguous(&'static str),
}

use Fault::{Ambiguous, Incomplete};

pub(crate) type Parsed<T> = Result<T, Fault>;

/// The first request of `bytes`, and what follows it.
pub(crate) fn parse(bytes: &[u8]) -> Parsed<(Message, &[u8])> {
    let (line, mut rest) = line(bytes)?;
    let line = text(line)?;
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(Ambiguous("the request line does not have three parts"));
    };
    if !is_token(method) {
        return Err(Ambiguous("the method is not a token"));
    }
    if target.is_empty() || target.contains('#') {
        return Err(Ambiguous("the target is empty or has a fragment"));
    }
    let minor = match version {
        "HTTP/1.1" => 1,
        "HTTP/1.0" => 0,
        _ => return Err(Ambiguous("the version is neither 1.0 nor 1.1")),
    };
    let headers;
    (headers, rest) = fields(rest)?;
    if minor == 1 && headers.iter().filter(|(name, _)| name == "host").count() != 1 {
        return Err(Ambiguous("there is not exactly one Host"));
    }
    let of = |name: &str| -> Vec<&str> {
        headers.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_str()).collect()
    };
    let (body, trailers);
    match (&of("transfer-encoding")[..], &of("content-length")[..]) {
        ([], []) => (body, trailers) = (Vec::new(), Vec::new()),
        ([], [length]) => {
            if length.is_empty() || !length.bytes().all(|b| b.is_ascii_digit()) {
                return Err(Ambiguous("Content-Length is not a number"));
            }
            let length = length.parse().map_err(|_| Ambiguous("Content-Length is too large"))?;
            let taken;
            (taken, rest) = rest.split_at_checked(length).ok_or(Incomplete)?;
            (body, trailers) = (taken.to_vec(), Vec::new());
        }
        ([coding], []) if coding.eq_ignore_ascii_case("chunked") && minor == 1 => {
            (body, trailers, rest) = chunked(rest)?;
        }
        ([], _) => return Err(Ambiguous("there is more than one Content-Length")),
        (_, []) => return Err(Ambiguous("Transfer-Encoding is not `chunked`, or not in HTTP/1.1")),
        _ => return Err(Ambiguous("there are both Transfer-Encoding and Content-Length")),
    }
    let (method, target) = (method.to_owned(), target.to_owned());
    Ok((Message { method, target, minor, headers, body, trailers }, rest))
}

/// All requests of `bytes`, and why there are no more if something is left.
pub(crate) fn parse_all(mut bytes: &[u8]) -> (Vec<Message>, Option<Fault>) {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        match parse(bytes) {
            Ok((message, rest)) => {
                messages.push(message);
                bytes = rest;
            }
            Err(fault) => return (messages, Some(fault)),
        }
    }
    (messages, None)
}

/// A line that ends with CRLF and has neither CR nor LF in it.
pub(crate) fn line(bytes: &[u8]) -> Parsed<(&[u8], &[u8])> {
    let Some(end) = bytes.iter().position(|b| matches!(b, b'\r' | b'\n')) else { return Err(Incomplete) };
    match &bytes[end..] {
        [b'\r', b'\n', rest @ ..] => Ok((&bytes[..end], rest)),
        [b'\r'] => Err(Incomplete),
        _ => Err(Ambiguous("there is a bare CR or LF")),
    }
}

/// Bytes without control characters; those above ASCII stand for themselves.
pub(crate) fn text(bytes: &[u8]) -> Parsed<String> {
    if bytes.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(Ambiguous("there is a control character"));
    }
    Ok(bytes.iter().copied().map(char::from).collect())
}

fn is_token(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b))
}

/// Field lines up to the empty one.
pub(crate) fn fields(mut rest: &[u8]) -> Parsed<(Fields, &[u8])> {
    let mut fields = Vec::new();
    loop {
        let field;
        (field, rest) = line(rest)?;
        if field.is_empty() {
            return Ok((fields, rest));
        }
        let field = text(field)?;
        if field.starts_with([' ', '\t']) {
            return Err(Ambiguous("there is a folded line"));
        }
        let (name, value) = field.split_once(':').ok_or(Ambiguous("a field has no colon"))?;
        if !is_token(name) {
            return Err(Ambiguous("the name of a field is not a token"));
        }
        fields.push((name.to_ascii_lowercase(), value.trim_matches([' ', '\t']).to_owned()));
    }
}

pub(crate) type Chunked<'a> = (Vec<u8>, Fields, &'a [u8]);

pub(crate) fn chunked(mut rest: &[u8]) -> Parsed<Chunked<'_>> {
    let mut body = Vec::new();
    loop {
        let size;
        (size, rest) = line(rest)?;
        let size = text(size)?;
        let size = size.split_once(';').map_or(size.as_str(), |(size, _)| size);
        if size.is_empty() || !size.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Ambiguous("a chunk's size is not a number"));
        }
        let size = usize::from_str_radix(size, 16).map_err(|_| Ambiguous("a chunk is too large"))?;
        if size == 0 {
            let (trailers, rest) = fields(rest)?;
            return Ok((body, trailers, rest));
        }
        let data;
        (data, rest) = rest.split_at_checked(size).ok_or(Incomplete)?;
        body.extend_from_slice(data);
        let end;
        (end, rest) = line(rest)?;
        if !end.is_empty() {
            return Err(Ambiguous("a chunk is longer than it says"));
        }
    }
}
