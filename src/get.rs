//! `sluicegate get`: what the server holds.

use anyhow::bail;
use clap::{Args, ValueEnum};
use config::{Health, ServiceName};
use serde_json::Value;
use xds_server::api::types::{Gateways, Routes, ServiceView, Services};

use crate::{
    client::Client,
    exit::{self, Invalid},
    flags::{self, Output},
    output::{self, percent},
    table::Table,
};

/// Show services, gateways or routes; of a named service, its versions and endpoints
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate get services
  sluicegate get service checkout               its versions and their endpoints
  sluicegate get routes -o json | jq .revision"))]
pub(crate) struct Get {
    /// What to show
    #[arg(value_enum)]
    kind: Kind,
    /// Only these
    names: Vec<String>,
    #[command(flatten)]
    api: flags::Api,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    /// What clients call
    #[value(aliases = ["service", "svc"])]
    Services,
    /// Edge listeners
    #[value(aliases = ["gateway", "gw"])]
    Gateways,
    /// From gateways to services
    #[value(alias = "route")]
    Routes,
}

impl Get {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let client = self.api.client()?;
        let output = self.api.output;
        match (self.kind, self.names.as_slice()) {
            (Kind::Services, []) => output::show(&client.get("/v1/services").await?, output, services),
            (Kind::Services, names) => show_services(&client, names, output).await,
            (Kind::Gateways, names) => {
                let mut all: Gateways = client.get("/v1/gateways").await?;
                all.gateways = named(all.gateways, names)?;
                output::show(&all, output, gateways)
            }
            (Kind::Routes, names) => {
                let mut all: Routes = client.get("/v1/routes").await?;
                all.routes = named(all.routes, names)?;
                output::show(&all, output, routes)
            }
        }
    }
}

/// One service is shown as the API's object, several as a list of them.
async fn show_services(client: &Client, names: &[String], output: Output) -> anyhow::Result<()> {
    let mut found: Vec<ServiceView> = Vec::with_capacity(names.len());
    for name in names {
        let name: ServiceName = name.parse().map_err(|e| Invalid(format!("{e}")))?;
        found.push(client.get(format!("/v1/services/{name}")).await?);
    }
    match found.as_slice() {
        [one] => output::show(one, output, service),
        _ => output::show(&found, output, |all| all.iter().map(service).collect::<Vec<_>>().join("\n")),
    }
}

/// Those of `all` that are named; all of them without names.
fn named(all: Vec<Value>, names: &[String]) -> anyhow::Result<Vec<Value>> {
    let name_of = |value: &Value| value.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    if let Some(missing) = names.iter().find(|name| !all.iter().any(|value| name_of(value) == **name)) {
        bail!("there is no `{missing}`; without a name, `sluicegate get` shows what there is");
    }
    Ok(all.into_iter().filter(|value| names.is_empty() || names.contains(&name_of(value))).collect())
}

fn services(all: &Services) -> String {
    let mut table = Table::new(["SERVICE", "PROTOCOL", "VERSION", ">SHARE", ">READY", ">ENDPOINTS"]);
    for service in &all.services {
        for (i, version) in service.versions.iter().enumerate() {
            // The service is said once, so that its versions read as a group.
            let once = |text: String| if i == 0 { text } else { String::new() };
            table.row([
                once(service.name.to_string()),
                once(service.protocol.clone()),
                version.name.to_string(),
                percent(version.basis_points),
                version.ready.to_string(),
                version.endpoints.len().to_string(),
            ]);
        }
    }
    or_none(&table, "no services; `sluicegate apply -f` makes some")
}

fn service(service: &ServiceView) -> String {
    let mut versions = Table::new(["VERSION", ">SHARE", ">WEIGHT", ">READY", ">ENDPOINTS"]);
    let mut endpoints = Table::new(["VERSION", "ENDPOINT", "ADDRESS", "HEALTH", "LEASE", ">WEIGHT", "ZONE"]);
    for version in &service.versions {
        versions.row([
            version.name.to_string(),
            percent(version.basis_points),
            version.weight.to_string(),
            version.ready.to_string(),
            version.endpoints.len().to_string(),
        ]);
        for endpoint in &version.endpoints {
            endpoints.row([
                version.name.to_string(),
                endpoint.id.to_string(),
                endpoint.address.clone(),
                health(endpoint.health).to_owned(),
                endpoint.lease.clone(),
                endpoint.weight.to_string(),
                endpoint.zone.as_ref().map(ToString::to_string).unwrap_or_default(),
            ]);
        }
    }
    let endpoints = or_none(&endpoints, "no endpoints; `sluicegate register` runs and registers one");
    format!(
        "{} ({}), revision {}\n\n{versions}\n{endpoints}",
        service.name, service.protocol, service.revision
    )
}

fn health(health: Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Ready => "ready",
        Health::Draining => "draining",
        Health::Unhealthy => "unhealthy",
    }
}

fn gateways(all: &Gateways) -> String {
    let mut table = Table::new(["GATEWAY", "LISTEN", ">REVISION"]);
    for gateway in &all.gateways {
        table.row([field(gateway, "name"), field(gateway, "listen"), field(gateway, "revision")]);
    }
    or_none(&table, "no gateways; `sluicegate apply -f` makes some")
}

fn routes(all: &Routes) -> String {
    let mut table = Table::new(["ROUTE", "GATEWAY", "HOSTS", "MATCH", "SERVICE"]);
    for route in &all.routes {
        let rules = route.get("rules").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for (i, rule) in rules.iter().enumerate() {
            let once = |name: &str| if i == 0 { field(route, name) } else { String::new() };
            let matches = rule.get("match").map(match_for_people).unwrap_or_default();
            table.row([once("name"), once("gateway"), once("hosts"), matches, field(rule, "service")]);
        }
    }
    or_none(&table, "no routes; `sluicegate apply -f` makes some")
}

/// A field as a manifest would say it, without JSON's quotes.
fn field(object: &Value, name: &str) -> String {
    object.get(name).map(plain).unwrap_or_default()
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// `/checkout*, x-user: exact "a"`: the path, then what else has to match.
fn match_for_people(value: &Value) -> String {
    let mut parts = Vec::new();
    if let Some(path) = value.get("path").and_then(Value::as_str) {
        parts.push(format!("= {path}"));
    }
    if let Some(prefix) = value.get("path_prefix").and_then(Value::as_str) {
        parts.push(format!("{}*", prefix.trim_end_matches('/').to_owned() + "/"));
    }
    if let Some(headers) = value.get("headers").filter(|headers| !headers.is_null()) {
        parts.push(format!("headers {headers}"));
    }
    parts.join(", ")
}

fn or_none(table: &Table, none: &str) -> String {
    if table.is_empty() { format!("{none}\n") } else { table.to_string() }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_said_once_for_all_its_versions() {
        let version = |name: &str, weight| {
            json!({"name": name, "weight": weight, "basis_points": weight * 100, "ready": 1, "endpoints": [
                {"id": "a", "address": "127.0.0.1:1", "weight": 1, "health": "ready", "lease": "connection"}]})
        };
        let view = json!({"name": "checkout", "protocol": "http", "revision": 7,
            "versions": [version("v1", 90), version("v2", 10)]});
        let all = json!({"revision": 7, "services": [view]});
        let text = services(&serde_json::from_value(all).unwrap());
        assert_eq!(text.matches("checkout").count(), 1, "{text}");
        assert!(text.contains("v1        90 %      1          1"), "{text}");
        let text = service(&serde_json::from_value(view).unwrap());
        assert!(text.starts_with("checkout (http), revision 7\n"), "{text}");
        assert!(text.contains("v2       a         127.0.0.1:1  ready   connection       1\n"), "{text}");
    }

    #[test]
    fn a_route_shows_what_it_matches() {
        let route = json!({"name": "shop", "gateway": "edge", "hosts": ["a.example", "*"], "revision": 1,
            "rules": [{"match": {"path_prefix": "/"}, "service": "a"}, {"match": {"path": "/b"}, "service": "b"}]});
        let text = routes(&Routes { revision: 1, routes: vec![route] });
        assert!(text.contains("shop   edge     a.example, *  /*     a\n"), "{text}");
        assert!(text.contains("= /b   b\n"), "{text}");
    }

    #[test]
    fn a_name_that_does_not_exist_is_an_error() {
        let all = vec![json!({"name": "edge"}), json!({"name": "inner"})];
        assert_eq!(named(all.clone(), &["edge".to_owned()]).unwrap().len(), 1);
        assert_eq!(named(all.clone(), &[]).unwrap().len(), 2);
        assert!(named(all, &["none".to_owned()]).is_err());
    }
}
