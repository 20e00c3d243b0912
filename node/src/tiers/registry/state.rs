//! What a registry tells of tiers.

use std::sync::Arc;

use holdfast_actors::ports::tiers::{ColdTier, TierHealth};
use holdfast_protocol::TierName;
use holdfast_protocol::admin::TierSettings;

/// Settings that were tried and work.
#[derive(Clone)]
pub struct PreparedTier {
    /// What stands behind them.
    pub tier: Arc<dyn ColdTier>,
    /// What is to be stored; secrets in it are sealed.
    pub stored: String,
    /// What may be told.
    pub settings: TierSettings,
    /// What the tier told of itself.
    pub health: TierHealth,
}

impl std::fmt::Debug for PreparedTier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PreparedTier").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// How a tier is, as this node sees it.
#[derive(Debug, Clone)]
pub struct TierState {
    /// Its name.
    pub name: TierName,
    /// When it was added.
    pub created_ms: u64,
    /// Of its settings.
    pub revision: u64,
    /// Its settings, without secrets; `None` when this node does not understand them.
    pub settings: Option<TierSettings>,
    /// Whether it can be worked with; `None` while that is not known yet.
    pub is_up: Option<bool>,
    /// Why not.
    pub problem: Option<String>,
    /// What it told of itself when it was last checked.
    pub health: Option<TierHealth>,
}
