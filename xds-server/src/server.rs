//! A whole server, from its settings to its end.

use std::{future::Future, io, net::SocketAddr, sync::Arc, time::SystemTime};

use config::bootstrap::ServerSettings;
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, AccessError},
    ads::{self, Ads},
    api::{
        self, Api,
        types::{ErrorBody, WriteAnswer},
    },
    certificates,
    fleet::Fleet,
    load_report::{LoadReporting, Loads},
    metrics::Metrics,
    registry::{
        Registry,
        fit::keep_splits,
        write::{Refusal, Write},
    },
    store::{FileStore, StoreError},
    timeline::Timeline,
};

/// Why a server does not start or run, with the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {what}: {error}; choose another with {flag}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// The flag that sets it.
        flag: &'static str,
        /// The reason.
        error: io::Error,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Who may do what cannot be settled.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Serving xDS broke off.
    #[error("serving xDS failed: {0}")]
    Serve(io::Error),
}

/// A server that listens, and has loaded what it knew.
pub struct Server {
    api: Api,
    ads: Ads,
    api_listener: TcpListener,
    xds_listener: TcpListener,
    api_addr: SocketAddr,
    xds_addr: SocketAddr,
}

impl Server {
    /// Loads the store and binds both addresses. Call within a tokio runtime.
    pub async fn bind(settings: ServerSettings) -> Result<Self, StartError> {
        let (timeline, metrics, fleet) = <(Arc<Timeline>, Arc<Metrics>, Arc<Fleet>)>::default();
        let access = {
            let (settings, metrics) = (settings.clone(), Arc::clone(&metrics));
            tokio::task::spawn_blocking(move || Access::open(&settings, &metrics)).await
        };
        let access = Arc::new(access.map_err(|e| StoreError(format!("cannot read the access file: {e}")))??);
        let (kept, counted, grace) = (Arc::clone(&timeline), Arc::clone(&metrics), settings.hold_grace);
        // First, so that a server that knows nothing yet does not listen either.
        let registry = match &settings.shared {
            Some(shared) => Registry::join(shared, kept, counted, grace).await?,
            None => {
                let directory = settings.data_dir.clone();
                let opened = tokio::task::spawn_blocking(move || FileStore::open(&directory)).await;
                let store = opened.map_err(|e| StoreError(format!("cannot open the store: {e}")))??;
                Registry::start(Box::new(store), kept, counted, grace)?
            }
        };
        let (api_listener, api_addr) = listen(settings.api_addr, "the API", "--api-addr")?;
        let (xds_listener, xds_addr) = listen(settings.xds_addr, "xDS", "--xds-addr")?;
        let state = registry.state();
        // Nothing waits for it: what is wrong stays in use.
        tokio::task::spawn_blocking(move || certificates::warn(&state.world, SystemTime::now()));
        let stop = CancellationToken::new();
        let loads = Arc::new(Loads::new(registry.follow()));
        metrics.register(Box::new(Arc::clone(&loads)));
        let ads = Ads {
            load_reports: LoadReporting::new(
                Arc::clone(&loads),
                settings.load_interval,
                Arc::clone(&access),
                stop.clone(),
            ),
            state: registry.follow(),
            fleet: Arc::clone(&fleet),
            timeline: Arc::clone(&timeline),
            metrics: Arc::clone(&metrics),
            access: Arc::clone(&access),
            stop: stop.clone(),
        };
        let api = Api { registry, fleet, timeline, metrics, loads, access, stop };
        Ok(Self { api, ads, api_listener, xds_listener, api_addr, xds_addr })
    }

    /// The one writer of this server: what a program that embeds it writes, and reads, through.
    pub fn registry(&self) -> &Registry {
        &self.api.registry
    }

    /// Where the API listens.
    pub fn api_addr(&self) -> SocketAddr {
        self.api_addr
    }

    /// Where xDS listens.
    pub fn xds_addr(&self) -> SocketAddr {
        self.xds_addr
    }

    /// Applies manifests, given as names and texts, all of them or none, as at every start.
    ///
    /// A service that exists keeps its live split, so that a restart undoes no shift, unless a version
    /// that has traffic is no longer in its manifest. (`POST /v1/apply` sets the split.) Certificates are
    /// read, except where they are named as they are already stored.
    pub async fn apply(&self, files: Vec<(String, String)>, actor: &str) -> Result<WriteAnswer, ErrorBody> {
        let refused = |refusal: Refusal| api::error_body("invalid", &refusal);
        let mut documents = api::read_manifests(&files).map_err(refused)?;
        // This server's API is served later. Where several share a store, another may shift meanwhile.
        let state = self.api.registry.state();
        keep_splits(&state.world, &mut documents);
        // Certificates that are in use already were warned about when the store was loaded: a file that
        // was lost since then, or has expired, is no reason not to start again.
        let checked = tokio::task::spawn_blocking(move || {
            let asked = documents.iter().filter(|located| !certificates::is_stored(&state.world, located));
            api::check_certificates(asked).map(|()| documents)
        });
        let checked = checked.await.map_err(|e| Refusal::Store(format!("reading certificates failed: {e}")));
        let documents = checked.flatten().map_err(refused)?;
        let done = self.api.registry.write(Write::Apply(documents), actor, false).await.map_err(refused)?;
        Ok(WriteAnswer { revision: done.revision, dry_run: false, changes: done.changes, applied: None })
    }

    /// Serves until `shutdown`, then ends every stream and connection.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), StartError> {
        let Self { api, ads, api_listener, xds_listener, .. } = self;
        let stop = api.stop.clone();
        let registry = api.registry.clone();
        let stopping = {
            let (stop, registry) = (stop.clone(), registry.clone());
            async move {
                shutdown.await;
                // First: the connections that close from here on say nothing about instances.
                registry.stop();
                stop.cancel();
            }
        };
        let background = [
            tokio::spawn(Arc::clone(&api.timeline).watch(api.fleet.follow())),
            tokio::spawn(registry.expire()),
            tokio::spawn(Arc::clone(&api.access).follow()),
            tokio::spawn(stopping),
        ];
        let writer = api.registry.clone();
        let ((), served) = tokio::join!(api::serve(api_listener, api), async {
            let served = tokio::select! {
                served = ads::serve(xds_listener, ads) => served,
                () = writer.ended() => Err(io::Error::other("the registry has ended")),
            };
            // Should either end by itself, the API alone would be a lie.
            stop.cancel();
            served
        });
        background.iter().for_each(tokio::task::JoinHandle::abort);
        served.map_err(StartError::Serve)
    }
}

fn listen(
    address: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let bind = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restart finds its address free though old connections linger.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        let listener = socket.listen(4_096)?;
        let bound = listener.local_addr()?;
        Ok((listener, bound))
    };
    bind().map_err(|error| StartError::Listen { address, what, flag, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bound(directory: &std::path::Path) -> Server {
        let mut settings = ServerSettings::new(directory);
        settings.api_addr = "127.0.0.1:0".parse().unwrap();
        settings.xds_addr = settings.api_addr;
        // A registry that was dropped closes its store on its own thread.
        for _ in 0..100 {
            match Server::bind(settings.clone()).await {
                Ok(server) => return server,
                Err(StartError::Store(_)) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
                Err(error) => panic!("{error}"),
            }
        }
        panic!("the store stays in use");
    }

    fn files(text: &str) -> Vec<(String, String)> {
        vec![("shop.yaml".to_owned(), text.to_owned())]
    }

    #[tokio::test]
    async fn a_restart_undoes_no_shift() {
        let directory = std::env::temp_dir().join(format!("sluicegate-apply-{}", std::process::id()));
        let text =
            "kind: Service\nname: shop\nversions: {v1: {}, v2: {}}\nsplit: {weights: {v1: 1, v2: 0}}\n";
        let shop = || "shop".parse().unwrap();
        let shifted = config::Split::all_to("v2".parse().unwrap());
        let server = bound(&directory).await;
        server.apply(files(text), "serve -f").await.unwrap();
        let write = Write::Split { service: shop(), split: shifted.clone(), if_match: None };
        server.api.registry.write(write, "test", false).await.unwrap();
        drop(server);

        let server = bound(&directory).await;
        server.apply(files(text), "serve -f").await.unwrap();
        let state = server.api.registry.state();
        assert_eq!(state.world.split(&shop()), Some(&shifted));
        // The version that has the traffic goes: the manifest says where it goes instead.
        let only = "kind: Service\nname: shop\nversions: {v1: {}}\n";
        server.apply(files(only), "serve -f").await.unwrap();
        let state = server.api.registry.state();
        assert_eq!(state.world.split(&shop()), Some(&config::Split::all_to("v1".parse().unwrap())));
        drop(server);
        let _ = std::fs::remove_dir_all(&directory);
    }
}
