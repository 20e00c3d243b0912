//! A file of a simulated disk: what happens at the beginning of an operation, and what at its end.

use ::std::io;
use ::std::ops::Range;
use ::std::sync::Arc;

use parking_lot::Mutex;
use rand::Rng;
use tokio::sync::oneshot;

use super::disk::{Disk, FileId};
use super::{BLOCK_BYTES, OpKind};
use crate::buf::{IoBuf, SharedBuf};
use crate::io::flights::{Flight, Flights};
use crate::io::{BlockFile, IoFuture};

/// An operation yields at most this many times before it completes: enough to change places with any other in flight.
const DELAY_TURNS_MAX: u32 = 8;

/// An open file. Dead after a crash of the disk.
pub(super) struct SimFile {
    pub(super) disk: Arc<Mutex<Disk>>,
    pub(super) flights: Option<Arc<Flights>>,
    pub(super) id: FileId,
    pub(super) generation: u64,
    pub(super) direct: bool,
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
