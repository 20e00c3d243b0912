//! Disks and the metadata of a node that runs alone, opened.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail};
use holdfast_actors::ports::{AccessLog, Journal, MetadataStore, Outbox, TierLedger};
use holdfast_protocol::ClusterId;
use holdfast_storage::buf::{BufferPool, BufferPoolConfig, LARGE_BYTES, SMALL_BYTES};
use holdfast_storage::finding::FindingSink;
use holdfast_storage::io::{Preference, choose};
use holdfast_storage::{DiskSet, Engine, EngineConfig};

use super::data_dir::DataDir;
use super::known_disks::KnownDisks;
use super::limits;
use crate::config::{Config, IoMode};
use crate::metadata::{CacheOptions, CachedMetadataStore, SqliteMetadataStore, SqliteOptions};

/// What a database needs to be opened: its shared memory, and the beginning of its log.
const DATABASE_ROOM_BYTES: u64 = 256 << 10;

/// Metadata, and what is kept beside it in the same database. Cheap to clone.
#[derive(Clone)]
pub(super) struct Metadata {
    pub(super) store: Arc<dyn MetadataStore>,
    pub(super) outbox: Arc<dyn Outbox>,
    pub(super) journal: Arc<dyn Journal>,
    pub(super) tiers: Arc<dyn TierLedger>,
    pub(super) reads: Arc<dyn AccessLog>,
    /// Whether a bucket was ever made in it.
    pub(super) had_buckets: bool,
}

/// Chunks that metadata does not know are orphans, and deleted: with an empty database that would be all of them.
pub(super) fn refuse_lost_metadata(disks: &DiskSet, place: &str) -> anyhow::Result<()> {
    let chunks: u64 = disks.stats().iter().map(|disk| disk.chunks).sum();
    anyhow::ensure!(
        chunks == 0,
        "the disks hold {chunks} chunks, but the metadata in {place} never had a bucket: put the metadata back that belongs to \
         these disks, rebuild it with `holdfast cluster rebuild-metadata`, or name empty disk directories"
    );
    Ok(())
}

pub(super) async fn open_sqlite(path: &Path) -> anyhow::Result<Metadata> {
    let store = SqliteMetadataStore::open(path, SqliteOptions::default())
        .await
        .with_context(|| format!("open metadata {}{}", path.display(), want_of_room(path)))?;
    let had_buckets = store.had_buckets().await.with_context(|| format!("read metadata {}", path.display()))?;
    let store = Arc::new(store);
    let cached = Arc::new(CachedMetadataStore::new(store.clone(), &CacheOptions::default()));
    let (outbox, journal, tiers) = (store.clone(), store.clone(), store.clone());
    Ok(Metadata { store: cached, outbox, journal, tiers, reads: store, had_buckets })
}

/// What is added to an error of the database where its file system has no room: SQLite may tell of that as of a broken
/// disk.
fn want_of_room(path: &Path) -> &'static str {
    let free = path.parent().and_then(|dir| rustix::fs::statvfs(dir).ok());
    let free_bytes = free.map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
    if free_bytes.is_some_and(|free| free < DATABASE_ROOM_BYTES) {
        " (its file system is full, make room there)"
    } else {
        ""
    }
}

/// The disks of a node.
pub(super) struct Storage {
    pub(super) disks: DiskSet,
    /// For rings on data-plane threads, where io_uring is used.
    pub(super) rings: Option<Arc<BufferPool>>,
}

/// Opens every disk, as those of the node whose data directory it is, in `cluster`; what is found damaged goes to
/// `on_finding`.
pub(super) async fn open_disks(
    config: &Config,
    cluster: [u8; 16],
    data_dir: &DataDir,
    on_finding: Option<FindingSink>,
) -> anyhow::Result<Storage> {
    let storage = &config.storage;
    let (large, small) = (storage.large_buffers as usize, storage.small_buffers as usize);
    let pool_bytes = (large * LARGE_BYTES + small * SMALL_BYTES) as u64;
    limits::check_locked_memory(pool_bytes);
    let pool = BufferPool::new(BufferPoolConfig { large_count: large, small_count: small })
        .with_context(|| format!("map {pool_bytes} bytes of buffers"))?;
    let preference = match storage.io {
        IoMode::Auto => Preference::Auto,
        IoMode::Uring => Preference::Uring,
        IoMode::Std => Preference::Std,
    };
    let chosen = choose(&pool, preference).context("reach the disks by storage.io")?;
    let (dirs, known) = (config.node.disk_dirs(), KnownDisks::read(data_dir)?);
    dirs.iter().try_for_each(|dir| known.check(dir))?;
    known.warn_of_unnamed(&dirs);
    let opening = dirs.iter().map(|dir| {
        let mut engine = EngineConfig::new(dir.clone(), cluster, data_dir.id());
        engine.on_finding.clone_from(&on_finding);
        engine.segment_size_bytes = storage.segment_size.get();
        engine.reserve_bytes = storage.reserve.get();
        engine.shares_buffers = dirs.len() > 1;
        engine.unresponsive_after = storage.unresponsive_after.nonzero();
        engine.fence_unresponsive_after = storage.fence_unresponsive_after.nonzero();
        let (io, pool) = (chosen.io.clone(), pool.clone());
        async move {
            let opened = Engine::open(engine, io, pool).await;
            // What recovery found is logged by the engine.
            let (engine, _report) = opened.with_context(|| format!("open disk {}", dir.display()))?;
            Ok::<_, anyhow::Error>(engine)
        }
    });
    let engines = futures::future::try_join_all(opening).await?;
    known.remember(dirs.iter().map(|dir| &**dir))?;
    Ok(Storage { disks: DiskSet::new(engines), rings: chosen.rings })
}

/// Refuses metadata that is another cluster's or nobody's. `place` names it for the operator.
///
/// # Errors
/// When it is not that of `cluster`; those of metadata.
pub(super) async fn require_claim(metadata: &dyn MetadataStore, cluster: ClusterId, place: &str) -> anyhow::Result<()> {
    match metadata.claim(None).await.with_context(|| format!("ask whose metadata {place} is"))? {
        Some(found) if found == cluster => Ok(()),
        Some(found) => Err(foreign(place, found, cluster)),
        None => bail!(
            "the metadata in {place} belongs to no cluster, so it is not that of cluster {cluster}: correct metadata.url, or put a \
             backup back with `holdfast cluster restore-metadata`; if `restore-metadata` or `rebuild-metadata` broke off, make it again"
        ),
    }
}

/// Refuses metadata that is nobody's: what fills them has not come to its end.
///
/// # Errors
/// When they are; those of metadata.
pub(super) async fn require_owner(metadata: &dyn MetadataStore, place: &str) -> anyhow::Result<()> {
    match metadata.claim(None).await.with_context(|| format!("ask whose metadata {place} is"))? {
        Some(_) => Ok(()),
        None => bail!(
            "the metadata in {place} belongs to no cluster: if `holdfast cluster restore-metadata` or `rebuild-metadata` is at work, or \
             broke off, there is half of it only"
        ),
    }
}

/// Makes metadata the cluster's, if it is nobody's yet.
///
/// # Errors
/// When it is another cluster's; those of metadata.
pub(super) async fn claim(metadata: &dyn MetadataStore, cluster: ClusterId, place: &str) -> anyhow::Result<()> {
    match metadata.claim(Some(cluster)).await.with_context(|| format!("claim the metadata in {place}"))? {
        Some(found) if found != cluster => Err(foreign(place, found, cluster)),
        _ => Ok(()),
    }
}

/// Refuses metadata that is another cluster's.
///
/// # Errors
/// When it is; those of metadata.
pub(super) async fn refuse_foreign(
    metadata: &dyn MetadataStore,
    cluster: ClusterId,
    place: &str,
) -> anyhow::Result<()> {
    match metadata.claim(None).await.with_context(|| format!("ask whose metadata {place} is"))? {
        Some(found) if found != cluster => Err(foreign(place, found, cluster)),
        _ => Ok(()),
    }
}

fn foreign(place: &str, found: ClusterId, cluster: ClusterId) -> anyhow::Error {
    anyhow!(
        "the metadata in {place} belongs to cluster {found}, not to {cluster}: each cluster needs a database of its own, see \
         metadata.url"
    )
}

/// Whether anybody ever worked with this metadata: a database that was lost or confused with another has not even
/// users.
///
/// # Errors
/// Those of metadata.
pub(super) async fn was_used(metadata: &dyn MetadataStore) -> anyhow::Result<bool> {
    Ok(!metadata.list_buckets(None, None, 1).await?.is_empty() || !metadata.list_users(None, 1).await?.is_empty())
}
