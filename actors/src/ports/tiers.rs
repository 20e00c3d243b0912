//! The `ColdTier` port: a store outside the cluster that takes the bytes of objects that have turned cold.
//!
//! A content lies in a tier as a list of **pieces**, each of at most [`ColdTier::piece_bytes_max`]. A piece is written
//! once, whole, and never changed.
//!
//! # Rules that every adapter keeps
//! * A piece has its name before it has its bytes: [`ColdTier::reserve`] gives the name, the caller makes it durable in
//!   the metadata, and only then calls [`ColdTier::put`]. So a crash at any moment leaves nothing in the tier that
//!   nobody knows: whoever finds a name that was reserved and not used deletes it. What `reserve` itself may leave
//!   behind is empty.
//! * When `put` returns `Ok`, the tier has answered that it holds exactly the announced number of bytes, and where the
//!   tier tells a checksum of what it holds, it was compared with that of the bytes sent. That is not proof: the caller
//!   reads the piece back and compares its own checksums before it lets go of anything (promise D5).
//! * `put` of a name that has bytes already replaces them: a repeated attempt after a crash is the same attempt.
//! * [`ColdTier::get`] gives the bytes that the tier gives, exactly as many as were asked for, or an error. Tiers serve
//!   damaged bytes without a word; the caller checks every byte against its own checksums (promise D3).
//! * Deleting a piece that is not there succeeds.
//! * Memory is bounded by a small number of buffers a call, whatever the size of the piece.
//! * Every wait has a limit: a tier that does not answer is [`TierError::Unavailable`].
//! * Calls may be dropped at any await; a dropped `put` leaves nothing that `delete` of its name does not remove.

use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use holdfast_protocol::{ContentId, TierName};

#[cfg(feature = "conformance")]
pub mod conformance;
#[cfg(feature = "conformance")]
pub mod memory;

/// Why an operation on a tier failed; each variant asks another thing of the caller.
#[derive(Debug, thiserror::Error)]
pub enum TierError {
    /// The tier does not have the piece.
    #[error("the tier has no {0}")]
    NotFound(PieceName),
    /// The tier gave fewer bytes than it holds by its own account, or says of a checksum that it does not match.
    #[error("the tier's copy of {piece} is damaged: {detail}")]
    Corrupt {
        /// Which piece.
        piece: PieceName,
        /// What did not match.
        detail: String,
    },
    /// The tier has no space, or a quota is used up: an operator has to act.
    #[error("the tier is full: {0}")]
    Full(String),
    /// Credentials or rights are wrong, or the bucket or group does not exist: an operator has to act.
    #[error("the tier refuses: {0}")]
    Denied(String),
    /// The tier cannot be reached or does not answer in time: try again later.
    #[error("the tier is unavailable: {0}")]
    Unavailable(String),
    /// The caller broke the rules of the port, or the source of a `put` failed.
    #[error("invalid request to the tier: {0}")]
    Invalid(String),
}

/// Shorthand of this port.
pub type TierResult<T> = Result<T, TierError>;

/// What a tier calls a piece. At most [`PieceName::BYTES_MAX`] bytes of text without control characters; only the tier
/// that gave it understands it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceName(String);

impl PieceName {
    /// The longest name, in bytes.
    pub const BYTES_MAX: usize = 512;

    /// A name as a tier gave it or metadata kept it.
    ///
    /// # Errors
    /// [`TierError::Invalid`] when it is empty, too long or has control characters.
    pub fn new(name: impl Into<String>) -> TierResult<Self> {
        let name = name.into();
        if name.is_empty() || name.len() > Self::BYTES_MAX || name.chars().any(char::is_control) {
            return Err(TierError::Invalid(format!("{name:?} is no name of a piece")));
        }
        Ok(Self(name))
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PieceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A piece to be stored.
#[derive(Debug, Clone)]
pub struct PieceSpec {
    /// The content that it is a piece of.
    pub content: ContentId,
    /// Its place in the content, from 0.
    pub index: u32,
    /// Tells apart moves of one content: names of different attempts never collide, so that the deletion of one that
    /// was given up cannot meet another.
    pub attempt: u64,
    /// Exactly how many bytes will come: 1 to [`ColdTier::piece_bytes_max`].
    pub size_bytes: u64,
}

/// Bytes on their way to or from a tier, in order, in pieces of any size.
pub type ColdBody = Pin<Box<dyn Stream<Item = TierResult<Bytes>> + Send>>;

/// What a tier tells of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TierHealth {
    /// Bytes that can still be stored, where the tier tells.
    pub free_bytes: Option<u64>,
    /// What an operator should know: servers that do not answer, lag of replicas.
    pub notes: Vec<String>,
}

/// The tiers that this node can reach, by name. Which there are changes while it runs.
#[async_trait]
pub trait Tiers: Send + Sync + 'static {
    /// A tier. Asks nobody and never waits.
    ///
    /// # Errors
    /// [`TierError::Denied`] when none of this name is set up, or its settings are not understood;
    /// [`TierError::Unavailable`] while nothing can be reached by its settings, or the name is not known here yet.
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>>;

    /// Whether a tier of this name is set up, reachable or not. Looks again where the name is not known here, so that
    /// one that was added through another node a moment ago is there.
    ///
    /// # Errors
    /// [`TierError::Unavailable`] when that cannot be found out.
    async fn is_set_up(&self, name: &TierName) -> TierResult<bool> {
        Ok(self.names().contains(name))
    }

    /// A tier by the settings that it has now, looked up anew: what is put into a tier must not go where others led
    /// that were changed through another node.
    ///
    /// # Errors
    /// As [`Self::tier`]; [`TierError::Unavailable`] when that cannot be found out, or nothing is reached by them yet.
    async fn fresh(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        self.tier(name)
    }

    /// The names of all that are set up, sorted, those included that cannot be reached.
    fn names(&self) -> Vec<TierName>;
}

/// The tiers of a node that has none.
#[derive(Debug, Clone, Copy, Default)]
pub struct EmptyTiers;

impl Tiers for EmptyTiers {
    fn tier(&self, name: &TierName) -> TierResult<Arc<dyn ColdTier>> {
        Err(TierError::Denied(format!("no tier {name} is set up on this node")))
    }

    fn names(&self) -> Vec<TierName> {
        Vec::new()
    }
}

/// A cold store. See the module's rules.
#[async_trait]
pub trait ColdTier: Send + Sync + 'static {
    /// What kind of store it is, for metrics and messages: `directory`, `fastdfs`, `oss`.
    fn kind(&self) -> &'static str;

    /// The largest piece, in bytes.
    fn piece_bytes_max(&self) -> u64;

    /// What the store tells of itself that no other store does, where there is such a thing: two tiers that tell the
    /// same are one store under two names.
    fn store_id(&self) -> Option<String> {
        None
    }

    /// Gives a piece its name.
    ///
    /// # Errors
    /// [`TierError::Unavailable`], [`TierError::Denied`], [`TierError::Full`] where the tier is asked for the name;
    /// [`TierError::Invalid`].
    async fn reserve(&self, piece: &PieceSpec) -> TierResult<PieceName>;

    /// Stores a piece under its reserved name.
    ///
    /// # Errors
    /// All; [`TierError::Invalid`] when the body has another number of bytes than `piece` says. After an error there
    /// may be something under the name: delete it.
    async fn put(&self, name: &PieceName, piece: &PieceSpec, body: ColdBody) -> TierResult<()>;

    /// Reads `range` of a piece, which must lie within it and not be empty. The connection is made before this returns,
    /// so that an error shows before an answer has begun.
    ///
    /// # Errors
    /// [`TierError::NotFound`], [`TierError::Corrupt`], [`TierError::Unavailable`], [`TierError::Denied`]; the body
    /// too.
    async fn get(&self, name: &PieceName, range: Range<u64>) -> TierResult<ColdBody>;

    /// Whether no part that [`ColdTier::get`] gives is a slice of a larger buffer: who keeps one then keeps nothing
    /// else with it.
    fn parts_own_their_buffers(&self) -> bool {
        false
    }

    /// Whether the store keeps several copies of a piece, each of which can be lost or damaged by itself: where the one
    /// that is asked first has nothing, a doubt may bring another.
    fn keeps_copies(&self) -> bool {
        false
    }

    /// Bytes of this piece that [`ColdTier::get`] gave are not those that were stored, or did not come. Where there are
    /// several copies, the next `get` of it begins with another one. Never waits.
    fn doubt(&self, _name: &PieceName) {}

    /// How many bytes the tier holds under a name.
    ///
    /// # Errors
    /// As [`ColdTier::get`].
    async fn size_bytes(&self, name: &PieceName) -> TierResult<u64>;

    /// Deletes a piece, also one that was reserved and never stored. One that is not there counts as deleted.
    ///
    /// # Errors
    /// [`TierError::Unavailable`], [`TierError::Denied`].
    async fn delete(&self, name: &PieceName) -> TierResult<()>;

    /// Whether the tier can be worked with now: reaches it with the configured credentials, without storing anything.
    ///
    /// # Errors
    /// [`TierError::Unavailable`], [`TierError::Denied`].
    async fn check(&self) -> TierResult<TierHealth>;
}
