//! The state of the cluster's shared cache, which all nodes follow.
//!
//! The cache itself stands elsewhere and may lose or forget anything. What makes it safe is agreed on here: whether it
//! may be read, on which server, and which of its entries count. Every change is a compare-and-set with the next
//! *generation*.
//!
//! ```text
//!            every node reaches the server      every node marks its writes
//!     off ───────────────────────────▶ warming ───────────────────────────▶ on
//!      ▲                                  │                                  │
//!      └──────────────────────────────────┴──────────────────────────────────┘
//!            a writer cannot mark, or the server is another one
//! ```
//!
//! * **Off**: nobody reads the cache, nobody needs to mark a write in it. A writer that switched it off answers only
//!   when every live node has acknowledged that it has seen that.
//! * **Warming**: everybody marks writes, nobody reads. A node acknowledges it when all its writes that were begun
//!   earlier have ended.
//! * **On**: marked and read. Entries count only under the *keyspace*, the generation at which the warming began, so
//!   nothing of an earlier time is ever found.

use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::NodeId;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::{Coordination, CoordinationError, CoordinationResult};

/// Longest reason that is stored, in bytes.
const REASON_BYTES_MAX: usize = 200;

/// What may be done with the cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Nothing.
    #[default]
    Off,
    /// Writes are marked in it.
    Warming,
    /// Writes are marked, reads are served.
    On,
}

impl CacheMode {
    /// For people and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Warming => "warming",
            Self::On => "on",
        }
    }
}

/// The state of the shared cache. See the module's page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheState {
    /// Rises by one with every change.
    pub generation: u64,
    /// What may be done.
    pub mode: CacheMode,
    /// Under which entries count: the generation at which the last warming began.
    pub keyspace: u64,
    /// Identity of the one server that may be used; empty while off.
    pub server: String,
    /// Why it was switched off, for the operator.
    pub reason: String,
    /// Who made this change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<NodeId>,
    /// How often in a row it was switched off soon after it had been switched on: the pause before the next try grows
    /// with it.
    pub failures: u32,
}

impl CacheState {
    /// Of a new cluster.
    pub fn initial() -> Self {
        Self { generation: 1, reason: "not used yet".into(), ..Self::default() }
    }

    fn next(&self, by: Option<NodeId>) -> Self {
        Self { generation: self.generation.saturating_add(1), by, ..self.clone() }
    }

    /// Switched off. `failures`: see the field.
    pub fn off(&self, by: Option<NodeId>, reason: &str, failures: u32) -> Self {
        let end = reason.floor_char_boundary(REASON_BYTES_MAX);
        Self {
            mode: CacheMode::Off,
            server: String::new(),
            reason: reason[..end].to_owned(),
            failures,
            ..self.next(by)
        }
    }

    /// Warming, on this server. Only what is off can be warmed.
    pub fn warming(&self, by: Option<NodeId>, server: &str) -> Self {
        let next = self.next(by);
        Self { mode: CacheMode::Warming, keyspace: next.generation, server: server.to_owned(), ..next }
    }

    /// On. Only what was warmed can be on.
    pub fn on(&self, by: Option<NodeId>) -> Self {
        Self { mode: CacheMode::On, reason: String::new(), ..self.next(by) }
    }
}

/// What a node says of the shared cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheSeen {
    /// The newest state that it acts by; it acts by no older one any more.
    pub generation: u64,
    /// Identity of the server that it reaches and could use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// Why it could not use one, for the operator.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What acts by the state of the shared cache on a node that uses one.
#[async_trait]
pub trait CacheFollower: Send + Sync + 'static {
    /// This node is registered in `term` of its [`Ownership`](super::Ownership), and counts as having seen
    /// `generation`.
    fn registered(&self, term: u64, generation: u64);

    /// What to say of it to the others.
    fn seen(&self) -> watch::Receiver<CacheSeen>;

    /// Waits until this node acts by what the others count on since its registration; false: not within `patience`.
    /// Writes that are begun before cost a cluster its cache for a moment.
    async fn stands(&self, patience: Duration) -> bool;
}

/// Sees to it that the cache is off, and returns the generation since which it is; every live node has still to see it:
/// [`Coordination::cache_generation_seen`]. With `keyspace`, a cache whose entries count under another one is left
/// alone. `failures` gives that count of the new state from the one that is replaced.
///
/// # Errors
/// [`CoordinationError::Unavailable`] and the like; [`CoordinationError::Unknown`]: it may be off.
pub async fn turn_cache_off(
    coordination: &dyn Coordination,
    by: Option<NodeId>,
    keyspace: Option<u64>,
    reason: &str,
    failures: impl Fn(&CacheState) -> u32 + Send,
) -> CoordinationResult<u64> {
    loop {
        let present = coordination.cache_state().await?;
        let is_meant = keyspace.is_none_or(|keyspace| present.value.keyspace == keyspace);
        if present.value.mode == CacheMode::Off || !is_meant {
            return Ok(present.value.generation);
        }
        let off = present.value.off(by, reason, failures(&present.value));
        match coordination.store_cache_state(present.version, &off).await {
            Ok(_) => return Ok(off.generation),
            Err(CoordinationError::Conflict(_)) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Sees to it that nothing is found in the cache that was put there before this call: for writes that were not marked,
/// or not watched over. On return every live node has seen it.
///
/// # Errors
/// As [`turn_cache_off`]; [`CoordinationError::NotSeen`] after `patience`.
pub async fn invalidate_cache(
    coordination: &dyn Coordination,
    by: Option<NodeId>,
    reason: &str,
    patience: Duration,
) -> CoordinationResult<()> {
    let state = coordination.cache_state().await?.value;
    let generation = match state.mode {
        CacheMode::Off => state.generation,
        // While it warms nobody reads, but writers leave their values: one of them may be older than this write.
        CacheMode::Warming | CacheMode::On => {
            turn_cache_off(coordination, by, Some(state.keyspace), reason, |state| state.failures).await?
        }
    };
    coordination.cache_generation_seen(generation, patience).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_count_from_the_beginning_of_the_warming_and_never_again_after_it_was_off() {
        let off = CacheState::initial();
        let warming = off.warming(None, "s");
        let on = warming.on(None);
        assert_eq!((warming.keyspace, on.keyspace, on.generation), (2, 2, 3));
        let again = on.off(None, "why", 1).warming(None, "s");
        assert_eq!((again.keyspace, again.failures), (5, 1));
        assert!(on.off(None, "x", 0).server.is_empty());
    }

    #[test]
    fn reasons_are_bounded() {
        let long = "ä".repeat(REASON_BYTES_MAX);
        assert_eq!(CacheState::initial().off(None, &long, 0).reason.len(), REASON_BYTES_MAX);
    }
}
