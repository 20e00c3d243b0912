//! Operations of one disk that are in flight, by age.
//!
//! Whoever starts an operation counts itself into the slot that is open just then, and out of it when the operation has
//! really ended: an operation that nobody waits for any more still counts while the kernel has it. Two atomic counters
//! an operation, no lock and no look at a clock. The age of the oldest operation is that of the oldest slot with
//! something in it.
//!
//! **Time** is what the disk's watch says ([`Flights::advance`]), in steps of its own: a process that stood still for
//! an hour has not waited for its disk for an hour.

use ::std::array;
use ::std::sync::Arc;
use ::std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use ::std::time::Duration;

/// Slots: they span about twice what the watch is patient for. Where operations are in flight in each of them, new ones
/// are counted into the last that was opened, and so taken for older than they are; the disk has long been judged by
/// then.
const SLOTS: usize = 64;

/// Operations that began at about the same time.
struct Slot {
    in_flight: AtomicU64,
    /// On the watch's clock.
    opened_ms: AtomicU64,
}

/// See the module's page.
pub struct Flights {
    slots: [Slot; SLOTS],
    /// The slot that operations are counted into now.
    open: AtomicUsize,
    clock_ms: AtomicU64,
    /// For how long a slot is open.
    slot_ms: u64,
}

/// An operation in flight, until it is dropped.
pub struct Flight {
    flights: Arc<Flights>,
    slot: usize,
}

impl Flights {
    /// Of a disk whose watch wants to tell ages up to about `patience`.
    pub fn new(patience: Duration) -> Arc<Self> {
        let slot_ms = (patience.as_millis() as u64 / (SLOTS as u64 / 2)).max(1);
        let slots = array::from_fn(|_| Slot { in_flight: AtomicU64::new(0), opened_ms: AtomicU64::new(0) });
        Arc::new(Self { slots, open: AtomicUsize::new(0), clock_ms: AtomicU64::new(0), slot_ms })
    }

    /// Counts an operation that begins now.
    #[must_use = "the operation is in flight for as long as this lives"]
    pub fn begin(self: &Arc<Self>) -> Flight {
        // Relaxed: the counts alone matter, and one that is seen a tick late is no harm.
        let slot = self.open.load(Ordering::Relaxed);
        self.slots[slot].in_flight.fetch_add(1, Ordering::Relaxed);
        Flight { flights: Arc::clone(self), slot }
    }

    /// Lets time pass. Called by one thread only.
    pub fn advance(&self, by: Duration) {
        let now = self.clock_ms.load(Ordering::Relaxed) + by.as_millis() as u64;
        self.clock_ms.store(now, Ordering::Relaxed);
        let open = self.open.load(Ordering::Relaxed);
        if now - self.slots[open].opened_ms.load(Ordering::Relaxed) < self.slot_ms {
            return;
        }
        // One that begins meanwhile in a slot that is opened anew counts as younger than it is, by that moment.
        let mut following = (1..=SLOTS).map(|n| (open + n) % SLOTS);
        if let Some(free) = following.find(|slot| self.slots[*slot].in_flight.load(Ordering::Relaxed) == 0) {
            self.slots[free].opened_ms.store(now, Ordering::Relaxed);
            self.open.store(free, Ordering::Relaxed);
        }
    }

    /// What the watch's clock shows.
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.clock_ms.load(Ordering::Relaxed))
    }

    /// How many operations are in flight.
    pub fn count(&self) -> u64 {
        self.slots.iter().map(|slot| slot.in_flight.load(Ordering::Relaxed)).sum()
    }

    /// For how long, at least, the oldest operation has been in flight; `None` when there is none.
    pub fn oldest(&self) -> Option<Duration> {
        let now = self.clock_ms.load(Ordering::Relaxed);
        let busy = self.slots.iter().filter(|slot| slot.in_flight.load(Ordering::Relaxed) > 0);
        let opened_ms = busy.map(|slot| slot.opened_ms.load(Ordering::Relaxed)).min()?;
        // It may have begun just before the slot was closed.
        Some(Duration::from_millis(now.saturating_sub(opened_ms).saturating_sub(self.slot_ms)))
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.flights.slots[self.slot].in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn seconds(flights: &Flights) -> Option<u64> {
        flights.oldest().map(|age| age.as_secs())
    }

    #[test]
    fn the_oldest_operation_ages_with_the_watch_and_not_by_itself() {
        let flights = Flights::new(32 * SECOND);
        assert_eq!(seconds(&flights), None);
        let first = flights.begin();
        (0..10).for_each(|_| flights.advance(SECOND));
        let second = flights.begin();
        assert_eq!(seconds(&flights), Some(9), "at least, since the slot was open for a second");
        (0..5).for_each(|_| flights.advance(SECOND));
        assert_eq!(seconds(&flights), Some(14));
        drop(first);
        assert_eq!(seconds(&flights), Some(4));
        drop(second);
        assert_eq!(seconds(&flights), None);
    }

    #[test]
    fn a_busy_disk_whose_operations_end_never_looks_old() {
        let flights = Flights::new(32 * SECOND);
        let mut last = flights.begin();
        for _ in 0..1_000 {
            flights.advance(SECOND);
            // The one before ends after this one began.
            last = flights.begin();
            assert!(flights.oldest().expect("one is in flight") <= SECOND);
        }
        drop(last);
        assert_eq!(flights.oldest(), None);
    }

    #[test]
    fn operations_in_every_slot_leave_the_oldest_known() {
        let flights = Flights::new(32 * SECOND);
        let mut held = vec![];
        for _ in 0..3 * SLOTS {
            held.push(flights.begin());
            flights.advance(SECOND);
        }
        assert_eq!(seconds(&flights), Some(3 * SLOTS as u64 - 1));
        assert_eq!(flights.count(), 3 * SLOTS as u64);
        held.clear();
        assert_eq!(flights.oldest(), None);
        flights.advance(SECOND);
        let _young = flights.begin();
        assert_eq!(seconds(&flights), Some(0));
    }
}
