//! How an engine is set up.

use std::path::PathBuf;
use std::time::Duration;

use crate::finding::FindingSink;

/// How an engine is set up.
#[derive(Clone)]
pub struct EngineConfig {
    /// The data directory; made if it is missing.
    pub dir: PathBuf,
    /// The cluster that the directory belongs to; a directory of another one is refused.
    pub cluster: [u8; 16],
    /// The node that the directory belongs to; a directory of another one is refused.
    pub node: [u8; 16],
    /// Length of a segment in bytes; when the disk is nearly full, shorter ones are made.
    pub segment_size_bytes: u64,
    /// Free space that chunks leave on the file system, so that tombstones and index files can always be written.
    pub reserve_bytes: u64,
    /// A disk with an operation in flight for longer is unresponsive: it gets no new chunks until it answers. `None`:
    /// never.
    pub unresponsive_after: Option<Duration>,
    /// A disk with an operation in flight for so long is fenced, if at least as many others of its [`crate::DiskSet`]
    /// answer as do not. `None`: never; nor without `unresponsive_after`.
    pub fence_unresponsive_after: Option<Duration>,
    /// Whether other disks use the same buffers: this one then reads into half of them at most, and has fewer writes in
    /// flight, so that it leaves some to them when it hangs.
    pub shares_buffers: bool,
    /// Whether the engine runs its jobs and its watch on threads of its own. Off in simulations, which call
    /// [`crate::Engine::run_jobs`] and [`crate::Engine::tick`].
    pub background: bool,
    /// Told of every damage that is found.
    pub on_finding: Option<FindingSink>,
}

impl EngineConfig {
    /// Settings for production: segments of 1 GiB, 256 MiB in reserve, jobs in the background; a disk may take 30
    /// seconds to answer, and is fenced after ten minutes.
    pub fn new(dir: impl Into<PathBuf>, cluster: [u8; 16], node: [u8; 16]) -> Self {
        Self {
            dir: dir.into(),
            cluster,
            node,
            segment_size_bytes: 1 << 30,
            reserve_bytes: 256 << 20,
            unresponsive_after: Some(Duration::from_secs(30)),
            fence_unresponsive_after: Some(Duration::from_secs(600)),
            shares_buffers: false,
            background: true,
            on_finding: None,
        }
    }
}
