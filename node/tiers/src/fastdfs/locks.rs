//! One change of a piece at a time, within this process.
//!
//! A `put` that its caller dropped may still be waiting for the server's answer, and the server may be about to give
//! the file its name: a `delete` of that piece has to wait until that is over, or it finds nothing and the file appears
//! behind it.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_actors::ports::tiers::PieceName;
use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

type Locks = Arc<Mutex<HashMap<PieceName, Arc<tokio::sync::Mutex<()>>>>>;

/// See the module's documentation.
#[derive(Debug, Default)]
pub(super) struct PieceLocks(Locks);

/// Nobody else changes the piece until this is dropped.
#[derive(Debug)]
pub(super) struct PieceLock {
    locks: Locks,
    name: PieceName,
    held: Option<OwnedMutexGuard<()>>,
}

impl PieceLocks {
    /// Waits until nobody changes the piece.
    pub(super) async fn lock(&self, name: &PieceName) -> PieceLock {
        let lock = self.0.lock().entry(name.clone()).or_default().clone();
        // Made before the wait, so that one who gives up waiting clears up too.
        let mut waiting = PieceLock { locks: self.0.clone(), name: name.clone(), held: None };
        waiting.held = Some(lock.lock_owned().await);
        waiting
    }
}

impl Drop for PieceLock {
    fn drop(&mut self) {
        self.held = None;
        let mut locks = self.locks.lock();
        // Only the map knows it: nobody holds it or waits for it.
        if locks.get(&self.name).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lock_is_forgotten_when_nobody_needs_it() {
        let locks = PieceLocks::default();
        let name = PieceName::new("a").unwrap();
        let first = locks.lock(&name).await;
        let mut second = Box::pin(locks.lock(&name));
        assert!(futures::poll!(&mut second).is_pending(), "it is held");
        drop(first);
        let second = second.await;
        assert_eq!(locks.0.lock().len(), 1);
        drop(second);
        assert!(locks.0.lock().is_empty());
    }

    #[tokio::test]
    async fn who_gives_up_waiting_leaves_nothing() {
        let locks = PieceLocks::default();
        let name = PieceName::new("a").unwrap();
        let first = locks.lock(&name).await;
        let mut second = Box::pin(locks.lock(&name));
        assert!(futures::poll!(&mut second).is_pending(), "it is held");
        drop(second);
        drop(first);
        assert!(locks.0.lock().is_empty());
    }
}
