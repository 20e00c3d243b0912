//! Pauses after failures: of one move, and of a whole tier.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_protocol::TierName;
use parking_lot::Mutex;
use tokio::time::Instant;

/// The pause before the next try after `failures` in a row (from 1): doubled each time, from `min` to `max`, and up to
/// a quarter longer, so that what failed together does not come again together.
pub(super) fn pause_after(failures: u32, min: Duration, max: Duration) -> Duration {
    let doubled = min.saturating_mul(1_u32.checked_shl(failures.saturating_sub(1).min(31)).unwrap_or(u32::MAX));
    doubled.min(max).mul_f64(rand::random_range(1.0..1.25))
}

/// Whether a tier is worked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admission {
    /// As much as the settings allow.
    Free,
    /// It failed a while ago: one thing, to see whether it works again.
    Probe,
    /// It failed just now: nothing.
    Not,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    times: u32,
    until: Instant,
}

/// Leaves tiers alone that fail as a whole: for a while that doubles from one failed probe to the next.
#[derive(Debug)]
pub(super) struct Breakers {
    min: Duration,
    max: Duration,
    failed: Mutex<HashMap<TierName, Failed>>,
}

impl Breakers {
    pub(super) fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, failed: Mutex::default() }
    }

    pub(super) fn admission(&self, tier: &TierName) -> Admission {
        match self.failed.lock().get(tier) {
            None => Admission::Free,
            Some(failed) if failed.until <= Instant::now() => Admission::Probe,
            Some(_) => Admission::Not,
        }
    }

    /// The tier did what it was asked.
    pub(super) fn on_success(&self, tier: &TierName) {
        if self.failed.lock().remove(tier).is_some() {
            tracing::info!(%tier, "the tier works again");
        }
    }

    /// The tier failed, and not one piece of it. What fails while it is left alone anyway was begun before, and counts
    /// no more.
    pub(super) fn on_failure(&self, tier: &TierName) {
        let mut all = self.failed.lock();
        let now = Instant::now();
        let times = match all.get(tier) {
            Some(failed) if failed.until > now => return,
            Some(failed) => failed.times.saturating_add(1),
            None => 1,
        };
        let pause = pause_after(times, self.min, self.max);
        all.insert(tier.clone(), Failed { times, until: now + pause });
        drop(all);
        tracing::warn!(%tier, ?pause, "the tier fails, it is left alone for a while");
    }

    /// Forgets tiers that are not set up any more.
    pub(super) fn retain(&self, names: &[TierName]) {
        self.failed.lock().retain(|name, _| names.contains(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn pauses_double_up_to_the_longest() {
        let hour = Duration::from_secs(3600);
        for (failures, seconds) in
            [(0, 5), (1, 5), (2, 10), (3, 20), (10, 2_560), (11, 3_600), (40, 3_600), (u32::MAX, 3_600)]
        {
            let pause = pause_after(failures, 5 * SECOND, hour).as_secs_f64();
            let least = f64::from(seconds);
            assert!(pause >= least && pause < least * 1.25, "{failures}: {pause}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tier_that_fails_is_left_alone_probed_and_free_again() {
        let (one, other): (TierName, TierName) = ("ONE".parse().unwrap(), "OTHER".parse().unwrap());
        let breakers = Breakers::new(10 * SECOND, 60 * SECOND);
        assert_eq!(breakers.admission(&one), Admission::Free);
        for _ in 0..4 {
            breakers.on_failure(&one);
        }
        assert_eq!(breakers.admission(&one), Admission::Not);
        assert_eq!(breakers.admission(&other), Admission::Free, "it is not the other's fault");
        tokio::time::advance(13 * SECOND).await;
        assert_eq!(breakers.admission(&one), Admission::Probe, "four moves that failed together are one failure");
        breakers.on_failure(&one);
        tokio::time::advance(15 * SECOND).await;
        assert_eq!(breakers.admission(&one), Admission::Not, "the second pause is longer");
        tokio::time::advance(10 * SECOND).await;
        assert_eq!(breakers.admission(&one), Admission::Probe);
        breakers.on_success(&one);
        assert_eq!(breakers.admission(&one), Admission::Free);
    }
}
