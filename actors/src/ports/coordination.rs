//! The `Coordination` port: what the nodes of a cluster agree on.
//!
//! The identity of the cluster, who is alive, the layout that the operator wants, who holds each shard, leases (one of
//! them makes the controller), the state of the shared cache, and what the operator paused. The coordination service is
//! the only owner of these; a node keeps a mirror, which it gets as [`tokio::sync::watch`] channels.
//!
//! # Reads, writes and the mirror
//! * Methods that are `async` and read (`cluster`, `layout`, `shard`) see everything that was written before the call
//!   by anybody.
//! * The channels follow with a delay. What they show was true at some moment; after [`SessionState::Suspended`] it may
//!   be old. They never go back to an older value of the same thing.
//! * Writes are compare-and-set. [`CoordinationError::Conflict`] means that the value changed since it was read: read
//!   and decide again. After a lost connection an adapter finds out by itself what became of a write where that is
//!   possible; otherwise it says [`CoordinationError::Unknown`].
//!
//! # The session, and when a node must stop
//! Registration and leases live as long as the node's session. The service ends a session that it has not heard of for
//! the *session timeout*; from then on others may own what this node owned. A node therefore counts as an owner only as
//! long as it can prove it:
//!
//! * [`Ownership`] holds a deadline. Every heartbeat that a majority of the service answered moves it to *when the
//!   heartbeat was sent* + session timeout − a margin of one third. The margin covers the delay with which the service
//!   counts its own time, and clocks that run at different speeds.
//! * Beyond the deadline the node is **fenced**: it must not acknowledge a write, use a lease or serve from a cache,
//!   whatever the channels say. This needs no message, so it also holds for a process that was stopped and continues.
//!   Check [`Ownership::is_proven`] *after* the work whose validity it protects (before the answer), not only before.
//! * A node of a cluster owns nothing in a session before it is **registered** in it: the others take it for gone, do
//!   not ask it what it is writing, and do not wait for it to see that a cache is on. A registration that is made again
//!   within a session replaces the one before, and has to be told anew. See [`Ownership::require_registration`].
//! * `Suspended`: the connection is lost, the deadline not reached. The node still owns everything.
//! * `Fenced`: the deadline was reached. If the connection returns in time the session is alive and nothing was lost:
//!   the state goes back to `Connected` by itself.
//! * `Expired`: the session is over. Registration and leases are gone. [`Coordination::renew_session`] starts a new
//!   one; the caller then registers again and takes its leases again. Nothing is taken back silently, since others may
//!   have acted in between.
//!
//! The monotonic clock does not run while a machine is suspended; the epochs that every write carries are what protects
//! data then. The deadline protects what has no epoch.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_protocol::cluster::{LayoutDocument, ShardState};
use holdfast_protocol::{ClusterId, NodeId, ShardId};
use tokio::sync::watch;

mod cache;
#[cfg(feature = "conformance")]
pub mod conformance;
mod filling;
mod lease;
mod ownership;
mod pauses;
mod types;

pub use cache::{CacheFollower, CacheMode, CacheSeen, CacheState, invalidate_cache, turn_cache_off};
pub use filling::{filler, filler_before};
pub use lease::{CONTROLLER, FILLING, Fence, FencingToken, Lease, LeaseHolder, LeaseName, LeaseTable};
pub use ownership::{Ownership, SessionState};
pub use pauses::{Pause, Pauses, set_repair_pause};
pub use types::{
    ClusterIdentity, FORMAT, LiveNode, Membership, NodeAddresses, NodeAnnouncement, NodeState, Registration, ShardMap,
    Version, Versioned,
};

/// Why a coordination operation failed; each variant asks another thing of the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoordinationError {
    /// The service cannot be reached; nothing happened. Try again later.
    #[error("the coordination service is not available: {0}")]
    Unavailable(String),
    /// The outcome of a write is not known: it may have happened, or happen until the session ends. Read before
    /// deciding.
    #[error("the outcome of a coordination write is unknown: {0}")]
    Unknown(String),
    /// The value is not the one that was read: read it and decide again.
    #[error("{0} was changed by somebody else")]
    Conflict(String),
    /// It does not exist (yet): for the cluster itself, run `holdfast cluster init`.
    #[error("there is no {0}")]
    NotFound(String),
    /// The cluster exists already: join it instead.
    #[error("the cluster {0} exists already")]
    ClusterExists(ClusterId),
    /// The service belongs to another cluster than this node's data: fatal, a configuration mistake.
    #[error("this node belongs to cluster {expected}, but the coordination service is that of cluster {found}")]
    WrongCluster {
        /// Whose data this node holds.
        expected: ClusterId,
        /// Whose service it is.
        found: ClusterId,
    },
    /// The stored format is newer than this program: upgrade the program.
    #[error("the cluster's format is {found}, but this program knows only up to {known}")]
    Format {
        /// What is stored.
        found: u32,
        /// The newest that this program knows.
        known: u32,
    },
    /// Another live process has this node id (a copied data directory): fatal for this process.
    #[error(
        "node {node} is running already, at {holder}; if it was killed there, start this one again when its session is over"
    )]
    NodeIdTaken {
        /// The id.
        node: NodeId,
        /// Where the other one listens for peers.
        holder: String,
    },
    /// The session is over: stop acting as an owner, then [`Coordination::renew_session`].
    #[error("the session has expired")]
    SessionExpired,
    /// The lease that the write was made under is gone: stand down.
    #[error("the lease {0} is lost")]
    LeaseLost(LeaseName),
    /// Not every live node has seen the state of the cache in time.
    #[error("cache generation {generation} was not seen in time by {}", waiting.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", "))]
    NotSeen {
        /// Which generation.
        generation: u64,
        /// Who has not acknowledged it.
        waiting: Vec<NodeId>,
    },
    /// The service refuses this node's credentials: fatal, a configuration mistake.
    #[error("the coordination service denies access: {0}")]
    Denied(String),
    /// The caller broke the rules of the port (a value too large, a state that is not valid).
    #[error("invalid coordination request: {0}")]
    Invalid(String),
    /// What is stored cannot be understood.
    #[error("coordination data is corrupt: {0}")]
    Corrupt(String),
}

/// Shorthand of this port.
pub type CoordinationResult<T> = Result<T, CoordinationError>;

/// A node's connection to what the cluster agrees on. See the module's rules.
#[async_trait]
pub trait Coordination: Send + Sync + 'static {
    // --- the session -------------------------------------------------------------------------------------------------

    /// The deadline up to which this node may act as an owner. Cheap to clone and to ask.
    fn ownership(&self) -> Ownership;

    /// The state of the session.
    fn session(&self) -> watch::Receiver<SessionState>;

    /// Whether the channels show what the service has, but for changes that are just being told. Not between a
    /// connection that came back and the end of reading everything anew, nor while that fails: what they show is true
    /// of an earlier time then, also in a session that is connected.
    fn is_current(&self) -> bool {
        true
    }

    /// Makes sure that there is a live session: starts a new one if the last has expired. Registration and leases have
    /// to be made anew. On return the channels show what is there in this session, and nothing of an earlier one.
    ///
    /// # Errors
    /// [`CoordinationError::Unavailable`], [`CoordinationError::Denied`]; [`CoordinationError::SessionExpired`] when
    /// the new one ended at once.
    async fn renew_session(&self) -> CoordinationResult<()>;

    /// Ends the session at once: others see the node leave without waiting for a timeout. Later calls fail with
    /// [`CoordinationError::SessionExpired`].
    async fn close(&self);

    // --- the cluster -------------------------------------------------------------------------------------------------

    /// Creates the cluster, once: the identity and a first layout document. Exactly one of several callers succeeds.
    ///
    /// # Errors
    /// [`CoordinationError::ClusterExists`], [`CoordinationError::Invalid`], [`CoordinationError::Unknown`].
    async fn create_cluster(&self, identity: &ClusterIdentity, layout: &LayoutDocument) -> CoordinationResult<()>;

    /// The cluster's identity.
    ///
    /// # Errors
    /// [`CoordinationError::NotFound`] before it is created; [`CoordinationError::Format`].
    async fn cluster(&self) -> CoordinationResult<ClusterIdentity>;

    // --- membership --------------------------------------------------------------------------------------------------

    /// Makes this node visible to others, for as long as the session lives. `cluster` is what the node's data directory
    /// says. When the id is in use, waits for about a session timeout, so that a node that was killed can start again
    /// at once; what this very process registered in an earlier session is replaced without waiting.
    ///
    /// From then on the node is counted as having seen [`Registration::cache_generation`]: it must not act by an older
    /// state of the shared cache.
    ///
    /// # Errors
    /// [`CoordinationError::WrongCluster`], [`CoordinationError::NotFound`], [`CoordinationError::NodeIdTaken`],
    /// [`CoordinationError::SessionExpired`].
    async fn register(&self, cluster: ClusterId, node: NodeAnnouncement) -> CoordinationResult<Registration>;

    /// Changes what this node says of itself.
    ///
    /// # Errors
    /// [`CoordinationError::NotFound`] when it is not registered.
    async fn announce(&self, node: NodeAnnouncement) -> CoordinationResult<()>;

    /// The nodes that are alive.
    fn membership(&self) -> watch::Receiver<Arc<Membership>>;

    // --- layout ------------------------------------------------------------------------------------------------------

    /// The layout document.
    ///
    /// # Errors
    /// [`CoordinationError::NotFound`] before the cluster is created.
    async fn layout(&self) -> CoordinationResult<Versioned<LayoutDocument>>;

    /// Replaces the layout document if it is still the one read as `expected`.
    ///
    /// # Errors
    /// [`CoordinationError::Conflict`], [`CoordinationError::Unknown`].
    async fn store_layout(&self, expected: Version, document: &LayoutDocument) -> CoordinationResult<Version>;

    /// The layout document; `None` before the cluster is created.
    fn watch_layout(&self) -> watch::Receiver<Option<Arc<Versioned<LayoutDocument>>>>;

    // --- shards ------------------------------------------------------------------------------------------------------

    /// One shard.
    ///
    /// # Errors
    /// [`CoordinationError::NotFound`] before the controller has placed it.
    async fn shard(&self, shard: ShardId) -> CoordinationResult<Versioned<ShardState>>;

    /// Creates a shard (`expected` is `None`) or replaces it if it is still the one read as `expected`. Done only if
    /// `controller` is still held, in one step with the check: a controller that was replaced changes nothing.
    ///
    /// # Errors
    /// [`CoordinationError::Conflict`], [`CoordinationError::LeaseLost`], [`CoordinationError::Unknown`];
    /// [`CoordinationError::Invalid`] when the state breaks its invariants.
    async fn store_shard(
        &self,
        shard: ShardId,
        expected: Option<Version>,
        state: &ShardState,
        controller: &Lease,
    ) -> CoordinationResult<Version>;

    /// All shards.
    fn shards(&self) -> watch::Receiver<Arc<ShardMap>>;

    // --- leases and leadership ---------------------------------------------------------------------------------------

    /// Waits until the lease is this node's. Waiters are served in the order in which they came. Tokens of a lease only
    /// rise. The controller is whoever holds [`CONTROLLER`]. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`CoordinationError::SessionExpired`] when the session ends while waiting; [`CoordinationError::NotFound`]
    /// before the cluster is created.
    async fn acquire(&self, lease: &LeaseName, node: NodeId) -> CoordinationResult<Lease>;

    /// Takes the lease if nobody has it and nobody waits for it.
    ///
    /// # Errors
    /// As [`Coordination::acquire`].
    async fn try_acquire(&self, lease: &LeaseName, node: NodeId) -> CoordinationResult<Option<Lease>>;

    /// Who holds which lease.
    fn leases(&self) -> watch::Receiver<Arc<LeaseTable>>;

    // --- what is paused ----------------------------------------------------------------------------------------------

    /// What the operator paused; `None` if nothing ever was.
    ///
    /// # Errors
    /// [`CoordinationError::Unavailable`] and the like.
    async fn pauses(&self) -> CoordinationResult<Option<Versioned<Pauses>>>;

    /// Replaces what is paused if it is still what was read as `expected` (`None`: nothing ever was). It outlives
    /// sessions.
    ///
    /// # Errors
    /// [`CoordinationError::Conflict`], [`CoordinationError::Unknown`]; [`CoordinationError::NotFound`] before the
    /// cluster is created.
    async fn store_pauses(&self, expected: Option<Version>, pauses: &Pauses) -> CoordinationResult<Version>;

    /// What is paused.
    fn watch_pauses(&self) -> watch::Receiver<Pauses>;

    // --- the shared cache ------------------------------------------------------------------------------------------

    /// The state of the shared cache.
    ///
    /// # Errors
    /// [`CoordinationError::NotFound`] before the cluster is created.
    async fn cache_state(&self) -> CoordinationResult<Versioned<CacheState>>;

    /// Replaces the state of the shared cache if it is still the one read as `expected`. Its generation must be the
    /// next one.
    ///
    /// # Errors
    /// [`CoordinationError::Conflict`], [`CoordinationError::Unknown`].
    async fn store_cache_state(&self, expected: Version, state: &CacheState) -> CoordinationResult<Version>;

    /// The state of the shared cache; its default (generation 0) before the cluster is created.
    fn watch_cache_state(&self) -> watch::Receiver<CacheState>;

    /// Says how this node stands to the shared cache: see [`CacheSeen`]. The generation is never lowered.
    ///
    /// # Errors
    /// [`CoordinationError::NotFound`] when it is not registered.
    async fn acknowledge_cache(&self, seen: &CacheSeen) -> CoordinationResult<()>;

    /// What every live node said last.
    ///
    /// # Errors
    /// [`CoordinationError::Unavailable`] and the like.
    async fn cache_seen(&self) -> CoordinationResult<BTreeMap<NodeId, CacheSeen>>;

    /// Waits until every live node has acknowledged `generation`. A node whose session ends counts as having done so:
    /// it was fenced before that, and registers again with the present generation.
    ///
    /// # Errors
    /// [`CoordinationError::NotSeen`] after `patience`.
    async fn cache_generation_seen(&self, generation: u64, patience: Duration) -> CoordinationResult<()>;
}
