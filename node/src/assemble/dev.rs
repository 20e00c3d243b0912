//! A cluster in one process, for trying it out: `holdfast dev --nodes N`.
//!
//! Each node is assembled as always, on ports and in a directory of its own. What they agree on is in memory, their
//! peers are a call away, and they share one SQLite store.
//!
//! | path | what |
//! |---|---|
//! | `<data_dir>/dev-cluster/cluster.json` | identity, layout, shard map and what is paused, written whenever they change |
//! | `<data_dir>/dev-cluster/metadata.sqlite` | metadata of all nodes |
//! | `<data_dir>/dev-cluster/node-1` … | the nodes' data directories |
//!
//! The coordination service of a process remembers nothing, so the next start puts back what was written. A crash can
//! lose the last changes of it; epochs therefore begin a thousand higher, which is more than can have been missed, and
//! the metadata never holds a later one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_actors::domain::placement::layout;
use holdfast_actors::ports::coordination::{ClusterIdentity, Coordination, LeaseName, Pauses};
use holdfast_actors::ports::peers::in_process::InProcessNetwork;
use holdfast_actors::ports::{Clock, Locks, SystemClock};
use holdfast_protocol::cluster::{Epoch, LayoutChange, LayoutDocument, ShardState};
use holdfast_protocol::{NodeId, ShardId};
use serde::{Deserialize, Serialize};
use tokio_util::task::AbortOnDropHandle;

use super::cluster::ClusterPorts;
use super::data_dir::DataDir;
use super::start::start_in;
use super::storage::{self, Metadata};
use super::transport::Transport;
use super::{Root, RunningNode, Setting, locks, vault};
use crate::admin::Pair;
use crate::config::{ClusterConfig, Config, Span, token_file_in};
use crate::coordination::{InProcessCluster, InProcessCoordination};
use crate::locks::InProcessLocks;

/// Shards of a cluster made here: enough to see them move.
const SHARDS: u32 = 64;

/// Epochs begin so much higher after a restart.
const EPOCHS_SKIPPED: u64 = 1_000;

/// Buffers of 1 MiB that all nodes have together; each has at least a quarter of it.
const LARGE_BUFFERS: u32 = 96;

/// How long the shards may take to be placed.
const PLACED_MAX: Duration = Duration::from_secs(30);

/// What the nodes of one process share. Cheap to clone.
#[derive(Clone)]
pub(super) struct Shared {
    identity: ClusterIdentity,
    cluster: InProcessCluster,
    locks: Arc<dyn Locks>,
    network: InProcessNetwork,
    metadata: Metadata,
}

impl Shared {
    /// What one more node is assembled from.
    pub(super) async fn ports(&self, data_dir: &DataDir) -> anyhow::Result<ClusterPorts> {
        data_dir.set_cluster_id(self.identity.id)?;
        storage::claim(&*self.metadata.store, self.identity.id, "metadata.sqlite").await?;
        let had_buckets = storage::was_used(&*self.metadata.store).await.context("look at the metadata")?;
        Ok(ClusterPorts {
            identity: self.identity.clone(),
            coordination: Arc::new(self.cluster.participant()),
            locks: self.locks.clone(),
            metadata: Metadata { had_buckets, ..self.metadata.clone() },
            cache: None,
            transport: Transport::InProcess(self.network.clone()),
        })
    }
}

/// What is written down.
#[derive(Serialize, Deserialize)]
struct Saved {
    identity: ClusterIdentity,
    layout: LayoutDocument,
    shards: BTreeMap<ShardId, ShardState>,
    #[serde(default)]
    pauses: Pauses,
}

/// A cluster in this process.
pub struct DevCluster {
    nodes: Vec<Option<RunningNode>>,
    configs: Vec<Config>,
    shared: Shared,
    saver: AbortOnDropHandle<()>,
    _dir: DataDir,
}

/// Starts a cluster of `count` nodes; `config` is the first one's, the others follow on the next ports.
///
/// # Errors
/// As [`super::start()`].
pub async fn start(config: &Config, count: u8, root: Root) -> anyhow::Result<DevCluster> {
    if !config.node.disks.is_empty() {
        bail!("several nodes cannot share the directories of node.disks: leave it empty with --nodes");
    }
    let base = config.node.data_dir.join("dev-cluster");
    let dir = DataDir::open(&base)?;
    // Made once, then given to each node.
    let _made = vault::open(&dir.file("node.secret"))?;
    let secret = std::fs::read(dir.file("node.secret")).context("read the cluster's secret")?;
    let configs: Vec<Config> = (0..count).map(|at| node_config(config, &base, at, count)).collect::<Result<_, _>>()?;
    let mut ids = Vec::new();
    for config in &configs {
        let data_dir = DataDir::open(&config.node.data_dir)?;
        data_dir.write("node.secret", &secret)?;
        ids.push(data_dir.node_id());
    }

    let metadata = storage::open_sqlite(&dir.file("metadata.sqlite")).await?;
    let path = dir.file("cluster.json");
    let saved = load(&path, &ids)?;
    let cluster = InProcessCluster::new(config.cluster.session_timeout.duration());
    let founder = cluster.participant();
    found(&founder, &saved, ids[0]).await?;
    let shared = Shared {
        identity: saved.identity.clone(),
        cluster,
        locks: locks::choose(config, &saved.identity.id.to_string(), locks::in_process(InProcessLocks::new()))?,
        network: InProcessNetwork::default(),
        metadata,
    };
    let shard_count = saved.identity.shard_count as usize;
    let mut placed = founder.shards();
    let saver = AbortOnDropHandle::new(tokio::spawn(save_changes(path, saved.identity, founder)));
    let mut cluster = DevCluster { nodes: Vec::new(), configs, shared, saver, _dir: dir };
    let mut root = Some(root);
    for at in 0..usize::from(count) {
        // The others find what the first one stored.
        let node = cluster.start_node(at, root.take().unwrap_or(Root::Require)).await?;
        cluster.nodes.push(Some(node));
    }
    let placed = placed.wait_for(|map| map.shards.len() == shard_count);
    tokio::time::timeout(PLACED_MAX, placed).await.context("place the shards in time")?.context("place the shards")?;
    Ok(cluster)
}

impl DevCluster {
    /// The nodes that run.
    pub fn nodes(&self) -> impl Iterator<Item = &RunningNode> {
        self.nodes.iter().flatten()
    }

    /// One node, if it runs.
    pub fn node(&self, at: usize) -> Option<&RunningNode> {
        self.nodes.get(at)?.as_ref()
    }

    /// The configuration of one node.
    pub fn config(&self, at: usize) -> &Config {
        &self.configs[at]
    }

    /// The root credential, if the start was allowed to know it.
    pub fn root(&self) -> Option<&Pair> {
        self.nodes().find_map(RunningNode::root)
    }

    /// One more participant in what the nodes agree on.
    pub fn participant(&self) -> InProcessCoordination {
        self.shared.cluster.participant()
    }

    /// Cuts one node off without a goodbye to anybody. What a crash would free at once is freed a moment later, when
    /// its last task has ended.
    pub fn crash(&mut self, at: usize) {
        self.nodes[at] = None;
    }

    /// Starts a node again that is not running.
    ///
    /// # Errors
    /// As [`super::start()`].
    pub async fn restart(&mut self, at: usize) -> anyhow::Result<()> {
        self.restart_with(at, Root::Require).await
    }

    /// The same, with a root credential.
    ///
    /// # Errors
    /// As [`super::start()`].
    pub async fn restart_with(&mut self, at: usize, root: Root) -> anyhow::Result<()> {
        let node = self.start_node(at, root).await?;
        self.nodes[at] = Some(node);
        Ok(())
    }

    async fn start_node(&self, at: usize, root: Root) -> anyhow::Result<RunningNode> {
        let setting = Setting::Process(self.shared.clone());
        start_in(setting, self.configs[at].clone(), root).await.with_context(|| format!("start node {}", at + 1))
    }

    /// Resolves when a node must be stopped, with the reason.
    pub async fn failed(&self) -> String {
        let nodes = self.nodes().map(|node| Box::pin(node.failed()));
        futures::future::select_all(nodes).await.0
    }

    /// Stops all nodes cleanly.
    pub async fn shutdown(self) {
        let Self { nodes, shared, saver, .. } = self;
        // First, so that the nodes' leaving does not look like their loss.
        drop(saver);
        futures::future::join_all(nodes.into_iter().flatten().map(RunningNode::shutdown)).await;
        shared.metadata.store.close().await;
    }
}

fn node_config(config: &Config, base: &Path, at: u8, count: u8) -> anyhow::Result<Config> {
    let mut node = config.clone();
    node.node.data_dir = base.join(format!("node-{}", at + 1));
    // One token for all, where commands look for it.
    node.admin.token_file =
        Some(config.admin.token_file.clone().unwrap_or_else(|| token_file_in(&config.node.data_dir)));
    node.s3.addr = port_for(config.s3.addr, at)?;
    node.admin.addr = port_for(config.admin.addr, at)?;
    node.cluster.zone = format!("zone-{}", at + 1);
    node.storage.large_buffers =
        node.storage.large_buffers.min((LARGE_BUFFERS / u32::from(count)).max(LARGE_BUFFERS / 4));
    if config.cluster == ClusterConfig::default() {
        // Somebody watches.
        node.cluster.rebuild_delay = Span::seconds(30);
        node.cluster.leave_grace = Span::seconds(10);
    }
    Ok(node)
}

/// Two ports a node; where one is taken, any free one.
fn port_for(first: SocketAddr, at: u8) -> anyhow::Result<SocketAddr> {
    if at == 0 || first.port() == 0 {
        return Ok(first);
    }
    let wanted = first.port().checked_add(2 * u16::from(at)).map(|port| SocketAddr::new(first.ip(), port));
    match wanted.filter(|addr| std::net::TcpListener::bind(addr).is_ok()) {
        Some(addr) => Ok(addr),
        None => super::front::free_addr(SocketAddr::new(first.ip(), 0)),
    }
}

/// What was written at the last run, with new nodes in the layout; or a new cluster.
fn load(path: &Path, ids: &[NodeId]) -> anyhow::Result<Saved> {
    let mut saved = match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| format!("read {}", path.display()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Saved {
            identity: ClusterIdentity::new(SHARDS, SystemClock.now_ms()),
            layout: LayoutDocument::new(ids.len().min(3) as u32),
            shards: BTreeMap::new(),
            pauses: Pauses::default(),
        },
        Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
    };
    for state in saved.shards.values_mut() {
        state.epoch = Epoch(state.epoch.0 + EPOCHS_SKIPPED);
    }
    // A node that an operator removed stays out: it was in the layout once, and holds what it was told to give up.
    let first = saved.layout.version == 0;
    let known: Vec<NodeId> = saved.shards.values().flat_map(|s| s.members.iter().chain(&s.target)).copied().collect();
    let staged = std::mem::take(&mut saved.layout.staged);
    for (at, &node) in ids.iter().enumerate() {
        if !saved.layout.applied.nodes.contains_key(&node) && (first || !known.contains(&node)) {
            let zone = format!("zone-{}", at + 1);
            layout::stage(&mut saved.layout, LayoutChange::Assign { node, zone, weight: 100 })?;
        }
    }
    if !saved.layout.staged.is_empty() {
        let version = saved.layout.version + 1;
        layout::apply(&mut saved.layout, version)?;
    }
    saved.layout.staged = staged;
    Ok(saved)
}

/// Puts what was written into the service.
async fn found(founder: &InProcessCoordination, saved: &Saved, node: NodeId) -> anyhow::Result<()> {
    founder.create_cluster(&saved.identity, &saved.layout).await.context("make the cluster")?;
    let lease = founder.acquire(&LeaseName::controller(), node).await.context("place the shards")?;
    for (shard, state) in &saved.shards {
        founder.store_shard(*shard, None, state, &lease).await.with_context(|| format!("put shard {shard} back"))?;
    }
    lease.release().await;
    founder.store_pauses(None, &saved.pauses).await.context("put back what is paused")?;
    Ok(())
}

async fn save_changes(path: PathBuf, identity: ClusterIdentity, founder: InProcessCoordination) {
    let (mut shards, mut layout, mut pauses) = (founder.shards(), founder.watch_layout(), founder.watch_pauses());
    loop {
        let document = layout.borrow_and_update().as_ref().map(|document| document.value.clone());
        let map = shards.borrow_and_update().clone();
        let paused = pauses.borrow_and_update().clone();
        if let Some(document) = document {
            let shards = map.shards.iter().map(|(shard, state)| (*shard, state.value.clone())).collect();
            let saved = Saved { identity: identity.clone(), layout: document, shards, pauses: paused };
            let path = path.clone();
            let written = tokio::task::spawn_blocking(move || write(&path, &saved)).await;
            if let Ok(Err(error)) = written {
                tracing::warn!(%error, "write the shard map: the next start may not know the last changes");
            }
        }
        tokio::select! {
            changed = shards.changed() => if changed.is_err() { return },
            changed = layout.changed() => if changed.is_err() { return },
            changed = pauses.changed() => if changed.is_err() { return },
        }
    }
}

fn write(path: &Path, saved: &Saved) -> std::io::Result<()> {
    let temporary = path.with_extension("new");
    let file = std::fs::File::create(&temporary)?;
    serde_json::to_writer(&file, saved)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
