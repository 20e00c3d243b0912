//! The watch over one disk: whether it answers.
//!
//! A dead controller or a mount whose server is gone gives no error; operations simply do not end. So the watch looks
//! at how long the oldest operation has been in flight ([`Flights`]):
//!
//! * longer than the patience: the disk is **unresponsive**. It gets no new chunks and no reads that need the disk
//!   itself, and whoever waits for a write is told so at once ([`Watch::while_responsive`]). What the kernel was asked
//!   for runs on.
//! * Once no operation has been in flight for long for a while it is responsive again, by itself.
//! * longer than a second limit: the engine fences it, as after an error, unless most disks of the node are silent
//!   (docs/adr/0019).
//!
//! **Time** counts only while the watch runs: a tick counts for its own length, however late it comes. A process that
//! was stopped, or whose machine was paused, has not waited for its disk.
//!
//! **Threads.** The watch has one, which never asks the disk anything. A second one asks the file system for its free
//! space, again and again, and may hang with the disk; that is an operation like others, so a disk that nobody uses is
//! judged too, and nobody else has to ask what may never be answered.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::WriteError;
use crate::io::BlockIo;
use crate::io::flights::Flights;

/// The longest tick.
const TICK_MAX: Duration = Duration::from_secs(1);

/// The shortest tick, for tests with a patience of milliseconds.
const TICK_MIN: Duration = Duration::from_millis(10);

/// Ticks within the patience.
const TICKS: u32 = 30;

/// Something that is in flight for longer than this part of the patience is slow.
const SLOW_PART: u32 = 10;

/// An unresponsive disk is taken back when nothing was slow for this part of the patience: not at the first answer of
/// one that comes and goes.
const CALM_PART: u32 = 3;

/// Pause between two questions for the free space.
const SPACE_INTERVAL: Duration = Duration::from_secs(1);

/// What the watch of a disk without a patience could tell ages up to.
const NO_PATIENCE: Duration = Duration::from_secs(60);

/// See the module's page.
pub(crate) struct Watch {
    dir: PathBuf,
    patience: Option<Duration>,
    fence_after: Option<Duration>,
    flights: Arc<Flights>,
    unresponsive: AtomicBool,
    /// Something is in flight for longer than a [`SLOW_PART`]th of the patience.
    slow: AtomicBool,
    turned_unresponsive: Notify,
    /// When, on the watch's clock, something was last in flight for longer than a [`SLOW_PART`]th of the patience.
    slow_ms: AtomicU64,
    /// Bytes in all and bytes free, as they were told last.
    space: Mutex<Option<(u64, u64)>>,
    ended: AtomicBool,
    oldest_gauge: Gauge,
    unresponsive_gauge: Gauge,
    judgements: Counter,
}

impl Watch {
    pub(crate) fn new(dir: &Path, patience: Option<Duration>, fence_after: Option<Duration>) -> Arc<Self> {
        let disk = dir.display().to_string();
        Arc::new(Self {
            dir: dir.to_path_buf(),
            patience,
            fence_after,
            flights: Flights::new(patience.unwrap_or(NO_PATIENCE)),
            unresponsive: AtomicBool::new(false),
            slow: AtomicBool::new(false),
            turned_unresponsive: Notify::new(),
            slow_ms: AtomicU64::new(0),
            space: Mutex::new(None),
            ended: AtomicBool::new(false),
            oldest_gauge: metrics::gauge!("holdfast_storage_oldest_operation_seconds", "disk" => disk.clone()),
            unresponsive_gauge: metrics::gauge!("holdfast_storage_unresponsive", "disk" => disk),
            judgements: metrics::counter!("holdfast_storage_unresponsive_total"),
        })
    }

    /// Where operations of the disk are counted.
    pub(crate) fn flights(&self) -> &Arc<Flights> {
        &self.flights
    }

    /// Whether the disk does not answer.
    pub(crate) fn is_unresponsive(&self) -> bool {
        self.unresponsive.load(Ordering::SeqCst)
    }

    /// Whether the disk is to be passed over while another will do: it may be about to be found unresponsive.
    pub(crate) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::SeqCst) || self.is_unresponsive()
    }

    /// For how long the oldest operation has been in flight.
    pub(crate) fn oldest(&self) -> Duration {
        self.flights.oldest().unwrap_or_default()
    }

    /// Bytes in all and bytes free, as the file system told them last; zeros if it does not.
    pub(crate) fn space(&self) -> (u64, u64) {
        self.space.lock().unwrap_or_default()
    }

    /// Does `work`, unless the disk does not answer, or is found not to while it waits. `work` is dropped then: what it
    /// asked the disk for runs on.
    ///
    /// # Errors
    /// [`WriteError::Unresponsive`]; those of `work`.
    pub(crate) async fn while_responsive<T>(
        &self,
        work: impl Future<Output = Result<T, WriteError>>,
    ) -> Result<T, WriteError> {
        if self.is_unresponsive() {
            return Err(WriteError::Unresponsive);
        }
        tokio::select! {
            biased;
            done = work => done,
            () = self.found_unresponsive() => Err(WriteError::Unresponsive),
        }
    }

    /// Waits until the disk does not answer. Cancel safe.
    pub(crate) async fn found_unresponsive(&self) {
        loop {
            let turned = self.turned_unresponsive.notified();
            tokio::pin!(turned);
            // Before the look: what turns between the two is not missed.
            turned.as_mut().enable();
            if self.is_unresponsive() {
                return;
            }
            turned.await;
        }
    }

    /// Lets time pass and judges. Returns for how long the disk has not answered when that is reason to fence it.
    pub(crate) fn tick(&self, by: Duration) -> Option<Duration> {
        self.flights.advance(by);
        let (now, oldest) = (self.flights.now(), self.oldest());
        self.oldest_gauge.set(oldest.as_secs_f64());
        let patience = self.patience?;
        let slow = oldest > patience / SLOW_PART;
        self.slow.store(slow, Ordering::SeqCst);
        if slow {
            self.slow_ms.store(now.as_millis() as u64, Ordering::Relaxed);
        }
        let was = self.is_unresponsive();
        let calm_for = now.saturating_sub(Duration::from_millis(self.slow_ms.load(Ordering::Relaxed)));
        if !was && oldest >= patience {
            self.unresponsive.store(true, Ordering::SeqCst);
            self.turned_unresponsive.notify_waiters();
            self.judgements.increment(1);
            // Last: the log may be on that disk.
            let (disk, seconds) = (self.dir.display(), oldest.as_secs());
            tracing::error!(%disk, seconds, "the disk does not answer: it gets no new chunks until it does");
        } else if was && calm_for >= patience / CALM_PART {
            self.unresponsive.store(false, Ordering::SeqCst);
            tracing::warn!(disk = %self.dir.display(), "the disk answers again");
        }
        self.unresponsive_gauge.set(if self.is_unresponsive() { 1.0 } else { 0.0 });
        self.fence_after.filter(|after| oldest >= *after).map(|_| oldest)
    }

    /// Starts the threads; they end soon after [`Watch::end`], or when the disk lets go of them. `fence` is told of
    /// what [`Watch::tick`] returns.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(
        self: &Arc<Self>,
        io: Arc<dyn BlockIo>,
        fence: impl Fn(Duration) + Send + 'static,
    ) -> std::io::Result<()> {
        // Asked once before anybody else may.
        *self.space.lock() = io.space(&self.dir).ok();
        let tick = (self.patience.unwrap_or(NO_PATIENCE) / TICKS).clamp(TICK_MIN, TICK_MAX);
        let watch = Arc::clone(self);
        thread::Builder::new().name("disk-watch".to_owned()).spawn(move || {
            while !watch.is_ended() {
                thread::sleep(tick);
                if let Some(age) = watch.tick(tick) {
                    fence(age);
                }
            }
        })?;
        let watch = Arc::clone(self);
        thread::Builder::new().name("disk-space".to_owned()).spawn(move || {
            loop {
                thread::sleep(SPACE_INTERVAL);
                if watch.is_ended() {
                    return;
                }
                let told = io.space(&watch.dir).ok();
                *watch.space.lock() = told;
            }
        })?;
        Ok(())
    }

    /// The engine is gone.
    pub(crate) fn end(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }

    fn is_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn watch() -> Arc<Watch> {
        Watch::new(Path::new("/disk"), Some(30 * SECOND), Some(600 * SECOND))
    }

    fn ticks(watch: &Watch, count: u32) -> Option<Duration> {
        let mut fence = None;
        for _ in 0..count {
            fence = watch.tick(SECOND);
        }
        fence
    }

    #[test]
    fn a_disk_is_judged_by_its_oldest_operation_and_comes_back_after_a_calm_while() {
        let watch = watch();
        let slow = watch.flights().begin();
        ticks(&watch, 20);
        assert!(!watch.is_unresponsive());
        ticks(&watch, 15);
        assert!(watch.is_unresponsive());
        drop(slow);
        ticks(&watch, 5);
        assert!(watch.is_unresponsive(), "not at the first answer");
        ticks(&watch, 10);
        assert!(!watch.is_unresponsive());
    }

    #[test]
    fn a_disk_is_passed_over_long_before_it_is_judged() {
        let watch = watch();
        let slow = watch.flights().begin();
        ticks(&watch, 2);
        assert!(!watch.is_slow());
        ticks(&watch, 5);
        assert!(watch.is_slow() && !watch.is_unresponsive());
        drop(slow);
        ticks(&watch, 1);
        assert!(!watch.is_slow());
    }

    #[test]
    fn a_disk_that_comes_and_goes_stays_away() {
        let watch = watch();
        let slow = watch.flights().begin();
        ticks(&watch, 40);
        drop(slow);
        for _ in 0..5 {
            ticks(&watch, 4);
            let slow = watch.flights().begin();
            ticks(&watch, 15);
            drop(slow);
            assert!(watch.is_unresponsive());
        }
    }

    #[test]
    fn a_busy_disk_whose_operations_end_is_never_judged() {
        let watch = watch();
        let mut last = watch.flights().begin();
        for _ in 0..500 {
            ticks(&watch, 5);
            last = watch.flights().begin();
            assert!(!watch.is_unresponsive());
        }
        drop(last);
    }

    /// The watch knows no clock but its ticks: that is what keeps a process that stood still from judging its disks.
    #[test]
    fn no_time_passes_without_a_tick_and_a_tick_is_no_longer_than_it_says() {
        let watch = watch();
        let _slow = watch.flights().begin();
        assert_eq!(watch.oldest(), Duration::ZERO);
        watch.tick(SECOND);
        assert!(watch.oldest() <= SECOND);
    }

    #[test]
    fn fencing_is_asked_for_after_the_second_limit_only() {
        let watch = watch();
        let _slow = watch.flights().begin();
        assert_eq!(ticks(&watch, 600), None);
        assert!(ticks(&watch, 5).is_some());
        let patient = Watch::new(Path::new("/disk"), Some(30 * SECOND), None);
        let _slow = patient.flights().begin();
        assert_eq!(ticks(&patient, 5_000), None);
        assert!(patient.is_unresponsive());
        let blind = Watch::new(Path::new("/disk"), None, Some(600 * SECOND));
        let _slow = blind.flights().begin();
        assert_eq!(ticks(&blind, 5_000), None);
        assert!(!blind.is_unresponsive());
    }

    #[tokio::test]
    async fn who_waits_for_the_disk_is_told_when_it_is_judged() {
        let watch = watch();
        let _slow = watch.flights().begin();
        let mut waiting = Box::pin(watch.while_responsive(std::future::pending::<Result<(), WriteError>>()));
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        ticks(&watch, 35);
        assert!(matches!(waiting.await, Err(WriteError::Unresponsive)));
        let refused = watch.while_responsive(async { Ok(()) }).await;
        assert!(matches!(refused, Err(WriteError::Unresponsive)), "what would not wait is not begun either");
    }
}
