//! Adapters of the `Locks` port.
//!
//! * [`in_process`]: nodes of one process. The default of a node that runs alone.
//! * [`zookeeper`]: by the session that the node has with ZooKeeper anyway. The default of a cluster.
//! * [`redis`]: by a Redis server, with a time limit and renewal.
//!
//! All nodes of a cluster must use the same one: those of another do not see its locks, and only the fencing tokens
//! would be left between them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use holdfast_actors::ports::locks::{FencingToken, Lease, LockError, LockName, LockResult, Locks};

pub mod in_process;
pub mod redis;
pub mod zookeeper;

pub use self::in_process::InProcessLocks;
pub use self::redis::RedisLocks;
pub use self::zookeeper::ZookeeperLocks;

/// Counts and times what goes through another adapter.
pub struct MeteredLocks {
    inner: Arc<dyn Locks>,
    backend: &'static str,
}

impl MeteredLocks {
    /// `backend` labels the metrics.
    pub fn new(inner: Arc<dyn Locks>, backend: &'static str) -> Self {
        Self { inner, backend }
    }
}

#[async_trait]
impl Locks for MeteredLocks {
    async fn acquire(&self, name: &LockName, patience: Duration) -> LockResult<Lease> {
        let begun = Instant::now();
        let result = self.inner.acquire(name, patience).await;
        let outcome = match &result {
            Ok(_) => "granted",
            Err(LockError::TimedOut { .. }) => "timed_out",
            Err(LockError::Unavailable(_)) => "unavailable",
            Err(LockError::Denied(_)) => "denied",
        };
        metrics::counter!("holdfast_lock_requests_total", "backend" => self.backend, "outcome" => outcome).increment(1);
        metrics::histogram!("holdfast_lock_wait_seconds", "backend" => self.backend).record(begun.elapsed());
        result
    }

    async fn raise(&self, name: &LockName, above: FencingToken) -> LockResult<()> {
        self.inner.raise(name, above).await
    }
}
