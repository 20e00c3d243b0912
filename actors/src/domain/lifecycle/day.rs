//! Days as lifecycle rules count them.
//!
//! S3 adds the days of a rule to the time at which something began and rounds up to the next midnight, UTC. What began
//! at 10:30 on the 15th and has 3 days is due at 0:00 on the 19th. One that lasts for a shorter time than a real day
//! serves tests.

/// Parts of a day that a walk stays behind the present, so that what commits late, or by a clock that is behind, is not
/// passed: a quarter of an hour of a real day.
const SETTLE_PARTS: u64 = 96;

/// The least of that, however short a day is.
const SETTLE_MS_MIN: u64 = 5_000;

/// How long a day is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Day {
    ms: u64,
}

impl Day {
    /// A day of 24 hours.
    pub const REAL: Self = Self { ms: 86_400_000 };

    /// A day of another length, for tests. At least a millisecond.
    pub fn of_ms(ms: u64) -> Self {
        Self { ms: ms.max(1) }
    }

    /// When the day began that `ms` lies in.
    pub fn begin_ms(self, ms: u64) -> u64 {
        ms / self.ms * self.ms
    }

    /// When what began at `from_ms` is `days` old.
    pub fn due_ms(self, from_ms: u64, days: u32) -> u64 {
        let aged = from_ms.saturating_add(u64::from(days).saturating_mul(self.ms));
        (aged / self.ms).saturating_add(1).saturating_mul(self.ms)
    }

    /// The latest begin of what is `days` old now; `None`: nothing can be.
    pub fn last_due_ms(self, now_ms: u64, days: u32) -> Option<u64> {
        let midnight = now_ms / self.ms * self.ms;
        midnight.checked_sub(u64::from(days).saturating_mul(self.ms))?.checked_sub(1)
    }

    /// The latest begin of what may be looked at now by a walk that does not wait for an age.
    pub fn settled_ms(self, now_ms: u64) -> u64 {
        now_ms.saturating_sub((self.ms / SETTLE_PARTS).max(SETTLE_MS_MIN))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: u64 = 3_600_000;

    #[test]
    fn age_is_rounded_up_to_the_next_midnight() {
        let day = Day::REAL;
        // 15 January 2014, 10:30 UTC, the example of S3's documentation.
        let begun = 1_389_781_800_000;
        assert_eq!(day.due_ms(begun, 3), 1_390_089_600_000, "19 January 2014, 0:00");
        assert_eq!(day.due_ms(0, 1), 48 * HOUR, "what begins at midnight waits for the next one too");
        assert_eq!(day.due_ms(HOUR, 1), 48 * HOUR);
    }

    #[test]
    fn nothing_is_older_than_time_and_nothing_overflows() {
        assert_eq!(Day::REAL.last_due_ms(HOUR, 1), None);
        assert_eq!(Day::REAL.last_due_ms(24 * HOUR, 1), None);
        assert_eq!(Day::REAL.due_ms(u64::MAX, u32::MAX), u64::MAX);
        assert_eq!(Day::of_ms(0).due_ms(5, 1), 7);
    }

    proptest! {
        /// The two directions agree: exactly what began up to the last begin is due.
        #[test]
        fn what_is_due_is_what_began_early_enough(
            ms in 1u64..200_000_000,
            from_ms in 0u64..2_000_000_000_000,
            wait_ms in 0u64..400_000_000_000,
            days in 1u32..4_000,
        ) {
            let (day, now_ms) = (Day::of_ms(ms), from_ms + wait_ms);
            let due = day.due_ms(from_ms, days) <= now_ms;
            prop_assert_eq!(due, day.last_due_ms(now_ms, days).is_some_and(|last| from_ms <= last));
            // Never before its days are over, and at most a day after.
            let aged = from_ms + u64::from(days) * ms;
            prop_assert!(day.due_ms(from_ms, days) > aged && day.due_ms(from_ms, days) <= aged + ms);
        }
    }
}
