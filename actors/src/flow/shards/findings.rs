//! Damage found on this node's disks, on its way to the queue of repairs.

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_protocol::ChunkId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Chunks that may wait. A disk that is damaged further will be found to be so by the next scrub, or is lost anyway.
const FINDINGS_MAX: usize = 65_536;

/// Chunks of this node that do not match their checksums. Made before the disks are opened, since recovery finds damage
/// too.
#[derive(Debug, Default)]
pub struct Findings {
    chunks: Mutex<BTreeSet<ChunkId>>,
    arrived: Notify,
}

impl Findings {
    /// An empty list.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Takes note of a damaged chunk. Never blocks; may be called from any thread.
    pub fn push(&self, chunk: ChunkId) {
        let mut chunks = self.chunks.lock();
        if chunks.len() < FINDINGS_MAX {
            chunks.insert(chunk);
        } else {
            metrics::counter!("holdfast_findings_dropped_total").increment(1);
        }
        drop(chunks);
        self.arrived.notify_one();
    }

    /// Takes up to `limit` out.
    pub fn take(&self, limit: usize) -> Vec<ChunkId> {
        let mut chunks = self.chunks.lock();
        let taken: Vec<ChunkId> = chunks.iter().copied().take(limit).collect();
        for chunk in &taken {
            chunks.remove(chunk);
        }
        taken
    }

    /// Waits until something was put in.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }
}
