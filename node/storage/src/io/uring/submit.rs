//! Submitting what is queued without waiting for the thread to park.
//!
//! tokio-uring enters the kernel only when its thread parks, and a thread whose tasks keep each other runnable (a fast
//! reader of a large object wakes itself) never does: writes queued behind it would wait for ever. The crate does not
//! lend its ring out, so this module finds the ring's descriptor among those of the process and enters the kernel
//! itself. That is sound: entering only moves on what the queue already holds, on the thread that owns the ring.

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
        // SAFETY: without flags and without waiting, the call takes no memory of ours; a descriptor that is no ring is
        // an error. The kernel consumes only entries that were published by the queue's owner, which is this thread.
        let entered = unsafe {
            libc::syscall(libc::SYS_io_uring_enter, self.ring, count, 0, 0, ::std::ptr::null::<libc::sigset_t>(), 0)
        };
        u32::try_from(entered).map_err(|_| io::Error::last_os_error())
    }
}

/// Enters the kernel until it has taken `count` entries or has none left to take. Returns how many may be left, and
/// why.
///
/// A short count has two reasons: the crate submitted some itself when the queue was full, or the kernel stopped in the
/// middle. Asked again it takes more, none, or fails.
pub(super) fn submit_all(count: u32, mut submit: impl FnMut(u32) -> io::Result<u32>) -> (u32, io::Result<()>) {
    let mut left = count;
    while left > 0 {
        match submit(left) {
            Ok(0) => left = 0,
            Ok(submitted) => left = left.saturating_sub(submitted),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (left, Err(error)),
        }
    }
    (0, Ok(()))
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs [`submit_all`] on scripted answers; returns what was asked for each time, too.
    fn scripted(count: u32, answers: &[Result<u32, i32>]) -> (u32, Option<i32>, Vec<u32>) {
        let (mut asked, mut answers) = (vec![], answers.iter());
        let (left, result) = submit_all(count, |count| {
            asked.push(count);
            let answer = answers.next().expect("it is asked no more often");
            answer.map_err(io::Error::from_raw_os_error)
        });
        assert_eq!(answers.len(), 0, "it is asked as often");
        (left, result.err().and_then(|error| error.raw_os_error()), asked)
    }

    #[test]
    fn entries_that_the_kernel_did_not_take_stay_counted() {
        assert_eq!(scripted(0, &[]), (0, None, vec![]));
        assert_eq!(scripted(5, &[Ok(5)]), (0, None, vec![5]));
        assert_eq!(scripted(5, &[Ok(2), Ok(3)]), (0, None, vec![5, 3]));
        assert_eq!(scripted(5, &[Ok(2), Ok(0)]), (0, None, vec![5, 3]), "others submitted the rest");
        assert_eq!(scripted(5, &[Err(libc::EINTR), Ok(5)]), (0, None, vec![5, 5]));
        assert_eq!(scripted(5, &[Ok(2), Err(libc::EAGAIN)]), (3, Some(libc::EAGAIN), vec![5, 3]));
        assert_eq!(scripted(5, &[Err(libc::EBUSY)]), (5, Some(libc::EBUSY), vec![5]));
    }

    #[test]
    fn entering_what_is_no_ring_is_an_error() {
        let (left, result) = submit_all(3, |count| Submitter { ring: -1 }.submit(count));
        assert_eq!((left, result.is_err()), (3, true));
    }
}
