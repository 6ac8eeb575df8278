//! CSDS: what each connected client was sent, and what it made of it
//! (`envoy/service/status/v3/csds.proto`). Contents of secrets are never told.

use std::{pin::Pin, sync::Arc};

use envoy_types::pb::{
    envoy::{
        admin::v3::{ClientResourceStatus, UpdateFailureState},
        config::core::v3::Node,
        service::status::v3::{
            ClientConfig, ClientStatusRequest, ClientStatusResponse, ConfigStatus,
            client_config::GenericXdsConfig,
            client_status_discovery_service_server::{
                ClientStatusDiscoveryService, ClientStatusDiscoveryServiceServer,
            },
        },
        r#type::matcher::v3::{NodeMatcher, StringMatcher, string_matcher::MatchPattern},
    },
    google::protobuf::Any,
};
use futures_util::StreamExt;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming, async_trait};

use crate::{
    access::{Access, Peer},
    fleet::{Fleet, Identity},
    kind::Kind,
    subscription::view::{self, Standing},
};

/// Beyond so many bytes of contents, they are left out of an answer.
const MAX_CONTENTS: usize = 32 << 20;
/// How many resources an answer may be about.
const MAX_RESOURCES: usize = 250_000;
/// How large a request may be, in bytes.
const MAX_REQUEST: usize = 64 << 10;
/// How many patterns a request may have.
const MAX_MATCHERS: usize = 64;

/// The service.
pub(super) fn service(fleet: Arc<Fleet>, access: Arc<Access>) -> ClientStatusDiscoveryServiceServer<Csds> {
    ClientStatusDiscoveryServiceServer::new(Csds { fleet, access, turn: Arc::new(Semaphore::new(1)) })
        .max_decoding_message_size(MAX_REQUEST)
        .max_encoding_message_size(usize::MAX)
}

/// Answers from what the streams say of themselves.
#[derive(Clone)]
pub(super) struct Csds {
    fleet: Arc<Fleet>,
    access: Arc<Access>,
    /// One answer at a time: each may be large.
    turn: Arc<Semaphore>,
}

#[async_trait]
impl ClientStatusDiscoveryService for Csds {
    type StreamClientStatusStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<ClientStatusResponse, Status>> + Send>>;

    async fn stream_client_status(
        &self,
        request: Request<Streaming<ClientStatusRequest>>,
    ) -> Result<Response<Self::StreamClientStatusStream>, Status> {
        self.admit(&request)?;
        let csds = self.clone();
        let answers = request.into_inner().then(move |request| {
            let csds = csds.clone();
            async move { csds.answer(request?).await }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn fetch_client_status(
        &self,
        request: Request<ClientStatusRequest>,
    ) -> Result<Response<ClientStatusResponse>, Status> {
        self.admit(&request)?;
        self.answer(request.into_inner()).await.map(Response::new)
    }
}

impl Csds {
    fn admit<R>(&self, request: &Request<R>) -> Result<(), Status> {
        let peer = request.extensions().get::<Peer>();
        self.access.may_inspect(peer).map_err(|refusal| Status::permission_denied(refusal.to_string()))
    }

    async fn answer(&self, request: ClientStatusRequest) -> Result<ClientStatusResponse, Status> {
        let patterns = patterns(&request.node_matchers)?;
        let _turn = self.turn.acquire().await;
        let wanted = |node: &str| patterns.is_empty() || patterns.iter().any(|p| matches(p, node));
        let streams = self.fleet.streams(wanted);
        let (mut config, mut resources) = (Vec::new(), 0);
        let mut room = if request.exclude_resource_contents { 0 } else { MAX_CONTENTS };
        for stream in &streams {
            let Some(standings) = stream.standings().await else { continue };
            resources += standings.len();
            if resources > MAX_RESOURCES {
                return Err(Status::resource_exhausted(format!(
                    "{} clients match, which have more than {MAX_RESOURCES} resources; ask for fewer by node_matchers",
                    streams.len()
                )));
            }
            config.push(client_config(&stream.identity, &standings, &mut room));
        }
        Ok(ClientStatusResponse { config })
    }
}

/// The patterns of node ids; any of them matches.
fn patterns(matchers: &[NodeMatcher]) -> Result<Vec<&StringMatcher>, Status> {
    if matchers.len() > MAX_MATCHERS {
        return Err(Status::invalid_argument(format!("node_matchers: more than {MAX_MATCHERS}")));
    }
    let pattern = |matcher: &'_ NodeMatcher| {
        let supported = |pattern: &&StringMatcher| {
            !matches!(
                pattern.match_pattern,
                None | Some(MatchPattern::SafeRegex(_) | MatchPattern::Custom(_))
            )
        };
        matcher.node_metadatas.is_empty() && matcher.node_id.as_ref().is_some_and(|id| supported(&id))
    };
    if !matchers.iter().all(pattern) {
        let why = "node_matchers: only node_id by exact, prefix, suffix or contains is supported";
        return Err(Status::invalid_argument(why));
    }
    Ok(matchers.iter().filter_map(|matcher| matcher.node_id.as_ref()).collect())
}

fn matches(pattern: &StringMatcher, node: &str) -> bool {
    let fold = |text: &str| if pattern.ignore_case { text.to_ascii_lowercase() } else { text.to_owned() };
    let node = fold(node);
    match &pattern.match_pattern {
        Some(MatchPattern::Exact(exact)) => node == fold(exact),
        Some(MatchPattern::Prefix(prefix)) => node.starts_with(&fold(prefix)),
        Some(MatchPattern::Suffix(suffix)) => node.ends_with(&fold(suffix)),
        Some(MatchPattern::Contains(part)) => node.contains(&fold(part)),
        _ => false,
    }
}

fn client_config(identity: &Identity, standings: &[Standing], room: &mut usize) -> ClientConfig {
    let node = Node {
        id: identity.node.clone(),
        cluster: identity.cluster.clone(),
        user_agent_name: identity.agent.clone(),
        ..Node::default()
    };
    ClientConfig {
        node: Some(node),
        generic_xds_configs: standings.iter().map(|standing| config(standing, room)).collect(),
        client_scope: identity.peer.map(|peer| peer.to_string()).unwrap_or_default(),
        ..ClientConfig::default()
    }
}

fn config(standing: &Standing, room: &mut usize) -> GenericXdsConfig {
    let (status, client) = match standing.status {
        view::Status::Synced => (ConfigStatus::Synced, ClientResourceStatus::Acked),
        view::Status::NotSent if standing.resource.is_none() => {
            (ConfigStatus::NotSent, ClientResourceStatus::DoesNotExist)
        }
        view::Status::NotSent => (ConfigStatus::NotSent, ClientResourceStatus::Requested),
        view::Status::Stale => (ConfigStatus::Stale, ClientResourceStatus::Requested),
        view::Status::Error => (ConfigStatus::Error, ClientResourceStatus::Nacked),
    };
    let secret = standing.kind == Kind::Secret;
    let shown = standing.resource.as_ref().filter(|_| !secret);
    let fits = shown.filter(|_| *room > 0).and_then(|resource| {
        *room = room.checked_sub(resource.size())?;
        Some(Any { type_url: standing.kind.type_url().to_owned(), value: resource.value().into() })
    });
    GenericXdsConfig {
        type_url: standing.kind.type_url().to_owned(),
        name: standing.name.to_string(),
        version_info: shown.map(|resource| resource.version.to_string()).unwrap_or_default(),
        xds_config: fits,
        config_status: status as i32,
        client_status: client as i32,
        error_state: standing.reason.as_ref().map(|reason| UpdateFailureState {
            details: reason.to_string(),
            ..UpdateFailureState::default()
        }),
        ..GenericXdsConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::Resource;

    #[test]
    fn nodes_are_matched_as_asked() {
        let id =
            |match_pattern, ignore_case| StringMatcher { match_pattern: Some(match_pattern), ignore_case };
        for (pattern, ignore_case, matched) in [
            (MatchPattern::Exact("edge-1".into()), false, true),
            (MatchPattern::Exact("Edge-1".into()), false, false),
            (MatchPattern::Exact("Edge-1".into()), true, true),
            (MatchPattern::Prefix("edge".into()), false, true),
            (MatchPattern::Suffix("-2".into()), false, false),
            (MatchPattern::Contains("ge".into()), false, true),
        ] {
            let matcher = NodeMatcher { node_id: Some(id(pattern, ignore_case)), node_metadatas: vec![] };
            let matchers = [matcher];
            assert_eq!(matches(patterns(&matchers).unwrap()[0], "edge-1"), matched, "{matchers:?}");
        }
        assert!(patterns(&[NodeMatcher::default()]).is_err());
    }

    #[test]
    fn a_secret_is_named_and_nothing_more() {
        let standing = |kind: Kind| Standing {
            resource: Some(Arc::new(Resource::new(kind.clone(), "a", b"\x0a\x01a"))),
            kind,
            name: "a".into(),
            status: view::Status::Synced,
            acknowledged: None,
            reason: None,
        };
        let told = config(&standing(Kind::Secret), &mut 1_000);
        assert_eq!((told.xds_config, told.version_info.as_str()), (None, ""));
        let mut room = 1_000;
        assert!(config(&standing(Kind::Cluster), &mut room).xds_config.is_some());
        assert!(room < 1_000);
        assert!(config(&standing(Kind::Cluster), &mut 1).xds_config.is_none());
    }
}
