//! What the engine needs of a disk: [`BlockIo`], with three implementations that behave alike.
//!
//! * [`uring`]: io_uring through tokio-uring, registered buffers. An operation asked for on a data-plane thread runs on
//!   that thread's own ring; asked for elsewhere, on the background ring.
//! * [`std`]: blocking calls on a small thread pool, for kernels or containers without io_uring.
//! * [`sim`]: a disk in memory that crashes, tears and loses writes, misdirects them and rots, by a seed.
//!
//! Data operations are futures that are `Send` and, once polled, run to their end even if dropped: the buffer stays
//! leased until the kernel is done with it. Control operations (open, allocate, punch, list, rename, unlink) block; the
//! engine calls them from background threads, or where they are known to be short.

use ::std::io;
use ::std::ops::Range;
use ::std::path::{Path, PathBuf};
use ::std::pin::Pin;
use ::std::sync::Arc;

use self::flights::Flights;
use crate::buf::{BufferPool, IoBuf, SharedBuf};

mod files;
pub mod flights;
pub mod sim;
pub mod std;
pub mod uring;

/// A future of an I/O operation. Cancel safe: dropping it does not stop the operation, and loses only its result.
pub type IoFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a file is opened. Offsets, lengths and memory of `Direct` operations are multiples of [`BlockIo::block_size`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenMode {
    /// Past the page cache (`O_DIRECT`), for segment writes and scrub. Falls back to buffered where the file system
    /// refuses.
    Direct,
    /// Through the page cache with readahead off (`POSIX_FADV_RANDOM`), for reads and small metadata files.
    Buffered,
}

/// One open file.
#[expect(
    clippy::len_without_is_empty,
    reason = "the length is a question to the disk, and emptiness is none of interest"
)]
pub trait BlockFile: Send + Sync + 'static {
    /// Writes `buf[range]` at `offset`, all of it (short writes are continued). The bytes are durable only after
    /// [`BlockFile::sync_data`].
    fn write_at(&self, offset: u64, buf: SharedBuf, range: Range<usize>) -> IoFuture<io::Result<()>>;

    /// Reads into `buf[..len]` and gives the buffer back, also on error. Returns the bytes read: fewer than `len` only
    /// at the end of the file.
    fn read_at(&self, offset: u64, buf: IoBuf, len: usize) -> IoFuture<(io::Result<usize>, IoBuf)>;

    /// `fdatasync`. After an error the file must not be trusted, nor the sync retried: the engine fences the disk.
    fn sync_data(&self) -> IoFuture<io::Result<()>>;

    /// Length in bytes.
    ///
    /// # Errors
    /// Those of `fstat`.
    fn len(&self) -> io::Result<u64>;

    /// Allocates blocks so that the file is at least `len` bytes long (`fallocate`; reads as zeros).
    ///
    /// # Errors
    /// `ENOSPC` when the disk is full; the file may then be partly allocated.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// Gives the blocks of a range back (`FALLOC_FL_PUNCH_HOLE | KEEP_SIZE`); it reads as zeros from then on.
    ///
    /// # Errors
    /// Those of `fallocate`; `EOPNOTSUPP` where the file system has no holes.
    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()>;

    /// The descriptor, for mapping and splice; `None` in the simulation, which has neither.
    fn as_fd(&self) -> Option<::std::os::fd::BorrowedFd<'_>>;
}

/// A disk, or a simulated one.
pub trait BlockIo: Send + Sync + 'static {
    /// For the log and metrics: `uring`, `std` or `sim`.
    fn name(&self) -> &'static str;

    /// The same for the disk of `dir` (which need not be there yet), whose operations are counted in `flights` from
    /// their start to their real end, whether or not somebody waits for them. What disks share, one that hangs may use
    /// up: it is as little as possible.
    ///
    /// # Errors
    /// When threads cannot be started.
    fn for_disk(&self, dir: &Path, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>>;

    /// Alignment that `Direct` operations on files below `dir` need; a power of two between 512 and 4096.
    ///
    /// # Errors
    /// When `dir` cannot be examined.
    fn block_size(&self, dir: &Path) -> io::Result<usize>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` and those of `open`.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>>;

    /// Creates a new empty file; durable as a directory entry only after [`BlockIo::sync_dir`].
    ///
    /// # Errors
    /// `AlreadyExists` and those of `open`.
    fn create(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>>;

    /// Creates a directory and its parents.
    ///
    /// # Errors
    /// Those of `mkdir`.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Files of a directory, unsorted.
    ///
    /// # Errors
    /// Those of `readdir`.
    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>>;

    /// Renames a file over another; durable after [`BlockIo::sync_dir`].
    ///
    /// # Errors
    /// Those of `rename`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file; durable after [`BlockIo::sync_dir`].
    ///
    /// # Errors
    /// Those of `unlink`.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes creations, renames and removals in `dir` durable.
    ///
    /// # Errors
    /// Those of `fsync`; the engine fences the disk.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock that keeps a second process off the directory; held until the returned guard is dropped or the
    /// process ends.
    ///
    /// # Errors
    /// `WouldBlock` when another process has it.
    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>>;

    /// Bytes in all and bytes free for this process on the file system of `dir`.
    ///
    /// # Errors
    /// Those of `statvfs`.
    fn space(&self, dir: &Path) -> io::Result<(u64, u64)>;
}

/// Which implementation is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Preference {
    /// io_uring where it works, else blocking calls.
    #[default]
    Auto,
    /// io_uring or an error.
    Uring,
    /// Blocking calls.
    Std,
}

/// What [`choose`] found.
pub struct Chosen {
    /// The implementation.
    pub io: Arc<dyn BlockIo>,
    /// The pool to register with rings on data-plane threads; `None` where io_uring is not used.
    pub rings: Option<Arc<BufferPool>>,
}

/// Chooses the implementation for this process, once at start, and says in the log which and why.
///
/// # Errors
/// When io_uring is demanded and does not work, or threads cannot be started.
pub fn choose(pool: &Arc<BufferPool>, preference: Preference) -> io::Result<Chosen> {
    if preference != Preference::Std {
        let tried = uring::probe().map_err(io::Error::other).and_then(|()| uring::UringIo::new(pool));
        match tried {
            Ok(ring) => {
                tracing::info!(io = "uring", "disk I/O by io_uring");
                return Ok(Chosen { io: Arc::new(ring), rings: Some(Arc::clone(pool)) });
            }
            Err(error) if preference == Preference::Uring => return Err(error),
            Err(error) => {
                tracing::warn!(io = "std", reason = %error, "io_uring cannot be used, disk I/O by blocking calls on threads");
            }
        }
    } else {
        tracing::info!(io = "std", "disk I/O by blocking calls on threads, as configured");
    }
    Ok(Chosen { io: Arc::new(std::StdIo::new()?), rings: None })
}
