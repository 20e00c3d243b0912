//! What became due by lifecycle rules, and what became of it.

use crate::domain::lifecycle::{Due, LifecycleAction};

/// What a pass did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LifecycleStats {
    /// Versions and uploads looked at.
    pub examined: u64,
    /// Latest versions expired.
    pub expired: u64,
    /// Noncurrent versions removed.
    pub noncurrent: u64,
    /// Delete markers removed.
    pub markers: u64,
    /// Uploads aborted.
    pub uploads: u64,
    /// Versions asked to be moved to another storage class.
    pub transitions: u64,
    /// Deletions and moves that were refused, since the version was changed after it was judged.
    pub changed: u64,
    /// For how long the longest due of what was done had been due.
    pub lag_ms: u64,
}

impl LifecycleStats {
    pub(super) fn count(&mut self, due: &Due, now_ms: u64) {
        let count = match due.action {
            LifecycleAction::ExpireCurrent => &mut self.expired,
            LifecycleAction::RemoveNoncurrent => &mut self.noncurrent,
            LifecycleAction::RemoveMarker => &mut self.markers,
            LifecycleAction::AbortUpload => &mut self.uploads,
            LifecycleAction::Transition => &mut self.transitions,
        };
        *count += 1;
        self.lag_ms = self.lag_ms.max(now_ms.saturating_sub(due.since_ms));
        tell(due.action, "done");
    }

    /// Whether anything was deleted or is to be moved.
    pub(crate) fn did_anything(&self) -> bool {
        self.expired + self.noncurrent + self.markers + self.uploads + self.transitions > 0
    }
}

/// Tells metrics what became of one action.
pub(super) fn tell(action: LifecycleAction, outcome: &'static str) {
    metrics::counter!("holdfast_lifecycle_actions_total", "action" => action.as_str(), "outcome" => outcome)
        .increment(1);
}
