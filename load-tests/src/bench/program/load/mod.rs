//! The clients: one thread, many HTTP/1.1 connections, every response checked.
//!
//! Closed loop: each connection sends its next request when it has the response to the last. Open loop:
//! requests are due at fixed times, and a latency counts from when a request was *due*, so that a
//! subject that stalls is charged for all that waited (no coordinated omission).

mod connection;

use std::{
    collections::VecDeque,
    io::Write,
    net::SocketAddr,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use slab::Slab;

use crate::bench::{
    histogram::Histogram,
    http1::chunked,
    poll::{EventFlags, Poll, connect},
    usage::Usage,
};
use connection::{Connection, Over};

const BUFFER: usize = 256 * 1_024;
/// Bytes a chunk of an upload.
const CHUNK: usize = 8 * 1_024;
/// Requests that may be due and not sent yet.
const MAX_DUE: usize = 1_000_000;
/// Connections that are made at once at the start, and how long all of them may take.
const AT_ONCE: usize = 32;
const PRIMING: Duration = Duration::from_secs(20);
/// A request that has taken this long has failed.
const STUCK: Duration = Duration::from_secs(5);
/// Pause before a connection that failed is made again.
const AGAIN: Duration = Duration::from_millis(5);

/// What to send, where to, and how long.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub target: SocketAddr,
    pub path: String,
    /// Bytes of body that a response has.
    pub expected: u64,
    pub upload: Option<Upload>,
    pub connections: usize,
    /// Requests a second; `None` is closed loop.
    pub rate: Option<f64>,
    /// A new connection for each request.
    pub close: bool,
    pub hosts: Vec<String>,
    pub warm_up: Duration,
    pub window: Duration,
    /// Whose CPU time is read when the window opens and when it closes.
    pub watched: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Upload {
    pub bytes: usize,
    pub chunked: bool,
}

/// What happened in the window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Outcome {
    pub requests: u64,
    pub seconds: f64,
    /// From the start to the end, not in the window only: none is acceptable at any time.
    pub failures: u64,
    /// What the first failure was.
    pub first_failure: Option<String>,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p999_ns: u64,
    pub cpu_ns: u64,
    pub user_ticks: u64,
    pub system_ticks: u64,
    pub rss_bytes: u64,
    /// Resident memory that one idle connection has added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_bytes: Option<f64>,
}

impl Outcome {
    pub fn requests_per_second(&self) -> f64 {
        self.requests as f64 / self.seconds.max(1e-9)
    }

    /// Puts the difference of two readings in.
    pub fn used(&mut self, before: Usage, after: Usage) {
        self.cpu_ns = after.cpu_ns.saturating_sub(before.cpu_ns);
        self.user_ticks = after.user_ticks.saturating_sub(before.user_ticks);
        self.system_ticks = after.system_ticks.saturating_sub(before.system_ticks);
        self.rss_bytes = after.rss_bytes;
    }

    /// Puts percentiles in.
    pub fn latencies(&mut self, histogram: &Histogram) {
        self.p50_ns = histogram.at(0.5);
        self.p99_ns = histogram.at(0.99);
        self.p999_ns = histogram.at(0.999);
    }
}

/// Sends as `order` says and prints the [`Outcome`] as JSON.
pub fn run(order: &str) -> anyhow::Result<()> {
    let order: Order = serde_json::from_str(order)?;
    let outcome = Load::new(&order)?.run()?;
    println!("{}", serde_json::to_string(&outcome)?);
    Ok(())
}

/// Tells the measurement that from now on there is steady load.
pub(super) fn say_ready() -> std::io::Result<()> {
    let mut out = std::io::stdout();
    writeln!(out, "ready")?;
    out.flush()
}

struct Load<'a> {
    order: &'a Order,
    poll: Poll,
    connections: Slab<Connection>,
    /// Connections without a request: at first, and in open loop.
    idle: VecDeque<usize>,
    due: VecDeque<Instant>,
    /// When a connection that failed is to be made again.
    again: VecDeque<Instant>,
    heads: Vec<Vec<u8>>,
    body: Vec<u8>,
    random: fastrand::Rng,
    histogram: Histogram,
    /// While connections are made: one request each.
    priming: bool,
    /// Set while the window is open.
    counting: bool,
    failures: u64,
    first_failure: Option<String>,
}

impl<'a> Load<'a> {
    fn new(order: &'a Order) -> anyhow::Result<Self> {
        anyhow::ensure!(!order.hosts.is_empty(), "no host to ask for");
        let (framing, body) = match order.upload {
            None => (String::new(), Vec::new()),
            Some(Upload { bytes, chunked: false }) => {
                (format!("Content-Length: {bytes}\r\n"), vec![b'u'; bytes])
            }
            Some(Upload { bytes, chunked: true }) => {
                ("Transfer-Encoding: chunked\r\n".to_owned(), chunked(&vec![b'u'; bytes], CHUNK))
            }
        };
        let method = if order.upload.is_some() { "POST" } else { "GET" };
        let close = if order.close { "Connection: close\r\n" } else { "" };
        let head = |host: &String| {
            format!(
                "{method} {} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: peers\r\nAccept: */*\r\n{close}{framing}\r\n",
                order.path
            )
            .into_bytes()
        };
        Ok(Self {
            order,
            poll: Poll::new()?,
            connections: Slab::new(),
            idle: VecDeque::new(),
            due: VecDeque::new(),
            again: VecDeque::new(),
            heads: order.hosts.iter().map(head).collect(),
            body,
            random: fastrand::Rng::with_seed(7),
            histogram: Histogram::new(),
            priming: true,
            counting: false,
            failures: 0,
            first_failure: None,
        })
    }

    fn run(mut self) -> anyhow::Result<Outcome> {
        let mut buffer = vec![0; BUFFER];
        self.prime(&mut buffer)?;
        say_ready()?;
        let start = Instant::now();
        let opens = start + self.order.warm_up;
        let closes = opens + self.order.window;
        let interval = self.order.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
        let (mut next_due, mut before, mut opened) = (start, Usage::default(), opens);
        let mut now = start;
        while now < closes {
            if !self.counting && now >= opens {
                before = Usage::of(&self.order.watched);
                self.counting = true;
                opened = Instant::now();
            }
            let mut until = if self.counting { closes } else { opens };
            if let Some(interval) = interval {
                while next_due <= now {
                    self.request_is_due(next_due);
                    next_due += interval;
                }
                until = until.min(next_due);
            }
            now = self.step(now, until, &mut buffer)?;
        }
        let after = Usage::of(&self.order.watched);
        let seconds = opened.elapsed().as_secs_f64();
        let requests = self.histogram.count();
        self.charge_unfinished(now);
        let mut outcome = Outcome { requests, seconds, failures: self.failures, ..Outcome::default() };
        outcome.first_failure = self.first_failure;
        outcome.used(before, after);
        outcome.latencies(&self.histogram);
        Ok(outcome)
    }

    /// Makes all connections, a few at a time, each with one request: otherwise queues of connections
    /// overflow, and a subject that accepts slowly under load would not have all of them in the window.
    fn prime(&mut self, buffer: &mut [u8]) -> anyhow::Result<()> {
        let mut now = Instant::now();
        let late = now + PRIMING;
        let mut made = 0;
        while self.idle.len() < self.order.connections && !self.order.close {
            while made < self.order.connections && made < self.idle.len() + AT_ONCE {
                self.open();
                made += 1;
            }
            anyhow::ensure!(
                now < late,
                "only {} of {} connections could be made ({})",
                self.idle.len(),
                self.order.connections,
                self.first_failure.as_deref().unwrap_or("no answer")
            );
            now = self.step(now, late, buffer)?;
        }
        self.priming = false;
        if self.order.close {
            (0..self.order.connections).for_each(|_| self.open());
        } else if self.order.rate.is_none() {
            for index in std::mem::take(&mut self.idle) {
                self.send(index, Instant::now());
            }
        }
        Ok(())
    }

    /// Waits for events until then, and handles them; says what time it is.
    fn step(&mut self, now: Instant, mut until: Instant, buffer: &mut [u8]) -> anyhow::Result<Instant> {
        if let Some(at) = self.again.front().copied() {
            if at <= now {
                self.again.pop_front();
                self.open();
                return Ok(Instant::now());
            }
            until = until.min(at);
        }
        let time = until.saturating_duration_since(now);
        let events = match self.order.rate {
            None => self.poll.wait(Some(time))?,
            Some(_) => self.poll.wait_exactly(time)?,
        };
        for event in 0..events {
            let (token, flags) = self.poll.event(event);
            self.on_event(token as usize, flags, buffer);
        }
        Ok(Instant::now())
    }

    /// What waits when the window closes has waited at least until now; in closed loop only what is
    /// stuck is of interest.
    fn charge_unfinished(&mut self, now: Instant) {
        let mut ages: Vec<Duration> = self.due.iter().map(|due| now - *due).collect();
        let awaited = self.connections.iter().filter_map(|(_, connection)| connection.awaited_since());
        ages.extend(awaited.map(|since| now.saturating_duration_since(since)));
        for age in ages {
            if age > STUCK {
                self.fail("a request that was never answered");
            }
            if self.order.rate.is_some() || age > STUCK {
                self.histogram.record(age.as_nanos() as u64);
            }
        }
    }

    fn fail(&mut self, why: &str) {
        self.failures += 1;
        self.first_failure.get_or_insert_with(|| why.to_owned());
    }

    fn request_is_due(&mut self, due: Instant) {
        while let Some(index) = self.idle.pop_front() {
            if self.connections.get(index).is_some_and(Connection::is_free) {
                return self.send(index, due);
            }
        }
        if self.due.len() < MAX_DUE {
            self.due.push_back(due);
        } else {
            self.fail("too many requests wait");
        }
    }

    /// Makes a connection and sends its first request, unless none is due.
    fn open(&mut self) {
        let index = self.connections.vacant_key();
        let stream = connect(self.order.target);
        let added = stream.and_then(|stream| self.poll.add(&stream, index as u64).map(|()| stream));
        match added {
            Ok(stream) => {
                self.connections.insert(Connection::new(stream));
                if self.priming {
                    self.send(index, Instant::now());
                } else {
                    self.next_request(index);
                }
            }
            Err(e) => {
                self.fail(&format!("cannot connect: {e}"));
                self.again.push_back(Instant::now() + AGAIN);
            }
        }
    }

    /// The connection is free: sends what is due, if anything is.
    fn next_request(&mut self, index: usize) {
        if self.priming {
            self.idle.push_back(index);
        } else if self.order.rate.is_none() {
            self.send(index, Instant::now());
        } else if let Some(due) = self.due.pop_front() {
            self.send(index, due);
        } else {
            self.idle.push_back(index);
        }
    }

    fn send(&mut self, index: usize, since: Instant) {
        let head = self.random.usize(..self.heads.len());
        let Some(connection) = self.connections.get_mut(index) else { return };
        if let Err(over) = connection.send(since, head, &self.heads, &self.body) {
            self.over(index, &over);
        }
    }

    fn on_event(&mut self, index: usize, flags: EventFlags, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let mut completed = None;
        let result = connection.on_event(flags, self.order, &self.heads, &self.body, buffer, &mut completed);
        if let Some(since) = completed {
            self.record(since);
        }
        match result {
            Ok(()) if completed.is_some() && !self.order.close => self.next_request(index),
            Ok(()) => {}
            Err(over) => self.over(index, &over),
        }
    }

    fn record(&mut self, since: Instant) {
        if self.counting {
            self.histogram.record(since.elapsed().as_nanos() as u64);
        }
    }

    /// Replaces a connection.
    fn over(&mut self, index: usize, over: &Over) {
        self.connections.try_remove(index);
        match over {
            Over::Closed => self.open(),
            Over::Failed(why) => {
                self.fail(why);
                self.again.push_back(Instant::now() + AGAIN);
            }
        }
    }
}
