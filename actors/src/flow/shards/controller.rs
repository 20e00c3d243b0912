//! Competes to be the controller, and is it as long as the lease is held: carries out what
//! [`crate::domain::placement::controller`] decides.
//!
//! Order of every change: the shard is stored by compare-and-set under the lease, then metadata is told its epoch
//! (`raise_epochs`), and only then does a report about it count. A controller that dies in between is followed by one
//! that tells metadata every epoch again, and finds joins and leaves in the states. Nodes follow the shard map by
//! themselves, so no effect but the graces has to be carried out from here.
//!
//! The shard map is a mirror that may be late. What was read there is only ever replaced by compare-and-set, so a
//! decision on an old state fails, and the shard is read anew. Changes of everything that is followed are coalesced: a
//! pass looks at the newest of all.
//!
//! When metadata knows a later epoch than the coordination service, which no order of events brings about, that service
//! was set back: what is stored is looked at once more, and the shards are named for the operator.
//!
//! Losing the lease ends everything at the next await. While the lease is not proven to be held nothing is begun. A
//! node whose registration is held up, though its session lives, gives the lease back: it proves nothing, and another
//! one may go on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::cluster::{Epoch, LayoutDocument, ShardState};
use holdfast_protocol::{NodeId, ShardId};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{Context, ControllerStatus};
use crate::domain::placement::controller::{Controller, Pace};
use crate::domain::placement::{ShardEvent, assign};
use crate::ports::coordination::{CoordinationError, Lease, LeaseName, Membership, ShardMap, Versioned};
use crate::ports::peers::ShardReport;

mod office;
mod stored;

use office::{Office, show};

/// What comes within this time after a change is looked at together with it.
const COALESCE: Duration = Duration::from_millis(10);
/// The longest time between two passes.
const PASS_INTERVAL_MAX: Duration = Duration::from_secs(5);
/// How often a lease that is not proven is looked at.
const UNPROVEN_PAUSE: Duration = Duration::from_millis(100);
/// A controller that is not registered for so many of the longest pauses between tries gives up.
const UNREGISTERED_PAUSES: u32 = 2;
/// How long it is waited for that the lease is given back, which goes on after that.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs until it cannot go on.
pub async fn run(context: Context) -> String {
    let mut backoff = context.backoff();
    loop {
        let mut membership = context.shared.membership.subscribe();
        if membership.wait_for(|m| m.registered).await.is_err() {
            return "the node is gone".into();
        }
        match context.parts.coordination.acquire(&LeaseName::controller(), context.me()).await {
            Ok(lease) => {
                backoff.reset();
                lead(&context, lease).await;
            }
            Err(error) => {
                tracing::debug!(%error, "this node does not compete to be the controller");
                backoff.wait().await;
            }
        }
    }
}

async fn lead(context: &Context, lease: Lease) {
    tracing::info!(token = %lease.token(), "this node is the controller");
    let office = Office::enter(context, &lease);
    tokio::select! {
        biased;
        () = lease.lost() => {}
        () = unregistered(context) => tracing::warn!("this node is not registered, another one may be the controller"),
        () = Term::new(context, &lease).run() => {}
    }
    drop(office);
    tracing::info!(token = %lease.token(), "this node is no longer the controller");
    drop(tokio::time::timeout(RELEASE_TIMEOUT, lease.release()).await);
}

/// Resolves when this node was not registered for so long that waiting for it would hold all others up.
async fn unregistered(context: &Context) {
    let patience = context.parts.settings.retry_max * UNREGISTERED_PAUSES;
    let mut membership = context.shared.membership.subscribe();
    loop {
        if membership.wait_for(|m| !m.registered).await.is_err() {
            return;
        }
        if tokio::time::timeout(patience, membership.wait_for(|m| m.registered)).await.is_err() {
            return;
        }
    }
}

/// From when the lease was acquired until it is lost.
struct Term<'a> {
    context: &'a Context,
    lease: &'a Lease,
    layout: watch::Receiver<Option<Arc<Versioned<LayoutDocument>>>>,
    membership: watch::Receiver<Arc<Membership>>,
    shards: watch::Receiver<Arc<ShardMap>>,
    /// What is stored, as far as is known.
    stored: BTreeMap<ShardId, Arc<Versioned<ShardState>>>,
    controller: Controller,
    /// Epochs in metadata that were higher than what it was told.
    ahead: BTreeMap<ShardId, Epoch>,
    /// Of the layout that the controller has seen.
    layout_version: Option<u64>,
    started: Instant,
    /// What failed in this pass.
    error: Option<String>,
    placement_error: Option<String>,
}

impl<'a> Term<'a> {
    fn new(context: &'a Context, lease: &'a Lease) -> Self {
        let settings = &context.parts.settings;
        let pace = Pace {
            rebuild_delay_ms: settings.rebuild_delay.as_millis() as u64,
            leave_grace_ms: settings.leave_grace.as_millis() as u64,
            join_retry_ms: settings.join_retry.as_millis() as u64,
            joins_per_node_max: settings.joins_per_node_max,
        };
        let coordination = &context.parts.coordination;
        Self {
            context,
            lease,
            layout: coordination.watch_layout(),
            membership: coordination.membership(),
            shards: coordination.shards(),
            stored: BTreeMap::new(),
            ahead: BTreeMap::new(),
            controller: Controller::new(context.parts.view.shard_count(), pace),
            layout_version: None,
            started: Instant::now(),
            error: None,
            placement_error: None,
        }
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Passes until the lease is lost.
    async fn run(mut self) {
        let mut backoff = self.context.backoff();
        while let Err(error) = self.take_over().await {
            self.note("read the shards", &error);
            self.publish();
            backoff.wait().await;
        }
        backoff.reset();
        loop {
            while !self.lease.is_held() {
                tokio::time::sleep(UNPROVEN_PAUSE).await;
            }
            self.error = None;
            let changed = self.pass().await;
            self.publish();
            if self.error.is_some() {
                backoff.wait().await;
            } else {
                backoff.reset();
                if changed {
                    tokio::task::yield_now().await;
                } else if !self.wait().await {
                    return;
                }
            }
        }
    }

    fn note(&mut self, doing: &str, error: &dyn std::fmt::Display) {
        tracing::warn!(doing, %error, "the controller is held up");
        self.error = Some(format!("{doing}: {error}"));
    }

    /// Reads what the mirror does not show: a shard is placed anew only when it is certain that it never was.
    async fn take_over(&mut self) -> Result<(), CoordinationError> {
        self.follow();
        let missing: Vec<ShardId> = (0..self.context.parts.view.shard_count())
            .map(ShardId)
            .filter(|shard| !self.stored.contains_key(shard))
            .collect();
        self.read(missing).await
    }

    fn see(&mut self, shard: ShardId, state: Arc<Versioned<ShardState>>) {
        if self.stored.get(&shard).is_none_or(|known| known.version < state.version) {
            self.controller.see_shard(shard, &state.value);
            self.stored.insert(shard, state);
        }
    }

    /// Takes over what the mirrors show.
    fn follow(&mut self) {
        let map = self.shards.borrow_and_update().clone();
        for (shard, state) in &map.shards {
            self.see(*shard, state.clone());
        }
        if let Some(layout) = &*self.layout.borrow_and_update() {
            self.controller.see_layout(&layout.value.applied);
            self.layout_version = Some(layout.value.version);
        }
        // A node of which every disk failed holds as little as one that is away.
        let membership = self.membership.borrow_and_update().clone();
        let present = membership.nodes.keys().copied().filter(|node| membership.holds(*node)).collect();
        self.controller.see_present(present, self.now_ms());
    }

    /// One pass; returns whether something was stored.
    async fn pass(&mut self) -> bool {
        self.follow();
        self.raise().await;
        for (from, report) in self.context.parts.reports.take() {
            self.take_report(from, report);
        }
        self.plan().await;
        let due = self.controller.due(self.now_ms());
        let changed = !due.is_empty();
        self.store(due).await;
        if changed {
            self.raise().await;
        }
        changed
    }

    fn take_report(&mut self, from: NodeId, report: ShardReport) {
        tracing::debug!(%from, ?report, "a node reports");
        let (shard, event) = match report {
            ShardReport::Verified { shard, since } => (shard, ShardEvent::Verified { node: from, since }),
            ShardReport::JoinFailed { shard, since, reason } => {
                tracing::warn!(node = %from, %shard, reason, "a node gave up the copy of a shard");
                (shard, ShardEvent::JoinFailed { node: from, since })
            }
            ShardReport::DataLost { shard } => {
                tracing::warn!(node = %from, %shard, "a node lost its replica of a shard");
                (shard, ShardEvent::DataLost { node: from })
            }
        };
        self.controller.report(shard, event);
    }

    /// Computes the placement anew if it has to be, off this thread: it takes up to a second in a large cluster.
    async fn plan(&mut self) {
        let Some(problem) = self.controller.problem() else { return };
        let computed =
            tokio::task::spawn_blocking(move || assign(&problem.layout, &problem.lost, &problem.current)).await;
        match computed {
            Ok(Ok(wanted)) => {
                self.placement_error = None;
                self.controller.planned(Some(wanted));
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the layout allows no placement, shards stay where they are");
                self.placement_error = Some(error.to_string());
                self.controller.planned(None);
            }
            Err(error) => self.note("compute the placement", &error),
        }
    }

    /// Waits until something is to be looked at; `false` when nothing can come any more.
    async fn wait(&mut self) -> bool {
        let now_ms = self.now_ms();
        let due = self.controller.wakes_at_ms().map_or(PASS_INTERVAL_MAX, |at| {
            Duration::from_millis(at.saturating_sub(now_ms).max(1)).min(PASS_INTERVAL_MAX)
        });
        let open = tokio::select! {
            changed = self.layout.changed() => changed.is_ok(),
            changed = self.membership.changed() => changed.is_ok(),
            changed = self.shards.changed() => changed.is_ok(),
            () = self.context.parts.reports.arrived() => true,
            () = tokio::time::sleep(due) => true,
        };
        tokio::time::sleep(COALESCE).await;
        open
    }

    fn publish(&self) {
        let overview = self.controller.overview();
        show(&overview);
        self.context.shared.controller.send_if_modified(|status| {
            let Some(status) = status else { return false };
            let next = ControllerStatus {
                layout_version: self.layout_version,
                absent: self.controller.absent(),
                lost: self.controller.lost().clone(),
                overview,
                set_back: self.set_back(),
                placement_error: self.placement_error.clone(),
                last_error: self.error.clone(),
                ..status.clone()
            };
            let changed = next != *status;
            *status = next;
            changed
        });
    }
}
