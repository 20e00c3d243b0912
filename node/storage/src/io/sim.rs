//! [`BlockIo`] on a disk in memory that fails as disks do, by a seed.
//!
//! * **Crash**: each write, punch and extension that no sync covered is kept, lost, or (writes) torn at 512 or 4096 bytes;
//!   each directory change that no `sync_dir` covered is kept or lost, on its own. Operations in flight may have reached
//!   the platter. Open files are dead from then on, also after [`SimIo::recover`]. Creating directories is durable at once.
//! * **Failed sync**: as in a real kernel, what it should have written is there by chance, and no later sync writes it.
//! * **Lost flushes**: syncs succeed and do nothing. **Lost writes**: a write succeeds and does nothing. **Misdirected
//!   write**: it lands elsewhere in the file. **Bit rot**: [`SimIo::rot`]. **Full**: [`SimIo::set_capacity`].
//!   **Unreadable sectors**: [`SimIo::set_unreadable`]. **Silence**: [`SimIo::hold`].
//!
//! Operations complete in an order shuffled by the seed. On a current-thread runtime all is deterministic: the same seed and
//! the same calls give the same run, so that a failing seed can be replayed.

use ::std::io;
use ::std::ops::Range;
use ::std::path::{Path, PathBuf};
use ::std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::oneshot;

use self::disk::{Disk, FileId};
use super::flights::{Flight, Flights};
use super::{BlockFile, BlockIo, IoFuture, OpenMode};
use crate::buf::{IoBuf, SharedBuf};

mod disk;

/// Alignment that direct operations need.
const BLOCK_BYTES: usize = 512;

/// An operation yields at most this many times before it completes: enough to change places with any other in flight.
const DELAY_TURNS_MAX: u32 = 8;

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
}

impl Fault {
    fn strikes(self, kind: OpKind) -> bool {
        match self {
            Fault::Crash | Fault::Eio => true,
            Fault::FailedSync => kind == OpKind::Sync,
            Fault::MisdirectedWrite | Fault::LostWrite => kind == OpKind::Write,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OpKind {
    Read,
    Write,
    Sync,
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

    /// Reads, writes and syncs that begin from now on do not end, until [`SimIo::release`]. Control operations, which block, are not
    /// held.
    pub fn hold(&self) {
        self.disk.lock().holding = true;
    }

    /// Lets what is held take effect and end, in the order in which it began, whether or not anybody waits for it any more.
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
        let mut disk = self.disk.lock();
        disk.begin(OpKind::Control, None)?;
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

    fn for_disk(&self, flights: &Arc<Flights>) -> io::Result<Arc<dyn BlockIo>> {
        Ok(Arc::new(SimIo { disk: Arc::clone(&self.disk), flights: Some(Arc::clone(flights)) }))
    }

    fn block_size(&self, _dir: &Path) -> io::Result<usize> {
        Ok(BLOCK_BYTES)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let (id, generation) = self.control(|disk| Ok((disk.open(path)?, disk.generation)))?;
        Ok(self.handle(id, generation, mode))
    }

    fn create(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn BlockFile>> {
        let (id, generation) = self.control(|disk| Ok((disk.create(path)?, disk.generation)))?;
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
        let fault = disk.begin(OpKind::Sync, None)?;
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

struct SimFile {
    disk: Arc<Mutex<Disk>>,
    flights: Option<Arc<Flights>>,
    id: FileId,
    generation: u64,
    direct: bool,
}

impl SimFile {
    fn check_aligned(&self, offset: u64, memory: *const u8, len: usize) -> io::Result<()> {
        let aligned = offset.is_multiple_of(BLOCK_BYTES as u64)
            && len.is_multiple_of(BLOCK_BYTES)
            && (memory as usize).is_multiple_of(BLOCK_BYTES);
        if self.direct && !aligned { Err(rustix::io::Errno::INVAL.into()) } else { Ok(()) }
    }

    fn control<T>(&self, run: impl FnOnce(&mut Disk) -> io::Result<T>) -> io::Result<T> {
        let mut disk = self.disk.lock();
        disk.begin(OpKind::Control, Some(self.generation))?;
        run(&mut disk)
    }
}

/// The second half of an operation. It runs when the operation's turn comes, or when its future is dropped before.
struct Finish<F: FnOnce(&mut Disk) -> io::Result<()>> {
    disk: Arc<Mutex<Disk>>,
    generation: u64,
    effect: Option<F>,
}

impl<F: FnOnce(&mut Disk) -> io::Result<()>> Finish<F> {
    fn run(&mut self) -> io::Result<()> {
        let Some(effect) = self.effect.take() else { return Ok(()) };
        let mut disk = self.disk.lock();
        if disk.generation != self.generation {
            return Err(rustix::io::Errno::IO.into());
        }
        effect(&mut disk)
    }
}

impl<F: FnOnce(&mut Disk) -> io::Result<()>> Drop for Finish<F> {
    fn drop(&mut self) {
        // Nobody is left to be told.
        let _ = self.run();
    }
}

/// Has the second half of an operation wait until the disk is released. It happens then even if the result is dropped.
fn hold<T: Send + 'static>(
    disk: &mut Disk,
    generation: u64,
    flight: Option<Flight>,
    effect: impl FnOnce(&mut Disk) -> io::Result<T> + Send + 'static,
) -> oneshot::Receiver<io::Result<T>> {
    let (done, result) = oneshot::channel();
    disk.held.push(Box::new(move |disk: &mut Disk| {
        let lost = disk.generation != generation;
        let effect = if lost { Err(rustix::io::Errno::IO.into()) } else { effect(disk) };
        drop(flight);
        // Nobody may be left to be told.
        let _ = done.send(effect);
    }));
    result
}

/// The result of an operation that was held.
async fn ended<T>(result: oneshot::Receiver<io::Result<T>>) -> io::Result<T> {
    // Dropped with the disk.
    result.await.unwrap_or_else(|_| Err(rustix::io::Errno::IO.into()))
}

async fn delay(turns: u32) {
    for _ in 0..turns {
        tokio::task::yield_now().await;
    }
}

impl BlockFile for SimFile {
    fn write_at(&self, offset: u64, buf: SharedBuf, range: Range<usize>) -> IoFuture<io::Result<()>> {
        let aligned = self.check_aligned(offset, buf[range.clone()].as_ptr(), range.len());
        let (disk, id, generation) = (Arc::clone(&self.disk), self.id, self.generation);
        let flights = self.flights.clone();
        Box::pin(async move {
            let flight = flights.as_ref().map(Flights::begin);
            let (ticket, turns, held) = {
                let mut disk = disk.lock();
                let fault = disk.begin(OpKind::Write, Some(generation))?;
                aligned?;
                let ticket = disk.start_write(id, offset, &buf[range], fault)?;
                let turns = disk.rng.random_range(0..DELAY_TURNS_MAX);
                let held = if disk.holding {
                    Err(hold(&mut disk, generation, flight, move |disk| disk.finish_write(id, ticket)))
                } else {
                    Ok(flight)
                };
                (ticket, turns, held)
            };
            let _flight = match held {
                Ok(flight) => flight,
                Err(result) => return ended(result).await,
            };
            let mut finish =
                Finish { disk, generation, effect: Some(move |disk: &mut Disk| disk.finish_write(id, ticket)) };
            delay(turns).await;
            finish.run()
        })
    }

    fn read_at(&self, offset: u64, mut buf: IoBuf, len: usize) -> IoFuture<(io::Result<usize>, IoBuf)> {
        let aligned = self.check_aligned(offset, buf[..len].as_ptr(), len);
        let (disk, id, generation) = (Arc::clone(&self.disk), self.id, self.generation);
        let flights = self.flights.clone();
        Box::pin(async move {
            let flight = flights.as_ref().map(Flights::begin);
            let (begun, held) = {
                let mut disk = disk.lock();
                let begun = disk.begin(OpKind::Read, Some(generation)).and(aligned);
                let begun = begun.map(|()| disk.rng.random_range(0..DELAY_TURNS_MAX));
                // The bytes are read when it is over, below.
                let held = if begun.is_ok() && disk.holding {
                    Err(hold(&mut disk, generation, flight, |_| Ok(())))
                } else {
                    Ok(flight)
                };
                (begun, held)
            };
            let turns = match begun {
                Ok(turns) => turns,
                Err(error) => return (Err(error), buf),
            };
            let _flight = match held {
                Ok(flight) => flight,
                Err(result) => {
                    if let Err(error) = ended(result).await {
                        return (Err(error), buf);
                    }
                    None
                }
            };
            delay(turns).await;
            let mut disk = disk.lock();
            if disk.generation != generation {
                return (Err(rustix::io::Errno::IO.into()), buf);
            }
            let result = disk.read(id, offset, &mut buf[..len]);
            (result, buf)
        })
    }

    fn sync_data(&self) -> IoFuture<io::Result<()>> {
        let (disk, id, generation) = (Arc::clone(&self.disk), self.id, self.generation);
        let flights = self.flights.clone();
        Box::pin(async move {
            let flight = flights.as_ref().map(Flights::begin);
            let (effect, turns, held) = {
                let mut disk = disk.lock();
                let fault = disk.begin(OpKind::Sync, Some(generation))?;
                let turns = disk.sync_turns + disk.rng.random_range(0..DELAY_TURNS_MAX);
                let covered = disk.start_sync(id)?;
                let effect = move |disk: &mut Disk| disk.finish_sync(id, &covered, fault);
                if disk.holding {
                    (None, turns, Err(hold(&mut disk, generation, flight, effect)))
                } else {
                    (Some(effect), turns, Ok(flight))
                }
            };
            let _flight = match held {
                Ok(flight) => flight,
                Err(result) => return ended(result).await,
            };
            let mut finish = Finish { disk, generation, effect };
            delay(turns).await;
            finish.run()
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.control(|disk| disk.len(self.id))
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.control(|disk| disk.allocate(self.id, len))
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<()> {
        self.control(|disk| disk.punch_hole(self.id, offset, len))
    }

    fn as_fd(&self) -> Option<::std::os::fd::BorrowedFd<'_>> {
        None
    }
}
