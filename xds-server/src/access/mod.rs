//! Who may do what: on the API by roles, on xDS by node id.
//!
//! # Rooms
//! - `policy`: pure; who somebody is by what they show, and whether they may.
//! - `rules`: pure; the one table of what each route of the API needs.
//! - `listen`: pure; which addresses may be listened on without any of this.
//! - `load`: the access file and its tokens → a policy. `tls`: certificates → what listeners speak.
//! - `follow`: keeps both like their files. `wire`: a connection, in the clear or over TLS, and its peer.
//! - `refusals`: counts every refusal, and logs within a bound.
//!
//! # What happens when
//! A connection over TLS has shown its certificate before anything is read from it. A request of the
//! API is admitted before its handler sees it, a stream of xDS when it says which node it is. Who has
//! been admitted stays: a file that changes counts for connections, requests and streams from then on.
//!
//! # Architecture invariants
//! - A route without a rule needs the role `admin`.
//! - A token is neither logged nor kept, only its SHA-256; the time a comparison takes says nothing of it.
//! - Without an access file, whoever reaches the API may do everything, so only loopback is listened on.

mod follow;
mod listen;
mod load;
mod policy;
mod refusals;
pub(crate) mod rules;
mod tls;
mod wire;

use std::{path::Path, sync::Arc};

use config::{access::Role, bootstrap::ServerSettings};
use prometheus_client::metrics::gauge::Gauge;

use crate::metrics::Metrics;
use follow::Followed;
use policy::Policy;
pub(crate) use policy::{Need, NoToken, Refusal, Shown, Who};
pub(crate) use refusals::By;
use refusals::Refusals;
pub use refusals::Refused;
pub(crate) use tls::{Listener, ListenerTls};
pub use wire::{Peer, Wire};

/// Why a server does not start with its settings of access; displays with the remedy.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct AccessError(String);

/// Who may do what, in force.
pub struct Access {
    /// `None`: no access file, so whoever reaches the API may do everything.
    policy: Option<Followed<Policy>>,
    /// `None`: listeners speak in the clear.
    tls: Option<Followed<tls::Material>>,
    /// Whether clients of xDS show certificates, to which their node ids are bound.
    nodes_are_bound: bool,
    refusals: Refusals,
    failing: Gauge,
}

impl Access {
    /// Reads the files that `settings` name. Blocking.
    ///
    /// # Errors
    /// When a file cannot be used, or an address could be reached by whoever likes.
    pub fn open(settings: &ServerSettings, metrics: &Metrics) -> Result<Self, AccessError> {
        listen::check(settings).map_err(AccessError)?;
        let nodes_are_bound = settings.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
        let policy = settings.access.clone().map(|path| {
            let load = move || load::policy(&path, nodes_are_bound);
            Followed::new("the access file", load)
        });
        let tls = settings.tls.clone().map(|tls| Followed::new("TLS", move || tls::Material::read(&tls)));
        let tls = tls.transpose().map_err(AccessError)?;
        if let Some(tls) = &tls {
            tls.current().warn_of_validity();
        }
        Ok(Self {
            policy: policy.transpose().map_err(AccessError)?,
            tls,
            nodes_are_bound,
            refusals: Refusals::new(&metrics.requests_refused),
            failing: metrics.access_failing.clone(),
        })
    }

    /// Keeps what is in force like its files, for ever.
    pub async fn follow(self: Arc<Self>) {
        follow::run(move || {
            let mut failing = 0;
            if let Some(policy) = &self.policy {
                policy.compare();
                failing += i64::from(policy.is_failing());
            }
            if let Some(tls) = &self.tls {
                if tls.compare() {
                    tls.current().warn_of_validity();
                }
                failing += i64::from(tls.is_failing());
            }
            self.failing.set(failing);
        })
        .await;
    }

    /// Whether who shows `shown` may do what needs `need`, and who that is. What is refused is noted
    /// as `what`.
    pub(crate) fn admit(
        &self,
        shown: &Shown<'_>,
        need: &Need<'_>,
        what: impl std::fmt::Display,
    ) -> Result<Who, Refusal> {
        let Some(policy) = &self.policy else { return Ok(Who::Anybody) };
        let admitted = policy.current().admit(shown, need);
        admitted.inspect_err(|refusal| {
            let from = shown.peer.map(|peer| peer.address.to_string()).unwrap_or_default();
            self.refusals.note(refusal.by, format_args!("{what} from {from}: {refusal}"));
        })
    }

    /// Whether `peer` may see on the xDS port what all clients were sent. Where clients are known by their
    /// certificates, being one of them is not enough: it takes the role `read`.
    pub(crate) fn may_inspect(&self, peer: Option<&Peer>) -> Result<(), Refusal> {
        if !self.nodes_are_bound {
            return Ok(());
        }
        let (shown, need) = (Shown { peer, token: None }, Need::Role(Role::Read, None));
        let may = match &self.policy {
            Some(policy) => policy.current().admit(&shown, &need).map(drop),
            None => Policy::default().admit(&shown, &need).map(drop),
        };
        may.inspect_err(|refusal| {
            let from = peer.map(|peer| peer.address.to_string()).unwrap_or_default();
            self.refusals.note(refusal.by, format_args!("CSDS from {from}: {refusal}"));
        })
    }

    /// Whether `peer` may be the node `node` on xDS.
    ///
    /// # Errors
    /// When its certificate is not for that node; counted and logged already.
    pub(crate) fn may_be_node(&self, peer: Option<&Peer>, node: &str) -> Result<(), Refusal> {
        if !self.nodes_are_bound {
            return Ok(());
        }
        let may = match &self.policy {
            Some(policy) => policy.current().may_be_node(peer, node),
            None => Policy::default().may_be_node(peer, node),
        };
        may.inspect_err(|refusal| {
            let from = peer.map(|peer| peer.address.to_string()).unwrap_or_default();
            self.refusals.note(refusal.by, format_args!("xDS from {from}: {refusal}"));
        })
    }

    /// Notes a refusal that was decided elsewhere.
    pub(crate) fn note(&self, by: By, what: impl std::fmt::Display) {
        self.refusals.note(by, what);
    }

    /// What `listener` begins its connections with; `None` in the clear.
    pub(crate) fn listener(self: &Arc<Self>, listener: Listener) -> Option<ListenerTls> {
        self.tls.as_ref().map(|_| ListenerTls::new(Arc::clone(self), listener))
    }
}

/// The text of a file of the access policy, within the bound of all such files.
fn text(path: &Path) -> Result<String, String> {
    let shown = path.display();
    let bytes = config::tls::contents(path).map_err(|error| {
        format!("{shown}: cannot be read ({error}); put it there and let this process read it, or correct the path")
    })?;
    if bytes.len() > config::tls::MAX_FILE {
        return Err(format!("{shown}: has more than {} bytes; name another file", config::tls::MAX_FILE));
    }
    String::from_utf8(bytes).map_err(|_| format!("{shown}: is not UTF-8 text; name another file"))
}
