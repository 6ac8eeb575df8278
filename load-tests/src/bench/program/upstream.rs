//! The instances behind the subjects: one thread, responses made in advance.
//!
//! `/b/<n>` answers with n bytes, `/c/<n>` with n bytes in chunks, `/u/<n>` with 2 bytes once it has
//! read a body of exactly n (400 for any other). HTTP/1.1 with keep-alive and `connection: close`.

use std::{
    collections::{HashMap, VecDeque},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    rc::Rc,
};

use slab::Slab;

use crate::bench::{
    http1::{Chunks, Framing, chunked, head},
    poll::{EventFlags, Poll, accept, hung_up, listen, ready},
};

const BUFFER: usize = 256 * 1_024;
/// Bytes a chunk of `/c/`.
const CHUNK: usize = 8 * 1_024;
/// The largest body, and the longest head.
const MAX_BODY: usize = 16 << 20;
const MAX_HEAD: usize = 64 * 1_024;
/// Paths whose response is kept.
const MAX_RESPONSES: usize = 64;
/// Tokens from here on are listeners.
const LISTENERS: u64 = u64::MAX - 64;

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
const BAD_REQUEST: &[u8] = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n";

/// Listens on `count` ports, writes their addresses to `ready_file`, and serves until it is killed.
pub fn run(count: usize, ready_file: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(count <= 64, "at most 64 ports");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let listeners: Vec<TcpListener> = (0..count).map(|_| listen(any)).collect::<Result<_, _>>()?;
    let mut poll = Poll::new()?;
    let mut addresses = Vec::new();
    for (token, listener) in (LISTENERS..).zip(&listeners) {
        poll.add_listener(listener, token)?;
        addresses.push(listener.local_addr()?);
    }
    let written = ready_file.with_extension("part");
    std::fs::write(&written, serde_json::to_vec(&addresses)?)?;
    std::fs::rename(written, ready_file)?;

    let mut connections: Slab<Connection> = Slab::new();
    let mut responses = Responses::default();
    let mut buffer = vec![0; BUFFER];
    loop {
        for event in 0..poll.wait(None)? {
            let (token, flags) = poll.event(event);
            if token >= LISTENERS {
                if let Ok(Some(stream)) = accept(&listeners[(token - LISTENERS) as usize]) {
                    let index = connections.vacant_key();
                    if poll.add(&stream, index as u64).is_ok() {
                        connections.insert(Connection::new(stream));
                    }
                }
                continue;
            }
            let Some(connection) = connections.get_mut(token as usize) else { continue };
            if connection.on_event(flags, &mut responses, &mut buffer).is_none() {
                connections.try_remove(token as usize);
            }
        }
    }
}

/// Whole responses by path, with and without `connection: close`.
#[derive(Default)]
struct Responses(HashMap<(Vec<u8>, bool), Rc<[u8]>>);

impl Responses {
    fn of(&mut self, path: &[u8], close: bool) -> Rc<[u8]> {
        // Two look-ups of a short key are cheap beside a write.
        if let Some(made) = self.0.get(&(path.to_vec(), close)) {
            return Rc::clone(made);
        }
        let made: Rc<[u8]> = make(path, close).into();
        if self.0.len() < MAX_RESPONSES {
            self.0.insert((path.to_vec(), close), Rc::clone(&made));
        }
        made
    }
}

fn make(path: &[u8], close: bool) -> Vec<u8> {
    let connection = if close { "connection: close\r\n" } else { "" };
    let head = |framing: &str| {
        format!("HTTP/1.1 200 OK\r\nserver: upstream\r\ncontent-type: application/octet-stream\r\n{connection}{framing}\r\n\r\n").into_bytes()
    };
    let sized = |prefix: &[u8]| {
        let size = std::str::from_utf8(path.strip_prefix(prefix)?).ok()?.parse::<usize>().ok()?;
        (size <= MAX_BODY).then(|| vec![b'x'; size])
    };
    let (mut response, body) = if let Some(body) = sized(b"/c/") {
        (head("transfer-encoding: chunked"), chunked(&body, CHUNK))
    } else {
        let body = sized(b"/b/").unwrap_or_else(|| b"ok".to_vec());
        (head(&format!("content-length: {}", body.len())), body)
    };
    response.extend_from_slice(&body);
    response
}

enum Reading {
    Head,
    Body(Request, Body),
}

struct Request {
    path: Vec<u8>,
    close: bool,
}

#[derive(Clone, Copy)]
enum Body {
    /// All of it, and what is still to come.
    Length(u64, u64),
    Chunks(Chunks),
}

struct Connection {
    stream: TcpStream,
    /// Of a head that is not whole yet.
    partial: Vec<u8>,
    reading: Reading,
    /// Responses that the socket could not take, with what was written of the first.
    pending: VecDeque<Rc<[u8]>>,
    written: usize,
    /// Nothing more is read, and it closes when all is written.
    closing: bool,
}

impl Connection {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            partial: Vec::new(),
            reading: Reading::Head,
            pending: VecDeque::new(),
            written: 0,
            closing: false,
        }
    }

    /// `None` when the connection is over.
    fn on_event(&mut self, flags: EventFlags, responses: &mut Responses, buffer: &mut [u8]) -> Option<()> {
        if flags.contains(EventFlags::OUT) && !self.pending.is_empty() {
            self.write()?;
        }
        while !self.closing {
            let Some(n) = ready(self.stream.read(buffer)).ok()? else { return Some(()) };
            if n == 0 {
                return None;
            }
            self.take(&buffer[..n], responses)?;
            if n < buffer.len() && !hung_up(flags) {
                break;
            }
        }
        (!self.closing || !self.pending.is_empty()).then_some(())
    }

    fn take(&mut self, bytes: &[u8], responses: &mut Responses) -> Option<()> {
        let whole;
        let mut bytes = if self.partial.is_empty() {
            bytes
        } else {
            self.partial.extend_from_slice(bytes);
            whole = std::mem::take(&mut self.partial);
            &whole
        };
        while !bytes.is_empty() && !self.closing {
            let n = match &mut self.reading {
                Reading::Head => {
                    let Some(head) = head(bytes).ok()? else {
                        self.partial.extend_from_slice(bytes);
                        return (bytes.len() < MAX_HEAD).then_some(());
                    };
                    let path = head.start.split(|byte| *byte == b' ').nth(1)?;
                    let body = match head.framing {
                        Framing::Length(n) if n > 0 => Body::Length(n, n),
                        Framing::Chunked => Body::Chunks(Chunks::default()),
                        Framing::Length(_) | Framing::None => {
                            self.respond(responses.of(path, head.close), head.close)?;
                            bytes = &bytes[head.length..];
                            continue;
                        }
                    };
                    let request = Request { path: path.to_vec(), close: head.close };
                    self.reading = Reading::Body(request, body);
                    if head.expects {
                        self.respond(CONTINUE.into(), false)?;
                    }
                    head.length
                }
                Reading::Body(_, Body::Length(_, left)) => {
                    let n = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= n as u64;
                    n
                }
                Reading::Body(_, Body::Chunks(chunks)) => chunks.take(bytes).ok()?,
            };
            bytes = &bytes[n..];
            self.answer_upload(responses)?;
        }
        Some(())
    }

    /// Once the body is all there.
    fn answer_upload(&mut self, responses: &mut Responses) -> Option<()> {
        let length = match &self.reading {
            Reading::Body(_, Body::Length(all, 0)) => *all,
            Reading::Body(_, Body::Chunks(chunks)) if chunks.is_done() => chunks.body,
            _ => return Some(()),
        };
        let Reading::Body(request, _) = std::mem::replace(&mut self.reading, Reading::Head) else {
            return Some(());
        };
        let wanted = request.path.strip_prefix(b"/u/").map(|n| n == length.to_string().as_bytes());
        if wanted == Some(false) {
            return self.respond(BAD_REQUEST.into(), false);
        }
        self.respond(responses.of(&request.path, request.close), request.close)
    }

    fn respond(&mut self, response: Rc<[u8]>, close: bool) -> Option<()> {
        self.closing |= close;
        self.pending.push_back(response);
        self.write()
    }

    fn write(&mut self) -> Option<()> {
        while let Some(first) = self.pending.front() {
            let Some(n) = ready(self.stream.write(&first[self.written..])).ok()? else { return Some(()) };
            self.written += n;
            if self.written == first.len() {
                self.pending.pop_front();
                self.written = 0;
            }
        }
        Some(())
    }
}
