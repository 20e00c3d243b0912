//! [`ReplicatedChunks`]: the `ChunkStore` of a cluster. Chunks are written to a quorum of replicas and read from any.
//!
//! | module | what |
//! |---|---|
//! | `write` | planning a write, its sink |
//! | `feed` | one remote replica of a write: a bounded queue and the task behind it |
//! | `tally` | who has acknowledged, who is given up, whether a quorum is still possible |
//! | `read` | bodies that go on with the next replica; hedging |
//! | `pace` | what is remembered about peers: latencies, stalls, budgets |
//! | `heal` | tells metadata about replicas that were found missing or damaged |
//!
//! # Writes
//! A chunk goes to the local replica and to all others at the same time. W of the members must have it durable and
//! acknowledged under the fence, and a majority of the wanted number of replicas, joiners included: where disks were
//! lost there may be fewer members than wanted, and the last one must not acknowledge anything alone. A replica that
//! fails or stalls is given up (*missed*, and later repaired) as long as W can be reached without it; when they cannot,
//! the write fails at once and what there is of it is deleted in the background.
//!
//! # Reads
//! The local replica's pieces pass through untouched. At an error, or when the disk gives nothing for long, the next
//! replica goes on at the same byte. A damaged replica, or a member's that is missing although others have the chunk,
//! is queued for repair.
//!
//! # What is local only
//! `stat` and `list` tell of this node's disks. `delete` reaches every replica that can be reached, and is always `Ok`:
//! what a node keeps that cannot be reached, or cannot delete now, is an orphan there, which its own walk finds.
//!
//! # Memory
//! Bytes that wait for a peer hold buffers of the local disks where these exist. They are bounded for each replica of a
//! chunk, for each peer, and for the node ([`ReplicateOptions::queued_bytes_max`]), which must stay well below the
//! disks' buffers: two nodes whose buffers all wait for each other would both stand still until patience ends.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::join_all;
use holdfast_protocol::journal::ErrorKind;
use holdfast_protocol::{ChunkId, ContentId, NodeId};
use tokio::sync::Semaphore;

use super::cluster_view::ClusterView;
use super::report::Reporter;
use super::self_report::SelfReport;
use crate::ports::chunks::{ChunkInfo, ContentHold, ReplicaStore};
use crate::ports::peers::IDS_MAX;
use crate::ports::{ChunkBody, ChunkError, ChunkSink, ChunkSpec, ChunkStore, Peers};

mod feed;
mod heal;
mod pace;
mod read;
mod tally;
#[cfg(test)]
mod tests;
mod write;

pub use heal::{MetadataRepairs, RepairQueue};

use heal::Heal;
use pace::PeerBook;

/// How replication is paced and bounded.
#[derive(Debug, Clone)]
pub struct ReplicateOptions {
    /// Bytes of one chunk that may wait for one peer.
    pub replica_queue_bytes: usize,
    /// Bytes that may wait for peers on this node together; for one peer at most half of them.
    pub queued_bytes_max: usize,
    /// How long a peer may make no progress before it is given up, if it can be spared.
    pub patience: Duration,
    /// How long a new write waits to hear whether its epoch is over, before bytes are sent.
    pub create_patience: Duration,
    /// How long replicas beyond the quorum are waited for; longer, up to `patience`, if the quorum itself took longer.
    pub straggler_patience: Duration,
    /// How long a quorum may take to acknowledge a chunk that was sent whole.
    pub ack_timeout: Duration,
    /// For how long a peer that stalled is given less.
    pub stall_memory: Duration,
    /// How often a write is planned anew because its shard moved.
    pub replans_max: u32,
    /// How long such a write waits for the shard map to catch up.
    pub replan_wait: Duration,
    /// Bounds of the time after which a second replica is asked for a read's first bytes.
    pub hedge_delay: Range<Duration>,
    /// Time for one batch of deletions on one node.
    pub delete_timeout: Duration,
}

impl Default for ReplicateOptions {
    fn default() -> Self {
        Self {
            replica_queue_bytes: 4 << 20,
            // A third of the disks' 80 MiB of buffers.
            queued_bytes_max: 26 << 20,
            patience: Duration::from_secs(2),
            create_patience: Duration::from_millis(20),
            straggler_patience: Duration::from_millis(50),
            ack_timeout: Duration::from_secs(30),
            stall_memory: Duration::from_secs(30),
            replans_max: 3,
            replan_wait: Duration::from_secs(1),
            hedge_delay: Duration::from_millis(20)..Duration::from_secs(1),
            delete_timeout: Duration::from_secs(10),
        }
    }
}

/// What replication works on.
pub struct ReplicateParts {
    /// This node's own replicas.
    pub local: Arc<dyn ReplicaStore>,
    /// The others.
    pub peers: Arc<dyn Peers>,
    /// Who holds what.
    pub view: Arc<ClusterView>,
    /// Where repairs are queued.
    pub repairs: Arc<dyn RepairQueue>,
    /// Where writes that are under way are told of.
    pub self_report: Arc<SelfReport>,
    /// Where writes are reported that missed a replica.
    pub reporter: Option<Reporter>,
    /// Pace and bounds.
    pub options: ReplicateOptions,
}

/// What sinks and bodies share.
struct Shared {
    local: Arc<dyn ReplicaStore>,
    peers: Arc<dyn Peers>,
    view: Arc<ClusterView>,
    options: ReplicateOptions,
    book: PeerBook,
    /// Bytes that wait for peers, in units of [`feed::UNIT_BYTES`].
    queued: Arc<Semaphore>,
    heal: Heal,
    self_report: Arc<SelfReport>,
    reporter: Option<Reporter>,
    /// Counts nearly every chunk that is read: looked up once.
    local_reads: metrics::Counter,
}

/// See the module's page.
#[derive(Clone)]
pub struct ReplicatedChunks {
    shared: Arc<Shared>,
}

impl ReplicatedChunks {
    /// On a runtime, on which the task that queues repairs then lives, until the last sink and body are gone.
    pub fn start(parts: ReplicateParts) -> Self {
        let ReplicateParts { local, peers, view, repairs, self_report, reporter, options } = parts;
        let units = feed::units(options.queued_bytes_max);
        let shared = Shared {
            local,
            peers,
            view,
            book: PeerBook::new(&options),
            options,
            queued: Arc::new(Semaphore::new(units)),
            heal: Heal::start(repairs),
            self_report,
            reporter,
            local_reads: metrics::counter!("holdfast_replica_reads_total", "from" => "local"),
        };
        Self { shared: Arc::new(shared) }
    }
}

#[async_trait]
impl ChunkStore for ReplicatedChunks {
    async fn create(&self, spec: ChunkSpec) -> Result<Box<dyn ChunkSink>, ChunkError> {
        write::create(&self.shared, spec).await
    }

    fn read(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        read::read(&self.shared, id, range, |local, range| local.read(id, range))
    }

    fn read_copied(&self, id: ChunkId, range: Range<u32>) -> Result<ChunkBody, ChunkError> {
        read::read(&self.shared, id, range, |local, range| local.read_copied(id, range))
    }

    fn begin_content(&self, content: ContentId) -> Option<ContentHold> {
        Some(Box::new(self.shared.self_report.begin_write(content)))
    }

    fn stat(&self, id: ChunkId) -> Option<ChunkInfo> {
        self.shared.local.stat(id)
    }

    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        self.shared.delete(ids).await
    }

    fn list(&self, after: Option<ChunkId>, limit: usize) -> Vec<ChunkInfo> {
        self.shared.local.list(after, limit)
    }
}

impl Shared {
    /// Tells operators that a write is on a quorum, but not everywhere. Repairs are queued with its commit.
    fn report_missed(&self, missed: &[NodeId]) {
        let Some(reporter) = &self.reporter else { return };
        for node in missed {
            let detail = "a write did not reach this node in time, repairs are queued";
            reporter.report(ErrorKind::ReplicationShort, format!("node {node}"), detail);
        }
    }

    /// Deletes chunks wherever they may be. A replica that cannot delete now, this node's too, keeps them for its walk
    /// for orphans: one sick disk must not hold up the others.
    async fn delete(&self, ids: &[ChunkId]) -> Result<(), ChunkError> {
        let me = self.view.me();
        let mut remote: BTreeMap<NodeId, Vec<ChunkId>> = BTreeMap::new();
        for id in ids {
            let Some(placement) = self.view.placement(id) else { continue };
            let leaving = placement.state.leaving.iter().map(|leaver| leaver.node);
            for node in placement.state.write_set().chain(leaving).filter(|node| *node != me) {
                remote.entry(node).or_default().push(*id);
            }
        }
        let remote = join_all(remote.iter().map(|(node, ids)| self.delete_on(*node, ids)));
        let local = async {
            for batch in ids.chunks(IDS_MAX) {
                if let Err(error) = self.local.delete(batch).await {
                    metrics::counter!("holdfast_replica_deletes_left_total").increment(batch.len() as u64);
                    tracing::warn!(%error, "chunks could not be deleted here, left to the walk for orphans");
                }
            }
        };
        tokio::join!(local, remote);
        Ok(())
    }

    /// As far as the node can be reached.
    async fn delete_on(&self, node: NodeId, ids: &[ChunkId]) {
        for batch in ids.chunks(IDS_MAX) {
            let deleted = if self.view.is_alive(node) {
                tokio::time::timeout(self.options.delete_timeout, self.peers.delete(node, batch)).await
            } else {
                metrics::counter!("holdfast_replica_deletes_left_total").increment(batch.len() as u64);
                return;
            };
            let error = match deleted {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "no answer in time".to_owned(),
            };
            metrics::counter!("holdfast_replica_deletes_left_total").increment(batch.len() as u64);
            tracing::debug!(%node, error, "chunks could not be deleted on a replica, left to its walk for orphans");
            return;
        }
    }
}
