//! Edge-triggered epoll(7), and non-blocking sockets with as few system calls as they can be had.

use std::{
    io,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::{
    event::{Timespec, epoll},
    net::{AddressFamily, SocketFlags, SocketType, sockopt},
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

pub use rustix::event::epoll::EventFlags;

/// Events taken at once.
const BATCH: usize = 512;

pub struct Poll {
    epoll: OwnedFd,
    events: Vec<epoll::Event>,
    /// For times that whole milliseconds, epoll's own measure, are too coarse for.
    timer: OwnedFd,
}

/// The token of the timer's events, which say nothing by themselves.
const TIMER: u64 = u64::MAX - 1_000;

impl Poll {
    pub fn new() -> io::Result<Self> {
        let none = epoll::Event { flags: EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let poll = Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            events: vec![none; BATCH],
            timer: timerfd_create(TimerfdClockId::Monotonic, flags)?,
        };
        poll.add(&poll.timer, TIMER)?;
        Ok(poll)
    }

    /// Tells of every change of readiness, until `source` is closed. A file descriptor that is used again
    /// may get an event of its predecessor: a handler must bear one that means nothing.
    pub fn add(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(token), flags)?)
    }

    /// For listeners: told again and again while somebody waits.
    pub fn add_listener(&self, source: impl AsFd, token: u64) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, source, epoll::EventData::new_u64(token), EventFlags::IN)?)
    }

    /// Waits, and says how many events there are. Time-outs are rounded up to milliseconds.
    pub fn wait(&mut self, timeout: Option<Duration>) -> io::Result<usize> {
        let timeout = timeout.map(timespec);
        match epoll::wait(&self.epoll, self.events.as_mut_slice(), timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => Ok(0),
            other => Ok(other?),
        }
    }

    /// The same with a time-out that is exact to microseconds, and costs a system call more.
    pub fn wait_exactly(&mut self, timeout: Duration) -> io::Result<usize> {
        if timeout.is_zero() {
            return self.wait(Some(timeout));
        }
        let once = Itimerspec { it_interval: timespec(Duration::ZERO), it_value: timespec(timeout) };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        self.wait(None)
    }

    /// The event at `index` of those that [`Poll::wait`] counted: its token and what has changed.
    pub fn event(&self, index: usize) -> (u64, EventFlags) {
        let event = self.events[index];
        let (data, flags) = (event.data, event.flags);
        (data.u64(), flags)
    }
}

fn timespec(time: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    }
}

/// A listener with a queue that is long enough for thousands of connections at once.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_socket_reuseaddr(&socket, true)?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 8_192)?;
    Ok(TcpListener::from(socket))
}

/// The next connection that waits, if there is one; non-blocking, without Nagle's delay.
pub fn accept(listener: &TcpListener) -> io::Result<Option<TcpStream>> {
    match rustix::net::accept_with(listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
        Ok(socket) => {
            sockopt::set_tcp_nodelay(&socket, true)?;
            Ok(Some(TcpStream::from(socket)))
        }
        Err(rustix::io::Errno::AGAIN | rustix::io::Errno::CONNABORTED) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// A connection under way; non-blocking, without Nagle's delay.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::STREAM,
        SocketFlags::NONBLOCK | SocketFlags::CLOEXEC,
        None,
    )?;
    sockopt::set_tcp_nodelay(&socket, true)?;
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(TcpStream::from(socket)),
        Err(e) => Err(e.into()),
    }
}

/// `WouldBlock` as nothing, so that what is left are real errors.
pub fn ready(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(n) => Ok(Some(n)),
        Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether the peer has closed its half, or all of it.
pub fn hung_up(flags: EventFlags) -> bool {
    flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR)
}
