//! `sluicegate load`: what is sent where, as proxies report it.

use clap::Args;
use config::{ServiceName, VersionName};
use hyper::Method;
use xds_server::api::load::{Load as Answer, LoadCounts, VersionLoad};

use crate::{
    exit::{self, Invalid},
    flags,
    output::{self, millis},
    table::Table,
};

/// Show the load on versions as proxies report it; of a named version, on its endpoints and by proxy
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate load
  sluicegate load checkout                      its versions and their endpoints
  sluicegate load checkout v2                   and the proxies that send to it
  sluicegate load -o json | jq '.versions[] | {service, version, rps}'

Requests are counted by endpoint, retries included, since the server started. Errors are those of
endpoints: 5xx, no connection, or no whole answer."))]
pub(crate) struct Load {
    /// Only of this service
    service: Option<String>,
    /// Only of this version of it
    #[arg(requires = "service")]
    version: Option<String>,
    #[command(flatten)]
    api: flags::Api,
}

impl Load {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let client = self.api.client()?;
        let mut call = client.call(Method::GET, "/v1/load");
        if let Some(service) = &self.service {
            let service: ServiceName = service.parse().map_err(|e| Invalid(format!("{e}")))?;
            call = call.query("service", service);
        }
        if let Some(version) = &self.version {
            let version: VersionName = version.parse().map_err(|e| Invalid(format!("{e}")))?;
            call = call.query("version", version);
        }
        let answer: Answer = call.send().await?.json()?;
        output::show(&answer, self.api.output, |answer| match (&self.service, &self.version) {
            (None, _) => format!("{}{}", versions(answer), elsewhere(answer)),
            (Some(_), None) => format!("{}{}", versions(answer), endpoints(answer)),
            (Some(_), Some(_)) => {
                format!("{}{}{}{}", versions(answer), endpoints(answer), proxies(answer), metrics(answer))
            }
        })
    }
}

/// The columns that every table has.
fn cells(counts: LoadCounts, in_progress: u64) -> [String; 4] {
    let LoadCounts { requests, errors, dropped, .. } = counts;
    [requests, errors, dropped, in_progress].map(|count| count.to_string())
}

fn versions(answer: &Answer) -> String {
    let mut table =
        Table::new(["SERVICE", "VERSION", ">REQUESTS", ">ERRORS", ">DROPPED", ">IN PROGRESS", ">PER SECOND"]);
    for (i, load) in answer.versions.iter().enumerate() {
        // The service is said once, so that its versions read as a group.
        let again = i > 0 && answer.versions[i - 1].service == load.service;
        let service = if again { String::new() } else { load.service.to_string() };
        let [requests, errors, dropped, in_progress] = cells(load.counts, load.in_progress);
        table.row([
            service,
            load.version.to_string(),
            requests,
            errors,
            dropped,
            in_progress,
            format!("{:.1}", load.rps),
        ]);
    }
    if !table.is_empty() {
        return table.to_string();
    }
    if answer.reporters.is_empty() {
        return "no proxy has reported anything; `sluicegate proxies` shows who is connected\n".to_owned();
    }
    "nothing was sent to it yet\n".to_owned()
}

fn endpoints(answer: &Answer) -> String {
    let mut table =
        Table::new(["VERSION", "ENDPOINT", "ADDRESS", ">REQUESTS", ">ERRORS", ">DROPPED", ">IN PROGRESS"]);
    for load in &answer.versions {
        for endpoint in &load.endpoints {
            let [requests, errors, dropped, in_progress] = cells(endpoint.counts, endpoint.in_progress);
            table.row([
                load.version.to_string(),
                endpoint.id.to_string(),
                endpoint.address.clone(),
                requests,
                errors,
                dropped,
                in_progress,
            ]);
        }
    }
    section(&table)
}

fn proxies(answer: &Answer) -> String {
    let mut table =
        Table::new(["PROXY", ">REQUESTS", ">ERRORS", ">DROPPED", ">IN PROGRESS", ">PER SECOND", ">REPORTED"]);
    for proxy in answer.versions.iter().flat_map(|load| &load.proxies) {
        let reporter = answer.reporters.iter().find(|reporter| reporter.node == proxy.node);
        let reported = match reporter.and_then(|reporter| reporter.age_ms) {
            Some(age) => format!("{} ago", millis(age as f64)),
            None => "left".to_owned(),
        };
        let [requests, errors, dropped, in_progress] = cells(proxy.counts, proxy.in_progress);
        let rps = format!("{:.1}", proxy.rps);
        table.row([proxy.node.clone(), requests, errors, dropped, in_progress, rps, reported]);
    }
    section(&table)
}

fn metrics(answer: &Answer) -> String {
    let mut table = Table::new(["METRIC", ">AVERAGE", ">REQUESTS"]);
    for (name, metric) in answer.versions.iter().flat_map(|load: &VersionLoad| &load.metrics) {
        table.row([name.clone(), format!("{:.4}", metric.average), metric.requests.to_string()]);
    }
    section(&table)
}

/// What was reported and belongs to no version that there is.
fn elsewhere(answer: &Answer) -> String {
    let removed = (answer.removed.requests, "versions that were removed");
    let unknown = (answer.unknown.requests, "clusters that are not declared here");
    let lines = [removed, unknown].into_iter().filter(|(requests, _)| *requests > 0);
    let lines: Vec<String> =
        lines.map(|(requests, of)| format!("and {requests} requests of {of}\n")).collect();
    lines.concat()
}

fn section(table: &Table) -> String {
    if table.is_empty() { String::new() } else { format!("\n{table}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer() -> Answer {
        let counts = json!({"requests": 12, "successful": 10, "errors": 2, "dropped": 0});
        let with = |more: serde_json::Value| {
            let mut value = counts.clone();
            value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            value
        };
        let version = |name: &str| {
            with(json!({
                "service": "shop", "version": name, "in_progress": 3, "rps": 4.25, "localities": [],
                "endpoints": [with(json!({"id": "a", "address": "127.0.0.1:1", "in_progress": 3}))],
                "proxies": [with(json!({"node": "edge-1", "in_progress": 3, "rps": 4.25}))],
                "metrics": {"cpu_utilization": {"average": 0.25, "requests": 12}}}))
        };
        let reporters = json!([{"node": "edge-1", "streams": 1, "reports": 9, "age_ms": 400}]);
        let unknown = with(json!({}));
        let removed = json!({"requests": 0, "successful": 0, "errors": 0, "dropped": 0});
        let answer = json!({"versions": [version("v1"), version("v2")], "reporters": reporters,
            "unknown": unknown, "removed": removed});
        serde_json::from_value(answer).unwrap()
    }

    #[test]
    fn a_service_is_said_once_for_all_its_versions() {
        let text = versions(&answer());
        assert!(
            text.contains("shop     v1             12       2        0            3         4.2\n"),
            "{text}"
        );
        assert!(text.contains("\n         v2  "), "{text}");
    }

    #[test]
    fn what_belongs_to_no_version_is_said_if_there_is_any() {
        assert_eq!(elsewhere(&answer()), "and 12 requests of clusters that are not declared here\n");
    }

    #[test]
    fn a_proxy_that_has_left_says_so() {
        let mut answer = answer();
        assert!(proxies(&answer).contains("400 ms ago\n"));
        answer.reporters[0].age_ms = None;
        assert!(proxies(&answer).contains("left\n"));
        assert!(metrics(&answer).contains("cpu_utilization   0.2500        12\n"), "{}", metrics(&answer));
    }

    #[test]
    fn nothing_reported_is_said_with_where_to_look() {
        let mut answer = answer();
        answer.versions.clear();
        assert_eq!(versions(&answer), "nothing was sent to it yet\n");
        answer.reporters.clear();
        assert!(versions(&answer).contains("sluicegate proxies"));
    }
}
