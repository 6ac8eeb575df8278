//! All TLS of the process that is in use, and its comparison with the files.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Display,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use config::{
    tls::{CertificateFiles, Fingerprint, UpstreamTls},
    xds::listener::ListenerTls,
};
use serde::Serialize;
use tokio::sync::Notify;
use watch::{Followed, Pace, Watcher};

use super::{
    client::{Alpn, Authority, ClientTls},
    read::{Loaded, Origin, Roots, TlsError, of_pair},
    secrets::Secrets,
    server::{Prepared, ServerTls},
};

/// TLS of this process: makes it, knows what is in use, and shows it. A handle; clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tls(pub(super) Arc<Registry>);

impl Tls {
    /// Reads and checks what a listener is to serve with, and changes nothing. Blocking: it reads
    /// files, each at most 1 MiB.
    ///
    /// # Errors
    /// When a file cannot be used, or a secret has not come; the text names it.
    pub(crate) fn prepare(&self, tls: &ListenerTls) -> Result<Prepared, TlsError> {
        Prepared::read(tls, &self.0.secrets)
    }

    /// What a new listener serves with. Its files are watched until it is dropped.
    ///
    /// # Errors
    /// When the system has no randomness for keys of tickets.
    pub(crate) fn server(&self, prepared: Prepared) -> Result<Arc<ServerTls>, TlsError> {
        let server = Arc::new(ServerTls::new(prepared, Arc::clone(&self.0))?);
        let mut state = self.0.state();
        state.servers.retain(|server| server.strong_count() > 0);
        state.servers.push(Arc::downgrade(&server));
        drop(state);
        self.0.look();
        Ok(server)
    }

    /// What [`Self::client`] would return, if it is in use. Reads nothing and does not wait.
    pub(crate) fn client_in_use(&self, tls: &UpstreamTls, alpn: Alpn) -> Option<Arc<ClientTls>> {
        self.0.state().clients.get(&(tls.clone(), alpn)).and_then(Weak::upgrade)
    }

    /// What connections to a cluster start with: one for all that want the same. Blocking: it reads
    /// the file of authorities unless it is in use already.
    ///
    /// # Errors
    /// When the file cannot be used, or the name is none.
    pub(crate) fn client(&self, tls: &UpstreamTls, alpn: Alpn) -> Result<Arc<ClientTls>, TlsError> {
        let key = (tls.clone(), alpn);
        let _making = self.0.making.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = self.0.state().clients.get(&key).and_then(Weak::upgrade) {
            return Ok(client);
        }
        let known = self.0.state().authorities.get(&tls.ca).and_then(Weak::upgrade);
        let authority = match known {
            Some(authority) => authority,
            None => Arc::new(Authority::read(&tls.ca, Arc::clone(&self.0))?),
        };
        let client = Arc::new(ClientTls::new(Arc::clone(&authority), tls, alpn)?);
        let mut state = self.0.state();
        state.clients.retain(|_, client| client.strong_count() > 0);
        state.authorities.retain(|_, authority| authority.strong_count() > 0);
        state.authorities.insert(tls.ca.clone(), Arc::downgrade(&authority));
        state.clients.insert(key, Arc::downgrade(&client));
        drop(state);
        self.0.look();
        Ok(client)
    }

    /// Watches the files of everything in use, on the runtime it is called in and its blocking
    /// threads. Once a process.
    pub(crate) fn watch(&self) -> Watcher {
        watch::follow(Arc::clone(&self.0), Pace::default())
    }

    /// How often what is in use was replaced because its files or its secret changed.
    pub(crate) fn certificate_swaps(&self) -> u64 {
        self.0.swaps.load(Ordering::Relaxed)
    }

    /// How often changed files could not be used, once a change.
    pub(crate) fn certificate_errors(&self) -> u64 {
        self.0.errors.load(Ordering::Relaxed)
    }

    /// The certificates that listeners show, each once.
    pub(crate) fn certificates(&self) -> Vec<CertificateView> {
        let failing = self.0.failing().clone();
        let view = |loaded: Arc<Loaded>| {
            let (files, secret) = match &loaded.origin {
                Origin::Files(files) => (Some(files.clone()), None),
                Origin::Secret(name) => (None, Some(name.to_string())),
            };
            CertificateView {
                not_before: unix_seconds(loaded.certificate.not_before),
                not_after: unix_seconds(loaded.certificate.not_after),
                names: loaded.certificate.names.clone(),
                serial: loaded.serial.clone(),
                loaded_at: unix_seconds(loaded.at),
                error: files
                    .clone()
                    .and_then(|files| failing.get(&Source::Pair(files)).map(|failure| failure.error.clone())),
                files,
                secret,
            }
        };
        let mut shown = BTreeMap::new();
        for server in self.0.servers() {
            shown.extend(server.choice().loaded().iter().map(|l| (l.origin.clone(), Arc::clone(l))));
        }
        shown.into_values().map(view).collect()
    }

    /// The files of authorities that clusters trust.
    pub(crate) fn authorities(&self) -> Vec<AuthorityView> {
        let failing = self.0.failing().clone();
        let view = |authority: Arc<Authority>| {
            let roots = authority.roots.load();
            AuthorityView {
                ca: authority.ca.clone(),
                certificates: roots.count,
                loaded_at: unix_seconds(roots.at),
                error: failing.get(&Source::Ca(authority.ca.clone())).map(|failure| failure.error.clone()),
            }
        };
        self.0.authorities().into_iter().map(view).collect()
    }
}

/// A certificate in use, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CertificateView {
    /// `cert` and `key`, unless a server gave it.
    #[serde(flatten)]
    pub(crate) files: Option<CertificateFiles>,
    /// The name by which a server gave it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) secret: Option<String>,
    /// The DNS names it is for.
    pub(crate) names: Vec<String>,
    /// Hexadecimal bytes with colons between them.
    pub(crate) serial: String,
    /// Seconds since 1970, as are the others.
    pub(crate) not_before: i64,
    pub(crate) not_after: i64,
    pub(crate) loaded_at: i64,
    /// Why its files, as they are now, cannot take its place.
    pub(crate) error: Option<String>,
}

/// A file of authorities in use, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct AuthorityView {
    pub(crate) ca: PathBuf,
    /// How many authorities it names.
    pub(crate) certificates: usize,
    /// Seconds since 1970.
    pub(crate) loaded_at: i64,
    /// Why the file, as it is now, cannot take its place.
    pub(crate) error: Option<String>,
}

fn unix_seconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
    }
}

/// Where something in use came from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Pair(CertificateFiles),
    Ca(PathBuf),
}

/// Why files could not be used, for as long as they do not change.
#[derive(Clone, Debug)]
struct Failure {
    fingerprint: Fingerprint,
    error: String,
}

/// What is in use. Its owners are listeners and clusters; here are only references.
#[derive(Debug, Default)]
pub(super) struct Registry {
    state: Mutex<State>,
    /// Held while a client is made, so that no file of authorities is in use twice.
    making: Mutex<()>,
    failing: Mutex<HashMap<Source, Failure>>,
    pub(super) secrets: Secrets,
    pub(super) swaps: AtomicU64,
    errors: AtomicU64,
    /// Something came, went or changed: the watcher is to look.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    servers: Vec<Weak<ServerTls>>,
    clients: HashMap<(UpstreamTls, Alpn), Weak<ClientTls>>,
    authorities: BTreeMap<PathBuf, Weak<Authority>>,
}

impl Followed for Registry {
    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.authorities().iter().map(|a| a.ca.clone()).collect();
        for server in self.servers() {
            let choice = server.choice();
            let pairs = choice.loaded().iter().filter_map(|loaded| loaded.files());
            files.extend(pairs.flat_map(|pair| [pair.cert.clone(), pair.key.clone()]));
        }
        files.sort_unstable();
        files.dedup();
        files
    }

    fn compare(&self) -> bool {
        self.compare_all()
    }

    fn changed(&self) -> &Notify {
        &self.changed
    }
}

impl Registry {
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    fn compare_all(&self) -> bool {
        type Holder = (Arc<ServerTls>, Option<Fingerprint>);
        let mut pairs: BTreeMap<CertificateFiles, Vec<Holder>> = BTreeMap::new();
        for server in self.servers() {
            for loaded in server.choice().loaded() {
                let Some(files) = loaded.files() else { continue };
                let holder = (Arc::clone(&server), loaded.fingerprint);
                pairs.entry(files.clone()).or_default().push(holder);
            }
        }
        let authorities = self.authorities();
        let in_use = |source: &Source| match source {
            Source::Pair(files) => pairs.contains_key(files),
            Source::Ca(ca) => authorities.iter().any(|authority| authority.ca == *ca),
        };
        self.failing().retain(|source, _| in_use(source));

        for (files, holders) in pairs {
            let now = of_pair(&files);
            if holders.iter().all(|(_, held)| *held == Some(now)) {
                self.failing().remove(&Source::Pair(files));
                continue;
            }
            let shown = files.cert.display().to_string();
            self.take(Source::Pair(files.clone()), now, &shown, || {
                let loaded = Loaded::read(&files)?;
                for (server, _) in &holders {
                    server.swap(&loaded);
                }
                Ok(())
            });
        }
        for authority in authorities {
            let now = Fingerprint::of([&authority.ca]);
            if authority.roots.load().fingerprint == now {
                self.failing().remove(&Source::Ca(authority.ca.clone()));
                continue;
            }
            let shown = authority.ca.display().to_string();
            self.take(Source::Ca(authority.ca.clone()), now, &shown, || {
                authority.roots.store(Roots::read(&authority.ca)?);
                Ok(())
            });
        }
        !self.failing().is_empty()
    }

    /// Has `swap` take what changed to `now`; counts and says how it went, once a change.
    fn take(
        &self,
        source: Source,
        now: Fingerprint,
        shown: &dyn Display,
        swap: impl FnOnce() -> Result<(), TlsError>,
    ) {
        if self.failing().get(&source).is_some_and(|failure| failure.fingerprint == now) {
            return;
        }
        match swap() {
            Ok(()) => {
                self.failing().remove(&source);
                self.swaps.fetch_add(1, Ordering::Relaxed);
                tracing::info!("{shown} changed; new connections use it");
            }
            Err(error) => {
                self.errors.fetch_add(1, Ordering::Relaxed);
                tracing::warn!("{shown} changed and cannot be used, what was loaded before stays: {error}");
                self.failing().insert(source, Failure { fingerprint: now, error: error.to_string() });
            }
        }
    }

    pub(super) fn servers(&self) -> Vec<Arc<ServerTls>> {
        self.state().servers.iter().filter_map(Weak::upgrade).collect()
    }

    fn authorities(&self) -> Vec<Arc<Authority>> {
        self.state().authorities.values().filter_map(Weak::upgrade).collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn failing(&self) -> MutexGuard<'_, HashMap<Source, Failure>> {
        self.failing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
