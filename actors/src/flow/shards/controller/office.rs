//! What others see of a controller: its status, its metrics, and that it takes reports.

use std::collections::BTreeSet;

use super::super::{Context, ControllerStatus};
use crate::domain::placement::ShardHealth;
use crate::domain::placement::controller::Overview;
use crate::ports::coordination::Lease;

/// What others see of the controller; gone with it, however it ends.
pub(super) struct Office<'a>(&'a Context);

impl<'a> Office<'a> {
    pub(super) fn enter(context: &'a Context, lease: &Lease) -> Self {
        metrics::gauge!("holdfast_controller").set(1.0);
        context.parts.reports.set_open(true);
        context.shared.controller.send_replace(Some(ControllerStatus {
            since_ms: context.parts.clock.now_ms(),
            token: lease.token(),
            layout_version: None,
            absent: BTreeSet::new(),
            lost: BTreeSet::new(),
            overview: Overview::default(),
            set_back: BTreeSet::new(),
            placement_error: None,
            last_error: None,
        }));
        Self(context)
    }
}

impl Drop for Office<'_> {
    fn drop(&mut self) {
        self.0.parts.reports.set_open(false);
        self.0.shared.controller.send_replace(None);
        // Another node counts the shards now. What this one counted last would be told for as long as it runs.
        metrics::gauge!("holdfast_controller").set(0.0);
        show(&Overview::default());
    }
}

/// Tells metrics.
pub(super) fn show(overview: &Overview) {
    for health in ShardHealth::ALL {
        let count = overview.shards.get(&health).copied().unwrap_or(0);
        metrics::gauge!("holdfast_shards", "health" => health.as_str()).set(count as f64);
    }
    metrics::gauge!("holdfast_shards_unplaced").set(overview.unplaced as f64);
    metrics::gauge!("holdfast_shards_waiting").set(overview.waiting as f64);
    metrics::gauge!("holdfast_shards_joining").set(overview.joining as f64);
}
