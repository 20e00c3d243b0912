//! The loop: passes at their interval, at once while there is more, and after growing pauses while they fail.

use std::time::Duration;

use super::{LifecycleParts, LifecycleStats};
use crate::domain::cleanup::PassEnd;

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
    loop {
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
                if end == PassEnd::More { BREATH } else { parts.settings.interval }
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

fn say(stats: &LifecycleStats) {
    if stats.did_anything() {
        let LifecycleStats { expired, noncurrent, markers, uploads, .. } = *stats;
        tracing::info!(expired, noncurrent, markers, uploads, "lifecycle rules were carried out");
    }
}
