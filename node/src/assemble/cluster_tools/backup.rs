//! Metadata as lines of JSON, and back.
//!
//! The first line says what the file is, the last one that it is whole: a backup that was cut off is refused. Between
//! them, in this order: users, access keys (their secrets sealed under the cluster's secret), cold tiers (likewise),
//! and for each bucket its settings, its object versions (oldest first within a key), its unfinished uploads with their
//! parts. Fields may be added; a reader refuses a format that it does not know, and kinds of lines that it does not
//! know.
//!
//! A backup is of one moment: all of it is read in one transaction that sees what was committed before it began.
//! Clients write on meanwhile; the server keeps the older versions of rows that they change for as long as the backup
//! takes. Every chunk that a backup names was stored. Chunks of objects that were overwritten or deleted since may be
//! reclaimed: such objects come back and cannot be read; the same goes for pieces in cold tiers. Repairs, epochs and
//! reclaims are not in it; comparisons and the walk for orphans find them anew. Nor are moves between tiers: of a
//! version that does not lie where its storage class says, a move is queued as the version comes back. An object that
//! RestoreObject had brought to the cluster's disks so returns to its tier at once, and a restore that was under way
//! has to be asked for again. Pieces that were on the list of pieces to delete are forgotten, and stay in their tier.

use std::fs::File;
use std::io::{BufReader, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use holdfast_actors::ports::{Clock as _, MetadataStore, SystemClock, TierLedger};
use serde::{Deserialize, Serialize};

use super::super::data_dir::DataDir;
use super::beside::{self, Beside};
use super::{Claim, Database, Misused, Stopped, Taken, storage};
use crate::config::Config;

mod dump;
mod format;
mod load;

pub use dump::dump;
pub use load::load;

/// What to do after a restore that broke off in a cluster's database.
const BEGIN_ANEW: &str = "what was restored until then is in the database: start no node, and make the database anew, \
                          empty, before you restore again";

/// What was written or read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Users.
    pub users: u64,
    /// Access keys.
    pub keys: u64,
    /// Buckets.
    pub buckets: u64,
    /// Cold tiers.
    #[serde(default)]
    pub tiers: u64,
    /// Object versions and delete markers.
    pub versions: u64,
    /// Unfinished uploads.
    pub uploads: u64,
    /// Their parts.
    pub parts: u64,
}

impl Counts {
    /// For people.
    pub fn text(&self) -> String {
        format!(
            "{} users, {} keys, {} cold tiers, {} buckets, {} object versions, {} unfinished uploads with {} parts",
            self.users, self.keys, self.tiers, self.buckets, self.versions, self.uploads, self.parts
        )
    }
}

/// Writes a backup to a file that appears whole, mode 0600, durable on return.
///
/// # Errors
/// When the file exists or cannot be written; those of metadata.
pub async fn backup_to(config: &Config, path: &Path) -> anyhow::Result<Counts> {
    if path.exists() {
        bail!(Taken(format!("{} exists already: a backup is not written over", path.display())));
    }
    // A name that nobody knows before: the directory may be one in which others write too.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{:016x}.partial", rand::random::<u64>()));
    let temporary = path.with_file_name(name);
    let written = write_backup(config, &temporary).await;
    if written.is_err() {
        // That it is not there is no news.
        std::fs::remove_file(&temporary).ok();
    }
    let counts = written?;
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let renamed = std::fs::rename(&temporary, path);
    let durable = renamed.and_then(|()| File::open(directory)).and_then(|directory| directory.sync_all());
    durable.with_context(|| format!("write {}", path.display()))?;
    Ok(counts)
}

async fn write_backup(config: &Config, path: &Path) -> anyhow::Result<Counts> {
    let failed = || format!("write {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create_new(true).mode(0o600).open(path).with_context(failed)?;
    let mut out = std::io::BufWriter::new(file);
    let counts = backup(config, &mut out).await?;
    out.into_inner().map_err(|error| error.into_error()).and_then(|file| file.sync_all()).with_context(failed)?;
    Ok(counts)
}

/// Writes a backup of one moment. A node of a cluster may run meanwhile, a node that runs alone must be stopped.
///
/// # Errors
/// When a node that runs alone has no metadata; when the metadata of a cluster are nobody's yet; those of metadata and
/// of `out`. When the connection to the database breaks the backup fails: what followed would be of another moment.
pub async fn backup(config: &Config, out: &mut impl Write) -> anyhow::Result<Counts> {
    if !config.cluster.is_on() {
        require_metadata(&config.node.data_dir)?;
        // Nobody else writes: the directory is locked.
        let data_dir = DataDir::open(&config.node.data_dir)?;
        let Database { store: metadata, ledger } = super::open_database(config, &data_dir, Claim::Require).await?;
        let counts = dump(&*metadata, &*ledger, out).await;
        metadata.close().await;
        return counts;
    }
    // The database is the servers' own, and the data directory of a running node is not needed.
    let metadata = super::zookeeper::open_mysql(config, 1).await?;
    // A scheduled backup of a database that is just being restored would take the place of a whole one.
    if let Err(refused) = storage::require_owner(&metadata, &config.metadata.url).await {
        metadata.close().await;
        return Err(refused);
    }
    let snapshot = metadata.snapshot().await.context("begin a snapshot of the metadata")?;
    let counts = dump(&snapshot, &snapshot, out).await;
    snapshot.close().await;
    metadata.close().await;
    counts
}

/// A directory without metadata is another one than was meant, and opening it would make what is missing: a backup of
/// nothing would be found out when it is needed.
fn require_metadata(data_dir: &Path) -> anyhow::Result<()> {
    let path = data_dir.join("metadata.sqlite");
    if path.try_exists().with_context(|| format!("look for {}", path.display()))? {
        return Ok(());
    }
    bail!(Misused(format!(
        "there is no {}, and so nothing to save: name the node's configuration with --config or its data directory with \
         --data-dir",
        path.display()
    )))
}

/// Puts a backup into metadata that is empty. All of the backup is looked at before anything is written. A database
/// becomes the cluster's at the end: no node starts with one that this was interrupted at, and takes the chunks of all
/// the rest for left over. For the same reason that of a node that runs alone is filled beside its place ([`Beside`]).
///
/// # Errors
/// When a node of the cluster runs, or another tool that fills its metadata; when metadata holds buckets, the backup is
/// damaged or cut off; those of metadata.
pub async fn restore(config: &Config, from: &mut (impl Read + Seek)) -> anyhow::Result<Counts> {
    load::check(from).context("nothing was restored")?;
    from.rewind().context("read the backup again")?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    let mut stopped =
        super::zookeeper::require_stopped(config, data_dir.node_id()).await.context("nothing was restored")?;
    if !config.cluster.is_on() {
        let counts = restore_alone(&data_dir, from).await.context("nothing was restored")?;
        data_dir.end_filling()?;
        return Ok(counts);
    }
    let Database { store: metadata, ledger } = super::open_database(config, &data_dir, Claim::Later).await?;
    let counts = restore_cluster(config, &data_dir, (&*metadata, &*ledger), from, stopped.as_mut()).await;
    metadata.close().await;
    // Also after an error: what it did stays.
    let invalidated = super::zookeeper::invalidate_cache(config).await;
    let counts = counts?;
    invalidated?;
    data_dir.end_filling()?;
    if let Some(stopped) = stopped {
        stopped.end().await;
    }
    Ok(counts)
}

async fn restore_alone(data_dir: &DataDir, from: &mut impl Read) -> anyhow::Result<Counts> {
    let path = data_dir.file("metadata.sqlite");
    if path.exists() {
        // Closed afterwards also to have its log written into it.
        let metadata = beside::open(&path).await?;
        let used = load::refuse_used(&metadata).await;
        metadata.close().await;
        used.map_err(|error| {
            let path = path.display();
            anyhow::anyhow!(
                "{error:#}. Where it is to take their place, move {path} away, with {path}-wal and {path}-shm"
            )
        })?;
    }
    let beside = Beside::begin(&path)?;
    let metadata = beside.open().await?;
    let counts = match metadata.raise_sequences(SystemClock.now_ms()).await {
        Ok(()) => load(&metadata, &metadata, from).await,
        Err(error) => Err(error).context("raise sequence numbers"),
    };
    metadata.close().await;
    let counts = counts?;
    beside.put_in_place()?;
    Ok(counts)
}

async fn restore_cluster(
    config: &Config,
    data_dir: &DataDir,
    (metadata, ledger): (&dyn MetadataStore, &dyn TierLedger),
    from: &mut impl Read,
    stopped: Option<&mut Stopped>,
) -> anyhow::Result<Counts> {
    load::refuse_used(metadata).await?;
    // No node starts with a database that is nobody's, and so one of an older version does not, either.
    if metadata.claim(None).await.context("ask whose the metadata is")?.is_some() {
        data_dir.begin_filling()?;
        metadata.disclaim().await.context("keep nodes from the metadata until all of it is there")?;
    }
    // Before anything is in it: what the database loses from here on is of the backup, and has to be known.
    metadata.forget_lost_commits().await.context("forget that the database has lost commits")?;
    let loaded = Stopped::during(stopped, load(metadata, ledger, from)).await.context(BEGIN_ANEW);
    // Also where it broke off: a failover may be the reason.
    let has_lost = metadata.lost_commits().await.context("ask whether the database has lost commits meanwhile");
    if matches!(has_lost, Ok(true)) {
        // That it is nobody's may be among them.
        metadata.disclaim().await.context("keep nodes from the metadata").context(BEGIN_ANEW)?;
    }
    let counts = loaded?;
    if has_lost? {
        bail!("the database has lost commits while it was filled: {BEGIN_ANEW}");
    }
    if let Some(cluster) = data_dir.cluster_id()? {
        storage::claim(metadata, cluster, &config.metadata.url).await?;
    }
    Ok(counts)
}

/// The same for what can be read once only: it is kept in the data directory meanwhile, under no name.
///
/// # Errors
/// As [`restore`]; when there is no room for the backup.
pub async fn restore_stream(config: &Config, from: &mut impl Read) -> anyhow::Result<Counts> {
    let path = config.node.data_dir.join("restore.partial");
    let failed = || format!("keep the backup in {}", path.display());
    let mut options = std::fs::OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&config.node.data_dir).with_context(failed)?;
    let mut file = options.open(&path).with_context(failed)?;
    std::fs::remove_file(&path).with_context(failed)?;
    std::io::copy(from, &mut file).with_context(failed)?;
    file.rewind().with_context(failed)?;
    restore(config, &mut BufReader::new(file)).await
}

#[cfg(test)]
mod tests {
    use holdfast_actors::ports::metadata::MetadataUpkeep as _;
    use holdfast_protocol::ClusterId;
    use sqlx::{Connection as _, SqliteConnection};

    use super::*;
    use crate::metadata::{SqliteMetadataStore, SqliteOptions};

    #[tokio::test]
    async fn metadata_that_are_nobodys_yet_are_half_restored_and_not_saved() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteMetadataStore::open(&dir.path().join("metadata"), SqliteOptions::default()).await.unwrap();
        let refused = storage::require_owner(&store, "a place").await.unwrap_err().to_string();
        assert!(refused.contains("half of it"), "{refused}");
        storage::claim(&store, ClusterId([1; 16]), "a place").await.unwrap();
        storage::require_owner(&store, "a place").await.unwrap();
        store.close().await;
    }

    #[tokio::test]
    async fn no_node_starts_with_half_of_a_restore_into_what_is_the_clusters_already() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteMetadataStore::open(&dir.path().join("metadata"), SqliteOptions::default()).await.unwrap();
        let data_dir = DataDir::open(&dir.path().join("node")).unwrap();
        let config = Config::default();
        let broken_off = async || {
            let mut from: &[u8] = b"no backup";
            let restored = restore_cluster(&config, &data_dir, (&store, &store), &mut from, None).await;
            assert!(restored.is_err(), "{restored:?}");
            assert_eq!(store.claim(None).await.unwrap(), None, "other nodes would start");
        };
        broken_off().await;
        data_dir.refuse_unfinished().expect("what is nobody's tells so by itself");
        storage::claim(&store, ClusterId([1; 16]), "a place").await.unwrap();
        broken_off().await;
        assert!(data_dir.refuse_unfinished().is_err());
        store.close().await;
    }

    /// What a database has that is back without its last commits, that it is nobody's among them.
    async fn lose_commits(url: String) {
        let mut conn = SqliteConnection::connect(&url).await.unwrap();
        let lost = "INSERT INTO lock_fences (name, token) VALUES (CAST('SET-BACK' AS BLOB), 1); \
                    INSERT OR IGNORE INTO claims (place, cluster) VALUES (1, x'01010101010101010101010101010101')";
        sqlx::raw_sql(lost).execute(&mut conn).await.unwrap();
        conn.close().await.unwrap();
    }

    /// A backup amid which the database goes back to a replica that lags.
    struct Losing<'a> {
        backup: &'a [u8],
        url: Option<String>,
    }

    impl Read for Losing<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            if let Some(url) = self.url.take() {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                std::thread::spawn(move || runtime.block_on(lose_commits(url))).join().unwrap();
            }
            self.backup.read(buf)
        }
    }

    #[tokio::test]
    async fn a_restore_amid_which_the_database_lost_commits_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metadata");
        let url = format!("sqlite:{}", path.display());
        let store = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.unwrap();
        let data_dir = DataDir::open(&dir.path().join("node")).unwrap();
        let cluster = ClusterId([1; 16]);
        data_dir.set_cluster_id(cluster).unwrap();
        let config = Config::default();
        let mut backup = Vec::new();
        dump(&store, &store, &mut backup).await.unwrap();

        lose_commits(url.clone()).await;
        let mut whole = Losing { backup: &backup, url: None };
        restore_cluster(&config, &data_dir, (&store, &store), &mut whole, None).await.unwrap();
        assert!(!store.lost_commits().await.unwrap(), "what was lost before is not missed");
        assert_eq!(store.claim(None).await.unwrap(), Some(cluster));

        let mut cut_off = Losing { backup: &[], url: Some(url.clone()) };
        let restored = restore_cluster(&config, &data_dir, (&store, &store), &mut cut_off, None).await;
        let refused = format!("{:#}", restored.unwrap_err());
        assert!(refused.contains("anew") && !refused.contains("lost commits"), "{refused}");
        assert_eq!(store.claim(None).await.unwrap(), None, "nodes would start");

        let mut losing = Losing { backup: &backup, url: Some(url) };
        let restored = restore_cluster(&config, &data_dir, (&store, &store), &mut losing, None).await;
        let refused = format!("{:#}", restored.unwrap_err());
        assert!(refused.contains("lost commits") && refused.contains("anew"), "{refused}");
        assert!(store.lost_commits().await.unwrap(), "orphans would be given up");
        assert_eq!(store.claim(None).await.unwrap(), None, "nodes would start");
        store.close().await;
    }

    #[tokio::test]
    async fn a_directory_without_metadata_is_no_node_to_save() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backup");
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("node");
        let refused = backup_to(&config, &path).await.unwrap_err().to_string();
        assert!(refused.contains("nothing to save") && refused.contains("--data-dir"), "{refused}");
        assert!(!path.exists() && !config.node.data_dir.exists());
    }

    #[tokio::test]
    async fn a_backup_is_not_written_where_somebody_else_says() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (dir.path().join("backup.json"), dir.path().join("kept"));
        std::fs::write(&kept, "of somebody else").unwrap();
        for name in ["backup.partial", "backup.json.partial"] {
            std::os::unix::fs::symlink(&kept, dir.path().join(name)).unwrap();
        }
        let mut config = Config::default();
        config.node.data_dir = dir.path().join("node");
        // Whether there is something to save does not matter here.
        drop(backup_to(&config, &path).await);
        assert_eq!(std::fs::read_to_string(&kept).unwrap(), "of somebody else");
        let left = std::fs::read_dir(dir.path()).unwrap().flatten();
        let left: Vec<_> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
        assert_eq!(left.iter().filter(|name| name.ends_with(".partial")).count(), 2, "{left:?}");
    }
}
