//! What can go wrong between this side and a server, and what that means to the port.

use holdfast_actors::ports::tiers::{PieceName, TierError};

use super::wire::{WireError, status};

/// Why a server did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// It answered, and refused. Its connection is as good as before, but after `EINVAL`.
    #[error("it answers status {}", named(.0))]
    Status(u8),
    /// No connection could be made.
    #[error("{0}")]
    Unreachable(String),
    /// It closed the connection before the first byte of its reply: perhaps long before the request, so that the
    /// request may be tried again where that does no harm.
    #[error("it closed the connection: {0}")]
    Closed(String),
    /// The connection broke within a reply, or it kept this side waiting for too long.
    #[error("{0}")]
    Broken(String),
    /// It sent what the protocol does not allow.
    #[error("it breaks the protocol: {0}")]
    Protocol(#[from] WireError),
    /// It has fewer bytes than were asked for.
    #[error("it has {got} of {asked} bytes")]
    Short {
        /// What it has.
        got: u64,
        /// What was asked for.
        asked: u64,
    },
    /// What should have been sent could not be had.
    #[error("{0}")]
    Source(TierError),
}

impl Failure {
    /// Whether the server says that it knows nothing of what it was asked for.
    pub(super) fn is_missing(&self) -> bool {
        matches!(self, Self::Status(status::MISSING))
    }

    /// As the port says it: `server` is who failed. `Status(MISSING)` and `Short` are taken at their word, so the
    /// caller has to know that this server is the one to say so.
    pub(super) fn of(self, piece: &PieceName, server: &str) -> TierError {
        match self {
            Self::Status(status::MISSING) => TierError::NotFound(piece.clone()),
            Self::Short { .. } => TierError::Corrupt { piece: piece.clone(), detail: format!("{server}: {self}") },
            other => other.at(server),
        }
    }

    /// As the port says it, where it is about no piece or the server is not the one to say that a piece is missing.
    pub(super) fn at(self, server: &str) -> TierError {
        let text = format!("{server}: {self}");
        match self {
            Self::Source(error) => error,
            Self::Status(status::FULL | EDQUOT) => TierError::Full(text),
            Self::Status(EPERM | EACCES | EROFS | status::INVALID) => TierError::Denied(text),
            _ => TierError::Unavailable(text),
        }
    }
}

/// Shorthand of the adapter.
pub(super) type Outcome<T> = Result<T, Failure>;

const EPERM: u8 = 1;
const EACCES: u8 = 13;
const EROFS: u8 = 30;
const EDQUOT: u8 = 122;

/// A status with the name of its errno.
fn named(status: &u8) -> String {
    let name = match *status {
        EPERM => "EPERM",
        status::MISSING => "ENOENT",
        5 => "EIO",
        11 => "EAGAIN",
        12 => "ENOMEM",
        EACCES => "EACCES",
        16 => "EBUSY",
        status::EXISTS => "EEXIST",
        status::INVALID => "EINVAL",
        status::FULL => "ENOSPC",
        EROFS => "EROFS",
        61 => "ENODATA",
        110 => "ETIMEDOUT",
        EDQUOT => "EDQUOT",
        _ => "another errno",
    };
    format!("{status} ({name})")
}
