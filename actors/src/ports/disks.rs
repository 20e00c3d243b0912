//! The `Disk` port: what the actors do to each disk beside reading and writing chunks.

use async_trait::async_trait;

use super::ChunkError;
use crate::domain::admission::DiskHealth;

/// What a disk says of itself. Cheap to ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskStatus {
    /// Whether it takes reads and writes.
    pub health: DiskHealth,
    /// Why it is not healthy.
    pub detail: Option<String>,
    /// Size of its file system.
    pub total_bytes: u64,
    /// Room for this process on it.
    pub free_bytes: u64,
    /// Bytes of live chunks, with their headers.
    pub live_bytes: u64,
    /// Live chunks.
    pub chunks: u64,
    /// Segment files.
    pub segments: u64,
}

/// What one step of scrubbing found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubStep {
    /// Bytes read and compared with their checksums.
    pub bytes: u64,
    /// Chunks read.
    pub chunks: u64,
    /// Chunks that do not match their checksums; the disk names them in the log and counts them in a metric.
    pub corrupt: u64,
    /// Whether the step reached the end: the next one starts over.
    pub pass_finished: bool,
}

/// One disk of this node.
#[async_trait]
pub trait Disk: Send + Sync + 'static {
    /// Its directory, for logs and metrics.
    fn name(&self) -> &str;

    /// How it is now.
    fn status(&self) -> DiskStatus;

    /// Writes down what makes the next start fast (index files). Not needed for durability.
    ///
    /// # Errors
    /// I/O errors; the disk may then be fenced.
    async fn checkpoint(&self) -> Result<(), ChunkError>;

    /// Reads about `bytes_max` bytes on from where the last step ended and checks them. The position survives a
    /// restart.
    ///
    /// Cancel safe: the next step goes on with what this one was reading.
    ///
    /// # Errors
    /// I/O errors. What is corrupt is no error but in the result.
    async fn scrub_step(&self, bytes_max: u64) -> Result<ScrubStep, ChunkError>;

    /// Moves about `bytes_max` bytes of live chunks out of segments that holes cannot make small. Returns the bytes
    /// moved; 0 when there is nothing left that is worth it.
    ///
    /// # Errors
    /// I/O errors; no chunk is lost.
    async fn compact_step(&self, bytes_max: u64) -> Result<u64, ChunkError>;
}
