//! `sluicegate delete`: removes one object.

use clap::{Args, ValueEnum};
use config::{ClusterName, EndpointId, GatewayName, NameError, RouteName, ServiceName};
use hyper::Method;

use crate::{
    exit::{self, Invalid},
    flags, output,
};

/// Delete a service, gateway, route or endpoint; what is in use is refused
#[derive(Args)]
#[command(after_help = exit::help!("  sluicegate delete route shop
  sluicegate delete service checkout --wait
  sluicegate delete endpoint checkout/v2/my-host-4711"))]
pub(crate) struct Delete {
    /// What to delete
    #[arg(value_enum)]
    kind: Kind,
    /// Its name; of an endpoint `service/version/id`, as `get service` shows them
    name: String,
    #[command(flatten)]
    wait: flags::Wait,
    #[command(flatten)]
    api: flags::Api,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A service, which no route may name
    #[value(aliases = ["services", "svc"])]
    Service,
    /// A gateway, which no route may name
    #[value(aliases = ["gateways", "gw"])]
    Gateway,
    /// A route
    #[value(alias = "routes")]
    Route,
    /// A registered endpoint; one that is held by a connection comes back if its holder reconnects
    #[value(aliases = ["endpoints", "ep"])]
    Endpoint,
}

impl Delete {
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        let path = path(self.kind, &self.name).map_err(Invalid)?;
        let client = self.api.client()?;
        let answer = client.call(Method::DELETE, path).wait(self.wait.limit()).send().await?;
        output::show_write(&answer.json()?, self.api.output)
    }
}

/// Where the API keeps it. A valid name needs no escaping in a URL.
fn path(kind: Kind, name: &str) -> Result<String, String> {
    let say = |error: NameError| error.to_string();
    Ok(match kind {
        Kind::Service => format!("/v1/services/{}", name.parse::<ServiceName>().map_err(say)?),
        Kind::Gateway => format!("/v1/gateways/{}", name.parse::<GatewayName>().map_err(say)?),
        Kind::Route => format!("/v1/routes/{}", name.parse::<RouteName>().map_err(say)?),
        Kind::Endpoint => {
            let rule = || format!("`{name}` is not an endpoint: write `service/version/id`");
            let (cluster, id) = name.rsplit_once('/').ok_or_else(rule)?;
            let cluster: ClusterName = cluster.parse().map_err(|_| rule())?;
            endpoint_path(&cluster, &id.parse().map_err(say)?)
        }
    })
}

/// Where the API keeps an endpoint.
pub(crate) fn endpoint_path(cluster: &ClusterName, id: &EndpointId) -> String {
    format!("/v1/services/{}/versions/{}/endpoints/{id}", cluster.service, cluster.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_named_by_service_version_and_id() {
        let good = path(Kind::Endpoint, "checkout/v2/host-1:9001").unwrap();
        assert_eq!(good, "/v1/services/checkout/versions/v2/endpoints/host-1:9001");
        for bad in ["checkout", "checkout/v2", "a/b/c/d", "checkout/v2/", "checkout/v2/.."] {
            assert!(path(Kind::Endpoint, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_that_could_escape_its_path_is_refused() {
        for bad in ["", "..", "a/b", "a?b", "A"] {
            assert!(path(Kind::Service, bad).is_err(), "{bad}");
        }
    }
}
