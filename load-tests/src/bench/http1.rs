//! As much of HTTP/1.1 (RFC 9112) as a load generator and its upstream need of each other.

/// How long a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
    /// None is said.
    None,
}

/// What matters of a head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// The start line, without its end.
    pub start: &'a [u8],
    pub framing: Framing,
    /// `connection: close`
    pub close: bool,
    /// `expect: 100-continue`
    pub expects: bool,
    /// Bytes of the head, with the empty line.
    pub length: usize,
}

/// Reads a head, once it is whole. `Err` when a length is not a number.
pub fn head(bytes: &[u8]) -> Result<Option<Head<'_>>, &'static str> {
    let mut lines = Lines(bytes);
    let Some(start) = lines.next() else { return Ok(None) };
    let (mut framing, mut close, mut expects) = (Framing::None, false, false);
    while let Some(line) = lines.next() {
        if line.is_empty() {
            let length = bytes.len() - lines.0.len();
            return Ok(Some(Head { start, framing, close, expects, length }));
        }
        // Few headers matter, and most are told apart by their first letter.
        match line[0] | 0x20 {
            b'c' => {
                if let Some(value) = value_of(line, b"content-length") {
                    framing = Framing::Length(number(value).ok_or("content-length is not a number")?);
                } else if let Some(value) = value_of(line, b"connection") {
                    close |= value.eq_ignore_ascii_case(b"close");
                }
            }
            b't' if value_of(line, b"transfer-encoding").is_some() => framing = Framing::Chunked,
            b'e' if value_of(line, b"expect").is_some() => expects = true,
            _ => {}
        }
    }
    Ok(None)
}

/// The status code of a status line.
pub fn status(start: &[u8]) -> Option<u16> {
    let code = start.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    number(code).and_then(|code| u16::try_from(code).ok())
}

struct Lines<'a>(&'a [u8]);

impl<'a> Lines<'a> {
    fn next(&mut self) -> Option<&'a [u8]> {
        let end = self.0.iter().position(|byte| *byte == b'\n')?;
        let line = &self.0[..end];
        self.0 = &self.0[end + 1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }
}

fn value_of<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, rest) = line.split_at_checked(name.len())?;
    let value = rest.strip_prefix(b":")?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Takes chunked framing (RFC 9112 §7.1) off, wherever the bytes are cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chunks {
    state: State,
    /// Bytes of body so far.
    pub body: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Start,
    /// The digits so far.
    Size(u64),
    /// After the digits, to the end of the line.
    SizeLine(u64),
    Data(u64),
    /// The line end after the data.
    DataLine,
    /// At the start of a line after the last chunk.
    TrailerStart,
    Trailer,
    Done,
}

impl Chunks {
    /// Takes what belongs to the body; says how many bytes that were. Ends before what follows.
    pub fn take(&mut self, bytes: &[u8]) -> Result<usize, &'static str> {
        let mut at = 0;
        while at < bytes.len() && self.state != State::Done {
            let byte = bytes[at];
            if let State::Data(left) = self.state {
                let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - at);
                self.body += n as u64;
                at += n;
                let left = left - n as u64;
                self.state = if left == 0 { State::DataLine } else { State::Data(left) };
                continue;
            }
            at += 1;
            self.state = match (self.state, byte) {
                (State::Start, _) if byte.is_ascii_hexdigit() => State::Size(digit(byte)),
                (State::Size(size), _) if byte.is_ascii_hexdigit() => {
                    State::Size(size.checked_mul(16).ok_or("a chunk is too large")? + digit(byte))
                }
                (State::SizeLine(size), b'\n') if size > 0 => State::Data(size),
                (State::SizeLine(0) | State::Trailer, b'\n') | (State::TrailerStart, b'\r') => {
                    State::TrailerStart
                }
                (State::Size(size), b'\r' | b';') | (State::SizeLine(size), _) => State::SizeLine(size),
                (State::DataLine, b'\r') => State::DataLine,
                (State::DataLine, b'\n') => State::Start,
                (State::TrailerStart, b'\n') => State::Done,
                (State::TrailerStart | State::Trailer, _) => State::Trailer,
                _ => return Err("not chunked framing"),
            };
        }
        Ok(at)
    }

    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }
}

fn digit(byte: u8) -> u64 {
    u64::from(char::from(byte).to_digit(16).unwrap_or(0))
}

/// `body` in chunks of at most `size` bytes, with the last chunk.
pub fn chunked(body: &[u8], size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(body.len() + body.len() / size * 8 + 16);
    for chunk in body.chunks(size) {
        out.extend_from_slice(format!("{:x}\r\n", chunk.len()).as_bytes());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_read_when_it_is_whole() {
        let bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nConnection: close\r\n\r\nhello";
        assert_eq!(head(&bytes[..bytes.len() - 6]), Ok(None));
        let head = head(bytes).unwrap().unwrap();
        assert_eq!((head.framing, head.close, head.length), (Framing::Length(12), true, bytes.len() - 5));
        assert_eq!(status(head.start), Some(200));
    }

    #[test]
    fn a_length_that_is_no_number_is_refused() {
        assert!(head(b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n").is_err());
    }

    #[test]
    fn chunks_are_found_wherever_the_bytes_are_cut() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let body = vec![b'x'; random.usize(..5_000)];
            let mut bytes = chunked(&body, random.usize(1..2_000));
            let end = bytes.len();
            bytes.extend_from_slice(b"HTTP/1.1");
            let (mut chunks, mut at) = (Chunks::default(), 0);
            while !chunks.is_done() {
                let to = (at + random.usize(1..3_000)).min(bytes.len());
                at += chunks.take(&bytes[at..to]).unwrap();
            }
            assert_eq!((at, chunks.body), (end, body.len() as u64));
        }
    }

    #[test]
    fn what_is_not_chunked_is_refused() {
        assert!(Chunks::default().take(b"hello").is_err());
        assert!(Chunks::default().take(b"ffffffffffffffffff\r\n").is_err());
        assert!(Chunks::default().take(b"1\r\nab").is_err());
    }
}
