//! As much HTTP/2 (RFC 9113) as one gRPC stream on a connection of its own needs: a read and a write a
//! message. A library would cost more than all else that a proxy of the swarm does, on the same cores
//! as the server that is measured.

use anyhow::{bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The one stream.
const STREAM: u32 = 1;
/// How much the server may send before it is told that it was taken, as gRPC clients do.
const WINDOW: u32 = 1 << 20;
/// The window that there is before anything is said (§6.9.2).
const FIRST_WINDOW: u32 = 65_535;
/// The largest frame that is taken (§6.5.2, the default).
const MAX_FRAME: usize = 16_384;

// Types of frames (§6) and flags.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// A connection with its one stream.
pub(super) struct Connection {
    stream: TcpStream,
    received: BytesMut,
    /// Content of the stream that is no whole message yet.
    content: BytesMut,
    to_send: BytesMut,
    /// What was taken and not said yet.
    taken: u32,
    /// Bytes that arrived at the socket since this was asked last.
    arrived: u64,
}

impl Connection {
    /// Calls a gRPC method at `path`; nothing is sent before [`Self::flush`].
    pub(super) fn call(stream: TcpStream, path: &str) -> Self {
        let mut to_send = BytesMut::with_capacity(1_024);
        to_send.put_slice(PREFACE);
        // SETTINGS_INITIAL_WINDOW_SIZE
        let mut settings = [0, 4, 0, 0, 0, 0];
        settings[2..].copy_from_slice(&WINDOW.to_be_bytes());
        put_frame(&mut to_send, SETTINGS, 0, 0, &settings);
        put_frame(&mut to_send, WINDOW_UPDATE, 0, 0, &(2 * WINDOW - FIRST_WINDOW).to_be_bytes());
        let mut headers = Vec::new();
        // Of the static table (RFC 7541, appendix A): POST and http.
        headers.extend([0x80 | 3, 0x80 | 6]);
        put_header(&mut headers, b":path", path.as_bytes());
        put_header(&mut headers, b":authority", b"xds");
        put_header(&mut headers, b"content-type", b"application/grpc");
        put_header(&mut headers, b"te", b"trailers");
        put_frame(&mut to_send, HEADERS, END_HEADERS, STREAM, &headers);
        let (received, content) = (BytesMut::with_capacity(8_192), BytesMut::new());
        Self { stream, received, content, to_send, taken: 0, arrived: 0 }
    }

    /// Adds a message to what is to be sent.
    pub(super) fn put(&mut self, message: &[u8]) {
        // A frame is at most as long as the server takes for sure.
        for part in message.chunks(MAX_FRAME) {
            put_frame(&mut self.to_send, DATA, 0, STREAM, part);
        }
    }

    pub(super) async fn flush(&mut self) -> anyhow::Result<()> {
        if !self.to_send.is_empty() {
            self.stream.write_all(&self.to_send).await?;
            self.to_send.clear();
        }
        Ok(())
    }

    /// Bytes that arrived at the socket since this was asked last.
    pub(super) fn arrived(&mut self) -> u64 {
        std::mem::take(&mut self.arrived)
    }

    /// The content of the stream, to take whole messages out of, once more of it has come.
    pub(super) async fn more(&mut self) -> anyhow::Result<&mut BytesMut> {
        loop {
            let before = self.content.len();
            while let Some((kind, flags, payload)) = next_frame(&mut self.received)? {
                self.on_frame(kind, flags, &payload)?;
            }
            if self.content.len() > before {
                return Ok(&mut self.content);
            }
            self.flush().await?;
            self.received.reserve(MAX_FRAME);
            let read = self.stream.read_buf(&mut self.received).await?;
            ensure!(read > 0, "the server closed the connection");
            self.arrived += read as u64;
        }
    }

    fn on_frame(&mut self, kind: u8, flags: u8, payload: &Bytes) -> anyhow::Result<()> {
        match kind {
            DATA => {
                ensure!(flags & (PADDED | END_STREAM) == 0, "the server ended the stream");
                self.taken += u32::try_from(payload.len())?;
                self.content.extend_from_slice(payload);
                if self.taken >= WINDOW / 2 {
                    let taken = std::mem::take(&mut self.taken).to_be_bytes();
                    put_frame(&mut self.to_send, WINDOW_UPDATE, 0, 0, &taken);
                    put_frame(&mut self.to_send, WINDOW_UPDATE, 0, STREAM, &taken);
                }
            }
            HEADERS if flags & END_STREAM != 0 => {
                bail!("the server ended the stream: {}", String::from_utf8_lossy(payload))
            }
            SETTINGS if flags & ACK == 0 => put_frame(&mut self.to_send, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => put_frame(&mut self.to_send, PING, ACK, 0, payload),
            RST_STREAM => bail!("the server reset the stream: {payload:?}"),
            GOAWAY => bail!("the server ends the connection: {payload:?}"),
            // What is said about windows is never waited for: a proxy sends little, and each of its
            // messages is read before the next response comes.
            _ => {}
        }
        Ok(())
    }
}

/// Takes the next whole frame out of what was received.
fn next_frame(received: &mut BytesMut) -> anyhow::Result<Option<(u8, u8, Bytes)>> {
    let Some(mut head) = received.get(..9) else { return Ok(None) };
    let length = head.get_uint(3) as usize;
    let (kind, flags) = (head.get_u8(), head.get_u8());
    ensure!(length <= MAX_FRAME, "a frame of {length} bytes");
    if received.len() < 9 + length {
        return Ok(None);
    }
    received.advance(9);
    Ok(Some((kind, flags, received.split_to(length).freeze())))
}

fn put_frame(buffer: &mut BytesMut, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    buffer.put_uint(payload.len() as u64, 3);
    buffer.put_u8(kind);
    buffer.put_u8(flags);
    buffer.put_u32(stream);
    buffer.put_slice(payload);
}

/// A literal header that goes into no table (RFC 7541 §6.2.2), below 127 bytes a part.
fn put_header(headers: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    assert!(name.len() < 127 && value.len() < 127);
    headers.push(0);
    for part in [name, value] {
        headers.push(part.len() as u8);
        headers.extend(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_was_put_is_taken_when_it_is_whole() {
        let mut whole = BytesMut::new();
        put_frame(&mut whole, DATA, 0, STREAM, b"hello");
        put_frame(&mut whole, PING, ACK, 0, &[7; 8]);
        let mut received = BytesMut::from(&whole[..12]);
        assert_eq!(next_frame(&mut received).unwrap(), None);
        received.extend_from_slice(&whole[12..]);
        assert_eq!(next_frame(&mut received).unwrap(), Some((DATA, 0, Bytes::from_static(b"hello"))));
        assert_eq!(next_frame(&mut received).unwrap().unwrap().0, PING);
        assert!(received.is_empty());
    }

    #[test]
    fn a_frame_beyond_what_was_agreed_is_refused() {
        let mut received = BytesMut::from(&[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1][..]);
        assert!(next_frame(&mut received).is_err());
    }
}
