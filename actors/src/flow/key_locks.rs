//! [`KeyLocks`]: at most one at work on a chunk, a shard, or whatever else has a name, of this process.
//!
//! Of chunks: a write for a peer may end by deleting what it wrote (its fence refused it); a repair or a copy that
//! looked at the chunk a moment before would have taken it for a replica that stays. So each of these three holds the
//! chunk from its first look to its last change ([`ChunkLocks`]). Others that delete (reclaiming, the walk for orphans,
//! leftovers) need no lock: what they delete nobody may count on.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use holdfast_protocol::ChunkId;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// See the module's page. Holds an entry for each key that somebody is at work on; what bounds those bounds this. Not
/// fair.
#[derive(Debug)]
pub struct KeyLocks<K> {
    held: Mutex<HashSet<K>>,
    freed: Notify,
}

/// Of chunks.
pub type ChunkLocks = KeyLocks<ChunkId>;
/// A chunk that is held.
pub type ChunkLock = KeyLock<ChunkId>;

impl<K: Clone + Eq + Hash> KeyLocks<K> {
    /// Nothing is held.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { held: Mutex::default(), freed: Notify::new() })
    }

    /// Waits until the key is free, and takes it. Cancel safe.
    pub async fn lock(self: &Arc<Self>, key: K) -> KeyLock<K> {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // Before the look, so that no wake-up is missed in between.
            freed.as_mut().enable();
            if self.held.lock().insert(key.clone()) {
                return KeyLock { locks: Arc::clone(self), key };
            }
            freed.await;
        }
    }

    /// The same; `None` when another one holds it for longer than `patience`.
    pub async fn lock_within(self: &Arc<Self>, key: K, patience: Duration) -> Option<KeyLock<K>> {
        tokio::time::timeout(patience, self.lock(key)).await.ok()
    }
}

/// A key that is held, until this is dropped.
#[derive(Debug)]
pub struct KeyLock<K: Eq + Hash> {
    locks: Arc<KeyLocks<K>>,
    key: K,
}

impl<K: Eq + Hash> Drop for KeyLock<K> {
    fn drop(&mut self) {
        self.locks.held.lock().remove(&self.key);
        self.locks.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn key_is_held_by_one_and_forgotten_when_it_is_free() {
        let locks = KeyLocks::new();
        let first = locks.lock("a".to_owned()).await;
        let mut second = Box::pin(locks.lock("a".to_owned()));
        assert!(futures::poll!(&mut second).is_pending());
        assert!(locks.lock("a".to_owned()).now_or_never().is_none(), "who gives up leaves nothing");
        for number in 0..1_000 {
            drop(locks.lock(number.to_string()).await);
        }
        drop(first);
        drop(second.await);
        assert!(locks.held.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn patience_has_an_end() {
        let locks = KeyLocks::new();
        let _held = locks.lock(1).await;
        assert!(locks.lock_within(1, Duration::from_secs(60)).await.is_none());
        assert!(locks.lock_within(2, Duration::from_secs(60)).await.is_some());
    }
}
