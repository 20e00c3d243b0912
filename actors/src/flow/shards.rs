//! What moves and heals shards: a node's place in the cluster, the controller, joins and leaves, repairs, comparisons.
//!
//! Each loop ends only when it cannot go on; [`crate::service::cluster`] supervises them. All work on one [`Context`]:
//! the ports, and the [`ClusterShared`] that outlives every loop. A loop that is dropped at any await leaves nothing
//! that its successor does not find again: state is in the coordination service, in metadata and on the disks.
//!
//! | loop | does |
//! |---|---|
//! | [`membership`] | keeps this node registered, and gives it up while its disks are silent ([`silence`]) |
//! | [`controller`] | competes to be the controller, and is it |
//! | [`rebuild`] | copies the shards that this node joins; tells when its disks lost what they held |
//! | [`leftovers`] | deletes what this node no longer has to hold |
//! | [`repair`] | carries out this node's repairs, and has rebuilt what lay on disks that failed ([`stranded`]) |
//! | [`compare`] | compares replicas and queues repairs for what they lack |
//!
//! Joins and repairs share how a chunk comes here ([`transfer`]), how much at once ([`budget`]) and how long a disk is
//! waited for ([`disk_steps`]). [`findings`] and [`reports`] bring in what this node's disks and other nodes tell.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::{ChunkId, ClusterId, NodeId, ShardId};

use super::cluster_view::ClusterView;
use super::key_locks::ChunkLocks;
use super::self_report::SelfReport;
use crate::ports::chunks::{ChunkInfo, ReplicaStore};
use crate::ports::coordination::{CONTROLLER, CacheFollower, Coordination, NodeAnnouncement};
use crate::ports::peers::{PeerError, Peers, ShardDigest, ShardReport};
use crate::ports::{Clock, Disk, MetadataStore};

mod budget;
pub mod compare;
pub mod controller;
mod copy_shard;
mod disk_steps;
mod findings;
pub mod leftovers;
pub mod membership;
pub mod rebuild;
pub mod repair;
mod reports;
mod silence;
mod status;
mod stranded;
mod transfer;

pub use budget::ByteBudget;
pub use disk_steps::DiskSteps;
pub use findings::Findings;
pub use reports::ReportInbox;
pub use status::{
    ClusterShared, ComparisonReport, ComparisonStatus, ControllerStatus, CopyPhase, CopyProgress, MembershipStatus,
    RebuildStatus, RepairStatus,
};

/// How shards are moved and healed.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// How long a node may be gone before its replicas are rebuilt elsewhere.
    pub rebuild_delay: Duration,
    /// How long no disk of this node may answer until it counts as gone, if those of most nodes answer; `None`: it
    /// never does.
    pub give_up_silent_after: Option<Duration>,
    /// How long a replica that was replaced still serves readers that have not heard of it.
    pub leave_grace: Duration,
    /// Bytes a second that this node fetches for joins and repairs together.
    pub repair_bandwidth_bytes: u64,
    /// Bytes of chunks that joins and repairs of this node hold or fetch at once.
    pub repair_bytes_in_flight_max: u64,
    /// Every shard is compared once within this time.
    pub comparison_period: Duration,
    /// How long a difference must last to count: longer than a write takes from its first replica to its last.
    pub comparison_settle: Duration,
    /// Shards that may be joining on one node at once. The rest waits, so that the most endangered are complete first
    /// and writes are not sent to more replicas than need be.
    pub joins_per_node_max: usize,
    /// How long a node that gave up a join is given none.
    pub join_retry: Duration,
    /// Shards that this node copies at once.
    pub copies_max: usize,
    /// Time between looks for repairs when there were none.
    pub repair_interval: Duration,
    /// Time between walks for chunks that this node need not hold, beside those after it left a shard.
    pub leftovers_interval: Duration,
    /// Time between looks at the free space, which is announced when it changed much.
    pub announce_interval: Duration,
    /// The first pause after a failure; it doubles up to [`Self::retry_max`].
    pub retry_min: Duration,
    /// See [`Self::retry_min`].
    pub retry_max: Duration,
}

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            rebuild_delay: Duration::from_secs(15 * 60),
            give_up_silent_after: Some(Duration::from_secs(10 * 60)),
            leave_grace: Duration::from_secs(5 * 60),
            repair_bandwidth_bytes: 100 << 20,
            repair_bytes_in_flight_max: 64 << 20,
            comparison_period: Duration::from_secs(60 * 60),
            comparison_settle: Duration::from_secs(5),
            joins_per_node_max: 8,
            join_retry: Duration::from_secs(60),
            copies_max: 4,
            repair_interval: Duration::from_secs(5),
            leftovers_interval: Duration::from_secs(60 * 60),
            announce_interval: Duration::from_secs(10),
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(15),
        }
    }
}

/// What a node needs to take part in a cluster.
#[derive(Clone)]
pub struct ClusterParts {
    /// The cluster that the data directory belongs to.
    pub cluster: ClusterId,
    /// What this node says of itself at first; its state follows [`ClusterShared::state`], its free space the disks.
    pub announcement: NodeAnnouncement,
    /// Who holds what.
    pub view: Arc<ClusterView>,
    /// What the nodes agree on.
    pub coordination: Arc<dyn Coordination>,
    /// Metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// This node's own chunks, not the replicated store.
    pub chunks: Arc<dyn ReplicaStore>,
    /// Its disks, for the space that it announces.
    pub disks: Vec<Arc<dyn Disk>>,
    /// The other nodes.
    pub peers: Arc<dyn Peers>,
    /// Time of day.
    pub clock: Arc<dyn Clock>,
    /// Where the replica service puts what peers report. Made before both.
    pub reports: Arc<ReportInbox>,
    /// Keeps repairs and copies of a chunk apart from writes of it for peers. Made before the replica service.
    pub chunk_locks: Arc<ChunkLocks>,
    /// What this node tells its peers of itself. Made before the replica service.
    pub self_report: Arc<SelfReport>,
    /// Where the disks put damage that they found. Made before the disks are opened.
    pub findings: Arc<Findings>,
    /// What acts by the state of the shared cache; `None` on a node that has none.
    pub cache: Option<Arc<dyn CacheFollower>>,
    /// Pace.
    pub settings: ClusterSettings,
    /// Restarts of actors allowed within `restart_window`; one more and the node stops.
    pub restarts_max: usize,
    /// See `restarts_max`.
    pub restart_window: Duration,
}

/// What every loop works on. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// Ports and pace.
    pub parts: Arc<ClusterParts>,
    /// What outlives the loops.
    pub shared: Arc<ClusterShared>,
    /// Bytes a second, and at once, for joins and repairs together.
    pub budget: Arc<ByteBudget>,
    /// Looks at what is on this node's own disks.
    pub disk_looks: Arc<DiskSteps>,
    /// Changes of it.
    pub disk_changes: Arc<DiskSteps>,
}

impl Context {
    /// A context for `parts`.
    pub fn new(parts: ClusterParts) -> Self {
        let settings = &parts.settings;
        let budget = ByteBudget::new(settings.repair_bandwidth_bytes, settings.repair_bytes_in_flight_max);
        Self {
            shared: ClusterShared::new(&parts),
            budget: Arc::new(budget),
            disk_looks: Arc::default(),
            disk_changes: Arc::default(),
            parts: Arc::new(parts),
        }
    }

    /// This node.
    pub fn me(&self) -> NodeId {
        self.parts.view.me()
    }

    /// Whoever is the controller now, as far as is known.
    pub fn controller(&self) -> Option<NodeId> {
        self.parts.coordination.leases().borrow().get(CONTROLLER).map(|holder| holder.node)
    }

    /// Whether this node is to make no repairs.
    pub(crate) fn repairs_paused(&self) -> bool {
        let held = *self.shared.repairs_held.borrow();
        held || self.parts.coordination.watch_pauses().borrow().repairs.is_some()
    }

    /// Tells the controller something, wherever it is.
    pub(crate) async fn report(&self, report: ShardReport) -> Result<(), PeerError> {
        match self.controller() {
            None => Err(PeerError::Protocol("no node is the controller".into())),
            Some(node) if node == self.me() => self.parts.reports.push(node, report),
            Some(node) => self.parts.peers.report(node, report).await,
        }
    }

    /// The digest of this node's chunks of a shard, computed off this thread: it walks over the index.
    pub(crate) async fn digest_here(&self, shard: ShardId) -> ShardDigest {
        let (chunks, shard_count) = (self.parts.chunks.clone(), self.parts.view.shard_count());
        let digest = tokio::task::spawn_blocking(move || chunks.digest(shard, shard_count));
        digest.await.expect("a walk over the index does not panic")
    }

    /// A page of this node's chunks of a shard, likewise.
    pub(crate) async fn list_here(&self, shard: ShardId, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        let (chunks, shard_count) = (self.parts.chunks.clone(), self.parts.view.shard_count());
        let page = tokio::task::spawn_blocking(move || chunks.list_shard(shard, shard_count, after, limit));
        page.await.expect("a walk over the index does not panic")
    }

    /// Pauses that grow while something fails.
    pub fn backoff(&self) -> Backoff {
        Backoff {
            next: self.parts.settings.retry_min,
            settings: (self.parts.settings.retry_min, self.parts.settings.retry_max),
        }
    }
}

/// Pauses that double from one failure to the next.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    settings: (Duration, Duration),
}

impl Backoff {
    /// The pause after the next failure.
    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = (pause * 2).min(self.settings.1);
        pause
    }

    /// Waits after a failure. Nodes that lost the same service at the same time do not all come back to it together.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.pause().mul_f64(rand::random_range(0.75..1.25))).await;
    }

    /// It works again.
    pub fn reset(&mut self) {
        self.next = self.settings.0;
    }
}
