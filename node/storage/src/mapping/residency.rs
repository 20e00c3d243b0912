//! Asking the kernel whether a range of a file is in the page cache: `cachestat` (Linux 6.5), which counts without
//! looking at each page, or else `mincore`. And taking what is there without waiting: `preadv2` with `RWF_NOWAIT`.

use std::io::IoSliceMut;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::{Errno, ReadWriteFlags};

use super::{Mapping, PAGE_BYTES};
use crate::scratch::Scratch;

/// The system call's number, the same on every architecture.
const SYS_CACHESTAT: libc::c_long = 451;

/// Cleared when the kernel turns out not to have `cachestat`, or a seccomp profile forbids it.
static CACHESTAT_WORKS: AtomicBool = AtomicBool::new(true);

/// Pages asked for in one call of `mincore`: 2 MiB, more than one turn of a connection sends.
const MINCORE_PAGES: usize = 512;

#[repr(C)]
struct CachestatRange {
    off: u64,
    len: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    nr_cache: u64,
    nr_dirty: u64,
    nr_writeback: u64,
    nr_evicted: u64,
    nr_recently_evicted: u64,
}

/// For a range that is not empty and lies in the mapping.
pub(super) fn is_resident(mapping: &Mapping, range: Range<u64>) -> bool {
    let pages = range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES);
    if CACHESTAT_WORKS.load(Ordering::Relaxed) {
        match cachestat(mapping, &pages) {
            Some(cached) => return cached >= pages.end - pages.start,
            None => CACHESTAT_WORKS.store(false, Ordering::Relaxed),
        }
    }
    mincore(mapping, &pages)
}

/// What a read that does not wait gave.
pub(super) enum Taken {
    /// The whole range.
    All(Scratch),
    /// Something of it is not in the page cache.
    NotAll,
    /// The file system cannot tell.
    Unsupported,
}

/// Takes the bytes of a range without waiting for the disk.
pub(super) fn copy_resident(mapping: &Mapping, range: Range<u64>) -> Taken {
    let mut bytes = Scratch::new((range.end - range.start) as usize);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    match rustix::io::preadv2(&*mapping.file, &mut slices, range.start, ReadWriteFlags::NOWAIT) {
        Ok(read) if read == bytes.len() => Taken::All(bytes),
        Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Taken::Unsupported,
        _ => Taken::NotAll,
    }
}

fn cachestat(mapping: &Mapping, pages: &Range<u64>) -> Option<u64> {
    let range = CachestatRange { off: pages.start * PAGE_BYTES, len: (pages.end - pages.start) * PAGE_BYTES };
    let mut stat = Cachestat::default();
    // SAFETY: both structures are laid out as the kernel's and live across the call; the kernel writes only `stat`.
    let result = unsafe { libc::syscall(SYS_CACHESTAT, mapping.file.as_raw_fd(), &raw const range, &raw mut stat, 0) };
    (result == 0).then_some(stat.nr_cache)
}

fn mincore(mapping: &Mapping, pages: &Range<u64>) -> bool {
    let mut flags = [0u8; MINCORE_PAGES];
    let mut at = pages.start;
    while at < pages.end {
        let count = (pages.end - at).min(MINCORE_PAGES as u64) as usize;
        // SAFETY: the pages lie in the mapping (its last page counts whole), and `flags` has a byte for each of them.
        let result = unsafe {
            let first = mapping.base.as_ptr().add((at * PAGE_BYTES) as usize);
            libc::mincore(first.cast(), count * PAGE_BYTES as usize, flags.as_mut_ptr())
        };
        if result != 0 || flags[..count].iter().any(|flag| flag & 1 == 0) {
            return false;
        }
        at += count as u64;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn what_is_resident_and_verified_is_copied() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let contents: Vec<u8> = (0..16 * PAGE_BYTES).map(|at| (at / 5) as u8).collect();
        file.write_all_at(&contents, 0).unwrap();
        file.sync_all().unwrap();
        let mapping = Mapping::new(file.as_fd(), 16 * PAGE_BYTES).unwrap();
        let range = PAGE_BYTES + 10..3 * PAGE_BYTES + 20;
        assert_eq!(mapping.copy_resident(range.clone()), None, "it was not verified");
        mapping.set_verified(0..16 * PAGE_BYTES);
        match mapping.copy_resident(range.clone()) {
            Some(copy) => assert_eq!(copy, contents[range.start as usize..range.end as usize]),
            None => assert!(!mapping.copies_resident(), "the file system can, and it was resident"),
        }
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        assert_eq!(mapping.copy_resident(range), None, "it was evicted");
    }

    #[test]
    fn what_is_not_there_is_not_taken() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&vec![7; 4 * PAGE_BYTES as usize], 0).unwrap();
        file.sync_all().unwrap();
        let mapping = Mapping::new(file.as_fd(), 4 * PAGE_BYTES).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        let taken = copy_resident(&mapping, 0..4 * PAGE_BYTES);
        assert!(matches!(taken, Taken::NotAll | Taken::Unsupported));
    }

    #[test]
    fn both_ways_agree() {
        let file = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        file.write_all_at(&vec![7; 64 * PAGE_BYTES as usize], 0).unwrap();
        file.sync_all().unwrap();
        let mapping = Mapping::new(file.as_fd(), 64 * PAGE_BYTES).unwrap();
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        file.read_exact_at(&mut [0; 4 * PAGE_BYTES as usize], 8 * PAGE_BYTES).unwrap();
        for first in 0..64 {
            for pages in [first..first + 1, first..64] {
                let by_mincore = mincore(&mapping, &pages);
                assert_eq!(by_mincore, pages.clone().all(|page| (8..12).contains(&page)));
                if let Some(cached) = cachestat(&mapping, &pages) {
                    assert_eq!(cached >= pages.end - pages.start, by_mincore);
                }
            }
        }
    }
}
