//! Cold tiers of a running node: which there are, and what stands behind each.
//!
//! Tiers are rows of the database that operators add ([`TierLedger`](holdfast_actors::ports::TierLedger)); every node
//! keeps a [`TierRegistry`], which looks for changes every few seconds and has one adapter a tier.
//!
//! | module | what |
//! |---|---|
//! | `settings` | the stored form: secrets are sealed in it |
//! | `adapters` | from settings to an adapter |
//! | `registry` | names to adapters, kept up to date |
//! | `watch` | the loop that does so, the checks and the metrics |
//!
//! # On failure
//! A tier whose adapter cannot be built is tried again with growing pauses; until then it is unavailable, and no other
//! tier is held up. While settings that were changed cannot be worked with, the adapter of those before goes on. When
//! the database does not answer, what was known stays.

mod adapters;
mod registry;
mod settings;
mod watch;

pub use registry::{PreparedTier, RegistryParts, TierRegistry, TierState};
pub use watch::{Counts, WatchSettings, run};

#[cfg(test)]
mod tests;
