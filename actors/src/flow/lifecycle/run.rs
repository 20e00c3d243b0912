//! The loop: passes at their interval, at once while there is more, and after growing pauses while they fail.
//!
//! What is due goes by the time of day, and what is deleted does not come back. So the loop holds still after its
//! start, when a clock may still be set and whoever restored a backup with rules that are at fault may want to change
//! them, and whenever the time of day leaps.

use std::time::Duration;

use super::{LifecycleParts, LifecycleStats};
use crate::domain::cleanup::PassEnd;
use crate::flow::clocks::Clocks;

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
        clocks.settle(&*parts.clock, hold, "lifecycle rules").await;
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

fn say(stats: &LifecycleStats) {
    if stats.did_anything() {
        let LifecycleStats { expired, noncurrent, markers, uploads, transitions, .. } = *stats;
        tracing::info!(expired, noncurrent, markers, uploads, transitions, "lifecycle rules were carried out");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD: Duration = Duration::from_secs(900);

    #[test]
    fn only_what_gets_on_is_gone_on_with_at_once() {
        let pause = |stats, end| pause_after(&stats, end, HOLD);
        let none = LifecycleStats::default();
        assert_eq!(pause(none, PassEnd::Done), HOLD);
        assert_eq!(pause(none, PassEnd::More), BREATH, "there were only young ones so far");
        assert_eq!(pause(LifecycleStats { changed: 3, ..none }, PassEnd::More), HOLD, "refused, and nothing done");
        assert_eq!(pause(LifecycleStats { changed: 3, expired: 1, ..none }, PassEnd::More), BREATH);
    }
}
