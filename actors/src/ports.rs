//! What a node needs from the world, as traits. `node` holds the adapters; each port but [`Disk`], [`Clock`] and
//! [`tiers::Tiers`] has one conformance suite that every adapter runs.

pub mod accesses;
pub mod chunks;
pub mod clock;
pub mod coordination;
pub mod disks;
pub mod events;
pub mod journal;
pub mod locks;
pub mod metadata;
pub mod outbox;
pub mod peers;
pub mod tiering;
pub mod tiers;

pub use accesses::AccessLog;
pub use chunks::{ChunkBody, ChunkError, ChunkSink, ChunkSpec, ChunkStore};
pub use clock::{Clock, SystemClock};
pub use coordination::{Coordination, CoordinationError};
pub use disks::{Disk, DiskStatus, ScrubStep};
pub use events::{EventBus, EventError};
pub use journal::Journal;
pub use locks::{LockError, Locks};
pub use metadata::{MetadataError, MetadataStore};
pub use outbox::Outbox;
pub use peers::{PeerError, Peers, ReplicaService};
pub use tiering::TierLedger;
pub use tiers::{ColdTier, TierError};
