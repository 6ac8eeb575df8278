//! A client's connection through TLS that holds no buffer while it is idle.
//!
//! rustls' own buffers keep 4 KiB a connection for ever and read 4 KiB a call. Here records are read
//! into, and written from, room that belongs to the thread; a connection keeps bytes of its own only
//! where they do not fit: a record that has half arrived, plaintext beyond what was asked for, records
//! the socket does not take yet. Each is bounded by the room.

use std::{
    cell::RefCell,
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use rustls::{
    CommonState, ServerConfig,
    server::UnbufferedServerConnection,
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The most plaintext of a record (RFC 8446 §5.1).
const RECORD: usize = 16_384;
/// The most a record is longer than its plaintext (RFC 5246 §6.2.3, RFC 8446 §5.2), with its head.
const OVERHEAD: usize = 2_048 + 5;
/// What is read at once: a record that has half arrived, and another.
const INCOMING: usize = 2 * (RECORD + OVERHEAD);
/// The most plaintext that is encrypted at once.
const AT_ONCE: usize = 4 * RECORD;
/// The records of so much; ours are 29 bytes longer than their plaintext at most.
const OUTGOING: usize = AT_ONCE + 5 * 64;

/// The most that rustls may have to say before the client reads any of it: a few certificates' worth.
const REPLIES: usize = OUTGOING + 256 * 1_024;

/// What a thread's connections share, none of it between two calls.
struct Room {
    incoming: Box<[u8]>,
    /// Where writes of several parts become one.
    plain: Vec<u8>,
    outgoing: Box<[u8]>,
}

thread_local! {
    static ROOM: RefCell<Room> = RefCell::new(Room {
        incoming: vec![0; INCOMING].into_boxed_slice(),
        plain: Vec::new(),
        outgoing: vec![0; OUTGOING].into_boxed_slice(),
    });
}

/// Bytes that wait, and how many of them are gone.
#[derive(Default)]
struct Rest {
    bytes: Vec<u8>,
    gone: usize,
}

impl Rest {
    fn ahead(&self) -> &[u8] {
        &self.bytes[self.gone..]
    }

    fn is_empty(&self) -> bool {
        self.gone == self.bytes.len()
    }

    /// Gives the memory back with the last byte.
    fn consume(&mut self, n: usize) {
        self.gone += n;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

/// A connection that a client has made, after or during its handshake.
pub(crate) struct ServerStream {
    io: TcpStream,
    tls: UnbufferedServerConnection,
    /// Records, or the first part of one, that were read and not processed.
    incoming: Vec<u8>,
    /// Whether nothing more comes of `incoming` before more is read.
    starved: bool,
    plain: Rest,
    outgoing: Rest,
    /// Whether the client said that it sends nothing more.
    closed: bool,
    said_goodbye: bool,
}

impl fmt::Debug for ServerStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerStream").field("io", &self.io).finish_non_exhaustive()
    }
}

/// Where processing ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    /// With nothing left that could be processed.
    Starved,
    /// With no room for more plaintext.
    Full,
}

impl ServerStream {
    /// Shakes hands. Dropping the future closes the connection.
    ///
    /// # Errors
    /// Of the socket; `InvalidData` with rustls' error when the client does not do as TLS says.
    pub(crate) async fn accept(io: TcpStream, config: Arc<ServerConfig>) -> io::Result<Self> {
        let tls = UnbufferedServerConnection::new(config).map_err(invalid)?;
        let mut stream = Self {
            io,
            tls,
            incoming: Vec::new(),
            starved: true,
            plain: Rest::default(),
            outgoing: Rest::default(),
            closed: false,
            said_goodbye: false,
        };
        std::future::poll_fn(|cx| stream.poll_handshake(cx)).await?;
        Ok(stream)
    }

    /// What was agreed on.
    pub(crate) fn state(&self) -> &CommonState {
        &self.tls
    }

    /// The connection below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        &self.io
    }

    /// Bytes of buffers it keeps.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.incoming.capacity() + self.plain.bytes.capacity() + self.outgoing.bytes.capacity()
    }

    fn poll_handshake(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.is_handshaking() {
            if self.closed {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
            ready!(self.poll_drained(cx))?;
            // What is read beyond the handshake waits in `plain`.
            ready!(self.poll_more(cx, &mut ReadBuf::new(&mut [])))?;
        }
        self.poll_drained(cx)
    }

    /// Processes what is there, or else what can be read.
    fn poll_more(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        ROOM.with_borrow_mut(|room| {
            let room = &mut room.incoming[..];
            let mut filled = self.incoming.len();
            if filled == room.len() && self.starved {
                return Poll::Ready(Err(invalid(rustls::Error::PeerSentOversizedRecord)));
            }
            room[..filled].copy_from_slice(&self.incoming);
            if self.starved {
                let mut more = ReadBuf::new(&mut room[filled..]);
                ready!(Pin::new(&mut self.io).poll_read(cx, &mut more))?;
                let n = more.filled().len();
                if n == 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                filled += n;
            }
            let (used, end) = self.process(&mut room[..filled], into);
            let rest = &room[used..filled];
            if rest.is_empty() {
                self.incoming = Vec::new();
            } else {
                self.incoming.clear();
                self.incoming.extend_from_slice(rest);
            }
            self.offer();
            self.starved = end? == End::Starved || self.incoming.is_empty();
            if self.outgoing.ahead().len() > REPLIES {
                return Poll::Ready(Err(io::Error::other("the client asks and does not read the replies")));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// Takes records from `bytes`: plaintext goes to `into`, and to `plain` what does not fit; replies
    /// go to `outgoing`. Returns how many bytes were used up.
    fn process(&mut self, bytes: &mut [u8], into: &mut ReadBuf<'_>) -> (usize, io::Result<End>) {
        let mut used = 0;
        loop {
            let UnbufferedStatus { discard, state, .. } = self.tls.process_tls_records(&mut bytes[used..]);
            let mut taken = discard;
            let mut failed = None;
            let end = match state {
                Ok(ConnectionState::ReadTraffic(mut traffic)) => {
                    while let Some(record) = traffic.next_record() {
                        match record {
                            Ok(record) => {
                                taken += record.discard;
                                let fits = record.payload.len().min(into.remaining());
                                into.put_slice(&record.payload[..fits]);
                                self.plain.bytes.extend_from_slice(&record.payload[fits..]);
                            }
                            Err(error) => failed = Some(invalid(error)),
                        }
                    }
                    (into.remaining() == 0).then_some(End::Full)
                }
                Ok(ConnectionState::EncodeTlsData(encode)) => {
                    failed = encoded(encode, &mut self.outgoing.bytes).err();
                    None
                }
                Ok(ConnectionState::TransmitTlsData(transmit)) => {
                    transmit.done(); // in order: `outgoing` goes before anything else
                    None
                }
                Ok(ConnectionState::PeerClosed | ConnectionState::Closed) => {
                    self.closed = true;
                    Some(End::Starved)
                }
                Ok(ConnectionState::BlockedHandshake | ConnectionState::WriteTraffic(_)) => {
                    Some(End::Starved)
                }
                Ok(_) => {
                    failed = Some(io::ErrorKind::Unsupported.into()); // early data, which is off
                    None
                }
                Err(error) => {
                    failed = Some(invalid(error));
                    None
                }
            };
            used += taken;
            if let Some(error) = failed {
                // The alert that tells the client what it did wrong.
                let rest = &mut bytes[used..];
                if let Ok(ConnectionState::EncodeTlsData(alert)) = self.tls.process_tls_records(rest).state {
                    let _ = encoded(alert, &mut self.outgoing.bytes);
                }
                return (used, Err(error));
            }
            if let Some(end) = end {
                return (used, Ok(end));
            }
        }
    }

    /// Sends what the socket takes at once. For the side that reads: who waits for the socket to take
    /// more is the side that writes, which may be another task.
    fn offer(&mut self) {
        while !self.outgoing.is_empty() {
            match self.io.try_write(self.outgoing.ahead()) {
                Ok(n) if n > 0 => self.outgoing.consume(n),
                _ => return, // an error is met again by who writes
            }
        }
    }

    /// Sends what waits to be sent.
    fn poll_drained(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.outgoing.is_empty() {
            match ready!(Pin::new(&mut self.io).poll_write(cx, self.outgoing.ahead()))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.outgoing.consume(n),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts `plain`, no longer than [`AT_ONCE`], or a goodbye, and sends as much as the socket takes.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        plain: Option<&[u8]>,
        room: &mut [u8],
    ) -> Poll<io::Result<()>> {
        let n = loop {
            ready!(self.poll_drained(cx))?;
            // With what has come, never without: rustls remembers places in it.
            let mut incoming = std::mem::take(&mut self.incoming);
            let UnbufferedStatus { discard, state, .. } = self.tls.process_tls_records(&mut incoming);
            let mut sent = None;
            match state.map_err(invalid)? {
                ConnectionState::WriteTraffic(mut traffic) => {
                    let encrypted = match plain {
                        Some(plain) => traffic.encrypt(plain, room),
                        None => traffic.queue_close_notify(room),
                    };
                    sent = Some(encrypted.map_err(exhausted)?);
                }
                ConnectionState::ReadTraffic(mut traffic) => {
                    while let Some(record) = traffic.next_record() {
                        self.plain.bytes.extend_from_slice(record.map_err(invalid)?.payload);
                    }
                }
                ConnectionState::EncodeTlsData(encode) => encoded(encode, &mut self.outgoing.bytes)?,
                ConnectionState::TransmitTlsData(transmit) => transmit.done(),
                ConnectionState::PeerClosed => self.closed = true,
                _ => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
            incoming.drain(..discard);
            self.incoming = incoming;
            if let Some(n) = sent {
                break n;
            }
        };
        let sent = match Pin::new(&mut self.io).poll_write(cx, &room[..n]) {
            Poll::Ready(sent) => sent?,
            Poll::Pending => 0,
        };
        self.outgoing.bytes.extend_from_slice(&room[sent..n]);
        Poll::Ready(Ok(()))
    }
}

/// Appends what rustls has to say.
fn encoded<Data>(mut encode: EncodeTlsData<'_, Data>, outgoing: &mut Vec<u8>) -> io::Result<()> {
    let at = outgoing.len();
    let required = match encode.encode(&mut []) {
        Ok(_) => return Ok(()),
        Err(EncodeError::InsufficientSize(error)) => error.required_size,
        Err(error) => return Err(io::Error::other(error)),
    };
    outgoing.resize(at + required, 0);
    encode.encode(&mut outgoing[at..]).map(drop).map_err(io::Error::other)
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

fn exhausted(error: EncryptError) -> io::Error {
    io::Error::other(error)
}

impl AsyncRead for ServerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        loop {
            if !self.plain.is_empty() {
                let n = self.plain.ahead().len().min(into.remaining());
                into.put_slice(&self.plain.ahead()[..n]);
                self.plain.consume(n);
            }
            if into.filled().len() > before || into.remaining() == 0 || (self.closed && self.plain.is_empty())
            {
                return Poll::Ready(Ok(()));
            }
            ready!(self.poll_more(cx, into))?;
        }
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let n = bytes.len().min(AT_ONCE);
        if n == 0 {
            return Poll::Ready(Ok(0));
        }
        ROOM.with_borrow_mut(|room| self.get_mut().poll_send(cx, Some(&bytes[..n]), &mut room.outgoing))
            .map_ok(|()| n)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut filled = parts.iter().filter(|part| !part.is_empty());
        let first = filled.next().map_or(&[][..], |part| part);
        if filled.next().is_none() {
            return self.poll_write(cx, first);
        }
        let this = self.get_mut();
        ROOM.with_borrow_mut(|room| {
            // Joined, so that a head and the start of its body are one record.
            room.plain.clear();
            for part in parts {
                let fits = part.len().min(AT_ONCE - room.plain.len());
                room.plain.extend_from_slice(&part[..fits]);
            }
            this.poll_send(cx, Some(&room.plain), &mut room.outgoing).map_ok(|()| room.plain.len())
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drained(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.said_goodbye {
            ready!(ROOM.with_borrow_mut(|room| this.poll_send(cx, None, &mut room.outgoing)))?;
            this.said_goodbye = true;
        }
        ready!(this.poll_drained(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
