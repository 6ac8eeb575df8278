//! `sluicegate events`: who changed what, when, and when every proxy had it.

use anyhow::Context;
use clap::Args;
use hyper::Method;
use xds_server::api::types::{Event, Events as Answer};

use crate::{
    exit,
    flags::{self, Output},
    output::{self, millis},
};

/// Show the timeline: who changed what, when, and when every proxy had applied it
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate events
  sluicegate events --follow                    until interrupted
  sluicegate events --since 120 -o json"))]
pub(crate) struct Events {
    /// Go on printing as things happen; JSON is then one event a line
    #[arg(short, long)]
    follow: bool,
    /// Only what came after this revision
    #[arg(long, value_name = "REVISION", default_value_t = 0)]
    since: u64,
    #[command(flatten)]
    api: flags::Api,
}

impl Events {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        if self.follow { self.follow().await } else { self.list().await }
    }

    async fn list(self) -> anyhow::Result<()> {
        let mut all: Answer = self.api.client()?.get("/v1/events").await?;
        all.events.retain(|event| self.wants(event));
        match self.api.output {
            Output::Json => output::print_json(&all),
            Output::Table => Ok(output::print(all.events.iter().map(line).collect::<String>())?),
        }
    }

    async fn follow(self) -> anyhow::Result<()> {
        let client = self.api.client()?;
        let mut lines = client.call(Method::GET, "/v1/events").query("follow", true).stream().await?;
        loop {
            let Some(text) = lines.next().await? else {
                return Err(crate::client::Error::Unreachable {
                    api: client.base().to_owned(),
                    cause: "the server has ended the stream".to_owned(),
                }
                .into());
            };
            // An empty line is a sign of life.
            if text.is_empty() {
                continue;
            }
            let event: Event = serde_json::from_slice(&text).context("an event that is none")?;
            if self.wants(&event) {
                match self.api.output {
                    Output::Json => output::print(format_args!("{}\n", String::from_utf8_lossy(&text)))?,
                    Output::Table => output::print(line(&event))?,
                }
            }
        }
    }

    /// Revision 0 is not about a revision (a proxy that connects to an empty server).
    fn wants(&self, event: &Event) -> bool {
        self.since == 0 || event.revision > self.since
    }
}

/// `2026-11-23T17:00:00.123Z  r12  change        Service checkout: split v1=90 v2=10  (by ann@laptop)`
fn line(event: &Event) -> String {
    let subject = if event.subject.is_empty() { String::new() } else { format!("{}: ", event.subject) };
    let actor = if event.actor.is_empty() { String::new() } else { format!("  (by {})", event.actor) };
    let lag = match (event.ms, event.proxies) {
        (Some(ms), Some(1)) => format!("  [1 proxy, {}]", millis(ms)),
        (Some(ms), Some(n)) => format!("  [{n} proxies, {}]", millis(ms)),
        (Some(ms), None) => format!("  [{}]", millis(ms)),
        (None, _) => String::new(),
    };
    let revision = format!("r{}", event.revision);
    format!("{}  {revision:<7} {:<12}  {subject}{}{lag}{actor}\n", event.time, event.event, event.detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_a_line() {
        let event = Event {
            time: "2026-11-23T17:00:00.123Z".to_owned(),
            event: "applied".to_owned(),
            revision: 12,
            actor: "edge-1".to_owned(),
            subject: "Service checkout".to_owned(),
            detail: "every proxy has it".to_owned(),
            ms: Some(0.8),
            proxies: Some(3),
        };
        let expected = "2026-11-23T17:00:00.123Z  r12     applied       Service checkout: every proxy has it  \
                        [3 proxies, 0.80 ms]  (by edge-1)\n";
        assert_eq!(line(&event), expected);
    }
}
