//! A cluster in one process for the tests of flows: stores in memory, a network that can be cut, a shard map set by
//! hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_protocol::cluster::ShardState;
use holdfast_protocol::{ChunkId, ContentId, Epoch, NodeId, ShardId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::cluster_view::ClusterView;
use super::replica_service::{LocalReplicas, ReplicaLimits};
pub use crate::ports::chunks::conformance::pattern;
use crate::ports::chunks::memory::MemoryChunkStore;
use crate::ports::chunks::{ChunkSpec, ReplicaStore};
use crate::ports::coordination::{
    LiveNode, Membership, NodeAddresses, NodeAnnouncement, NodeState, Ownership, ShardMap, Version, Versioned,
};
use crate::ports::peers::in_process::InProcessNetwork;
use crate::ports::peers::{Fence, ReplicaService, ReplicaWrite};

/// Shards of the cluster.
pub const SHARDS: u32 = 4;

/// One node.
pub struct Node {
    pub store: Arc<MemoryChunkStore>,
    pub view: Arc<ClusterView>,
    pub replicas: Arc<LocalReplicas>,
    pub ownership: Ownership,
    /// Each node has its own mirror of the map, which may be late.
    pub shards: watch::Sender<Arc<ShardMap>>,
    pub membership: watch::Sender<Arc<Membership>>,
    _service: Arc<dyn ReplicaService>,
}

/// The cluster.
pub struct TestCluster {
    pub network: InProcessNetwork,
    pub nodes: Vec<Node>,
}

/// The id of node number `index`.
pub fn node_id(index: usize) -> NodeId {
    NodeId::from(index as u64 + 1)
}

/// A shard on these nodes.
pub fn shard_on(nodes: &[usize], epoch: u64) -> ShardState {
    let mut state = ShardState::founding(nodes.iter().map(|index| node_id(*index)).collect());
    state.epoch = Epoch(epoch);
    state
}

fn membership(alive: &[usize]) -> Arc<Membership> {
    let nodes = alive.iter().map(|index| {
        let id = node_id(*index);
        let address = || format!("node-{index}:1");
        let announcement = NodeAnnouncement {
            id,
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
        (id, LiveNode { announcement, incarnation: 1 })
    });
    Arc::new(Membership { nodes: nodes.collect() })
}

impl Node {
    fn new(network: &InProcessNetwork, index: usize, store: Arc<MemoryChunkStore>) -> Self {
        let id = node_id(index);
        let (shards, map) = watch::channel(Arc::default());
        let (membership, live) = watch::channel(Arc::default());
        let ownership = Ownership::default();
        ownership.extend(Instant::now(), Duration::from_secs(1_000_000));
        let view = ClusterView::new(id, SHARDS, map, live, ownership.clone());
        let port: Arc<dyn ReplicaStore> = store.clone();
        let replicas = Arc::new(LocalReplicas::new(port, view.clone(), ReplicaLimits::default()));
        let service: Arc<dyn ReplicaService> = replicas.clone();
        network.join(id, &service);
        Self { store, view, replicas, ownership, shards, membership, _service: service }
    }

    /// Tells this node alone how the shards are.
    pub fn set_map(&self, state: &ShardState) {
        let entry = Arc::new(Versioned { version: Version(state.epoch.0 as i32), value: state.clone() });
        let shards: BTreeMap<_, _> = (0..SHARDS).map(|n| (ShardId(n), entry.clone())).collect();
        self.shards.send_replace(Arc::new(ShardMap { shards }));
    }
}

impl TestCluster {
    /// So many nodes, all alive; every shard is on the first `members` of them.
    pub fn new(nodes: usize, members: usize) -> Self {
        Self::with_stores((0..nodes).map(|_| Arc::new(MemoryChunkStore::new())).collect(), members)
    }

    /// With these stores.
    pub fn with_stores(stores: Vec<Arc<MemoryChunkStore>>, members: usize) -> Self {
        let network = InProcessNetwork::default();
        let nodes: Vec<_> =
            stores.into_iter().enumerate().map(|(index, store)| Node::new(&network, index, store)).collect();
        let cluster = Self { network, nodes };
        cluster.set_map(&shard_on(&(0..members).collect::<Vec<_>>(), 1));
        cluster.set_alive(&(0..cluster.nodes.len()).collect::<Vec<_>>());
        cluster
    }

    /// Tells every node how the shards are.
    pub fn set_map(&self, state: &ShardState) {
        for node in &self.nodes {
            node.set_map(state);
        }
    }

    /// Tells every node who is alive.
    pub fn set_alive(&self, alive: &[usize]) {
        for node in &self.nodes {
            node.membership.send_replace(membership(alive));
        }
    }

    /// Cuts or heals both ways between a node and all others.
    pub fn isolate(&self, index: usize, cut: bool) {
        for other in (0..self.nodes.len()).filter(|other| *other != index) {
            self.network.set_cut(node_id(index), node_id(other), cut);
            self.network.set_cut(node_id(other), node_id(index), cut);
        }
    }

    /// A node's process ends and starts again on the same disks.
    pub fn restart(&mut self, index: usize) {
        let old = &self.nodes[index];
        let (shards, live) = (old.shards.borrow().clone(), old.membership.borrow().clone());
        let node = Node::new(&self.network, index, old.store.clone());
        node.shards.send_replace(shards);
        node.membership.send_replace(live);
        self.nodes[index] = node;
    }
}

/// A chunk's id.
pub fn chunk(index: u32) -> ChunkId {
    ContentId([0x6b; 12]).chunk(index)
}

/// What is to be written.
pub fn spec(id: ChunkId, size: usize) -> ChunkSpec {
    ChunkSpec { id, size_bytes: size as u32, label: Bytes::from_static(b"{}") }
}

/// The same, for a replica.
pub fn replica_write(id: ChunkId, size: usize, epoch: u64) -> ReplicaWrite {
    let fence = Fence { shard: ShardId::of_chunk(&id, SHARDS), epoch: Epoch(epoch) };
    ReplicaWrite { fence, spec: spec(id, size) }
}
