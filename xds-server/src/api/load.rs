//! What proxies report of their load: `GET /v1/load`.

use std::{collections::BTreeMap, time::Instant};

use axum::{Json, extract::State};
use config::{EndpointId, ServiceName, VersionName};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Api, answer::ApiError, request::Queried, types::ErrorAnswer};
use crate::registry::write::Refusal;

/// `GET /v1/load`
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Load {
    /// Versions of which something was reported, by name.
    pub versions: Vec<VersionLoad>,
    /// Who reports, by node; those that left in the last minutes included.
    pub reporters: Vec<Reporter>,
    /// Reported of clusters that are not declared here.
    pub unknown: LoadCounts,
    /// Reported of versions that were removed since.
    pub removed: LoadCounts,
}

/// Requests since the server started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LoadCounts {
    /// Given to an endpoint, retries included.
    pub requests: u64,
    /// Over, and not because of an error of the endpoint.
    pub successful: u64,
    /// Failed by the endpoint: 5xx, no connection, or no whole answer.
    pub errors: u64,
    /// Deliberately not sent to any endpoint.
    pub dropped: u64,
}

/// The load of a version.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct VersionLoad {
    /// The service.
    #[schema(value_type = String)]
    pub service: ServiceName,
    /// The version.
    #[schema(value_type = String)]
    pub version: VersionName,
    /// Since the server started, or since the version was declared.
    #[serde(flatten)]
    pub counts: LoadCounts,
    /// In progress, as of the last reports.
    pub in_progress: u64,
    /// Requests a second, over the last interval of each reporter.
    pub rps: f64,
    /// What of `dropped` was for which reason, as clients call it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped_for: BTreeMap<String, u64>,
    /// Metrics that endpoints report, over all localities.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, MetricLoad>,
    /// By locality.
    pub localities: Vec<LocalityLoad>,
    /// By endpoint that is registered, by id.
    pub endpoints: Vec<EndpointLoad>,
    /// By who reported it, by node.
    pub proxies: Vec<ProxyLoad>,
}

/// A metric that endpoints report with their responses (ORCA).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct MetricLoad {
    /// Average over the requests that came back with it.
    pub average: f64,
    /// How many did.
    pub requests: u64,
}

/// The load of a locality of a version.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct LocalityLoad {
    /// Its zone; `region/zone/sub_zone` where there is more to it; empty when unknown.
    pub locality: String,
    /// Its counts.
    #[serde(flatten)]
    pub counts: LoadCounts,
    /// Metrics its endpoints report.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, MetricLoad>,
}

/// The load of an endpoint.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct EndpointLoad {
    /// Its id.
    #[schema(value_type = String)]
    pub id: EndpointId,
    /// Where it listens.
    pub address: String,
    /// Its counts.
    #[serde(flatten)]
    pub counts: LoadCounts,
    /// In progress, as of the last reports.
    pub in_progress: u64,
    /// Metrics it reports.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, MetricLoad>,
}

/// What one proxy sends to a version.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct ProxyLoad {
    /// Its node id.
    pub node: String,
    /// Since it first reported.
    #[serde(flatten)]
    pub counts: LoadCounts,
    /// In progress, as of its last report.
    pub in_progress: u64,
    /// Requests a second, over its last interval.
    pub rps: f64,
}

/// Who reports.
#[derive(Clone, Debug, Serialize, Deserialize, ToSchema)]
pub struct Reporter {
    /// Its node id.
    pub node: String,
    /// Open streams of reports; 0 when it has left.
    pub streams: usize,
    /// Reports taken.
    pub reports: u64,
    /// Since its last report, in ms; left out when it has left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LoadQuery {
    service: Option<ServiceName>,
    version: Option<VersionName>,
}

/// Requests by version, locality, endpoint and proxy, as proxies report them.
#[utoipa::path(
    get, path = "/v1/load", tag = "watch",
    params(
        ("service" = Option<String>, Query, description = "Only of this service"),
        ("version" = Option<String>, Query, description = "Only of this version of it"),
    ),
    responses((status = 200, body = Load), (status = 400, body = ErrorAnswer), (status = 404, body = ErrorAnswer)),
)]
pub(super) async fn load(
    State(api): State<Api>,
    Queried(query): Queried<LoadQuery>,
) -> Result<Json<Load>, ApiError> {
    let state = api.registry.state();
    match (&query.service, &query.version) {
        (None, Some(_)) => return Err(ApiError::bad_request("version: goes with service")),
        (Some(service), version) => {
            let declared = state.world.service(service).map(|entry| &entry.value);
            let missing = match (declared, version) {
                (None, _) => Some(format!("there is no service `{service}`")),
                (Some(declared), Some(version)) if !declared.versions.contains_key(version) => {
                    Some(format!("service `{service}` has no version `{version}`"))
                }
                _ => None,
            };
            if let Some(missing) = missing {
                return Err(Refusal::NotFound(missing).into());
            }
        }
        (None, None) => {}
    }
    let wanted = |service: &ServiceName, version: &VersionName| {
        query.service.as_ref().is_none_or(|wanted| wanted == service)
            && query.version.as_ref().is_none_or(|wanted| wanted == version)
    };
    Ok(Json(api.loads.view(&state.world, wanted, Instant::now())))
}
