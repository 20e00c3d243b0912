//! A cluster of processes: ZooKeeper agrees, MySQL remembers, QUIC carries.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use holdfast_actors::ports::MetadataStore;
use holdfast_actors::ports::coordination::{self, ClusterIdentity, Coordination, CoordinationError};
use holdfast_protocol::NodeId;

use super::cluster::{ClusterPorts, check_identity};
use super::cluster_tools::Stopped;
use super::data_dir::DataDir;
use super::storage::{self, Metadata};
use super::transport::Transport;
use super::{locks, predecessors};
use crate::config::{Config, MetadataTls};
use crate::coordination::{Claim, Digest, ZookeeperConfig, ZookeeperCoordination};
use crate::locks::ZookeeperLocks;
use crate::metadata::mysql::{MysqlMetadataStore, MysqlOptions, MysqlTls, OpenError, exposure};
use crate::metadata::redis::RedisPlace;
use crate::metadata::{RedisAddress, RedisCacheOptions, RedisCachedStore};
use crate::secret_file;
use crate::telemetry::seldom::Seldom;

/// How long a start goes on trying to reach a service that does not answer: a whole machine room may be starting.
const PATIENCE: Duration = Duration::from_secs(60);

/// How much longer than the session of a node that is gone a writer waits until all have seen that the cache is off.
const OFF_MARGIN: Duration = Duration::from_secs(2);

/// Pause between tries.
const RETRY: Duration = Duration::from_secs(1);

/// How often a start or a tool says that it is still waiting.
const RETRIES_TOLD_EVERY: Duration = Duration::from_secs(10);

/// Connects a node to the services of its cluster, and compares the cluster with the one that the node belongs to.
///
/// # Errors
/// When a service cannot be reached, or the cluster is another one, or there is none.
pub(super) async fn connect(config: &Config, data_dir: &DataDir) -> anyhow::Result<ClusterPorts> {
    let coordination = coordinate_as(config, predecessors::claim(data_dir)).await?;
    super::cluster_tools::adopt(data_dir)?;
    let identity = existing(&coordination, config, data_dir).await?;
    check_identity(data_dir, &identity, &config.cluster.zookeeper)?;
    let metadata = open_metadata(config, nodes(&coordination)).await?;
    storage::require_claim(&*metadata, identity.id, &config.metadata.url).await?;
    let transport = Transport::quic(config, data_dir)?;
    let coordination = Arc::new(coordination);
    let automatic = Arc::new(ZookeeperLocks::new(coordination.clone(), data_dir.node_id()));
    let locks = locks::choose(config, &identity.id.to_string(), (automatic, "zookeeper"))?;
    let coordination: Arc<dyn Coordination> = coordination;
    let (outbox, journal, tiers, reads) = (metadata.clone(), metadata.clone(), metadata.clone(), metadata.clone());
    let (store, cache) = match cache_options(config)? {
        None => (metadata as Arc<dyn MetadataStore>, None),
        Some(options) => {
            let (cluster, me) = (identity.id, data_dir.node_id());
            let cached = RedisCachedStore::start(metadata, cluster, me, coordination.clone(), options);
            let follower = cached.follower();
            (Arc::new(cached) as Arc<dyn MetadataStore>, Some(follower))
        }
    };
    let metadata = Metadata { store, outbox, journal, tiers, reads, had_buckets: true };
    Ok(ClusterPorts { identity, coordination, locks, metadata, cache, transport })
}

/// How many nodes there are, whether they run or not; one at least.
fn nodes(coordination: &dyn Coordination) -> usize {
    let layout = coordination.watch_layout().borrow().clone();
    let wanted = layout.map_or(0, |layout| layout.value.applied.nodes.len());
    coordination.membership().borrow().nodes.len().max(wanted).max(1)
}

/// What the configuration says of the cache; `None` without one.
///
/// # Errors
/// When its address cannot be understood, or a password cannot be read.
fn cache_options(config: &Config) -> anyhow::Result<Option<RedisCacheOptions>> {
    let cache = &config.cache;
    if cache.redis.is_empty() {
        return Ok(None);
    }
    let address = RedisAddress::parse(&cache.redis).map_err(|wrong| anyhow!(wrong)).context("cache.redis")?;
    let hosts = match &address.place {
        RedisPlace::Server(server) => std::slice::from_ref(server),
        RedisPlace::Sentinels(sentinels, _) => sentinels.as_slice(),
    };
    if let Some(exposure) = crate::redis::exposure(hosts.iter().map(|at| at.host.as_str()), address.tls) {
        tracing::warn!("{exposure}; write rediss:// in cache.redis");
    }
    let secret = |file: &Option<PathBuf>| {
        let text = file.as_deref().map(secret_file::read).transpose()?;
        anyhow::Ok(text.map(|text| text.to_string()))
    };
    let mut options = RedisCacheOptions::new(address);
    options.password = secret(&cache.password_file)?;
    options.sentinel_password = secret(&cache.sentinel_password_file)?;
    options.tls_ca = cache.tls_ca.clone();
    options.read_timeout = cache.read_timeout.duration();
    options.write_timeout = cache.write_timeout.duration();
    options.value_ttl = cache.ttl.duration();
    options.absent_ttl = cache.absent_ttl.duration();
    options.value_bytes_max = usize::try_from(cache.value_max.get()).unwrap_or(usize::MAX);
    options.retry = config.cluster.in_proportion(options.retry);
    // A node that does not answer loses its session by then, and is waited for no longer.
    options.off_patience = config.cluster.session_timeout.duration() * 3 / 2 + OFF_MARGIN;
    Ok(Some(options))
}

/// Sees to it that no node finds in the cache what is older than what a tool has just written past it. Whether there is
/// a cache the cluster knows, not the configuration of the one node that the tool runs for.
///
/// # Errors
/// When the coordination service does not answer, or not every node has seen it; the writing is done then.
pub(super) async fn invalidate_cache(config: &Config) -> anyhow::Result<()> {
    if !config.cluster.is_on() {
        return Ok(());
    }
    let coordination = coordinate(config).await?;
    let patience = config.cluster.session_timeout.duration() * 3 / 2 + OFF_MARGIN;
    let done = coordination::invalidate_cache(&coordination, None, "a tool wrote past it", patience).await;
    coordination.close().await;
    if matches!(done, Err(CoordinationError::NotFound(_))) {
        // Where there is no cluster no node runs. What it comes back with is an older state, or that of a new one.
        tracing::warn!(
            "no cluster is in ZooKeeper: run FLUSHALL on the Redis of cache.redis, if there is one, before nodes start"
        );
        return Ok(());
    }
    done.context(
        "it is written, but nodes may have older values in the cache: run FLUSHALL on the Redis of cache.redis",
    )
}

/// Refuses while nodes of the cluster run, or another tool fills its metadata. What was killed counts until its session
/// is over, and is waited for. `node` is what the others see. `None`: a node that runs alone has nobody else.
///
/// # Errors
/// When one runs; when the coordination service does not answer.
pub(super) async fn require_stopped(config: &Config, node: NodeId) -> anyhow::Result<Option<Stopped>> {
    if !config.cluster.is_on() {
        return Ok(None);
    }
    let coordination = Arc::new(coordinate(config).await?);
    let patience = config.cluster.session_timeout.duration() * 3 / 2 + OFF_MARGIN;
    Stopped::begin(coordination, node, patience).await.map(Some)
}

/// Connects to ZooKeeper, for a tool: it registers nowhere.
///
/// # Errors
/// When it does not answer, or refuses the credentials.
pub(super) async fn coordinate(config: &Config) -> anyhow::Result<ZookeeperCoordination> {
    coordinate_as(config, Claim::default()).await
}

/// The same for a node that registers.
async fn coordinate_as(config: &Config, claim: Claim) -> anyhow::Result<ZookeeperCoordination> {
    let Some((servers, chroot)) = config.cluster.ensemble() else {
        bail!("cluster.zookeeper is not set: name ZooKeeper's servers and the cluster's place there");
    };
    let mut zookeeper = ZookeeperConfig::new(servers, chroot);
    zookeeper.session_timeout = config.cluster.session_timeout.duration();
    if let Some(file) = &config.cluster.zookeeper_auth_file {
        let text = secret_file::read(file)?;
        let Some((user, password)) = text.split_once(':') else {
            bail!("{} does not hold user:password", file.display());
        };
        zookeeper.digest = Some(Digest { user: user.to_owned(), password: password.to_owned() });
    }
    let (begun, told) = (tokio::time::Instant::now(), Seldom::new(RETRIES_TOLD_EVERY));
    loop {
        match ZookeeperCoordination::connect_as(zookeeper.clone(), claim.clone()).await {
            Ok(coordination) => return Ok(coordination),
            // A session that ended before it was of use: the ensemble has only just begun to answer.
            Err(error @ (CoordinationError::Unavailable(_) | CoordinationError::SessionExpired))
                if begun.elapsed() < PATIENCE =>
            {
                if told.untold().is_some() {
                    let error = anyhow::Error::from(error);
                    tracing::warn!(error = format!("{error:#}"), servers, "ZooKeeper does not answer, trying again");
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error @ CoordinationError::Denied(_)) => {
                return Err(error).with_context(|| {
                    format!(
                        "ZooKeeper at {servers} does not let this node see the cluster: cluster.zookeeper_auth_file must hold the \
                         user and password with which the cluster was made"
                    )
                });
            }
            Err(error) => return Err(error).with_context(|| format!("connect to ZooKeeper at {servers}")),
        }
    }
}

/// The identity of the cluster that is there.
async fn existing(
    coordination: &ZookeeperCoordination,
    config: &Config,
    data_dir: &DataDir,
) -> anyhow::Result<ClusterIdentity> {
    match coordination.cluster().await {
        Ok(identity) => Ok(identity),
        Err(CoordinationError::NotFound(_)) => {
            // One whose making broke off has its identity, too, but no disk yet.
            if let Some(cluster) = data_dir.cluster_id()? {
                super::cluster_tools::refuse_anew(config, cluster)?;
            }
            bail!("there is no cluster at {}: make one with `holdfast cluster init`", config.cluster.zookeeper)
        }
        Err(error) => Err(error).with_context(|| format!("read the cluster at {}", config.cluster.zookeeper)),
    }
}

/// Opens the cluster's metadata, for one of so many nodes.
///
/// # Errors
/// When the server cannot be reached in time, or its schema is newer than this program.
pub(super) async fn open_metadata(config: &Config, nodes: usize) -> anyhow::Result<Arc<MysqlMetadataStore>> {
    Ok(Arc::new(open_mysql(config, nodes).await?))
}

/// Who is connected to the metadata, as far as the database tells. To be asked before they are opened.
///
/// # Errors
/// When the server cannot be reached.
pub(super) async fn connected_to_metadata(config: &Config) -> anyhow::Result<Vec<String>> {
    let others = MysqlMetadataStore::others_connected(mysql_options(config, 1)?).await;
    others.with_context(|| format!("ask who is connected to {}", config.metadata.url))
}

fn mysql_options(config: &Config, nodes: usize) -> anyhow::Result<MysqlOptions> {
    let metadata = &config.metadata;
    let password = metadata.password_file.as_deref().map(secret_file::read).transpose()?;
    let mut options = MysqlOptions::new(&metadata.url);
    options.password = password.map(|password| password.to_string());
    options.connections = metadata.connections_of(nodes);
    options.tls = match metadata.tls {
        MetadataTls::Off => MysqlTls::Off,
        MetadataTls::Preferred => MysqlTls::Preferred,
        MetadataTls::VerifyCa => MysqlTls::VerifyCa(metadata.tls_ca.clone()),
        MetadataTls::VerifyIdentity => MysqlTls::VerifyIdentity(metadata.tls_ca.clone()),
    };
    Ok(options)
}

/// The same, not shared.
///
/// # Errors
/// As [`open_metadata`].
pub(super) async fn open_mysql(config: &Config, nodes: usize) -> anyhow::Result<MysqlMetadataStore> {
    let (metadata, options) = (&config.metadata, mysql_options(config, nodes)?);
    if let Some(exposure) = exposure(&metadata.url, &options.tls) {
        tracing::warn!("{exposure}; set metadata.tls = \"verify-identity\" and metadata.tls_ca");
    }
    let (begun, told) = (tokio::time::Instant::now(), Seldom::new(RETRIES_TOLD_EVERY));
    loop {
        match MysqlMetadataStore::open(options.clone()).await {
            Ok(store) => {
                if matches!(store.acknowledges_early().await, Ok(true)) {
                    tracing::warn!(
                        url = metadata.url,
                        "the metadata server acknowledges what it loses with its power; set innodb_flush_log_at_trx_commit = 1 there"
                    );
                }
                return Ok(store);
            }
            Err(error @ (OpenError::Database(_) | OpenError::TimedOut)) if begun.elapsed() < PATIENCE => {
                if told.untold().is_some() {
                    let (error, url) = (anyhow::Error::from(error), &metadata.url);
                    tracing::warn!(
                        error = format!("{error:#}"),
                        url,
                        "the metadata server does not answer, trying again"
                    );
                }
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error).with_context(|| format!("open metadata {}", metadata.url)),
        }
    }
}
