//! Frames that say nothing are kept from `h2`: it ends a connection at its hundredth empty DATA frame,
//! though that may be a day old and each of them allowed (RFC 9113 §6.1). Pure: bytes in, bytes out.
//!
//! What is dropped changes nothing: no data, no flag, no flow control. A long row of them is a flood,
//! and goes on to `h2`, which knows what to do about it.

/// Bytes of a frame's header (RFC 9113 §4.1).
const HEAD: usize = 9;
/// Bytes that a client's connection begins with, before the first frame (§3.4).
const PREFACE: usize = 24;
/// Empty frames in a row that are dropped. Nobody who means well sends as many.
const ROW: u32 = 1_000;
/// Below so many bytes of data `h2` counts a frame as small.
const SMALL: usize = 256;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PUSH_PROMISE: u8 = 5;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Follows the boundaries of the frames of one connection, in one direction.
#[derive(Clone, Debug)]
pub(super) struct Sieve {
    /// Bytes that pass before the next header.
    rest: usize,
    head: Head,
    /// Whether a block of fields goes on, between whose frames no other may come (§6.10).
    in_block: bool,
    /// Empty frames in a row.
    row: u32,
    /// Small frames of data that passed since they were last asked for.
    small: u32,
}

/// A header that was cut by the end of a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// None was.
    Whole,
    /// So many bytes of it came; they wait for the others.
    Part([u8; HEAD], usize),
    /// It is whole by now, or never will be; the bytes from the first to the second number are to pass.
    Passes([u8; HEAD], usize, usize),
}

impl Sieve {
    /// For what a client sends.
    pub(super) const fn of_client() -> Self {
        Self { rest: PREFACE, head: Head::Whole, in_block: false, row: 0, small: 0 }
    }

    /// For what an endpoint sends.
    pub(super) const fn of_endpoint() -> Self {
        Self { rest: 0, ..Self::of_client() }
    }

    /// Small frames of data since the last time this was called.
    pub(super) fn take_small(&mut self) -> u32 {
        std::mem::take(&mut self.small)
    }

    /// Small frames of data since then.
    pub(super) fn small(&self) -> u32 {
        self.small
    }

    /// Of bytes that came, moves those that pass to the front, and says how many they are. Not called
    /// while there is a [`Self::passing`] or something [`Self::missing`].
    pub(super) fn sift(&mut self, bytes: &mut [u8]) -> usize {
        let (mut at, mut kept) = (0, 0);
        loop {
            let pass = self.rest.min(bytes.len() - at);
            if kept != at {
                bytes.copy_within(at..at + pass, kept);
            }
            self.rest -= pass;
            at += pass;
            kept += pass;
            let Some(head) = bytes[at..].first_chunk() else {
                let part = &bytes[at..];
                if !part.is_empty() {
                    let mut head = [0; HEAD];
                    head[..part.len()].copy_from_slice(part);
                    self.head = Head::Part(head, part.len());
                }
                return kept;
            };
            match self.look_at(*head) {
                Some(len) => self.rest = HEAD + len,
                None => at += HEAD,
            }
        }
    }

    /// Bytes that a header lacks.
    pub(super) fn missing(&self) -> usize {
        match self.head {
            Head::Part(_, came) => HEAD - came,
            _ => 0,
        }
    }

    /// Gives bytes that were missing, no more than that; none when there will not be any.
    pub(super) fn give(&mut self, bytes: &[u8]) {
        let Head::Part(mut head, came) = self.head else { return };
        let whole = came + bytes.len();
        head[came..whole].copy_from_slice(bytes);
        self.head = if bytes.is_empty() {
            // What is wrong with it, `h2` shall say.
            Head::Passes(head, 0, came)
        } else if whole < HEAD {
            Head::Part(head, whole)
        } else if let Some(len) = self.look_at(head) {
            self.rest = len;
            Head::Passes(head, 0, HEAD)
        } else {
            Head::Whole
        };
    }

    /// Bytes that pass before any others.
    pub(super) fn passing(&self) -> &[u8] {
        match &self.head {
            Head::Passes(head, from, to) => &head[*from..*to],
            _ => &[],
        }
    }

    /// The first `n` of [`Self::passing`] did.
    pub(super) fn passed(&mut self, n: usize) {
        if let Head::Passes(head, from, to) = self.head {
            self.head = if from + n < to { Head::Passes(head, from + n, to) } else { Head::Whole };
        }
    }

    /// The length of what follows a header; `None` when the frame is dropped.
    fn look_at(&mut self, head: [u8; HEAD]) -> Option<usize> {
        let [a, b, c, kind, flags, id @ ..] = head;
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        // The first bit means nothing (§4.1). Data on stream 0 is an error (§6.1).
        let is_of_stream = u32::from_be_bytes(id) & 0x7fff_ffff != 0;
        if (len, kind, flags) == (0, DATA, 0) && is_of_stream && !self.in_block {
            self.row = self.row.saturating_add(1);
            if self.row <= ROW {
                return None;
            }
        } else {
            self.row = 0;
        }
        self.in_block = matches!(kind, HEADERS | PUSH_PROMISE | CONTINUATION) && flags & END_HEADERS == 0;
        if kind == DATA && len < SMALL {
            self.small = self.small.saturating_add(1);
        }
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, id: u32, data: &[u8]) -> Vec<u8> {
        let len = u32::try_from(data.len()).unwrap().to_be_bytes();
        let head = [&len[1..], &[kind, flags], &id.to_be_bytes()].concat();
        [&head, data].concat()
    }

    fn random(rng: &mut fastrand::Rng) -> Vec<u8> {
        let len = [0, 0, 1, 8, 9, 10, 300][rng.usize(..7)];
        // Zeros look like the header of an empty frame.
        let data: Vec<u8> = (0..len).map(|_| rng.u8(..2)).collect();
        let kind = [DATA, DATA, DATA, HEADERS, CONTINUATION, 8, 77][rng.usize(..7)];
        let flags = [0, 0, 0, 1, END_HEADERS, 8][rng.usize(..6)];
        frame(kind, flags, [0, 1, 7, 1 << 31, 1 << 31 | 3][rng.usize(..5)], &data)
    }

    /// As [`Sieve`] is used, with reads of any size.
    fn sifted(mut sieve: Sieve, mut bytes: &[u8], rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut out = Vec::new();
        loop {
            if !sieve.passing().is_empty() {
                let n = rng.usize(1..=sieve.passing().len());
                out.extend_from_slice(&sieve.passing()[..n]);
                sieve.passed(n);
                continue;
            }
            let most = match sieve.missing() {
                0 => rng.usize(1..400),
                missing => rng.usize(1..=missing),
            };
            let (read, rest) = bytes.split_at(most.min(bytes.len()));
            bytes = rest;
            if sieve.missing() > 0 {
                sieve.give(read);
            } else if read.is_empty() {
                return out;
            } else {
                let mut read = read.to_vec();
                let n = sieve.sift(&mut read);
                out.extend_from_slice(&read[..n]);
            }
        }
    }

    #[test]
    fn however_the_bytes_are_cut_the_same_frames_pass() {
        for seed in 0..2_000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let frames: Vec<_> = (0..rng.usize(..30)).map(|_| random(&mut rng)).collect();
            let (mut all, mut expected, mut in_block) = (Vec::new(), Vec::new(), false);
            for frame in &frames {
                all.extend_from_slice(frame);
                let is_empty = frame[..5] == [0; 5] && frame[5] & 0x7f | frame[6] | frame[7] | frame[8] > 0;
                if !is_empty || in_block {
                    expected.extend_from_slice(frame);
                    in_block = matches!(frame[3], HEADERS | CONTINUATION) && frame[4] & END_HEADERS == 0;
                }
            }
            // What is cut off is told as it is.
            let part = &frame(8, 0, 1, b"1234")[..rng.usize(..13)];
            let (all, expected) = ([&all[..], part].concat(), [&expected[..], part].concat());
            assert!(sifted(Sieve::of_endpoint(), &all, &mut rng) == expected, "seed {seed}");
            let preface: Vec<u8> = (0..PREFACE).map(|_| rng.u8(..2)).collect();
            let (all, expected) = ([&preface[..], &all].concat(), [&preface[..], &expected].concat());
            assert!(sifted(Sieve::of_client(), &all, &mut rng) == expected, "seed {seed}, with a preface");
        }
    }

    #[test]
    fn a_flood_of_empty_frames_passes() {
        let row = frame(DATA, 0, 1, b"").repeat(ROW as usize);
        let other = frame(8, 0, 1, b"1234");
        let mut sieve = Sieve::of_endpoint();
        assert_eq!(sieve.sift(&mut row.clone()), 0);
        assert_eq!(sieve.sift(&mut other.clone()), other.len());
        assert_eq!(sieve.sift(&mut row.clone()), 0, "the row was broken");
        assert_eq!(sieve.sift(&mut row.clone()), row.len());
    }

    #[test]
    fn small_frames_are_counted() {
        let mut sieve = Sieve::of_endpoint();
        let mut bytes = [frame(DATA, 0, 1, &[1; 255]), frame(DATA, 0, 1, &[1; 256])].concat();
        sieve.sift(&mut bytes);
        assert_eq!((sieve.small(), sieve.take_small(), sieve.take_small()), (1, 1, 0));
    }
}
