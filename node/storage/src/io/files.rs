//! Real files: what the std and uring implementations have in common, which is all but the data operations.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, FallocateFlags, FlockOperation, Mode, OFlags, StatxFlags};
use rustix::io::retry_on_intr;

use super::OpenMode;

/// Name of the file in a data directory whose lock keeps a second process away.
const LOCK_NAME: &str = "lock";

/// What `block_size` answers when the file system does not say: right for every disk with blocks of up to 4 KiB.
const BLOCK_BYTES_FALLBACK: usize = 4096;

/// File systems on which a server, or another process, answers (`f_type` of `statfs`): NFS, SMB, CIFS, SMB2, FUSE,
/// Ceph, 9P, AFS, Lustre.
const REMOTE_TYPES: [u32; 9] =
    [0x6969, 0x517b, 0xff53_4d42, 0xfe53_4d42, 0x6573_5546, 0x00c3_6400, 0x0102_1997, 0x5346_414f, 0x0bd0_0bd0];

/// Whether the kernel asks somebody else for the files of `dir`, which need not be there yet. `false` if it does not
/// tell.
pub(super) fn is_remote(dir: &Path) -> bool {
    // Of a relative path the last one is empty.
    let told = dir.ancestors().chain([Path::new(".")]).find_map(|dir| rustix::fs::statfs(dir).ok());
    told.is_some_and(|stat| REMOTE_TYPES.contains(&(stat.f_type as u32)))
}

pub(super) fn open(path: &Path, mode: OpenMode, create: bool) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create_new(create).mode(0o600);
    if mode == OpenMode::Direct {
        let direct = i32::try_from(OFlags::DIRECT.bits()).expect("open flags are an int");
        match options.clone().custom_flags(direct).open(path) {
            // The file system has no O_DIRECT (it may have created the file before it found out).
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                tracing::debug!(path = %path.display(), "no O_DIRECT on this file system, falling back to buffered I/O");
                if create {
                    options.create_new(false).create(true);
                }
            }
            other => return other,
        }
    }
    let file = options.open(path)?;
    if mode == OpenMode::Buffered {
        // Advice: where a file system ignores it, only verified reads are still what is served.
        let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
    }
    Ok(file)
}

pub(super) fn block_size(dir: &Path) -> io::Result<usize> {
    if !fs::metadata(dir)?.is_dir() {
        return Err(io::Error::new(io::ErrorKind::NotADirectory, "block size is asked of a directory"));
    }
    let unnamed = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let Ok(probe) = rustix::fs::open(dir, unnamed, Mode::RUSR | Mode::WUSR) else {
        return Ok(BLOCK_BYTES_FALLBACK);
    };
    let Ok(stat) = rustix::fs::statx(&probe, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN) else {
        return Ok(BLOCK_BYTES_FALLBACK);
    };
    let told = stat.stx_mask & StatxFlags::DIOALIGN.bits() != 0 && stat.stx_dio_offset_align != 0;
    let align = stat.stx_dio_offset_align.max(stat.stx_dio_mem_align) as usize;
    if told && align.is_power_of_two() && align <= BLOCK_BYTES_FALLBACK {
        return Ok(align.max(512));
    }
    Ok(BLOCK_BYTES_FALLBACK)
}

pub(super) fn len(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.size())
}

pub(super) fn allocate(file: &File, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    // A signal to the process ends the call on some file systems.
    match retry_on_intr(|| rustix::fs::fallocate(file, FallocateFlags::empty(), 0, len)) {
        // Without allocation ahead, ENOSPC shows at the write instead.
        Err(rustix::io::Errno::OPNOTSUPP) => {
            if self::len(file)? < len {
                file.set_len(len)?;
            }
            Ok(())
        }
        other => Ok(other?),
    }
}

pub(super) fn punch_hole(file: &File, offset: u64, len: u64) -> io::Result<()> {
    if len == 0 {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(retry_on_intr(|| rustix::fs::fallocate(file, flags, offset, len))?)
}

pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = vec![];
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            files.push(entry.path());
        }
    }
    Ok(files)
}

pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Holds the lock of a data directory. The kernel lets go of it when the process ends, however it ends.
struct DirLock {
    _file: File,
}

pub(super) fn lock_dir(dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
    let file =
        File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(dir.join(LOCK_NAME))?;
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Box::new(DirLock { _file: file })),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(io::Error::new(
            io::ErrorKind::WouldBlock,
            format!("another process uses the data directory {}", dir.display()),
        )),
        Err(error) => Err(error.into()),
    }
}

pub(super) fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_blocks.saturating_mul(stat.f_frsize), stat.f_bavail.saturating_mul(stat.f_frsize)))
}

/// How far a write came that the kernel ended early, rounded down to what may be continued by `O_DIRECT`.
pub(super) fn progress_of_short_write(written: usize, asked: usize) -> io::Result<usize> {
    if written == asked {
        return Ok(written);
    }
    match written & !511 {
        0 => Err(io::ErrorKind::WriteZero.into()),
        aligned => Ok(aligned),
    }
}

/// Whether an error is how `O_DIRECT` refuses the rest of a read that ended, unaligned, at the end of the file.
pub(super) fn is_end_after_short_read(error: &io::Error, done: usize) -> bool {
    error.kind() == io::ErrorKind::InvalidInput && done > 0
}

/// The operations of [`super::BlockIo`] that are the same for all real files, of a type with
/// `flights: Option<Arc<Flights>>`. Each is counted while it blocks.
macro_rules! real_directory_operations {
    () => {
        fn block_size(&self, dir: &::std::path::Path) -> ::std::io::Result<usize> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::block_size(dir)
        }

        fn create_dir(&self, path: &::std::path::Path) -> ::std::io::Result<()> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            ::std::fs::create_dir_all(path)
        }

        fn list(&self, dir: &::std::path::Path) -> ::std::io::Result<Vec<::std::path::PathBuf>> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::list(dir)
        }

        fn rename(&self, from: &::std::path::Path, to: &::std::path::Path) -> ::std::io::Result<()> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            ::std::fs::rename(from, to)
        }

        fn unlink(&self, path: &::std::path::Path) -> ::std::io::Result<()> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            ::std::fs::remove_file(path)
        }

        fn sync_dir(&self, dir: &::std::path::Path) -> ::std::io::Result<()> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::sync_dir(dir)
        }

        fn lock_dir(&self, dir: &::std::path::Path) -> ::std::io::Result<Box<dyn Send + Sync>> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::lock_dir(dir)
        }

        fn space(&self, dir: &::std::path::Path) -> ::std::io::Result<(u64, u64)> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::space(dir)
        }
    };
}

/// The operations of [`super::BlockFile`] that are the same for all real files, of a type with `file: Arc<File>` and
/// `flights: Option<Arc<Flights>>`.
macro_rules! real_file_operations {
    () => {
        fn len(&self) -> ::std::io::Result<u64> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::len(&self.file)
        }

        fn allocate(&self, len: u64) -> ::std::io::Result<()> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::allocate(&self.file, len)
        }

        fn punch_hole(&self, offset: u64, len: u64) -> ::std::io::Result<()> {
            let _flight = self.flights.as_ref().map($crate::io::flights::Flights::begin);
            $crate::io::files::punch_hole(&self.file, offset, len)
        }

        fn as_fd(&self) -> Option<::std::os::fd::BorrowedFd<'_>> {
            Some(::std::os::fd::AsFd::as_fd(&*self.file))
        }
    };
}

pub(super) use {real_directory_operations, real_file_operations};
