//! The node's supervisor: restarts each child alone, and gives up when restarts do not help.
//!
//! **Restart rule.** One for one. A child that ends in any way but by the supervisor's own stop is started anew from
//! [`NodeParts`], after [`RESPAWN_DELAY`] so that a child that fails at once does not spin. More than `restarts_max`
//! restarts within `restart_window` publish the reason in [`NodeShared::failed`]: the node then stops cleanly, which
//! is safer than housekeeping that silently does not happen. The end of the supervisor itself is published likewise.

use std::sync::Arc;
use std::time::Instant;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, SpawnErr, SupervisionEvent, async_trait};

use super::children::{CHILD_STOP_TIMEOUT, RESPAWN_DELAY, ended};
use super::cleanup::CleanupActor;
use super::disk::DiskActor;
use super::ingest::IngestActor;
use super::node::{ChildKind, Children, NodeHandle, NodeParts, NodeShared};
use crate::domain::restarts::{RestartBudget, RestartVerdict};

/// The supervisor.
pub struct NodeSupervisor;

/// Its messages.
#[derive(Debug)]
pub enum SupervisorMsg {
    /// Start a child that ended a moment ago.
    Respawn(ChildKind),
}

/// Its state.
pub struct SupervisorState {
    parts: NodeParts,
    shared: Arc<NodeShared>,
    restarts: RestartBudget,
    started: Instant,
    ids: Vec<(ActorId, ChildKind)>,
}

/// Starts the actors of a node.
///
/// # Errors
/// When an actor cannot be started.
pub async fn start(parts: NodeParts) -> Result<NodeHandle, SpawnErr> {
    let shared = NodeShared::new(&parts);
    let (supervisor, ended) = NodeSupervisor::spawn(None, NodeSupervisor, (parts, shared.clone())).await?;
    let watched = shared.clone();
    tokio::spawn(async move {
        drop(ended.await);
        watched.failed.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert_with(|| "the supervisor ended".into());
            first
        });
    });
    Ok(NodeHandle { shared, supervisor })
}

#[async_trait]
impl Actor for NodeSupervisor {
    type Msg = SupervisorMsg;
    type State = SupervisorState;
    type Arguments = (NodeParts, Arc<NodeShared>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (parts, shared): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let restarts = RestartBudget::new(parts.restarts_max, parts.restart_window.as_millis() as u64);
        let mut state = SupervisorState { restarts, parts, shared, started: Instant::now(), ids: Vec::new() };
        let disks = (0..state.parts.disks.len()).map(ChildKind::Disk);
        for kind in [ChildKind::Ingest, ChildKind::Cleanup].into_iter().chain(disks) {
            state.spawn_child(&myself, kind).await?;
        }
        Ok(state)
    }

    async fn post_stop(&self, myself: ActorRef<Self::Msg>, _: &mut Self::State) -> Result<(), ActorProcessingErr> {
        myself.stop_children_and_wait(None, Some(CHILD_STOP_TIMEOUT)).await;
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let SupervisorMsg::Respawn(kind) = message;
        match state.spawn_child(&myself, kind).await {
            Ok(()) => tracing::info!(actor = kind.as_str(), "actor restarted"),
            Err(error) => state.on_child_ended(&myself, kind, &format!("start: {error}")),
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Self::Msg>,
        event: SupervisionEvent,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        let Some((id, reason)) = ended(event) else { return Ok(()) };
        if let Some(at) = state.ids.iter().position(|(child, _)| *child == id) {
            let (_, kind) = state.ids.swap_remove(at);
            state.on_child_ended(&myself, kind, &reason);
        }
        Ok(())
    }
}

impl SupervisorState {
    async fn spawn_child(&mut self, myself: &ActorRef<SupervisorMsg>, kind: ChildKind) -> Result<(), SpawnErr> {
        let (parts, shared, cell) = (self.parts.clone(), self.shared.clone(), myself.get_cell());
        let mut children = Children::clone(&self.shared.children.load());
        let id = match kind {
            ChildKind::Ingest => {
                let (actor, _) = IngestActor::spawn_linked(None, IngestActor, (parts, shared), cell).await?;
                children.ingest.insert(actor).get_id()
            }
            ChildKind::Cleanup => {
                let (actor, _) = CleanupActor::spawn_linked(None, CleanupActor, (parts, shared), cell).await?;
                children.cleanup.insert(actor).get_id()
            }
            ChildKind::Disk(n) => {
                let (actor, _) = DiskActor::spawn_linked(None, DiskActor, (n, parts, shared), cell).await?;
                children.disks[n].insert(actor).get_id()
            }
        };
        self.ids.push((id, kind));
        self.shared.children.store(Arc::new(children));
        Ok(())
    }

    fn on_child_ended(&mut self, myself: &ActorRef<SupervisorMsg>, kind: ChildKind, reason: &str) {
        metrics::counter!("holdfast_actor_restarts_total", "actor" => kind.as_str()).increment(1);
        match self.restarts.on_failure(self.started.elapsed().as_millis() as u64) {
            RestartVerdict::Restart => {
                tracing::warn!(actor = kind.as_str(), reason, "actor ended, restarting it");
                drop(myself.send_after(RESPAWN_DELAY, move || SupervisorMsg::Respawn(kind)));
            }
            RestartVerdict::Escalate => {
                let why = format!("the {} actor failed too often: {reason}", kind.as_str());
                tracing::error!(why, "giving up, the node must stop");
                self.shared.failed.send_replace(Some(why));
            }
        }
    }
}
