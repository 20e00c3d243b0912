//! Leaps of the time of day.
//!
//! What is done at a time of day is done too early, or all at once, where that leaps. Who does something that is not
//! easily undone compares the time of day with the time that passes, and holds still for a while when they part: an
//! operator, or a time server, may set it right. What has not changed after that is taken for the truth.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::ports::Clock;

/// For how long who has no setting of its own holds still after a leap.
pub const HOLD: Duration = Duration::from_secs(900);

/// The time of day and the time that passes, read at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clocks {
    day_ms: u64,
    passing: Instant,
}

impl Clocks {
    pub(crate) fn read(clock: &dyn Clock) -> Self {
        Self { day_ms: clock.now_ms(), passing: Instant::now() }
    }

    /// Whether the time of day, which is `day_ms` now, has leapt since they were read, by more than `hold`; with a
    /// `hold` of nothing it never has.
    pub(crate) fn have_leapt(&self, day_ms: u64, hold: Duration) -> bool {
        let passed_ms = u64::try_from(self.passing.elapsed().as_millis()).unwrap_or(u64::MAX);
        !hold.is_zero() && u128::from(self.day_ms.saturating_add(passed_ms).abs_diff(day_ms)) > hold.as_millis()
    }

    /// Whether one has gone further than the other by more than `hold` since they were last read. Says so of `what`.
    pub(crate) fn leapt(&mut self, clock: &dyn Clock, hold: Duration, what: &'static str) -> bool {
        let now = Self::read(clock);
        let day_ms = i128::from(now.day_ms) - i128::from(self.day_ms);
        let passed_ms = i128::try_from((now.passing - self.passing).as_millis()).unwrap_or(i128::MAX);
        *self = now;
        if day_ms.abs_diff(passed_ms) <= hold.as_millis() {
            return false;
        }
        metrics::counter!("holdfast_clock_leaps_total").increment(1);
        let (day_seconds, passed_seconds) = (day_ms as f64 / 1_000.0, passed_ms as f64 / 1_000.0);
        tracing::warn!(
            day_seconds,
            passed_seconds,
            ?hold,
            "the time of day has leapt: by it day_seconds have gone by, while passed_seconds have passed. Look at the clock: {what} \
             hold still"
        );
        true
    }

    /// Waits until both have gone equally far for as long as `hold`, give or take that much; at once if they have since
    /// they were last read, or `hold` is none.
    pub(crate) async fn settle(&mut self, clock: &dyn Clock, hold: Duration, what: &'static str) {
        while !hold.is_zero() && self.leapt(clock, hold, what) {
            tokio::time::sleep(hold).await;
        }
    }
}

/// Whether a leap has been waited out, for who has other work meanwhile.
#[derive(Debug)]
pub(crate) struct Leaps {
    clocks: Clocks,
    hold: Duration,
    until: Option<Instant>,
}

impl Leaps {
    /// Compares from now on. With a `hold` of nothing there are no leaps.
    pub(crate) fn new(clock: &dyn Clock, hold: Duration) -> Self {
        Self { clocks: Clocks::read(clock), hold, until: None }
    }

    /// Whether `what` holds still now.
    pub(crate) fn hold(&mut self, clock: &dyn Clock, what: &'static str) -> bool {
        if self.hold.is_zero() {
            return false;
        }
        if self.clocks.leapt(clock, self.hold, what) {
            self.until = Some(Instant::now() + self.hold);
        }
        self.until = self.until.filter(|until| *until > Instant::now());
        self.until.is_some()
    }
}

/// The same for several that share it.
#[derive(Debug)]
pub struct LeapGuard(Mutex<Leaps>);

impl LeapGuard {
    /// Compares from now on. With a `hold` of nothing there are no leaps.
    pub fn new(clock: &dyn Clock, hold: Duration) -> Self {
        Self(Mutex::new(Leaps::new(clock, hold)))
    }

    /// Whether `what` holds still now. Asked seldom, it notices a leap late, but before what is done after the
    /// question.
    pub fn holds(&self, clock: &dyn Clock, what: &'static str) -> bool {
        self.0.lock().hold(clock, what)
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
        clocks.settle(clock, HOLD, "tests").await;
        begun.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_goes_well_holds_nothing_up() {
        let clock = SetClock::new();
        let mut clocks = Clocks::read(&clock);
        let mut leaps = Leaps::new(&clock, HOLD);
        for leap_ms in [0, 800_000, -800_000] {
            tokio::time::sleep(HOLD * 100).await;
            clock.leap(leap_ms);
            assert_eq!(settled(&mut clocks, &clock).await, Duration::ZERO);
            assert!(!leaps.hold(&clock, "tests"));
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
    async fn who_does_not_wait_is_told_until_a_leap_is_over() {
        let clock = SetClock::new();
        let mut leaps = Leaps::new(&clock, HOLD);
        clock.leap(31_536_000_000);
        for _ in 0..3 {
            assert!(leaps.hold(&clock, "tests"));
            tokio::time::sleep(HOLD / 4).await;
        }
        clock.leap(-31_536_000_000);
        assert!(leaps.hold(&clock, "tests"), "the way back is a leap, too");
        tokio::time::sleep(HOLD / 2).await;
        assert!(leaps.hold(&clock, "tests"));
        tokio::time::sleep(HOLD / 2).await;
        assert!(!leaps.hold(&clock, "tests"));
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_hold_clocks_are_not_compared() {
        let clock = SetClock::new();
        let (mut clocks, mut leaps) = (Clocks::read(&clock), Leaps::new(&clock, Duration::ZERO));
        clock.leap(86_400_000);
        let begun = Instant::now();
        clocks.settle(&clock, Duration::ZERO, "tests").await;
        assert_eq!(begun.elapsed(), Duration::ZERO);
        assert!(!leaps.hold(&clock, "tests"));
    }
}
