//! A duty: work that one node does for all, whichever holds the duty's lock.
//!
//! Every node stands in the queue for the lock, all the time ([`Duty::stand`]); the one that has it does the work and
//! carries the lock's fence into the writes that the work ends with. A node that is paused, cut off or stopped loses
//! the lock, and the next in the queue goes on. What it still does after that is refused where it writes. A node that
//! fails at the work again and again gives the lock up and stands behind the others.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::ports::locks::{Fence, FencingToken, Lease, LockError, LockName, Locks};

/// One stay in the queue. It goes on behind the others after that, which does no harm and finds out that a service is
/// gone. Seldom: each time the next in the queue has to look who is before it.
const TURN_PATIENCE: Duration = Duration::from_secs(600);

/// Turns of work that may fail one after the other.
const FAILURES_MAX: u32 = 3;

/// Pause after the lock service failed.
const RETRY: Duration = Duration::from_secs(1);

/// A node's part in a duty.
pub struct Duty {
    locks: Arc<dyn Locks>,
    name: LockName,
    lease: Mutex<Option<Lease>>,
    /// A write was refused; the token that it was refused with.
    refused: Mutex<Option<FencingToken>>,
    /// Turns of work in a row that failed.
    failures: AtomicU32,
    woken: Notify,
}

impl Duty {
    /// A duty that this node does not have yet.
    pub fn new(locks: Arc<dyn Locks>, name: LockName) -> Arc<Self> {
        Arc::new(Self {
            locks,
            name,
            lease: Mutex::default(),
            refused: Mutex::default(),
            failures: AtomicU32::new(0),
            woken: Notify::new(),
        })
    }

    /// What the duty's writes have to carry; `None` while the duty is not this node's.
    pub fn fence(&self) -> Option<Fence> {
        self.lease.lock().as_ref().filter(|lease| lease.is_held()).map(Lease::fence)
    }

    /// To be called when a write of the duty was refused with
    /// [`MetadataError::Fenced`](crate::ports::MetadataError::Fenced): the duty is given up.
    pub fn on_fenced(&self, current: FencingToken) {
        *self.refused.lock() = Some(current);
        self.woken.notify_waiters();
    }

    /// To be told how each turn of the work went.
    pub(crate) fn on_turn(&self, is_done: bool) {
        if is_done {
            self.failures.store(0, Ordering::Relaxed);
        } else if self.failures.fetch_add(1, Ordering::Relaxed) + 1 >= FAILURES_MAX {
            self.woken.notify_waiters();
        }
    }

    /// Stands in the queue and holds the lock for as long as it lasts, for ever. Dropped, it gives the lock back.
    pub async fn stand(&self) {
        let mut said = false;
        loop {
            match self.locks.acquire(&self.name, TURN_PATIENCE).await {
                Ok(lease) => {
                    said = false;
                    self.serve(lease).await;
                }
                Err(LockError::TimedOut { .. }) => said = false,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::warn!(duty = %self.name, %error, "the duty's lock cannot be had, trying again");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    async fn serve(&self, lease: Lease) {
        let token = lease.token();
        tracing::debug!(duty = %self.name, %token, "on duty");
        *self.refused.lock() = None;
        self.failures.store(0, Ordering::Relaxed);
        let lost = lease.watch_lost();
        *self.lease.lock() = Some(lease);
        // However this ends, a lease that nobody serves must not be kept.
        let _held = Held(self);
        tokio::select! {
            () = lost => tracing::info!(duty = %self.name, "the duty's lock was lost"),
            () = self.failed() => {
                tracing::warn!(duty = %self.name, "the work of this duty fails here, another node is to try");
            }
            current = self.fenced() => {
                let still_held = self.fence().is_some();
                tracing::warn!(duty = %self.name, %token, %current, still_held, "a write of this duty was refused");
                // The holder is refused only if the service's memory fell behind: it has to be told how far it was.
                if still_held && current > token && let Err(error) = self.locks.raise(&self.name, current).await {
                    tracing::warn!(duty = %self.name, %error, "raise the lock's tokens");
                }
            }
        }
    }

    async fn fenced(&self) -> FencingToken {
        loop {
            let mut woken = std::pin::pin!(self.woken.notified());
            // Before the look, so that no wake-up is missed in between.
            woken.as_mut().enable();
            if let Some(current) = self.refused.lock().take() {
                return current;
            }
            woken.await;
        }
    }

    async fn failed(&self) {
        loop {
            let mut woken = std::pin::pin!(self.woken.notified());
            // Before the look, so that no wake-up is missed in between.
            woken.as_mut().enable();
            if self.failures.load(Ordering::Relaxed) >= FAILURES_MAX {
                return;
            }
            woken.await;
        }
    }
}

struct Held<'a>(&'a Duty);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Dropping the lease gives it back.
        let lease = self.0.lease.lock().take();
        drop(lease);
    }
}
