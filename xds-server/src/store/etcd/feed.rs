//! All that changes in etcd, in order, without a gap: a watch that notices its own silence, is opened
//! again where it broke off, and gives way to everything at once where that is no longer there.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Etcd, Everything, Failure, History,
    keys::Place,
    wire::{EventType, WatchAsk, WatchCreate, WatchProgress, WatchRequest, WatchResponse},
};

/// How many messages may wait for the registry.
const WAITING: usize = 64;
/// How often the watch is asked for a sign of life.
const PING: Duration = Duration::from_secs(1);
/// How long it may be silent.
const SILENCE: Duration = Duration::from_secs(3);
/// How often it is compared with what a majority knows, in pings.
const AUDIT: u32 = 5;
/// How long etcd may be away before writes are refused at once. Its members elect another leader in
/// about two seconds and a half, for which writes wait.
const PATIENCE: Duration = Duration::from_secs(4);
/// The pauses between attempts to reach it.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// A key that was put or removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: u64,
    pub(crate) place: Place,
    /// `None` when it is gone.
    pub(crate) value: Option<Bytes>,
    /// The lease it lives by; 0 for none.
    pub(crate) lease: i64,
}

/// What the registry is told.
#[derive(Debug)]
pub(crate) enum Feed {
    /// What happened next. Whole revisions, in order.
    Changes(Vec<Change>),
    /// What there is, after changes that cannot be had any more.
    Everything(Everything),
}

/// Why one watch ended.
enum End {
    /// Nobody listens any more.
    Closed,
    /// What follows is no longer there one by one.
    Compacted,
    /// It broke, or went silent.
    Lost(String),
    /// This is not the etcd that was loaded.
    Foreign(String),
}

impl From<Failure> for End {
    fn from(failure: Failure) -> Self {
        Self::Lost(failure.to_string())
    }
}

/// What is known of the etcd that is followed.
struct Follower {
    etcd: Arc<Etcd>,
    feed: mpsc::Sender<Feed>,
    history: History,
    /// The first revision that has not been told.
    next: u64,
}

/// Tells what happens after `loaded`, until the receiver is dropped.
pub(crate) fn follow(etcd: Arc<Etcd>, loaded: &Everything) -> mpsc::Receiver<Feed> {
    let (feed, told) = mpsc::channel(WAITING);
    let follower = Follower { etcd, feed, history: loaded.history, next: loaded.revision + 1 };
    tokio::spawn(follower.run());
    told
}

impl Follower {
    async fn run(mut self) {
        let mut lost: Option<Instant> = None;
        let mut pause = BACK_OFF.0;
        loop {
            let generation = self.etcd.client.generation();
            let end = match self.watch(&mut lost).await {
                End::Compacted => self.reload().await,
                end => end,
            };
            let why = match end {
                End::Closed => return,
                End::Compacted => continue,
                End::Lost(why) => why,
                End::Foreign(why) => {
                    pause = BACK_OFF.1;
                    why
                }
            };
            if lost.is_none() {
                tracing::warn!(member = self.etcd.client.member(), why, "the watch of etcd was lost");
                self.etcd.metrics.store_watches_lost.inc();
                pause = BACK_OFF.0;
            }
            let since = *lost.get_or_insert_with(Instant::now);
            self.etcd.client.give_up(generation);
            if since.elapsed() >= PATIENCE && self.etcd.health.down(since, why.clone()) {
                self.etcd.metrics.store_failing.set(1);
                tracing::error!(
                    why,
                    "{} does not answer; proxies are served what is known, writes are refused",
                    self.etcd.url
                );
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.feed.closed() => return,
            }
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Follows until something ends it. `lost` is since when nobody has followed.
    async fn watch(&mut self, lost: &mut Option<Instant>) -> End {
        match self.open_and_read(lost).await {
            Ok(end) | Err(end) => end,
        }
    }

    async fn open_and_read(&mut self, lost: &mut Option<Instant>) -> Result<End, End> {
        let etcd = Arc::clone(&self.etcd);
        let newest = etcd.newest().await?;
        self.check(newest.history, newest.revision)?;
        let (asks, asked) = mpsc::channel(4);
        let (key, range_end) = etcd.keys.everything();
        let create = WatchCreate { key, range_end, start_revision: self.next.cast_signed() };
        // It has room: it was just made.
        let _ = asks.try_send(WatchRequest { ask: Some(WatchAsk::Create(create)) });
        let mut answers = etcd.client.watch(ReceiverStream::new(asked)).await?;
        let mut heard = Instant::now();
        let mut ping = tokio::time::interval(PING);
        ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut pings = 0_u32;
        // What a majority knew at the last look, which the watch has told by the next one.
        let mut due = 0;
        loop {
            tokio::select! {
                biased;
                answer = answers.message() => {
                    heard = Instant::now();
                    match answer {
                        Ok(Some(answer)) => self.heard(answer, lost).await?,
                        Ok(None) => return Ok(End::Lost("etcd ended the watch".to_owned())),
                        Err(status) => return Ok(End::Lost(status.message().to_owned())),
                    }
                }
                () = self.feed.closed() => return Ok(End::Closed),
                _ = ping.tick() => {
                    if heard.elapsed() > SILENCE {
                        *lost = lost.or(Some(heard));
                        return Ok(End::Lost(format!("the watch was silent for {SILENCE:?}")));
                    }
                    // A full channel means that etcd does not read, which is silence.
                    let _ = asks.try_send(WatchRequest { ask: Some(WatchAsk::Progress(WatchProgress {})) });
                    pings = pings.wrapping_add(1);
                    if pings.is_multiple_of(AUDIT) {
                        let newest = etcd.newest().await?;
                        self.check(newest.history, newest.revision)?;
                        if self.next <= due {
                            let next = self.next;
                            return Ok(End::Lost(format!("the watch waits for {next}, though etcd has {due}")));
                        }
                        due = newest.written;
                    }
                }
            }
        }
    }

    /// One message of the watch.
    async fn heard(&mut self, answer: WatchResponse, lost: &mut Option<Instant>) -> Result<(), End> {
        if answer.compact_revision > 0 {
            return Err(End::Compacted);
        }
        if answer.canceled {
            return Err(End::Lost(answer.cancel_reason));
        }
        if answer.created {
            self.etcd.metrics.store_failing.set(0);
            if let Some(since) = lost.take() {
                let away = since.elapsed();
                self.etcd.health.up();
                tracing::info!(member = self.etcd.client.member(), ?away, "etcd is followed again");
            }
        }
        let changes: Vec<Change> = answer.events.into_iter().filter_map(|event| self.change(event)).collect();
        let Some(last) = changes.last().map(|change| change.revision) else { return Ok(()) };
        self.feed.send(Feed::Changes(changes)).await.map_err(|_| End::Closed)?;
        self.next = last + 1;
        Ok(())
    }

    /// An event as a change; `None` for what was told already, or is none of ours.
    fn change(&self, event: super::wire::Event) -> Option<Change> {
        let pair = event.kv?;
        if pair.mod_revision.cast_unsigned() < self.next {
            return None;
        }
        if event.r#type == i32::from(EventType::Delete) {
            let place = self.etcd.keys.place(&pair.key)?;
            return Some(Change {
                revision: pair.mod_revision.cast_unsigned(),
                place,
                value: None,
                lease: 0,
            });
        }
        self.etcd.put(pair)
    }

    /// Tells everything, after a gap.
    async fn reload(&mut self) -> End {
        tracing::warn!(revision = self.next, "etcd has compacted what was missed; loading everything");
        self.etcd.metrics.store_reloads.inc();
        let everything = match self.etcd.load().await {
            Ok(everything) => everything,
            Err(failure) => return failure.into(),
        };
        if let Err(end) = self.check(everything.history, everything.revision) {
            return end;
        }
        self.next = everything.revision + 1;
        match self.feed.send(Feed::Everything(everything)).await {
            Ok(()) => End::Compacted,
            Err(_) => End::Closed,
        }
    }

    /// That this is the etcd that was loaded, and not an empty or an older one in its place: following
    /// that would be a mass removal that nobody asked for.
    fn check(&mut self, history: History, revision: u64) -> Result<(), End> {
        let url = &self.etcd.url;
        let foreign = |what: String| {
            let remedy = "bring the former one back, or restart this server to take this one as it is";
            Err(End::Foreign(format!("{url} is not the etcd that was loaded: {what}; {remedy}")))
        };
        if history.cluster != self.history.cluster {
            return foreign(format!("its id is {:x} and was {:x}", history.cluster, self.history.cluster));
        }
        if revision + 1 < self.next {
            return foreign(format!("it is at revision {revision} and was at {}", self.next - 1));
        }
        if self.history.born != 0 && history.born != self.history.born {
            let (is, was) = (history.born, self.history.born);
            return foreign(format!("its first write is of revision {is} and was of {was}"));
        }
        self.history = history;
        Ok(())
    }
}
