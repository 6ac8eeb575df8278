//! Buffers of this core. They are borrowed while there are bytes in them, so that ten thousand idle
//! connections hold none, and the few that are in use are in the cache.

use std::{cell::RefCell, mem};

/// Bytes of a buffer: the largest head, and what one read of a body takes.
pub(crate) const SIZE: usize = 32 * 1024;
/// Free ones that are kept, a core.
const KEPT: usize = 64;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8; SIZE]>>> = const { RefCell::new(Vec::new()) };
    static FREE_HEADS: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// Made on the heap at once.
fn zeroed() -> Box<[u8; SIZE]> {
    vec![0; SIZE].into_boxed_slice().try_into().expect("it has that size")
}

/// A buffer that is read into at its end and consumed from its start.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Option<Box<[u8; SIZE]>>,
    start: usize,
    end: usize,
}

impl Buffer {
    /// An empty one.
    pub(crate) fn new() -> Self {
        let free = FREE.with_borrow_mut(Vec::pop);
        Self { bytes: Some(free.unwrap_or_else(zeroed)), start: 0, end: 0 }
    }

    fn inner(&mut self) -> &mut [u8; SIZE] {
        self.bytes.as_mut().expect("it is only taken when dropped")
    }

    /// What is in it.
    pub(crate) fn bytes(&self) -> &[u8] {
        let bytes = self.bytes.as_ref().expect("it is only taken when dropped");
        &bytes[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Whether it is full from its start to its end.
    pub(crate) fn is_full(&self) -> bool {
        self.end - self.start == SIZE
    }

    /// Room to read into; what is in it moves to the front when that makes room.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        let (start, end) = (self.start, self.end);
        if start == end {
            (self.start, self.end) = (0, 0);
        } else if end == SIZE {
            self.inner().copy_within(start..end, 0);
            (self.start, self.end) = (0, end - start);
        }
        let end = self.end;
        &mut self.inner()[end..]
    }

    /// `n` bytes were read into the [`Self::room`].
    pub(crate) fn filled(&mut self, n: usize) {
        self.end = (self.end + n).min(SIZE);
    }

    /// The first `n` bytes are done with.
    pub(crate) fn consume(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
    }

    #[cfg(test)]
    /// Appends `bytes`, as far as there is room; returns how many.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> usize {
        let room = self.room();
        let n = room.len().min(bytes.len());
        room[..n].copy_from_slice(&bytes[..n]);
        self.filled(n);
        n
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let Some(bytes) = self.bytes.take() else { return };
        // The thread may be ending.
        _ = FREE.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
    }
}

/// Bytes to be sent, made from scratch: a head, and what follows it in the same write.
#[derive(Debug, Default)]
pub(crate) struct Output {
    bytes: Vec<u8>,
    sent: usize,
}

impl Output {
    /// An empty one, with room.
    pub(crate) fn new() -> Self {
        let bytes = FREE_HEADS.with_borrow_mut(Vec::pop).unwrap_or_else(|| Vec::with_capacity(4 * 1024));
        Self { bytes, sent: 0 }
    }

    /// To append to.
    pub(crate) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// What is still to be sent.
    pub(crate) fn rest(&self) -> &[u8] {
        &self.bytes[self.sent..]
    }

    /// `n` more bytes were sent.
    pub(crate) fn advance(&mut self, n: usize) {
        self.sent = (self.sent + n).min(self.bytes.len());
    }

    /// Whether any byte was sent.
    pub(crate) fn began(&self) -> bool {
        self.sent > 0
    }

    /// All of it is to be sent again.
    pub(crate) fn rewind(&mut self) {
        self.sent = 0;
    }

    pub(crate) fn is_done(&self) -> bool {
        self.sent == self.bytes.len()
    }

    /// Makes room by what was sent, when all was.
    pub(crate) fn forget_sent(&mut self) {
        if self.is_done() {
            self.bytes.clear();
            self.sent = 0;
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let mut bytes = mem::take(&mut self.bytes);
        // One that grew large is not kept.
        if bytes.capacity() == 0 || bytes.capacity() > 2 * SIZE {
            return;
        }
        bytes.clear();
        _ = FREE_HEADS.try_with(|free| {
            let mut free = free.borrow_mut();
            if free.len() < KEPT {
                free.push(bytes);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_as_they_went_in_whatever_is_consumed_between() {
        for seed in 0..20 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut buffer, mut model) = (Buffer::new(), std::collections::VecDeque::<u8>::new());
            for _ in 0..500 {
                let bytes: Vec<u8> = (0..rng.usize(0..20_000)).map(|_| rng.u8(..)).collect();
                let taken = buffer.append(&bytes);
                assert!(taken > 0 || bytes.is_empty() || buffer.is_full(), "seed {seed}");
                model.extend(&bytes[..taken]);
                let done = rng.usize(0..=model.len());
                buffer.consume(done);
                model.drain(..done);
                assert_eq!(buffer.bytes(), model.make_contiguous(), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_buffer_is_used_again_and_empty() {
        let mut one = Buffer::new();
        one.append(b"secret");
        drop(one);
        assert!(Buffer::new().bytes().is_empty());
        let mut output = Output::new();
        output.bytes().extend_from_slice(b"secret");
        drop(output);
        assert!(Output::new().is_done());
    }
}
