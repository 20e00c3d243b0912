//! Why an operation of the engine failed. Each variant asks another thing of the caller.

use std::io;
use std::sync::Arc;

use holdfast_protocol::ChunkId;

use crate::format::FormatError;

/// Why a chunk was not written or deleted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WriteError {
    /// A chunk with this id exists, or is being written.
    #[error("chunk {0} exists already")]
    Exists(ChunkId),
    /// The disk is full. Reads and deletes go on; writes do again once there is space.
    #[error("the disk is full")]
    NoSpace,
    /// The disk failed earlier and takes no writes until it was looked after and the engine opened anew.
    #[error("the disk is fenced: {0}")]
    Fenced(Arc<str>),
    /// The disk does not answer. It may again, or be fenced; until then, other disks are to be taken. What was begun
    /// may yet reach the disk, and counts for nothing.
    #[error("the disk does not answer")]
    Unresponsive,
    /// The engine is shutting down.
    #[error("the disk engine is shutting down")]
    Closed,
    /// The caller broke a rule (more bytes than announced, an impossible size).
    #[error("invalid chunk: {0}")]
    Invalid(String),
    /// This operation failed in the disk, which is fenced now, unless it was full or the process has no descriptors
    /// left.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: &'static str,
        /// Why it failed. Shared, since one sync fails for many waiters.
        #[source]
        source: Arc<io::Error>,
    },
}

/// Why a chunk was not read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It is not on this disk.
    #[error("chunk {0} is not on this disk")]
    NotFound(ChunkId),
    /// The range reaches beyond the payload.
    #[error("invalid range of chunk {chunk}: {detail}")]
    Invalid {
        /// Which chunk.
        chunk: ChunkId,
        /// What is wrong with the range.
        detail: String,
    },
    /// The bytes on disk do not match their checksums; none of the block was handed out.
    #[error("chunk {chunk} is corrupt: {detail}")]
    Corrupt {
        /// Which chunk.
        chunk: ChunkId,
        /// What did not match, and where.
        detail: String,
    },
    /// The disk does not answer, so it was not asked.
    #[error("the disk of chunk {0} does not answer")]
    Unresponsive(ChunkId),
    /// The disk failed to read.
    #[error("read chunk {chunk}")]
    Io {
        /// Which chunk.
        chunk: ChunkId,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a data directory was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("data directory {dir} is in use by another process")]
    Locked {
        /// The directory.
        dir: String,
    },
    /// The superblock is damaged, or of another format version.
    #[error("data directory {dir}: {source}")]
    Superblock {
        /// The directory.
        dir: String,
        /// What is wrong with it.
        #[source]
        source: FormatError,
    },
    /// There are segments and no superblock: not a fresh directory, and not one to write a new identity into.
    #[error("data directory {dir} holds segments but no superblock")]
    NoSuperblock {
        /// The directory.
        dir: String,
    },
    /// The directory belongs to another cluster or node.
    #[error("data directory {dir} belongs to another {owner}: {found}, expected {expected}")]
    Foreign {
        /// The directory.
        dir: String,
        /// `cluster` or `node`.
        owner: &'static str,
        /// Identity on disk, hexadecimal.
        found: String,
        /// Identity that was asked for, hexadecimal.
        expected: String,
    },
    /// A setting that cannot work.
    #[error("disk engine setting: {0}")]
    Config(String),
    /// The disk failed.
    #[error("{context}")]
    Io {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Whether an error says that the disk is full rather than broken.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether an error says that the process, or the system, has no descriptors left: the disk is not to blame, and
/// nothing was done.
pub(crate) fn is_out_of_descriptors(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::MFILE, Errno::NFILE].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Whether an error says that the disk cannot give what is stored there, or that the file system knows it to be
/// damaged.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::IO, Errno::BADMSG, Errno::UCLEAN].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}
