//! What happens in the demo, in order, and what is promised of each step.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hyper::Method;
use tokio::time::sleep;
use xds_server::api::types::{Events, SplitBody, WriteAnswer};

use super::{
    stage::{SERVICE, Stage},
    traffic::{CONNECTIONS, Sample, Tally, Traffic},
};
use crate::output::{self, millis};

/// How far a share may be from what was asked, in percentage points. Over [`ENOUGH`] requests the
/// draw itself strays by 0.6 points at 50 %, so this is five times what chance does.
const SHARE_TOLERANCE: f64 = 3.0;
/// How many requests make a share.
const ENOUGH: u64 = 8_000;
/// How many show that nothing has broken.
const A_FEW: u64 = 3_000;
/// A slow machine is not waited for longer than this.
const LONGEST_WINDOW: Duration = Duration::from_secs(12);
/// How often progress is shown.
const TICK: Duration = Duration::from_millis(500);
/// How fast a change must reach the traffic.
const PROMPT_MS: f64 = 100.0;
/// How long a change is waited for before it counts as lost.
const LOST: Duration = Duration::from_secs(3);

/// The demo's run, and what was not as promised.
pub(super) struct Script {
    /// Every request of the run, once it is over.
    samples: Vec<Sample>,
    broken: Vec<String>,
    /// How many requests failed that may: they were on an instance when it was killed.
    excused: usize,
}

impl Script {
    pub(super) fn new() -> Self {
        Self { samples: Vec::new(), broken: Vec::new(), excused: 0 }
    }

    /// Everything, from an empty stage.
    pub(super) async fn play(&mut self, stage: &mut Stage) -> anyhow::Result<()> {
        say("starting a server and a proxy, and two instances each of checkout v1 and v2 …")?;
        let ready = stage.start_server().await?;
        for (version, id) in [("v1", "v1-a"), ("v1", "v1-b"), ("v2", "v2-a"), ("v2", "v2-b")] {
            stage.start_instance(version, id).await?;
        }
        let admin = ready.admin.ok_or_else(|| anyhow::anyhow!("the ready file names no admin interface"))?;
        let gateway = stage.gateway(admin).await?;
        say(format_args!(
            "{CONNECTIONS} connections send steady traffic to http://{gateway}; all of it goes to v1"
        ))?;
        let traffic = Traffic::start(gateway, LOST).await?;
        self.window(&traffic, 0, Instant::now(), 0, A_FEW).await?;

        for percent in [10, 50, 100] {
            self.shift(stage, &traffic, percent).await?;
        }
        self.add(stage, &traffic, "v2-c").await?;
        self.kill(stage, &traffic, "v2-a").await?;
        self.remove(stage, &traffic, "v2-b").await?;
        // The traffic ends here, before what it goes to.
        self.samples = traffic.all(0, |_| true);
        Ok(())
    }

    /// Shifts traffic to v2, and watches the shares.
    async fn shift(&mut self, stage: &Stage, traffic: &Traffic, percent: u32) -> anyhow::Result<()> {
        step(format_args!("shift v2 to {percent} %"))?;
        let mark = traffic.mark();
        let weights = BTreeMap::from([("v1".parse()?, 100 - percent), ("v2".parse()?, percent)]);
        let path = format!("/v1/services/{SERVICE}/split");
        let call = stage.api()?.call(Method::PUT, path).json(&SplitBody { weights });
        let answer: WriteAnswer = call.send().await?.json()?;
        let answered = Instant::now();
        if percent == 100 {
            self.window(traffic, mark, answered, percent, ENOUGH).await?;
            let stragglers = traffic.all(mark, |s| s.sent > answered && s.is_version("v1"));
            let last = stragglers.iter().map(|s| after(answered, s.sent)).fold(0.0, f64::max);
            self.prompt(
                last,
                format_args!("the last request that still went to v1 was sent {}", later(last)),
            )?;
        } else {
            let first = traffic.first(mark, LOST, |s| s.sent > answered && s.is_version("v2")).await;
            self.seen(first.map(|s| after(answered, s.done)), "the first request v2 answered was done")?;
            self.window(traffic, mark, answered, percent, ENOUGH).await?;
        }
        applied(stage, answer.revision).await
    }

    /// Adds an instance of v2.
    async fn add(&mut self, stage: &mut Stage, traffic: &Traffic, id: &str) -> anyhow::Result<()> {
        step(format_args!("start one more instance of v2, {id}"))?;
        let mark = traffic.mark();
        let (started, registered) = stage.start_instance("v2", id).await?;
        let first = traffic.first(mark, LOST, |s| s.is_from(id)).await;
        let since_start = first.as_ref().map(|s| after(started, s.done));
        self.seen(first.map(|s| after(registered, s.done)), "its first answer came")?;
        if let Some(ms) = since_start {
            say(format_args!("  {} from its start as a process to its first answer", millis(ms)))?;
        }
        self.window(traffic, mark, Instant::now(), 100, A_FEW).await
    }

    /// Kills an instance of v2 with SIGKILL, as a crash or an out-of-memory kill would.
    async fn kill(&mut self, stage: &mut Stage, traffic: &Traffic, id: &str) -> anyhow::Result<()> {
        step(format_args!("kill -9 {id}"))?;
        let mark = traffic.mark();
        let victim = stage.take(id)?;
        let killed = Instant::now();
        victim.kill().await?;
        let dead = Instant::now();
        let forgotten = stage.forgotten(id, LOST).await?;
        self.seen(forgotten.map(|at| after(killed, at)), "server and proxy no longer knew it")?;
        self.window(traffic, mark, Instant::now(), 100, A_FEW).await?;

        let last = last_answer(traffic, mark, killed, id);
        self.prompt(last, said_last(last))?;
        let failed = traffic.all(mark, |s| s.outcome.is_err());
        // It takes the system a moment to end a process: what was sent by then may have been on it.
        let (excused, others): (Vec<Sample>, Vec<Sample>) = failed.into_iter().partition(|s| s.sent <= dead);
        self.excused += excused.len();
        say(format_args!(
            "  {} requests were lost in flight on it, {} failed otherwise",
            excused.len(),
            others.len()
        ))?;
        if excused.len() > CONNECTIONS {
            self.broken(format_args!(
                "{} requests were lost with {id}, more than can be in flight",
                excused.len()
            ))?;
        }
        Ok(())
    }

    /// Stops an instance of v2 as a scheduler would.
    async fn remove(&mut self, stage: &mut Stage, traffic: &Traffic, id: &str) -> anyhow::Result<()> {
        step(format_args!("stop {id} with SIGTERM: it withdraws, finishes its requests and ends"))?;
        let mark = traffic.mark();
        let leaver = stage.take(id)?;
        let asked = Instant::now();
        let well = leaver.stop().await?;
        let gone = Instant::now();
        say(format_args!("  it had ended {}", later(after(asked, gone))))?;
        if !well {
            self.broken(format_args!("{id} did not end well"))?;
        }
        let last = last_answer(traffic, mark, asked, id);
        self.prompt(last, said_last(last))?;
        self.window(traffic, mark, gone, 100, A_FEW).await
    }

    /// Watches until enough requests have been sent after `from`, and compares v2's share.
    async fn window(
        &mut self,
        traffic: &Traffic,
        mark: usize,
        from: Instant,
        percent: u32,
        enough: u64,
    ) -> anyhow::Result<()> {
        let (deadline, mut shown) = (Instant::now() + LONGEST_WINDOW, Instant::now());
        let tally = loop {
            let tally = traffic.tally(mark, from);
            if tally.answered() >= enough || Instant::now() > deadline {
                break tally;
            }
            if shown.elapsed() > TICK {
                say(shares(&tally))?;
                shown = Instant::now();
            }
            sleep(TICK / 10).await;
        };
        say(format_args!("{}  [{}]", shares(&tally), instances(&tally)))?;
        let share = tally.share("v2");
        if tally.answered() == 0 {
            self.broken("no request was answered")?;
        } else if (share - f64::from(percent)).abs() > SHARE_TOLERANCE {
            self.broken(format_args!("v2 was to get {percent} % and got {share:.1} %"))?;
        }
        Ok(())
    }

    /// Something that must have been seen, and promptly.
    fn seen(&mut self, ms: Option<f64>, what: &str) -> anyhow::Result<()> {
        match ms {
            Some(ms) => self.prompt(ms, format_args!("{what} {}", later(ms))),
            None => self.broken(format_args!("not within {} s: {what}", LOST.as_secs())),
        }
    }

    /// Something that must have been prompt.
    fn prompt(&mut self, ms: f64, what: impl std::fmt::Display) -> anyhow::Result<()> {
        if ms < PROMPT_MS {
            return say(format_args!("  {what}"));
        }
        self.broken(format_args!("{what}, promised is less than {PROMPT_MS} ms"))
    }

    fn broken(&mut self, what: impl std::fmt::Display) -> anyhow::Result<()> {
        say(format_args!("  NOT AS PROMISED: {what}"))?;
        self.broken.push(what.to_string());
        Ok(())
    }

    /// Whether everything was as promised; says so.
    pub(super) fn verdict(mut self, took: Duration) -> anyhow::Result<bool> {
        let samples = std::mem::take(&mut self.samples);
        let failed: Vec<&String> = samples.iter().filter_map(|s| s.outcome.as_ref().err()).collect();
        let unexcused = failed.len().saturating_sub(self.excused);
        step(format_args!(
            "{} requests in {:.1} s: {} answered, {} lost in flight with the killed instance, {unexcused} failed",
            samples.len(),
            took.as_secs_f64(),
            samples.len() - failed.len(),
            self.excused
        ))?;
        if unexcused > 0 {
            let mut reasons: BTreeMap<&String, usize> = BTreeMap::new();
            for reason in failed {
                *reasons.entry(reason).or_default() += 1;
            }
            let reasons: Vec<String> = reasons.iter().map(|(why, n)| format!("{n} × {why}")).collect();
            self.broken(format_args!("{unexcused} requests failed ({})", reasons.join("; ")))?;
        }
        if self.broken.is_empty() {
            say(
                "everything was as promised: each share within 3 points, each change in the traffic in < 100 ms",
            )?;
        } else {
            say(format_args!("{} things were not as promised:", self.broken.len()))?;
            for what in &self.broken {
                say(format_args!("  {what}"))?;
            }
        }
        Ok(self.broken.is_empty())
    }
}

/// Says how long the proxy took by its own acknowledgement, if the server knows.
async fn applied(stage: &Stage, revision: u64) -> anyhow::Result<()> {
    let all: Events = stage.api()?.get("/v1/events").await?;
    let applied = all.events.iter().find(|e| e.event == "applied" && e.revision == revision);
    match applied.and_then(|e| e.ms) {
        Some(ms) => {
            say(format_args!("  by its own acknowledgement the proxy had applied it after {}", millis(ms)))
        }
        None => Ok(()),
    }
}

/// `  v1  90.2 % ██████████████████    v2   9.8 % ██    4520 requests, 0 failed`
fn shares(tally: &Tally) -> String {
    let bar = |share: f64| "█".repeat((share / 5.0).round() as usize);
    let version = |v: &str| format!("{v} {:>5.1} % {:<20}", tally.share(v), bar(tally.share(v)));
    format!("  {}  {}  {} requests, {} failed", version("v1"), version("v2"), tally.answered(), tally.failed)
}

fn instances(tally: &Tally) -> String {
    let counts: Vec<String> = tally.instances.iter().map(|(id, n)| format!("{id}: {n}")).collect();
    counts.join(", ")
}

/// How long after `change` an instance still answered what was sent after it, in ms.
fn last_answer(traffic: &Traffic, mark: usize, change: Instant, id: &str) -> f64 {
    let answers = traffic.all(mark, |s| s.sent > change && s.is_from(id));
    answers.iter().map(|s| after(change, s.done)).fold(0.0, f64::max)
}

fn said_last(ms: f64) -> String {
    if ms > 0.0 {
        format!("its last answer came {}", later(ms))
    } else {
        "it answered nothing after that".to_owned()
    }
}

/// Milliseconds from a change to what it caused; 0 when the traffic was faster than the answer.
fn after(change: Instant, effect: Instant) -> f64 {
    effect.saturating_duration_since(change).as_secs_f64() * 1_000.0
}

fn later(ms: f64) -> String {
    if ms <= 0.0 { "before the answer".to_owned() } else { format!("{} later", millis(ms)) }
}

fn step(text: impl std::fmt::Display) -> anyhow::Result<()> {
    say(format_args!("\n{text}"))
}

fn say(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(output::print(format_args!("{text}\n"))?)
}
