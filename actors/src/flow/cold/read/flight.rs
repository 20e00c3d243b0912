//! Runs of blocks that readers of the same content share. See the documentation of the module above.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared as SharedFuture};
use holdfast_protocol::{ColdPlace, ContentId};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::fetch::Fetch;
use super::{ColdReadError, Shared};

/// A reader waits for a stream that is at most so many bytes before what it wants: bringing those costs less than a
/// request.
const AHEAD_BYTES_MAX: u64 = 1 << 20;
/// Fewer contents than these are not worth looking for those that nobody reads any more.
const SWEPT_MIN: usize = 64;

/// The next block on its way. Whoever polls it drives it, so it needs none of its readers in particular.
type Step = SharedFuture<BoxFuture<'static, Result<Bytes, ColdReadError>>>;

/// One run of blocks, while somebody reads it.
pub(super) struct Flight {
    shared: Arc<Shared>,
    content: ContentId,
    /// The block behind the last.
    end: usize,
    ahead_max: usize,
    fetch: Arc<tokio::sync::Mutex<Fetch>>,
    position: Mutex<Position>,
}

struct Position {
    /// The block that `step` brings.
    next: usize,
    step: Option<Step>,
    failed: bool,
    used: Instant,
}

impl Flight {
    /// Whether it will bring `block` soon.
    pub(super) fn reaches(&self, block: usize) -> bool {
        let position = self.position.lock();
        !position.failed && block < self.end && (position.next..=position.next + self.ahead_max).contains(&block)
    }

    /// Whether a reader that comes to `block` may still have a use for it: it is there, or ahead, with blocks in the
    /// cache behind it.
    pub(super) fn may_bring(&self, block: usize) -> bool {
        let position = self.position.lock();
        !position.failed && block < self.end && block <= position.next + self.ahead_max
    }

    fn next(&self) -> usize {
        self.position.lock().next
    }

    /// Brings a block, and those before it. `None`: it is past that, or failed before it.
    pub(super) async fn block(&self, wanted: usize) -> Option<Result<Bytes, ColdReadError>> {
        loop {
            let (at, step) = self.step(wanted)?;
            let result = step.await;
            self.end_step(at, result.is_ok());
            if at == wanted {
                return Some(result);
            }
        }
    }

    fn step(&self, wanted: usize) -> Option<(usize, Step)> {
        let position = &mut *self.position.lock();
        if position.failed || position.next > wanted || wanted >= self.end {
            return None;
        }
        position.used = Instant::now();
        let at = position.next;
        let step = position.step.get_or_insert_with(|| {
            let (shared, fetch, key) = (Arc::clone(&self.shared), Arc::clone(&self.fetch), (self.content, at));
            let bring = async move {
                let block = fetch.lock().await.next_block().await?;
                // Before the position moves on, so that who sees that it did finds the block, or finds it evicted.
                shared.cache.put(key, block.clone());
                Ok(block)
            };
            bring.boxed().shared()
        });
        Some((at, step.clone()))
    }

    /// Done by each reader of a step; the first one moves on.
    fn end_step(&self, at: usize, good: bool) {
        let mut position = self.position.lock();
        if position.next == at && !position.failed {
            position.step = None;
            position.used = Instant::now();
            if good {
                position.next += 1;
            } else {
                position.failed = true;
            }
        }
    }

    fn drop_stream_if_idle(&self, idle_max: Duration) {
        if self.position.lock().used.elapsed() >= idle_max
            && let Ok(mut fetch) = self.fetch.try_lock()
        {
            fetch.pause();
        }
    }
}

/// The flights of a node.
#[derive(Default)]
pub(super) struct Flights(Mutex<Registry>);

#[derive(Default)]
struct Registry {
    by_content: HashMap<ContentId, Vec<Weak<Flight>>>,
    /// As many contents as make the next sweep.
    sweep_at: usize,
}

/// Where a block comes from.
pub(super) enum Joined {
    /// From the cache.
    Cached(Bytes),
    /// From a stream.
    Flight(Arc<Flight>),
}

impl Flights {
    /// The flight that brings `block` soonest, or a new one from there on as far as one piece and `end` reach.
    pub(super) fn join(
        &self,
        shared: &Arc<Shared>,
        content: ContentId,
        place: &Arc<ColdPlace>,
        block: usize,
        end: usize,
    ) -> Joined {
        let registry = &mut *self.0.lock();
        let shares = shared.caches(place);
        if shares && let Some(flights) = registry.by_content.get_mut(&content) {
            flights.retain(|flight| flight.strong_count() > 0);
            let near = flights.iter().filter_map(Weak::upgrade).filter(|flight| flight.reaches(block));
            if let Some(flight) = near.max_by_key(|flight| flight.next()) {
                return Joined::Flight(flight);
            }
            // One may have passed since the cache was looked into.
            if let Some(cached) = shared.cache.get(&(content, block)) {
                return Joined::Cached(cached);
            }
        }
        let run = place.locate(place.block(block).start, place.block(end - 1).end);
        let block_bytes = u64::from(place.block_bytes);
        let end = block + (run.end - run.start).div_ceil(block_bytes) as usize;
        let fetch = Fetch::new(Arc::clone(shared), content, Arc::clone(place), block, end);
        let flight = Arc::new(Flight {
            shared: Arc::clone(shared),
            content,
            end,
            ahead_max: (AHEAD_BYTES_MAX / block_bytes) as usize,
            fetch: Arc::new(tokio::sync::Mutex::new(fetch)),
            position: Mutex::new(Position { next: block, step: None, failed: false, used: Instant::now() }),
        });
        registry.add(content, &flight);
        Joined::Flight(flight)
    }

    /// Contents that are remembered.
    #[cfg(test)]
    pub(super) fn contents(&self) -> usize {
        self.0.lock().by_content.len()
    }

    /// Takes the tier's streams from readers that have not read for so long; they go on with another one.
    pub(super) fn drop_idle(&self, idle_max: Duration) {
        let all: Vec<_> = self.0.lock().by_content.values().flatten().filter_map(Weak::upgrade).collect();
        for flight in all {
            flight.drop_stream_if_idle(idle_max);
        }
    }
}

impl Registry {
    fn add(&mut self, content: ContentId, flight: &Arc<Flight>) {
        if self.by_content.len() >= self.sweep_at {
            self.by_content.retain(|_, flights| flights.iter().any(|flight| flight.strong_count() > 0));
            self.sweep_at = (self.by_content.len() * 2).max(SWEPT_MIN);
        }
        let flights = self.by_content.entry(content).or_default();
        flights.retain(|flight| flight.strong_count() > 0);
        flights.push(Arc::downgrade(flight));
    }
}
