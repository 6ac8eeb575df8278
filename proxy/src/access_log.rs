//! One JSON line a request, written by a thread of its own. A request never waits for it: a line
//! that does not fit in the queue is dropped and counted.

use std::{
    fs::OpenOptions,
    io::{self, BufWriter, Write},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use config::bootstrap::AccessLog as Target;
use serde::Serialize;
use tokio::sync::oneshot;

use crate::load::Aborted;

/// Lines that may wait for the writer.
const QUEUE: usize = 8_192;
/// What a client sent is logged up to this many bytes, so that the queue is bounded in bytes too.
const FIELD: usize = 2 * 1024;

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
    /// When the response was not sent to its end: who or what cut it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) aborted: Option<Aborted>,
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

/// `field` as it is logged.
pub(crate) fn cut(field: &str) -> String {
    field[..field.floor_char_boundary(FIELD)].to_owned()
}

/// A log that is open.
#[derive(Debug)]
pub(crate) struct AccessLog {
    /// `None` is the last: it wakes the writer when nothing more comes.
    lines: SyncSender<Option<Line>>,
    dropped: AtomicU64,
    closing: Arc<AtomicBool>,
    /// Ends when the writer has ended.
    written: Mutex<Option<oneshot::Receiver<()>>>,
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
        let (ends, written) = oneshot::channel();
        let closing = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&closing);
        thread::Builder::new().name("access-log".into()).spawn(move || {
            write(&queue, out, &told);
            drop(ends);
        })?;
        Ok(Self { lines, dropped: AtomicU64::new(0), closing, written: Mutex::new(Some(written)) })
    }

    /// Logs `line`, unless the writer is too far behind.
    pub(crate) fn log(&self, line: Line) {
        if self.lines.try_send(Some(line)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until everything logged so far is written, for up to `patience`: the process may end
    /// next. Nothing is written afterwards.
    pub(crate) async fn close(&self, patience: Duration) {
        let written = self.written.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(written) = written else { return };
        self.closing.store(true, Ordering::Release);
        // With a full queue the writer is awake, and sees that it is closing when it has caught up.
        _ = self.lines.try_send(None);
        if tokio::time::timeout(patience, written).await.is_err() {
            tracing::warn!("the access log is not written to its end after {patience:?}");
        }
    }

    /// How many lines were dropped.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Writes what comes, flushing when nothing more waits. A failing disk loses lines, not requests.
fn write(queue: &Receiver<Option<Line>>, out: Box<dyn Write + Send>, closing: &AtomicBool) {
    let mut out = BufWriter::with_capacity(64 * 1024, out);
    let mut failing = false;
    let mut note = |result: io::Result<()>| {
        if let (Err(error), false) = (&result, failing) {
            tracing::warn!("the access log cannot be written: {error}");
        }
        failing = result.is_err();
    };
    while let Ok(Some(mut line)) = queue.recv() {
        loop {
            note(
                serde_json::to_writer(&mut out, &line)
                    .map_err(Into::into)
                    .and_then(|()| out.write_all(b"\n")),
            );
            match queue.try_recv() {
                Ok(Some(next)) => line = next,
                Ok(None) | Err(TryRecvError::Disconnected) => {
                    note(out.flush());
                    return;
                }
                Err(TryRecvError::Empty) => break,
            }
        }
        note(out.flush());
        if closing.load(Ordering::Acquire) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_field_is_cut_between_characters() {
        assert_eq!(cut("/short"), "/short");
        let long = cut(&format!("x{}", "é".repeat(FIELD)));
        assert_eq!((long.len(), long.chars().last()), (FIELD - 1, Some('é')));
    }

    #[tokio::test]
    async fn what_was_logged_is_written_when_it_is_closed() {
        let path = std::env::temp_dir().join(format!("sluicegate-log-{}", std::process::id()));
        let log = AccessLog::open(&Target::File(path.clone())).unwrap();
        let empty: Arc<str> = "".into();
        for _ in 0..1_000 {
            log.log(Line {
                time: now(),
                gateway: Arc::clone(&empty),
                client: String::new(),
                method: String::new(),
                host: String::new(),
                path: String::new(),
                status: 200,
                aborted: Some(Aborted::Client),
                service: Arc::clone(&empty),
                version: Arc::clone(&empty),
                endpoint: None,
                attempts: 1,
                duration_ms: 0.0,
                bytes_sent: 0,
            });
        }
        log.close(Duration::from_secs(10)).await;
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!((text.lines().count(), log.dropped()), (1_000, 0));
        assert!(text.contains(r#""aborted":"client""#));
    }
}
