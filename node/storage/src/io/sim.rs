//! [`BlockIo`] on a disk in memory that fails as disks do, by a seed.
//!
//! * **Crash**: each write, punch and extension that no sync covered is kept, lost, or (writes) torn at 512 or 4096
//!   bytes; each directory change that no `sync_dir` covered is kept or lost, on its own. Operations in flight may have
//!   reached the platter. Open files are dead from then on, also after [`SimIo::recover`]. Creating directories is
//!   durable at once.
//! * **Failed sync**: as in a real kernel, what it should have written is there by chance, and no later sync writes it.
//! * **Lost flushes**: syncs succeed and do nothing. **Lost writes**: a write succeeds and does nothing. **Misdirected
//!   write**: it lands elsewhere in the file. **Bit rot**: [`SimIo::rot`]. **Full**: [`SimIo::set_capacity`].
//!   **Unreadable sectors**: [`SimIo::set_unreadable`]. **Silence**: [`SimIo::hold`].
//!
//! Operations complete in an order shuffled by the seed. On a current-thread runtime all is deterministic: the same
//! seed and the same calls give the same run, so that a failing seed can be replayed.

use ::std::io;
use ::std::ops::Range;
use ::std::path::{Path, PathBuf};
use ::std::sync::Arc;

use parking_lot::Mutex;

use self::disk::{Disk, FileId};
use self::file::SimFile;
use super::flights::Flights;
use super::{BlockFile, BlockIo, OpenMode};

mod disk;
mod file;

/// Alignment that direct operations need.
const BLOCK_BYTES: usize = 512;

/// What goes wrong, at the first operation that it can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Power loss. Strikes any operation.
    Crash,
    /// The operation fails with `EIO` and does nothing. Strikes any operation.
    Eio,
    /// A sync of a file or directory fails with `EIO` after doing a part of its work.
    FailedSync,
    /// A write succeeds and goes to another offset of its file.
    MisdirectedWrite,
    /// A write succeeds and is never done.
    LostWrite,
    /// A file, or a directory to be synced, cannot be opened, since the process has no descriptors left (`EMFILE`).
    NoDescriptors,
}

impl Fault {
    fn strikes(self, kind: OpKind) -> bool {
        match self {
            Fault::Crash | Fault::Eio => true,
            Fault::FailedSync => matches!(kind, OpKind::Sync | OpKind::SyncDir),
            Fault::MisdirectedWrite | Fault::LostWrite => kind == OpKind::Write,
            Fault::NoDescriptors => matches!(kind, OpKind::Open | OpKind::SyncDir),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpKind {
    Read,
    Write,
    Sync,
    SyncDir,
    Open,
    Control,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub struct SimIo {
    disk: Arc<Mutex<Disk>>,
    flights: Option<Arc<Flights>>,
}

impl SimIo {
    /// An empty disk without limit of space whose faults and timing follow from `seed`.
    pub fn new(seed: u64) -> SimIo {
        SimIo { disk: Arc::new(Mutex::new(Disk::new(seed))), flights: None }
    }

    /// Operations begun so far, of all kinds: the clock by which faults are planned.
    pub fn ops(&self) -> u64 {
        self.disk.lock().ops
    }

    /// Plans a fault for the first operation it can strike from the `at_op`-th on (the first operation is 1).
    pub fn inject(&self, at_op: u64, fault: Fault) {
        self.disk.lock().faults.push((at_op, fault));
    }

    /// Forgets the faults that are planned and have not happened.
    pub fn clear_faults(&self) {
        self.disk.lock().faults.clear();
    }

    /// Power loss, now. Every operation fails with `EIO` until [`SimIo::recover`].
    pub fn crash(&self) {
        self.disk.lock().crash();
    }

    /// Whether the power is off.
    pub fn is_down(&self) -> bool {
        self.disk.lock().down
    }

    /// Power is back: the disk has what the crash left. Files must be opened anew.
    pub fn recover(&self) {
        self.disk.lock().down = false;
    }

    /// Whether syncs succeed and do nothing from now on.
    pub fn set_lose_flushes(&self, lose: bool) {
        self.disk.lock().lose_flushes = lose;
    }

    /// Makes every sync take this many turns more: a disk whose flushes are far slower than its writes.
    pub fn set_slow_syncs(&self, turns: u32) {
        self.disk.lock().sync_turns = turns;
    }

    /// Reads, writes and syncs that begin from now on do not end, until [`SimIo::release`]. Control operations, which
    /// block, are not held.
    pub fn hold(&self) {
        self.disk.lock().holding = true;
    }

    /// Lets what is held take effect and end, in the order in which it began, whether or not anybody waits for it any
    /// more.
    pub fn release(&self) {
        let mut disk = self.disk.lock();
        disk.holding = false;
        for end in ::std::mem::take(&mut disk.held) {
            end(&mut disk);
        }
    }

    /// Operations that are held.
    pub fn held(&self) -> usize {
        self.disk.lock().held.len()
    }

    /// Limits the space, counted in pages of 4 KiB; beyond it is `ENOSPC`.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk.lock().capacity_bytes = bytes;
    }

    /// Bytes allocated now.
    pub fn allocated_bytes(&self) -> u64 {
        self.disk.lock().allocated_bytes()
    }

    /// Flips a bit of a file. Beyond its end nothing happens.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn rot(&self, path: &Path, offset: u64, bit: u8) -> io::Result<()> {
        self.disk.lock().rot(path, offset, bit)
    }

    /// Makes reads that touch a range of a file fail with `EIO`, until something is written over it or it is punched.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn set_unreadable(&self, path: &Path, range: Range<u64>) -> io::Result<()> {
        self.disk.lock().set_unreadable(path, range)
    }

    /// Makes everything readable again: it was the cable.
    pub fn clear_unreadable(&self) {
        self.disk.lock().unreadable.clear();
    }

    /// All files and their lengths, sorted: for choosing what to harm.
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.disk.lock().files()
    }

    fn control<T>(&self, run: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        self.operation(OpKind::Control, run)
    }

    fn operation<T>(&self, kind: OpKind, run: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        disk.begin(kind, None)?;
        run(&mut disk)
    }

    fn handle(&self, id: FileId, generation: u64, mode: OpenMode) -> Arc<dyn BlockFile> {
        let (disk, flights) = (Arc::clone(&self.disk), self.flights.clone());
        Arc::new(SimFile { disk, flights, id, generation, direct: mode == OpenMode::Direct })
    }
}

struct DirLock {
    disk: Arc<Mutex<Disk>>,
    dir: PathBuf,
    generation: u64,
}

impl Drop for DirLock {
    fn drop(&mut self) {
        let mut disk = self.disk.lock();
        if disk.generation == self.generation {
            disk.locks.remove(&self.dir);
        }
    }
}

impl BlockIo for SimIo {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn for_disk(&self, _dir: &Path, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>> {
        Ok(Arc::new(SimIo { disk: Arc::clone(&self.disk), flights: Some(Arc::clone(flights)) }))
    }

    fn block_size(&self, _dir: &Path) -> io::Result<usize> {
        Ok(BLOCK_BYTES)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let (id, generation) = self.operation(OpKind::Open, |disk| Ok((disk.open(path)?, disk.generation)))?;
        Ok(self.handle(id, generation, mode))
    }

    fn create(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let (id, generation) = self.operation(OpKind::Open, |disk| Ok((disk.create(path)?, disk.generation)))?;
        Ok(self.handle(id, generation, mode))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.control(|disk| {
            disk.create_dir(path);
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.control(|disk| disk.list(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.control(|disk| disk.rename(from, to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.control(|disk| disk.unlink(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut disk = self.disk.lock();
        let fault = disk.begin(OpKind::SyncDir, None)?;
        disk.sync_dir(dir, fault)
    }

    fn lock_dir(&self, dir: &Path) -> io::Result<Box<dyn Send + Sync>> {
        let generation = self.control(|disk| {
            if !disk.is_dir(dir) {
                return Err(io::ErrorKind::NotFound.into());
            }
            if !disk.locks.insert(dir.to_path_buf()) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(disk.generation)
        })?;
        Ok(Box::new(DirLock { disk: Arc::clone(&self.disk), dir: dir.to_path_buf(), generation }))
    }

    fn space(&self, _dir: &Path) -> io::Result<(u64, u64)> {
        self.control(|disk| Ok((disk.capacity_bytes, disk.capacity_bytes.saturating_sub(disk.allocated_bytes()))))
    }
}
