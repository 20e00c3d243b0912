//! What the cache in memory and the one in Redis have in common.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared, WeakShared};
use holdfast_actors::ports::metadata::{BucketId, MetadataError, MetadataResult};
use parking_lot::Mutex;

/// How long a key stays uncached after a write whose outcome is unknown: longer than any server takes to finish or to
/// give up a commit of a connection that is gone.
pub(super) const UNKNOWN_QUARANTINE: Duration = Duration::from_secs(60);

/// Loads that everybody gave up are swept out when there are this many, and from then on at twice what was left.
const LOADS_SWEPT_AT: usize = 256;

/// A future that goes on by itself when it is dropped unfinished.
pub(super) struct RunToEnd<T: Send + 'static> {
    future: Option<BoxFuture<'static, T>>,
}

impl<T: Send + 'static> RunToEnd<T> {
    pub(super) fn new(future: impl Future<Output = T> + Send + 'static) -> Self {
        Self { future: Some(future.boxed()) }
    }

    /// Waits no longer than `limit`; what has not ended then goes on by itself.
    pub(super) async fn within(self, limit: Duration) -> Option<T> {
        tokio::time::timeout(limit, self).await.ok()
    }
}

impl<T: Send + 'static> Future for RunToEnd<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(future) = self.future.as_mut() else { return Poll::Pending };
        let result = std::task::ready!(future.as_mut().poll(cx));
        self.future = None;
        Poll::Ready(result)
    }
}

impl<T: Send + 'static> Drop for RunToEnd<T> {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and the cache with it.
        if let Some(future) = self.future.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(future);
        }
    }
}

/// The number of the bucket, then the key.
pub(super) fn object_key(bucket: BucketId, key: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend_from_slice(&bucket.0.to_be_bytes());
    out.extend_from_slice(key.as_bytes());
    out
}

/// A load that several readers wait for.
pub(super) type Load<V> = BoxFuture<'static, Result<Arc<V>, Arc<MetadataError>>>;

/// Loads in flight, each for all readers that may use it. A load that all its readers gave up is dropped.
pub(super) struct Flights<V>(Mutex<InFlight<V>>);

struct InFlight<V> {
    loads: HashMap<Vec<u8>, WeakShared<Load<V>>>,
    swept_at: usize,
}

impl<V> Default for Flights<V> {
    fn default() -> Self {
        Self(Mutex::new(InFlight { loads: HashMap::new(), swept_at: LOADS_SWEPT_AT }))
    }
}

impl<V> Flights<V> {
    /// The load of this name: one in flight, or a new one. What may be shared is for the name to say.
    pub(super) fn join(&self, name: Vec<u8>, load: impl FnOnce() -> Load<V>) -> Shared<Load<V>> {
        let mut inner = self.0.lock();
        let InFlight { loads, swept_at } = &mut *inner;
        if let Some(shared) = loads.get(&name).and_then(WeakShared::upgrade) {
            return shared;
        }
        if loads.len() >= *swept_at {
            loads.retain(|_, load| load.upgrade().is_some());
            *swept_at = LOADS_SWEPT_AT.max(loads.len() * 2);
        }
        let shared = load().shared();
        if let Some(weak) = shared.downgrade() {
            loads.insert(name, weak);
        }
        shared
    }

    /// How many readers wait for the loads that are in flight.
    #[cfg(test)]
    pub(super) fn waiting(&self) -> usize {
        let inner = self.0.lock();
        let shared = inner.loads.values().filter_map(WeakShared::upgrade);
        // Less the one that is held here.
        shared.map(|load| load.strong_count().map_or(0, |count| count - 1)).sum()
    }

    /// Loads that were joined and have not landed.
    #[cfg(test)]
    pub(super) fn in_flight(&self) -> usize {
        self.0.lock().loads.len()
    }

    /// Nobody is to join this load any more.
    pub(super) fn land(&self, name: &[u8]) {
        self.0.lock().loads.remove(name);
    }
}

/// The answer of a shared load, for one of those who waited for it.
pub(super) fn own<V>(answer: Result<Arc<V>, Arc<MetadataError>>) -> MetadataResult<Arc<V>> {
    answer.map_err(|error| copy_of(&error))
}

/// The error of a load, for each of those who waited for it.
pub(super) fn copy_of(error: &MetadataError) -> MetadataError {
    match error {
        MetadataError::NoSuchBucket => MetadataError::NoSuchBucket,
        MetadataError::NoSuchKey => MetadataError::NoSuchKey,
        MetadataError::NoSuchVersion => MetadataError::NoSuchVersion,
        MetadataError::NotFound(what) => MetadataError::NotFound(what),
        MetadataError::Busy => MetadataError::Busy,
        MetadataError::Corrupt(reason) => MetadataError::Corrupt(reason.clone()),
        // A read fails in no other way.
        other => MetadataError::Unavailable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_is_late_is_waited_for_no_more_and_goes_on() {
        let (disk, answer) = oneshot::channel::<()>();
        let (ended, end) = oneshot::channel();
        let write = RunToEnd::new(async move {
            drop(answer.await);
            ended.send("written").ok();
        });
        assert!(write.within(Duration::from_secs(120)).await.is_none());
        drop(disk);
        assert_eq!(end.await, Ok("written"));
        assert_eq!(RunToEnd::new(async { 1 }).within(Duration::from_secs(120)).await, Some(1));
    }
}
