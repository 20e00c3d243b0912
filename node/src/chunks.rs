//! The `ChunkStore` port on the disk engine.
//!
//! * `digests`: digests of shards, many in one walk over the index.
//! * [`disks`]: the ports of chunks and disks on `holdfast_storage`.
//! * [`tracked`]: remembers which contents are being written, for the walk for orphans, and limits the time that one
//!   chunk may take. It stands around whatever store is below.

mod digests;
pub mod disks;
pub mod tracked;

pub use disks::{DiskChunks, EngineDisk};
pub use tracked::TrackedChunks;
