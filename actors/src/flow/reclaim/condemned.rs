//! When a condemnation may be forgotten.
//!
//! It is what refuses a write that goes on after it was taken for dead and its chunks were deleted. Its time was told
//! by the clock of whichever node condemned, and its age is reckoned by that of another one: a clock that is wrong by a
//! month, in either direction, makes it look old at once. So the time of day only says which ones to look at. A node
//! forgets one after it has seen it for longer than any write can go on, by the time that passes. A process that starts
//! begins anew.

use std::collections::HashMap;
use std::time::Duration;

use crate::ports::metadata::Condemned;

/// Condemnations that are looked at by one node at once: the oldest ones. Six hundred KiB of names.
pub(super) const SEEN_MAX: u32 = 16_384;

/// The shortest time that one is seen before it is forgotten.
const SEEN_FOR_MIN: Duration = Duration::from_secs(3_600);

/// Condemnations that are old by the clock, and since when they are seen.
#[derive(Debug)]
pub(super) struct Seen {
    for_ms: u64,
    since_ms: HashMap<Condemned, u64>,
}

impl Seen {
    /// `write` is longer than any write takes.
    pub(super) fn new(write: Duration) -> Self {
        let seen_for = write.saturating_mul(2).max(SEEN_FOR_MIN);
        Self { for_ms: u64::try_from(seen_for.as_millis()).unwrap_or(u64::MAX), since_ms: HashMap::new() }
    }

    /// Of those that are `old` by the clock, the ones that may be forgotten at `now_ms` of a monotonic clock.
    pub(super) fn ripe(&mut self, old: &[Condemned], now_ms: u64) -> Vec<Condemned> {
        let before = std::mem::take(&mut self.since_ms);
        self.since_ms = old.iter().map(|one| (*one, before.get(one).copied().unwrap_or(now_ms))).collect();
        let ripe = |one: &&Condemned| now_ms.saturating_sub(self.since_ms[*one]) >= self.for_ms;
        old.iter().filter(ripe).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use holdfast_protocol::ContentId;

    use super::*;

    const HOUR_MS: u64 = 3_600_000;

    fn condemned(number: u8, condemned_ms: u64) -> Condemned {
        Condemned { content: ContentId([number; 12]), condemned_ms }
    }

    #[test]
    fn what_looks_old_is_forgotten_only_after_it_was_seen_for_longer_than_a_write_takes() {
        let mut seen = Seen::new(Duration::from_millis(HOUR_MS));
        let (first, second) = (condemned(1, 5), condemned(2, 5));
        assert_eq!(seen.ripe(&[first], 0), []);
        assert_eq!(seen.ripe(&[first, second], HOUR_MS), []);
        assert_eq!(seen.ripe(&[first, second], 2 * HOUR_MS), [first]);
        assert_eq!(seen.ripe(&[second], 3 * HOUR_MS), [second]);
    }

    #[test]
    fn what_is_condemned_again_is_another_one() {
        let mut seen = Seen::new(Duration::ZERO);
        assert_eq!(seen.ripe(&[condemned(1, 5)], 0), []);
        assert_eq!(seen.ripe(&[condemned(1, 6)], HOUR_MS), []);
        assert_eq!(seen.ripe(&[], HOUR_MS), []);
        assert_eq!(seen.ripe(&[condemned(1, 6)], 2 * HOUR_MS), [], "it was gone in between");
        assert_eq!(seen.ripe(&[condemned(1, 6)], 3 * HOUR_MS), [condemned(1, 6)]);
    }
}
