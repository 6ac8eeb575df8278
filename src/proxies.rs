//! `sluicegate proxies`: who follows the server, and how far they are.

use std::fmt::Write as _;

use clap::Args;
use xds_server::api::types::Proxies as Answer;

use crate::{
    exit, flags,
    output::{self, millis},
    table::Table,
};

/// Show connected proxies: the revision each has applied, its lag, and what it refused
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate proxies
  sluicegate proxies -o json | jq '.proxies[] | select(.synced | not)'"))]
pub(crate) struct Proxies {
    #[command(flatten)]
    api: flags::Api,
}

impl Proxies {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let answer = self.api.client()?.get("/v1/proxies").await?;
        output::show(&answer, self.api.output, proxies)
    }
}

fn proxies(answer: &Answer) -> String {
    let mut table =
        Table::new(["NODE", "AGENT", "XDS", "PEER", ">CONNECTED", ">REVISION", ">LAG", "SYNCED", ">REFUSED"]);
    let mut refusals = String::new();
    for proxy in &answer.proxies {
        table.row([
            proxy.node.clone(),
            proxy.agent.clone(),
            proxy.variant.clone(),
            proxy.peer.clone(),
            millis(proxy.age_ms as f64),
            proxy.revision.to_string(),
            millis(proxy.lag_ms),
            if proxy.synced { "yes" } else { "no" }.to_owned(),
            proxy.nacks.to_string(),
        ]);
        for nack in &proxy.refused {
            let age = millis(nack.age_ms as f64);
            // Writing to a string does not fail.
            let _ = writeln!(
                refusals,
                "{} refused {} {age} ago: {}",
                proxy.node, nack.resource_type, nack.reason
            );
        }
    }
    let rows = if table.is_empty() {
        "no proxy is connected; `sluicegate proxy` starts one\n".to_owned()
    } else {
        table.to_string()
    };
    format!("{rows}{refusals}newest revision {}\n", answer.revision)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_refusal_is_shown_with_its_reason() {
        let answer = json!({"revision": 9, "proxies": [{
            "node": "edge-1", "cluster": "edge", "agent": "sluicegate 0.1.0", "variant": "incremental",
            "peer": "127.0.0.1:5", "age_ms": 61_000, "revision": 8, "lag_ms": 0.3, "synced": false, "nacks": 1,
            "refused": [{"type": "LDS", "reason": "port 80: permission denied", "age_ms": 1500}]}]});
        let text = proxies(&serde_json::from_value(answer).unwrap());
        assert!(text.contains("1 m 1 s         8  0.30 ms  no            1\n"), "{text}");
        assert!(text.contains("edge-1 refused LDS 1.5 s ago: port 80: permission denied\n"), "{text}");
    }
}
