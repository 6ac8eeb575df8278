//! HTTP/1: heads and chunked bodies as bytes (RFC 9112). Pure: no I/O, no clock, no tasks.
//!
//! What is forwarded is re-framed from what was understood, never passed on in doubt. A head is parsed
//! once, and written on as a plan over its original bytes: what stays is copied in as few spans as
//! possible, what is the connection's own is left out, what the proxy says is added at the end.
//!
//! - [`request`], [`response`]: a head → what it means → the head for the other side.
//! - [`edits`]: what the proxy changes in a head on its way.
//! - [`chunked`]: the chunked coding, byte range by byte range.
//! - [`convert`]: the same between this codec and the `http` crate, for engines that speak HTTP/2.
//! - `field`: the one list of names that mean something to a proxy.
//! - `lines`: field lines, and what they say of framing and of the connection.
//! - `target`: request targets and hosts.

pub(crate) mod chunked;
pub(crate) mod convert;
pub(crate) mod edits;
mod field;
mod lines;
pub(crate) mod request;
pub(crate) mod response;
mod target;

#[cfg(test)]
mod tests;

use std::{error::Error, fmt, mem::MaybeUninit};

/// Fields a head may have; one more is 431 (RFC 6585 §5).
pub(crate) const FIELDS: usize = 128;

/// Room for the fields of one head, on the caller's stack. Costs nothing to make.
pub(crate) struct Slots<'b>([MaybeUninit<httparse::Header<'b>>; FIELDS]);

#[inline]
pub(crate) fn slots<'b>() -> Slots<'b> {
    Slots([const { MaybeUninit::uninit() }; FIELDS])
}

/// Why a head is not forwarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HeadError {
    /// What the client is told; 502 when an endpoint sent it.
    pub(crate) status: u16,
    /// In words, without anything of what was sent.
    pub(crate) reason: &'static str,
}

impl HeadError {
    const fn new(status: u16, reason: &'static str) -> Self {
        Self { status, reason }
    }

    /// 400: not HTTP, or HTTP that two readers could take for different things.
    pub(crate) const fn bad(reason: &'static str) -> Self {
        Self::new(400, reason)
    }

    /// 502: the same from an endpoint.
    const fn gateway(self) -> Self {
        Self::new(502, self.reason)
    }
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reason)
    }
}

impl Error for HeadError {}

/// The HTTP/1 version of a message. Others are refused (RFC 9110 §15.6.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}
