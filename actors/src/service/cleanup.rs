//! The cleanup actor: runs the passes of [`crate::flow::tasks`] and [`crate::flow::reclaim`] when
//! [`crate::domain::cleanup::Schedule`] says so.
//!
//! Each pass is a tracked task with a time limit, at most one of a kind. A pass that is aborted or fails is done again;
//! all are idempotent. The walk for orphans keeps its place between passes and starts over after a restart of the
//! actor.
//!
//! Bound: one tick, one end per kind of pass, and at most [`WAITERS_MAX`] operators waiting; further ones are refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use holdfast_protocol::ChunkId;
use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, async_trait};
use tokio::task::{AbortHandle, JoinSet};

use super::node::{NodeParts, NodeShared};
use super::ticker::{Tick, spawn_ticker};
use super::tracked::to_its_end;
use crate::domain::cleanup::{PassEnd, PassKind, Schedule};
use crate::flow::reclaim::PassStats;
use crate::flow::tasks::Dispatcher;

/// Operators that may wait for the end of a cleanup at once.
const WAITERS_MAX: usize = 16;

/// How cleanup is paced.
#[derive(Debug, Clone)]
pub struct CleanupSettings {
    /// Time between looks at what is due; also the finest pace of passes.
    pub tick: Duration,
    /// Age at which an unfinished upload is aborted; `None` keeps them for ever.
    pub stale_upload_age: Option<Duration>,
    /// Time between a content's last dereference and the deletion of its chunks: longer than a read may take.
    pub grace: Duration,
    /// Time between looks for stale uploads.
    pub upload_interval: Duration,
    /// Time between looks for reclaims.
    pub reclaim_interval: Duration,
    /// Time between walks for orphans.
    pub orphan_interval: Duration,
    /// Longest time for one pass.
    pub pass_timeout: Duration,
}

/// The cleanup actor.
pub struct CleanupActor;

/// Its messages.
#[derive(Debug)]
pub enum CleanupMsg {
    /// Start what is due.
    Tick(Tick),
    /// Run every kind of pass now; answered `true` when all have ended with nothing left, `false` if too many wait.
    RunAll(RpcReplyPort<bool>),
    /// A pass ended.
    Ended {
        /// Which.
        kind: PassKind,
        /// What it did, and where the walk for orphans stands.
        result: Result<(PassStats, PassEnd), String>,
        /// Where the walk for orphans stands.
        cursor: Option<ChunkId>,
    },
}

/// Its state.
pub struct CleanupState {
    dispatcher: Dispatcher,
    settings: CleanupSettings,
    shared: Arc<NodeShared>,
    schedule: Schedule,
    started: Instant,
    tasks: JoinSet<()>,
    /// Standing for the duty's lock: without end, unless by a bug.
    duty: Option<AbortHandle>,
    cursor: Option<ChunkId>,
    /// Operators' requests with the kinds of passes that each still waits for.
    waiting: Vec<Waiting>,
}

struct Waiting {
    reply: RpcReplyPort<bool>,
    /// Kinds whose pass, begun after the request, has not ended with nothing left.
    open: Vec<PassKind>,
}

#[async_trait]
impl Actor for CleanupActor {
    type Msg = CleanupMsg;
    type State = CleanupState;
    type Arguments = (NodeParts, Arc<NodeShared>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (parts, shared): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let settings = parts.cleanup;
        let mut tasks = JoinSet::new();
        spawn_ticker(&mut tasks, myself, settings.tick, CleanupMsg::Tick);
        // In a cluster the actor also stands for the lock that says whose the work is; it ends with the actor.
        let duty = parts.dispatcher.reclaimer().cluster.as_ref().map(|cluster| {
            let duty = cluster.duty.clone();
            tasks.spawn(async move { duty.stand().await })
        });
        let intervals = [settings.upload_interval, settings.reclaim_interval, settings.orphan_interval]
            .map(|interval| interval.as_millis() as u64);
        Ok(CleanupState {
            dispatcher: parts.dispatcher,
            schedule: Schedule::new(intervals, 0),
            settings,
            shared,
            started: Instant::now(),
            tasks,
            duty,
            cursor: None,
            waiting: Vec::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Self::Msg>,
        message: Self::Msg,
        state: &mut Self::State,
    ) -> Result<(), ActorProcessingErr> {
        while state.tasks.try_join_next().is_some() {}
        if state.duty.as_ref().is_some_and(AbortHandle::is_finished) {
            return Err("nobody stands for the lock of the cleanup any more".into());
        }
        match message {
            CleanupMsg::Tick(_tick) => state.start_due(&myself),
            CleanupMsg::RunAll(reply) => {
                state.waiting.retain(|waiting| !waiting.reply.is_closed());
                if state.waiting.len() >= WAITERS_MAX {
                    drop(reply.send(false));
                } else {
                    state.request_all(reply);
                    state.start_due(&myself);
                }
            }
            CleanupMsg::Ended { kind, result, cursor } => {
                state.on_ended(kind, result, cursor);
                state.start_due(&myself);
            }
        }
        Ok(())
    }
}

impl CleanupState {
    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    fn request_all(&mut self, reply: RpcReplyPort<bool>) {
        // The walk for orphans must see everything, so it starts over.
        self.cursor = None;
        self.dispatcher.forget_failures();
        let open = PassKind::ALL.to_vec();
        self.waiting.push(Waiting { reply, open });
        self.schedule.request_all(self.now_ms());
    }

    fn start_due(&mut self, myself: &ActorRef<CleanupMsg>) {
        for kind in self.schedule.start_due(self.now_ms()) {
            let dispatcher = self.dispatcher.clone();
            let settings = self.settings.clone();
            let mut cursor = self.cursor;
            let myself = myself.clone();
            self.tasks.spawn(async move {
                let pass = to_its_end(run_pass(&dispatcher, &settings, kind, &mut cursor));
                let result = match tokio::time::timeout(settings.pass_timeout, pass).await {
                    Ok(result) => result,
                    Err(_) => Err(format!("did not end within {} s", settings.pass_timeout.as_secs())),
                };
                drop(myself.send_message(CleanupMsg::Ended { kind, result, cursor }));
            });
        }
    }

    fn on_ended(&mut self, kind: PassKind, result: Result<(PassStats, PassEnd), String>, cursor: Option<ChunkId>) {
        if kind == PassKind::Orphans {
            self.cursor = cursor;
        }
        let end = {
            let mut reports = self.shared.cleanup.lock();
            let report = &mut reports[kind as usize];
            match &result {
                Ok((stats, end)) => {
                    report.passes += 1;
                    report.last_error = None;
                    report.total.items += stats.items;
                    report.total.examined += stats.examined;
                    report.total.chunks += stats.chunks;
                    report.total.bytes += stats.bytes;
                    *end
                }
                Err(error) => {
                    report.failures += 1;
                    report.last_error = Some(error.clone());
                    PassEnd::Failed
                }
            }
        };
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!("holdfast_cleanup_passes_total", "pass" => kind.as_str(), "outcome" => outcome).increment(1);
        match result {
            Ok((stats, _)) => {
                metrics::counter!("holdfast_cleanup_items_total", "pass" => kind.as_str()).increment(stats.items);
                metrics::counter!("holdfast_cleanup_reclaimed_bytes_total", "pass" => kind.as_str())
                    .increment(stats.bytes);
                if stats.items > 0 {
                    let PassStats { items, chunks, bytes, .. } = stats;
                    tracing::info!(pass = kind.as_str(), items, chunks, bytes, "cleanup gave space back");
                }
            }
            Err(error) => tracing::warn!(pass = kind.as_str(), error, "cleanup pass failed, it is tried again"),
        }
        let again = self.schedule.on_end(kind, end, self.now_ms(), rand::random());
        if again && kind == PassKind::Orphans {
            self.cursor = None;
        }
        if !again && !matches!(end, PassEnd::More | PassEnd::Pending) {
            self.answer(kind, end);
        }
    }

    /// Tells those who wait that a kind of pass is through. A failure answers at once.
    fn answer(&mut self, kind: PassKind, end: PassEnd) {
        let mut still = Vec::new();
        for mut waiting in self.waiting.drain(..) {
            waiting.open.retain(|open| *open != kind);
            if end == PassEnd::Failed {
                drop(waiting.reply.send(false));
            } else if waiting.open.is_empty() {
                drop(waiting.reply.send(true));
            } else {
                still.push(waiting);
            }
        }
        self.waiting = still;
    }
}

async fn run_pass(
    dispatcher: &Dispatcher,
    settings: &CleanupSettings,
    kind: PassKind,
    cursor: &mut Option<ChunkId>,
) -> Result<(PassStats, PassEnd), String> {
    let result = match kind {
        PassKind::Uploads => {
            dispatcher.expire_uploads(settings.stale_upload_age.map(|age| age.as_millis() as u64)).await
        }
        PassKind::Reclaims => dispatcher.reclaim(settings.grace.as_millis() as u64).await,
        PassKind::Orphans => dispatcher.reclaimer().sweep_orphans(cursor).await,
    };
    result.map_err(|error| error.to_string())
}
