//! The ingest actor: decides what the node admits.
//!
//! It owns no permits; those live in [`Admission`](super::admission::Admission). From the health of the disks and of
//! the metadata store it computes [`crate::domain::admission::limits_under`] and publishes limits and health. All of it
//! is recomputed from the world at each tick and at each hint, so a restart loses nothing.
//!
//! Bound: one tick, one metadata check and one hint per disk outstanding. Failure: while it is away, the last limits
//! stay in force.

use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::journal::ErrorKind;
use ractor::{Actor, ActorProcessingErr, ActorRef, async_trait};
use tokio::task::JoinSet;

use super::node::{DiskReport, NodeHealth, NodeParts, NodeShared};
use super::ticker::{Tick, spawn_ticker};
use super::tracked::to_its_end;
use crate::domain::admission::{DiskHealth, Pressure, limits_under};

/// Longest time for the metadata store to answer a ping before it counts as down.
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// Failed pings in a row before the node stops taking requests: one slow flush must not.
const PING_FAILURES_MAX: u32 = 2;

/// Failed pings from one line of the log to the next while metadata stay away: about a minute.
const PING_FAILURES_A_LINE: u32 = 60;

/// Whether the log tells of this failure in a row: of the first, of the one that stops requests, and now and then.
fn is_worth_a_line(failures: u32) -> bool {
    failures == 1 || failures == PING_FAILURES_MAX || failures.is_multiple_of(PING_FAILURES_A_LINE)
}

/// The ingest actor.
pub struct IngestActor;

/// Its messages.
#[derive(Debug)]
pub enum IngestMsg {
    /// Look again.
    Tick(Tick),
    /// A disk's health changed.
    DiskChanged,
    /// The metadata store answered a ping, or not.
    MetadataChecked(Result<(), String>),
}

/// Its state.
pub struct IngestState {
    parts: NodeParts,
    shared: Arc<NodeShared>,
    tasks: JoinSet<()>,
    ping_running: bool,
    ping_failures: u32,
    metadata_error: Option<String>,
    /// Whether the metadata store has been asked since the actor started.
    checked: bool,
}

#[async_trait]
impl Actor for IngestActor {
    type Msg = IngestMsg;
    type State = IngestState;
    type Arguments = (NodeParts, Arc<NodeShared>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (parts, shared): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        spawn_ticker(&mut tasks, myself, parts.health_interval, IngestMsg::Tick);
        Ok(IngestState {
            parts,
            shared,
            tasks,
            ping_running: false,
            ping_failures: 0,
            metadata_error: None,
            checked: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        while state.tasks.try_join_next().is_some() {}
        match message {
            IngestMsg::Tick(_tick) => {
                if !state.ping_running {
                    state.ping_running = true;
                    let metadata = state.parts.dispatcher.reclaimer().metadata.clone();
                    state.tasks.spawn(async move {
                        let ping = to_its_end(async { metadata.ping().await.map_err(|error| error.to_string()) });
                        let checked = match tokio::time::timeout(PING_TIMEOUT, ping).await {
                            Ok(result) => result,
                            Err(_) => Err(format!("no answer within {} s", PING_TIMEOUT.as_secs())),
                        };
                        drop(myself.send_message(IngestMsg::MetadataChecked(checked)));
                    });
                }
                state.publish();
            }
            IngestMsg::DiskChanged => state.publish(),
            IngestMsg::MetadataChecked(result) => {
                state.ping_running = false;
                state.checked = true;
                match result {
                    Ok(()) => {
                        if state.ping_failures >= PING_FAILURES_MAX {
                            tracing::info!("metadata store answers again");
                        }
                        state.ping_failures = 0;
                        state.metadata_error = None;
                    }
                    Err(error) => {
                        state.ping_failures += 1;
                        if is_worth_a_line(state.ping_failures) {
                            tracing::warn!(%error, failures = state.ping_failures, "metadata store does not answer");
                        }
                        state.metadata_error = Some(error);
                    }
                }
                state.publish();
            }
        }
        Ok(())
    }
}

impl IngestState {
    fn publish(&self) {
        if !self.checked {
            // Just (re)started: the limits in force stay until there is something to say.
            return;
        }
        let disks: Vec<DiskReport> = self
            .parts
            .disks
            .iter()
            .map(|disk| {
                let status = disk.status();
                DiskReport { name: disk.name().to_owned(), health: status.health, detail: status.detail }
            })
            .collect();
        let metadata = &self.parts.dispatcher.reclaimer().metadata;
        let (stopped, full) = (metadata.writes_stopped(), metadata.no_space());
        let pressure = Pressure {
            disks: disks.iter().map(|disk| disk.health).collect(),
            in_cluster: self.parts.dispatcher.reclaimer().cluster.is_some(),
            metadata_down: self.ping_failures >= PING_FAILURES_MAX,
            metadata_readonly: stopped.is_some(),
            metadata_full: full.is_some(),
            draining: *self.shared.draining.borrow(),
        };
        let limits = limits_under(&self.parts.limits, &pressure);
        let health = NodeHealth {
            reads_refused: limits.read.refused,
            writes_refused: limits.write.refused,
            disks,
            metadata_error: self.metadata_error.clone().or(stopped),
            metadata_full: full,
        };
        let before = self.shared.health.load();
        if (before.reads_refused, before.writes_refused) != (health.reads_refused, health.writes_refused) {
            tracing::info!(reads = ?health.reads_refused, writes = ?health.writes_refused, "what the node refuses has changed");
        }
        self.report_failed(&before, &health);
        metrics::gauge!("holdfast_node_ready").set(if health.is_ready() { 1.0 } else { 0.0 });
        if self.shared.admission.limits() != limits {
            self.shared.admission.publish(limits);
        }
        self.shared.health.store(Arc::new(health));
        // A drain that began between the look and the stores above must win.
        if *self.shared.draining.borrow() && !pressure.draining {
            self.publish();
        }
    }

    /// Tells operators of disks that are not used any more, or do not answer.
    fn report_failed(&self, before: &NodeHealth, now: &NodeHealth) {
        for disk in &now.disks {
            let kind = match disk.health {
                DiskHealth::Healthy | DiskHealth::Full => continue,
                DiskHealth::Unresponsive => ErrorKind::Other,
                DiskHealth::Fenced => ErrorKind::DiskFenced,
            };
            let was = before.disks.iter().find(|other| other.name == disk.name).map(|other| other.health);
            if was != Some(disk.health) {
                let detail = disk.detail.clone().unwrap_or_else(|| "no reason was given".into());
                self.parts.reporter.report(kind, &disk.name, format!("the disk is {}: {detail}", disk.health.as_str()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_that_stay_away_for_a_day_do_not_fill_the_log() {
        let lines: Vec<u32> = (1..=24 * 3600).filter(|failures| is_worth_a_line(*failures)).collect();
        assert_eq!(lines[..3], [1, PING_FAILURES_MAX, PING_FAILURES_A_LINE]);
        assert!(lines.len() < 1_500, "{}", lines.len());
    }
}
