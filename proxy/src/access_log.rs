//! One JSON line a request, written by a thread of its own. A request never waits for it: a line
//! that does not fit in the queue is dropped and counted.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use config::bootstrap::AccessLog as Target;
use serde::Serialize;

/// Lines that may wait for the writer.
const QUEUE: usize = 8_192;

/// What is logged of a request.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    /// Seconds since the epoch when it ended.
    pub(crate) time: f64,
    pub(crate) gateway: Arc<str>,
    pub(crate) client: String,
    pub(crate) method: String,
    pub(crate) host: String,
    pub(crate) path: String,
    /// 0 when the client left before a response.
    pub(crate) status: u16,
    pub(crate) service: Arc<str>,
    pub(crate) version: Arc<str>,
    pub(crate) endpoint: Option<String>,
    pub(crate) attempts: u32,
    pub(crate) duration_ms: f64,
    pub(crate) bytes_sent: u64,
}

/// The time for [`Line::time`].
pub(crate) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

/// A log that is open. Dropping it lets the writer finish.
#[derive(Debug)]
pub(crate) struct AccessLog {
    lines: SyncSender<Line>,
    dropped: AtomicU64,
}

impl AccessLog {
    /// Opens the log.
    ///
    /// # Errors
    /// When the file cannot be opened, or no thread started.
    pub(crate) fn open(target: &Target) -> io::Result<Self> {
        let out: Box<dyn Write + Send> = match target {
            Target::Stdout => Box::new(io::stdout()),
            Target::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
        };
        let (lines, queue) = sync_channel(QUEUE);
        thread::Builder::new().name("access-log".into()).spawn(move || write(&queue, out))?;
        Ok(Self { lines, dropped: AtomicU64::new(0) })
    }

    /// Logs `line`, unless the writer is too far behind.
    pub(crate) fn log(&self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many lines were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes what comes, flushing when nothing more waits. A failing disk loses lines, not requests.
fn write(queue: &Receiver<Line>, out: Box<dyn Write + Send>) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    let mut failing = false;
    let mut note = |result: io::Result<()>| {
        if let (Err(error), false) = (&result, failing) {
            tracing::warn!("the access log cannot be written: {error}");
        }
        failing = result.is_err();
    };
    while let Ok(mut line) = queue.recv() {
        loop {
            note(
                serde_json::to_writer(&mut out, &line)
                    .map_err(Into::into)
                    .and_then(|()| out.write_all(b"\n")),
            );
            match queue.try_recv() {
                Ok(next) => line = next,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        note(out.flush());
    }
}
