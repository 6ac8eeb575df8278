//! The floor: bytes from one socket to another and back, without HTTP. One thread, one upstream
//! connection a client connection, two reads and two writes a request.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
};

use slab::Slab;

use crate::bench::poll::{EventFlags, Poll, accept, connect, hung_up, listen, ready};

const BUFFER: usize = 64 * 1_024;
const LISTENER: u64 = u64::MAX;

/// One end of a pair: its socket, and what it could not take yet.
struct End {
    stream: TcpStream,
    pending: Vec<u8>,
    /// The peer has said all, and the other end was told so.
    finished: bool,
}

impl End {
    fn new(stream: TcpStream) -> Self {
        Self { stream, pending: Vec::new(), finished: false }
    }
}

/// Client and upstream.
struct Pair([End; 2]);

/// Listens at `listen_at` and relays to `upstream` until it is killed.
pub fn run(listen_at: SocketAddr, upstream: SocketAddr) -> anyhow::Result<()> {
    let listener = listen(listen_at)?;
    let mut poll = Poll::new()?;
    poll.add_listener(&listener, LISTENER)?;
    let mut pairs: Slab<Pair> = Slab::new();
    let mut buffer = vec![0; BUFFER];
    loop {
        for event in 0..poll.wait(None)? {
            let (token, flags) = poll.event(event);
            if token == LISTENER {
                // One at a time: a pair that cannot be made is dropped, and the client sees that.
                let _ = accept_one(&listener, upstream, &poll, &mut pairs);
                continue;
            }
            let (index, end) = ((token / 2) as usize, (token % 2) as usize);
            let Some(pair) = pairs.get_mut(index) else { continue };
            if !matches!(pair.on_event(end, flags, &mut buffer), Ok(true)) {
                pairs.try_remove(index);
            }
        }
    }
}

fn accept_one(
    listener: &TcpListener,
    upstream: SocketAddr,
    poll: &Poll,
    pairs: &mut Slab<Pair>,
) -> io::Result<()> {
    let Some(client) = accept(listener)? else { return Ok(()) };
    let server = connect(upstream)?;
    let index = pairs.vacant_key() as u64;
    poll.add(&client, index * 2)?;
    poll.add(&server, index * 2 + 1)?;
    pairs.insert(Pair([End::new(client), End::new(server)]));
    Ok(())
}

impl Pair {
    /// Whether the pair goes on.
    fn on_event(&mut self, end: usize, flags: EventFlags, buffer: &mut [u8]) -> io::Result<bool> {
        if flags.contains(EventFlags::OUT) && !self.0[end].pending.is_empty() && self.flush(end)? {
            // The other side was not read while this one was full, and its event is long gone.
            self.pump(1 - end, true, buffer)?;
        }
        if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
            self.pump(end, hung_up(flags), buffer)?;
        }
        Ok(!(self.0[0].finished && self.0[1].finished))
    }

    /// From `end` to the other. A read that does not fill the buffer has emptied the socket, unless the
    /// end of the stream came `with_end`: then that is still to be read.
    fn pump(&mut self, end: usize, with_end: bool, buffer: &mut [u8]) -> io::Result<()> {
        let [a, b] = &mut self.0;
        let (from, to) = if end == 0 { (a, b) } else { (b, a) };
        while to.pending.is_empty() && !from.finished {
            let Some(n) = ready(from.stream.read(buffer))? else { return Ok(()) };
            if n == 0 {
                from.finished = true;
                return to.stream.shutdown(Shutdown::Write);
            }
            let written = ready(to.stream.write(&buffer[..n]))?.unwrap_or(0);
            to.pending.extend_from_slice(&buffer[written..n]);
            if n < buffer.len() && !with_end {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether nothing is pending any more.
    fn flush(&mut self, end: usize) -> io::Result<bool> {
        let end = &mut self.0[end];
        while !end.pending.is_empty() {
            let Some(n) = ready(end.stream.write(&end.pending))? else { return Ok(false) };
            end.pending.drain(..n);
        }
        Ok(true)
    }
}
