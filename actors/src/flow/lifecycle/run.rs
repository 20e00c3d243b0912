//! The loop: passes at their interval, at once while there is more, and after growing pauses while they fail.
//!
//! What is due goes by the time of day, and what is deleted does not come back. So the loop holds still after its start, when a
//! clock may still be set and whoever restored a backup with rules that are at fault may want to change them, and whenever the
//! time of day leaps.

use std::time::Duration;

use tokio::time::Instant;

use super::{LifecycleParts, LifecycleStats};
use crate::domain::cleanup::PassEnd;
use crate::ports::Clock;

/// Pause between passes while there is more to do, so that others have their turn.
const BREATH: Duration = Duration::from_millis(20);

/// The longest pause after failures, unless the interval is shorter.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// Runs for ever; ends only by a bug, and says which.
pub async fn run(parts: LifecycleParts) -> String {
    let Some(cluster) = parts.cluster.clone() else { return serve(&parts).await };
    tokio::select! {
        () = cluster.duty.stand() => "nobody stands for the lock of the lifecycle rules any more".to_owned(),
        reason = serve(&parts) => reason,
    }
}

async fn serve(parts: &LifecycleParts) -> String {
    let lag = metrics::gauge!("holdfast_lifecycle_lag_seconds");
    let mut failures = 0_u32;
    let hold = parts.settings.hold;
    let mut clocks = Clocks::read(&*parts.clock);
    if !hold.is_zero() {
        tracing::info!(?hold, "lifecycle rules hold still after the start");
        tokio::time::sleep(hold).await;
    }
    loop {
        clocks.settle(&*parts.clock, hold).await;
        let result = parts.pass().await;
        if let Some(cluster) = &parts.cluster {
            cluster.duty.on_turn(result.is_ok());
        }
        let outcome = if result.is_ok() { "ok" } else { "failed" };
        metrics::counter!("holdfast_lifecycle_passes_total", "outcome" => outcome).increment(1);
        let pause = match result {
            Ok((stats, end)) => {
                failures = 0;
                say(&stats);
                metrics::counter!("holdfast_lifecycle_examined_total").increment(stats.examined);
                lag.set(if end == PassEnd::More { stats.lag_ms as f64 / 1_000.0 } else { 0.0 });
                pause_after(&stats, end, parts.settings.interval)
            }
            Err(error) => {
                failures = (failures + 1).min(10);
                tracing::warn!(%error, "a pass over the lifecycle rules failed, it is tried again");
                Duration::from_secs(1 << failures).min(BACKOFF_MAX).min(parts.settings.interval)
            }
        };
        // Nodes that were started together do not ask together.
        tokio::time::sleep(pause.mul_f64(rand::random_range(1.0..1.25))).await;
    }
}

/// How long to wait after a pass that succeeded.
fn pause_after(stats: &LifecycleStats, end: PassEnd, interval: Duration) -> Duration {
    // Nothing but refusals: whatever they come from, asking again at once would only be refused again.
    let is_stuck = stats.changed > 0 && !stats.did_anything();
    if end == PassEnd::More && !is_stuck { BREATH } else { interval }
}

/// The time of day and the time that passes, read at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clocks {
    day_ms: u64,
    passing: Instant,
}

impl Clocks {
    pub(super) fn read(clock: &dyn Clock) -> Self {
        Self { day_ms: clock.now_ms(), passing: Instant::now() }
    }

    /// Whether the time of day, which is `day_ms` now, has leapt since they were read, by more than `hold`.
    pub(super) fn have_leapt(&self, day_ms: u64, hold: Duration) -> bool {
        let passed_ms = u64::try_from(self.passing.elapsed().as_millis()).unwrap_or(u64::MAX);
        !hold.is_zero() && u128::from(self.day_ms.saturating_add(passed_ms).abs_diff(day_ms)) > hold.as_millis()
    }

    /// Waits until both have gone equally far for as long as `hold`, give or take that much; at once if they have since they
    /// were last read.
    async fn settle(&mut self, clock: &dyn Clock, hold: Duration) {
        if hold.is_zero() {
            return;
        }
        loop {
            let now = Self::read(clock);
            let day_ms = i128::from(now.day_ms) - i128::from(self.day_ms);
            let passed_ms = i128::try_from((now.passing - self.passing).as_millis()).unwrap_or(i128::MAX);
            *self = now;
            if day_ms.abs_diff(passed_ms) <= hold.as_millis() {
                return;
            }
            let (day_seconds, passed_seconds) = (day_ms as f64 / 1_000.0, passed_ms as f64 / 1_000.0);
            tracing::warn!(
                day_seconds,
                passed_seconds,
                ?hold,
                "the time of day has leapt: by it day_seconds have gone by, while passed_seconds have passed. Lifecycle rules hold \
                 still, look at the clock"
            );
            tokio::time::sleep(hold).await;
        }
    }
}

fn say(stats: &LifecycleStats) {
    if stats.did_anything() {
        let LifecycleStats { expired, noncurrent, markers, uploads, transitions, .. } = *stats;
        tracing::info!(expired, noncurrent, markers, uploads, transitions, "lifecycle rules were carried out");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicI64, Ordering};

    use super::*;

    const HOLD: Duration = Duration::from_secs(900);

    /// Goes as time passes, from where it was set.
    struct SetClock {
        begun: Instant,
        set_ms: AtomicI64,
    }

    impl SetClock {
        fn new() -> Self {
            Self { begun: Instant::now(), set_ms: AtomicI64::new(1_700_000_000_000) }
        }

        fn leap(&self, ms: i64) {
            self.set_ms.fetch_add(ms, Ordering::Relaxed);
        }
    }

    impl Clock for SetClock {
        fn now_ms(&self) -> u64 {
            self.set_ms.load(Ordering::Relaxed) as u64 + self.begun.elapsed().as_millis() as u64
        }
    }

    /// How long settling takes, in virtual time.
    async fn settled(clocks: &mut Clocks, clock: &SetClock) -> Duration {
        let begun = Instant::now();
        clocks.settle(clock, HOLD).await;
        begun.elapsed()
    }

    #[test]
    fn only_what_gets_on_is_gone_on_with_at_once() {
        let pause = |stats, end| pause_after(&stats, end, HOLD);
        let none = LifecycleStats::default();
        assert_eq!(pause(none, PassEnd::Done), HOLD);
        assert_eq!(pause(none, PassEnd::More), BREATH, "there were only young ones so far");
        assert_eq!(pause(LifecycleStats { changed: 3, ..none }, PassEnd::More), HOLD, "refused, and nothing done");
        assert_eq!(pause(LifecycleStats { changed: 3, expired: 1, ..none }, PassEnd::More), BREATH);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_goes_well_holds_nothing_up() {
        let clock = SetClock::new();
        let mut clocks = Clocks::read(&clock);
        for leap_ms in [0, 800_000, -800_000] {
            tokio::time::sleep(HOLD * 100).await;
            clock.leap(leap_ms);
            assert_eq!(settled(&mut clocks, &clock).await, Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_leap_in_either_direction_is_waited_out_once() {
        let clock = SetClock::new();
        let mut clocks = Clocks::read(&clock);
        for leap_ms in [2_000_000, -2_000_000, 1_000_000_000_000] {
            clock.leap(leap_ms);
            assert!(settled(&mut clocks, &clock).await >= HOLD);
            assert_eq!(settled(&mut clocks, &clock).await, Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_while_it_is_waited_for_is_waited_for_again() {
        let clock = SetClock::new();
        let mut clocks = Clocks::read(&clock);
        clock.leap(86_400_000);
        let leaps = async {
            tokio::time::sleep(HOLD / 2).await;
            clock.leap(-86_400_000);
        };
        let (waited, ()) = tokio::join!(settled(&mut clocks, &clock), leaps);
        assert!(waited >= HOLD * 2, "{waited:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_hold_clocks_are_not_compared() {
        let clock = SetClock::new();
        let mut clocks = Clocks::read(&clock);
        clock.leap(86_400_000);
        let begun = Instant::now();
        clocks.settle(&clock, Duration::ZERO).await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
    }
}
