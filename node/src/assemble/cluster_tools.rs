//! What is done to a node that is stopped: make a cluster, join one, save, restore and rebuild metadata.

use std::path::Path;
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

pub use backup::{Counts, backup, backup_to, dump, load, restore, restore_stream};
pub use rebuild::{RebuildOptions, RebuildReport, from_chunks, rebuild};

/// What a tool would make is there already; in words for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Taken(pub String);

/// A node that was made one of a cluster.
pub struct Enrolled {
    /// The cluster.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
}

/// Makes a cluster, with this node as its first: certificate authority and secret in the data directory, then the identity
/// in ZooKeeper. A crash in between leaves a data directory whose cluster does not exist yet; the next try makes that one.
///
/// # Errors
/// When the node holds data or belongs to another cluster, when the place in ZooKeeper is taken, when a service cannot be
/// reached.
pub async fn init(config: &Config, shards: u32, replicas: u32) -> anyhow::Result<Enrolled> {
    need_cluster(config)?;
    if !(1..=SHARD_COUNT_MAX).contains(&shards) {
        bail!("{shards} shards: a cluster has 1 to {SHARD_COUNT_MAX}");
    }
    if !(1..=REPLICATION_FACTOR_MAX).contains(&replicas) {
        bail!("{replicas} replicas: a shard has 1 to {REPLICATION_FACTOR_MAX}");
    }
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
        Some(begun) => identity.id = begun,
        None => {
            refuse_data(config, &data_dir)?;
            pki::init_cluster(&config.node.data_dir, data_dir.node_id(), identity.id)?;
            adopt(&data_dir)?;
        }
    }
    let _made = vault::open(&data_dir.file("node.secret"))?;
    // Now rather than at the first start: whoever makes the cluster is there to read what is wrong with the database.
    let metadata = zookeeper::open_metadata(config).await?;
    let claimed = storage::claim(&*metadata, identity.id, &config.metadata.url).await;
    metadata.close().await;
    claimed?;
    let created = coordination.create_cluster(&identity, &LayoutDocument::new(replicas)).await;
    coordination.close().await;
    created.with_context(|| format!("make the cluster at {}", config.cluster.zookeeper))?;
    Ok(Enrolled { cluster: identity.id, node: data_dir.node_id() })
}

/// Makes this node one of the cluster that the token is of.
///
/// # Errors
/// When the node holds data or belongs to another cluster; when the token is not good, or whoever made it cannot be reached.
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
    bail!("no cluster is configured: set cluster.zookeeper and metadata.url")
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

fn holds_files(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some())
}

/// What a tool does about metadata that is nobody's yet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Claim {
    /// It refuses it.
    Require,
    /// It leaves it nobody's until it is filled: no node starts with it before.
    Later,
}

impl Claim {
    /// Whether the tool is about to fill the metadata.
    fn fills(self) -> bool {
        self != Self::Require
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
    let metadata = zookeeper::open_metadata(config).await?;
    let place = &config.metadata.url;
    match claim {
        Claim::Require => storage::require_claim(&*metadata, cluster, place).await?,
        Claim::Later => storage::refuse_foreign(&*metadata, cluster, place).await?,
    }
    if claim.fills() {
        metadata.raise_sequences(SystemClock.now_ms()).await.context("raise sequence numbers")?;
    }
    Ok(Database { store: metadata.clone(), ledger: metadata })
}
