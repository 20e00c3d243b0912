//! Segments mapped for reading: where resident data is sent from without being copied.
//!
//! A [`Mapping`] covers a whole segment file, read only and shared. [`Mapping::bytes`] lends ranges of it as `Bytes`,
//! which keep the mapping (and whatever the engine pins with them) alive, so that they can travel through hyper like
//! any other body; the connection's writer finds out by [`find`] that a slice lies in a mapping, and sends it by
//! splice.
//!
//! **Who keeps it safe.** A mapped file is never truncated, since touching a page behind its end kills the process; a
//! live range is never rewritten; a range is punched only when no `Bytes` of it is left. The engine guarantees these
//! three.
//!
//! **Unverified bytes.** Only verified reads are to bring pages of a segment into the page cache (readahead is off),
//! and the engine marks what it has verified ([`Mapping::set_verified`]). The kernel may evict a page at any time, and
//! another reader bring it back from a disk that has gone bad since, so both are asked for again right before sending
//! ([`Mapping::is_sendable`]); what is gone is brought back, verified, by the engine's hook ([`Mapping::set_refresh`]).
//!
//! **Memory.** Splicing does not map pages into the process. Writing small slices from the mapping does, and they count
//! as resident memory although the page cache owns them; [`Mapping::touched`] unmaps them from time to time.

use std::any::Any;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use bytes::Bytes;
use parking_lot::RwLock;
use rustix::fs::OFlags;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use self::copying::Copying;
use self::residency::Taken;
use self::touched::TouchedWindows;
use self::verified::VerifiedPages;
use crate::io::IoFuture;

mod copying;
mod residency;
pub mod splice;
mod touched;
mod verified;

/// Bytes of a page.
pub const PAGE_BYTES: u64 = 4096;

/// Pages that faults may have mapped before all are unmapped again: a quarter of what a node may use.
const TOUCHED_BYTES_MAX: u64 = 64 << 20;

/// Bytes that faults may have mapped since the last unmapping, over all mappings.
static TOUCHED_BYTES: AtomicU64 = AtomicU64::new(0);

/// All mappings, by their first address.
static REGISTRY: RwLock<BTreeMap<usize, Registered>> = RwLock::new(BTreeMap::new());

/// Lowest and highest address that any mapping ever had: most slices that are looked up lie elsewhere, and need no
/// lock.
static LOWEST: AtomicUsize = AtomicUsize::new(usize::MAX);
static HIGHEST: AtomicUsize = AtomicUsize::new(0);

struct Registered {
    len: usize,
    mapping: Weak<Mapping>,
}

/// Brings a range of a segment into the page cache, verified.
pub type Refresh = Box<dyn Fn(Range<u64>) -> IoFuture<io::Result<()>> + Send + Sync>;

/// A segment file, mapped.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    file: Arc<File>,
    verified: VerifiedPages,
    /// Cleared when the file system turns out not to read without waiting.
    copies: AtomicBool,
    copying: Copying,
    touched: TouchedWindows,
    refresh: OnceLock<Refresh>,
    refreshing: tokio::sync::Mutex<()>,
}

// SAFETY: the mapping is read-only memory that stays where it is; all else in the struct is `Send`.
unsafe impl Send for Mapping {}
// SAFETY: as above, and all else is `Sync`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of a file that was opened buffered ([`crate::io::OpenMode::Buffered`]). The
    /// descriptor is duplicated.
    ///
    /// # Errors
    /// Those of `mmap`; `InvalidInput` when the file is shorter than `len`, `len` is zero, or the descriptor is
    /// `O_DIRECT` (splicing from it would go around the page cache).
    pub fn new(file: BorrowedFd<'_>, len: u64) -> io::Result<Arc<Mapping>> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        if rustix::fs::fcntl_getfl(file)?.contains(OFlags::DIRECT) {
            return invalid("a file opened with O_DIRECT cannot be mapped for sending");
        }
        let file = File::from(file.try_clone_to_owned()?);
        if len == 0 || file.metadata()?.len() < len {
            return invalid("a mapping must not reach past the end of its file");
        }
        let Ok(len) = usize::try_from(len) else {
            return invalid("the file exceeds the address space");
        };
        // Advice: the residency check and the checksums do not depend on it.
        let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random);
        // SAFETY: a new mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, &file, 0) }?;
        // SAFETY: the range is the mapping just made; the advice does not change its contents.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::LinuxDontDump) };
        // SAFETY: as above.
        let _ = unsafe { rustix::mm::madvise(base, len, Advice::Random) };
        let base: NonNull<u8> = NonNull::new(base.cast()).expect("mmap never returns the null page");
        let mapping = Arc::new(Mapping {
            base,
            len,
            file: Arc::new(file),
            verified: VerifiedPages::new(len as u64),
            copies: AtomicBool::new(true),
            copying: Copying::default(),
            touched: TouchedWindows::new(len as u64),
            refresh: OnceLock::new(),
            refreshing: tokio::sync::Mutex::new(()),
        });
        let start = base.as_ptr() as usize;
        let registered = Registered { len, mapping: Arc::downgrade(&mapping) };
        REGISTRY.write().insert(start, registered);
        LOWEST.fetch_min(start, Ordering::Release);
        HIGHEST.fetch_max(start + len, Ordering::Release);
        Ok(mapping)
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Never: a mapping has at least one byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file, buffered.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Lends a range. `pin` lives as long as any part of the result: the engine's promise not to punch the range.
    ///
    /// Reading the bytes may fault, and so block, when they are not resident.
    ///
    /// # Panics
    /// When the range reaches past the mapping.
    pub fn bytes(self: &Arc<Self>, range: Range<u64>, pin: Arc<dyn Any + Send + Sync>) -> Bytes {
        self.check(&range);
        if range.is_empty() {
            return Bytes::new();
        }
        Bytes::from_owner(Lent { mapping: Arc::clone(self), range, _pin: pin })
    }

    /// Whether all pages of a range are in the page cache now. `false` when the kernel does not tell.
    ///
    /// # Panics
    /// When the range reaches past the mapping.
    pub fn is_resident(&self, range: Range<u64>) -> bool {
        self.check(&range);
        range.is_empty() || residency::is_resident(self, range)
    }

    /// A copy of a range that is in the page cache and verified, made by one system call that waits for no disk.
    /// `None`: it is not, or the kernel cannot do it. For who looks at bytes himself: touching a slice of the mapping
    /// may fault, wait for the disk and bring back what nobody compared, and kills the process if the disk cannot read.
    ///
    /// # Panics
    /// When the range reaches past the mapping.
    pub fn copy_resident(&self, range: Range<u64>) -> Option<Bytes> {
        self.check(&range);
        let _turn = self.copying.begin(&range)?;
        if !self.is_resident(range.clone()) || !self.is_verified(range.clone()) {
            return None;
        }
        match residency::copy_resident(self, range.clone()) {
            // Another reader clears the marks before it brings back what was evicted meanwhile.
            Taken::All(bytes) => self.is_verified(range).then(|| bytes.freeze()),
            // What was evicted meanwhile the kernel may be bringing back for this call, unverified; see `copying`.
            Taken::NotAll => {
                self.clear_verified(range);
                None
            }
            Taken::Unsupported => {
                self.copies.store(false, Ordering::Relaxed);
                None
            }
        }
    }

    /// Whether [`Mapping::copy_resident`] is of use: not with a file system that cannot read without waiting.
    pub fn copies_resident(&self) -> bool {
        self.copies.load(Ordering::Relaxed)
    }

    /// Whether all pages that a range touches were verified.
    pub fn is_verified(&self, range: Range<u64>) -> bool {
        self.check(&range);
        self.verified.contains(range)
    }

    /// Notes that a range was compared with its checksums. Only pages that lie in it whole are marked.
    pub fn set_verified(&self, range: Range<u64>) {
        self.check(&range);
        self.verified.insert(range);
    }

    /// Forgets that a range was verified: before it is punched or rewritten, and when scrub found it bad.
    pub fn clear_verified(&self, range: Range<u64>) {
        self.check(&range);
        self.verified.remove(range);
    }

    /// Sets how evicted ranges are brought back. Once; later calls change nothing.
    pub fn set_refresh(&self, refresh: Refresh) {
        let _ = self.refresh.set(refresh);
    }

    /// Whether a range may be sent now: it is resident and, where the engine verifies (it has set its hook), verified.
    pub fn is_sendable(&self, range: Range<u64>) -> bool {
        match self.refresh.get() {
            Some(_) => self.is_resident_and_verified(range),
            None => self.is_resident(range),
        }
    }

    /// Whether a range is in the page cache as it was verified.
    ///
    /// Residency first: a page that comes in between the questions has its mark cleared before, or comes in by a copy,
    /// which is waited for.
    pub(crate) fn is_resident_and_verified(&self, range: Range<u64>) -> bool {
        self.is_resident(range.clone()) && self.copying.wait(&range) && self.is_verified(range)
    }

    /// Makes a range sendable without blocking the thread: by the engine's hook, which verifies it, or else by plain
    /// reads on a blocking thread. One range of a mapping at a time: connections that wait for the same range find it
    /// done, instead of putting each other's in question. Must be polled on a tokio runtime.
    ///
    /// # Errors
    /// Those of the hook (also: the data is corrupt) or of reading. The bytes must then not be sent.
    pub fn refresh(self: &Arc<Self>, range: Range<u64>) -> IoFuture<io::Result<()>> {
        self.check(&range);
        let mapping = Arc::clone(self);
        Box::pin(async move {
            let _turn = mapping.refreshing.lock().await;
            if mapping.is_sendable(range.clone()) {
                return Ok(());
            }
            match mapping.refresh.get() {
                Some(refresh) => refresh(range).await,
                None => {
                    let file = Arc::clone(&mapping.file);
                    let read = tokio::task::spawn_blocking(move || read_through(&file, range));
                    read.await.unwrap_or_else(|_| Err(io::Error::other("the thread that read a segment ended")))
                }
            }
        })
    }

    /// Notes that a range was read through the mapping, and from time to time takes the pages of all mappings out of
    /// the process's page tables (they stay in the page cache), so that its resident memory is bounded.
    pub fn touched(&self, range: Range<u64>) {
        let touched = self.touched.insert(range);
        if touched == 0 {
            return;
        }
        let before = TOUCHED_BYTES.fetch_add(touched, Ordering::Relaxed);
        if before < TOUCHED_BYTES_MAX && before + touched >= TOUCHED_BYTES_MAX {
            let mappings: Vec<_> = REGISTRY.read().values().filter_map(|entry| entry.mapping.upgrade()).collect();
            for mapping in mappings {
                // First, so that what is mapped from now on is counted, perhaps twice.
                mapping.touched.clear();
                // SAFETY: the range is the whole of a live shared file mapping without dirty pages: later accesses find
                // the same contents again in the page cache.
                let _ =
                    unsafe { rustix::mm::madvise(mapping.base.as_ptr().cast(), mapping.len, Advice::LinuxDontNeed) };
            }
            TOUCHED_BYTES.store(0, Ordering::Relaxed);
        }
    }

    fn check(&self, range: &Range<u64>) {
        assert!(
            range.start <= range.end && range.end <= self.len as u64,
            "range {range:?} is not inside a mapping of {} bytes",
            self.len
        );
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // First, so that the address is not found when the kernel gives it to somebody else.
        REGISTRY.write().remove(&(self.base.as_ptr() as usize));
        // SAFETY: this value owns the mapping, and each `Bytes` of it holds this value: nobody is left to read it.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of a segment: {unmapped:?}");
    }
}

fn read_through(file: &File, range: Range<u64>) -> io::Result<()> {
    let mut buf = vec![0; 64 << 10];
    let mut at = range.start;
    while at < range.end {
        let part = (range.end - at).min(buf.len() as u64) as usize;
        match file.read_at(&mut buf[..part], at)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => at += read as u64,
        }
    }
    Ok(())
}

/// What a `Bytes` of a mapping owns.
struct Lent {
    mapping: Arc<Mapping>,
    range: Range<u64>,
    _pin: Arc<dyn Any + Send + Sync>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        let len = (self.range.end - self.range.start) as usize;
        // SAFETY: the range was checked against the mapping, which lives as long as this value; the file is not
        // truncated and the range is neither rewritten nor punched while the pin lives (the engine's promise in the
        // module docs).
        unsafe { std::slice::from_raw_parts(self.mapping.base.as_ptr().add(self.range.start as usize), len) }
    }
}

/// Where in which mapping a slice lies.
#[derive(Clone)]
pub struct Located {
    /// The mapping.
    pub mapping: Arc<Mapping>,
    /// The slice's bytes in the segment file.
    pub range: Range<u64>,
}

/// Finds the mapping that a slice lies in, if any.
pub fn find(slice: &[u8]) -> Option<Located> {
    let start = slice.as_ptr() as usize;
    if slice.is_empty() || start < LOWEST.load(Ordering::Acquire) || start >= HIGHEST.load(Ordering::Acquire) {
        return None;
    }
    let registry = REGISTRY.read();
    let (base, entry) = registry.range(..=start).next_back()?;
    let offset = start - base;
    if offset >= entry.len || slice.len() > entry.len - offset {
        return None;
    }
    let mapping = entry.mapping.upgrade()?;
    Some(Located { mapping, range: offset as u64..(offset + slice.len()) as u64 })
}

#[cfg(test)]
mod tests;
