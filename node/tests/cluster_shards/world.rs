//! Several nodes in one process: the real actors over coordination, network and chunks in memory, and one SQLite store.
//! The [`client`] is a quorum write reduced to its rules, so that this stands on nothing but the ports.

mod client;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use holdfast_actors::domain::admission::DiskHealth;
use holdfast_actors::domain::placement::ShardHealth;
use holdfast_actors::flow::cluster_view::ClusterView;
use holdfast_actors::flow::key_locks::ChunkLocks;
use holdfast_actors::flow::replica_service::{LocalReplicas, ReplicaLimits};
use holdfast_actors::flow::self_report::SelfReport;
use holdfast_actors::ports::chunks::memory::MemoryChunkStore;
use holdfast_actors::ports::coordination::{
    CacheState, ClusterIdentity, Coordination, NodeAddresses, NodeAnnouncement, NodeState,
};
use holdfast_actors::ports::metadata::{BucketId, samples};
use holdfast_actors::ports::peers::ReplicaService;
use holdfast_actors::ports::peers::in_process::InProcessNetwork;
use holdfast_actors::ports::{ChunkError, Disk, DiskStatus, MetadataStore, ScrubStep, SystemClock};
use holdfast_actors::service::cluster::{self, ClusterHandle, Findings, ReportInbox};
use holdfast_actors::service::{ClusterParts, ClusterSettings};
use holdfast_actors::wait::{PATIENCE, until_ok};
use holdfast_node::coordination::{InProcessCluster, InProcessCoordination};
use holdfast_node::metadata::{SqliteMetadataStore, SqliteOptions};
use holdfast_protocol::cluster::{Layout, LayoutDocument, LayoutNode, ShardState};
use holdfast_protocol::{ChunkId, NodeId, ShardId};
use parking_lot::Mutex;

/// Shards of the clusters here.
pub const SHARDS: u32 = 12;

/// A disk that says how it is. What is on it is in a store that knows nothing of that.
pub struct ToldDisk(Mutex<DiskHealth>);

impl ToldDisk {
    fn healthy() -> Arc<Self> {
        Arc::new(Self(Mutex::new(DiskHealth::Healthy)))
    }

    pub fn tell(&self, health: DiskHealth) {
        *self.0.lock() = health;
    }
}

#[async_trait]
impl Disk for ToldDisk {
    fn name(&self) -> &str {
        "told"
    }

    fn status(&self) -> DiskStatus {
        let health = *self.0.lock();
        DiskStatus { health, detail: None, total_bytes: 1, free_bytes: 1, live_bytes: 0, chunks: 0, segments: 0 }
    }

    async fn checkpoint(&self) -> Result<(), ChunkError> {
        Ok(())
    }

    async fn scrub_step(&self, _bytes_max: u64) -> Result<ScrubStep, ChunkError> {
        Ok(ScrubStep::default())
    }

    async fn compact_step(&self, _bytes_max: u64) -> Result<u64, ChunkError> {
        Ok(0)
    }
}

/// A node that runs.
pub struct TestNode {
    pub id: NodeId,
    pub coordination: InProcessCoordination,
    pub view: Arc<ClusterView>,
    pub replicas: Arc<LocalReplicas>,
    pub findings: Arc<Findings>,
    pub chunk_locks: Arc<ChunkLocks>,
    pub handle: ClusterHandle,
    _service: Arc<dyn ReplicaService>,
}

/// The cluster and its client.
pub struct World {
    pub coordination: InProcessCluster,
    pub network: InProcessNetwork,
    pub metadata: Arc<dyn MetadataStore>,
    pub settings: ClusterSettings,
    pub admin: InProcessCoordination,
    pub nodes: BTreeMap<u64, TestNode>,
    /// Disks outlive the processes on them.
    pub stores: BTreeMap<u64, Arc<MemoryChunkStore>>,
    /// Likewise.
    pub disks: BTreeMap<u64, Arc<ToldDisk>>,
    /// What was acknowledged.
    pub written: Mutex<BTreeMap<ChunkId, Bytes>>,
    identity: ClusterIdentity,
    bucket: BucketId,
    _dir: tempfile::TempDir,
}

pub fn id(node: u64) -> NodeId {
    NodeId::from(node)
}

/// Everything quick, nothing so quick that a busy machine changes the outcome.
pub fn settings() -> ClusterSettings {
    ClusterSettings {
        rebuild_delay: Duration::from_millis(300),
        leave_grace: Duration::from_millis(50),
        repair_bandwidth_bytes: 1 << 30,
        comparison_period: Duration::from_secs(600),
        comparison_settle: Duration::from_millis(50),
        joins_per_node_max: 3,
        join_retry: Duration::from_millis(200),
        copies_max: 2,
        repair_interval: Duration::from_millis(50),
        leftovers_interval: Duration::from_millis(500),
        announce_interval: Duration::from_millis(200),
        retry_min: Duration::from_millis(10),
        retry_max: Duration::from_millis(200),
        ..ClusterSettings::default()
    }
}

/// Waits until `check` has nothing to complain about, and returns what it found.
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Result<T, String>) -> T {
    until_ok(what, check).await
}

impl World {
    /// Nodes 1 to `nodes`, all in the layout, every shard placed.
    pub async fn new(nodes: u64, settings: ClusterSettings) -> Self {
        let mut world = Self::empty(settings).await;
        for node in 1..=nodes {
            world.start(node).await;
        }
        world.apply(|layout| (1..=nodes).for_each(|node| assign(layout, node))).await;
        let placed = async || {
            let count = world.shards().len();
            if count == SHARDS as usize { Ok(()) } else { Err(format!("{count} shards are placed")) }
        };
        eventually("the cluster is founded", placed).await;
        world
    }

    pub async fn empty(settings: ClusterSettings) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("metadata.sqlite");
        let store = SqliteMetadataStore::open(&path, SqliteOptions::default()).await.expect("metadata opens");
        let metadata: Arc<dyn MetadataStore> = Arc::new(store);
        let bucket = samples::bucket(&*metadata, "bucket").await.id;
        let coordination = InProcessCluster::new(Duration::from_millis(400));
        let admin = coordination.participant();
        let identity = ClusterIdentity::new(SHARDS, 1);
        admin.create_cluster(&identity, &LayoutDocument::new(3)).await.expect("a cluster");
        Self {
            coordination,
            network: InProcessNetwork::default(),
            metadata,
            settings,
            admin,
            nodes: BTreeMap::new(),
            stores: BTreeMap::new(),
            disks: BTreeMap::new(),
            written: Mutex::default(),
            identity,
            bucket,
            _dir: dir,
        }
    }

    /// What a node is made of, but for its actors.
    pub fn parts(&mut self, node: u64) -> (ClusterParts, InProcessCoordination, Arc<LocalReplicas>) {
        let me = id(node);
        let store = self.stores.entry(node).or_default().clone();
        let disk = self.disks.entry(node).or_insert_with(ToldDisk::healthy).clone();
        let coordination = self.coordination.participant();
        let view =
            ClusterView::new(me, SHARDS, coordination.shards(), coordination.membership(), coordination.ownership());
        let reports = Arc::new(ReportInbox::default());
        let replicas = LocalReplicas::new(store.clone(), view.clone(), ReplicaLimits::default());
        let chunk_locks = ChunkLocks::new();
        let self_report = SelfReport::new();
        let replicas = replicas.with_reports(reports.clone()).with_chunk_locks(chunk_locks.clone());
        let told = disk.clone();
        let replicas = replicas.with_writable(move || told.status().health == DiskHealth::Healthy);
        let replicas = Arc::new(replicas.with_self_report(self_report.clone()));
        let address = || format!("node-{node}:1");
        let announcement = NodeAnnouncement {
            id: me,
            addresses: NodeAddresses { peer: address(), s3: address(), admin: address() },
            zone: String::new(),
            capacity_bytes: 1,
            free_bytes: 1,
            version: String::new(),
            state: NodeState::Ready,
            publishes: false,
            disks_working: None,
            disks_unrebuilt: 0,
        };
        let parts = ClusterParts {
            cluster: self.identity.id,
            announcement,
            view,
            coordination: Arc::new(coordination.clone()),
            metadata: self.metadata.clone(),
            chunks: store,
            disks: vec![disk as Arc<dyn Disk>],
            peers: Arc::new(self.network.peers_of(me)),
            clock: Arc::new(SystemClock),
            reports,
            chunk_locks,
            self_report,
            findings: Findings::new(),
            cache: None,
            settings: self.settings.clone(),
            restarts_max: 1_000,
            restart_window: Duration::from_secs(60),
        };
        (parts, coordination, replicas)
    }

    /// Starts a node, on the disks it had.
    pub async fn start(&mut self, node: u64) {
        let (parts, coordination, replicas) = self.parts(node);
        let (view, findings) = (parts.view.clone(), parts.findings.clone());
        let chunk_locks = parts.chunk_locks.clone();
        let service: Arc<dyn ReplicaService> = replicas.clone();
        self.network.join(id(node), &service);
        let handle = cluster::start(parts).await.expect("the actors start");
        handle.registered().await.expect("the node registers");
        let running =
            TestNode { id: id(node), coordination, view, replicas, findings, chunk_locks, handle, _service: service };
        self.nodes.insert(node, running);
    }

    /// Ends a process as `kill -9` would; its session ends a moment later.
    pub async fn kill(&mut self, node: u64) {
        let Some(running) = self.nodes.remove(&node) else { return };
        self.network.leave(running.id);
        running.handle.stop(Duration::ZERO).await;
        running.coordination.close().await;
    }

    /// The coordination service comes back with nothing in it, and is given the cluster once more, without a layout.
    pub async fn lose_coordination(&mut self) {
        assert!(self.nodes.is_empty(), "a node runs");
        self.coordination = InProcessCluster::new(Duration::from_millis(400));
        self.admin = self.coordination.participant();
        self.admin.create_cluster(&self.identity, &LayoutDocument::new(3)).await.expect("a cluster");
    }

    /// Cuts or heals all ways between a node and the others.
    pub fn isolate(&self, node: u64, cut: bool) {
        for other in self.stores.keys().filter(|other| **other != node) {
            self.network.set_cut(id(node), id(*other), cut);
            self.network.set_cut(id(*other), id(node), cut);
        }
    }

    /// Changes the applied layout.
    pub async fn apply(&self, change: impl Fn(&mut Layout)) {
        let mut found = self.admin.layout().await.expect("a layout");
        change(&mut found.value.applied);
        found.value.version += 1;
        self.admin.store_layout(found.version, &found.value).await.expect("nobody else changes the layout");
    }

    pub fn shards(&self) -> BTreeMap<ShardId, ShardState> {
        self.admin.shards().borrow().shards.iter().map(|(shard, state)| (*shard, state.value.clone())).collect()
    }

    /// Which node is the controller.
    pub fn controller(&self) -> Option<u64> {
        self.nodes.iter().find(|(_, node)| node.handle.is_controller()).map(|(number, _)| *number)
    }

    /// Waits for one: between two of them there is none.
    pub async fn a_controller(&self) -> u64 {
        eventually("there is a controller", async || self.controller().ok_or("none".into())).await
    }

    /// Waits until the session of a node that was cut off has ended.
    pub async fn session_ends(&self, node: u64) {
        let gone = async || {
            let there = self.admin.membership().borrow().nodes.contains_key(&id(node));
            if there { Err("it still counts as alive".to_owned()) } else { Ok(()) }
        };
        eventually("its session ends", gone).await;
    }

    /// Waits until a node is registered in another life than `incarnation`.
    pub async fn registers_again(&self, node: u64, incarnation: u64) {
        let back = async || {
            let now = self.nodes[&node].handle.membership();
            if now.registered && now.incarnation > incarnation { Ok(()) } else { Err(format!("{now:?}")) }
        };
        eventually("it registers again", back).await;
    }

    /// Switches the cache on, which these nodes do not have: they overrule it. Returns what they say then.
    pub async fn overruled_cache(&self) -> CacheState {
        let present = self.admin.cache_state().await.expect("a state");
        let warming = present.value.warming(None, "a server");
        self.admin.store_cache_state(present.version, &warming).await.expect("stored");
        let mut states = self.admin.watch_cache_state();
        let off = states.wait_for(|state| state.generation > warming.generation);
        tokio::time::timeout(PATIENCE, off).await.expect("in time").expect("a state").clone()
    }

    /// Has every node compare its shards anew.
    pub fn compare(&self) {
        self.nodes.values().for_each(|node| node.handle.start_comparison());
    }

    /// The state in which nothing is left to be done; what is missing otherwise.
    pub async fn settled(&self) -> Result<(), String> {
        let controller = self.controller().ok_or("there is no controller")?;
        let status = self.nodes[&controller].handle.controller().ok_or("it just lost its lease")?;
        let shards = &status.overview;
        if shards.waiting > 0 || shards.unplaced > 0 || shards.unraised > 0 {
            return Err(format!("the controller is not done: {status:?}"));
        }
        let layout = self.admin.layout().await.map_err(|e| e.to_string())?.value;
        if status.layout_version != Some(layout.version) {
            return Err(format!("the controller has not seen layout {}: {status:?}", layout.version));
        }
        let layout = layout.applied;
        let shards = self.shards();
        for (shard, state) in &shards {
            let members: BTreeSet<NodeId> = state.members.iter().copied().collect();
            if members != state.target.iter().copied().collect()
                || !state.joining.is_empty()
                || !state.leaving.is_empty()
            {
                return Err(format!("shard {shard} moves: {state:?}, {:?}", self.copies_under_way()));
            }
            if let Some(node) = members.iter().find(|m| !layout.nodes.get(m).is_some_and(LayoutNode::takes_data)) {
                return Err(format!("shard {shard} is on {node}, which is to hold nothing"));
            }
        }
        let backlog = self.metadata.repair_backlog().await.map_err(|e| e.to_string())?;
        if !backlog.is_empty() {
            let errors: Vec<_> = self.nodes.values().map(|n| n.handle.repairs().last_errors).collect();
            return Err(format!("repairs wait: {backlog:?} {errors:?}"));
        }
        let written = self.written.lock().clone();
        for (chunk, payload) in &written {
            let members = &shards[&ShardId::of_chunk(chunk, SHARDS)].members;
            let expected: BTreeSet<NodeId> = members.iter().copied().collect();
            let mut copies: BTreeSet<NodeId> = self.copies(*chunk, payload).await.into_iter().map(id).collect();
            // The disks of a node that does not run are nobody's to clear.
            copies.retain(|node| expected.contains(node) || self.nodes.values().any(|running| running.id == *node));
            if copies != expected {
                return Err(format!("chunk {chunk} lies on {copies:?}, not on {expected:?}"));
            }
        }
        let mut verified = 0;
        for node in self.nodes.values() {
            for (shard, verdict) in node.handle.verified() {
                verdict.map_err(|why| format!("shard {shard} is not verified by {}: {why}", node.id))?;
                verified += 1;
            }
        }
        if verified != SHARDS {
            return Err(format!("{verified} shards are verified"));
        }
        // Whichever node is asked.
        for node in self.nodes.values() {
            for (shard, verdict) in node.handle.verified_everywhere().await {
                verdict.map_err(|why| format!("shard {shard} is not verified, says {}: {why}", node.id))?;
            }
        }
        let healthy = status.overview.shards.get(&ShardHealth::Healthy).copied().unwrap_or(0);
        if healthy == u64::from(SHARDS) { Ok(()) } else { Err(format!("{healthy} shards are healthy: {status:?}")) }
    }

    fn copies_under_way(&self) -> Vec<String> {
        self.nodes.values().map(|node| format!("{}: {:?}", node.id, node.handle.rebuild())).collect()
    }

    pub async fn settle(&self, what: &str) {
        eventually(what, async || self.settled().await).await;
        self.check_nothing_is_lost().await;
    }

    pub async fn stop(mut self) {
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.kill(node).await;
        }
        self.metadata.close().await;
    }
}

/// Gives a node its place in the layout.
pub fn assign(layout: &mut Layout, node: u64) {
    layout.nodes.insert(id(node), LayoutNode { zone: format!("zone-{node}"), weight: 1, draining: false });
}
