//! Field lines: where they are in a head, and what they say of framing and of the connection.

use httparse::Header;

use super::{HeadError, field::Field};

/// A set of fields of one head, by their place in it; [`super::FIELDS`] fit.
pub(super) type Set = u128;

/// The places in a set, in order.
pub(super) fn places(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let place = (set != 0).then(|| set.trailing_zeros() as usize)?;
        set &= set - 1;
        Some(place)
    })
}

/// The fields of a head, and the bytes they are in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lines<'s, 'b> {
    /// The head, to its end.
    pub(super) head: &'b [u8],
    pub(super) fields: &'s [Header<'b>],
}

impl<'b> Lines<'_, 'b> {
    /// Where the line of a field begins; of the field after the last, where the empty line does.
    #[inline]
    pub(super) fn start(&self, place: usize) -> usize {
        match self.fields.get(place) {
            Some(field) => field.name.as_ptr().addr() - self.head.as_ptr().addr(),
            None => self.head.len() - 2,
        }
    }

    /// Fields by what they mean. Also checks that every line ends with CRLF: httparse takes a bare LF
    /// as well (RFC 9112 §2.2 permits that, and thereby smuggling past whoever does not), but
    /// a line can end only before a name or before the end.
    #[inline]
    pub(super) fn scan(&self) -> Result<[Set; Field::COUNT], HeadError> {
        const BARE: HeadError = HeadError::bad("a line does not end with CR LF");
        let mut found = [0; Field::COUNT];
        for (place, field) in self.fields.iter().enumerate() {
            if !self.head[..self.start(place)].ends_with(b"\r\n") {
                return Err(BARE);
            }
            let meaning = Field::of(field.name);
            if meaning != Field::Other {
                found[meaning as usize] |= 1 << place;
            }
        }
        if self.head.ends_with(b"\r\n\r\n") { Ok(found) } else { Err(BARE) }
    }

    pub(super) fn values(&self, set: Set) -> impl Iterator<Item = &'b [u8]> {
        places(set).map(|place| self.fields[place].value)
    }

    /// The only field of a set.
    pub(super) fn only(&self, set: Set) -> Option<&'b [u8]> {
        set.is_power_of_two().then(|| self.fields[set.trailing_zeros() as usize].value)
    }

    /// Copies the head from a byte on, without the lines of some fields and without the empty line.
    #[inline]
    pub(super) fn copy(&self, out: &mut Vec<u8>, from: usize, without: Set) {
        let mut from = from;
        for place in places(without) {
            let start = self.start(place);
            if start > from {
                out.extend_from_slice(&self.head[from..start]);
            }
            from = self.start(place + 1);
        }
        out.extend_from_slice(&self.head[from..self.head.len() - 2]);
    }

    /// What route filters take out.
    pub(super) fn edited(&self, set: &[(&str, &str)], remove: &[&str]) -> Set {
        if set.is_empty() && remove.is_empty() {
            return 0;
        }
        let mut out = 0;
        for (place, field) in self.fields.iter().enumerate() {
            if is_named(field.name, set, remove) && Field::of(field.name).is_editable() {
                out |= 1 << place;
            }
        }
        out
    }
}

/// Whether route filters set or remove a field.
#[inline]
pub(super) fn is_named(name: &str, set: &[(&str, &str)], remove: &[&str]) -> bool {
    let is = |other: &str| other.eq_ignore_ascii_case(name);
    set.iter().any(|(name, _)| is(name)) || remove.iter().any(|name| is(name))
}

pub(super) fn write_field(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_length(out: &mut Vec<u8>, length: u64) {
    write_field(out, "content-length", itoa::Buffer::new().format(length).as_bytes());
}

/// The fields that a filter sets.
pub(super) fn write_set(out: &mut Vec<u8>, set: &[(&str, &str)]) {
    for (name, value) in set {
        if Field::of(name).is_editable() {
            write_field(out, name, value.as_bytes());
        }
    }
}

/// The elements of a comma-separated list (RFC 9110 §5.6.1), empty ones too.
pub(super) fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim)
}

/// Without optional white space around it (RFC 9110 §5.6.3).
pub(super) fn trim(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = text {
        text = rest;
    }
    text
}

/// What `Connection` says (RFC 9110 §7.6.1).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {
    pub(super) close: bool,
    pub(super) keep_alive: bool,
    pub(super) upgrade: bool,
    /// Fields that it names as the connection's own.
    pub(super) nominated: Set,
}

impl Options {
    /// Options in one head; more is nobody's honest need, and each is looked up among all fields.
    const MOST: usize = 32;

    #[inline]
    pub(super) fn of(lines: &Lines<'_, '_>, connection: Set) -> Result<Self, HeadError> {
        let mut options = Self::default();
        let mut seen = 0;
        for value in lines.values(connection) {
            if !options.take(value) {
                for option in list(value) {
                    seen += 1;
                    if seen > Self::MOST {
                        return Err(HeadError::bad("connection has too many options"));
                    }
                    if !options.take(option) {
                        options.nominate(lines, option)?;
                    }
                }
            }
        }
        Ok(options)
    }

    /// Whether it is one of the usual options.
    fn take(&mut self, option: &[u8]) -> bool {
        let (known, flag) = match option.len() {
            5 => ("close", &mut self.close),
            7 => ("upgrade", &mut self.upgrade),
            10 => ("keep-alive", &mut self.keep_alive),
            _ => return false,
        };
        let is = option.eq_ignore_ascii_case(known.as_bytes());
        *flag |= is;
        is
    }

    fn nominate(&mut self, lines: &Lines<'_, '_>, option: &[u8]) -> Result<(), HeadError> {
        let Ok(name) = std::str::from_utf8(option) else { return Ok(()) };
        if Field::of(name).is_end_to_end() {
            return Err(HeadError::bad("connection names a field that is not the connection's own"));
        }
        for (place, field) in lines.fields.iter().enumerate() {
            if field.name.eq_ignore_ascii_case(name) {
                self.nominated |= 1 << place;
            }
        }
        Ok(())
    }
}

/// How a message says that its body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framed {
    /// It does not say.
    Not,
    Length {
        length: u64,
        /// Not the shortest text for the number, and therefore written anew.
        odd: bool,
    },
    Chunked,
}

impl Framed {
    #[inline]
    pub(super) fn of(lines: &Lines<'_, '_>, length: Set, transfer: Set) -> Result<Self, HeadError> {
        match (length, transfer) {
            (0, 0) => Ok(Self::Not),
            (_, 0) => {
                // RFC 9112 §6.3: a list of equal lengths may be refused or replaced. Refused: nobody
                // sends one in earnest, and then every reader sees exactly one length.
                let text = lines.only(length).ok_or(HeadError::bad("content-length is not one field"))?;
                let length = decimal(text).ok_or(HeadError::bad("content-length is not a number"))?;
                Ok(Self::Length { length, odd: text[0] == b'0' && text.len() > 1 })
            }
            (0, _) => match lines.only(transfer) {
                // RFC 9112 §7: names of codings are compared without case.
                Some(coding) if coding.eq_ignore_ascii_case(b"chunked") => Ok(Self::Chunked),
                _ => Err(unsupported(lines, transfer)),
            },
            // RFC 9112 §6.1, §6.3: a sign of smuggling.
            _ => Err(HeadError::bad("both transfer-encoding and content-length")),
        }
    }
}

/// 1*DIGIT that fits (RFC 9110 §8.6).
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    let number = text.iter().try_fold(0_u64, |number, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })?;
    // Recipients may count in signed 64 bits.
    i64::try_from(number).is_ok().then_some(number)
}

/// Why codings are not taken. Chunked must be there, once, and last (RFC 9112 §6.1, §6.3): 400. Others
/// are not known here: 501 (§6.1).
#[cold]
fn unsupported(lines: &Lines<'_, '_>, transfer: Set) -> HeadError {
    let mut chunked = false;
    for coding in lines.values(transfer).flat_map(list) {
        let name = trim(coding.split(|byte| *byte == b';').next().unwrap_or_default());
        let is_chunked = name.eq_ignore_ascii_case(b"chunked");
        if chunked || coding.is_empty() || (is_chunked && name.len() != coding.len()) {
            return HeadError::bad("transfer-encoding is not chunked once and last");
        }
        chunked = is_chunked;
    }
    HeadError::new(501, "transfer-encoding other than chunked")
}
