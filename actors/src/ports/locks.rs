//! The `Locks` port: work that two nodes must not do at the same time.
//!
//! A lock saves duplicate work; it is not what keeps data right. A holder may be paused for longer than the service
//! waits for it, and goes on without knowing. So every grant is a [`Lease`] with a **fencing token** that rises from
//! grant to grant of a name, and the write that the lock protects carries it ([`Lease::fence`]): metadata remembers the
//! highest token it saw of each name, in the transaction of the write, and refuses a lower one with
//! [`MetadataError::Fenced`](super::MetadataError::Fenced).
//!
//! # What an adapter keeps
//! * One holder of a name at a time, as far as clocks and the service allow.
//! * Waiters are served in the order in which they came. One that gives up, or is dropped, leaves the queue.
//! * The holder is told: [`Lease::is_held`] turns false before anybody else is granted the lock, by the clock alone if
//!   need be, and [`Lease::lost`] resolves once the lock is lost for good. Renewal is the adapter's business.
//! * Dropping the lease gives the lock back. If that fails, or the process dies, the service's own time limit does.
//! * Tokens of a name only rise. A service that lost its memory (restored from an old backup, replaced by another one)
//!   may fall back: then the guarded writes are refused, which is safe, and whoever is refused while it holds the lock
//!   calls [`Locks::raise`].

use std::time::Duration;

use async_trait::async_trait;

pub use super::coordination::{Fence, FencingToken, Lease, LeaseName as LockName};

#[cfg(feature = "conformance")]
pub mod conformance;

/// Why a lock was not granted; each variant asks another thing of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LockError {
    /// Others had it all the time: do without, or try again later.
    #[error("the lock {name} was not free within {} ms", patience.as_millis())]
    TimedOut {
        /// Which lock.
        name: LockName,
        /// How long it was waited for.
        patience: Duration,
    },
    /// The service cannot be reached. Nothing is held; what was asked for in vain is given back by its time limit.
    #[error("the lock service is not available: {0}")]
    Unavailable(String),
    /// The service refuses this node's credentials: a configuration mistake.
    #[error("the lock service denies access: {0}")]
    Denied(String),
}

/// Shorthand of this port.
pub type LockResult<T> = Result<T, LockError>;

/// Access to the locks of a cluster. See the module's rules.
#[async_trait]
pub trait Locks: Send + Sync + 'static {
    /// Waits for the lock, at most `patience`; zero takes it only if it is free. Dropping the future leaves the queue,
    /// and gives the lock back if it was granted at that moment.
    ///
    /// # Errors
    /// See [`LockError`].
    async fn acquire(&self, name: &LockName, patience: Duration) -> LockResult<Lease>;

    /// Makes the tokens of later grants of `name` higher than `above`. For who was refused with
    /// [`MetadataError::Fenced`](super::MetadataError::Fenced) while it held the lock.
    ///
    /// # Errors
    /// See [`LockError`].
    async fn raise(&self, name: &LockName, above: FencingToken) -> LockResult<()>;
}
