//! Who holds which shard: what the operator wants, what follows from it, and how a shard gets there.
//!
//! * [`layout`]: changes are staged, shown with their cost, then applied.
//! * [`assign()`]: from a layout and the present holders to the wanted holders, moving as little as possible. How many
//!   replicas each node gets is fixed first (`quota`), then which, as a flow of least cost (`flow`).
//! * [`shard`]: the states of one shard between "is" and "is wanted", as a pure state machine.
//! * [`controller`]: all shards together: which of them change now.
//! * [`danger`]: which shards to rebuild first, and what the operator is told about their health.
//!
//! Nothing here waits, reads a clock or talks to anybody: the controller feeds events and writes the outcome to the
//! coordination service by compare-and-set.

mod assign;
pub mod controller;
pub mod danger;
mod flow;
pub mod layout;
mod quota;
pub mod shard;

#[cfg(test)]
mod assign_tests;
#[cfg(test)]
mod controller_tests;
#[cfg(test)]
mod simulation;

pub use assign::{Assignment, PlacementError, assign};
pub use danger::{Danger, ShardHealth};
pub use layout::{LayoutDiff, LayoutError};
pub use shard::{ShardEffect, ShardEvent, Transition};
