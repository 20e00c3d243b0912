//! What a node does, asynchronously and over ports: the paths of requests, and the work behind them.
//!
//! | module | does |
//! |---|---|
//! | [`put`], [`get`], [`hashing`] | bytes of a request onto the disks, and back |
//! | [`replicate`], [`replica_service`], [`cluster_view`] | the same in a cluster: all replicas, and who has which |
//! | [`self_report`] | what a node tells its peers of itself |
//! | [`cold`] | objects in cold tiers: moved there and back, read there |
//! | [`lifecycle`], [`accesses`] | what the rules of buckets make due, and the reads that some of them go by |
//! | [`reclaim`], [`tasks`], [`consume`] | giving space back, shared by all nodes; consumers of the bus |
//! | [`relay`] | events from the outbox to the bus |
//! | [`shards`] | shards that move and heal |
//! | [`duty`], [`clocks`], [`report`] | what loops share: whose work it is, leaps of the clock, the error log |
//! | [`held`], [`key_locks`] | who is at work on what, within this process |
//!
//! Requests go by the first two rows and the reads of [`cold`]. The loops are run and restarted by [`crate::service`];
//! one that is dropped at any await leaves nothing that its successor does not find again.

pub mod accesses;
mod chunk_guard;
pub mod clocks;
pub mod cluster_view;
pub mod cold;
pub mod consume;
pub mod duty;
pub mod get;
pub mod hashing;
pub mod held;
pub mod key_locks;
pub mod lifecycle;
pub(crate) mod panics;
pub mod put;
pub mod reclaim;
pub mod relay;
pub mod replica_service;
pub mod replicate;
pub mod report;
pub mod self_report;
pub mod shards;
pub mod tasks;
mod told;

#[cfg(test)]
mod test_cluster;
