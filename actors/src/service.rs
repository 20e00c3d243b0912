//! Supervised actors: thin shells around decisions.
//!
//! ```text
//! NodeSupervisor ── IngestActor   publishes what the node admits, from the health of disks and metadata
//!                ├─ DiskActor ×n  drives one disk's scrub, compaction and checkpoints, watches its health
//!                └─ CleanupActor  runs the passes that give space back
//!
//! LoopsSupervisor ── BackgroundLoop ×n  one loop of `flow` each, such as those of `flow::shards`
//! ```
//!
//! When a child that ended is started again, and when no more, is in [`supervisor`] and [`loops`].
//!
//! A node has one `LoopsSupervisor` for each kind of background work: shards ([`cluster`]), events with the consumers
//! of the bus, lifecycle rules, cold tiers.
//!
//! No actor stands in the path of a request: the data plane asks [`admission::Admission`], a shared handle, and reads
//! and writes through ports. So an actor that dies delays housekeeping, never a request; durability never depends on
//! one, nor on `post_stop`. What must survive a restart lives in the handles of [`node::NodeShared`].
//!
//! **Mailboxes** are unbounded in ractor. Here they hold ticks (one outstanding each, see [`ticker`]), the ends of
//! tracked tasks (one of a kind outstanding), and commands of operators, which [`node::NodeHandle`] limits.
//!
//! **Handlers decide, tracked tasks wait.** A handler does no I/O; it starts tasks in a `JoinSet` that belongs to the
//! actor's state, which aborts them when the actor ends in whatever way. A task that panics has failed ([`tracked`]).
//!
//! Actors have no registered names, since several nodes run in one process in tests: references are handed out through
//! [`node::NodeHandle`], which always has the current ones.

pub mod admission;
mod children;
pub mod cleanup;
pub mod cluster;
pub mod disk;
mod ingest;
pub mod loops;
pub mod node;
mod supervisor;
mod ticker;
mod tracked;

pub use admission::{Admission, Permit, Rejected};
pub use cluster::{ClusterHandle, ClusterParts, ClusterSettings};
pub use loops::{LoopSpec, LoopsHandle, TooOften};
pub use node::{ChildKind, NodeHandle, NodeHealth, NodeParts};
pub use supervisor::start;
