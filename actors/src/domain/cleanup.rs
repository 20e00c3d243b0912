//! Cleanup: which chunks are orphans, and when each kind of pass runs.
//!
//! **Orphans.** A chunk is an orphan when no object, upload or pending reclaim knows its content *and none ever will*.
//! The second half must not rest on the time of day: a clock that is set while a PUT runs would make its chunks look
//! old, or young for ever. [`WriteWindow`] knows, by monotonic time, the smallest content id time that this process has
//! begun to write recently. A content below it was begun either longer ago than any write may take, or by an earlier
//! process, whose writes ended with it; if metadata does not know such a content, it never will. So chunks that a crash
//! left behind go at the first pass after the restart, and a write in flight is safe whatever the clock does.
//!
//! **Passes.** [`Schedule`] decides which pass is due; one of a kind at a time, failures back off.

use std::collections::VecDeque;

use holdfast_protocol::ContentId;

/// Time until the next look at what others are doing.
const PENDING_MS: u64 = 1_000;

/// How many times as long as a pass of the walk for orphans took the next one waits: nobody waits for the space, all
/// nodes walk over all that they hold, and every page is asked about in the database.
const ORPHANS_REST: u64 = 4;

/// Number of periods that a window is cut into: it forgets a write at most 1/8 later than it could.
const PERIODS: u64 = 8;

/// The contents that this process has begun to write within the last `window_ms`, by the smallest time in their ids.
#[derive(Debug)]
pub struct WriteWindow {
    period_ms: u64,
    /// Period number and the smallest content time begun in it; ascending, at most `PERIODS + 1`.
    periods: VecDeque<(u64, u64)>,
}

impl WriteWindow {
    /// A window of `window_ms`, which must be longer than any write takes from its last new chunk to its commit.
    pub fn new(window_ms: u64) -> Self {
        Self { period_ms: (window_ms / PERIODS).max(1), periods: VecDeque::new() }
    }

    /// A chunk of `content` is about to be created, at `now_ms` of a monotonic clock.
    pub fn on_create(&mut self, content: ContentId, now_ms: u64) {
        let period = now_ms / self.period_ms;
        let time = content.unix_seconds();
        match self.periods.back_mut() {
            // A clock read by another thread just before: the newer period takes it, which only lives longer.
            Some((last, min)) if *last >= period => *min = (*min).min(time),
            _ => {
                self.periods.push_back((period, time));
                self.forget(period);
            }
        }
    }

    /// Whether `content` can belong to a write that is not over.
    pub fn may_be_in_flight(&mut self, content: ContentId, now_ms: u64) -> bool {
        self.forget(now_ms / self.period_ms);
        self.periods.iter().any(|(_, min)| content.unix_seconds() >= *min)
    }

    fn forget(&mut self, period: u64) {
        // The period in which the window's oldest moment lies is kept whole.
        while self.periods.front().is_some_and(|(first, _)| first + PERIODS < period) {
            self.periods.pop_front();
        }
    }
}

/// The kinds of passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PassKind {
    /// Aborts uploads that nobody finishes.
    Uploads,
    /// Deletes the chunks of contents that nothing refers to any more.
    Reclaims,
    /// Deletes chunks that metadata does not know.
    Orphans,
}

impl PassKind {
    /// All kinds, in the order in which one makes work for the next.
    pub const ALL: [Self; 3] = [Self::Uploads, Self::Reclaims, Self::Orphans];

    /// For metrics and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Uploads => "uploads",
            Self::Reclaims => "reclaims",
            Self::Orphans => "orphans",
        }
    }
}

/// How a pass ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PassEnd {
    /// Nothing is left for now.
    Done,
    /// The budget of one pass is used up; there is more.
    More,
    /// Others are at what is left: it is looked at again soon.
    Pending,
    /// An error; what was done stays done.
    Failed,
}

#[derive(Debug, Clone, Copy)]
struct Slot {
    interval_ms: u64,
    due_ms: u64,
    begun_ms: u64,
    running: bool,
    /// Asked for, and not through since.
    urgent: bool,
    /// Asked for while running: the pass under way does not count, for it may have passed by what was meant.
    again: bool,
    failures: u32,
}

/// When each kind of pass runs, by a monotonic clock.
#[derive(Debug)]
pub struct Schedule {
    slots: [Slot; 3],
}

impl Schedule {
    /// Passes at `intervals_ms`, in the order of [`PassKind::ALL`]; the first of each is due at once.
    pub fn new(intervals_ms: [u64; 3], now_ms: u64) -> Self {
        Self {
            slots: intervals_ms.map(|interval_ms| Slot {
                interval_ms,
                due_ms: now_ms,
                begun_ms: now_ms,
                running: false,
                urgent: false,
                again: false,
                failures: 0,
            }),
        }
    }

    /// The passes to start now; they count as running from here on.
    pub fn start_due(&mut self, now_ms: u64) -> Vec<PassKind> {
        let mut due = Vec::new();
        for kind in PassKind::ALL {
            let slot = &mut self.slots[kind as usize];
            if !slot.running && slot.due_ms <= now_ms {
                slot.running = true;
                slot.begun_ms = now_ms;
                due.push(kind);
            }
        }
        due
    }

    /// Makes every kind due at once. One that runs already runs again after it.
    pub fn request_all(&mut self, now_ms: u64) {
        for slot in &mut self.slots {
            slot.due_ms = now_ms;
            slot.urgent = true;
            slot.again = slot.running;
        }
    }

    /// A pass ended at `now_ms`; `jitter` in 0.0 to 1.0 spreads the next one over a quarter of its interval. Returns
    /// whether the pass runs again at once because it was asked for while it ran.
    pub fn on_end(&mut self, kind: PassKind, end: PassEnd, now_ms: u64, jitter: f64) -> bool {
        let slot = &mut self.slots[kind as usize];
        let spread = |ms: u64| ms + (ms as f64 / 4.0 * jitter.clamp(0.0, 1.0)) as u64;
        slot.running = false;
        slot.due_ms = match end {
            // Work goes on at once, but not before others had a turn.
            PassEnd::More => {
                slot.failures = 0;
                let rests = kind == PassKind::Orphans && !slot.urgent;
                now_ms + if rests { (now_ms.saturating_sub(slot.begun_ms) * ORPHANS_REST).max(1) } else { 1 }
            }
            PassEnd::Pending => {
                slot.failures = 0;
                now_ms + PENDING_MS.min(slot.interval_ms)
            }
            PassEnd::Done => {
                slot.failures = 0;
                now_ms + spread(slot.interval_ms)
            }
            PassEnd::Failed => {
                slot.failures = (slot.failures + 1).min(10);
                now_ms + spread((1_000u64 << slot.failures).min(slot.interval_ms.max(2_000)))
            }
        };
        let again = std::mem::take(&mut slot.again);
        if again {
            slot.due_ms = now_ms;
        }
        slot.urgent &= again || matches!(end, PassEnd::More | PassEnd::Pending);
        again
    }

    /// Whether a pass of any kind runs.
    #[cfg(test)]
    fn is_running(&self) -> bool {
        self.slots.iter().any(|slot| slot.running)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn content(seconds: u64) -> ContentId {
        ContentId::generate(seconds)
    }

    #[test]
    fn what_an_earlier_process_left_is_an_orphan_at_once() {
        let mut window = WriteWindow::new(3_600_000);
        assert!(!window.may_be_in_flight(content(1_000), 0), "nothing has been written yet");
        window.on_create(content(5_000), 10);
        assert!(!window.may_be_in_flight(content(4_999), 20));
        assert!(window.may_be_in_flight(content(5_000), 20));
    }

    #[test]
    fn a_write_in_flight_is_safe_when_the_clock_is_set_back_or_forward() {
        let mut window = WriteWindow::new(8_000);
        window.on_create(content(5_000), 0);
        let back = content(100);
        window.on_create(back, 10);
        let forward = content(90_000);
        window.on_create(forward, 20);
        assert!(window.may_be_in_flight(back, 7_999));
        assert!(window.may_be_in_flight(forward, 7_999));
        assert!(!window.may_be_in_flight(back, 20_000), "the window forgets");
    }

    #[test]
    fn failed_passes_back_off_and_busy_ones_go_on() {
        let mut schedule = Schedule::new([60_000; 3], 0);
        assert_eq!(schedule.start_due(0), PassKind::ALL);
        assert!(schedule.start_due(0).is_empty(), "one of a kind at a time");
        schedule.on_end(PassKind::Reclaims, PassEnd::More, 10, 0.0);
        schedule.on_end(PassKind::Uploads, PassEnd::Done, 10, 1.0);
        schedule.on_end(PassKind::Orphans, PassEnd::Failed, 10, 0.0);
        assert_eq!(schedule.start_due(11), [PassKind::Reclaims]);
        assert_eq!(schedule.start_due(2_010), [PassKind::Orphans]);
        assert!(schedule.start_due(75_009).is_empty());
        assert_eq!(schedule.start_due(75_010), [PassKind::Uploads]);
        assert!(schedule.is_running());
        schedule.on_end(PassKind::Uploads, PassEnd::Pending, 80_000, 1.0);
        assert!(schedule.start_due(80_999).iter().all(|kind| *kind != PassKind::Uploads));
        assert_eq!(schedule.start_due(81_000), [PassKind::Uploads], "others are at it, which takes seconds");
    }

    #[test]
    fn a_long_walk_for_orphans_rests_between_its_passes_unless_it_was_asked_for() {
        let mut schedule = Schedule::new([1_000_000; 3], 0);
        assert_eq!(schedule.start_due(0), PassKind::ALL);
        schedule.on_end(PassKind::Orphans, PassEnd::More, 500, 1.0);
        assert!(schedule.start_due(500 + 1_999).is_empty());
        assert_eq!(schedule.start_due(500 + 2_000), [PassKind::Orphans]);
        // Somebody waits for it now: from the beginning, and to the end of the walk.
        schedule.request_all(3_000);
        assert!(schedule.on_end(PassKind::Orphans, PassEnd::More, 4_000, 0.0));
        for begun_ms in [4_000, 5_001, 6_002] {
            assert_eq!(schedule.start_due(begun_ms), [PassKind::Orphans]);
            schedule.on_end(PassKind::Orphans, PassEnd::More, begun_ms + 1_000, 0.0);
        }
        assert_eq!(schedule.start_due(7_003), [PassKind::Orphans]);
        schedule.on_end(PassKind::Orphans, PassEnd::Done, 8_000, 0.0);
        assert_eq!(schedule.start_due(8_000 + 1_000_000), [PassKind::Orphans]);
        schedule.on_end(PassKind::Orphans, PassEnd::More, 8_100 + 1_000_000, 0.0);
        assert!(schedule.start_due(8_101 + 1_000_000).is_empty(), "it rests again");
    }

    #[test]
    fn a_pass_asked_for_while_it_runs_runs_again() {
        let mut schedule = Schedule::new([60_000; 3], 0);
        assert_eq!(schedule.start_due(0), PassKind::ALL);
        schedule.request_all(5);
        assert!(schedule.on_end(PassKind::Orphans, PassEnd::Done, 10, 0.0));
        assert_eq!(schedule.start_due(10), [PassKind::Orphans]);
        assert!(!schedule.on_end(PassKind::Orphans, PassEnd::Done, 20, 0.0));
        assert!(schedule.start_due(20).is_empty());
    }

    proptest! {
        /// Whatever the wall clock does, a content created within the window is never taken for an orphan.
        #[test]
        fn a_young_write_is_never_an_orphan(writes in prop::collection::vec((0u64..500, 0u64..100_000), 1..100), wait in 0u64..8_000) {
            let mut window = WriteWindow::new(8_000);
            let mut now_ms = 0;
            let mut begun = Vec::new();
            for (pause_ms, wall_seconds) in writes {
                now_ms += pause_ms;
                let content = content(wall_seconds);
                window.on_create(content, now_ms);
                begun.push((content, now_ms));
            }
            now_ms += wait;
            for (content, created_ms) in begun {
                if now_ms - created_ms <= 8_000 {
                    prop_assert!(window.may_be_in_flight(content, now_ms));
                }
            }
        }
    }
}
