//! The disk engine of Holdfast: chunks on disks, durable before they are acknowledged, verified before they are served.
//!
//! An [`Engine`] owns one data directory; a [`DiskSet`] joins the disks of a node. What is on the disk is described in
//! [`mod@format`]; how the engine is put together, in [`engine`].
//!
//! | module | what |
//! |---|---|
//! | [`mod@write`], [`read`], `verify` | one chunk onto the disk, from it to a reader, and compared on the disk itself |
//! | `commit` | one fdatasync for all writers that wait |
//! | [`index`], `segment` | what exists and where; one segment while the engine runs |
//! | [`mapping`] | resident chunks, sent without being copied |
//! | [`buf`], [`scratch`](Scratch), [`io`] | memory, and the ways to the disk: uring, threads, simulated |
//! | `jobs`, [`scrub`] | work that nobody waits for: holes, index files, removals; reading all that is alive |
//! | `watch`, [`finding`], [`error`] | disks that give no answer; damage that was found; what errors ask of callers |

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "a test may panic"))]

pub mod buf;
mod commit;
pub mod disks;
pub mod engine;
pub mod error;
pub mod finding;
pub mod format;
pub mod index;
pub mod io;
mod jobs;
pub mod mapping;
pub mod read;
mod scratch;
pub mod scrub;
mod segment;
mod verify;
mod watch;
pub mod write;

pub use disks::DiskSet;
pub use engine::{
    ChunkStat, CompactionReport, Engine, EngineConfig, EngineStats, RecordLocation, RecoveryReport, SegmentStats,
};
pub use error::{OpenError, ReadError, WriteError};
pub use finding::{Finding, FindingSink, FindingSource};
pub use read::ChunkReader;
pub use scratch::Scratch;
pub use scrub::{ScrubConfig, ScrubStep, Scrubber};
pub use write::ChunkWriter;

/// Milliseconds since 1970, for what is written down; never for decisions.
fn unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis() as u64)
}
