//! Tells metadata about replicas that were found missing or damaged, in the background.
//!
//! Bound: a queue of [`QUEUE_MAX`]; what does not fit is dropped and counted, since the next read, a scrub or a
//! comparison of digests finds it again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::{ChunkId, NodeId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::ports::metadata::MetadataResult;
use crate::ports::{Clock, MetadataStore};

/// Findings that may wait.
const QUEUE_MAX: usize = 1_024;
/// Findings told at once.
const BATCH_MAX: usize = 256;
/// Time for telling a batch.
const TELL_MAX: Duration = Duration::from_secs(10);
/// For how long a finding that was told is not told again: a popular chunk is read many times before it is repaired.
const TOLD_FOR: Duration = Duration::from_secs(60);
/// Findings remembered as told.
const TOLD_MAX: usize = 16_384;

/// Where repairs are queued.
#[async_trait]
pub trait RepairQueue: Send + Sync + 'static {
    /// See [`MetadataUpkeep::queue_repairs`](crate::ports::metadata::MetadataUpkeep::queue_repairs).
    async fn queue(&self, repairs: &[(ChunkId, NodeId)]) -> MetadataResult<()>;
}

/// Repairs in metadata.
pub struct MetadataRepairs {
    /// Metadata.
    pub metadata: Arc<dyn MetadataStore>,
    /// Time of day, which is stored with a repair.
    pub clock: Arc<dyn Clock>,
}

#[async_trait]
impl RepairQueue for MetadataRepairs {
    async fn queue(&self, repairs: &[(ChunkId, NodeId)]) -> MetadataResult<()> {
        self.metadata.queue_repairs(repairs, self.clock.now_ms()).await
    }
}

/// The end that findings are dropped into.
pub(super) struct Heal {
    findings: mpsc::Sender<(ChunkId, NodeId)>,
}

impl Heal {
    pub(super) fn start(repairs: Arc<dyn RepairQueue>) -> Self {
        let (findings, queue) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(tell(repairs, queue));
        Self { findings }
    }

    /// `node` lacks the chunk, or has it damaged. Does not wait.
    pub(super) fn note(&self, chunk: ChunkId, node: NodeId) {
        if self.findings.try_send((chunk, node)).is_err() {
            metrics::counter!("holdfast_replica_findings_dropped_total").increment(1);
        }
    }
}

async fn tell(repairs: Arc<dyn RepairQueue>, mut findings: mpsc::Receiver<(ChunkId, NodeId)>) {
    let mut told = HashSet::new();
    let mut since = Instant::now();
    let mut batch = Vec::new();
    while findings.recv_many(&mut batch, BATCH_MAX).await > 0 {
        if since.elapsed() > TOLD_FOR || told.len() > TOLD_MAX {
            told.clear();
            since = Instant::now();
        }
        batch.retain(|finding| told.insert(*finding));
        let count = batch.len() as u64;
        if count > 0 {
            let error = match tokio::time::timeout(TELL_MAX, repairs.queue(&batch)).await {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_) => Some("no answer in time".to_owned()),
            };
            match error {
                None => metrics::counter!("holdfast_replica_repairs_queued_total").increment(count),
                Some(error) => {
                    tracing::warn!(count, error, "cannot queue repairs of replicas, they will be found again");
                    metrics::counter!("holdfast_replica_findings_dropped_total").increment(count);
                    batch.iter().for_each(|finding| {
                        told.remove(finding);
                    });
                }
            }
        }
        batch.clear();
    }
}
