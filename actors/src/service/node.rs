//! What the actors of a node share with each other and with the front ends.
//!
//! [`NodeShared`] outlives every actor: admission, the health that readiness shows, the totals of cleanup and scrub,
//! and the current references of the children. [`NodeHandle`] is how the front ends reach it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use ractor::ActorRef;
use tokio::sync::watch;

use super::admission::Admission;
use super::cleanup::{CleanupMsg, CleanupSettings};
use super::disk::{DiskMsg, DiskSettings};
use super::ingest::IngestMsg;
use super::supervisor::SupervisorMsg;
use crate::domain::admission::{DiskHealth, Limits, Refusal};
use crate::domain::cleanup::PassKind;
use crate::flow::reclaim::PassStats;
use crate::flow::report::Reporter;
use crate::flow::tasks::Dispatcher;
use crate::ports::Disk;

/// How long an operator's command may take to be accepted by an actor.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// What a node's actors are made of.
#[derive(Clone)]
pub struct NodeParts {
    /// Every disk.
    pub disks: Vec<Arc<dyn Disk>>,
    /// Passes over metadata and chunks.
    pub dispatcher: Dispatcher,
    /// What is admitted when all is well.
    pub limits: Limits,
    /// Disks' housekeeping.
    pub disk: DiskSettings,
    /// Cleanup.
    pub cleanup: CleanupSettings,
    /// Where errors worth an operator's look are reported.
    pub reporter: Reporter,
    /// How often health is looked at.
    pub health_interval: Duration,
    /// Restarts of children allowed within `restart_window`; one more and the node stops.
    pub restarts_max: usize,
    /// See `restarts_max`.
    pub restart_window: Duration,
}

/// An actor below the supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ChildKind {
    /// The ingest actor.
    Ingest,
    /// The cleanup actor.
    Cleanup,
    /// The actor of the disk with this number.
    Disk(usize),
}

impl ChildKind {
    /// For logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Cleanup => "cleanup",
            Self::Disk(_) => "disk",
        }
    }
}

/// The current children. A reference may be to an actor that just ended; sending to it fails, and a new one follows.
#[derive(Clone, Default)]
pub struct Children {
    /// Ingest.
    pub ingest: Option<ActorRef<IngestMsg>>,
    /// Cleanup.
    pub cleanup: Option<ActorRef<CleanupMsg>>,
    /// One a disk.
    pub disks: Vec<Option<ActorRef<DiskMsg>>>,
}

/// One disk's health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// Directory.
    pub name: String,
    /// Health.
    pub health: DiskHealth,
    /// Why, if not healthy.
    pub detail: Option<String>,
}

/// Whether a node is fit for requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHealth {
    /// Why reads are refused, if so.
    pub reads_refused: Option<Refusal>,
    /// Why writes are refused, if so.
    pub writes_refused: Option<Refusal>,
    /// Disks.
    pub disks: Vec<DiskReport>,
    /// What the metadata store said when it last failed, while it fails.
    pub metadata_error: Option<String>,
    /// Why the metadata store has no room for writes, if it has none.
    pub metadata_full: Option<String>,
}

impl NodeHealth {
    /// Before the ingest actor has looked.
    pub fn starting() -> Self {
        Self {
            reads_refused: Some(Refusal::Starting),
            writes_refused: Some(Refusal::Starting),
            disks: vec![],
            metadata_error: None,
            metadata_full: None,
        }
    }

    /// Ready means: requests of both classes are served. A node with only some disks fenced is ready.
    pub fn is_ready(&self) -> bool {
        self.reads_refused.is_none() && self.writes_refused.is_none()
    }
}

/// Totals of one kind of cleanup pass since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PassReport {
    /// Passes that ended well.
    pub passes: u64,
    /// Passes that failed.
    pub failures: u64,
    /// What they did.
    pub total: PassStats,
    /// The last failure, until a pass ends well.
    pub last_error: Option<String>,
}

/// Totals of a disk's scrub since the start of the process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Bytes checked.
    pub bytes: u64,
    /// Chunks checked.
    pub chunks: u64,
    /// Chunks found corrupt.
    pub corrupt: u64,
    /// Times that everything was checked.
    pub passes: u64,
    /// Time left in a pass that was asked for by an operator and still runs.
    pub running: bool,
}

/// What outlives the actors.
pub struct NodeShared {
    /// Permits.
    pub admission: Admission,
    /// Health, published by the ingest actor.
    pub health: ArcSwap<NodeHealth>,
    /// Cleanup's totals, in the order of [`PassKind::ALL`].
    pub cleanup: Mutex<[PassReport; 3]>,
    /// Scrub's totals, one a disk.
    pub scrub: Mutex<Vec<ScrubReport>>,
    /// Current children.
    pub children: ArcSwap<Children>,
    /// Whether the node drains; an ingest actor that is restarted meanwhile goes on draining.
    pub draining: watch::Sender<bool>,
    /// Why the actors gave up, once they did: the node must stop.
    pub failed: watch::Sender<Option<String>>,
}

impl NodeShared {
    pub(super) fn new(parts: &NodeParts) -> Arc<Self> {
        Arc::new(Self {
            admission: Admission::starting(&parts.limits),
            health: ArcSwap::from_pointee(NodeHealth::starting()),
            cleanup: Mutex::default(),
            scrub: Mutex::new(vec![ScrubReport::default(); parts.disks.len()]),
            children: ArcSwap::from_pointee(Children { disks: vec![None; parts.disks.len()], ..Children::default() }),
            draining: watch::Sender::new(false),
            failed: watch::Sender::new(None),
        })
    }
}

/// An actor that could not take a command: it is being restarted, or too busy.
#[derive(Debug, thiserror::Error)]
#[error("the {0} actor does not answer, try again")]
pub struct ActorUnavailable(pub &'static str);

/// The front ends' way to the actors. Cheap to clone.
#[derive(Clone)]
pub struct NodeHandle {
    pub(super) shared: Arc<NodeShared>,
    pub(super) supervisor: ActorRef<SupervisorMsg>,
}

impl NodeHandle {
    /// Permits.
    pub fn admission(&self) -> &Admission {
        &self.shared.admission
    }

    /// Health as the ingest actor saw it last.
    pub fn health(&self) -> Arc<NodeHealth> {
        self.shared.health.load_full()
    }

    /// Totals of cleanup.
    pub fn cleanup_report(&self) -> Vec<(PassKind, PassReport)> {
        PassKind::ALL.into_iter().zip(self.shared.cleanup.lock().clone()).collect()
    }

    /// Totals of scrub, one a disk.
    pub fn scrub_report(&self) -> Vec<ScrubReport> {
        self.shared.scrub.lock().clone()
    }

    /// Resolves when the actors gave up, with the reason. The node must then stop.
    pub async fn failed(&self) -> String {
        let mut failed = self.shared.failed.subscribe();
        match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the supervisor is gone".into(),
        }
    }

    /// Runs every cleanup pass now and waits until no more is to be done, at most `deadline`.
    ///
    /// # Errors
    /// When the actor is not there or the passes did not end in time; they may go on.
    pub async fn run_cleanup(&self, deadline: Duration) -> Result<(), ActorUnavailable> {
        let unavailable = || ActorUnavailable("cleanup");
        let cleanup = self.shared.children.load().cleanup.clone().ok_or_else(unavailable)?;
        match cleanup.call(CleanupMsg::RunAll, Some(deadline)).await {
            Ok(ractor::rpc::CallResult::Success(true)) => Ok(()),
            _ => Err(unavailable()),
        }
    }

    /// Starts a scrub of every disk at full pace, from its beginning to its end.
    ///
    /// # Errors
    /// When a disk's actor is not there.
    pub async fn start_scrub(&self) -> Result<(), ActorUnavailable> {
        let children = self.shared.children.load_full();
        for disk in &children.disks {
            let disk = disk.as_ref().ok_or(ActorUnavailable("disk"))?;
            match disk.call(DiskMsg::ScrubNow, Some(COMMAND_TIMEOUT)).await {
                Ok(ractor::rpc::CallResult::Success(())) => {}
                _ => return Err(ActorUnavailable("disk")),
            }
        }
        Ok(())
    }

    /// Refuses new requests from now on; those admitted go on.
    pub fn drain(&self) {
        self.shared.draining.send_replace(true);
        // At once, whether or not the ingest actor is there to do it.
        let mut limits = self.shared.admission.limits();
        limits.read.refused = Some(Refusal::Draining);
        limits.write.refused = Some(Refusal::Draining);
        self.shared.admission.publish(limits);
        let mut health = NodeHealth::clone(&self.shared.health.load());
        health.reads_refused = Some(Refusal::Draining);
        health.writes_refused = Some(Refusal::Draining);
        self.shared.health.store(Arc::new(health));
    }

    /// Stops the actors, waiting at most `deadline`; then they are killed. Nothing durable depends on it.
    pub async fn stop(&self, deadline: Duration) {
        if self.supervisor.stop_and_wait(None, Some(deadline)).await.is_err() {
            self.supervisor.kill();
        }
    }

    /// Kills an actor as a bug in it would, for tests of supervision.
    pub fn kill_actor(&self, kind: ChildKind) -> bool {
        let children = self.shared.children.load();
        let cell = match kind {
            ChildKind::Ingest => children.ingest.as_ref().map(ActorRef::get_cell),
            ChildKind::Cleanup => children.cleanup.as_ref().map(ActorRef::get_cell),
            ChildKind::Disk(n) => children.disks.get(n).and_then(Option::as_ref).map(ActorRef::get_cell),
        };
        cell.map(|cell| cell.kill()).is_some()
    }

    /// Identity of the current actor of a kind; changes with every restart.
    pub fn actor_id(&self, kind: ChildKind) -> Option<String> {
        let children = self.shared.children.load();
        let id = match kind {
            ChildKind::Ingest => children.ingest.as_ref().map(|a| a.get_id()),
            ChildKind::Cleanup => children.cleanup.as_ref().map(|a| a.get_id()),
            ChildKind::Disk(n) => children.disks.get(n).and_then(Option::as_ref).map(|a| a.get_id()),
        };
        id.map(|id| id.to_string())
    }
}
