//! The asynchronous paths of a request, over ports.

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
