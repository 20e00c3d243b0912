//! Locks by the node's session with ZooKeeper: ephemeral sequential nodes below `/locks/<name>`, served like leases.
//!
//! A lock lasts as long as the session; what proves the session proves the lock, so nothing is renewed for it. The
//! token is the transaction that made the place in the queue, plus what [`Locks::raise`] added: an ensemble that was
//! set up anew counts from the beginning, while the database remembers. Names are container nodes, which ZooKeeper
//! removes when they are empty.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_actors::ports::coordination::{CoordinationError, SessionState};
use holdfast_actors::ports::locks::{FencingToken, Lease, LockError, LockName, LockResult, Locks};
use holdfast_protocol::NodeId;
use tokio::time::timeout;

use crate::coordination::ZookeeperCoordination;

/// Locks of a cluster that agrees by ZooKeeper.
pub struct ZookeeperLocks {
    coordination: Arc<ZookeeperCoordination>,
    node: NodeId,
}

impl ZookeeperLocks {
    /// By the session of `coordination`. `node` is what others see as the holder.
    pub fn new(coordination: Arc<ZookeeperCoordination>, node: NodeId) -> Self {
        Self { coordination, node }
    }
}

fn refused(error: CoordinationError) -> LockError {
    match error {
        CoordinationError::Denied(reason) => LockError::Denied(reason),
        other => LockError::Unavailable(other.to_string()),
    }
}

#[async_trait]
impl Locks for ZookeeperLocks {
    async fn acquire(&self, name: &LockName, patience: Duration) -> LockResult<Lease> {
        let only_if_free = patience.is_zero();
        let limit = if only_if_free { self.coordination.operation_timeout() } else { patience };
        let timed_out = || LockError::TimedOut { name: name.clone(), patience };
        match timeout(limit, self.coordination.acquire_lock(name, self.node, only_if_free)).await {
            Ok(Ok(Some(lease))) => Ok(lease),
            Ok(Ok(None)) => Err(timed_out()),
            Ok(Err(error)) => Err(refused(error)),
            Err(_) => match *self.coordination.session_state() {
                SessionState::Connected if !only_if_free => Err(timed_out()),
                state => Err(LockError::Unavailable(format!("no answer in time, the session is {state:?}"))),
            },
        }
    }

    async fn raise(&self, _: &LockName, above: FencingToken) -> LockResult<()> {
        self.coordination.raise_lock_tokens(above).await.map_err(refused)
    }
}
