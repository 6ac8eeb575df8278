//! Bodies of HTTP/1 (RFC 9112 §6, §7): from what came to frames, and from frames to what is sent.

use std::io::Write;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::{
    super::{
        h1::{
            chunked::{self, ChunkError, Chunked, Next},
            request::RequestBody,
            response::ResponseBody,
        },
        lean::incoming::Incoming,
    },
    Frame,
};
use crate::worker::buffer::{self, Buffer};

/// Fields of a trailer section that [`Chunked`] takes.
const TRAILER_FIELDS: usize = 64;
/// Bytes of one, with the empty line.
const TRAILERS: usize = 8 * 1024;

const LAST_CHUNK: &[u8] = b"0\r\n";
const LINE_END: &[u8] = b"\r\n";

/// A body that is being read.
#[derive(Debug)]
pub(crate) enum Reading {
    /// So many bytes more.
    Length(u64),
    Chunks(Box<Chunked>),
    /// All up to the end of the connection.
    UntilClose,
    /// The data is over; these are still to come.
    Trailers(HeaderMap),
    Over,
}

impl From<RequestBody> for Reading {
    fn from(body: RequestBody) -> Self {
        match body {
            RequestBody::None | RequestBody::Length(0) => Self::Over,
            RequestBody::Length(length) => Self::Length(length),
            RequestBody::Chunked => Self::Chunks(Box::default()),
        }
    }
}

impl From<ResponseBody> for Reading {
    fn from(body: ResponseBody) -> Self {
        match body {
            ResponseBody::None | ResponseBody::Length(0) => Self::Over,
            ResponseBody::Length(length) => Self::Length(length),
            ResponseBody::Chunked => Self::Chunks(Box::default()),
            ResponseBody::UntilClose => Self::UntilClose,
        }
    }
}

impl Reading {
    pub(crate) fn is_over(&self) -> bool {
        matches!(self, Self::Over)
    }

    /// The next frame out of what came; `None` when more has to come first.
    ///
    /// # Errors
    /// When the chunks are not chunks.
    pub(crate) fn take(&mut self, incoming: &mut Incoming) -> Result<Option<Frame>, ChunkError> {
        let available = incoming.bytes().len();
        let data = match self {
            Self::Over => return Ok(Some(Frame::End)),
            Self::Trailers(trailers) => {
                let trailers = std::mem::take(trailers);
                *self = Self::Over;
                return Ok(Some(Frame::Trailers(trailers)));
            }
            _ if available == 0 => return Ok(None),
            Self::Length(rest) => {
                let n = usize::try_from(*rest).map_or(available, |rest| rest.min(available));
                *rest -= n as u64;
                if *rest == 0 {
                    *self = Self::Over;
                }
                take(incoming, n)
            }
            Self::UntilClose => take(incoming, available),
            Self::Chunks(_) => return self.unchunked(incoming),
        };
        Ok(Some(Frame::Data(data, self.is_over())))
    }

    /// The data of all chunks that came.
    fn unchunked(&mut self, incoming: &mut Incoming) -> Result<Option<Frame>, ChunkError> {
        let Self::Chunks(chunked) = self else { return Ok(None) };
        let mut data = Vec::new();
        loop {
            let bytes = incoming.bytes();
            let step = chunked.advance_data(bytes)?;
            data.extend_from_slice(&bytes[step.pass]);
            let trailers = (!step.trailers.is_empty()).then(|| fields(&bytes[step.trailers]));
            incoming.consume(step.consumed);
            return Ok(match (step.next, trailers) {
                (Next::Again, _) => continue,
                (Next::Read, _) if data.is_empty() => None,
                (Next::Read, _) => Some(Frame::Data(data.into(), false)),
                (Next::End, Some(trailers)) if data.is_empty() => {
                    *self = Self::Over;
                    Some(Frame::Trailers(trailers))
                }
                (Next::End, Some(trailers)) => {
                    *self = Self::Trailers(trailers);
                    Some(Frame::Data(data.into(), false))
                }
                (Next::End, None) => {
                    *self = Self::Over;
                    Some(if data.is_empty() { Frame::End } else { Frame::Data(data.into(), true) })
                }
            });
        }
    }
}

/// The first `n` bytes. Few are copied, so that they do not hold a whole buffer until they have left.
fn take(incoming: &mut Incoming, n: usize) -> Bytes {
    if n >= buffer::SIZE / 2 && n == incoming.bytes().len() {
        return incoming.take_all().map_or_else(Bytes::new, |buffer| Bytes::from_owner(Lent(buffer)));
    }
    let data = Bytes::copy_from_slice(&incoming.bytes()[..n]);
    incoming.consume(n);
    data
}

/// A buffer that goes back to its core when the last of its bytes have left.
struct Lent(Buffer);

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

/// A trailer section that was found valid.
fn fields(section: &[u8]) -> HeaderMap {
    let fields = chunked::trailers(section).filter_map(|(name, value)| {
        Some((HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_bytes(value).ok()?))
    });
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        map.append(name, value);
    }
    map
}

/// How a body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Writing {
    /// As it is: its length was told, or the connection ends with it.
    Plain,
    Chunks,
    /// There is none.
    None,
}

impl Writing {
    /// Appends a frame to what is sent.
    pub(crate) fn write(self, out: &mut Vec<u8>, frame: &Frame) {
        let (data, ends) = match frame {
            Frame::Data(data, ends) => (data.as_ref(), *ends),
            Frame::Trailers(_) | Frame::End => (&[][..], true),
        };
        match self {
            Self::None => {}
            Self::Plain => out.extend_from_slice(data),
            Self::Chunks => {
                if !data.is_empty() {
                    // Writing to memory does not fail.
                    let _ = write!(out, "{:x}\r\n", data.len());
                    out.extend_from_slice(data);
                    out.extend_from_slice(b"\r\n");
                }
                if ends {
                    out.extend_from_slice(b"0\r\n");
                    if let Frame::Trailers(trailers) = frame {
                        write_trailers(out, trailers);
                    }
                    out.extend_from_slice(b"\r\n");
                }
            }
        }
    }
}

/// Those that may be trailers (RFC 9110 §6.5.1), up to what a reader of ours would take. What is beyond is
/// left out, as the same section lets any intermediary do; but not the status of gRPC, without which a
/// call counts as failed.
fn write_trailers(out: &mut Vec<u8>, trailers: &HeaderMap) {
    let is_status = |name: &HeaderName| name == "grpc-status";
    let status = trailers.iter().filter(|(name, _)| is_status(name));
    let fields = status.chain(trailers.iter().filter(|(name, _)| !is_status(name)));
    let (mut count, mut left_out, mut room) = (0, 0, TRAILERS - LINE_END.len());
    let mut section = Vec::new();
    for (name, value) in fields {
        // A section of one field: the last chunk, the field's line, an empty line.
        section.clear();
        for part in [LAST_CHUNK, name.as_str().as_bytes(), b": ", value.as_bytes(), LINE_END, LINE_END] {
            section.extend_from_slice(part);
        }
        let line = &section[LAST_CHUNK.len()..section.len() - LINE_END.len()];
        if count == TRAILER_FIELDS || line.len() > room || !is_valid(&section) {
            left_out += 1;
            continue;
        }
        count += 1;
        room -= line.len();
        out.extend_from_slice(line);
    }
    if left_out > 0 {
        tracing::debug!("{left_out} trailers do not go on to HTTP/1");
    }
}

fn is_valid(section: &[u8]) -> bool {
    matches!(Chunked::default().advance(section), Ok(step) if step.next == Next::End)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again_however_it_is_cut() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let body: Vec<u8> = (0..rng.usize(0..3_000)).map(|_| rng.u8(..)).collect();
            let mut trailers = HeaderMap::new();
            if rng.bool() {
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
            }
            let mut sent = Vec::new();
            for part in body.chunks(rng.usize(1..500)) {
                Writing::Chunks.write(&mut sent, &Frame::Data(Bytes::copy_from_slice(part), false));
            }
            let end = if trailers.is_empty() { Frame::End } else { Frame::Trailers(trailers.clone()) };
            Writing::Chunks.write(&mut sent, &end);

            let (mut incoming, mut reading) = (Incoming::default(), Reading::from(RequestBody::Chunked));
            let (mut read, mut told, mut ended) = (Vec::new(), HeaderMap::new(), false);
            for part in sent.chunks(rng.usize(1..900)) {
                incoming.append(part);
                while let Some(frame) = reading.take(&mut incoming).unwrap() {
                    match frame {
                        Frame::Data(data, ends) => {
                            read.extend_from_slice(&data);
                            ended |= ends;
                        }
                        Frame::Trailers(trailers) => (told, ended) = (trailers, true),
                        Frame::End => ended = true,
                    }
                    if ended {
                        break;
                    }
                }
            }
            assert!(ended && incoming.is_empty(), "seed {seed}");
            assert_eq!((read, told), (body, trailers), "seed {seed}");
        }
    }

    #[test]
    fn a_length_ends_with_its_last_byte_and_leaves_the_rest() {
        let (mut incoming, mut reading) = (Incoming::default(), Reading::from(RequestBody::Length(5)));
        incoming.append(b"hello, world");
        let frame = reading.take(&mut incoming).unwrap();
        assert!(matches!(frame, Some(Frame::Data(data, true)) if data == "hello"));
        assert_eq!((reading.is_over(), incoming.bytes()), (true, &b", world"[..]));
    }

    #[test]
    fn a_full_buffer_passes_as_it_is() {
        let (mut incoming, mut reading) = (Incoming::default(), Reading::from(RequestBody::Length(40_000)));
        let bytes: Vec<u8> = (0..40_000_u32).map(|i| i as u8).collect();
        incoming.append(&bytes[..buffer::SIZE]);
        let place = incoming.bytes().as_ptr();
        let Ok(Some(Frame::Data(data, false))) = reading.take(&mut incoming) else { panic!("no data") };
        assert_eq!((data.as_ptr(), data == bytes[..buffer::SIZE]), (place, true));
        incoming.append(&bytes[buffer::SIZE..]);
        let rest = reading.take(&mut incoming).unwrap();
        assert!(matches!(rest, Some(Frame::Data(rest, true)) if rest == bytes[buffer::SIZE..]));
    }

    #[test]
    fn what_may_not_be_a_trailer_is_left_out() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [("grpc-status", "14"), ("content-length", "7"), ("x-sum", "1"), ("host", "a")] {
            trailers.insert(name, HeaderValue::from_static(value));
        }
        let mut sent = Vec::new();
        Writing::Chunks.write(&mut sent, &Frame::Trailers(trailers));
        assert_eq!(sent, b"0\r\ngrpc-status: 14\r\nx-sum: 1\r\n\r\n");
    }

    /// The trailers that a reader of ours gets.
    fn told(trailers: HeaderMap) -> HeaderMap {
        let mut sent = Vec::new();
        Writing::Chunks.write(&mut sent, &Frame::Trailers(trailers));
        let (mut incoming, mut reading) = (Incoming::default(), Reading::from(RequestBody::Chunked));
        incoming.append(&sent);
        match reading.take(&mut incoming) {
            Ok(Some(Frame::Trailers(trailers))) => trailers,
            other => panic!("{other:?} of {}", String::from_utf8_lossy(&sent)),
        }
    }

    #[test]
    fn as_many_trailers_are_written_as_are_read_and_the_status_of_grpc_always() {
        for (bytes, expected) in [(1, TRAILER_FIELDS), (1_000, 9)] {
            let mut trailers = HeaderMap::new();
            for i in 0..100 {
                let name = HeaderName::from_bytes(format!("x-{i:03}").as_bytes()).unwrap();
                trailers.insert(name, HeaderValue::from_str(&"v".repeat(bytes)).unwrap());
            }
            trailers.insert("grpc-status", HeaderValue::from_static("7"));
            let told = told(trailers);
            assert_eq!((told.len(), told["grpc-status"].to_str().unwrap()), (expected, "7"));
        }
        // To the last byte.
        for (excess, expected) in [(0, 2), (1, 1)] {
            let mut trailers = HeaderMap::new();
            trailers.insert("a", HeaderValue::from_static("b"));
            let rest = TRAILERS - "a: b\r\n".len() - "c: \r\n".len() - LINE_END.len() + excess;
            trailers.insert("c", HeaderValue::from_str(&"d".repeat(rest)).unwrap());
            assert_eq!(told(trailers).len(), expected);
        }
    }

    #[test]
    fn the_values_of_one_trailer_count_each() {
        let mut trailers = HeaderMap::new();
        for _ in 0..1_000 {
            trailers.append("x", HeaderValue::from_static("y"));
        }
        assert_eq!(told(trailers).get_all("x").iter().count(), TRAILER_FIELDS);
    }
}
