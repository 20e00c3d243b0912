//! The memory behind a pool, and how a ring sees it.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::BufferPool;

/// The anonymous mapping behind a pool.
pub(super) struct Arena {
    pub(super) base: NonNull<u8>,
    pub(super) len: usize,
}

// SAFETY: the arena is plain memory; who may touch which part is governed by the leases, one per slot at a time.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    pub(super) fn map(len: usize) -> io::Result<Arena> {
        // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        let base: NonNull<u8> = NonNull::new(base.cast()).expect("mmap never returns the null page");
        // Huge pages make registration with a ring ten times shorter. Advice: without them all works the same.
        // SAFETY: the range is the mapping just made; the advice does not change its contents.
        let _ = unsafe { rustix::mm::madvise(base.as_ptr().cast(), len, Advice::LinuxHugepage) };
        Ok(Arena { base, len })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: the pool owns the mapping, and every lease and every registration holds the pool: nobody is left.
        let unmapped = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(unmapped.is_ok(), "munmap of the arena: {unmapped:?}");
    }
}

/// The arena as tokio-uring wants to see what it registers. Nobody reads or writes through it: operations are made of
/// addresses inside leased slots.
pub(crate) struct ArenaView {
    pool: Arc<BufferPool>,
}

impl ArenaView {
    pub(crate) fn new(pool: &Arc<BufferPool>) -> ArenaView {
        ArenaView { pool: Arc::clone(pool) }
    }
}

// SAFETY: the arena neither moves nor goes away while the view holds the pool, and starts as zeros.
unsafe impl tokio_uring::buf::IoBuf for ArenaView {
    fn stable_ptr(&self) -> *const u8 {
        self.pool.arena.base.as_ptr()
    }

    fn bytes_init(&self) -> usize {
        self.pool.arena.len
    }

    fn bytes_total(&self) -> usize {
        self.pool.arena.len
    }
}

// SAFETY: as above; the registry only takes the address and the length, and no buffer is checked out of it, so that the
// exclusive access which this trait promises is never used.
unsafe impl tokio_uring::buf::IoBufMut for ArenaView {
    fn stable_mut_ptr(&mut self) -> *mut u8 {
        self.pool.arena.base.as_ptr()
    }

    unsafe fn set_init(&mut self, _pos: usize) {}
}
