//! The last good configuration on disk: what a proxy starts from when no server answers.
//!
//! Format: a line with a magic word and a version, a line with the checksum of the rest, then one
//! length-delimited `DeltaDiscoveryResponse` a type. Written to a temporary file, synced, renamed.
//!
//! The secrets of listeners are in it, or a gateway would not come back without a server; so the file is
//! its owner's alone (mode 0600), from its first byte.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use config::xds::{ResourceType, content_version};
use envoy_types::pb::{
    envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource},
    google::protobuf::Any,
};
use prost::Message;
use tokio::sync::watch;

use super::cache::{ByType, HeldMap};
use crate::metrics::XdsStats;

const MAGIC: &str = "sluicegate-last-good 1";
/// Pause after a write: at least the first, at most the last, between them [`PAUSE_FACTOR`] times
/// what the write took, so that a large state under churn does not keep the disk busy.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
const PAUSE_FACTOR: u32 = 10;
/// Largest file that is read, in bytes.
const MAX_SIZE: u64 = 1 << 30;

/// Why a file was not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// There is none, or it cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Another program's, another version's, or damaged.
    #[error("not a last-good file of this version, or damaged: {0}")]
    Foreign(&'static str),
}

/// Hands states to the task that writes them.
pub(crate) struct Saver {
    states: watch::Sender<Option<ByType<HeldMap>>>,
    /// Dropping it ends the pause: the last state is written at once.
    _alive: watch::Sender<()>,
}

impl Saver {
    /// A saver to `path`, and the task that does the writing; it ends after the saver is dropped and
    /// the last state is written.
    pub(crate) fn new(path: PathBuf, stats: Arc<XdsStats>) -> (Self, impl Future<Output = ()> + Send) {
        let (states, mut receiver) = watch::channel(None);
        let (alive, mut gone) = watch::channel(());
        let write = async move {
            let stale = path.clone();
            // Best effort: they only take space.
            let _ = tokio::task::spawn_blocking(move || remove_stale(&stale)).await;
            while receiver.changed().await.is_ok() {
                let state: Option<ByType<HeldMap>> = receiver.borrow_and_update().clone();
                let Some(state) = state else { continue };
                let path = path.clone();
                let began = Instant::now();
                let written = tokio::task::spawn_blocking(move || save(&path, &state)).await;
                match written {
                    Ok(Ok(())) => _ = stats.last_good_writes.fetch_add(1, Ordering::Relaxed),
                    Ok(Err(error)) => {
                        stats.last_good_errors.fetch_add(1, Ordering::Relaxed);
                        tracing::warn!("the last good configuration could not be saved: {error}");
                    }
                    Err(error) => tracing::error!("saving the last good configuration failed: {error}"),
                }
                let _ = tokio::time::timeout(pause_after(began.elapsed()), gone.changed()).await;
            }
        };
        (Self { states, _alive: alive }, write)
    }

    /// Saves `state` soon; a later one replaces it.
    pub(crate) fn save(&self, state: ByType<HeldMap>) {
        self.states.send_replace(Some(state));
    }
}

fn pause_after(write: Duration) -> Duration {
    write.saturating_mul(PAUSE_FACTOR).clamp(PAUSE.0, PAUSE.1)
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

fn temporary_of(path: &Path, process: u32) -> PathBuf {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{process}.tmp"));
    temporary.into()
}

/// Removes what processes left that were killed while they wrote `path`.
fn remove_stale(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory_of(path))? {
        let name = entry?.file_name();
        let process = name.to_str().and_then(|name| {
            let own = path.file_name()?.to_str()?;
            name.strip_prefix(own)?.strip_prefix('.')?.strip_suffix(".tmp")?.parse::<u32>().ok()
        });
        // Ours cannot be in use yet: nothing was written. Another one's may.
        let runs = |process: u32| {
            process != std::process::id() && Path::new("/proc").join(process.to_string()).exists()
        };
        if let Some(process) = process.filter(|process| !runs(*process)) {
            fs::remove_file(temporary_of(path, process))?;
        }
    }
    Ok(())
}

/// Writes `state` to `path` so that a reader sees the old file or the new one.
fn save(path: &Path, state: &ByType<HeldMap>) -> io::Result<()> {
    let directory = directory_of(path);
    fs::create_dir_all(directory)?;
    let temporary = temporary_of(path, std::process::id());
    let written = write_new(&temporary, &encode(state)).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // Best effort: the error that matters is the one returned.
        let _ = fs::remove_file(&temporary);
    }
    written?;
    // The rename itself is durable only once the directory is.
    File::open(directory)?.sync_all()
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    // Another one's permissions would stay.
    let _ = fs::remove_file(path);
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

fn encode(state: &ByType<HeldMap>) -> Vec<u8> {
    let mut body = Vec::new();
    for (kind, held) in ResourceType::ALL.into_iter().zip(state) {
        let resources = held.iter().map(|(name, held)| Resource {
            name: name.to_string(),
            version: held.version.to_string(),
            resource: Some(Any { type_url: kind.type_url().to_owned(), value: held.value.to_vec() }),
            ..Default::default()
        });
        let response = DeltaDiscoveryResponse {
            type_url: kind.type_url().to_owned(),
            resources: resources.collect(),
            ..Default::default()
        };
        body.extend(response.encode_length_delimited_to_vec());
    }
    let mut content = format!("{MAGIC}\n{}\n", content_version(&body)).into_bytes();
    content.extend(body);
    content
}

/// Reads what [`Saver`] wrote.
///
/// # Errors
/// When there is no file, or it is not one of ours; never a panic, whatever it contains.
pub(crate) fn load(path: &Path) -> Result<Vec<(ResourceType, Resource)>, LoadError> {
    if fs::metadata(path)?.len() > MAX_SIZE {
        return Err(LoadError::Foreign("it is too large"));
    }
    decode(&fs::read(path)?).map_err(LoadError::Foreign)
}

fn decode(content: &[u8]) -> Result<Vec<(ResourceType, Resource)>, &'static str> {
    let rest = content.strip_prefix(MAGIC.as_bytes()).ok_or("it begins otherwise")?;
    let rest = rest.strip_prefix(b"\n").ok_or("it begins otherwise")?;
    let (checksum, mut body) = rest.split_at_checked(17).ok_or("it is cut short")?;
    if checksum[16] != b'\n' || checksum[..16] != *content_version(body).as_bytes() {
        return Err("the checksum does not match");
    }
    let mut resources = Vec::new();
    while !body.is_empty() {
        let response = DeltaDiscoveryResponse::decode_length_delimited(&mut body)
            .map_err(|_| "it does not contain valid messages")?;
        if let Some(kind) = ResourceType::from_type_url(&response.type_url) {
            resources.extend(response.resources.into_iter().map(|resource| (kind, resource)));
        }
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::xds::cache::Held;

    fn state() -> ByType<HeldMap> {
        let mut state: ByType<HeldMap> = Default::default();
        for (i, held) in state.iter_mut().enumerate() {
            let value = Bytes::from(vec![i as u8; 100]);
            held.insert(format!("r{i}").into(), Held { version: format!("{i:016x}").into(), value });
        }
        state
    }

    #[test]
    fn it_reads_back_what_it_writes() {
        let read = decode(&encode(&state())).unwrap();
        let names: Vec<_> = read.iter().map(|(kind, r)| (*kind, r.name.as_str(), r.version.len())).collect();
        assert_eq!(
            names,
            [
                (ResourceType::Cluster, "r0", 16),
                (ResourceType::LoadAssignment, "r1", 16),
                (ResourceType::Listener, "r2", 16),
                (ResourceType::RouteConfiguration, "r3", 16),
                (ResourceType::LbEndpoint, "r4", 16),
                (ResourceType::Secret, "r5", 16),
            ]
        );
    }

    #[test]
    fn no_damage_is_taken_for_a_configuration() {
        let good = encode(&state());
        let seed = 9;
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..5_000 {
            let mut bad = good.clone();
            let at = rng.usize(0..bad.len());
            bad[at] ^= 1 << rng.u8(0..8);
            assert!(decode(&bad).is_err(), "seed {seed}: bit flip at {at}");
            assert!(decode(&good[..at]).is_err(), "seed {seed}: cut at {at}");
        }
        assert!(decode(b"").is_err());
    }

    #[test]
    fn a_slow_write_is_followed_by_a_longer_pause() {
        let pauses = [1, 50, 60_000].map(|ms| pause_after(Duration::from_millis(ms)));
        assert_eq!(pauses, [PAUSE.0, Duration::from_millis(500), PAUSE.1]);
    }

    #[tokio::test]
    async fn what_killed_processes_left_is_removed_and_the_last_state_is_written() {
        let directory = std::env::temp_dir().join(format!("sluicegate-stale-{}", fastrand::u64(..)));
        fs::create_dir(&directory).unwrap();
        let path = directory.join("last-good");
        let init = temporary_of(&path, 1); // of a process that runs
        let stale = temporary_of(&path, u32::MAX); // of none
        let foreign = directory.join("other.7.tmp");
        for file in [&init, &stale, &foreign] {
            fs::write(file, "x").unwrap();
        }
        let (saver, saving) = Saver::new(path.clone(), Arc::default());
        saver.save(state());
        drop(saver);
        saving.await;
        assert_eq!([&path, &init, &stale, &foreign].map(|file| file.exists()), [true, true, false, true]);
        assert_eq!(load(&path).unwrap().len(), 6);
        // Keys are in it.
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_dir_all(&directory).unwrap();
    }
}
