//! What is done to a node that is stopped: make a cluster, join one, replace its authority, save, restore and rebuild
//! metadata.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use holdfast_actors::ports::coordination::{ClusterIdentity, Coordination, CoordinationError};
use holdfast_actors::ports::{Clock, MetadataStore, SystemClock, TierLedger};
use holdfast_protocol::cluster::{LayoutDocument, REPLICATION_FACTOR_MAX, SHARD_COUNT_MAX};
use holdfast_protocol::{ClusterId, NodeId};

use super::data_dir::DataDir;
use super::{storage, vault, zookeeper};
use crate::config::Config;
use crate::metadata::{SqliteMetadataStore, SqliteOptions};
use crate::pki;

mod backup;
mod beside;
mod rebuild;
mod stopped;

pub use backup::{Counts, backup, backup_to, dump, load, restore, restore_stream};
pub use rebuild::{RebuildOptions, RebuildReport, from_chunks, rebuild};
pub(super) use stopped::Stopped;

/// What a tool would make is there already; in words for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Taken(pub String);

/// A tool was asked for what cannot be, or its configuration lacks what it needs; in words for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misused(pub String);

/// A node of a cluster, as a tool made it.
pub struct Enrolled {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Makes a cluster, with this node as its first: certificate authority and secret in the data directory, then the
/// identity in ZooKeeper. A crash in between leaves a data directory whose cluster does not exist yet; the next try
/// makes that one.
///
/// # Errors
/// When the node holds data or belongs to another cluster, when the place in ZooKeeper is taken, when a service cannot
/// be reached.
pub async fn init(config: &Config, shards: u32, replicas: u32) -> anyhow::Result<Enrolled> {
    need_cluster(config)?;
    check_counts(shards, replicas)?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    adopt(&data_dir)?;
    let mut identity = ClusterIdentity::new(shards, SystemClock.now_ms());
    let coordination = zookeeper::coordinate(config).await?;
    match coordination.cluster().await {
        Err(CoordinationError::NotFound(_)) => {}
        Ok(found) if data_dir.cluster_id()? == Some(found.id) => {
            bail!(Taken(format!("this node belongs to cluster {} already: start it with `holdfast node`", found.id)))
        }
        Ok(found) => bail!(Taken(format!(
            "there is cluster {} at {} already: join it with `holdfast cluster join`, or choose another path in \
             cluster.zookeeper",
            found.id, config.cluster.zookeeper
        ))),
        Err(error) => return Err(error).context("look whether there is a cluster already"),
    }
    match data_dir.cluster_id()? {
        Some(begun) => {
            refuse_anew(config, begun)?;
            identity.id = begun;
        }
        None => {
            refuse_data(config, &data_dir)?;
            pki::init_cluster(&config.node.data_dir, data_dir.node_id(), identity.id)?;
            adopt(&data_dir)?;
        }
    }
    let _made = vault::open(&data_dir.file("node.secret"))?;
    // Now rather than at the first start: whoever makes the cluster is there to read what is wrong with the database.
    let metadata = zookeeper::open_metadata(config, 1).await?;
    let claimed = storage::claim(&*metadata, identity.id, &config.metadata.url).await;
    metadata.close().await;
    claimed?;
    let created = coordination.create_cluster(&identity, &LayoutDocument::new(replicas)).await;
    coordination.close().await;
    created.with_context(|| format!("make the cluster at {}", config.cluster.zookeeper))?;
    Ok(Enrolled { cluster: identity.id, node: data_dir.node_id() })
}

/// Gives a ZooKeeper that has lost the cluster of this node the cluster once more: its identity, and a layout without
/// nodes. Shards are placed anew then, under the first epochs, so the database forgets the ones it knows. What lies on
/// nodes that are no members any more is copied to those that are before it goes.
///
/// Run again after a crash, it goes on.
///
/// # Errors
/// When this node was never one of a cluster, when one is there, when somebody is connected to the database, when that
/// is not this cluster's or knows another number of shards, when a service cannot be reached.
pub async fn init_again(config: &Config, shards: u32, replicas: u32) -> anyhow::Result<Enrolled> {
    need_cluster(config)?;
    check_counts(shards, replicas)?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    adopt(&data_dir)?;
    let Some(cluster) = data_dir.cluster_id()? else {
        bail!("this node was never one of a cluster: run this on one that was, or make a cluster without --again");
    };
    let coordination = zookeeper::coordinate(config).await?;
    match coordination.cluster().await {
        Err(CoordinationError::NotFound(_)) => {}
        Ok(found) => {
            bail!(Taken(format!("cluster {} is at {}: it is not lost", found.id, config.cluster.zookeeper)))
        }
        Err(error) => return Err(error).context("look whether there is a cluster"),
    }
    // A node that runs has another tree than this one: two clusters would work with one database.
    let others = zookeeper::connected_to_metadata(config).await?;
    if !others.is_empty() {
        bail!(
            "there are connections to {} ({}): stop all nodes, and look whether cluster.zookeeper names the place where they \
             had their cluster; what is no node's has to be ended, too: see \"Lose ZooKeeper\" in docs/operations.md",
            config.metadata.url,
            others.join(", ")
        );
    }
    let metadata = zookeeper::open_metadata(config, 1).await?;
    let forgotten = match storage::require_claim(&*metadata, cluster, &config.metadata.url).await {
        Ok(()) => metadata.forget_epochs(shards).await.context("forget the epochs of shards"),
        Err(refused) => Err(refused),
    };
    metadata.close().await;
    if let Some(known) = forgotten? {
        bail!(
            "the database knows {known} shards of cluster {cluster}, which stay as many for ever: give --shards {known}"
        );
    }
    let identity = ClusterIdentity { id: cluster, ..ClusterIdentity::new(shards, SystemClock.now_ms()) };
    let created = coordination.create_cluster(&identity, &LayoutDocument::new(replicas)).await;
    coordination.close().await;
    created.with_context(|| format!("make the cluster at {}", config.cluster.zookeeper))?;
    Ok(Enrolled { cluster, node: data_dir.node_id() })
}

fn check_counts(shards: u32, replicas: u32) -> anyhow::Result<()> {
    if !(1..=SHARD_COUNT_MAX).contains(&shards) {
        bail!(Misused(format!("{shards} shards: a cluster has 1 to {SHARD_COUNT_MAX}")));
    }
    if !(1..=REPLICATION_FACTOR_MAX).contains(&replicas) {
        bail!(Misused(format!("{replicas} replicas: a shard has 1 to {REPLICATION_FACTOR_MAX}")));
    }
    Ok(())
}

/// Makes this node one of the cluster that the token is of.
///
/// # Errors
/// When the node holds data or belongs to another cluster; when the token is not good, or whoever made it cannot be
/// reached.
pub async fn join(config: &Config, token: &str) -> anyhow::Result<Enrolled> {
    need_cluster(config)?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    adopt(&data_dir)?;
    if let Some(cluster) = data_dir.cluster_id()? {
        bail!(Taken(format!("this node belongs to cluster {cluster} already: start it, or use another node.data_dir")));
    }
    refuse_data(config, &data_dir)?;
    let token: pki::enrol::Token = token.parse()?;
    let joined = pki::enrol::join(data_dir.path(), data_dir.node_id(), &token).await;
    let cluster = joined.context("join the cluster")?;
    adopt(&data_dir)?;
    Ok(Enrolled { cluster, node: data_dir.node_id() })
}

/// Replaces the certificate authority of this node's cluster, so that nobody is let in any more by what the one before
/// signed, or by its key. Each node that is to stay has to be given what this makes ([`authority_files`]); until then
/// it is a stranger to this one. Nothing else of the cluster changes: not its identity, nor its secret.
///
/// Run again after a crash, it begins anew.
///
/// # Errors
/// When the node belongs to no cluster, when it runs, when its files cannot be written.
pub fn new_authority(config: &Config) -> anyhow::Result<Enrolled> {
    need_cluster(config)?;
    let data_dir = DataDir::open(&config.node.data_dir)?;
    // Not read from the certificates, which a crash of this may have left without each other.
    let Some(cluster) = data_dir.cluster_id()? else {
        bail!("this node belongs to no cluster: there is no authority to replace");
    };
    pki::replace_authority(data_dir.path(), cluster).context("replace the cluster's authority")?;
    Ok(Enrolled { cluster, node: data_dir.node_id() })
}

/// The files of the authority: its certificate, and its key.
pub fn authority_files(config: &Config) -> [PathBuf; 2] {
    pki::AUTHORITY_FILES.map(|name| config.node.data_dir.join(pki::files::CLUSTER_DIR).join(name))
}

/// Takes the cluster that the certificates are of for the node's: they are what is written first.
pub(super) fn adopt(data_dir: &DataDir) -> anyhow::Result<()> {
    match pki::cluster_of(data_dir.path())? {
        Some(cluster) => {
            // A join that was interrupted is completed: the secret may still have to be put into its place.
            pki::files::settle(data_dir.path())?;
            data_dir.set_cluster_id(cluster)
        }
        None => Ok(()),
    }
}

fn need_cluster(config: &Config) -> anyhow::Result<()> {
    if config.cluster.is_on() {
        return Ok(());
    }
    bail!(Misused("no cluster is configured: set cluster.zookeeper and metadata.url".into()))
}

/// Disks are of one cluster for good, and a node that ran alone was its own: its objects would be lost to the cluster.
fn refuse_data(config: &Config, data_dir: &DataDir) -> anyhow::Result<()> {
    let used = config.node.disk_dirs().into_iter().find(|dir| holds_files(dir));
    if let Some(dir) = used {
        bail!(
            "{} holds data of a node that runs alone: use an empty node.data_dir (and node.disks), and copy its objects over \
             S3 afterwards",
            dir.display()
        );
    }
    if data_dir.file("metadata.sqlite").exists() {
        bail!("{} holds metadata of a node that runs alone: use an empty one", data_dir.path().display());
    }
    Ok(())
}

/// A node that has run holds chunks under epochs that ZooKeeper knew. A cluster that begins with the first epochs again
/// would have its writes refused by metadata, and would take nodes for members of shards that they never had.
///
/// # Errors
/// When this node has run.
pub(super) fn refuse_anew(config: &Config, cluster: ClusterId) -> anyhow::Result<()> {
    if !config.node.disk_dirs().iter().any(|dir| holds_files(dir)) {
        return Ok(());
    }
    bail!(
        "this node holds data of cluster {cluster}, and no cluster is at {}: either cluster.zookeeper names another place than \
         it did, or ZooKeeper has lost its data. Making the cluster anew would not bring that back: give ZooKeeper the last copy \
         of its data directory, or see \"Lose ZooKeeper\" in docs/operations.md if there is none",
        config.cluster.zookeeper
    )
}

/// Whether there is anything but what a file system makes by itself at its top.
fn holds_files(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(|entry| entry.file_name() != "lost+found"))
}

/// What a tool does about metadata that is nobody's yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It refuses it.
    Require,
    /// It leaves it nobody's until it is filled: no node starts with it before.
    Later,
    /// It only looks, and leaves it as it is.
    Untouched,
}

impl Claim {
    /// Whether the tool is about to fill the metadata.
    fn fills(self) -> bool {
        self == Self::Later
    }
}

/// The metadata of a node that is stopped: the cluster's, or its own.
///
/// # Errors
/// When it cannot be opened; when the node is not one of the cluster that is configured, or the metadata is another's.
pub(super) async fn open_metadata(
    config: &Config,
    data_dir: &DataDir,
    claim: Claim,
) -> anyhow::Result<Arc<dyn MetadataStore>> {
    Ok(open_database(config, data_dir, claim).await?.store)
}

/// The two ports to one database. Closing the store closes it.
struct Database {
    store: Arc<dyn MetadataStore>,
    ledger: Arc<dyn TierLedger>,
}

/// As [`open_metadata`], with the cold tiers.
async fn open_database(config: &Config, data_dir: &DataDir, claim: Claim) -> anyhow::Result<Database> {
    if !config.cluster.is_on() {
        let path = data_dir.file("metadata.sqlite");
        let store = SqliteMetadataStore::open(&path, SqliteOptions::default()).await;
        let store = Arc::new(store.with_context(|| format!("open metadata {}", path.display()))?);
        if claim.fills() {
            store.raise_sequences(SystemClock.now_ms()).await.context("raise sequence numbers")?;
        }
        return Ok(Database { store: store.clone(), ledger: store });
    }
    adopt(data_dir)?;
    let Some(cluster) = data_dir.cluster_id()? else {
        bail!("this node is not one of the cluster yet: run `holdfast cluster init` or `holdfast cluster join` first");
    };
    let metadata = zookeeper::open_metadata(config, 1).await?;
    let place = &config.metadata.url;
    match claim {
        Claim::Require => storage::require_claim(&*metadata, cluster, place).await?,
        Claim::Later | Claim::Untouched => storage::refuse_foreign(&*metadata, cluster, place).await?,
    }
    if claim.fills() {
        metadata.raise_sequences(SystemClock.now_ms()).await.context("raise sequence numbers")?;
    }
    Ok(Database { store: metadata.clone(), ledger: metadata })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeConfig;

    #[test]
    fn a_new_file_system_holds_nothing() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!holds_files(dir.path()) && !holds_files(&dir.path().join("absent")));
        std::fs::create_dir(dir.path().join("lost+found")).unwrap();
        assert!(!holds_files(dir.path()));
        std::fs::write(dir.path().join("superblock"), "").unwrap();
        assert!(holds_files(dir.path()));
    }

    #[test]
    fn a_node_that_has_run_makes_no_cluster_in_the_place_of_one_that_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let node = NodeConfig { data_dir: dir.path().to_owned(), ..NodeConfig::default() };
        let config = Config { node, ..Config::default() };
        let cluster = ClusterId([7; 16]);
        refuse_anew(&config, cluster).unwrap();
        std::fs::create_dir_all(dir.path().join("disks/0")).unwrap();
        refuse_anew(&config, cluster).unwrap();
        std::fs::write(dir.path().join("disks/0/superblock"), "").unwrap();
        let error = refuse_anew(&config, cluster).unwrap_err().to_string();
        assert!(error.contains(&cluster.to_string()) && error.contains("ZooKeeper has lost its data"), "{error}");
    }
}
