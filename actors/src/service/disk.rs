//! The disk actor: housekeeping of one disk.
//!
//! It watches the disk's health and tells the ingest actor of changes, scrubs at the pace that covers the disk within
//! the configured number of days, compacts, and writes checkpoints. One task of each kind at a time, tracked; a task
//! that the actor's end aborts leaves the disk consistent, and scrub goes on from its saved position.
//!
//! Failure: an error of a step is logged and counted, and the step is tried again at its next turn; a disk that is
//! fenced or does not answer gets no housekeeping. The engine itself judges the disk, this actor only says so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort, async_trait};
use tokio::task::JoinSet;

use super::ingest::IngestMsg;
use super::node::{NodeParts, NodeShared};
use super::ticker::{Tick, spawn_ticker};
use super::tracked::to_its_end;
use crate::domain::admission::DiskHealth;
use crate::ports::{ChunkError, Disk, ScrubStep};

/// Bytes of one step of a scrub that an operator asked for: large enough to stream, small enough to be interrupted.
const SCRUB_NOW_STEP_BYTES: u64 = 64 << 20;

/// Most bytes of any other step: what a busy disk reads within the time limit. A step that is cut off counts as failed,
/// and the next one goes on with what that one was reading.
const SCRUB_STEP_BYTES_MAX: u64 = 4 << 30;

/// How housekeeping is paced.
#[derive(Debug, Clone)]
pub struct DiskSettings {
    /// Everything is read once within this time; `None` switches scrub off.
    pub scrub_period: Option<Duration>,
    /// Time between steps of scrub.
    pub scrub_interval: Duration,
    /// Time between checkpoints.
    pub checkpoint_interval: Duration,
    /// Time between steps of compaction.
    pub compact_interval: Duration,
    /// Bytes a step of compaction.
    pub compact_step_bytes: u64,
    /// Longest time for one step of anything.
    pub step_timeout: Duration,
}

/// The actor of one disk.
pub struct DiskActor;

/// Its messages.
#[derive(Debug)]
pub enum DiskMsg {
    /// Look at the disk and start what is due.
    Tick(Tick),
    /// Scrub everything at full pace.
    ScrubNow(RpcReplyPort<()>),
    /// A tracked task ended.
    Ended(Ended),
}

/// How a task ended.
#[derive(Debug)]
pub enum Ended {
    /// A step of scrub.
    Scrub(Result<ScrubStep, String>),
    /// A step of compaction, with the bytes it moved; 0 when nothing is left to do.
    Compact(Result<u64, String>),
    /// A checkpoint.
    Checkpoint(Result<(), String>),
}

/// A kind of task: when it is due and whether it runs.
struct Turn {
    due: Instant,
    running: bool,
}

impl Turn {
    fn in_(wait: Duration) -> Self {
        Self { due: Instant::now() + wait, running: false }
    }

    fn take(&mut self) -> bool {
        let take = !self.running && self.due <= Instant::now();
        self.running |= take;
        take
    }
}

/// Its state.
pub struct DiskState {
    disk: Arc<dyn Disk>,
    index: usize,
    settings: DiskSettings,
    shared: Arc<NodeShared>,
    tasks: JoinSet<()>,
    health: Option<DiskHealth>,
    scrub: Turn,
    compact: Turn,
    checkpoint: Turn,
    /// A scrub that an operator asked for: `Some(whether its beginning was reached)`.
    scrub_now: Option<bool>,
}

#[async_trait]
impl Actor for DiskActor {
    type Msg = DiskMsg;
    type State = DiskState;
    type Arguments = (usize, NodeParts, Arc<NodeShared>);

    async fn pre_start(
        &self,
        myself: ActorRef<Self::Msg>,
        (index, parts, shared): Self::Arguments,
    ) -> Result<Self::State, ActorProcessingErr> {
        let mut tasks = JoinSet::new();
        spawn_ticker(&mut tasks, myself, parts.health_interval, DiskMsg::Tick);
        let settings = parts.disk;
        if let Some(report) = shared.scrub.lock().get_mut(index) {
            report.running = false;
        }
        Ok(DiskState {
            disk: parts.disks[index].clone(),
            index,
            scrub: Turn::in_(settings.scrub_interval),
            compact: Turn::in_(settings.compact_interval),
            checkpoint: Turn::in_(settings.checkpoint_interval),
            settings,
            shared,
            tasks,
            health: None,
            scrub_now: None,
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
            DiskMsg::Tick(_tick) => {
                state.look();
                state.start_due(&myself);
            }
            DiskMsg::ScrubNow(reply) => {
                state.scrub_now = Some(false);
                state.scrub.due = Instant::now();
                state.set_scrub_running(true);
                state.start_due(&myself);
                drop(reply.send(()));
            }
            DiskMsg::Ended(ended) => {
                state.on_ended(ended);
                state.start_due(&myself);
            }
        }
        Ok(())
    }
}

impl DiskState {
    /// Reads the disk's status into metrics and tells of a change of health.
    fn look(&mut self) {
        let status = self.disk.status();
        let name = self.disk.name();
        let gauge = |what: &'static str, value: u64| metrics::gauge!(what, "disk" => name.to_owned()).set(value as f64);
        gauge("holdfast_disk_total_bytes", status.total_bytes);
        gauge("holdfast_disk_free_bytes", status.free_bytes);
        gauge("holdfast_disk_live_bytes", status.live_bytes);
        gauge("holdfast_disk_chunks", status.chunks);
        gauge("holdfast_disk_segments", status.segments);
        for health in DiskHealth::ALL {
            metrics::gauge!("holdfast_disk_health", "disk" => name.to_owned(), "state" => health.as_str())
                .set(if health == status.health { 1.0 } else { 0.0 });
        }
        if self.health != Some(status.health) {
            let detail = status.detail.as_deref().unwrap_or("");
            match status.health {
                DiskHealth::Healthy => tracing::info!(disk = name, "disk is healthy"),
                DiskHealth::Full => {
                    tracing::warn!(disk = name, detail, "disk is full: it takes reads and deletions only")
                }
                DiskHealth::Unresponsive => {
                    tracing::error!(disk = name, detail, "disk does not answer: it gets nothing new until it does")
                }
                DiskHealth::Fenced => tracing::error!(disk = name, detail, "disk is fenced after an i/o error"),
            }
            self.health = Some(status.health);
            if let Some(ingest) = &self.shared.children.load().ingest {
                // An ingest actor that is being restarted looks by itself.
                drop(ingest.send_message(IngestMsg::DiskChanged));
            }
        }
    }

    fn start_due(&mut self, myself: &ActorRef<DiskMsg>) {
        if matches!(self.health, Some(DiskHealth::Fenced | DiskHealth::Unresponsive)) {
            self.give_up_scrub_now();
            return;
        }
        let limit = self.settings.step_timeout;
        let disk = self.disk.clone();
        if let Some(bytes) = self.scrub_bytes()
            && self.scrub.take()
        {
            let disk = disk.clone();
            self.spawn(myself, async move { Ended::Scrub(timed(limit, disk.scrub_step(bytes)).await) });
        }
        if self.compact.take() {
            let bytes = self.settings.compact_step_bytes;
            let disk = disk.clone();
            self.spawn(myself, async move { Ended::Compact(timed(limit, disk.compact_step(bytes)).await) });
        }
        if self.checkpoint.take() {
            self.spawn(myself, async move { Ended::Checkpoint(timed(limit, disk.checkpoint()).await) });
        }
    }

    /// A fenced disk is not scrubbed any more, and whoever asked for it would wait for ever.
    fn give_up_scrub_now(&mut self) {
        if self.health == Some(DiskHealth::Fenced) && self.scrub_now.take().is_some() {
            tracing::warn!(disk = self.disk.name(), "disk is fenced: the scrub that was asked for is given up");
            self.set_scrub_running(false);
        }
    }

    /// Bytes of the next step of scrub: what covers the live bytes within the period.
    fn scrub_bytes(&self) -> Option<u64> {
        if self.scrub_now.is_some() {
            return Some(SCRUB_NOW_STEP_BYTES);
        }
        let period = self.settings.scrub_period?;
        let share = self.settings.scrub_interval.as_secs_f64() / period.as_secs_f64().max(1.0);
        let bytes = (self.disk.status().live_bytes as f64 * share).ceil() as u64;
        (bytes > 0).then_some(bytes.min(SCRUB_STEP_BYTES_MAX))
    }

    fn spawn(&mut self, myself: &ActorRef<DiskMsg>, task: impl Future<Output = Ended> + Send + 'static) {
        let myself = myself.clone();
        self.tasks.spawn(async move {
            let ended = task.await;
            drop(myself.send_message(DiskMsg::Ended(ended)));
        });
    }

    fn on_ended(&mut self, ended: Ended) {
        let disk = self.disk.name().to_owned();
        let failed = |task: &'static str, error: &str| {
            metrics::counter!("holdfast_disk_task_failures_total", "disk" => disk.clone(), "task" => task).increment(1);
            tracing::warn!(disk, task, error, "disk housekeeping failed, it is tried again");
        };
        match ended {
            Ended::Scrub(result) => {
                self.scrub = Turn::in_(self.settings.scrub_interval);
                match result {
                    Ok(step) => self.on_scrubbed(&step),
                    Err(error) => {
                        failed("scrub", &error);
                        self.scrub_now = None;
                        self.set_scrub_running(false);
                    }
                }
            }
            Ended::Compact(result) => {
                self.compact = Turn::in_(self.settings.compact_interval);
                match result {
                    Ok(0) => {}
                    Ok(bytes) => {
                        metrics::counter!("holdfast_disk_compacted_bytes_total", "disk" => disk).increment(bytes);
                        // There may be more.
                        self.compact.due = Instant::now();
                    }
                    Err(error) => failed("compact", &error),
                }
            }
            Ended::Checkpoint(result) => {
                self.checkpoint = Turn::in_(self.settings.checkpoint_interval);
                if let Err(error) = result {
                    failed("checkpoint", &error);
                }
            }
        }
    }

    fn on_scrubbed(&mut self, step: &ScrubStep) {
        if step.corrupt > 0 {
            tracing::error!(disk = self.disk.name(), chunks = step.corrupt, "scrub found corrupt chunks");
        }
        // A scrub on command starts wherever the last step ended: it is over at the second end.
        match (self.scrub_now, step.pass_finished) {
            (Some(true), true) => self.scrub_now = None,
            (Some(false), true) => self.scrub_now = Some(true),
            _ => {}
        }
        if self.scrub_now.is_some() {
            self.scrub.due = Instant::now();
        }
        let mut reports = self.shared.scrub.lock();
        let report = &mut reports[self.index];
        report.bytes += step.bytes;
        report.chunks += step.chunks;
        report.corrupt += step.corrupt;
        report.passes += u64::from(step.pass_finished);
        report.running = self.scrub_now.is_some();
    }

    fn set_scrub_running(&self, running: bool) {
        self.shared.scrub.lock()[self.index].running = running;
    }
}

async fn timed<T>(limit: Duration, step: impl Future<Output = Result<T, ChunkError>>) -> Result<T, String> {
    let step = to_its_end(async { step.await.map_err(|error| error.to_string()) });
    match tokio::time::timeout(limit, step).await {
        Ok(result) => result,
        Err(_) => Err(format!("did not end within {} s", limit.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use arc_swap::ArcSwap;
    use parking_lot::Mutex;
    use tokio::sync::watch;

    use super::*;
    use crate::domain::admission::{ClassLimits, Limits};
    use crate::ports::DiskStatus;
    use crate::service::Admission;
    use crate::service::node::{Children, NodeHealth, ScrubReport};

    struct Ill(Mutex<DiskHealth>);

    #[async_trait]
    impl Disk for Ill {
        fn name(&self) -> &str {
            "/ill"
        }

        fn status(&self) -> DiskStatus {
            let health = *self.0.lock();
            let (total_bytes, live_bytes) = (32 << 40, 16 << 40);
            DiskStatus { health, detail: None, total_bytes, free_bytes: 1, live_bytes, chunks: 1, segments: 1 }
        }

        async fn checkpoint(&self) -> Result<(), ChunkError> {
            Ok(())
        }

        async fn scrub_step(&self, _: u64) -> Result<ScrubStep, ChunkError> {
            Ok(ScrubStep::default())
        }

        async fn compact_step(&self, _: u64) -> Result<u64, ChunkError> {
            Ok(0)
        }
    }

    fn state_of(disk: Arc<Ill>) -> DiskState {
        let class = ClassLimits { jobs_max: 1, bytes_max: 1, queue_max: 1, refused: None };
        let shared = Arc::new(NodeShared {
            admission: Admission::new(Limits { read: class, write: class, queue_wait_ms: 1 }),
            health: ArcSwap::from_pointee(NodeHealth::starting()),
            cleanup: Mutex::default(),
            scrub: Mutex::new(vec![ScrubReport::default()]),
            children: ArcSwap::from_pointee(Children::default()),
            draining: watch::Sender::new(false),
            failed: watch::Sender::new(None),
        });
        let hour = Duration::from_secs(3_600);
        DiskState {
            disk,
            index: 0,
            settings: DiskSettings {
                scrub_period: None,
                scrub_interval: hour,
                checkpoint_interval: hour,
                compact_interval: hour,
                compact_step_bytes: 1,
                step_timeout: hour,
            },
            shared,
            tasks: JoinSet::new(),
            health: None,
            scrub: Turn::in_(hour),
            compact: Turn::in_(hour),
            checkpoint: Turn::in_(hour),
            scrub_now: None,
        }
    }

    #[test]
    fn no_step_of_scrub_is_larger_than_what_is_read_in_time() {
        let mut state = state_of(Arc::new(Ill(Mutex::new(DiskHealth::Healthy))));
        assert_eq!(state.scrub_bytes(), None);
        state.settings.scrub_interval = Duration::from_secs(10);
        state.settings.scrub_period = Some(Duration::from_secs(30 * 86_400));
        assert!(state.scrub_bytes().is_some_and(|bytes| bytes < 100 << 20));
        state.settings.scrub_period = Some(Duration::from_millis(1));
        assert_eq!(state.scrub_bytes(), Some(SCRUB_STEP_BYTES_MAX));
    }

    #[test]
    fn who_waits_for_a_scrub_does_not_wait_for_a_disk_that_is_fenced() {
        let disk = Arc::new(Ill(Mutex::new(DiskHealth::Unresponsive)));
        let mut state = state_of(disk.clone());
        state.scrub_now = Some(false);
        state.set_scrub_running(true);
        state.look();
        state.give_up_scrub_now();
        assert!(state.shared.scrub.lock()[0].running, "the disk may answer again");
        *disk.0.lock() = DiskHealth::Fenced;
        state.look();
        state.give_up_scrub_now();
        assert!(!state.shared.scrub.lock()[0].running);
        assert_eq!(state.scrub_now, None);
    }
}
