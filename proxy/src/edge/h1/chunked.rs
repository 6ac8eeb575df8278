//! The chunked coding (RFC 9112 §7.1), strictly: hexadecimal sizes, CRLF everywhere.
//!
//! Nothing is copied or kept: of the bytes that came, a step says which go on. What goes on is exactly
//! what was understood; chunk extensions do not (§7.1.1 lets any recipient drop them).

use std::{fmt, ops::Range};

use memchr::memmem;

use super::{field, lines};

/// Hexadecimal digits of a chunk's size. Recipients may count in signed 64 bits (§7.1 tells them to
/// expect large numbers), so a size beyond is refused here rather than understood differently there.
const DIGITS: u8 = 16;
const MAX_SIZE: u64 = i64::MAX as u64;
/// Bytes of a chunk's first line before its CR, with its extensions (RFC 9112 §7.1.1 asks for a bound).
const LINE: u16 = 256;
/// Bytes of a trailer section.
const TRAILERS: usize = 8 * 1024;
/// Fields of a trailer section.
const TRAILER_FIELDS: usize = 64;

/// Why a body is not forwarded any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkError(pub(crate) &'static str);

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for ChunkError {}

/// What is to be done with bytes that came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Bytes at the front that are done with, once those of `pass` went on.
    pub(crate) consumed: usize,
    /// The bytes of these that go on; may be none.
    pub(crate) pass: Range<usize>,
    /// The field lines of the trailer section, for [`trailers`]; only at the end of the body.
    pub(crate) trailers: Range<usize>,
    pub(crate) next: Next,
}

/// What comes after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another step with the rest of the bytes.
    Again,
    /// More bytes have to come. Those that were not consumed come again before them.
    Read,
    /// The body is over; the rest of the bytes is not of it.
    End,
}

/// A chunked body being read.
#[derive(Clone, Debug, Default)]
pub(crate) struct Chunked {
    /// The size so far, then the bytes of data still to come.
    size: u64,
    /// Bytes of the chunk's first line so far.
    line: u16,
    digits: u8,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// In the digits of a size.
    #[default]
    Size,
    /// In white space after them, which only an extension may follow.
    Blank,
    Extension,
    /// Before the CR and the LF that end the line.
    SizeCr,
    SizeLf,
    Data,
    /// Before the CR and the LF after the data.
    DataCr,
    DataLf,
    Trailers,
    Over,
}

impl Chunked {
    /// For a recipient of chunks: sizes, data and trailers go on as they came.
    pub(crate) fn advance(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        self.step(input, true)
    }

    /// For a recipient that has another framing: only data goes on.
    pub(crate) fn advance_data(&mut self, input: &[u8]) -> Result<Step, ChunkError> {
        self.step(input, false)
    }

    fn step(&mut self, input: &[u8], framed: bool) -> Result<Step, ChunkError> {
        let mut at = 0;
        let mut pass = 0..0;
        loop {
            let goes_on = match self.state {
                State::Data => true,
                State::Blank | State::Extension | State::Over => false,
                _ => framed,
            };
            let rest = &input[at..];
            if goes_on && !pass.is_empty() && pass.end != at && !rest.is_empty() {
                return Ok(Step { consumed: at, pass, trailers: 0..0, next: Next::Again });
            }
            let mut fields = 0;
            let n = match self.state {
                State::Trailers => match trailer_section(rest)? {
                    Some(len) => {
                        fields = len - 2;
                        self.state = State::Over;
                        len
                    }
                    None => return Ok(Step { consumed: at, pass, trailers: 0..0, next: Next::Read }),
                },
                State::Over => return Ok(Step { consumed: at, pass, trailers: 0..0, next: Next::End }),
                _ if rest.is_empty() => {
                    return Ok(Step { consumed: at, pass, trailers: 0..0, next: Next::Read });
                }
                State::Data => self.data(rest),
                _ => self.framing(rest[0])?,
            };
            if goes_on && n > 0 {
                pass = if pass.is_empty() { at..at + n } else { pass.start..at + n };
            }
            at += n;
            if self.state == State::Over {
                return Ok(Step { consumed: at, pass, trailers: at - n..at - n + fields, next: Next::End });
            }
        }
    }

    /// How much of the input is data.
    fn data(&mut self, input: &[u8]) -> usize {
        let n = usize::try_from(self.size).map_or(input.len(), |size| size.min(input.len()));
        self.size -= n as u64;
        if self.size == 0 {
            self.state = State::DataCr;
        }
        n
    }

    /// One byte of framing; 0 when it is left to the state that follows.
    fn framing(&mut self, byte: u8) -> Result<usize, ChunkError> {
        const END: ChunkError = ChunkError("a line of a chunk does not end with CR LF");
        let next = match (self.state, byte) {
            (State::Size, _) => return self.digit(byte),
            // RFC 9112 §7.1.1: white space may precede an extension, and is taken out with it.
            (State::Blank, b' ' | b'\t') => State::Blank,
            (State::Blank, b';') | (State::Extension, b' '..=0x7e | b'\t' | 0x80..) => State::Extension,
            (State::Blank, _) => return Err(ChunkError("the size of a chunk is not valid")),
            (State::Extension, b'\r') => return self.leave(State::SizeCr),
            (State::Extension, _) => return Err(ChunkError("the extension of a chunk is not valid")),
            (State::SizeCr, b'\r') => State::SizeLf,
            (State::SizeLf, b'\n') => {
                (self.line, self.digits) = (0, 0);
                if self.size == 0 { State::Trailers } else { State::Data }
            }
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => State::Size,
            _ => return Err(END),
        };
        self.state = next;
        if matches!(next, State::Blank | State::Extension) {
            self.count()?;
        }
        Ok(1)
    }

    fn digit(&mut self, byte: u8) -> Result<usize, ChunkError> {
        match (byte as char).to_digit(16) {
            Some(_) if self.digits == DIGITS => Err(ChunkError("the size of a chunk is too long")),
            Some(digit) => {
                self.size = self.size << 4 | u64::from(digit);
                if self.size > MAX_SIZE {
                    return Err(ChunkError("the size of a chunk is too large"));
                }
                self.digits += 1;
                self.count()?;
                Ok(1)
            }
            None if self.digits == 0 => Err(ChunkError("a chunk has no size")),
            None if byte == b'\r' => self.leave(State::SizeCr),
            None if matches!(byte, b' ' | b'\t' | b';') => self.leave(State::Blank),
            None => Err(ChunkError("the size of a chunk is not valid")),
        }
    }

    /// The byte is the business of the next state.
    #[expect(clippy::unnecessary_wraps, reason = "the end of functions that fail")]
    fn leave(&mut self, next: State) -> Result<usize, ChunkError> {
        self.state = next;
        Ok(0)
    }

    /// One more byte of a chunk's first line.
    fn count(&mut self) -> Result<(), ChunkError> {
        self.line += 1;
        if self.line > LINE { Err(ChunkError("the first line of a chunk is too long")) } else { Ok(()) }
    }
}

/// The length of a trailer section with its empty line; `None` as long as it is not whole. Its lines
/// keep the rules of a head's (RFC 9112 §7.1.2), and have no field that only a head may have.
fn trailer_section(input: &[u8]) -> Result<Option<usize>, ChunkError> {
    const INVALID: ChunkError = ChunkError("the trailers are not valid");
    if let [b'\r', b'\n', ..] = input {
        return Ok(Some(2));
    }
    let seen = &input[..input.len().min(TRAILERS)];
    let Some(end) = memmem::find(seen, b"\r\n\r\n") else {
        if input.len() > TRAILERS {
            return Err(ChunkError("the trailers are too long"));
        }
        // What can no longer become valid is refused now.
        return match seen.first() {
            Some(b'\r') if seen.len() > 1 => Err(INVALID),
            Some(b'\n' | b' ' | b'\t') => Err(INVALID),
            _ => Ok(None),
        };
    };
    let section = &seen[..end + 4];
    let mut slots = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
    let (len, fields) = match httparse::parse_headers(section, &mut slots) {
        Ok(httparse::Status::Complete(parsed)) => parsed,
        Err(httparse::Error::TooManyHeaders) => return Err(ChunkError("too many trailers")),
        _ => return Err(INVALID),
    };
    // A bare LF ends a line for httparse: it would end before the empty line, or hide a line's end.
    let lines = lines::Lines { head: section, fields };
    let begins_line = |place| place == 0 || section[..lines.start(place)].ends_with(b"\r\n");
    if len != section.len() || !(0..fields.len()).all(begins_line) {
        return Err(INVALID);
    }
    if !fields.iter().all(|field| field::may_be_trailer(field.name)) {
        return Err(ChunkError("a field that may not be a trailer")); // RFC 9110 §6.5.1
    }
    Ok(Some(len))
}

/// The names and values of a trailer section that a [`Step`] has marked.
pub(crate) fn trailers(section: &[u8]) -> impl Iterator<Item = (&str, &[u8])> {
    section.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r")?;
        let colon = memchr::memchr(b':', line)?;
        Some((std::str::from_utf8(&line[..colon]).ok()?, lines::trim(&line[colon + 1..])))
    })
}
