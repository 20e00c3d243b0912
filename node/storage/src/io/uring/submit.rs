//! Submitting what is queued without waiting for the thread to park.
//!
//! tokio-uring enters the kernel only when its thread parks, and a thread whose tasks keep each other runnable (a fast
//! reader of a large object wakes itself) never does: writes queued behind it would wait for ever. The crate does not lend
//! its ring out, so this module finds the ring's descriptor among those of the process and enters the kernel itself. That
//! is sound: entering only moves on what the queue already holds, on the thread that owns the ring.

use ::std::collections::BTreeSet;
use ::std::fs;
use ::std::io;
use ::std::os::fd::RawFd;

use parking_lot::Mutex;

/// One ring is made at a time, so that the descriptor that appears is the one of the ring just made.
static MAKING: Mutex<()> = Mutex::new(());

/// Enters the kernel for one ring. Valid as long as the ring is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Submitter {
    ring: RawFd,
}

impl Submitter {
    /// Runs `make`, which makes a ring, and finds the descriptors that may be the ring's.
    pub(super) fn watch<T>(make: impl FnOnce() -> io::Result<T>) -> io::Result<(T, Vec<Submitter>)> {
        let _one_at_a_time = MAKING.lock();
        let before = rings();
        let made = make()?;
        let after = rings();
        let mut candidates: Vec<Submitter> = after.difference(&before).map(|ring| Submitter { ring: *ring }).collect();
        if candidates.is_empty() {
            // The new ring took the number of one that ended meanwhile.
            candidates = after.into_iter().map(|ring| Submitter { ring }).collect();
        }
        Ok((made, candidates))
    }

    /// Keeps other rings from appearing while a short-lived one is made.
    pub(super) fn exclusively<T>(make: impl FnOnce() -> T) -> T {
        let _one_at_a_time = MAKING.lock();
        make()
    }

    /// Submits up to `count` queued entries and returns how many there were.
    pub(super) fn submit(self, count: u32) -> io::Result<u32> {
        // SAFETY: without flags and without waiting, the call takes no memory of ours; a descriptor that is no ring is an
        // error. The kernel consumes only entries that were published by the queue's owner, which is this thread.
        let entered = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, self.ring, count, 0, 0, ::std::ptr::null::<libc::sigset_t>(), 0)
        };
        u32::try_from(entered).map_err(|_| io::Error::last_os_error())
    }
}

/// The rings that this process has open; none where `/proc` is missing.
fn rings() -> BTreeSet<RawFd> {
    let Ok(descriptors) = fs::read_dir("/proc/self/fd") else {
        return BTreeSet::new();
    };
    let is_ring = |path: &::std::path::Path| {
        fs::read_link(path).is_ok_and(|target| target.as_os_str() == "anon_inode:[io_uring]")
    };
    descriptors
        .filter_map(Result::ok)
        .filter(|entry| is_ring(&entry.path()))
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}
