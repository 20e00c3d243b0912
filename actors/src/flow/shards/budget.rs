//! How fast and how much at once this node fetches from others to join and repair.
//!
//! A clock of its own runs ahead of time by what was taken: a taker waits until that clock is due, so many takers
//! together get exactly the rate, whatever the sizes, and none of them idles between two chunks as long as there is
//! another one.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// What was not used for up to this long may be used at once.
const BURST: Duration = Duration::from_millis(500);

/// Grain of the bytes in flight; a semaphore counts to 2^29 at least.
const GRAIN_BYTES: u64 = 4_096;

/// A rate and a bound. Shared by everyone who fetches in the background.
#[derive(Debug)]
pub struct ByteBudget {
    /// Nanoseconds a byte are `1e9 / rate`.
    rate_bytes: Mutex<u64>,
    /// When the next taker may begin.
    due: Mutex<Instant>,
    in_flight: Arc<Semaphore>,
    in_flight_grains_max: u64,
}

impl ByteBudget {
    /// `rate_bytes` a second, and at most `in_flight_bytes_max` at once (a larger single chunk goes alone).
    pub fn new(rate_bytes: u64, in_flight_bytes_max: u64) -> Self {
        let grains = in_flight_bytes_max.div_ceil(GRAIN_BYTES).clamp(1, u64::from(u32::MAX >> 4));
        Self {
            rate_bytes: Mutex::new(rate_bytes.max(1)),
            due: Mutex::new(Instant::now()),
            in_flight: Arc::new(Semaphore::new(grains as usize)),
            in_flight_grains_max: grains,
        }
    }

    /// The rate, in bytes a second.
    pub fn rate_bytes(&self) -> u64 {
        *self.rate_bytes.lock()
    }

    /// Changes the rate for whoever takes from now on.
    pub fn set_rate_bytes(&self, rate_bytes: u64) {
        *self.rate_bytes.lock() = rate_bytes.max(1);
    }

    /// Waits until `bytes` may be fetched; they are in flight until the permit is dropped. Dropped while it waits, it
    /// has taken its turn all the same: the budget is then used a little less.
    pub async fn take(&self, bytes: u64) -> OwnedSemaphorePermit {
        let grains = bytes.div_ceil(GRAIN_BYTES).clamp(1, self.in_flight_grains_max);
        let permit = self.in_flight.clone().acquire_many_owned(grains as u32).await.expect("it is never closed");
        let start = {
            let cost = Duration::from_nanos((u128::from(bytes) * 1_000_000_000 / u128::from(self.rate_bytes())) as u64);
            let mut due = self.due.lock();
            let now = Instant::now();
            let start = (*due).max(now.checked_sub(BURST).unwrap_or(now));
            *due = start + cost;
            start
        };
        tokio::time::sleep_until(start).await;
        permit
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;
    use futures::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_takers_get_the_rate_without_idling() {
        let budget = ByteBudget::new(1_000_000, 1 << 20);
        let begun = Instant::now();
        stream::iter(0..100_u64).for_each_concurrent(4, |_| async { drop(budget.take(100_000).await) }).await;
        let seconds = begun.elapsed().as_secs_f64();
        // Ten seconds' worth; the last one waits for its start only.
        assert!((9.0..=10.0).contains(&seconds), "{seconds}");
    }

    #[tokio::test(start_paused = true)]
    async fn unused_time_is_not_saved_up() {
        let budget = ByteBudget::new(1_000, 1 << 20);
        tokio::time::sleep(Duration::from_secs(60)).await;
        let begun = Instant::now();
        for _ in 0..4 {
            drop(budget.take(1_000).await);
        }
        assert!(begun.elapsed() >= Duration::from_millis(2_400), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_the_bound_is_in_flight_and_larger_ones_go_alone() {
        let budget = ByteBudget::new(u64::MAX >> 32, 8_192);
        let first = budget.take(1 << 20).await;
        let second = budget.take(1);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_secs(1), &mut second).await.is_err());
        drop(first);
        drop(second.await);
    }
}
